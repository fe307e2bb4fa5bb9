internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// Dump: locks and leases, `filelocks.img`.
///
/// fdinfo shows every lock of a description, and of POSIX locks those of the descriptor table that it is read through.
/// So a lock is met once for each descriptor that leads to it.
final class Locks {
    /// What makes a lock met again the same one.
    private struct Place: Hashable {
        let file: UInt32
        /// The descriptor table of a POSIX lock, 0 for others.
        let table: UInt32
        let lock: FileLock
    }

    private var entries: [FileLockEntry] = []
    private var known: [Place: Int] = [:]

    static func of(_ context: DumpContext) -> Locks { context.state(Locks.self) { Locks() } }

    /// Dumps the locks that a descriptor shows.
    ///
    /// - Parameters:
    ///   - id: the description in files.img.
    ///   - handle: our copy of the descriptor.
    func dump(
        _ facts: FileFacts, id: UInt32, handle: Int32, _ number: Int32, of process: DumpedProcess,
        _ context: DumpContext
    ) throws(Failure) {
        for line in facts.information.lines where line.starts(with: "lock:".utf8) {
            guard let lock = FileLock(line.dropFirst("lock:".utf8.count)) else {
                throw Failure(
                    .unsupported,
                    "\(facts.text) has a lock of a kind that can't be dumped: "
                        + String(decoding: line, as: UTF8.self),
                    advice: "Release it before the dump")
            }
            guard context.policy.fileLocks else {
                throw Failure(
                    .denied, "the \(lock.text) on \(facts.text) is not dumped without being asked for",
                    advice: "Pass --file-locks if all users of the file are in the tree, or release the lock")
            }
            let place = Place(file: id, table: lock.kind == .posix ? process.ids.filesID : 0, lock: lock)
            let holder = holder(of: lock, process, context)
            guard let index = known[place] else {
                known[place] = entries.count
                var entry = Locks.entry(lock)
                (entry.pid, entry.fd) = (holder, number)
                if lock.isBreaking { entry.lease = try Locks.brokenType(lock, facts, handle) }
                entries.append(entry)
                continue
            }
            // Whoever took it takes it again, if it still has the description.
            if holder == lock.owner, entries[index].pid != lock.owner {
                (entries[index].pid, entries[index].fd) = (holder, number)
            }
        }
    }

    /// The process that took the lock, where it is one of those with this descriptor table.
    private func holder(of lock: FileLock, _ process: DumpedProcess, _ context: DumpContext) -> Int32 {
        guard lock.owner != process.id.rawValue else { return lock.owner }
        let owner = context.processes.first { $0.id.rawValue == lock.owner && $0.ids.filesID == process.ids.filesID }
        return (owner ?? process).id.rawValue
    }

    private static func entry(_ lock: FileLock) -> FileLockEntry {
        var entry = FileLockEntry()
        entry.flag = LockFlag(lock.kind).rawValue
        entry.type = LockType(lock.access).rawValue | (lock.isBreaking ? LockType.breaking : 0)
        entry.start = lock.start
        // Up to the last possible byte is the same as without an end.
        entry.len = lock.end.map { $0 == .max ? 0 : $0 - lock.start + 1 } ?? 0
        return entry
    }

    /// What a lease was before somebody began to break it. The kernel shows only what has to become of it.
    private static func brokenType(_ lock: FileLock, _ facts: FileFacts, _ handle: Int32) throws(Failure) -> UInt32 {
        guard lock.access == .none, facts.statusFlags & 3 == 0 else { return LockType.write.rawValue }
        // Only a former write lease keeps readers out; those find the break begun already and start none.
        do throws(SystemCallError) {
            _ = try openFile("/proc/self/fd/\(handle)", [.nonBlocking])
            return LockType.read.rawValue
        } catch {
            if error.errno == .EAGAIN { return LockType.write.rawValue }
            throw Failure(.denied, "can't find out which lease is being broken", cause: error)
        }
    }

    /// Writes filelocks.img.
    func finish(_ context: DumpContext) throws(Failure) {
        if !entries.isEmpty { try context.images.write(.fileLocks, entries) }
    }
}

/// `flag` of a lock in the image.
enum LockFlag: UInt32 {
    case posix = 1, flock = 2, description = 4, lease = 8

    init(_ kind: FileLock.Class) {
        switch kind {
        case .posix: self = .posix
        case .flock: self = .flock
        case .description: self = .description
        case .lease: self = .lease
        }
    }
}

/// `type` of a lock in the image: `F_RDLCK`, `F_WRLCK`, `F_UNLCK`.
enum LockType: UInt32 {
    case read = 0, write = 1, none = 2
    /// Set in `type` besides, while somebody waits for a lease.
    static let breaking: UInt32 = 4

    init(_ access: FileLock.Access) {
        switch access {
        case .read: self = .read
        case .write: self = .write
        case .none: self = .none
        }
    }
}
