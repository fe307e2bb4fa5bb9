internal import CLinux
internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// When and where a thread runs: policy, priority, affinity, I/O priority, timer slack, memory policy, autogroup.
enum Scheduling: TaskPart {
    struct Question {
        let slack: Batch.Slot
        let mode: Batch.Buffer
        let nodes: Batch.Buffer
        let policy: Batch.Slot
    }

    /// Bits of a node mask; the kernel wants room for all nodes that it could have.
    private static let mostNodes = 1024

    static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
        let slack = batch.add(.prctl, .value(30), doing: "read the timer slack")
        let mode = batch.reserve(4)
        let nodes = batch.reserve(mostNodes / 8)
        let policy = batch.add(
            .get_mempolicy, .buffer(mode), .buffer(nodes), .value(mostNodes), .value(0), .value(0),
            doing: "read the memory policy",
            mayFail: true)
        return Question(slack: slack, mode: mode, nodes: nodes, policy: policy)
    }

    static func dump(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext
    ) throws(Failure) {
        let id = Int(thread.tracee.id.rawValue)
        let attributes = try read(thread.tracee.id)
        thread.core.threadCore.schedPolicy = attributes.policy
        thread.core.threadCore.schedNice = attributes.nice
        if attributes.priority != 0 { thread.core.threadCore.schedPrio = attributes.priority }
        var more = thread.core.threadCore.brumate
        if attributes.policy == 6 {
            (more.deadlineRuntime, more.deadlineDeadline, more.deadlinePeriod) =
                (attributes.runtime, attributes.deadline, attributes.period)
        } else if attributes.runtime != 0, attributes.runtime != usualSlice {
            more.deadlineRuntime = attributes.runtime
        }
        more.schedFlags = attributes.flags
        (more.utilMin, more.utilMax) = (attributes.util_min, attributes.util_max)
        more.affinity = imageBytes(try affinity(of: thread.tracee.id))
        if let priority = try? systemCall(.ioprio_get, 1, id) { more.ioPriority = UInt32(truncatingIfNeeded: priority) }
        if let slack = results.success(question.slack), slack > 0 { more.timerSlack = UInt64(slack) }
        if results.success(question.policy) != nil {
            let mode = results.value(UInt32.self, question.mode)
            if mode != 0 {
                more.mempolicyMode = mode
                more.mempolicyNodes = imageBytes(results.bytes(question.nodes))
            }
        }
        thread.core.threadCore.brumate = more
        guard thread.isLeader, let text = try? procText(of: thread.process.id, "autogroup") else { return }
        let words = String(decoding: text, as: UTF8.self).split(whereSeparator: { $0 == " " || $0 == "\n" })
        if let nice = words.last.flatMap({ Int32($0) }) { thread.core.tc.brumate.autogroupNice = nice }
    }

    /// The slice of a task that asked for none, which we are.
    private static let usualSlice: UInt64? = (try? read(.current))?.runtime

    private static func read(_ id: TaskID) throws(Failure) -> clinux_sched_attr {
        var attributes = clinux_sched_attr()
        try attempt("read the scheduling attributes of thread \(id)") { () throws(SystemCallError) in
            try withAddress(of: &attributes) { (address) throws(SystemCallError) in
                try systemCall(.sched_getattr, Int(id.rawValue), address, MemoryLayout<clinux_sched_attr>.size, 0)
            }
        }
        return attributes
    }

    private static func affinity(of id: TaskID) throws(Failure) -> [UInt8] {
        var mask = [UInt8](repeating: 0, count: 1024)
        let got = try attempt("read the CPU affinity of thread \(id)") { () throws(SystemCallError) in
            try mask.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.sched_getaffinity, Int(id.rawValue), count, address)
            }
        }
        return Array(mask[..<got])
    }

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        guard stage == .thread else { return }
        let more = thread.core.threadCore.brumate
        if more.hasTimerSlack { batch.add(.prctl, .value(29), .bits(more.timerSlack), doing: "set the timer slack") }
        if more.hasMempolicyMode {
            let nodes = batch.place(Array(more.mempolicyNodes))
            batch.add(
                .set_mempolicy, .bits(UInt64(more.mempolicyMode)), .buffer(nodes), .value(nodes.count * 8),
                doing: "set the memory policy")
        }
    }

    static func apply(_ thread: RestoredThread, _ stage: Stage, _ context: RestoreContext) throws(Failure) {
        guard stage == .thread, thread.core.hasThreadCore else { return }
        let core = thread.core.threadCore
        let more = core.brumate
        let id = Int(thread.task.rawValue)
        if more.hasAffinity {
            let wanted = Array(more.affinity)
            if wanted != (try affinity(of: thread.task)) {
                do throws(SystemCallError) {
                    try wanted.withConstantAddress { (address, count) throws(SystemCallError) in
                        try systemCall(.sched_setaffinity, id, count, address)
                    }
                } catch {
                    context.log.warning("thread \(thread.id): none of its CPUs is here, so it may run on all")
                }
            }
        }
        if more.ioPriority != 0 {
            try attempt("set the I/O priority") { () throws(SystemCallError) in
                try systemCall(.ioprio_set, 1, id, Int(more.ioPriority))
            }
        }
        guard core.hasSchedPolicy else { return }
        var wanted = try read(thread.task)
        // A slice that is set stays; one that is not follows the kernel's default.
        let slice = wanted.runtime
        wanted.runtime = core.schedPolicy == 6 ? 0 : more.deadlineRuntime
        let present = (wanted.policy, wanted.nice, wanted.priority, wanted.flags, wanted.util_min, wanted.util_max)
        wanted.policy = core.schedPolicy
        wanted.nice = core.schedNice
        wanted.priority = core.schedPrio
        // Policy-independent bits only: reset on fork, overrun and reclaim.
        wanted.flags = more.schedFlags & 0x7
        if wanted.policy == 6 {
            (wanted.runtime, wanted.deadline, wanted.period) = (
                more.deadlineRuntime, more.deadlineDeadline, more.deadlinePeriod
            )
        }
        if more.hasUtilMin, more.utilMin != wanted.util_min || more.utilMax != wanted.util_max {
            (wanted.util_min, wanted.util_max) = (more.utilMin, more.utilMax)
            wanted.flags |= 0x60
        }
        let same =
            present == (wanted.policy, wanted.nice, wanted.priority, wanted.flags, wanted.util_min, wanted.util_max)
        guard !same || wanted.policy == 6 || wanted.runtime != 0 && wanted.runtime != slice else { return }
        wanted.size = UInt32(MemoryLayout<clinux_sched_attr>.size)
        try attempt("set the scheduling attributes") { () throws(SystemCallError) in
            try withAddress(of: &wanted) { (address) throws(SystemCallError) in
                try systemCall(.sched_setattr, id, address, 0)
            }
        }
    }
}
