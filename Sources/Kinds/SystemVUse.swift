public import ImageMessages
public import Linux
internal import Logging
internal import Procfs

/// `struct ipc64_perm`: what all System V objects have.
public struct SystemVPermissions: BitwiseCopyable, Sendable {
    /// The key, 0 if it is private.
    public var key: Int32 = 0
    /// Its owner and its creator.
    public var uid: UInt32 = 0, gid: UInt32 = 0, creatorUID: UInt32 = 0, creatorGID: UInt32 = 0
    /// Permission bits and flags.
    public var mode: UInt32 = 0
    private var sequence: UInt32 = 0, padding: UInt32 = 0, unused: (UInt64, UInt64) = (0, 0)

    /// All zero.
    public init() {}

    /// As images have it.
    public func entry(id: UInt32, _ owners: TreeOwners) -> IpcDescEntry {
        var entry = IpcDescEntry()
        entry.id = id
        entry.key = UInt32(bitPattern: key)
        (entry.uid, entry.gid) = (owners.user(uid), owners.group(gid))
        (entry.cuid, entry.cgid) = (owners.user(creatorUID), owners.group(creatorGID))
        entry.mode = mode
        return entry
    }

    /// Whether an object of an image can be the one that is there.
    public func matches(_ entry: IpcDescEntry) -> Bool {
        UInt32(bitPattern: key) == entry.key && creatorUID == entry.cuid && creatorGID == entry.cgid
    }

    /// Whether what can be set is as in an image.
    public func equals(_ entry: IpcDescEntry) -> Bool {
        uid == entry.uid && gid == entry.gid && mode & 0o777 == entry.mode & 0o777
    }

    /// Sets what can be set.
    public mutating func take(_ entry: IpcDescEntry) {
        (uid, gid, mode) = (entry.uid, entry.gid, entry.mode & 0o777)
    }
}

/// Who uses the System V objects of an IPC namespace, as far as the kernel tells: it names the processes that created an
/// object, or operated on it last, and those that a stop interrupted in a call name it themselves.
///
/// An object is the tree's if a task of the tree is named, and no living process outside of it. Who has ended counts for
/// nobody. Everything else is left alone: it stays where it is.
public final class SystemVUse {
    /// The number in the names of the images if the objects are in our namespace. CRIU has such images for namespaces of the
    /// tree only, of which this is never one.
    private static let namespace: UInt32 = 1

    /// The number in the names of the images that are written.
    public static func id(_ context: DumpContext) -> UInt32 {
        context.namespaces.apart.contains(.ipc) ? NamespaceKind.ipc.treeID : namespace
    }

    /// The number in the names of the images that are read.
    public static func id(_ context: RestoreContext) -> UInt32 { context.ownNamespaces[.ipc] ?? namespace }
    /// Whether the namespace is the tree's own, so that all that is there is the tree's.
    public let isWhole: Bool

    /// What the evidence says.
    public enum Verdict: Equatable, Sendable {
        /// Only the tree uses it.
        case tree
        /// The tree uses it, and so does another process, if it is known which.
        case shared(with: TaskID?)
        /// The tree is not seen to use it.
        case others
    }

    private struct Call: Hashable {
        let number: SystemCall, id: UInt32
    }

    /// All processes of the tree, zombies too.
    public let tree: Set<TaskID>
    private var interrupted: Set<Call> = []

    private init(_ tree: Set<TaskID>, _ context: DumpContext) {
        self.tree = tree
        isWhole = context.namespaces.apart.contains(.ipc)
    }

    /// That of a dump.
    public static func of(_ context: DumpContext) -> SystemVUse {
        context.state(SystemVUse.self) { SystemVUse(Set(context.processes.map(\.id)), context) }
    }

    /// Notes the tree, whose living processes are collected.
    public static func prepare(_ tree: [TaskID], _ context: DumpContext) {
        let use = context.state(SystemVUse.self) { SystemVUse(Set(tree), context) }
        use.interrupted.reserveCapacity(context.processes.count)
        for thread in context.processes.flatMap(\.threads) {
            guard let call = thread.currentCall else { continue }
            use.interrupted.insert(Call(number: call.number, id: UInt32(truncatingIfNeeded: call.argument)))
        }
    }

    /// Who uses an object.
    ///
    /// - Parameters:
    ///   - named: the processes that the kernel names; 0 for nobody.
    ///   - calls: the system calls that name such an object first.
    ///   - hasOthers: whether another process is seen to use it that the kernel does not name.
    public func verdict(_ id: UInt32, named: [Int32], calls: [SystemCall], hasOthers: Bool = false) -> Verdict {
        if isWhole { return .tree }
        let named = Set(named.filter { $0 > 0 }.map { TaskID($0) })
        guard !named.isDisjoint(with: tree) || calls.contains(where: { interrupted.contains(Call(number: $0, id: id)) })
        else { return .others }
        let other = named.subtracting(tree).sorted().first(where: SystemVUse.lives)
        return other == nil && !hasOthers ? .tree : .shared(with: other)
    }

    private static func lives(_ task: TaskID) -> Bool {
        guard task != .current, let status = try? TaskStatus.read(of: task) else { return false }
        return !status.isDying
    }

    /// Tells that an object is left alone which the tree uses.
    public static func warn(_ what: String, _ other: TaskID?, _ context: DumpContext) {
        let name = other.flatMap { try? TaskStatus.read(of: $0).name }.map { " (\($0))" } ?? ""
        let who = other.map { "task \($0)\(name)" } ?? "another task"
        context.log.warning("\(what) is used by \(who) outside of the tree as well: it is not in the image")
    }
}

/// System V objects that a restore found or made: whether what has an id is what the image means.
public struct SystemVIdentity: Sendable {
    /// Processes of the tree, and those that the image names.
    private let known: Set<Int32>

    /// For an object whose image names some processes.
    public init(_ context: RestoreContext, named: [UInt32]) {
        known = Set(context.processes.map(\.id.rawValue) + named.map { Int32(truncatingIfNeeded: $0) })
    }

    /// Whether an object is the same, and nobody outside of the tree has changed it since.
    ///
    /// - Parameters:
    ///   - changed: when the one that is there was changed last, and when the image's was.
    ///   - named: the processes that the kernel names now.
    public func isSame(changed: (now: UInt64, then: UInt64?), named: [Int32]) -> Bool {
        guard named.allSatisfy({ $0 == 0 || known.contains($0) }) else { return false }
        guard let then = changed.then, changed.now != then else { return true }
        // The tree itself may have changed it later, if it was left running.
        return changed.now > then && named.contains { $0 != 0 }
    }
}
