internal import CLinux
internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// What a thread has registered with the kernel: name, robust futexes, restartable sequences, signal stack.
enum Registrations: TaskPart {
    struct Question {
        let stack: Batch.Buffer
    }

    static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
        let stack = batch.reserve(MemoryLayout<clinux_altstack>.size)
        batch.add(.sigaltstack, .value(0), .buffer(stack), doing: "read the signal stack")
        return Question(stack: stack)
    }

    static func dump(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext
    ) throws(Failure) {
        let tracee = thread.tracee
        let (robust, sequence) = try attempt("read the registrations") { () throws(SystemCallError) in
            (try tracee.robustList(), try tracee.restartableSequence())
        }
        thread.core.threadCore.futexRla = robust.head.rawValue
        thread.core.threadCore.futexRlaLen = UInt32(truncatingIfNeeded: robust.length)
        if sequence.address.rawValue != 0 {
            var entry = RseqEntry()
            entry.rseqAbiPointer = sequence.address.rawValue
            entry.rseqAbiSize = sequence.size
            entry.signature = sequence.signature
            thread.core.threadCore.rseqEntry = entry
        }
        let stack = results.value(clinux_altstack.self, question.stack)
        var entry = ThreadSasEntry()
        entry.ssSp = stack.sp
        entry.ssSize = stack.size
        entry.ssFlags = UInt32(bitPattern: stack.flags)
        thread.core.threadCore.sas = entry
        thread.core.threadCore.comm = imageBytes(thread.status.nameBytes)
        if thread.isLeader { thread.core.tc.comm = imageBytes(thread.status.nameBytes) }
    }

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        guard stage == .thread else { return }
        if thread.isLeader, let courier = context.courier {
            // Whoever else shares the table finds it closed.
            batch.add(.close, .descriptor(courier.remote), doing: "close the courier", mayFail: true)
        }
        guard thread.core.hasThreadCore else { return }
        let core = thread.core.threadCore
        let comm = core.hasComm ? Array(core.comm) : thread.process.plan.cores.first.map { Array($0.tc.comm) } ?? []
        let name = batch.place(string: comm.prefix(15))
        batch.add(.prctl, .value(15), .buffer(name), doing: "set the name")
        if core.futexRlaLen != 0 {
            batch.add(
                .set_robust_list, .bits(core.futexRla), .value(Int(core.futexRlaLen)), doing: "register robust futexes")
        }
        if core.hasRseqEntry, core.rseqEntry.rseqAbiPointer != 0 {
            let entry = core.rseqEntry
            batch.add(
                .rseq, .bits(entry.rseqAbiPointer), .value(Int(entry.rseqAbiSize)), .value(0),
                .value(Int(entry.signature)),
                doing: "register restartable sequences")
        }
        if core.hasSas {
            // Only SS_DISABLE and SS_AUTODISARM can be set; whether it is in use follows from the stack pointer.
            let flags = Int32(bitPattern: core.sas.ssFlags & 0x8000_0002)
            let stack = batch.place(
                value: clinux_altstack(sp: core.sas.ssSp, flags: flags, pad: 0, size: core.sas.ssSize))
            batch.add(.sigaltstack, .buffer(stack), .value(0), doing: "set the signal stack")
        }
    }

    /// Ends a restartable sequence that the stop interrupted, as the kernel would have done: it does not outlive other
    /// code running in the thread.
    static func abortSequence(_ thread: DumpedThread) throws(Failure) {
        let tracee = thread.tracee
        let sequence = try attempt("read the restartable sequence") { () throws(SystemCallError) in
            try tracee.restartableSequence()
        }
        guard sequence.address.rawValue != 0,
            let section = try? thread.process.memory.read(UInt64.self, at: sequence.address + 8), section != 0,
            let words = try? thread.process.memory.read(Address(section), count: 32),
            let start = words.load(UInt64.self, at: 8), let length = words.load(UInt64.self, at: 16),
            let abort = words.load(UInt64.self, at: 24), thread.registers.ip &- start < length
        else { return }
        thread.registers.ip = abort
        let registers = thread.registers
        try attempt("abort a restartable sequence") { () throws(SystemCallError) in try tracee.setRegisters(registers) }
    }
}
