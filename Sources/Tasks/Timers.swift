internal import CLinux
internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// Interval timers and POSIX timers of a process. They are created early and armed as the last act.
///
/// What the kernel does not tell is lost: whether a timer was set to a point in time (it is set to the time that it had
/// left), how often it overran before its last signal, and which thread's CPU time it counts if that was "my own".
enum Timers: TaskPart {
    /// A clock of CPU time as the kernel shows it: the inverted id of a task, then three bits.
    private struct CPUClock {
        let task: TaskID, isThread: Bool

        init?(_ clock: Int32) {
            guard clock < 0 else { return nil }
            task = TaskID(~(clock >> 3))
            isThread = clock & 4 != 0
        }

        /// The time of whoever creates the timer.
        var isOwn: Bool { task.rawValue == 0 }
    }

    /// `SIGEV_NONE`, `SIGEV_THREAD` and `SIGEV_THREAD_ID`.
    private static let notifyNone: UInt32 = 1, notifyThread: UInt32 = 2, notifyThreadID: UInt32 = 4
    /// `CLOCK_PROCESS_CPUTIME_ID` and `CLOCK_THREAD_CPUTIME_ID`.
    private static let processTime: Int32 = 2, threadTime: Int32 = 3

    struct Question {
        var intervals: [Batch.Buffer] = []
        var timers: [(facts: PosixTimerInformation, time: Batch.Buffer, overrun: Batch.Slot)] = []
    }

