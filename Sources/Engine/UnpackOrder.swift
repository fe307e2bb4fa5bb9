public import Diagnostics
internal import ImageFormat
public import Logging
public import SystemPackage

/// Turns packed images and their parents into CRIU's format, in place.
///
/// - Parameter verifies: compare what is read with the hashes that the images have.
public func unpack(_ images: FilePath, verifies: Bool, faults: Faults, log: Logger) throws(Failure) {
    let set = try ImageSet(images, verifies: verifies)
    // Without an inventory it may be where a page server put pages.
    if set.has(.inventory) { try set.verify(pages: false) }
    let names = try set.unpack(faults)
    for name in names { log.info("unpacked \(name)") }
    log.notice("unpacked \(names.count) pages files of \(images)")
}
