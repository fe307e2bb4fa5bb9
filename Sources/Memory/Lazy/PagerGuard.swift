public import Diagnostics
public import Linux
internal import Procfs

/// Holds the userfaultfds of a pager a second time, in a process of its own.
///
/// The kernel takes pages for zeros that nobody brings any more. When a pager dies without a word its guard kills the tasks
/// first, and lets go then.
public enum PagerGuard {
    /// What the pager tells: an operation and a number.
    enum Operation {
        static let memory: Int32 = 1, dropped: Int32 = 2, task: Int32 = 3, done: Int32 = 4
    }

    /// Guards the pager at the other end of a socket.
    public static func run(_ socket: consuming Descriptor) throws(Failure) {
        let number = socket.number
        protectFromOutOfMemory()
        var memories: [Int32: Int32] = [:]
        var tasks: [TaskID] = []
        var handles: [TaskID: Int32] = [:]
        while let (operation, value) = try PagerSocket.receive((Int32, Int32).self, from: number) {
            switch operation {
            case Operation.memory:
                let received = try PagerSocket.receive(from: number)
                memories[value] = received.faults.release()
            case Operation.dropped:
                if let memory = memories.removeValue(forKey: value) { _ = try? systemCall(.close, Int(memory)) }
            case Operation.task:
                tasks.append(TaskID(value))
                handles[TaskID(value)] = Int32((try? systemCall(.pidfd_open, Int(value), 0)) ?? -1)
            default: return
            }
        }
        kill(tasks.filter { isAlive(handles[$0]) })
        throw Failure(.vanished, "the pager was killed, so the tasks whose pages it had still to bring are killed, too")
    }

    private static func isAlive(_ handle: Int32?) -> Bool {
        handle.map { (try? systemCall(.pidfd_send_signal, Int($0), 0, 0, 0)) != nil } ?? false
    }

    /// Whoever needs memory shall not take it from the one who brings it.
    static func protectFromOutOfMemory() {
        if let file = try? openFile("/proc/self/oom_score_adj", .writeOnly) {
            _ = try? writeAll(Array("-1000".utf8), to: file.number)
        }
    }

    /// Kills tasks with all their descendants, and waits until they are dead, but not for long.
    static func kill(_ tasks: [TaskID]) {
        var doomed = tasks
        var next = 0
        while next < doomed.count {
            let id = doomed[next]
            let threads = ((try? listNumbers("/proc/\(id.rawValue)/task")) ?? []).map { TaskID($0) }
            doomed += listChildren(of: id, threads: threads).filter { !doomed.contains($0) }
            next += 1
        }
        for id in doomed { _ = try? systemCall(.kill, Int(id.rawValue), 9) }
        for _ in 0..<1000 {
            let isOver = doomed.allSatisfy { id in (try? TaskStatus.read(of: id))?.isDying ?? true }
            if isOver { return }
            pause(nanoseconds: 1_000_000)
        }
    }
}

/// A pager's connection with its guard. Without one it is silent.
final class GuardLink {
    private let socket: Descriptor
    private var numbers: [ObjectIdentifier: Int32] = [:]
    private var next: Int32 = 0

    init(_ socket: consuming Descriptor) { self.socket = socket }

    private func tell(_ operation: Int32, _ value: Int32) {
        _ = try? PagerSocket.send((operation, value), to: socket.number)
    }

    func add(_ task: TaskID) { tell(PagerGuard.Operation.task, task.rawValue) }

    func add(_ memory: LazyMemory) {
        next += 1
        numbers[ObjectIdentifier(memory)] = next
        tell(PagerGuard.Operation.memory, next)
        _ = try? PagerSocket.send([memory.number], to: socket.number)
    }

    func remove(_ memory: LazyMemory) {
        guard let number = numbers.removeValue(forKey: ObjectIdentifier(memory)) else { return }
        tell(PagerGuard.Operation.dropped, number)
    }

    func finish() { tell(PagerGuard.Operation.done, 0) }
}
