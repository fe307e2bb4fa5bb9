internal import Diagnostics
internal import Kinds
internal import Linux

/// Inodes that somebody has a lock or lease on. Such a file must not be opened again: that would break a lease.
final class LockedInodes {
    private var known: Set<UInt64>?

    static func of(_ context: DumpContext) -> LockedInodes { context.state(LockedInodes.self) { LockedInodes() } }

    /// Whether an inode is among those of /proc/locks, on whatever file system.
    func contains(_ inode: UInt64) throws(Failure) -> Bool {
        if let known { return known.contains(inode) }
        var found: Set<UInt64> = []
        let text = try attempt("read /proc/locks") { () throws(SystemCallError) in try readWholeFile("/proc/locks") }
        // N: POSIX ADVISORY WRITE PID MAJOR:MINOR:INODE START END, with an arrow before those that wait.
        for word in text.split(whereSeparator: { $0 == 0x20 || $0 == 0x0a }) {
            let parts = word.split(separator: 0x3a)
            if parts.count == 3, let inode = UInt64(String(decoding: parts[2], as: UTF8.self)) { found.insert(inode) }
        }
        known = found
        return found.contains(inode)
    }
}
