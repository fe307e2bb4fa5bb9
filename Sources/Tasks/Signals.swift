internal import CLinux
internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// Dispositions, masks and pending queues.
enum Signals: TaskPart {
    /// The answers to rt_sigaction of a leader, by signal.
    typealias Question = [(signal: Int, buffer: Batch.Buffer)]

    /// Signals that have no disposition.
    private static let fixed = [9, 19]

    static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
        guard thread.isLeader else { return [] }
        var question: Question = []
        for signal in 1...64 where !fixed.contains(signal) {
            let buffer = batch.reserve(MemoryLayout<clinux_sigaction>.size)
            batch.add(
                .rt_sigaction, .value(signal), .value(0), .buffer(buffer), .value(8),
                doing: "read a signal's disposition")
            question.append((signal, buffer))
        }
        return question
    }

    static func dump(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext
    ) throws(Failure) {
        let tracee = thread.tracee
        thread.core.threadCore.blkSigset = thread.signalMask
        thread.core.threadCore.signalsP = try queue(tracee, shared: false)
        guard thread.isLeader else { return }
        thread.core.tc.blkSigset = thread.signalMask
        thread.core.tc.signalsS = try queue(tracee, shared: true)
        thread.core.tc.sigactions = question.map { (_, buffer) in
            let action = results.value(clinux_sigaction.self, buffer)
            var entry = SaEntry()
            (entry.sigaction, entry.flags, entry.restorer, entry.mask) = (
                action.handler, action.flags, action.restorer, action.mask
            )
            entry.compatSigaction = false
            return entry
        }
    }

    private static func queue(_ tracee: Tracee, shared: Bool) throws(Failure) -> SignalQueueEntry {
        let pending = try attempt("read the pending signals") { () throws(SystemCallError) in
            try tracee.pendingSignals(shared: shared)
        }
        var entry = SignalQueueEntry()
        for signal in pending {
            guard signal.load(Int32.self) != 5 else {
                throw Failure(
                    .unsupported, "a SIGTRAP is pending, which can't be restored",
                    advice: "Try again once it was delivered")
            }
            var message = SiginfoEntry()
            message.siginfo = imageBytes(signal)
            entry.signals.append(message)
        }
        return entry
    }

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        let process = Int(thread.process.id.rawValue)
        switch stage {
        case .thread where thread.isLeader:
            let signals = (1...64).filter { !fixed.contains($0) }
            guard thread.core.tc.sigactions.count <= signals.count else {
                throw Failure(.corruptImage, "the image has more dispositions than there are signals")
            }
            for (signal, entry) in zip(signals, thread.core.tc.sigactions) {
                let action = batch.place(
                    value: clinux_sigaction(
                        handler: entry.sigaction, flags: entry.flags, restorer: entry.restorer, mask: entry.mask))
                batch.add(
                    .rt_sigaction, .value(signal), .buffer(action), .value(0), .value(8),
                    doing: "set a signal's disposition")
            }
        case .pending:
            if thread.isLeader {
                for signal in thread.core.tc.signalsS.signals where !isStop(signal) {
                    let (number, buffer) = try place(signal, &batch)
                    batch.add(
                        .rt_sigqueueinfo, .value(process), .value(number), .buffer(buffer), doing: "queue a signal")
                }
            }
            for signal in thread.core.threadCore.signalsP.signals where !isStop(signal) {
                let (number, buffer) = try place(signal, &batch)
                batch.add(
                    .rt_tgsigqueueinfo, .value(process), .value(Int(thread.id.rawValue)), .value(number),
                    .buffer(buffer),
                    doing: "queue a signal")
            }
        default: break
        }
    }

    /// SIGSTOP can't wait in a task that still works for us; it is sent when the task is let go.
    static func isStop(_ entry: SiginfoEntry) -> Bool { Array(entry.siginfo.prefix(4)).load(Int32.self) == 19 }

    private static func place(_ entry: SiginfoEntry, _ batch: inout Batch) throws(Failure) -> (Int, Batch.Buffer) {
        let bytes = Array(entry.siginfo)
        guard bytes.count == 128, let number = bytes.load(Int32.self), (1...64).contains(number), number != 5 else {
            throw Failure(.corruptImage, "a pending signal makes no sense")
        }
        return (Int(number), batch.place(bytes))
    }

    /// The mask that the thread is to have at the end.
    static func mask(_ thread: RestoredThread) -> UInt64 {
        if thread.core.threadCore.hasBlkSigset { return thread.core.threadCore.blkSigset }
        return thread.core.tc.blkSigset
    }
}
