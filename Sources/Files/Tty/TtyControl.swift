internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// Controlling terminals.
///
/// The kernel gives one to a session leader only; everybody else has it from the parent at birth. So the leader takes it
/// as soon as its session exists and before its children do, and whoever had none then gives it up.
extension TtyRestore {
    /// The device number of a task's terminal: 0 is none, nil unknown (CRIU's images don't tell).
    private func terminal(of process: RestoredProcess) -> UInt32? {
        guard let more = process.plan.cores.first?.tc.brumate, more.hasTerminal else { return nil }
        return more.terminal
    }

    private func source(for leader: RestoredProcess) -> Source? {
        if let device = terminal(of: leader) { return device == 0 ? nil : sources[device] }
        let id = UInt32(bitPattern: leader.id.rawValue)
        return sources.sorted { $0.key < $1.key }.first { $0.value.info.sid == id }?.value
    }

    /// The leader of a fresh session takes its terminal.
    func giveControl(to leader: RestoredProcess, _ context: RestoreContext) throws(Failure) {
        guard let source = source(for: leader) else {
            if let device = terminal(of: leader), device != 0 {
                context.log.warning(
                    "task \(leader.id) loses its controlling terminal: no descriptor of it is in the tree")
            }
            return
        }
        let isTaken = try act(on: source, by: leader, context) { (file, batch) in
            batch.add(
                .ioctl, file, .value(Terminal.Request.setControlling.rawValue), .value(source.isPassed ? 1 : 0),
                doing: "take the controlling terminal", mayFail: source.isCallers)
        }
        guard isTaken else {
            context.log.warning("the terminal of this restore belongs to another session: task \(leader.id) has none")
            return
        }
        controlled[leader.id] = source
    }

    /// Lets a task make a call on a terminal. Returns whether that succeeded.
    @discardableResult
    private func act(
        on source: Source, by process: RestoredProcess, _ context: RestoreContext,
        _ add: (Batch.Argument, inout Batch) -> Batch.Slot
    ) throws(Failure) -> Bool {
        let number = try context.files.number(source.file)
        let arrived = try context.deliver([number], to: process.puppet)
        var batch = Batch()
        let slot = add(.descriptor(arrived[0]), &batch)
        batch.add(.close, .descriptor(arrived[0]), doing: "close a terminal")
        return try process.puppet.run(batch).success(slot) != nil
    }

