#if arch(x86_64)
    internal import ImageMessages
    internal import Linux

    extension CoreEntry {
        /// The next instruction of a dumped thread.
        var instruction: Address { Address(threadInfo.gpregs.ip) }
        /// The end of a dumped thread's stack that is in use.
        var stackPointer: Address { Address(threadInfo.gpregs.sp) }
        /// Everything that a dumped thread may use as an address.
        var registers: [UInt64] {
            let r = threadInfo.gpregs
            return [
                r.ip, r.ax, r.bx, r.cx, r.dx, r.si, r.di, r.bp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
            ]
        }
    }
#endif
