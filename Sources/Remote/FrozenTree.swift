public import Diagnostics
public import Linux
internal import Procfs

/// A process whose threads all rest in their stop.
public final class FrozenProcess {
    /// The process.
    public let id: TaskID
    /// Its parent in the tree; for the root the living parent outside.
    public let parent: TaskID
    /// The leader first. Empty for a zombie.
    public internal(set) var threads: [Tracee]
    /// The stop signal of a process in a group stop.
    public internal(set) var stopSignal: Int32?
    /// Threads that a tracer's or the kernel's group stop holds, by the stop signal seen.
    public internal(set) var stoppedThreads: [TaskID: Int32] = [:]
    /// The raw exit code of a zombie.
    public let exitCode: Int32?

    init(id: TaskID, parent: TaskID, threads: [Tracee], exitCode: Int32?) {
        self.id = id
        self.parent = parent
        self.threads = threads
        self.exitCode = exitCode
    }

    /// Ourselves, as if we stood still.
    public static var current: FrozenProcess {
        FrozenProcess(id: .current, parent: .current, threads: [], exitCode: nil)
    }

    /// Whether it has ended and waits to be reaped.
    public var isZombie: Bool { exitCode != nil }
}

/// Waits, for a second at most, until tasks that were sent a stop signal have stopped: who asked for stopped tasks may look
/// at once.
public func awaitStop(of tasks: [(process: TaskID, threads: [TaskID])]) {
    let started = ContinuousClock.now
    for (process, threads) in tasks {
        for thread in threads {
            while let stat = try? TaskStat.read(of: process, thread: thread), !stat.isEnded, stat.state != 0x54,
                ContinuousClock.now - started < .seconds(1)
            {
                _ = try? systemCall(.sched_yield)
            }
        }
    }
}

/// A process tree that stands still. Must be ended with `thaw`; if we die first, the kernel lets it run on.
public struct FrozenTree: ~Copyable {
    /// How a frozen tree goes on.
    public enum Ending: String, Sendable {
        /// As it was before.
        case running
        /// Stopped, as by SIGSTOP.
        case stopped
        /// Killed.
        case killed
    }

    /// All processes, each parent before its children.
    public let processes: [FrozenProcess]
    private var armed = true

    private init(processes: [FrozenProcess]) { self.processes = processes }

    /// Stops a whole tree.
    ///
    /// New threads and children that appear meanwhile are stopped too; the tree is complete when a round finds nothing
    /// new.
    ///
    /// - Throws: a refusal (a traced task, a zombie root, no permission) or `vanished`; everything runs again then.
    public static func freeze(_ root: TaskID, deadline: ContinuousClock.Instant) throws(Failure) -> FrozenTree {
        var found: [FrozenProcess] = []
        var known: [TaskID: Int] = [:]
        do throws(Failure) {
            var queue = [(id: root, parent: TaskID(0))]
            while !queue.isEmpty {
                var next = 0
                while next < queue.count {
                    let (id, parent) = queue[next]
                    next += 1
                    guard known[id] == nil else { continue }
                    guard let process = try FrozenTree.stop(id, parent: parent, isRoot: id == root, deadline: deadline)
                    else { continue }
                    known[id] = found.count
                    found.append(process)
                    for child in FrozenTree.children(of: process) { queue.append((child, id)) }
                }
                // A child whose parent died while we looked is a child of another process of the tree now.
                queue = []
                for process in found {
                    for child in FrozenTree.children(of: process) where known[child] == nil {
                        queue.append((child, process.id))
                    }
                }
            }
        } catch {
            FrozenTree.release(found, .running)
            throw error
        }
        return FrozenTree(processes: found)
    }

    /// Stops single processes. Those that are gone are left out.
    public static func freeze(
        only processes: [TaskID], deadline: ContinuousClock.Instant
    ) throws(Failure) -> FrozenTree {
        var found: [FrozenProcess] = []
        do throws(Failure) {
            for id in processes {
                let process = try FrozenTree.stop(id, parent: TaskID(0), isRoot: false, deadline: deadline)
                if let process, !process.isZombie { found.append(process) }
            }
        } catch {
            FrozenTree.release(found, .running)
            throw error
        }
        return FrozenTree(processes: found)
    }

