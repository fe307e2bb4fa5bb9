internal import CLinux
public import Diagnostics
public import Linux

/// How a thread came to a stop, from `wait4`.
public enum Stop: Equatable, Sendable {
    /// A `PTRACE_EVENT_STOP`: the resting stop of a seized thread. The signal is SIGTRAP, or the stopping signal of
    /// a group stop.
    case event(signal: Int32)
    /// Another ptrace event, by its number.
    case other(event: Int32)
    /// About to receive a signal, or a breakpoint.
    case signal(Int32)
    /// It ended, with the raw wait status.
    case ended(status: Int32)

    init(status: Int32) {
        if status & 0xff == 0x7f {
            let signal = (status >> 8) & 0xff
            let event = status >> 16
            self = event == 128 ? .event(signal: signal) : event != 0 ? .other(event: event) : .signal(signal)
        } else {
            self = .ended(status: status)
        }
    }
}

/// A thread that this process traces. All its methods are for the one thread that seized it.
public final class Tracee {
    /// The thread.
    public let id: TaskID
    /// Whether it still is traced by us.
    public internal(set) var isAttached = true
    /// Whether it rests in a stop, as far as we have seen.
    public internal(set) var isStopped = false

    init(id: TaskID) { self.id = id }

    /// Takes a thread under control without stopping it (`PTRACE_SEIZE`).
    ///
    /// - Parameter options: `PTRACE_O_*` bits.
    public static func seize(_ id: TaskID, options: Int = 0) throws(SystemCallError) -> Tracee {
        try systemCall(.ptrace, 0x4206, Int(id.rawValue), 0, options)
        return Tracee(id: id)
    }

    /// Takes over a child that was born traced (`CLONE_PTRACE`) and waits for its first stop.
    static func adopt(_ id: TaskID) throws(Failure) -> Tracee {
        let tracee = Tracee(id: id)
        guard case .event = try tracee.wait() else { throw Failure(.bug, "a new task \(id) did not stop") }
        return tracee
    }

    func ptrace(_ request: Int, _ address: Int = 0, _ data: Int = 0) throws(SystemCallError) {
        try systemCall(.ptrace, request, Int(id.rawValue), address, data)
    }

    /// Asks the thread to stop; `wait` then sees the stop (`PTRACE_INTERRUPT`).
    public func interrupt() throws(SystemCallError) { try ptrace(0x4207) }

    /// Lets it run, delivering a signal (`PTRACE_CONT`).
    public func resume(signal: Int32 = 0) throws(SystemCallError) {
        try ptrace(7, 0, Int(signal))
        isStopped = false
    }

    /// Lets a group-stopped thread stay stopped while still watched (`PTRACE_LISTEN`).
    public func listen() throws(SystemCallError) {
        try ptrace(0x4208)
        isStopped = false
    }

    /// Lets go of it (`PTRACE_DETACH`).
    public func detach(signal: Int32 = 0) throws(SystemCallError) {
        isAttached = false
        try ptrace(17, 0, Int(signal))
    }

    /// Waits for its next stop or end.
    public func wait() throws(Failure) -> Stop {
        while true {
            if let stop = try poll(0) { return stop }
        }
    }

    /// Looks for a stop or end without waiting.
    public func poll() throws(Failure) -> Stop? { try poll(1) }

    private func poll(_ flags: Int) throws(Failure) -> Stop? {
        var status: Int32 = 0
        let number = Int(id.rawValue)
        let got = try attempt("wait for task \(id)", code: .vanished) { () throws(SystemCallError) in
            try withAddress(of: &status) { (address) throws(SystemCallError) in
                try systemCall(.wait4, number, address, 0x4000_0000 | flags)
            }
        }
        if got == 0 { return nil }
        let stop = Stop(status: status)
        if case .ended = stop { isAttached = false } else { isStopped = true }
        return stop
    }

    /// The general registers (`PTRACE_GETREGSET`, `NT_PRSTATUS`).
    public func registers() throws(SystemCallError) -> Registers {
        var registers = Registers()
        try withAddress(of: &registers) { (address) throws(SystemCallError) in
            try regset(0x4204, 1, address, MemoryLayout<Registers>.size)
        }
        return registers
    }

    /// Sets the general registers.
    public func setRegisters(_ registers: Registers) throws(SystemCallError) {
        var registers = registers
        try withAddress(of: &registers) { (address) throws(SystemCallError) in
            try regset(0x4205, 1, address, MemoryLayout<Registers>.size)
        }
    }

