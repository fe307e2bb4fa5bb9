internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// Restore: locks and leases.
///
/// Each task takes its own, so that the kernel notes the right owner. That comes after everything that opens or closes
/// files: closing any descriptor of a file drops a process's POSIX locks on it, and opening one breaks leases.
final class RestoredLocks {
    private var locks: [Int32: [Lock]] = [:]
    /// Locks that only mappings hold, with the file in files.img.
    private var mapped: [(file: UInt32, lock: Lock)] = []
    /// The tree's source, if it stands still on this machine until all pages were fetched from it. It has the locks until then.
    private var source: HeldTree?
    /// Where the source has files with leases, by their number in files.img.
    private var leased: [UInt32: (task: TaskID, number: Int32)] = [:]

    /// Whether the locks are to be taken when the source has ended.
    var isLate: Bool { source != nil }

    static func of(_ context: RestoreContext) -> RestoredLocks { context.state(RestoredLocks.self) { RestoredLocks() } }

    /// Reads and checks filelocks.img.
    func load(_ context: RestoreContext) throws(Failure) {
        guard context.images.has(.fileLocks) else { return }
        try during(.image(ImageName.fileLocks.fileName)) { () throws(Failure) in
            for entry in try context.images.loadAll(.fileLocks, as: FileLockEntry.self) {
                let lock = try Lock(entry)
                if entry.hasFileID {
                    mapped.append((entry.fileID, lock))
                } else {
                    locks[entry.pid, default: []].append(lock)
                }
            }
            try findSource(context)
        }
    }

    private func findSource(_ context: RestoreContext) throws(Failure) {
        let inventory = try context.images.load(.inventory, as: InventoryEntry.self)
        guard context.policy.isLazy, inventory.hasHeldBy,
            let source = HeldTree(heldBy: String(decoding: inventory.heldBy, as: UTF8.self))
        else { return }
        self.source = source
        for (pid, locks) in locks {
            let leases = locks.filter { $0.flag == .lease }
            guard !leases.isEmpty,
                let task = source.tasks.first(where: { (try? TaskStatus.read(of: $0))?.namespaceIDs.last == pid })
            else { continue }
            let ids = try context.images.load(.ids(pid), as: TaskKobjIdsEntry.self)
            let table = try context.images.loadAll(.descriptors(ids.filesID), as: FdinfoEntry.self)
            for lease in leases {
                guard let file = table.first(where: { $0.fd == UInt32(bitPattern: lease.number) }) else { continue }
                leased[file.id] = (task, lease.number)
            }
        }
    }

    /// Whether a file is the source's own description, as to open it anew would break its lease.
    func isTakenOver(_ id: UInt32) -> Bool { leased[id] != nil }

    /// That description.
    func takeOver(_ id: UInt32) throws(Failure) -> Descriptor? {
        guard let (task, number) = leased[id] else { return nil }
        return try attempt("take a file with a lease over from its source") { () throws(SystemCallError) in
            let pidfd = try task.openHandle()
            return try fetchDescriptor(Int(number), through: pidfd.number)
        }
    }

    /// Takes all locks, unless the source still has them.
    ///
    /// - Parameter owner: who gets signals for a file of files.img.
    func restore(_ context: RestoreContext, owner: (UInt32) -> FownEntry?) throws(Failure) {
        guard isLate else { return try take(context, owner) }
        context.log.notice("the tree's source has its locks still: all pages are fetched before the tasks run")
    }

    /// Refuses to wait for the source if somebody else would have its locks then.
    func checkWaiters(_ context: RestoreContext) throws(Failure) {
        var inodes: Set<UInt64> = []
        for process in context.processes {
            for lock in locks[process.id.rawValue] ?? [] where lock.flag != .lease {
                guard let file = process.plan.descriptors.first(where: { $0.fd == UInt32(bitPattern: lock.number) })
                else { continue }
                let number = try context.files.number(file.id)
                inodes.insert(
                    try attempt("look at a locked file") { () throws(SystemCallError) in
                        try FileStatus.read(in: number).inode
                    })
            }
        }
        let text = try attempt("read /proc/locks") { () throws(SystemCallError) in try readWholeFile("/proc/locks") }
        for line in text.split(separator: 0x0a) {
            let words = line.split(separator: 0x20)
            guard words.count > 1, words[1].elementsEqual("->".utf8),
                let place = words.first(where: { $0.split(separator: 0x3a).count == 3 }),
                let inode = UInt64(String(decoding: place.split(separator: 0x3a)[2], as: UTF8.self)),
                inodes.contains(inode)
            else { continue }
            throw Failure(
                .conflict, "another process waits for a lock that the tree has at its source, and would get it first",
                advice: "End that process, or migrate without --lazy-pages")
        }
    }