    private static func children(of process: FrozenProcess) -> [TaskID] {
        listChildren(of: process.id, threads: process.isZombie ? [process.id] : process.threads.map(\.id))
    }

    private static func stop(
        _ id: TaskID, parent: TaskID, isRoot: Bool, deadline: ContinuousClock.Instant
    ) throws(Failure) -> FrozenProcess? {
        guard let stat = try? TaskStat.read(of: id) else {
            if isRoot { throw Failure(.vanished, "there is no task \(id)", advice: "Check the pid given with --tree") }
            return nil
        }
        if stat.isEnded {
            if isRoot { throw Failure(.unsupported, "task \(id) is a zombie", advice: "Dump its parent instead") }
            if let threads = try? listNumbers("/proc/\(id.rawValue)/task"), threads.count > 1 {
                throw Failure(.unsupported, "the leader of task \(id) has exited while other threads live on")
            }
            return FrozenProcess(id: id, parent: parent, threads: [], exitCode: stat.exitCode)
        }
        let process = FrozenProcess(id: id, parent: isRoot ? stat.parent : parent, threads: [], exitCode: nil)
        var seen: Set<TaskID> = []
        do throws(Failure) {
            while true {
                guard ContinuousClock.now < deadline else {
                    throw Failure(
                        .denied, "task \(id) could not be stopped in time",
                        advice: "Give more time with --timeout SECONDS")
                }
                let listed = (try? listNumbers("/proc/\(id.rawValue)/task")) ?? []
                var fresh: [Tracee] = []
                for thread in withoutWorkers(listed.map { TaskID($0) }.filter { seen.insert($0).inserted }, of: id) {
                    do throws(SystemCallError) {
                        // Suspended seccomp filters can't interfere with the system calls that we run in the task.
                        fresh.append(try FrozenTree.seize(thread))
                    } catch {
                        // One that is about to be reaped is refused with EPERM.
                        let stat = try? TaskStat.read(of: id, thread: thread)
                        if error.errno == .ESRCH || stat?.isEnded ?? true { continue }
                        FrozenTree.release([fresh], .running)
                        throw refusal(thread, error)
                    }
                }
                if fresh.isEmpty { break }
                process.threads += fresh
                for tracee in fresh { _ = try? tracee.interrupt() }
                for tracee in fresh { try wait(for: tracee, of: process, deadline) }
            }
        } catch {
            FrozenTree.release([process.threads], .running)
            throw error
        }
        process.threads.removeAll { !$0.isAttached }
        guard let leader = process.threads.firstIndex(where: { $0.id == id }) else {
            FrozenTree.release([process.threads], .running)
            if let now = try? TaskStat.read(of: id), now.isEnded, process.threads.isEmpty, !isRoot {
                return FrozenProcess(id: id, parent: parent, threads: [], exitCode: now.exitCode)
            }
            if isRoot || !process.threads.isEmpty {
                throw Failure(.vanished, "task \(id) exited while it was being stopped", advice: "Try again")
            }
            return nil
        }
        if leader != 0 { process.threads.swapAt(0, leader) }
        return process
    }

    /// How many threads are worth a worker of ours.
    private static let fewThreads = 32

    private static func withoutWorkers(_ threads: [TaskID], of id: TaskID) -> [TaskID] {
        let chosen = Workers.map(
            threads.count, share: fewThreads, threads: min(Workers.count, threads.count / fewThreads)
        ) { (range) in
            threads[range].filter { $0 == id || !isWorker($0, of: id) }
        }
        return Array(chosen.joined())
    }

    /// Whether a thread is a worker of io_uring: a thread of the kernel in the process's guise. To stop it would
    /// interrupt requests.
    private static func isWorker(_ thread: TaskID, of id: TaskID) -> Bool {
        guard let name = try? readWholeFile("/proc/\(id.rawValue)/task/\(thread.rawValue)/comm"),
            name.starts(with: "iou-".utf8)
        else { return false }
        return (try? TaskStat.read(of: id, thread: thread))?.isWorker ?? false
    }

