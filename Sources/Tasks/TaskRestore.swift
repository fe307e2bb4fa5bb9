public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
internal import Linux
internal import Remote

/// Restores what belongs to tasks and threads.
public enum TaskRestore {
    /// Reads what tasks share, before anything is created.
    public static func load(_ context: RestoreContext) throws(Failure) {
        try Seccomp.load(context)
        try CPU.check(context.images, context.policy.cpuCapabilities)
    }

    /// Does everything of a stage for a thread: its own calls in one batch, then what we do from outside.
    public static func perform(_ stage: Stage, _ thread: RestoredThread, _ context: RestoreContext) throws(Failure) {
        var batch = Batch()
        for part in taskParts { try part.recreate(thread, stage, &batch, context) }
        try thread.puppet.run(batch)
        for part in taskParts { try part.apply(thread, stage, context) }
    }

    /// Lets a process end with its code, so that it stays as a zombie. Its parent must not ignore SIGCHLD.
    public static func bury(_ process: RestoredProcess) throws(Failure) {
        guard let code = process.plan.cores.first?.tc.exitCode else { return }
        var batch = Batch()
        let name = batch.place(string: Array(process.plan.cores.first?.tc.comm ?? imageBytes([])).prefix(15))
        batch.add(.prctl, .value(15), .buffer(name), doing: "set the name")
        try process.puppet.run(batch)
        try process.puppet.end(as: code)
    }

    /// Lets a process's children stay as zombies when they end.
    public static func expectZombies(_ process: RestoredProcess) throws(Failure) {
        var batch = Batch()
        let action = batch.place(value: (UInt64(0), UInt64(0), UInt64(0), UInt64(0)))
        batch.add(.rt_sigaction, .value(17), .buffer(action), .value(0), .value(8), doing: "expect children to end")
        try process.puppet.run(batch)
    }

    /// Takes the news of children's ends and stops out of a process's queue.
    public static func forgetChildren(_ process: RestoredProcess) throws(Failure) {
        var batch = Batch()
        let set = batch.place(value: UInt64(1) << 16)
        let now = batch.place(value: (UInt64(0), UInt64(0)))
        batch.add(
            .rt_sigtimedwait, .buffer(set), .value(0), .buffer(now), .value(8), doing: "forget what children did",
            mayFail: true)
        try process.puppet.run(batch)
    }

    /// Lets a thread sleep on for the time that it had left.
    public static func rearm(_ thread: RestoredThread) throws(Failure) { try InterruptedCall.rearm(thread) }

    /// Sets registers and mask: the last thing before it is let go.
    public static func setFinalState(_ thread: RestoredThread) throws(Failure) {
        try during(.thread(thread.id)) { () throws(Failure) in
            try RegisterState.set(thread)
            let (tracee, mask) = (thread.puppet.tracee, Signals.mask(thread))
            try attempt("set the signal mask") { () throws(SystemCallError) in try tracee.setSignalMask(mask) }
        }
    }

    /// Whether signals wait in a process's queues, which may be delivered before one that is to stop it.
    public static func hasPendingSignals(_ process: RestoredProcess) -> Bool {
        guard let core = process.plan.cores.first?.tc else { return false }
        return ([core.signalsS] + process.plan.cores.map(\.threadCore.signalsP)).contains { !$0.signals.isEmpty }
    }

    /// Stops a process whose threads have their final state, while all other signals wait. It stays stopped when it is
    /// let go.
    public static func stop(_ process: RestoredProcess, by signal: Int32) {
        for thread in process.threads { _ = try? thread.puppet.tracee.setSignalMask(~(1 << UInt64(signal - 1))) }
        enterStop(process, by: signal)
        for thread in process.threads { _ = try? thread.puppet.tracee.setSignalMask(Signals.mask(thread)) }
    }

    private static func enterStop(_ process: RestoredProcess, by signal: Int32) {
        // The leader alone gets the signal and takes it; only then the others move, into the stop.
        _ = try? systemCall(.tgkill, Int(process.task.rawValue), Int(process.task.rawValue), Int(signal))
        for thread in process.threads {
            let tracee = thread.puppet.tracee
            _ = try? tracee.resume()
            while tracee.isAttached, let stop = try? tracee.wait() {
                guard case .signal(let number) = stop else { break }
                _ = try? tracee.resume(signal: number)
            }
        }
    }

    /// Whether a process is stopped and its parent knows.
    public static func isStoppedAndTold(_ process: RestoredProcess) -> Bool {
        guard let core = process.plan.cores.first?.tc, process.plan.parent != nil, !process.plan.isZombie else {
            return false
        }
        return core.taskState == 3 && core.brumate.stopTold
    }

    /// Stops a process of which its parent was told that it is stopped, and lets the parent hear of it now, so that it
    /// is not told once more. The kernel still lets the tracer run a process in this state, and puts it back when it is
    /// let go.
    public static func stop(_ process: RestoredProcess, toldTo parent: RestoredProcess) throws(Failure) {
        // Another stop signal would do nothing in an orphaned process group.
        enterStop(process, by: 19)
        var batch = Batch()
        // P_PID, WSTOPPED | WNOHANG
        batch.add(
            .waitid, .value(1), .value(Int(process.id.rawValue)), .value(0), .value(3), .value(0),
            doing: "hear that a child is stopped")
        try parent.puppet.run(batch)
        try forgetChildren(parent)
    }

    /// The signal that a stopped process was stopped with, nil if it runs.
    public static func stopSignal(of process: RestoredProcess) -> Int32? {
        guard let core = process.plan.cores.first?.tc else { return nil }
        let queues = [core.signalsS] + process.plan.cores.map(\.threadCore.signalsP)
        if core.taskState != 3 { return queues.contains { $0.signals.contains(where: Signals.isStop) } ? 19 : nil }
        let signal = Int32(truncatingIfNeeded: core.stopSigno)
        return [19, 20, 21, 22].contains(signal) ? signal : 19
    }
}
