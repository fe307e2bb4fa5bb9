public import Diagnostics
public import ImageFormat
public import ImageMessages
public import Linux
public import Logging
public import Procfs
public import Remote

/// A thread of a process under dump: where the parts of a task put what they find.
public final class DumpedThread {
    /// The stopped thread.
    public let tracee: Tracee
    /// Its process.
    public unowned let process: DumpedProcess
    /// Its own /proc status (credentials, seccomp and masks are per thread).
    public let status: TaskStatus
    /// The registers at the stop. A restartable sequence that the stop interrupted is already aborted in them.
    public var registers: Registers
    /// The blocked signals at the stop.
    public let signalMask: UInt64
    /// The system call that it was in when it stopped, and its first argument.
    public let currentCall: (number: SystemCall, argument: UInt64)?
    /// The image message of the thread; the leader's also holds the process-wide `tc`.
    public var core = CoreEntry()
    /// Whether it is the process's first thread.
    public var isLeader: Bool { tracee.id == process.id }

    /// Describes a stopped thread.
    public init(
        _ tracee: Tracee, of process: DumpedProcess, status: TaskStatus, registers: Registers, signalMask: UInt64
    ) {
        self.tracee = tracee
        self.process = process
        self.status = status
        self.registers = registers
        currentCall = registers.currentCall.map { ($0, registers.arguments[0]) }
        self.signalMask = signalMask
    }
}

/// A living process under dump, with what /proc says of it.
public final class DumpedProcess {
    /// The stopped process.
    public let frozen: FrozenProcess
    /// /proc/PID/status of the leader.
    public let status: TaskStatus
    /// /proc/PID/stat of the leader.
    public let stat: TaskStat
    /// All mappings with their flags, ascending, without [vsyscall].
    public private(set) var mappings: [VMA]
    /// Whether the flags are those of a moment before the stop.
    public private(set) var isForeseen: Bool
    /// Whether it has mapped a ring of io_uring.
    public private(set) lazy var hasRings = mappings.contains { $0.isNamed("anon_inode:[io_uring]") }
    /// Its memory.
    public let memory: TaskMemory
    /// Its pidfd, for `pidfd_getfd` and kcmp-free identity.
    public let pidfd: Descriptor
    /// The leader first.
    public var threads: [DumpedThread] = []
    /// Ids of what it shares with others.
    public var ids = TaskKobjIdsEntry()
    /// Its descriptors, ascending, and which of them close on exec; empty where another process of the table has them.
    public var descriptors: [(number: Int32, closesOnExec: Bool)] = []
    /// Whether this process is the first with its descriptor table, so that the table is dumped here.
    public var ownsFiles = true
    /// The ids in files.img of its descriptors by number, once its table is dumped; empty if another process owns it.
    public var files: [Int32: UInt32] = [:]

    /// Its process id.
    public var id: TaskID { frozen.id }
    /// What the images call it.
    public var number: Int32
    /// Its name.
    public var name: String { status.name }

    /// Collects a stopped process.
    public init(
        _ frozen: FrozenProcess, status: TaskStatus, stat: TaskStat, mappings: [VMA], memory: consuming TaskMemory,
        isForeseen: Bool = false, pidfd: consuming Descriptor
    ) {
        self.isForeseen = isForeseen
        self.frozen = frozen
        number = frozen.id.rawValue
        self.status = status
        self.stat = stat
        self.mappings = mappings
        self.memory = memory
        self.pidfd = pidfd
    }

    /// Reads the flags of mappings that were foreseen while the process stands still, which takes 40 ms for each GiB.
    public func readFlags() throws(Failure) {
        guard isForeseen else { return }
        try correct(by: try VMA.read(of: id)) { (mapping) throws(Failure) in
            throw Failure(.vanished, "the mapping \(mapping.range) has gone from a stopped task")
        }
    }

    /// Takes the flags of mappings over from what was read of them at the stop.
    ///
    /// - Parameters:
    ///   - keeping: flags that are not taken over.
    ///   - missing: is told of each mapping that was not read.
    public func correct(
        by exact: [VMA], keeping: [StaticString] = [], missing: (VMA) throws(Failure) -> Void
    ) throws(Failure) {
        let known = Dictionary(exact.map { ($0.range, $0) }) { $1 }
        for (index, mapping) in mappings.enumerated() {
            guard var corrected = known[mapping.range].flatMap({ mapping.flagged(like: $0) }) else {
                try missing(mapping)
                continue
            }
            corrected.flags = corrected.flags.taking(keeping, from: mapping.flags)
            mappings[index] = corrected
        }
        isForeseen = false
    }
}

