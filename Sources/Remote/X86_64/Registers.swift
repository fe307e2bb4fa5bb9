public import Linux

#if arch(x86_64)
    /// The general registers of a stopped thread, laid out as `struct user_regs_struct`.
    public struct Registers: BitwiseCopyable, Hashable, Sendable {
        /// General registers, named as in the image format.
        public var r15: UInt64 = 0, r14: UInt64 = 0, r13: UInt64 = 0, r12: UInt64 = 0, bp: UInt64 = 0, bx: UInt64 = 0
        /// General registers, named as in the image format.
        public var r11: UInt64 = 0, r10: UInt64 = 0, r9: UInt64 = 0, r8: UInt64 = 0
        /// General registers, named as in the image format.
        public var ax: UInt64 = 0, cx: UInt64 = 0, dx: UInt64 = 0, si: UInt64 = 0, di: UInt64 = 0
        /// The number of the system call that the thread is in, or all ones.
        public var originalAX: UInt64 = 0
        /// Instruction pointer, code segment, flags, stack pointer and segment.
        public var ip: UInt64 = 0, cs: UInt64 = 0, flags: UInt64 = 0, sp: UInt64 = 0, ss: UInt64 = 0
        /// Segment bases and selectors.
        public var fsBase: UInt64 = 0, gsBase: UInt64 = 0, ds: UInt64 = 0, es: UInt64 = 0, fs: UInt64 = 0,
            gs: UInt64 = 0

        /// All zero.
        public init() {}

        /// Whether the thread executes 32-bit code.
        public var isCompat: Bool { cs == 0x23 }

        /// The system call that the stop interrupted and that is to be restarted, if any.
        public var interruptedCall: (number: SystemCall, outcome: Int)? {
            let number = Int64(bitPattern: originalAX)
            let result = Int64(bitPattern: ax)
            guard number >= 0, (-516 ... -512).contains(result) else { return nil }
            return (SystemCall(rawValue: Int(number)), Int(result))
        }

        /// The system call that the thread is in, interrupted or about to return.
        public var currentCall: SystemCall? {
            let number = Int64(bitPattern: originalAX)
            return number >= 0 ? SystemCall(rawValue: Int(truncatingIfNeeded: number)) : nil
        }

        /// Whether the call returns an error of this number.
        public func fails(with number: Int32) -> Bool { Int64(bitPattern: ax) == -Int64(number) }

        /// Makes the call that the thread is in again from its beginning.
        public func repeatingCall() -> Registers {
            var registers = self
            registers.ip &-= 2
            registers.ax = originalAX
            registers.originalAX = .max
            return registers
        }

        /// The arguments of the system call that the thread is in.
        public var arguments: [UInt64] { [di, si, dx, r10, r8, r9] }

        /// The stack pointer, by an architecture-neutral name.
        public var stackPointer: UInt64 { sp }

        /// Makes the kernel's restart decision now, so that the thread can be resumed from anywhere: the call is made
        /// again (-ERESTARTSYS and its kin), or continued by `restart_syscall` (-ERESTART_RESTARTBLOCK).
        public func restarting() -> Registers {
            guard let call = interruptedCall else { return self }
            var registers = self
            registers.ip &-= 2
            registers.ax = call.outcome == -516 ? 219 : originalAX
            registers.originalAX = .max
            return registers
        }

        /// These registers, but about to make one system call at `instruction`, a `syscall` instruction.
        func calling(_ call: SystemCall, _ a: UInt64, _ b: UInt64, at instruction: Address) -> Registers {
            var registers = self
            registers.ip = instruction.rawValue
            registers.ax = UInt64(call.rawValue)
            registers.di = a
            registers.si = b
            registers.originalAX = .max
            return registers
        }

        /// These registers, but about to run the loop at `code` over the records from `first` to `end`.
        func looping(at code: Address, first: Address, end: Address) -> Registers {
            var registers = self
            registers.ip = code.rawValue
            registers.bx = first.rawValue
            registers.r12 = end.rawValue
            registers.originalAX = .max
            registers.flags &= ~0x400  // direction flag
            return registers
        }

        /// The state that the server's code restores by itself, see server.S.
        func saved(runway: AddressRange, mask: UInt64) -> [UInt64] {
            let r = restarting()
            return [
                runway.start.rawValue, runway.length, mask, r.flags, r.ip, r.r15, r.r14, r.r13, r.r12, r.bp, r.bx,
                r.r11,
                r.r10, r.r9, r.r8, r.ax, r.cx, r.dx, r.si, r.di,
            ]
        }

        /// These registers, but about to run the server at `code`.
        func serving(at code: Address, runway: Address) -> Registers {
            var registers = self
            registers.ip = code.rawValue
            registers.bx = runway.rawValue
            registers.originalAX = .max
            registers.flags &= ~0x400
            return registers
        }
    }
#endif
