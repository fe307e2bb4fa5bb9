internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
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
        _ facts: FileFacts, _ id: UInt32, handle: Int32, _ number: Int32, of process: DumpedProcess,
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
            let owner = context.numbers[TaskID(lock.owner)]
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
            if holder == owner, entries[index].pid != owner {
                (entries[index].pid, entries[index].fd) = (holder, number)
            }
        }
    }

    /// The process that took the lock, where it is one of those with this descriptor table.
    private func holder(of lock: FileLock, _ process: DumpedProcess, _ context: DumpContext) -> Int32 {
        guard lock.owner != process.id.rawValue else { return process.number }
        let owner = context.processes.first { $0.id.rawValue == lock.owner && $0.ids.filesID == process.ids.filesID }
        return (owner ?? process).number
    }

    /// Refuses a file whose contents can't be read: opening it again would break the lease, and wait for that.
    static func refuseWriteLease(_ facts: FileFacts) throws(Failure) {
        for line in facts.information.lines where line.starts(with: "lock:".utf8) {
            guard let lock = FileLock(line.dropFirst("lock:".utf8.count)), lock.kind == .lease else { continue }
            guard lock.access == .read, !lock.isBreaking else {
                throw Failure(
                    .unsupported, "the contents of an unlinked file can't be read without breaking its lease",
                    advice: "Release the lease before the dump")
            }
        }
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

    /// A file that is mapped: device as the kernel prints it, inode, how it is open, its id in files.img.
    typealias MappedFile = (device: UInt64, inode: UInt64, flags: Int32, id: UInt32)

    /// Writes filelocks.img.
    func finish(_ mapped: [MappedFile], _ context: DumpContext) throws(Failure) {
        let mapped = mapped.sorted { $0.id < $1.id }
        if !mapped.isEmpty {
            join(mapped, context)
            try dumpMapped(mapped, context)
        }
        if !entries.isEmpty { try context.images.write(.fileLocks, entries) }
    }

    /// A mapping keeps the description that it was made from. Which that is the kernel does not tell; where a description
    /// of the file has a lock and is open in the same way, it is taken to be that one, so that both go on to hold the
    /// lock, and a lease finds nobody else who has opened the file.
    private func join(_ mapped: [MappedFile], _ context: DumpContext) {
        for place in known.keys.sorted(by: { $0.file < $1.file }) where place.lock.kind != .posix {
            guard let holder = context.files.first(where: { $0.id == place.file && $0.hasReg }) else { continue }
            for file in mapped where place.lock.isOn(file) && UInt32(file.flags) & 3 == holder.reg.flags & 3 {
                guard let index = context.files.firstIndex(where: { $0.id == file.id && $0.hasReg }) else { continue }
                context.files[index].reg.sameAs = holder.id
            }
        }
    }

    /// Dumps locks of descriptions that no descriptor refers to any more, only mappings. The kernel names no holders, so
    /// what nobody shows in fdinfo is taken to be the tree's.
    private func dumpMapped(_ mapped: [MappedFile], _ context: DumpContext) throws(Failure) {
        var left = try LockedInodes.of(context).all().filter { (lock) in
            lock.kind != .posix && mapped.contains { lock.isOn($0) }
        }
        for lock in known.keys.map(\.lock) { if let index = left.firstIndex(of: lock) { left.remove(at: index) } }
        guard !left.isEmpty else { return }
        let others = Locks.held(outside: Set(context.processes.map(\.id)))
        for lock in left where !others.contains(lock) {
            let writes = lock.kind == .description && lock.access == .write
            let candidates = mapped.filter { lock.isOn($0) && (!writes || $0.flags & 3 != 0) }
            guard let file = candidates.first(where: { $0.flags & 3 == 2 }) ?? candidates.first else { continue }
            let path =
                context.files.first { $0.id == file.id }.map { String(decoding: $0.reg.name, as: UTF8.self) } ?? "?"
            guard lock.kind != .description || Locks.seesEverybody else {
                context.log.warning(
                    "an OFD lock on \(path) is taken to belong to somebody outside of our pid namespace")
                continue
            }
            guard context.policy.fileLocks else {
                throw Failure(
                    .denied,
                    "the \(lock.text) on \(path), which a mapping holds, is not dumped without being asked for",
                    advice: "Pass --file-locks if all users of the file are in the tree, or release the lock")
            }
            guard lock.kind != .lease else {
                throw Failure(
                    .unsupported, "the lease on \(path), which only a mapping holds, can't be dumped",
                    advice: "Release it before the dump, or keep its descriptor open")
            }
            var entry = Locks.entry(lock)
            // No task has this pid, so CRIU passes over the entry.
            (entry.pid, entry.fd, entry.fileID) = (0, -1, file.id)
            entries.append(entry)
        }
    }

    /// Whether our /proc shows all processes: whether we are in the first pid namespace (`PROC_PID_INIT_INO`).
    private static var seesEverybody: Bool {
        (try? FileStatus.read("/proc/self/ns/pid", in: currentDirectory, followsLink: true))?.inode == 0xefff_fffc
    }

    /// The locks that descriptors of other processes show.
    private static func held(outside tree: Set<TaskID>) -> Set<FileLock> {
        var found: Set<FileLock> = []
        for id in (try? listNumbers("/proc")) ?? [] where !tree.contains(TaskID(id)) && id != TaskID.current.rawValue {
            guard let folder = try? openFile("/proc/\(id)/fdinfo", [.directory]) else { continue }
            for number in (try? listNumbers("/proc/\(id)/fdinfo")) ?? [] {
                guard let facts = try? DescriptorInformation.read(in: folder.number, number) else { continue }
                for line in facts.lines where line.starts(with: "lock:".utf8) {
                    if let lock = FileLock(line.dropFirst("lock:".utf8.count)) { found.insert(lock) }
                }
            }
        }
        return found
    }
}

extension FileLock {
    fileprivate func isOn(_ file: Locks.MappedFile) -> Bool {
        file.inode == inode && file.device == UInt64(major) << 32 | UInt64(minor)
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