/// Dumps files on behalf of other families: mappings, the executable, directories.
public protocol FileDumper: AnyObject {
    /// Dumps the file behind a mapping, or finds it again. Returns its id in files.img.
    ///
    /// - Parameter flags: how the file must be opened to be mapped again.
    func dump(mapped mapping: VMA, of process: DumpedProcess, flags: OpenFlags) throws(Failure) -> UInt32
    /// Dumps the file behind /proc/PID/`link` (`exe`, `cwd`, `root`), or finds it again. Returns its id in files.img.
    func dump(link: String, of process: DumpedProcess) throws(Failure) -> UInt32
    /// Dumps a file that is under way to a process, or finds it again. Returns its id in files.img.
    func dump(underWay handle: consuming Descriptor, to process: DumpedProcess) throws(Failure) -> UInt32
}

/// Makes stopped processes run system calls once more, after they were cured.
public protocol SystemCallServer: AnyObject {
    /// Runs a batch in a process's leader. The process ends the batch even if we die meanwhile.
    func run(_ batch: consuming Batch, in process: DumpedProcess) throws(Failure) -> Results
}

/// One dump in progress.
public final class DumpContext {
    /// What the user allows.
    public let policy: DumpPolicy
    /// Where images are written.
    public let images: ImageDirectory
    /// The log.
    public let log: Logger
    /// Faults asked for by tests.
    public let faults: Faults
    /// Where the tree's objects are found.
    public let view = TreeView()
    /// Where the tree's sockets are; nil for our own namespace.
    public var network: TreeNetwork? {
        get { view.network }
        set { view.network = newValue }
    }
    /// Programs that know files which we don't.
    public var plugins = Plugins()
    /// Figures for the stats image.
    public var statistics = Statistics()
    /// The living processes, parents first.
    public var processes: [DumpedProcess] = []
    /// Which namespaces the tree has for itself.
    public var namespaces = TreeNamespaces()
    /// What the images call the tasks.
    public var numbers = TaskNumbers()
    /// What the images call users and groups.
    public var owners = TreeOwners()
    /// Who dumps files; set by the engine.
    public var fileDumper: (any FileDumper)?
    /// Who makes processes run system calls; set by the engine.
    public var server: (any SystemCallServer)?
    /// Everything that files.img will hold.
    public var files: [FileEntry] = []
    /// Inodes of sockets by id in files.img. No other description has the inode of a socket.
    public var socketInodes: [UInt32: UInt64] = [:]
    /// Open file descriptions met so far, and ids for files.img.
    public var fileIndex = SharingIndex(.file)
    private var memories = Memories()

    /// What a kind remembers during one dump; made at first use.
    public func state<State: AnyObject, E: Error>(
        _ type: State.Type, _ make: () throws(E) -> State
    ) throws(E) -> State {
        if let known = memories.known(type) { return known }
        let fresh = try make()
        memories.keep(fresh)
        return fresh
    }

    /// Runs a batch of system calls in a stopped process.
    public func run(_ batch: consuming Batch, in process: DumpedProcess) throws(Failure) -> Results {
        guard let server else { throw Failure(.bug, "system calls before the server") }
        return try server.run(batch, in: process)
    }

    /// Starts a dump.
    public init(policy: DumpPolicy, images: ImageDirectory, log: Logger, faults: Faults) {
        self.policy = policy
        self.images = images
        self.log = log
        self.faults = faults
    }
}

/// A piece of one task or thread, dump and restore side by side.
///
/// All parts share one batch per thread on dump, and one batch per thread and stage on restore.
public protocol TaskPart: SendableMetatype {
    /// What `ask` remembers to find its answers.
    associatedtype Question = Void
    /// Adds the system calls that the thread must make itself.
    static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question
    /// Puts what the calls answered, and what /proc and ptrace tell, into `thread.core`.
    static func dump(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext) throws(Failure)
    /// Adds the calls that the restored thread must make at a stage.
    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext) throws(Failure)
    /// What the controller does for the thread at a stage, after the thread's own calls.
    static func apply(_ thread: RestoredThread, _ stage: Stage, _ context: RestoreContext) throws(Failure)
}

extension TaskPart where Question == Void {
    /// Asks nothing.
    public static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) {}
}

extension TaskPart {
    /// Does nothing.
    public static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {}
    /// Does nothing.
    public static func apply(_ thread: RestoredThread, _ stage: Stage, _ context: RestoreContext) throws(Failure) {}
}

/// The moments of a thread's restore, in order. Each is finished in every thread of the tree before the next begins.
public enum Stage: Int, CaseIterable, Comparable, Sendable {
    /// The thread exists, its memory and descriptors are in place: names, registrations, dispositions, scheduling.
    case thread
    /// Timers are created (not armed), pending signals are queued.
    case pending
    /// Credentials, limits, dumpable, death signal, seccomp: after this the task can do no more for us than its own
    /// rights allow, so each part's order within the stage is the order of the registry.
    case seal
    /// The last moment before registers are set and the task is let go: timers start.
    case clocks

    /// Orders by time.
    public static func < (a: Stage, b: Stage) -> Bool { a.rawValue < b.rawValue }
}
