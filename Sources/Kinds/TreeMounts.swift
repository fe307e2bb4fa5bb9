public import Diagnostics
public import Linux
internal import SystemPackage

/// The mount namespaces of a tree that has one for itself: its root's, and those that other tasks of it are in.
public final class TreeMounts {
    /// One of them.
    private struct Namespace {
        /// Its number in images.
        let id: UInt32
        /// What links in /proc call it.
        let name: String
        /// Our descriptors of the directory where its paths begin, and of itself.
        var root: Int32 = -1, handle: Int32 = -1
    }

    /// A mount of the tree.
    public struct Place: Sendable {
        let namespace: Int
        let device: UInt32
        let root: [UInt8], point: [UInt8]

        /// - Parameters:
        ///   - namespace: which it is in.
        ///   - device: of its file system.
        ///   - root: what it shows of that.
        ///   - point: where it is mounted.
        public init(namespace: Int, device: UInt32, root: [UInt8], point: [UInt8]) {
            (self.namespace, self.device, self.root, self.point) = (namespace, device, root, point)
        }
    }

    private var all: [Namespace] = []
    private var places: [Int32: Place] = [:]

    init() {}

    deinit {
        for number in all.flatMap({ [$0.root, $0.handle] }) where number >= 0 {
            _ = try? systemCall(.close, Int(number))
        }
    }

    /// Adds a namespace. The first is that of the tree's root.
    ///
    /// - Parameter task: one that is in it.
    public func add(_ id: UInt32, of task: TaskID) throws(Failure) {
        all.append(Namespace(id: id, name: try TreeMounts.name(of: task)))
        let handle = try NamespaceKind.mnt.open(of: task).release()
        all[all.count - 1].handle = handle
    }

    /// Tells where the paths of the namespace begin that was added last.
    public func take(root: consuming Descriptor) { if !all.isEmpty { all[all.count - 1].root = root.release() } }

    /// Tells which mounts are in the namespaces, by their numbers in images.
    public func take(mounts: [Int32: Place]) { places = mounts }

    /// What links in /proc call the mount namespace of a task.
    private static func name(of task: TaskID) throws(Failure) -> String {
        try attempt("look at the mount namespace of task \(task)", code: .vanished) { () throws(SystemCallError) in
            try readLink("/proc/\(task.rawValue)/ns/mnt").string
        }
    }

    /// How many there are.
    public var count: Int { all.count }

    /// Where the one is in the order that has a number.
    public func index(of id: UInt32) -> Int? { all.firstIndex { $0.id == id } }

    /// Where the one is in the order that a task is in.
    public func index(of task: TaskID) throws(Failure) -> Int? {
        let name = try TreeMounts.name(of: task)
        return all.firstIndex { $0.name == name }
    }

    /// The number in images of the one that a task is in.
    public func id(of task: TaskID) throws(Failure) -> UInt32 {
        guard let index = try index(of: task) else {
            throw Failure(
                .vanished, "task \(task) went to another mount namespace right before it was stopped",
                advice: "Try again")
        }
        return all[index].id
    }

    /// Our descriptor of one.
    public func handle(_ index: Int) -> Int32 { all[index].handle }

    /// Whether a mount is in one of them.
    public func contains(_ mount: Int32) -> Bool { places[mount] != nil }

    /// Which of them a mount is in: that of the root, if it is in none.
    func namespace(of mount: Int32) -> Int { places[mount]?.namespace ?? 0 }

    /// Other mounts of a mount's file system.
    public func others(like mount: Int32) -> [Int32] {
        guard let device = places[mount]?.device else { return [] }
        return places.filter { $0.key != mount && $0.value.device == device }.map(\.key).sorted()
    }

    /// What a path on one mount is called on another one of the same file system; nil if it can't be seen there.
    public func path(_ path: [UInt8], on mount: Int32, seenOn other: Int32) -> [UInt8]? {
        if mount == other || places.isEmpty { return path }
        guard let from = places[mount], let to = places[other], from.device == to.device,
            let inside = TreeMounts.rest(of: path, below: from.point),
            let rest = TreeMounts.rest(of: TreeMounts.joined(from.root, inside), below: to.root)
        else { return nil }
        return TreeMounts.joined(to.point, rest)
    }

    /// The mount that a path of the root's namespace leads to, as far as the places of mounts tell.
    public func mount(of path: [UInt8]) -> Int32? {
        let above = places.filter { $0.value.namespace == 0 && TreeMounts.rest(of: path, below: $0.value.point) != nil }
        return above.max { $0.value.point.count < $1.value.point.count }?.key
    }

    private static func rest(of path: [UInt8], below folder: [UInt8]) -> [UInt8]? {
        if folder == [0x2f] || path == folder { return Array(path.dropFirst(folder == [0x2f] ? 0 : folder.count)) }
        return path.starts(with: folder + [0x2f]) ? Array(path.dropFirst(folder.count)) : nil
    }

    private static func joined(_ folder: [UInt8], _ rest: [UInt8]) -> [UInt8] {
        folder == [0x2f] ? (rest.isEmpty ? folder : rest) : folder + rest
    }

    /// Where the paths of one begin; nil for our own.
    func root(_ index: Int) -> Int32? {
        guard all.indices.contains(index), all[index].root >= 0 else { return nil }
        return all[index].root
    }
}
