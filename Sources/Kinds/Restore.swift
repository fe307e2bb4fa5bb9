public import Diagnostics
public import ImageFormat
public import ImageMessages
public import Linux
public import Logging
public import Remote

/// A process as the images describe it.
public struct PlannedProcess: Sendable {
    /// Its pid.
    public var id: TaskID
    /// Its parent in the tree; nil for the root.
    public var parent: TaskID?
    /// Its session and process group.
    public var session: TaskID, group: TaskID
    /// Thread ids, the leader's first.
    public var threads: [TaskID]
    /// The core message of each thread, in the same order.
    public var cores: [CoreEntry]
    /// Ids of what it shares.
    public var ids: TaskKobjIdsEntry
    /// Memory layout, nil for a zombie.
    public var memory: MmEntry?
    /// Working and root directory, nil for a zombie.
    public var directories: FsEntry?
    /// The descriptor table, empty for a zombie or where another process of the same table lists it.
    public var descriptors: [FdinfoEntry] = []
    /// Whether it has ended and waits to be reaped.
    public var isZombie: Bool
    /// What its parent gets at its end.
    public var exitSignal: UInt64 {
        guard let core = cores.first, core.tc.brumate.hasExitSignal else { return 17 }
        return UInt64(core.tc.brumate.exitSignal & 0x7f)
    }

    /// Describes a process.
    public init(
        id: TaskID, parent: TaskID?, session: TaskID, group: TaskID, threads: [TaskID], cores: [CoreEntry],
        ids: TaskKobjIdsEntry, isZombie: Bool
    ) {
        self.id = id
        self.parent = parent
        self.session = session
        self.group = group
        self.threads = threads
        self.cores = cores
        self.ids = ids
        self.isZombie = isZombie
    }
}

/// A thread under restore.
public final class RestoredThread {
    /// The puppet that becomes it.
    public let puppet: Puppet
    /// Its image message.
    public let core: CoreEntry
    /// Its process.
    public unowned let process: RestoredProcess
    /// Whether it sleeps in an interrupted call that the kernel will continue.
    public var isRearmed = false
    /// What the image calls it.
    public var id: TaskID { puppet.id }
    /// What we call it.
    public var task: TaskID { puppet.tracee.id }
    /// Whether it is its process's first thread.
    public var isLeader: Bool { puppet.isLeader }

    /// Pairs a puppet with its image.
    public init(_ puppet: Puppet, core: CoreEntry, of process: RestoredProcess) {
        self.puppet = puppet
        self.core = core
        self.process = process
    }
}

/// A process under restore.
public final class RestoredProcess {
    /// What the images say.
    public let plan: PlannedProcess
    /// The puppet of the first thread.
    public let puppet: Puppet
    /// Its parent, if that is in the tree.
    public let parent: RestoredProcess?
    /// All threads once they are cloned, the leader's first.
    public var threads: [RestoredThread] = []
    /// What the image calls it, and it calls itself.
    public var id: TaskID { plan.id }
    /// What we call it.
    public var task: TaskID { puppet.task }
    /// Its name, for messages.
    public var name: String {
        guard let core = plan.cores.first, core.hasTc else { return "?" }
        return String(decoding: core.tc.comm, as: UTF8.self)
    }

    /// Pairs a puppet with its image.
    public init(_ plan: PlannedProcess, puppet: Puppet, parent: RestoredProcess?) {
        self.plan = plan
        self.puppet = puppet
        self.parent = parent
    }
}

/// The open file descriptions under restore: the controller holds each once.
public struct FileTable: ~Copyable {
    private var held: [UInt32: Int32] = [:]

    /// An empty table.
    public init() {}

    /// Takes over a description under its id in files.img.
    public mutating func add(_ id: UInt32, _ descriptor: consuming Descriptor) throws(Failure) {
        guard held[id] == nil else { throw Failure(.corruptImage, "two files with the id \(Address(UInt64(id)))") }
        held[id] = descriptor.release()
    }

    /// Our number of a description, which stays the table's.
    public borrowing func number(_ id: UInt32) throws(Failure) -> Int32 {
        guard let number = held[id] else { throw Failure(.corruptImage, "there is no file with the id \(id)") }
        return number
    }

    /// Whether a description is held.
    public borrowing func contains(_ id: UInt32) -> Bool { held[id] != nil }

    deinit {
        // Mostly they are neighbours: few calls close them all.
        var numbers = held.values.sorted()[...]
        while let first = numbers.popFirst() {
            var last = first
            while let next = numbers.first, next == last + 1 {
                last = next
                numbers.removeFirst()
            }
            _ = try? systemCall(.close_range, Int(first), Int(last), 0)
        }
    }
}

/// One restore in progress.
public final class RestoreContext {
    /// What the user allows.
    public let policy: RestorePolicy
    /// The images.
    public let images: ImageSet
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
    /// Mounts what can be mounted only when the terminals are there.
    public var lateMounts: (() throws(Failure) -> Void)?
    /// Programs that know files which we don't.
    public var plugins = Plugins()
    /// Figures for the stats image.
    public var statistics = Statistics()

