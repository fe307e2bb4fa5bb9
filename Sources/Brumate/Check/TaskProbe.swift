internal import CLinux
internal import Linux
internal import SystemPackage

/// Probes of tasks, tracing and comparing.
enum TaskProbe {
    /// Whether objects of tasks can be compared.
    static func comparesFiles() throws(SystemCallError) -> Bool {
        let me = Int(TaskID.current.rawValue)
        return try systemCall(.kcmp, me, me, 1) == 0  // KCMP_VM
    }

    /// Whether the target of an epoll can be compared (`KCMP_EPOLL_TFD`).
    static func comparesEpollTargets() throws(SystemCallError) -> Bool {
        let epoll = Descriptor(owning: Int32(try systemCall(.epoll_create1, 0o2000000)))
        let target = Descriptor(owning: Int32(try systemCall(.eventfd2, 0, 0o2000000)))
        let (watcher, watched) = (Int(epoll.number), Int(target.number))
        var event: [UInt32] = [1, 0, 0]
        try event.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.epoll_ctl, watcher, 1, watched, address)
        }
        var slot: [UInt32] = [UInt32(watcher), UInt32(watched), 0]
        let me = Int(TaskID.current.rawValue)
        return try slot.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.kcmp, me, me, 7, watched, address) == 0
        }
    }

    /// Whether a task's pid can be chosen: asked for our own, the kernel must find it taken.
    static func choosesPIDs() throws(SystemCallError) -> Bool {
        var pid = TaskID.current.rawValue
        var arguments = clinux_clone_args()
        arguments.set_tid_size = 1
        arguments.exit_signal = 17
        do {
            try withAddress(of: &pid) { (address) throws(SystemCallError) in
                arguments.set_tid = UInt64(address)
                try withAddress(of: &arguments) { (place) throws(SystemCallError) in
                    try systemCall(.clone3, place, MemoryLayout<clinux_clone_args>.size)
                }
            }
            return false
        } catch {
            if error.errno == .EEXIST { return true }
            throw error
        }
    }

    /// Whether descriptors of other tasks can be fetched.
    static func fetchesDescriptors() throws(SystemCallError) -> Bool {
        let me = try TaskID.current.openHandle()
        _ = try fetchDescriptor(Int(me.number), through: me.number)
        return true
    }

    /// Whether ids of POSIX timers can be chosen (`PR_TIMER_CREATE_RESTORE_IDS`).
    static func choosesTimerIDs() throws(SystemCallError) -> Bool { try systemCall(.prctl, 77, 2) >= 0 }

    // What only a traced task could show is told by the version: a probe has no task of its own to trace.

    /// Whether seccomp can be suspended (`PTRACE_O_SUSPEND_SECCOMP`), since 4.3.
    static func suspendsSeccomp() throws(SystemCallError) -> Bool { try KernelVersion.isAtLeast(4, 3) }

    /// Whether filters can be read (`PTRACE_SECCOMP_GET_FILTER`), since 4.4.
    static func readsSeccompFilters() throws(SystemCallError) -> Bool { try KernelVersion.isAtLeast(4, 4) }

    /// Whether the registration of restartable sequences can be read, since 5.13.
    static func readsRestartableSequences() throws(SystemCallError) -> Bool { try KernelVersion.isAtLeast(5, 13) }

    /// Whether pending signals can be read without taking them, since 3.10.
    static func peeksSignals() throws(SystemCallError) -> Bool { try KernelVersion.isAtLeast(3, 10) }

    /// Whether hardware breakpoints can be set.
    static func setsBreakpoints() throws(SystemCallError) -> Bool { try KernelVersion.isAtLeast(2, 6) }
}
