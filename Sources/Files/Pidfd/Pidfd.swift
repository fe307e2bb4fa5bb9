internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// A reference to a task (`pidfd_open(2)`), living or gone.
enum Pidfd: FileKind {
    /// PIDFD_THREAD, which is O_EXCL; PIDFD_NONBLOCK is O_NONBLOCK.
    private static let thread: UInt32 = 0o200, nonBlocking: UInt32 = 0o4000

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:[pidfd]" }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        guard let pid = file.facts.information.id("Pid") else {
            throw Failure(.kernelTooOld, "the kernel does not tell the task")
        }
        var entry = PidfdEntry()
        entry.id = file.id
        entry.ino = UInt32(truncatingIfNeeded: file.facts.status.inode)
        entry.flags = file.facts.statusFlags & ~3
        entry.fown = try FileOwner.dump(file, context)
        if pid == -1 {
            entry.nspid = -1
            if let code = exitCode(file.handle.number) { entry.exitCode = code }
        } else {
            guard pid > 0, isInTree(TaskID(pid), context) else {
                throw Failure(
                    .unsupported, "it refers to task \(pid), which is not in the tree",
                    advice: "Close it before the dump, or dump a tree that has that task")
            }
            entry.nspid = file.facts.information.id("NSpid") ?? context.numbers[TaskID(pid)]
        }
        var whole = FileEntry(.pidfd, file.id)
        whole.pidfd = entry
        return whole
    }

    private static func isInTree(_ id: TaskID, _ context: DumpContext) -> Bool {
        for process in context.processes where process.threads.contains(where: { $0.tracee.id == id }) { return true }
        // A zombie has only its parent.
        guard let stat = try? TaskStat.read(of: id) else { return false }
        return context.processes.contains { $0.id == stat.parent }
    }

    /// How a task that is gone ended, if the kernel remembers (Linux 6.15).
    private static func exitCode(_ pidfd: Int32) -> UInt32? {
        let asksExit: UInt64 = 8  // PIDFD_INFO_EXIT
        var words = [UInt32](repeating: 0, count: 16)  // struct pidfd_info: the mask first, the exit code last
        words[0] = UInt32(asksExit)
        _ = try? words.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.ioctl, Int(pidfd), 0xc040_ff0b, address)  // PIDFD_GET_INFO
        }
        return words[0] & UInt32(asksExit) != 0 && words[15] != 0 ? words[15] : nil
    }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.pidfd.rawValue) && entry.hasPidfd }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.pidfd.fown }

    static func comesAfterTasks(_ entry: FileEntry) -> Bool { true }

    /// Those of one task that is gone are made together.
    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 {
        entry.pidfd.nspid == -1 ? 1 << 32 | UInt64(entry.pidfd.ino) : UInt64(entry.id)
    }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        guard let first = members.first else { return }
        guard first.pidfd.nspid == -1 else { return try open(first, TaskID(first.pidfd.nspid), context) }
        guard let root = context.processes.first?.puppet else { throw Failure(.bug, "a pidfd before its tree") }
        // CLONE_VM: it shall not copy the root's memory. Nobody reaps it: as long as the tree grows its SIGCHLD is
        // ignored.
        for standIn in try root.clone([CloneRequest(id: nil, flags: 0x100)]) {
            let outcome = Result { () throws(Failure) in
                for member in members { try open(member, standIn.task, context, isStandIn: true) }
                try preventCore(of: standIn.task)
                try standIn.end(as: first.pidfd.exitCode)
            }
            if standIn.tracee.isAttached { _ = try? systemCall(.kill, Int(standIn.task.rawValue), 9) }
            try outcome.get()
        }
    }

    /// A limit of one byte is the only one that core dumps through a program respect, too.
    private static func preventCore(of task: TaskID) throws(Failure) {
        try attempt("forbid a core dump of the stand-in of a task that is gone") { () throws(SystemCallError) in
            var limit: (UInt64, UInt64) = (1, 1)
            try withAddress(of: &limit) { (limit) throws(SystemCallError) in
                try systemCall(.prlimit64, Int(task.rawValue), 4, limit, 0)  // RLIMIT_CORE
            }
        }
    }

    private static func open(
        _ entry: FileEntry, _ task: TaskID, _ context: RestoreContext, isStandIn: Bool = false
    ) throws(Failure) {
        let flags = entry.pidfd.flags
        let isThread = flags & thread != 0
        let isKnown = context.processes.contains {
            isThread ? $0.plan.threads.contains(task) : $0.id == task
        }
        guard isStandIn || isKnown else {
            throw Failure(.corruptImage, "a pidfd refers to task \(task), which is not in the tree")
        }
        let made = try attempt("open a pidfd of task \(task)") { () throws(SystemCallError) in
            let ours = isStandIn ? task : context.numbers.task(task.rawValue) ?? task
            let raw = try systemCall(.pidfd_open, Int(ours.rawValue), Int(flags & (thread | nonBlocking)))
            let made = Descriptor(owning: Int32(raw))
            try setStatusFlags(made.number, flags)
            return made
        }
        try context.files.add(entry.id, made)
    }
}
