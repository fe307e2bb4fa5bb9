public import Diagnostics
internal import ImageFormat
internal import Kinds
internal import Linux
public import Logging
public import SystemPackage

/// Reads all images of a directory and plans the restore, but creates nothing.
///
/// - Parameter verifies: compare the images with the hashes that they have, as a restore does.
/// - Throws: what a restore would throw before it creates anything, but for pids that are taken.
public func checkImages(_ images: FilePath, verifies: Bool = true, log: Logger) throws(Failure) {
    let set = try ImageSet(images, verifies: verifies)
    try set.verify(pages: true)
    let context = RestoreContext(policy: RestorePolicy(), images: set, log: log, faults: Faults())
    try RestoreOrder(context: context, request: RestoreRequest(images: images)).makePlan(checksIDs: false)
}
