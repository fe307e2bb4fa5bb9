public import Diagnostics
internal import ImageFormat
internal import Kinds
internal import Linux
public import Logging
public import SystemPackage

/// Reads all images of a directory and plans the restore, but creates nothing.
///
/// - Throws: what a restore would throw before it creates anything, but for pids that are taken.
public func checkImages(_ images: FilePath, log: Logger) throws(Failure) {
    let context = RestoreContext(policy: RestorePolicy(), images: try ImageSet(images), log: log, faults: Faults())
    try RestoreOrder(context: context, request: RestoreRequest(images: images)).makePlan(checksIDs: false)
}
