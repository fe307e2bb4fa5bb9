internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// What prctl(2) and small files of /proc set: personality, subreaper, out-of-memory score, login, core filter and the
/// like.
enum Attributes: TaskPart {
    struct Question {
        var subreaper: Batch.Buffer?
        var membarrier: Batch.Slot?
        var denyWriteExecute: Batch.Slot?
        var mergeMemory: Batch.Slot?
        let timeStamp: Batch.Buffer
        let machineCheck: Batch.Slot
        let ioFlusher: Batch.Slot
        var speculation: [Batch.Slot] = []
    }

    /// `PR_SPEC_STORE_BYPASS`, `PR_SPEC_INDIRECT_BRANCH`, `PR_SPEC_L1D_FLUSH`.
    private static let speculations = 0...2

    static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
        let timeStamp = batch.reserve(4)
        batch.add(
            .prctl, .value(25), .buffer(timeStamp), doing: "read whether it may read the time stamp counter",
            mayFail: true)
        var question = Question(
            timeStamp: timeStamp,
            machineCheck: batch.add(
                .prctl, .value(34), .value(0), .value(0), .value(0), .value(0), doing: "read the machine check policy",
                mayFail: true),
            ioFlusher: batch.add(
                .prctl, .value(58), .value(0), .value(0), .value(0), .value(0), doing: "read whether it flushes I/O",
                mayFail: true))
        for which in speculations {
            question.speculation.append(
                batch.add(
                    .prctl, .value(52), .value(which), .value(0), .value(0), .value(0),
                    doing: "read a speculation control", mayFail: true))
        }
        guard thread.isLeader else { return question }
        let subreaper = batch.reserve(4)
        batch.add(.prctl, .value(37), .buffer(subreaper), doing: "read whether it is a subreaper")
        question.subreaper = subreaper
        question.membarrier = batch.add(
            .membarrier, .value(512), .value(0), doing: "read memory barrier registrations", mayFail: true)
        question.denyWriteExecute = batch.add(
            .prctl, .value(66), .value(0), .value(0), .value(0), .value(0),
            doing: "read whether writing excludes executing", mayFail: true)
        question.mergeMemory = batch.add(
            .prctl, .value(68), .value(0), .value(0), .value(0), .value(0), doing: "read whether all memory is merged",
            mayFail: true)
        return question
    }

    static func dump(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext
    ) throws(Failure) {
        var more = thread.core.threadCore.brumate
        let timeStamp = results.value(UInt32.self, question.timeStamp)
        if timeStamp > 1 { more.tscMode = timeStamp }
        if let policy = results.success(question.machineCheck), policy != 2 { more.mceKill = UInt32(policy) }
        if let flusher = results.success(question.ioFlusher), flusher == 1 { more.ioFlusher = true }
        more.speculation = question.speculation.map { UInt64(results.success($0) ?? 0) }
        if thread.process.frozen.stoppedThreads[thread.tracee.id] != nil, thread.process.frozen.stopSignal == nil {
            more.stopped = 1
        }
        if let dispatch = try? thread.tracee.systemCallUserDispatch(), dispatch.count == 4, dispatch[0] != 0 {
            more.userDispatch = dispatch
        }
        thread.core.threadCore.brumate = more
        if thread.isLeader { try dumpProcess(question, results, thread, context.owners) }
    }

    private static func dumpProcess(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ owners: TreeOwners
    ) throws(Failure) {
        let process = thread.process
        let personality = (try? procText(of: process.id, "personality")) ?? []
        thread.core.tc.personality =
            UInt32(String(decoding: personality.prefix { $0 != 0x0a }, as: UTF8.self), radix: 16) ?? 0
        thread.core.tc.exitCode = 0
        thread.core.tc.brumate.terminal = UInt32(truncatingIfNeeded: process.stat.terminal)
        thread.core.tc.flags = UInt32(truncatingIfNeeded: process.stat.flags)
        thread.core.tc.taskState = process.frozen.stopSignal == nil ? 1 : 3
        if let signal = process.frozen.stopSignal {
            thread.core.tc.stopSigno = UInt32(signal)
            // What wait(2) has yet to tell stands there.
            if process.stat.exitCode == 0 { thread.core.tc.brumate.stopTold = true }
        }
        if let subreaper = question.subreaper, results.value(UInt32.self, subreaper) != 0 {
            thread.core.tc.childSubreaper = true
        }
        if let membarrier = question.membarrier, let mask = results.success(membarrier), mask != 0 {
            thread.core.tc.membarrierRegistrationMask = UInt32(truncatingIfNeeded: mask)
        }
        let exitSignal = process.stat.exitSignal
        if exitSignal != 17, (0...64).contains(exitSignal) {
            thread.core.tc.brumate.exitSignal = UInt32(exitSignal)
        }
        if let slot = question.denyWriteExecute, let bits = results.success(slot), bits != 0 {
            thread.core.tc.brumate.mdwe = UInt32(bits)
        }
        if let slot = question.mergeMemory, results.success(slot) == 1 { thread.core.tc.brumate.memoryMerge = true }
        if let score = number(process.id, "oom_score_adj") {
            thread.core.tc.oomScoreAdj = Int32(truncatingIfNeeded: score)
        }
        if let login = number(process.id, "loginuid") {
            thread.core.tc.loginuid = owners.user(UInt32(truncatingIfNeeded: login))
        }
        if let text = try? procText(of: process.id, "coredump_filter") {
            thread.core.tc.brumate.coredumpFilter =
                UInt32(String(decoding: text.prefix { $0 != 0x0a }, as: UTF8.self), radix: 16) ?? 0x33
        }
    }

    private static func number(_ id: TaskID, _ file: String) -> Int64? {
        guard let text = try? procText(of: id, file) else { return nil }
        return Int64(String(decoding: text.prefix { $0 != 0x0a }, as: UTF8.self))
    }

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        switch stage {
        case .thread: recreateEarly(thread, &batch, context.owners)
        case .seal: recreateLate(thread, &batch)
        default: break
        }
    }

    private static func recreateEarly(_ thread: RestoredThread, _ batch: inout Batch, _ owners: TreeOwners) {
        guard let leader = thread.process.plan.cores.first?.tc else { return }
        batch.add(.personality, .bits(UInt64(leader.personality)), doing: "set the personality")
        guard thread.isLeader else { return }
        batch.add(.prctl, .value(36), .value(leader.childSubreaper ? 1 : 0), doing: "set whether it is a subreaper")
        for bit in 0..<32 where leader.membarrierRegistrationMask >> UInt32(bit) & 1 == 1 {
            batch.add(.membarrier, .value(1 << bit), .value(0), doing: "register for memory barriers")
        }
        if leader.hasLoginuid, number(.current, "loginuid") != Int64(owners.ourUser(leader.loginuid)) {
            // Only a task itself may write it.
            let path = batch.place(string: "/proc/self/loginuid".utf8)
            let text = batch.place("\(leader.loginuid)".utf8)
            // It gets the lowest number that is free.
            let taken = Set(thread.process.plan.descriptors.map(\.fd))
            let number = Int((0...UInt32(taken.count)).first { !taken.contains($0) } ?? 0)
            batch.add(.openat, .value(-100), .buffer(path), .value(1), doing: "open its login uid", mayFail: true)
            batch.add(
                .write, .value(number), .buffer(text), .value(text.count), doing: "set its login uid", mayFail: true)
            batch.add(.close, .value(number), doing: "close its login uid", mayFail: true)
        }
        if leader.brumate.memoryMerge {
            batch.add(.prctl, .value(67), .value(1), .value(0), .value(0), .value(0), doing: "merge all memory")
        }
    }

    private static func recreateLate(_ thread: RestoredThread, _ batch: inout Batch) {
        let more = thread.core.threadCore.brumate
        if more.hasTscMode {
            batch.add(.prctl, .value(26), .bits(UInt64(more.tscMode)), doing: "forbid the time stamp counter")
        }
        if more.hasMceKill {
            batch.add(
                .prctl, .value(33), .value(1), .bits(UInt64(more.mceKill)), .value(0), .value(0),
                doing: "set the machine check policy")
        }
        if more.ioFlusher {
            batch.add(.prctl, .value(57), .value(1), .value(0), .value(0), .value(0), doing: "mark it as flushing I/O")
        }
        for (which, value) in more.speculation.enumerated() where value & 1 == 1 && value & 0x1e != 0x2 {
            // PR_SPEC_PRCTL and a state other than the default.
            batch.add(
                .prctl, .value(53), .value(which), .bits(value & 0x1e), .value(0), .value(0),
                doing: "set a speculation control", mayFail: true)
        }
        if thread.isLeader, thread.core.tc.brumate.mdwe != 0 {
            batch.add(
                .prctl, .value(65), .bits(UInt64(thread.core.tc.brumate.mdwe)), .value(0), .value(0), .value(0),
                doing: "make writing exclude executing")
        }
    }

    static func apply(_ thread: RestoredThread, _ stage: Stage, _ context: RestoreContext) throws(Failure) {
        if stage == .clocks, thread.core.threadCore.brumate.userDispatch.count == 4 {
            let (tracee, dispatch) = (thread.puppet.tracee, thread.core.threadCore.brumate.userDispatch)
            try attempt("set system call user dispatch") { () throws(SystemCallError) in
                try tracee.setSystemCallUserDispatch(dispatch)
            }
        }
        guard stage == .thread, thread.isLeader else { return }
        let core = thread.core.tc
        if core.hasOomScoreAdj {
            try write("\(core.oomScoreAdj)", to: "oom_score_adj", of: thread, context, isVital: true)
        }
        if core.hasLoginuid, let now = number(thread.process.task, "loginuid"),
            now != Int64(context.owners.ourUser(core.loginuid))
        {
            context.log.warning("task \(thread.process.id): its login uid is \(now) instead of \(core.loginuid)")
        }
        if core.brumate.hasCoredumpFilter {
            try write(
                "0x\(String(core.brumate.coredumpFilter, radix: 16))", to: "coredump_filter", of: thread, context,
                isVital: false)
        }
        if core.brumate.autogroupNice != 0 {
            try write("\(core.brumate.autogroupNice)", to: "autogroup", of: thread, context, isVital: false)
        }
    }

    /// Writes a file of the task's /proc directory, unless it holds the value already.
    private static func write(
        _ text: String, to name: String, of thread: RestoredThread, _ context: RestoreContext, isVital: Bool
    ) throws(Failure) {
        let path = "/proc/\(thread.process.task.rawValue)/\(name)"
        if let now = number(thread.process.task, name), "\(now)" == text { return }
        do throws(SystemCallError) {
            let file = try openFile(path, .writeOnly)
            try writeAll(Array(text.utf8), to: file.number)
        } catch {
            if !isVital {
                context.log.warning("task \(thread.process.id): can't set \(name) to \(text): \(error)")
                return
            }
            throw Failure(
                .denied, "can't set \(name) to \(text)", advice: "Lowering it needs CAP_SYS_RESOURCE", cause: error)
        }
    }
}
