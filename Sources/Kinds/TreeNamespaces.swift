public import Diagnostics
public import ImageMessages
public import Linux
internal import Procfs
internal import SystemPackage

/// A kind of namespace, by its name in /proc/PID/ns.
public enum NamespaceKind: String, CaseIterable, Sendable {
    /// Numbers of tasks.
    case pid
    /// Network devices, addresses, sockets.
    case net
    /// System V objects and POSIX message queues.
    case ipc
    /// The host's name.
    case uts
    /// Offsets of clocks.
    case time
    /// Mounts.
    case mnt
    /// Users, groups and capabilities.
    case user
    /// The root of control groups.
    case cgroup

    private var place: UInt32 { UInt32(NamespaceKind.allCases.firstIndex(of: self) ?? 0) }
    /// The number of ours in images.
    public var ownID: UInt32 { place + 1 }
    /// The number of one that the tree has for itself.
    public var treeID: UInt32 { UInt32(NamespaceKind.allCases.count) + place + 1 }
    /// `CLONE_NEW…`.
    public var flag: UInt64 {
        switch self {
        case .pid: 0x2000_0000
        case .net: 0x4000_0000
        case .ipc: 0x0800_0000
        case .uts: 0x0400_0000
        case .time: 0x80
        case .mnt: 0x2_0000
        case .user: 0x1000_0000
        case .cgroup: 0x0200_0000
        }
    }
    /// What users call it.
    public var text: String {
        switch self {
        case .net: "network"
        case .mnt: "mount"
        case .uts: "UTS"
        case .ipc: "IPC"
        case .pid: "PID"
        default: rawValue
        }
    }

    /// Does something in another namespace of the kind, the tree's. The thread is back afterwards.
    ///
    /// - Parameter namespace: a descriptor of it.
    @discardableResult
    public func inside<R>(_ namespace: Int32, _ body: () throws(Failure) -> R) throws(Failure) -> R {
        let visit = try attempt("enter the tree's \(text) namespace", advice: "This needs CAP_SYS_ADMIN") {
            () throws(SystemCallError) in try NamespaceVisit.begin(in: namespace, rawValue, flag)
        }
        let outcome = Result { () throws(Failure) in try body() }
        visit.end()
        return try outcome.get()
    }

    /// Opens the namespace that a task is in.
    public func open(of task: TaskID) throws(Failure) -> Descriptor {
        try attempt("open the \(text) namespace of task \(task)", code: .vanished) { () throws(SystemCallError) in
            try openFile("/proc/\(task.rawValue)/ns/\(rawValue)")
        }
    }

    /// Where a process has its number of such a namespace.
    public var field: WritableKeyPath<TaskKobjIdsEntry, UInt32> {
        switch self {
        case .pid: \.pidNsID
        case .net: \.netNsID
        case .ipc: \.ipcNsID
        case .uts: \.utsNsID
        case .time: \.timeNsID
        case .mnt: \.mntNsID
        case .user: \.userNsID
        case .cgroup: \.cgroupNsID
        }
    }
}

/// Which namespaces a tree has for itself. All its tasks are in the same.
public struct TreeNamespaces: Sendable {
    private let links: [NamespaceKind: String]
    /// Those that are not ours.
    public let apart: Set<NamespaceKind>

    /// Those of a tree that shares all of ours.
    public init() { (links, apart) = (TreeNamespaces.links(of: "self"), []) }

    /// Those of a running task, the root of its tree.
    public init(of root: TaskID) throws(Failure) {
        let theirs = TreeNamespaces.links(of: "\(root.rawValue)"), ours = TreeNamespaces.links(of: "self")
        guard !theirs.isEmpty else {
            throw Failure(.vanished, "the namespaces of task \(root) can't be read", advice: "Check that it lives")
        }
        links = theirs
        apart = Set(NamespaceKind.allCases.filter { theirs[$0] != ours[$0] })
    }

    private static func links(of task: String) -> [NamespaceKind: String] {
        var found: [NamespaceKind: String] = [:]
        for kind in NamespaceKind.allCases {
            if let link = try? readLink("/proc/\(task)/ns/\(kind.rawValue)") { found[kind] = link.string }
        }
        return found
    }