    static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
        var question = Question()
        guard thread.isLeader else { return question }
        for which in 0...2 {
            let buffer = batch.reserve(MemoryLayout<clinux_itimerval>.size)
            batch.add(.getitimer, .value(which), .buffer(buffer), doing: "read an interval timer")
            question.intervals.append(buffer)
        }
        for timer in try PosixTimerInformation.read(of: thread.process.id) {
            let buffer = batch.reserve(MemoryLayout<clinux_itimerspec>.size)
            batch.add(.timer_gettime, .value(Int(timer.id)), .buffer(buffer), doing: "read a timer")
            let overrun = batch.add(
                .timer_getoverrun, .value(Int(timer.id)), doing: "read a timer's overrun", mayFail: true)
            question.timers.append((timer, buffer, overrun))
        }
        return question
    }

    static func dump(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext
    ) throws(Failure) {
        guard thread.isLeader else { return }
        var entry = TaskTimersEntry()
        let intervals = question.intervals.map { buffer in
            let value = results.value(clinux_itimerval.self, buffer)
            var entry = ItimerEntry()
            entry.isec = UInt64(bitPattern: value.interval_seconds)
            entry.iusec = UInt64(bitPattern: value.interval_microseconds)
            entry.vsec = UInt64(bitPattern: value.value_seconds)
            entry.vusec = UInt64(bitPattern: value.value_microseconds)
            return entry
        }
        (entry.real, entry.virt, entry.prof) = (intervals[0], intervals[1], intervals[2])
        for (facts, buffer, overrun) in question.timers {
            let value = results.value(clinux_itimerspec.self, buffer)
            var timer = PosixTimerEntry()
            timer.itID = UInt32(bitPattern: facts.id)
            timer.clockID = UInt32(bitPattern: facts.clock)
            timer.siSigno = UInt32(bitPattern: facts.signal)
            let base =
                facts.notify.hasPrefix("none") ? notifyNone : facts.notify.hasPrefix("thread") ? notifyThread : 0
            let toThread = facts.notify.hasSuffix("/tid")
            timer.itSigevNotify = base | (toThread ? notifyThreadID : 0)
            if !toThread, countsOwnThread(facts.clock), thread.process.threads.count > 1 {
                context.log.warning(
                    "timer \(facts.id) of task \(thread.process.id) counts a thread's CPU time: a restore takes the first"
                )
            }
            if toThread { timer.notifyThreadID = context.numbers[TaskID(facts.target)] }
            timer.sivalPtr = facts.value
            timer.overrun = UInt32(truncatingIfNeeded: results.success(overrun) ?? 0)
            timer.isec = UInt64(bitPattern: value.interval_seconds)
            timer.insec = UInt64(bitPattern: value.interval_nanoseconds)
            timer.vsec = UInt64(bitPattern: value.value_seconds)
            timer.vnsec = UInt64(bitPattern: value.value_nanoseconds)
            entry.posix.append(timer)
        }
        thread.core.tc.timers = entry
    }

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        guard thread.isLeader, thread.core.tc.hasTimers else { return }
        let timers = thread.core.tc.timers
        switch stage {
        case .clocks:
            for (which, timer) in [timers.real, timers.virt, timers.prof].enumerated() {
                // One that does not run may still have an interval.
                guard timer.vsec != 0 || timer.vusec != 0 || timer.isec != 0 || timer.iusec != 0 else { continue }
                let value = batch.place(
                    value: clinux_itimerval(
                        interval_seconds: Int64(bitPattern: timer.isec),
                        interval_microseconds: Int64(bitPattern: timer.iusec),
                        value_seconds: Int64(bitPattern: timer.vsec), value_microseconds: Int64(bitPattern: timer.vusec)
                    ))
                batch.add(.setitimer, .value(which), .buffer(value), .value(0), doing: "start an interval timer")
            }
            for timer in timers.posix where timer.vsec != 0 || timer.vnsec != 0 {
                let value = batch.place(
                    value: clinux_itimerspec(
                        interval_seconds: Int64(bitPattern: timer.isec),
                        interval_nanoseconds: Int64(bitPattern: timer.insec),
                        value_seconds: Int64(bitPattern: timer.vsec), value_nanoseconds: Int64(bitPattern: timer.vnsec))
                )
                batch.add(
                    .timer_settime, .value(Int(timer.itID)), .value(0), .buffer(value), .value(0),
                    doing: "start a timer")
            }
        default: break
        }
    }

    static func apply(_ thread: RestoredThread, _ stage: Stage, _ context: RestoreContext) throws(Failure) {
        guard stage == .pending, thread.isLeader, thread.core.tc.hasTimers, !thread.core.tc.timers.posix.isEmpty else {
            return
        }
        let timers = thread.core.tc.timers.posix.map { Creation($0, in: thread.process, context) }
        if canChooseIDs && !context.faults.lacks(.withoutTimerIDs) {
            try createAtOnce(timers, thread.process)
        } else {
            try createInOrder(timers)
        }
    }

    // MARK: creation

    private static func countsOwnThread(_ clock: Int32) -> Bool {
        guard let cpu = CPUClock(clock) else { return clock == threadTime }
        return cpu.isOwn && cpu.isThread
    }

    /// A timer to be created.
    private struct Creation {
        let id: UInt32
        private let clock: Int32, signal: UInt32, value: UInt64, notify: UInt32, target: Int32
        /// Who creates it.
        let creator: Puppet

        init(_ entry: PosixTimerEntry, in process: RestoredProcess, _ context: RestoreContext) {
            id = entry.itID
            (signal, value, target) = (entry.siSigno, entry.sivalPtr, entry.notifyThreadID)
            var (clock, notify) = (Int32(bitPattern: entry.clockID), entry.itSigevNotify)
            let receiver = process.threads.first { $0.id.rawValue == entry.notifyThreadID }
            if notify & notifyThreadID != 0, receiver == nil {
                context.log.warning("timer \(id) of task \(process.id) is for thread \(target), which has ended")
                notify = notifyNone
            }
            creator = countsOwnThread(clock) ? receiver?.puppet ?? process.puppet : process.puppet
            if let cpu = CPUClock(clock), !cpu.isOwn,
                cpu.isThread
                    ? !process.threads.contains(where: { $0.id == cpu.task })
                    : context.numbers.task(cpu.task.rawValue).flatMap({ try? TaskStat.read(of: $0) }) == nil
            {
                // It will never run again, but its id is still its owner's.
                context.log.warning(
                    "timer \(id) of task \(process.id) counts the CPU time of task \(cpu.task), which has ended")
                clock = processTime
            }
            (self.clock, self.notify) = (clock, notify)
        }

        /// Adds the call. The buffer holds the id that is wished for, and then the one that it got.
        func add(to batch: inout Batch) -> (result: Batch.Slot, id: Batch.Buffer) {
            // struct sigevent
            let event = batch.reserve(64, beginningWith: (value, signal, notify, target, UInt32(0)))
            let id = batch.place(value: self.id)
            let result = batch.add(
                .timer_create, .value(Int(clock)), .buffer(event), .buffer(id), doing: "create a timer", mayFail: true)
            return (result, id)
        }

        func check(_ result: Batch.Slot, in results: Results) throws(Failure) {
            guard results.success(result) == nil else { return }
            throw Failure(
                .unsupported, "can't create timer \(id) on clock \(clock)",
                cause: SystemCallError(.timer_create, Errno(rawValue: Int32(truncatingIfNeeded: -results[result]))))
        }
    }

    /// `PR_TIMER_CREATE_RESTORE_IDS`: the settings off and on, and the question.
    private static let restoreIDs = 77, off = 0, on = 1, ask = 2

    /// Whether timers can be created with the ids that we want (Linux 6.15).
    private static let canChooseIDs = (try? systemCall(.prctl, restoreIDs, ask, 0, 0, 0)) != nil

    /// How many timers one batch creates.
    private static let mostAtOnce = 4096

    private static func createAtOnce(_ timers: [Creation], _ process: RestoredProcess) throws(Failure) {
        func choose(_ setting: Int) throws(Failure) {
            var batch = Batch()
            batch.add(
                .prctl, .value(restoreIDs), .value(setting), .value(0), .value(0), .value(0),
                doing: "choose the ids of timers")
            try process.puppet.run(batch)
        }
        try choose(on)
        // The kernel's next id is the one behind the last that was asked for.
        var rest = timers.sorted { $0.id < $1.id }[...]
        while let creator = rest.first?.creator {
            let part = rest.prefix(mostAtOnce).prefix { $0.creator === creator }
            rest = rest.dropFirst(part.count)
            var batch = Batch()
            let slots = part.map { $0.add(to: &batch).result }
            let results = try creator.run(batch)
            for (timer, slot) in zip(part, slots) { try timer.check(slot, in: results) }
        }
        try choose(off)
    }

    /// How many ids may be passed over for one timer.
    private static let mostPassedOver: UInt32 = 100_000

    /// Before Linux 6.15: a process's timers are numbered as they come, and no number comes again.
    private static func createInOrder(_ timers: [Creation]) throws(Failure) {
        for timer in timers.sorted(by: { $0.id < $1.id }) {
            let first = try create(timer)
            if first == timer.id { continue }
            try delete(first, by: timer.creator)
            guard first < timer.id, timer.id <= Int32.max, timer.id - first <= mostPassedOver else {
                throw Failure(
                    .unsupported, "timer \(timer.id) can't have its id: the next one is \(first)",
                    advice: "Restore on Linux 6.15 or later")
            }
            try passOver(first + 1..<timer.id, by: timer.creator)
            guard try create(timer) == timer.id else { throw Failure(.bug, "timer \(timer.id) has another id") }
        }
    }

    private static func create(_ timer: Creation) throws(Failure) -> UInt32 {
        var batch = Batch()
        let (slot, id) = timer.add(to: &batch)
        let results = try timer.creator.run(batch)
        try timer.check(slot, in: results)
        return results.value(UInt32.self, id)
    }

    private static func delete(_ id: UInt32, by puppet: Puppet) throws(Failure) {
        var batch = Batch()
        batch.add(.timer_delete, .value(Int(id)), doing: "delete a timer")
        try puppet.run(batch)
    }

    private static func passOver(_ ids: Range<UInt32>, by puppet: Puppet) throws(Failure) {
        for start in stride(from: ids.lowerBound, to: ids.upperBound, by: mostAtOnce) {
            var batch = Batch()
            let event = batch.reserve(64, beginningWith: (UInt64(0), UInt32(0), notifyNone))
            let got = batch.reserve(4)
            for id in start..<min(start + UInt32(mostAtOnce), ids.upperBound) {
                batch.add(
                    .timer_create, .value(1), .buffer(event), .buffer(got), doing: "create a timer to pass over its id")
                batch.add(.timer_delete, .value(Int(id)), doing: "delete a timer whose id is passed over")
            }
            try puppet.run(batch)
        }
    }
}