    /// How long nobody else may have a lock of a tree that exists only here. It stands still meanwhile.
    private static let patience = Duration.seconds(600)

    /// Takes all locks once the source has ended, which takes a moment.
    func restoreLate(_ context: RestoreContext, owner: (UInt32) -> FownEntry?) throws(Failure) {
        let started = ContinuousClock.now
        var isTold = false
        while true {
            do throws(Failure) { return try take(context, owner) } catch {
                let waited = ContinuousClock.now - started
                guard error.code == .conflict, waited < RestoredLocks.patience else { throw error }
                if waited > .seconds(2), !isTold {
                    context.log.warning("the tasks wait for their locks, as their source is gone: \(error)")
                    isTold = true
                }
                pause(nanoseconds: 2_000_000)
            }
        }
    }

    /// Takes all locks.
    private func take(_ context: RestoreContext, _ owner: (UInt32) -> FownEntry?) throws(Failure) {
        var unknown = Set(locks.keys)
        for process in context.processes where !process.plan.isZombie {
            unknown.remove(process.id.rawValue)
            guard let mine = locks[process.id.rawValue] else { continue }
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                let files = Dictionary(
                    process.plan.descriptors.map { (Int32(clamping: $0.fd), $0.id) }, uniquingKeysWith: { $1 })
                var rest = mine[...]
                while !rest.isEmpty {
                    try take(rest.prefix(RestoredLocks.most), process, files, context)
                    rest = rest.dropFirst(RestoredLocks.most)
                }
                for lock in mine where lock.flag == .lease {
                    try during(.descriptor(lock.number)) { () throws(Failure) in
                        guard let file = files[lock.number] else { return }
                        try finish(lease: lock, on: try context.files.number(file), owner: owner(file), context)
                    }
                }
            }
        }
        if let pid = unknown.first {
            throw Failure(.corruptImage, "filelocks.img has locks of task \(pid), which is not in the tree")
        }
        for (file, lock) in mapped {
            let number = Int(try context.files.number(file))
            var range = lock.range
            do throws(SystemCallError) {
                switch lock.flag {
                case .flock: try systemCall(.flock, number, lock.operation)
                default:
                    try withAddress(of: &range) { (range) throws(SystemCallError) in
                        try systemCall(.fcntl, number, lock.operation, range)
                    }
                }
            } catch {
                throw lock.failure(error)
            }
        }
    }

    /// Locks that are taken in one batch.
    private static let most = 4096

    /// Lets a process take its locks.
    private func take(
        _ locks: ArraySlice<Lock>, _ process: RestoredProcess, _ files: [Int32: UInt32], _ context: RestoreContext
    ) throws(Failure) {
        var batch = Batch()
        var slots: [Batch.Slot] = []
        for lock in locks {
            guard let file = files[lock.number] else {
                throw Failure(
                    .corruptImage, "filelocks.img has a lock on its descriptor \(lock.number), which is not open")
            }
            let number = Batch.Argument.descriptor(RemoteDescriptor(lock.number))
            switch lock.flag {
            case .flock:
                slots.append(batch.add(.flock, number, .value(lock.operation), doing: "take a lock", mayFail: true))
            case .posix, .description:
                let range = batch.place(value: lock.range)
                slots.append(
                    batch.add(
                        .fcntl, number, .value(lock.operation), .buffer(range), doing: "take a lock", mayFail: true))
            case .lease:
                let ours = try context.files.number(file)
                let type = try lock.formerType(ours)
                // Only the file's owner takes a lease without CAP_LEASE, which containers lack.
                let uid = try attempt("look at a file with a lease") { () throws(SystemCallError) in
                    context.owners.user(try FileStatus.read(in: ours).uid)
                }
                if uid != 0 { batch.add(.setfsuid, .value(Int(uid)), doing: "become the file's owner") }
                slots.append(
                    batch.add(
                        .fcntl, number, .value(lock.operation), .value(Int(type.rawValue)), doing: "take a lease",
                        mayFail: true))
                if uid != 0 { batch.add(.setfsuid, .value(0), doing: "become root again") }
            }
        }
        let results = try process.puppet.run(batch)
        for (lock, slot) in zip(locks, slots) where results.success(slot) == nil {
            try during(.descriptor(lock.number)) { () throws(Failure) in
                let call: SystemCall = lock.flag == .flock ? .flock : .fcntl
                let error = SystemCallError(call, Errno(rawValue: Int32(truncatingIfNeeded: 0 &- results[slot])))
                throw lock.failure(error)
            }
        }
    }

    /// Begins to break a lease if it was being broken, and then says who is told of breaks: nobody is told of ours.
    private func finish(lease: Lock, on number: Int32, owner: FownEntry?, _ context: RestoreContext)
        throws(Failure)
    {
        // Taking it made the task the owner.
        try attempt("clear the owner of a lease") { () throws(SystemCallError) in
            try systemCall(.fcntl, Int(number), 8, 0)  // F_SETOWN
        }
        if lease.isBreaking {
            let flags: OpenFlags = [lease.type == .none ? .writeOnly : .readOnly, .nonBlocking]
            let outcome = Result { () throws(SystemCallError) in try openFile("/proc/self/fd/\(number)", flags).close()
            }
            guard case .failure(let error) = outcome, error.errno == .EAGAIN else {
                throw Failure(.conflict, "its lease can't be broken as it was")
            }
        }
        if let owner { try FileOwner.restore(owner, on: number, context) }
    }
}

