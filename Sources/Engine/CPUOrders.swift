public import Diagnostics
internal import ImageFormat
public import Kinds
public import SystemPackage
internal import Tasks

/// The orders `cpuinfo dump` and `cpuinfo check`.
public enum CPUOrders {
    /// Writes this machine's CPU features into a directory.
    public static func dump(to images: FilePath) throws(Failure) {
        let folder = try ImageDirectory(images)
        try CPU.dump(to: folder)
        try folder.writeOut()
    }

    /// Compares this machine with the image in a directory.
    public static func check(_ images: FilePath, _ capabilities: CPUCapabilities) throws(Failure) {
        let images = try ImageSet(images)
        guard images.has(.cpuInformation) else {
            throw Failure(
                .corruptImage, "there is no cpuinfo.img in \(images.path.string)",
                advice: "Run 'cpuinfo dump' there first")
        }
        try CPU.check(images, capabilities)
    }
}
