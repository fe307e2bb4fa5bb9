internal import CLinux
internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// Interval timers and POSIX timers of a process. They are created early and armed as the last act.
enum Timers: TaskPart {
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
            let base: UInt32 = facts.notify.hasPrefix("none") ? 1 : facts.notify.hasPrefix("thread") ? 2 : 0
            let toThread = facts.notify.hasSuffix("/tid")
            timer.itSigevNotify = base | (toThread ? 4 : 0)
            if toThread { timer.notifyThreadID = facts.target }
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
        case .pending: create(timers.posix, &batch)
        case .clocks:
            for (which, timer) in [timers.real, timers.virt, timers.prof].enumerated() {
                guard timer.vsec != 0 || timer.vusec != 0 else { continue }
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

    /// Creates timers with their old ids (`PR_TIMER_CREATE_RESTORE_IDS`, Linux 6.15).
    private static func create(_ timers: [PosixTimerEntry], _ batch: inout Batch) {
        guard !timers.isEmpty else { return }
        batch.add(
            .prctl, .value(77), .value(1), .value(0), .value(0), .value(0),
            doing: "choose the ids of timers (needs Linux 6.15)")
        for timer in timers {
            // struct sigevent: value, signal, way of notification, thread.
            let event = batch.place(
                value: (
                    timer.sivalPtr, timer.siSigno, timer.itSigevNotify, UInt32(bitPattern: timer.notifyThreadID),
                    UInt32(0)
                ))
            let padding = batch.reserve(64)
            _ = padding
            let id = batch.place(value: timer.itID)
            batch.add(
                .timer_create, .value(Int(Int32(bitPattern: timer.clockID))), .buffer(event), .buffer(id),
                doing: "create a timer")
        }
        batch.add(
            .prctl, .value(77), .value(0), .value(0), .value(0), .value(0),
            doing: "let the kernel choose the ids of timers")
    }
}
