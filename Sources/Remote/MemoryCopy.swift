public import Diagnostics
public import Linux

/// A copy of a process's memory as it was at one moment: a task that never runs the program, made by
/// `Server.copyMemory`. The kernel ends it when we end.
public final class MemoryCopy {
    private let tracee: Tracee
    /// The server's code, which the process no longer has.
    private let code: Address
    /// Its memory. It must not be read by `process_vm_readv`, which would make each page its own.
    public let memory: TaskMemory

    /// The task.
    public var id: TaskID { tracee.id }

    /// Lets a stopped helper make the copy, and ends the helper.
    init(helper id: TaskID, code: Address) throws(Failure) {
        self.code = code
        let helper = try Tracee.adopt(id)
        defer { MemoryCopy.end(helper) }
        try attempt("copy memory") { () throws(SystemCallError) in
            do throws(SystemCallError) {
                try helper.setOptions(TraceOptions.killOnExit | TraceOptions.clones | TraceOptions.suspendSeccomp)
            } catch {
                guard error.errno == .EPERM || error.errno == .EINVAL else { throw error }
                try helper.setOptions(TraceOptions.killOnExit | TraceOptions.clones)
            }
            try helper.resume()
        }
        guard case .other(event: 3) = try helper.wait() else {  // PTRACE_EVENT_CLONE
            throw Failure(.denied, "can't copy memory: the limit of processes may be reached")
        }
        let number = try attempt("copy memory") { () throws(SystemCallError) in try helper.eventMessage() }
        let tracee = try Tracee.adopt(TaskID(Int32(clamping: number)))
        do throws(Failure) { memory = try TaskMemory(tracee.id) } catch {
            MemoryCopy.end(tracee)
            throw error
        }
        self.tracee = tracee
    }

    /// Lets it close its files, which it has in common with the process until then, leave its group and session, and cleans
    /// its memory. The process may run already.
    public func detach() throws(Failure) {
        // The beginning and end of close_range and setsid.
        for _ in 0..<4 {
            try attempt("detach the copy of memory") { () throws(SystemCallError) in try tracee.resumeToCall() }
            let stop = try tracee.wait()
            guard case .signal(5) = stop else {
                throw Failure(.vanished, "the copy of memory was disturbed: \(stop)")
            }
        }
        try attempt("clean the copy of memory") { () throws(SystemCallError) in
            try memory.write([UInt8](repeating: 0, count: Code.server.count), at: code)
        }
    }

    private static func end(_ tracee: Tracee) {
        guard tracee.isAttached else { return }
        _ = try? systemCall(.kill, Int(tracee.id.rawValue), 9)
        while tracee.isAttached {
            guard let stop = try? tracee.wait() else { return }
            if case .ended = stop { return }
        }
    }

    deinit { MemoryCopy.end(tracee) }
}
