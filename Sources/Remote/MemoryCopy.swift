public import Diagnostics
public import Linux
internal import Procfs

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

    /// What its parent has to reap it by, once it has ended, if that is the process itself: its number in the process's
    /// PID namespace.
    public let remains: Int32?

    /// Lets a stopped helper make the copy, and ends the helper.
    init(helper id: TaskID, code: Address) throws(Failure) {
        (self.code, remains) = (code, nil)
        let helper = try Tracee.adopt(id)
        defer { MemoryCopy.end(helper) }
        try MemoryCopy.setOptions(of: helper, TraceOptions.killOnExit | TraceOptions.clones)
        try attempt("copy memory") { () throws(SystemCallError) in try helper.resume() }
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

    /// Holds a copy that is a child of the process, which does not see it.
    ///
    /// - Parameter number: what the process calls it.
    init(child number: Int32, of process: TaskID, code: Address) throws(Failure) {
        (self.code, remains) = (code, number)
        let children = listChildren(of: process, threads: [process])
        guard let id = children.last(where: { (try? TaskStatus.read(of: $0))?.namespaceIDs.last == number }) else {
            throw Failure(.vanished, "the copy of memory can't be found")
        }
        tracee = try Tracee.adopt(id)
        do throws(Failure) {
            try MemoryCopy.setOptions(of: tracee, TraceOptions.killOnExit)
            memory = try TaskMemory(id)
        } catch {
            MemoryCopy.end(tracee)
            throw error
        }
    }

    private static func setOptions(of tracee: Tracee, _ options: Int) throws(Failure) {
        try attempt("copy memory") { () throws(SystemCallError) in
            do throws(SystemCallError) { try tracee.setOptions(options | TraceOptions.suspendSeccomp) } catch {
                guard error.errno == .EPERM || error.errno == .EINVAL else { throw error }
                try tracee.setOptions(options)
            }
        }
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