    private static func seize(_ id: TaskID) throws(SystemCallError) -> Tracee {
        do throws(SystemCallError) {
            return try Tracee.seize(id, options: TraceOptions.suspendSeccomp)
        } catch {
            // Without CAP_SYS_ADMIN, or under a seccomp filter of our own, the option is refused.
            guard error.errno == .EPERM || error.errno == .EINVAL else { throw error }
            return try Tracee.seize(id)
        }
    }

    private static func wait(
        for tracee: Tracee, of process: FrozenProcess, _ deadline: ContinuousClock.Instant
    ) throws(Failure) {
        var naps = 0
        while true {
            // A thread in uninterruptible sleep may keep us waiting, so the deadline is checked between looks.
            guard let stop = try tracee.poll() else {
                naps += 1
                if naps > 200 {
                    guard ContinuousClock.now < deadline else {
                        throw Failure(
                            .denied, "thread \(tracee.id) of task \(process.id) does not stop: it sleeps in the kernel",
                            advice: "Give more time with --timeout SECONDS")
                    }
                    pause(nanoseconds: 100_000)
                } else {
                    _ = try? systemCall(.sched_yield)
                }
                continue
            }
            switch stop {
            case .event(let signal):
                if signal != 5 {  // SIGTRAP
                    process.stopSignal = signal
                    process.stoppedThreads[tracee.id] = signal
                }
                return
            case .ended: return
            case .signal(let signal):
                // A signal was on its way when we came; it goes on, and the stop that we asked for follows.
                try attempt("stop task \(tracee.id)") { () throws(SystemCallError) in try tracee.resume(signal: signal)
                }
            case .other:
                try attempt("stop task \(tracee.id)") { () throws(SystemCallError) in try tracee.resume() }
            }
        }
    }

    private static func refusal(_ id: TaskID, _ error: SystemCallError) -> Failure {
        if let tracer = try? TaskStatus.read(of: id).tracer, tracer.rawValue != 0 {
            return Failure(
                .denied, "task \(id) is being traced by task \(tracer)", advice: "End the debugger first", cause: error)
        }
        return Failure(
            .denied, "can't take control of task \(id)",
            advice: "Run as root, or with CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE", cause: error)
    }

    private static func release(_ processes: [FrozenProcess], _ ending: Ending) {
        release(processes.map(\.threads), ending)
    }

    private static func release(_ threads: [[Tracee]], _ ending: Ending) {
        if ending == .killed {
            for process in threads {
                if let leader = process.first { _ = try? systemCall(.kill, Int(leader.id.rawValue), 9) }
            }
            // Non-leaders first: a leader's end is reported after theirs, and that of a PID namespace's first task, which is
            // the tree's root, after all others.
            for process in threads.reversed() {
                for tracee in process.dropFirst() { FrozenTree.reap(tracee) }
                if let leader = process.first { FrozenTree.reap(leader) }
            }
            return
        }
        for process in threads {
            for tracee in process where tracee.isAttached {
                if !tracee.isStopped {
                    _ = try? tracee.interrupt()
                    // One in uninterruptible sleep may not stop; the kernel lets go of it when we end.
                    for _ in 0..<FrozenTree.patience where !tracee.isStopped && tracee.isAttached {
                        if (try? tracee.poll()) == nil { pause(nanoseconds: 1_000_000) }
                    }
                }
                if tracee.isStopped { _ = try? tracee.detach() }
            }
        }
    }

    /// Milliseconds that one has to stop so that it can be let go.
    private static let patience = 100

    private static func reap(_ tracee: Tracee) {
        while tracee.isAttached {
            guard let stop = try? tracee.wait() else { return }
            if case .ended = stop { return }
        }
    }

    /// Lets the tree go on, or ends it.
    public consuming func thaw(_ ending: Ending) {
        armed = false
        if ending == .stopped {
            // SIGSTOP first: the tasks enter the group stop as soon as they are let go.
            for process in processes {
                if let leader = process.threads.first { _ = try? systemCall(.kill, Int(leader.id.rawValue), 19) }
            }
        }
        FrozenTree.release(processes, ending)
        if ending == .stopped { awaitStop(of: processes.map { ($0.id, $0.threads.map(\.id)) }) }
    }

    deinit { if armed { FrozenTree.release(processes, .running) } }
}
