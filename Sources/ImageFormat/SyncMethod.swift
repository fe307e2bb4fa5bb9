internal import Linux

/// How a set of images is brought to the disk.
public enum SyncMethod: Hashable, Sendable {
    /// Not at all: the system writes it when it likes.
    case none
    /// By one `syncfs(2)`, which costs a fraction of an `fsync(2)` for each file.
    case wholeFileSystem
    /// By an `fsync(2)` for each file, which is better where others have much to write.
    case eachFile

    /// The cheaper way on this machine at this moment.
    public static func best() -> SyncMethod {
        systemMemory("Dirty:", "Writeback:") > 256 << 20 ? .eachFile : .wholeFileSystem
    }
}