    /// A register set as bytes, as long as the kernel has it (`PTRACE_GETREGSET`).
    public func registerSet(_ note: Int) throws(SystemCallError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 16384)
        let length = try bytes.withAddress { (address, count) throws(SystemCallError) in
            try regset(0x4204, note, address, count)
        }
        bytes.removeLast(bytes.count - length)
        return bytes
    }

    /// Sets a register set (`PTRACE_SETREGSET`).
    public func setRegisterSet(_ note: Int, _ bytes: [UInt8]) throws(SystemCallError) {
        try bytes.withConstantAddress { (address, count) throws(SystemCallError) in
            try regset(0x4205, note, address, count)
        }
    }

    @discardableResult
    private func regset(_ request: Int, _ note: Int, _ address: Int, _ count: Int) throws(SystemCallError) -> Int {
        var vector = clinux_iovec(base: UInt64(address), length: UInt64(count))
        try withAddress(of: &vector) { (vector) throws(SystemCallError) in try ptrace(request, note, vector) }
        return Int(vector.length)
    }

    /// The blocked signals (`PTRACE_GETSIGMASK`).
    public func signalMask() throws(SystemCallError) -> UInt64 {
        var mask: UInt64 = 0
        try withAddress(of: &mask) { (address) throws(SystemCallError) in try ptrace(0x420a, 8, address) }
        return mask
    }

    /// Sets the blocked signals (`PTRACE_SETSIGMASK`).
    public func setSignalMask(_ mask: UInt64) throws(SystemCallError) {
        var mask = mask
        try withAddress(of: &mask) { (address) throws(SystemCallError) in try ptrace(0x420b, 8, address) }
    }

    /// A pending queue as raw `siginfo_t`, 128 bytes each (`PTRACE_PEEKSIGINFO`).
    ///
    /// - Parameter shared: the process's queue instead of the thread's.
    public func pendingSignals(shared: Bool) throws(SystemCallError) -> [[UInt8]] {
        var queue: [[UInt8]] = []
        while true {
            var request = clinux_peeksiginfo_args(offset: UInt64(queue.count), flags: shared ? 1 : 0, count: 32)
            var room = [UInt8](repeating: 0, count: 32 * 128)
            let number = Int(id.rawValue)
            let got = try room.withAddress { (data, _) throws(SystemCallError) in
                try withAddress(of: &request) { (address) throws(SystemCallError) in
                    try systemCall(.ptrace, 0x4209, number, address, data)
                }
            }
            for index in 0..<got { queue.append(Array(room[(index * 128)..<(index * 128 + 128)])) }
            if got < 32 { return queue }
        }
    }

    /// The siginfo of the present stop (`PTRACE_GETSIGINFO`).
    public func signalInformation() throws(SystemCallError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 128)
        try bytes.withAddress { (address, _) throws(SystemCallError) in try ptrace(0x4202, 0, address) }
        return bytes
    }

    /// The restartable sequence registration (`PTRACE_GET_RSEQ_CONFIGURATION`), with address 0 if there is none.
    public func restartableSequence() throws(SystemCallError) -> (address: Address, size: UInt32, signature: UInt32) {
        var configuration = clinux_rseq_configuration()
        try withAddress(of: &configuration) { (address) throws(SystemCallError) in
            try ptrace(0x420f, MemoryLayout<clinux_rseq_configuration>.size, address)
        }
        return (Address(configuration.address), configuration.size, configuration.signature)
    }

    /// The robust list head and its length (`get_robust_list(2)`).
    public func robustList() throws(SystemCallError) -> (head: Address, length: UInt64) {
        var head: UInt64 = 0
        var length: UInt64 = 0
        let number = Int(id.rawValue)
        try withAddress(of: &head) { (head) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.get_robust_list, number, head, length)
            }
        }
        return (Address(head), length)
    }

    /// The instructions of an attached seccomp filter, newest first (`PTRACE_SECCOMP_GET_FILTER`), nil past the last.
    public func seccompFilter(_ index: Int) throws(SystemCallError) -> [UInt8]? {
        do throws(SystemCallError) {
            let number = Int(id.rawValue)
            let length = try systemCall(.ptrace, 0x420c, number, index, 0)
            var program = [UInt8](repeating: 0, count: length * 8)
            try program.withAddress { (address, _) throws(SystemCallError) in
                try systemCall(.ptrace, 0x420c, number, index, address)
            }
            return program
        } catch {
            if error.errno == .ENOENT { return nil }
            throw error
        }
    }

    /// The flags of an attached seccomp filter (`PTRACE_SECCOMP_GET_METADATA`).
    public func seccompFilterFlags(_ index: Int) throws(SystemCallError) -> UInt64 {
        var metadata: (index: UInt64, flags: UInt64) = (UInt64(index), 0)
        try withAddress(of: &metadata) { (address) throws(SystemCallError) in try ptrace(0x420d, 16, address) }
        return metadata.flags
    }

    /// Syscall user dispatch settings (`PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG`): mode, selector, offset, length.
    public func systemCallUserDispatch() throws(SystemCallError) -> [UInt64] {
        var configuration = [UInt64](repeating: 0, count: 4)
        try configuration.withAddress { (address, count) throws(SystemCallError) in try ptrace(0x4211, count, address) }
        return configuration
    }

    /// Restores syscall user dispatch (`PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG`).
    public func setSystemCallUserDispatch(_ configuration: [UInt64]) throws(SystemCallError) {
        try configuration.withConstantAddress { (address, count) throws(SystemCallError) in
            try ptrace(0x4210, count, address)
        }
    }

    /// What came with the event of the present stop (`PTRACE_GETEVENTMSG`): of a clone, the new task.
    func eventMessage() throws(SystemCallError) -> Int {
        var message = 0
        try withAddress(of: &message) { (address) throws(SystemCallError) in try ptrace(0x4201, 0, address) }
        return message
    }

    /// Lets it run to the beginning or end of its next system call (`PTRACE_SYSCALL`).
    func resumeToCall() throws(SystemCallError) {
        try ptrace(24)
        isStopped = false
    }

    /// Changes `PTRACE_O_*` options.
    public func setOptions(_ options: Int) throws(SystemCallError) { try ptrace(0x4200, 0, options) }
}

/// The `PTRACE_O_*` bits that we use.
public enum TraceOptions {
    /// The kernel kills the task when its tracer dies.
    public static let killOnExit = 0x0010_0000
    /// A stop at `clone`, and the new task is traced as well.
    static let clones = 0x8
    /// Seccomp filters don't act while we trace.
    public static let suspendSeccomp = 0x0020_0000
}
