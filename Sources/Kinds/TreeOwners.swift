public import Diagnostics
public import ImageMessages
public import Linux

/// The users and groups of a tree in a user namespace of its own. Images, the tree's tasks and its file systems' options have
/// its numbers; the kernel tells and takes ours. In our own namespace, both are the same.
public struct TreeOwners: Sendable {
    /// A stretch of numbers.
    private struct Extent: Sendable {
        let first: UInt32, ours: UInt32, count: UInt32

        func shift(_ number: UInt32, from: UInt32, to: UInt32) -> UInt32? {
            number >= from && number - from < count ? to &+ (number - from) : nil
        }
    }

    private var users: [Extent] = [], groups: [Extent] = []
    /// Whether the tree has a user namespace of its own.
    public private(set) var isApart = false
    /// What the kernel shows for whom a namespace has no number.
    public static let nobody: UInt32 = 65534

    /// Of a tree in our user namespace.
    public init() {}

    /// Of a task in another user namespace, as /proc/PID/uid_map and gid_map show them to us.
    public init(of task: TaskID) throws(Failure) {
        isApart = true
        users = try TreeOwners.read("uid_map", of: task)
        groups = try TreeOwners.read("gid_map", of: task)
    }

    private static func read(_ name: String, of task: TaskID) throws(Failure) -> [Extent] {
        let text = try attempt("read \(name) of task \(task)") { () throws(SystemCallError) in
            String(decoding: try readWholeFile("/proc/\(task.rawValue)/\(name)"), as: UTF8.self)
        }
        return text.split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ").compactMap { UInt32($0) }
            return words.count == 3 ? Extent(first: words[0], ours: words[1], count: words[2]) : nil
        }
    }

    /// From an image.
    public init(_ entry: UsernsEntry) throws(Failure) {
        func extents(_ map: [UidGidExtent]) throws(Failure) -> [Extent] {
            guard map.count <= 340 else { throw Failure(.corruptImage, "a user namespace has too many stretches") }
            return map.map { Extent(first: $0.first, ours: $0.lowerFirst, count: $0.count) }
        }
        isApart = true
        (users, groups) = (try extents(entry.uidMap), try extents(entry.gidMap))
    }

    /// As an image has it.
    public var entry: UsernsEntry {
        func extents(_ map: [Extent]) -> [UidGidExtent] {
            map.map { extent in
                var entry = UidGidExtent()
                (entry.first, entry.lowerFirst, entry.count) = (extent.first, extent.ours, extent.count)
                return entry
            }
        }
        var entry = UsernsEntry()
        (entry.uidMap, entry.gidMap) = (extents(users), extents(groups))
        return entry
    }

    /// What uid_map and gid_map of a new namespace are to hold.
    public var maps: (users: String, groups: String) {
        func text(_ map: [Extent]) -> String { map.map { "\($0.first) \($0.ours) \($0.count)\n" }.joined() }
        return (text(users), text(groups))
    }

    private func theirs(_ number: UInt32, _ map: [Extent]) -> UInt32 {
        guard isApart, number != .max else { return number }
        for extent in map { if let found = extent.shift(number, from: extent.ours, to: extent.first) { return found } }
        return TreeOwners.nobody
    }

    private func ours(_ number: UInt32, _ map: [Extent]) -> UInt32 {
        guard isApart else { return number }
        for extent in map { if let found = extent.shift(number, from: extent.first, to: extent.ours) { return found } }
        return .max
    }

    /// What the tree calls a user of ours; `nobody` for one that it does not know.
    public func user(_ number: UInt32) -> UInt32 { theirs(number, users) }

    /// What the tree calls a group of ours.
    public func group(_ number: UInt32) -> UInt32 { theirs(number, groups) }

    /// The owner of a file, as the tree sees it.
    public func owner(of status: FileStatus) -> (user: UInt32, group: UInt32) { (user(status.uid), group(status.gid)) }

    /// Our number of a user of the tree. One that has none is -1, which leaves everything as it is in calls that change an owner.
    public func ourUser(_ number: UInt32) -> Int { Int(ours(number, users)) }

    /// Our number of a group of the tree, or -1.
    public func ourGroup(_ number: UInt32) -> Int { Int(ours(number, groups)) }

    /// Gives an open file to a user and a group of the tree (`fchown(2)`).
    public func give(_ file: Int32, to user: UInt32, _ group: UInt32) throws(SystemCallError) {
        try systemCall(.fchown, Int(file), ourUser(user), ourGroup(group))
    }

    /// The owner and the creator of a System V object in our numbers.
    public func ours(_ entry: IpcDescEntry) -> IpcDescEntry {
        var entry = entry
        (entry.uid, entry.gid) = (ours(entry.uid, users), ours(entry.gid, groups))
        (entry.cuid, entry.cgid) = (ours(entry.cuid, users), ours(entry.cgid, groups))
        return entry
    }

    /// Whether a new file of ours has this owner already.
    public func isOurs(_ user: UInt32, _ group: UInt32) -> Bool { !isApart && user == 0 && group == 0 }
}
