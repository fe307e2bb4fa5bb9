public import Diagnostics
internal import ImageFormat
public import ImageMessages
public import Kinds
internal import Linux
internal import Procfs
public import Remote

/// All parts of a thread, in the order in which they are asked and restored. Within the stage `seal` the order counts:
/// limits and filters need rights that the credentials then take away.
let taskParts: [any TaskPart.Type] = [
    ThreadDirectories.self, Registrations.self, Signals.self, Timers.self, Scheduling.self, Limits.self,
    Attributes.self, Seccomp.self, Credentials.self, RegisterState.self, Rings.self,
]

/// Dumps what belongs to tasks and threads.
public enum TaskDump {
    /// What the parts do with the answers of a thread.
    public struct Answers {
        var all: [(Results, DumpContext) throws(Failure) -> Void] = []

        /// Hands all parts the answers.
        public func take(_ results: Results, _ context: DumpContext) throws(Failure) {
            for answer in all { try answer(results, context) }
        }
    }

    /// Makes a thread fit for system calls of ours.
    public static func prepare(_ thread: DumpedThread) throws(Failure) {
        try InterruptedCall.repeatSemaphoreCall(thread)
        try Registrations.abortSequence(thread)
    }

    /// Sets up what parts set up at first use.
    public static func rehearse() {
        _ = taskParts.count
        _ = try? ExtendedState.entry([UInt8](repeating: 0, count: 4096))
    }

    /// Adds what all parts ask of a thread. The returned closures take the answers.
    public static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Answers {
        var answers = Answers()
        for part in taskParts { answers.all.append(try ask(part, thread, &batch)) }
        return answers
    }

    private static func ask<Part: TaskPart>(
        _ part: Part.Type, _ thread: DumpedThread, _ batch: inout Batch
    ) throws(Failure) -> (Results, DumpContext) throws(Failure) -> Void {
        let question = try part.ask(thread, &batch)
        return { (results, context) throws(Failure) in try part.dump(question, results, thread, context) }
    }

    /// The core message of a zombie.
    public static func zombie(_ frozen: FrozenProcess) throws(Failure) -> CoreEntry {
        var core = CoreEntry()
        core.mtype = .x8664
        core.tc.taskState = 2
        core.tc.exitCode = UInt32(bitPattern: frozen.exitCode ?? 0)
        (core.tc.personality, core.tc.flags, core.tc.blkSigset) = (0, 0, 0)
        let exitSignal = try TaskStat.read(of: frozen.id).exitSignal
        if exitSignal != 17, (0...64).contains(exitSignal) { core.tc.brumate.exitSignal = UInt32(exitSignal) }
        core.tc.comm = imageBytes(try TaskStatus.read(of: frozen.id).nameBytes)
        return core
    }

    /// Writes what tasks share.
    public static func finish(_ context: DumpContext) throws(Failure) {
        try Seccomp.finish(context)
        try Clocks.dump(context)
        if context.policy.recordsCPU { try CPU.dump(to: context.images) }
    }
}
