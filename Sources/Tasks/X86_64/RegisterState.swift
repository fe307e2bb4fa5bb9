#if arch(x86_64)
    internal import Diagnostics
    internal import ImageFormat
    internal import ImageMessages
    internal import Kinds
    internal import Linux
    internal import Logging
    internal import Procfs
    internal import Remote

    /// All registers of a thread, and the system call that the stop interrupted.
    enum RegisterState: TaskPart {
        struct Question {
            let clearAddress: Batch.Buffer
        }

        static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
            let buffer = batch.reserve(8)
            batch.add(.prctl, .value(40), .buffer(buffer), doing: "read the address to clear at its end")
            return Question(clearAddress: buffer)
        }

        static func dump(
            _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext
        ) throws(Failure) {
            thread.core.mtype = .x8664
            var state = ThreadInfoX86()
            state.clearTidAddr_p = results.value(UInt64.self, question.clearAddress)
            let (registers, restart) = InterruptedCall.normalise(thread, context)
            state.gpregs = entry(registers)
            let area = try attempt("read the floating point registers") { () throws(SystemCallError) in
                try thread.tracee.registerSet(ExtendedState.note)
            }
            state.fpregs = try ExtendedState.entry(area)
            state.tls = (12...14).map { number in
                var slot = UserDescT()
                slot.entryNumber = UInt32(number)
                (slot.baseAddr, slot.limit, slot.seg32Bit, slot.contentsH, slot.contentsL) = (0, 0, false, false, false)
                (slot.readExecOnly, slot.limitInPages, slot.segNotPresent, slot.usable) = (true, false, true, false)
                return slot
            }
            thread.core.threadInfo = state
            thread.core.threadCore.brumate.xstate = imageBytes(area)
            if let restart { thread.core.threadCore.brumate.restart = restart }
        }

        private static func entry(_ r: Registers) -> UserX86RegsEntry {
            var entry = UserX86RegsEntry()
            (entry.r15, entry.r14, entry.r13, entry.r12, entry.bp, entry.bx) = (r.r15, r.r14, r.r13, r.r12, r.bp, r.bx)
            (entry.r11, entry.r10, entry.r9, entry.r8, entry.ax, entry.cx) = (r.r11, r.r10, r.r9, r.r8, r.ax, r.cx)
            (entry.dx, entry.si, entry.di, entry.origAx, entry.ip, entry.cs) = (
                r.dx, r.si, r.di, r.originalAX, r.ip, r.cs
            )
            (entry.flags, entry.sp, entry.ss, entry.fsBase, entry.gsBase) = (r.flags, r.sp, r.ss, r.fsBase, r.gsBase)
            (entry.ds, entry.es, entry.fs, entry.gs) = (r.ds, r.es, r.fs, r.gs)
            entry.mode = .native
            return entry
        }

        static func recreate(
            _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
        ) throws(Failure) {
            guard stage == .thread else { return }
            guard thread.core.hasThreadInfo else {
                throw Failure(.corruptImage, "the image has no registers for this architecture")
            }
            if thread.core.threadInfo.gpregs.mode == .compat {
                throw Failure(.unsupported, "it runs 32-bit code, which can't be restored yet")
            }
            batch.add(
                .set_tid_address, .bits(thread.core.threadInfo.clearTidAddr_p),
                doing: "set the address to clear at its end")
        }

        /// The registers of the image.
        static func registers(_ thread: RestoredThread) -> Registers {
            let e = thread.core.threadInfo.gpregs
            var r = Registers()
            (r.r15, r.r14, r.r13, r.r12, r.bp, r.bx) = (e.r15, e.r14, e.r13, e.r12, e.bp, e.bx)
            (r.r11, r.r10, r.r9, r.r8, r.ax, r.cx) = (e.r11, e.r10, e.r9, e.r8, e.ax, e.cx)
            (r.dx, r.si, r.di, r.ip, r.cs) = (e.dx, e.si, e.di, e.ip, e.cs)
            (r.flags, r.sp, r.ss, r.fsBase, r.gsBase) = (e.flags, e.sp, e.ss, e.fsBase, e.gsBase)
            (r.ds, r.es, r.fs, r.gs) = (e.ds, e.es, e.fs, e.gs)
            r.originalAX = .max
            if thread.isRearmed {
                r.originalAX = thread.core.threadCore.brumate.restart.call
                r.ax = UInt64(bitPattern: -516)
                r.ip &+= 2
            }
            return r
        }

        /// Puts all registers into a thread that will run no more calls for us.
        static func set(_ thread: RestoredThread) throws(Failure) {
            let tracee = thread.puppet.tracee
            let template = try attempt("read the floating point registers") { () throws(SystemCallError) in
                try tracee.registerSet(ExtendedState.note)
            }
            let kept = Array(thread.core.threadCore.brumate.xstate)
            let area =
                kept.count == template.count && !kept.isEmpty
                ? kept : try ExtendedState.area(thread.core.threadInfo.fpregs, template: template)
            let registers = registers(thread)
            try attempt("set the registers", code: .corruptImage) { () throws(SystemCallError) in
                try tracee.setRegisterSet(ExtendedState.note, area)
                try tracee.setRegisters(registers)
            }
        }
    }

    /// The system call that a stop interrupted.
    enum InterruptedCall {
        private static let restartCall: UInt64 = 219

        /// Registers that make the call again from its beginning, which every restorer can do, and what it takes to continue
        /// it instead.
        static func normalise(_ thread: DumpedThread, _ context: DumpContext) -> (Registers, BrumateRestartEntry?) {
            var registers = thread.registers
            guard let call = registers.interruptedCall else { return (registers, nil) }
            var number = registers.originalAX
            if number == restartCall {
                // The thread was stopped before: the number of the first call is gone from the registers.
                guard let resolved = resolve(thread) else {
                    context.log.warning(
                        "thread \(thread.tracee.id) sleeps in a restarted call that can't be told: it will see EINTR")
                    registers.ax = UInt64(bitPattern: -4)
                    return (registers, nil)
                }
                number = resolved
                registers.originalAX = resolved
            }
            registers.ip &-= 2
            registers.ax = number
            guard call.outcome == -516 else { return (registers, nil) }
            var entry = BrumateRestartEntry()
            entry.call = number
            entry.arguments = registers.arguments
            if let pointer = remainder(of: Int(number), registers),
                let left = try? thread.process.memory.read([UInt64].Pair.self, at: Address(pointer))
            {
                let (nanoseconds, over) = left.seconds.multipliedReportingOverflow(by: 1_000_000_000)
                if !over { entry.remaining = nanoseconds &+ left.nanoseconds }
            }
            return (registers, entry)
        }

        /// Lets a thread that waited for System V semaphores wait again. The kernel ends that wait with EINTR whenever the
        /// thread is stopped, and a program without signal handlers does not expect that. A handler that is about to run is
        /// another matter.
        static func repeatSemaphoreCall(_ thread: DumpedThread) throws(Failure) {
            let (registers, status) = (thread.registers, thread.status)
            guard let call = registers.currentCall, call == .semop || call == .semtimedop, registers.fails(with: 4),
                status.pendingSignals & ~thread.signalMask & status.caughtSignals == 0
            else { return }
            thread.registers = registers.repeatingCall()
            let (tracee, again) = (thread.tracee, thread.registers)
            try attempt("let it wait for semaphores again") { () throws(SystemCallError) in
                try tracee.setRegisters(again)
            }
        }

        /// Where the kernel wrote the time that a relative sleep has left, if the caller wanted to know.
        private static func remainder(of number: Int, _ r: Registers) -> UInt64? {
            let pointer: UInt64
            switch SystemCall(rawValue: number) {
            case .nanosleep: pointer = r.si
            case .clock_nanosleep: pointer = r.si & 1 == 0 ? r.r10 : 0
            default: return nil
            }
            return pointer == 0 ? nil : pointer
        }

        /// Tells a restarted call by the instruction that loaded its number.
        private static func resolve(_ thread: DumpedThread) -> UInt64? {
            let candidates: [UInt64] = [35, 230, 7, 202]  // nanosleep, clock_nanosleep, poll, futex
            let span: UInt64 = 64
            // The thread stands behind the `syscall` instruction.
            guard
                let code = try? thread.process.memory.read(Address(thread.registers.ip &- 2 &- span), count: Int(span))
            else {
                return nil
            }
            var found: UInt64?
            for at in 0..<(code.count - 4) where code[at] == 0xb8 {  // mov $imm32, %eax
                if let number = code.load(UInt32.self, at: at + 1), candidates.contains(UInt64(number)) {
                    found = UInt64(number)
                }
            }
            return found
        }

        /// Puts a restored thread back to sleep for the time that it had left.
        static func rearm(_ thread: RestoredThread) throws(Failure) {
            guard thread.core.threadCore.brumate.hasRestart else { return }
            let restart = thread.core.threadCore.brumate.restart
            guard restart.hasRemaining, restart.arguments.count == 6 else { return }
            let call = SystemCall(rawValue: Int(truncatingIfNeeded: restart.call))
            var batch = Batch()
            _ = batch.place(value: (restart.remaining / 1_000_000_000, restart.remaining % 1_000_000_000))
            var arguments = restart.arguments
            let time = thread.puppet.runway.start.rawValue
            switch call {
            case .nanosleep: arguments[0] = time
            case .clock_nanosleep: arguments[2] = time
            default: return
            }
            guard restart.remaining > 0 else { return }
            try thread.puppet.arm(call, arguments, with: batch)
            thread.isRearmed = true
        }
    }

    extension Array where Element == UInt64 {
        /// `struct timespec`.
        struct Pair: BitwiseCopyable {
            var seconds: UInt64, nanoseconds: UInt64
        }
    }
#endif
