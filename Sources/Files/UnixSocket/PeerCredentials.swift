internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// Who is at the other end of a connection, as the kernel noted when it was made (`SO_PEERCRED`, `SO_PEERGROUPS`).
enum PeerCredentials {
    /// What the kernel says of a socket, nil if it noted nobody.
    static func read(_ number: Int32) throws(Failure) -> SkCredEntry? {
        var who: (pid: UInt32, uid: UInt32, gid: UInt32) = (0, 0, 0)
        var length: UInt32 = 12
        try attempt("ask who the peer is") { () throws(SystemCallError) in
            try withAddress(of: &who) { (who) throws(SystemCallError) in
                try withAddress(of: &length) { (length) throws(SystemCallError) in
                    try systemCall(.getsockopt, Int(number), 1, 17, who, length)
                }
            }
        }
        guard who.uid != .max else { return nil }
        var entry = SkCredEntry()
        (entry.pid, entry.uid, entry.gid) = who
        // Who is root there, may have any groups.
        if who.uid != 0 { entry.groups = try groups(number) }
        return entry
    }

    private static func groups(_ number: Int32) throws(Failure) -> [UInt32] {
        var room = [UInt32](repeating: 0, count: 64)
        while true {
            var length = UInt32(4 * room.count)
            do throws(SystemCallError) {
                try room.withAddress { (address, _) throws(SystemCallError) in
                    try withAddress(of: &length) { (length) throws(SystemCallError) in
                        try systemCall(.getsockopt, Int(number), 1, 59, address, length)
                    }
                }
                return Array(room.prefix(Int(length) / 4))
            } catch {
                if error.errno == .ENODATA { return [] }
                guard error.errno == .ERANGE, length <= 1 << 20 else {
                    throw Failure(.denied, "can't ask for the peer's groups", cause: error)
                }
                room = [UInt32](repeating: 0, count: Int(length) / 4)
            }
        }
    }

    /// What the kernel would note of a task now.
    static func of(_ process: DumpedProcess, _ owners: TreeOwners) -> SkCredEntry {
        var entry = SkCredEntry()
        let (uids, gids) = (process.status.uids.map(owners.user), process.status.gids.map(owners.group))
        entry.pid = UInt32(bitPattern: process.number)
        entry.uid = uids.count > 1 ? uids[1] : 0
        entry.gid = gids.count > 1 ? gids[1] : 0
        if entry.uid != 0 { entry.groups = process.status.groups.map(owners.group) }
        return entry
    }
}

extension SkCredEntry {
    /// As images have it, which number tasks as the tree does.
    func numbered(_ context: DumpContext) -> SkCredEntry {
        var entry = self
        entry.pid = context.numbers.number(pid)
        (entry.uid, entry.gid) = (context.owners.user(uid), context.owners.group(gid))
        entry.groups = groups.map(context.owners.group)
        return entry
    }
}

/// Restore: tasks that make system calls of which the kernel notes who made them.
final class Witnesses {
    private let context: RestoreContext
    private var standIns: [UInt32: Puppet] = [:]
    private var pidfds: [TaskID: Int32] = [:]

    init(_ context: RestoreContext) { self.context = context }

    deinit { for number in pidfds.values { _ = try? systemCall(.close, Int(number)) } }

    /// A task with a pid: one of the tree, or one that lives only until `dismiss`. If the pid can't be had, a stand-in with
    /// another, which nobody has afterwards.
    func witness(_ pid: UInt32) throws(Failure) -> Puppet? {
        guard pid != 0, pid <= 1 << 22 else { return nil }
        if let standIn = standIns[pid] { return standIn }
        let id = TaskID(Int32(bitPattern: pid))
        if let process = context.processes.first(where: { $0.id == id }) { return process.puppet }
        guard let root = context.processes.first?.puppet else { return nil }
        let made = try root.clone([CloneRequest(id: root.task == root.id && isTaken(id) ? nil : id)])[0]
        standIns[pid] = made
        if made.id != id {
            context.log.warning("the peer \(pid) of a connection is shown as \(made.id), as its pid is taken")
        }
        return made
    }

    private func isTaken(_ id: TaskID) -> Bool {
        (try? FileStatus.read("/proc/\(id.rawValue)", in: currentDirectory)) != nil
    }

    /// Ends the tasks that were made only for this.
    func dismiss() throws(Failure) {
        for puppet in standIns.values {
            try attempt("end a stand-in") { () throws(SystemCallError) in
                try systemCall(.kill, Int(puppet.task.rawValue), 9)
            }
            while puppet.tracee.isAttached { _ = try puppet.tracee.wait() }
        }
        standIns = [:]
    }

    /// Adds the calls that make a task look like someone: effective ids and groups. Files are opened as root.
    static func assume(_ who: SkCredEntry, _ batch: inout Batch) {
        guard who.uid != 0 || who.gid != 0 else { return }
        let groups = batch.place(who.groups.flatMap { [UInt8](bytesOf: $0) } + [0])
        batch.add(.setgroups, .value(who.groups.count), .buffer(groups), doing: "take on the peer's groups")
        batch.add(
            .setresgid, .value(-1), .bits(UInt64(who.gid)), .value(-1), doing: "take on the peer's group")
        batch.add(.setresuid, .value(-1), .bits(UInt64(who.uid)), .value(-1), doing: "take on the peer's user")
        batch.add(.setfsuid, .value(0), doing: "open files as root", mayFail: true)
    }

    /// Takes that back. The groups come with the task's own credentials.
    static func resume(_ who: SkCredEntry, _ batch: inout Batch) {
        guard who.uid != 0 || who.gid != 0 else { return }
        batch.add(.setresuid, .value(-1), .value(0), .value(-1), doing: "become root again")
        batch.add(.setresgid, .value(-1), .value(0), .value(-1), doing: "become root again")
    }

    /// A witness whose descriptors are copied.
    struct Source {
        fileprivate let process: TaskID, pidfd: Int32

        /// Copies one of them.
        func fetch(_ number: Int) throws(Failure) -> Descriptor {
            try attempt("copy a socket of task \(process)") { () throws(SystemCallError) in
                try fetchDescriptor(number, through: pidfd)
            }
        }
    }

    /// Opens a witness for copies of its descriptors.
    func source(_ puppet: Puppet) throws(Failure) -> Source {
        if let known = pidfds[puppet.process] { return Source(process: puppet.process, pidfd: known) }
        let pidfd = try attempt("open a pidfd of task \(puppet.process)") { () throws(SystemCallError) in
            try puppet.task.openHandle().release()
        }
        pidfds[puppet.process] = pidfd
        return Source(process: puppet.process, pidfd: pidfd)
    }
}