/// A lock of the image.
private struct Lock {
    let flag: LockFlag, type: LockType, isBreaking: Bool
    let number: Int32
    let start: Int64, length: Int64
    private let before: LockType?

    init(_ entry: FileLockEntry) throws(Failure) {
        guard let flag = LockFlag(rawValue: entry.flag),
            let type = LockType(rawValue: entry.type & ~LockType.breaking),
            entry.start >= 0, entry.len >= 0, !entry.start.addingReportingOverflow(entry.len).overflow
        else { throw Failure(.corruptImage, "a lock of task \(entry.pid) makes no sense") }
        (self.flag, self.type, number) = (flag, type, entry.fd)
        (start, length) = (entry.start, entry.len)
        isBreaking = flag == .lease && entry.type & LockType.breaking != 0
        guard isBreaking ? type != .write : type != .none else {
            throw Failure(.corruptImage, "a lock of task \(entry.pid) makes no sense")
        }
        before = entry.hasLease ? LockType(rawValue: entry.lease) : nil
    }

    /// What the call that takes it is told: an operation of flock(2), a command of fcntl(2).
    var operation: Int {
        switch flag {
        case .flock: type == .write ? 6 : 5  // LOCK_EX, LOCK_SH | LOCK_NB
        case .posix: 6  // F_SETLK
        case .description: 37  // F_OFD_SETLK
        case .lease: 1024  // F_SETLEASE
        }
    }

    /// `struct flock`.
    var range: (type: Int16, whence: Int16, start: Int64, length: Int64, pid: Int64) {
        (Int16(type.rawValue), 0, start, length, 0)
    }

    /// What a lease was before somebody began to break it. If the image does not say, what fits how the file is open.
    func formerType(_ number: Int32) throws(Failure) -> LockType {
        guard isBreaking else { return type }
        if let before, before != .none { return before }
        let flags = try attempt("look at a file with a lease") { () throws(SystemCallError) in
            try systemCall(.fcntl, Int(number), 3)
        }
        return type == .none && flags & 3 == 0 ? .read : .write
    }

    /// Why it can't be taken.
    func failure(_ error: SystemCallError) -> Failure {
        let name = "\(flag == .description ? "OFD lock" : "\(flag)")"
        if error.errno == .EAGAIN || error.errno == .EACCES && flag != .lease {
            return Failure(
                .conflict, "another process is in the way of its \(name)",
                advice: flag == .lease
                    ? "End whoever has opened the file" : "End whoever has locked the file since the dump", cause: error
            )
        }
        return Failure(.denied, "can't take its \(name)", cause: error)
    }
}
