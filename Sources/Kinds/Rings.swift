public import ImageMessages
public import Linux

/// Mappings of an io_uring in the images of memory. Memory leaves them to the kind of file, which maps them when the
/// ring is made.
public enum RingMapping {
    /// The bit in `status` of a mapping, which is ours. `shmid` is the ring's inode.
    public static let status: UInt32 = 1 << 24

    /// Those of a ring in a process.
    public static func all(of inode: UInt64, in process: PlannedProcess) -> [VmaEntry] {
        process.memory?.vmas.filter { $0.status & status != 0 && $0.shmid == inode } ?? []
    }
}

/// Mappings of packet sockets in the images of memory, which are left to that kind of file as well.
public final class SocketMappings {
    /// The bit in `status` of a mapping, which is CRIU's. `shmid` is the socket's id in files.img.
    public static let status: UInt32 = 1 << 11

    /// The ids in files.img of packet sockets by inode, once they are dumped.
    public var ids: [UInt64: UInt32] = [:]

    /// Those of a dump.
    public static func of(_ context: DumpContext) -> SocketMappings {
        context.state(SocketMappings.self) { SocketMappings() }
    }

    /// Those of a socket in a process.
    public static func all(of id: UInt32, in process: PlannedProcess) -> [VmaEntry] {
        process.memory?.vmas.filter { $0.status & status != 0 && $0.shmid == UInt64(id) } ?? []
    }
}

/// What the threads of a tree say of their io_urings, which often answer their submitter only.
public final class RingAnswers {
    /// What a thread was answered for one ring: results, or minus an error number.
    public struct Answer: Sendable {
        /// Who asked.
        public var thread: TaskID
        /// Of an attempt to register an eventfd at no address: EEXIST for strangers, EBUSY if there is one.
        public var eventfd: Int
        /// Of an attempt to set up busy polling at no address: EINVAL for rings that poll for completions.
        public var polling: Int
        /// Of a look for completions: EEXIST if they wait for the submitter, EBADFD if the ring is not enabled yet.
        public var entered: Int
        /// Groups of buffers that it has.
        public var groups: [Int]

        /// Notes an answer.
        public init(thread: TaskID, eventfd: Int, polling: Int, entered: Int, groups: [Int]) {
            self.thread = thread
            self.eventfd = eventfd
            self.polling = polling
            self.entered = entered
            self.groups = groups
        }
    }

    private struct Ring: Hashable {
        let process: TaskID, number: Int32
    }
    private var answers: [Ring: [Answer]] = [:]
    /// Indices of rings that threads have registered for themselves.
    public var handles: [TaskID: [(thread: TaskID, index: Int)]] = [:]

    /// Those of a dump.
    public static func of(_ context: DumpContext) -> RingAnswers { context.state(RingAnswers.self) { RingAnswers() } }

    /// Takes an answer for a descriptor of a process.
    public func add(_ answer: Answer, _ number: Int32, of process: TaskID) {
        answers[Ring(process: process, number: number), default: []].append(answer)
    }

    /// What all threads of a process were answered for a descriptor.
    public func all(_ number: Int32, of process: TaskID) -> [Answer] {
        answers[Ring(process: process, number: number)] ?? []
    }
}
