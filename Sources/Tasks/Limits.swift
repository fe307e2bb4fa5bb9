internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// Resource limits. They are read from /proc, which needs no right over the task's ids, and set by the task itself.
enum Limits: TaskPart {
    static func dump(_ question: Void, _ results: Results, _ thread: DumpedThread, _ context: DumpContext)
        throws(Failure)
    {
        guard thread.isLeader else { return }
        var entry = TaskRlimitsEntry()
        entry.rlimits = try ResourceLimit.read(of: thread.process.id).map { limit in
            var entry = RlimitEntry()
            (entry.cur, entry.max) = (limit.soft, limit.hard)
            return entry
        }
        thread.core.tc.rlimits = entry
    }

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        guard stage == .seal, thread.isLeader, thread.core.tc.hasRlimits else { return }
        guard thread.core.tc.rlimits.rlimits.count <= 16 else {
            throw Failure(.corruptImage, "the image has too many limits")
        }
        for (resource, limit) in thread.core.tc.rlimits.rlimits.enumerated() {
            let value = batch.place(value: (limit.cur, limit.max))
            batch.add(
                .prlimit64, .value(0), .value(resource), .buffer(value), .value(0),
                doing: "set a resource limit (a hard limit above ours needs CAP_SYS_RESOURCE)")
        }
    }
}