    /// Those that can be made anew on restore.
    public static let restorable: Set<NamespaceKind> = [.pid, .net, .ipc, .uts, .time, .mnt, .user]

    /// Refuses a tree with namespaces of its own that can't be made anew.
    public func checkRestorable(_ root: TaskID) throws(Failure) {
        guard
            let kind = NamespaceKind.allCases.first(where: {
                apart.contains($0) && !TreeNamespaces.restorable.contains($0)
            })
        else { return }
        throw Failure(
            .unsupported, "task \(root) is in another \(kind.text) namespace, which can't be dumped yet",
            advice: "Run brumate inside of the container, next to the task")
    }

    /// Compares a task with the root. Who has ended is in none. Mount namespaces may be several, if the root's is the tree's own.
    ///
    /// - Throws: a refusal of a task that is in another one.
    public func check(_ task: TaskID) throws(Failure) {
        for (kind, link) in TreeNamespaces.links(of: "\(task.rawValue)").sorted(by: {
            $0.key.rawValue < $1.key.rawValue
        })
        where links[kind] != link && !(kind == .mnt && apart.contains(.mnt)) {
            let name = (try? TaskStatus.read(of: task).name) ?? "?"
            throw Failure(
                .unsupported, "task \(task) (\(name)) is in another \(kind.text) namespace than the root of the tree",
                advice: "All tasks must be in the same one; more than one can't be dumped yet")
        }
        for kind in [NamespaceKind.pid, .time] {
            guard let own = links[kind], let next = nextLink(of: task, kind), next != own else { continue }
            throw Failure(
                .unsupported,
                "the next children of task \(task) would be in another \(kind.text) namespace than itself",
                advice: "It called unshare(2); wait until that child is there, or run without it")
        }
    }

    /// Namespaces that a single thread can go to.
    private static let ofThreads: [NamespaceKind] = [.net, .mnt, .ipc, .uts]

    /// Refuses a process one of whose threads has gone to another namespace (`setns(2)`): it would not be there again.
    public func checkThreads(of process: TaskID) throws(Failure) {
        let folder = "/proc/\(process.rawValue)"
        guard let threads = try? listNumbers("\(folder)/task"), threads.count > 1 else { return }
        for kind in TreeNamespaces.ofThreads {
            guard let own = try? readLink("\(folder)/ns/\(kind.rawValue)") else { return }
            for thread in threads where thread != process.rawValue {
                guard let link = try? readLink("\(folder)/task/\(thread)/ns/\(kind.rawValue)"), link != own else {
                    continue
                }
                let name = (try? TaskStatus.read(of: process).name) ?? "?"
                throw Failure(
                    .unsupported,
                    "thread \(thread) of task \(process) (\(name)) is in another \(kind.text) namespace than its process",
                    advice: "Try again when it is back, or end it before the dump")
            }
        }
    }

    /// The namespace that the next children of a task are born in; nil if there is none to be seen, and an empty text if it has
    /// no task yet.
    private func nextLink(of task: TaskID, _ kind: NamespaceKind) -> String? {
        do throws(SystemCallError) {
            return try readLink("/proc/\(task.rawValue)/ns/\(kind.rawValue)_for_children").string
        } catch {
            // A task that ended since has none of them.
            let lives = (try? readLink("/proc/\(task.rawValue)/ns/uts")) != nil
            return lives && error.errno == .ENOENT ? "" : nil
        }
    }

    /// Whether a name of a namespace, as its descriptors have it, is that of one that the tree is in.
    public func contains(_ name: String) -> Bool { links.values.contains(name) }

    /// The number in images of a further mount namespace of the tree.
    public static func furtherID(_ index: Int) -> UInt32 { UInt32(2 * NamespaceKind.allCases.count + index) }

    /// The number of the tree's namespace of a kind in images.
    public func id(_ kind: NamespaceKind) -> UInt32 { apart.contains(kind) ? kind.treeID : kind.ownID }

    /// Puts the numbers where a process has them.
    public func number(_ ids: inout TaskKobjIdsEntry) {
        for kind in NamespaceKind.allCases { ids[keyPath: kind.field] = id(kind) }
    }
}
