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
        var unwritten: UInt64 = 0
        for line in ((try? readWholeFile("/proc/meminfo")) ?? []).split(separator: 0x0a)
        where line.starts(with: "Dirty:".utf8) || line.starts(with: "Writeback:".utf8) {
            let digits = line.filter { $0 >= 0x30 && $0 <= 0x39 }
            unwritten += (UInt64(String(decoding: digits, as: UTF8.self)) ?? 0) << 10
        }
        return unwritten > 256 << 20 ? .eachFile : .wholeFileSystem
    }
}