    /// All tasks exist: foreground groups, those without a terminal, and what is opened through `/dev/tty`.
    func finishControl(_ context: RestoreContext) throws(Failure) {
        for process in context.processes {
            guard let source = controlled[process.id] else { continue }
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                try setForeground(of: source, by: process, context)
            }
        }
        try joinCallers(context)
        for entry in current {
            try during(.file("/dev/tty")) { () throws(Failure) in try openCurrent(entry, context) }
        }
        for process in context.processes where !process.plan.isZombie && terminal(of: process) == 0 {
            guard controlled[process.plan.session] != nil || context.processes.first?.plan.session != process.id,
                try hasTerminal(process)
            else { continue }
            try during(.restoring(process.id, process.name)) { () throws(Failure) in try leave(process) }
        }
    }

    private func hasTerminal(_ process: RestoredProcess) throws(Failure) -> Bool {
        try TaskStat.read(of: process.task).terminal != 0
    }

    private func setGroup(_ group: UInt32, of source: Source, by process: RestoredProcess, _ context: RestoreContext)
        throws(Failure) -> Bool
    {
        try act(on: source, by: process, context) { (file, batch) in
            let group = batch.place(value: group)
            return batch.add(
                .ioctl, file, .value(Terminal.Request.setGroup.rawValue), .buffer(group),
                doing: "set the foreground group", mayFail: true)
        }
    }

    private func setForeground(of source: Source, by leader: RestoredProcess, _ context: RestoreContext)
        throws(Failure)
    {
        let group = source.info.pgrp
        guard group != 0, group <= UInt32(Int32.max) else { return }
        if try setGroup(group, of: source, by: leader, context) { return }
        // A group that has no member any more: for a moment there is a task of that number.
        let id = TaskID(Int32(bitPattern: group))
        if !context.processes.contains(where: { $0.plan.threads.contains(id) }), let made = try? standIn(id, leader) {
            let isSet = try setGroup(group, of: source, by: leader, context)
            try attempt("end a stand-in") { () throws(SystemCallError) in
                try systemCall(.kill, Int(made.task.rawValue), 9)
            }
            while made.tracee.isAttached { _ = try made.tracee.wait() }
            if isSet { return }
        }
        context.log.warning("the foreground group \(group) of the terminal of session \(leader.id) is gone")
    }

    private func standIn(_ id: TaskID, _ leader: RestoredProcess) throws(Failure) -> Puppet? {
        guard leader.task != leader.id || (try? TaskStat.read(of: id)) == nil else { return nil }
        return try leader.puppet.clone([CloneRequest(id: id)]).first
    }

    /// A tree in the caller's session comes to the foreground of the caller's terminal.
    private func joinCallers(_ context: RestoreContext) throws(Failure) {
        guard let root = context.processes.first, root.plan.session != root.id,
            let source = sources.values.first(where: \.isCallers)
        else { return }
        let group =
            root.plan.group == root.id
            ? root.id.rawValue : Int32(truncatingIfNeeded: (try? systemCall(.getpgid, 0)) ?? 0)
        if try !setGroup(UInt32(bitPattern: group), of: source, by: root, context) {
            context.log.debug("the terminal of this restore is not the controlling one of its session")
        }
    }

    /// A task that has the terminal opens `/dev/tty` for all.
    private func openCurrent(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let info = try info(entry)
        let opener = context.processes.first { process in
            if process.plan.isZombie { return false }
            if let source = controlled[process.id] {
                return info.hasTerminal
                    ? terminal(of: process) == info.terminal
                    : source.info.sid == info.sid || UInt32(bitPattern: process.id.rawValue) == info.sid
            }
            guard process.plan.session != process.id, controlled[process.plan.session] == nil else { return false }
            return info.hasTerminal
                ? terminal(of: process) == info.terminal
                : UInt32(bitPattern: process.plan.session.rawValue) == info.sid
        }
        guard let opener, try hasTerminal(opener) else {
            throw Failure(
                .unsupported, "the terminal behind it is the controlling one of no task",
                advice: "Run the restore in a terminal, with --shell-job")
        }
        let regular = context.entry(entry.tty.hasRegfID ? entry.tty.regfID : entry.id)?.reg
        let mode = Int(entry.tty.flags & 3) | Int(OpenFlags([.noControllingTerminal, .nonBlocking]).rawValue)
        var batch = Batch()
        let path = batch.place(string: regular.map { Array($0.name) } ?? Array("/dev/tty".utf8))
        let slot = batch.add(
            .openat, .value(Int(currentDirectory)), .buffer(path), .value(mode), doing: "open /dev/tty")
        let number = try opener.puppet.run(batch)[slot]
        let made = try attempt("take over what task \(opener.id) opened") { () throws(SystemCallError) in
            let made = try opener.puppet.fetch(number)
            guard TerminalDevice(try FileStatus.read(in: made.number).representedDevice) == .current else {
                throw SystemCallError(.openat, .ENOTTY)
            }
            try setStatusFlags(made.number, entry.tty.flags)
            return made
        }
        var closing = Batch()
        closing.add(.close, .value(number), doing: "close /dev/tty")
        try opener.puppet.run(closing)
        try context.files.add(entry.id, made)
    }

    /// A task gives up the terminal that it was born with.
    private func leave(_ process: RestoredProcess) throws(Failure) {
        var batch = Batch()
        let path = batch.place(string: "/dev/tty".utf8)
        let mode = OpenFlags([.readWrite, .noControllingTerminal, .nonBlocking])
        let slot = batch.add(
            .openat, .value(Int(currentDirectory)), .buffer(path), .value(Int(mode.rawValue)), doing: "open /dev/tty")
        let number = try process.puppet.run(batch)[slot]
        var leaving = Batch()
        leaving.add(
            .ioctl, .value(number), .value(Terminal.Request.leaveControlling.rawValue),
            doing: "give up the controlling terminal")
        leaving.add(.close, .value(number), doing: "close /dev/tty")
        try process.puppet.run(leaving)
    }
}
