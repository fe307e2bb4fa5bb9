internal import Diagnostics
internal import Kinds
internal import Linux
internal import Procfs

/// What /proc/locks said when the tree stood still. A file that somebody has a lock or lease on must not be opened again:
/// that would break a lease.
final class LockedInodes {
    private var known: (text: [UInt8], inodes: Set<UInt64>)?

    static func of(_ context: DumpContext) -> LockedInodes { context.state(LockedInodes.self) { LockedInodes() } }

    /// Makes a read of /proc/locks cheap for some milliseconds: a first one waits for an RCU grace period, 6 to 16 ms.
    static func hasten() { _ = try? readWholeFile("/proc/locks") }

    /// Takes it that there are none.
    func assumeNone() { known = ([], []) }

    /// Reads /proc/locks, unless it was read before.
    @discardableResult
    func read() throws(Failure) -> (text: [UInt8], inodes: Set<UInt64>) {
        if let known { return known }
        var inodes: Set<UInt64> = []
        let text = try attempt("read /proc/locks") { () throws(SystemCallError) in try readWholeFile("/proc/locks") }
        // N: POSIX ADVISORY WRITE PID MAJOR:MINOR:INODE START END, with an arrow before those that wait.
        for word in text.split(whereSeparator: { $0 == 0x20 || $0 == 0x0a }) {
            let parts = word.split(separator: 0x3a)
            if parts.count == 3, let inode = UInt64(String(decoding: parts[2], as: UTF8.self)) { inodes.insert(inode) }
        }
        known = (text, inodes)
        return (text, inodes)
    }

    /// Whether an inode is among those of /proc/locks, on whatever file system.
    func contains(_ inode: UInt64) throws(Failure) -> Bool { try read().inodes.contains(inode) }

    /// All locks of the system, as far as they can be seen from here.
    func all() throws(Failure) -> [FileLock] { try read().text.split(separator: 0x0a).compactMap { FileLock($0) } }
}