    /// Mounts that once, as soon as there are terminals, and when all files are there at the latest.
    public func mountTerminals() throws(Failure) { try lateMounts.take()?() }

    /// Every file of files.img, in its order.
    public private(set) var entries: [FileEntry] = []
    private var placesByID: [UInt32: Int] = [:]
    private var placesByType: [UInt32: [Int]] = [:]

    /// Takes in the files of files.img.
    public func take(_ all: [FileEntry]) throws(Failure) {
        placesByID.reserveCapacity(all.count)
        for (place, entry) in all.enumerated() {
            guard placesByID.updateValue(place, forKey: entry.id) == nil else {
                throw Failure(.corruptImage, "files.img has two files with the id \(entry.id)")
            }
            placesByType[entry.type, default: []].append(place)
        }
        entries = all
    }

    /// Where a file is in `entries`.
    public func place(_ id: UInt32) -> Int? { placesByID[id] }

    /// The file of files.img with an id.
    public func entry(_ id: UInt32) -> FileEntry? { placesByID[id].map { entries[$0] } }

    /// All files of a type in files.img.
    public func entries(of type: FdTypes) -> [FileEntry] {
        (placesByType[UInt32(type.rawValue)] ?? []).map { entries[$0] }
    }

    /// The file descriptions made so far.
    public var files = FileTable()
    /// The tree under restore, parents first, zombies included.
    public var processes: [RestoredProcess] = []
    private var memories = Memories()

    /// What a kind remembers during one restore; made at first use.
    public func state<State: AnyObject, E: Error>(
        _ type: State.Type, _ make: () throws(E) -> State
    ) throws(E) -> State {
        if let known = memories.known(type) { return known }
        let fresh = try make()
        memories.keep(fresh)
        return fresh
    }

    /// Which namespaces the tree had for its own, with their numbers in the images.
    public var ownNamespaces: [NamespaceKind: UInt32] = [:]

    /// What the images call the tasks that exist by now.
    public var numbers = TaskNumbers()

    /// What the images call users and groups.
    public var owners = TreeOwners()

    /// Carries descriptors into puppets; set before the tree is grown.
    public var courier: Courier?

    /// Starts a restore.
    public init(policy: RestorePolicy, images: ImageSet, log: Logger, faults: Faults) {
        self.policy = policy
        self.images = images
        self.log = log
        self.faults = faults
    }

    /// The names for which a passed descriptor was used.
    private var used: Set<String> = []

    /// Passed descriptors that no file of the image needed, by the names that were given.
    public var unusedDescriptors: [String] { policy.inherited.keys.filter { !used.contains($0) }.sorted() }

    /// Whether the caller passed a descriptor for a resource (`--inherit-fd`).
    public func inherits(_ key: String) -> Bool { policy.inherited[key] != nil }

    /// Another descriptor of the description that the caller passed for a resource (`--inherit-fd`); nil if none was.
    public func inherited(_ key: @autoclosure () -> String) throws(Failure) -> Descriptor? {
        if policy.inherited.isEmpty { return nil }
        let key = key()
        guard let number = policy.inherited[key] else { return nil }
        used.insert(key)
        log.info("\(key) is our descriptor \(number)")
        return try attempt("use the descriptor \(number) that was passed for \(key)") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.fcntl, Int(number), 1030, 3)))  // F_DUPFD_CLOEXEC
        }
    }

    /// A new description of the file that the caller passed for a resource, or the passed one where the file can't be
    /// opened again (sockets).
    public func inherited(_ key: String, openedWith flags: UInt32) throws(Failure) -> Descriptor? {
        guard let passed = try inherited(key) else { return nil }
        let number = passed.number
        // What can be set later is; a fifo must not wait for its other end.
        let kept = UInt32(bitPattern: OpenFlags([.path, .directory]).rawValue) | 3
        let opened = OpenFlags(rawValue: Int32(bitPattern: flags & kept)).union([.nonBlocking, .noControllingTerminal])
        do throws(SystemCallError) {
            let made = try openFile("/proc/self/fd/\(number)", opened)
            if !opened.contains(.path) { try setStatusFlags(made.number, flags) }
            return made
        } catch {
            guard error.errno == .ENXIO else {
                throw Failure(
                    .denied, "can't open what was passed for \(key) with the flags of the image", cause: error)
            }
        }
        return passed
    }

    /// Hands copies of our descriptors to a puppet. Returns their numbers there, the lowest that were free.
    public func deliver(_ numbers: [Int32], to puppet: Puppet) throws(Failure) -> [RemoteDescriptor] {
        guard let courier else { throw Failure(.bug, "descriptors before the courier") }
        return try courier.deliver(numbers, to: puppet)
    }
}
