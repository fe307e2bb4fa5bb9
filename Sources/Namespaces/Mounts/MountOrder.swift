internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux

/// In which order mounts are made, and from what each.
struct MountOrder {
    /// Where a mount comes from.
    enum Origin: Equatable {
        /// The directory that becomes the root.
        case root
        /// Something outside, by its key.
        case external(String)
        /// A file system that is mounted anew.
        case fresh(kind: String)
        /// Part of a mount that is there by then, by its place in the order.
        case bind(Int)
    }

    /// One mount.
    struct Step {
        let entry: MntEntry
        let origin: Origin
        /// In which of the namespaces.
        let space: Int
        /// Whether it is what is at / there.
        var isRoot = false
        /// Whether a file system is mounted anew.
        var isFresh: Bool { if case .fresh = origin { true } else { false } }
        /// Whether it is a terminal that is bound, which is there only when somebody has opened its master end.
        var isTerminal: Bool {
            if case .bind = origin {
                entry.fstype == MountOptions.terminals && Array(entry.root) != [0x2f]
            } else {
                false
            }
        }
        /// Whether what the file system holds is archived.
        var isArchived: Bool { origin == .fresh(kind: "tmpfs") }
    }

    private(set) var steps: [Step] = []
    /// More mounts would take too long, and no tree has them.
    private static let most = 10_000

    /// Finds the order: as it was, but what is mounted on comes before what is mounted on it, what another one hides before
    /// that, and what is bound after where it is bound from.
    ///
    /// - Parameter spaces: the mounts of each namespace, that of the tree's root first.
    init(_ spaces: [[MntEntry]]) throws(Failure) {
        let count = spaces.reduce(0) { $0 + $1.count }
        guard count <= MountOrder.most else {
            throw Failure(.unsupported, "\(count) mounts are more than the \(MountOrder.most) that are restored")
        }
        let ids = Set(spaces.joined().map(\.mntID))
        guard ids.count == count else { throw Failure(.corruptImage, "two mounts have one number") }
        let all = Dictionary(uniqueKeysWithValues: spaces.joined().map { ($0.mntID, $0) })
        var roots: Set<UInt32> = []
        for entries in spaces { roots.insert(try MountOrder.root(of: entries)) }
        var made: Set<UInt32> = []
        var waiting = spaces.enumerated().flatMap { (space, entries) in entries.map { (space: space, entry: $0) } }
        if let index = waiting.firstIndex(where: { roots.contains($0.entry.mntID) }) {
            let (space, entry) = waiting.remove(at: index)
            steps = [Step(entry: entry, origin: .root, space: space, isRoot: true)]
            made = [entry.mntID]
        }
        while !waiting.isEmpty {
            let next = waiting.firstIndex { (space, entry) in
                (made.contains(entry.parentMntID) || roots.contains(entry.mntID)) && origin(of: entry, space) != nil
                    && !waiting.contains { MountOrder.hides(entry, $0.entry, all) }
            }
            guard let next, let origin = origin(of: waiting[next].entry, waiting[next].space) else {
                throw Failure(
                    .unsupported, "the mount \(waiting[0].entry.point) can't be made from anything that the tree has")
            }
            let (space, entry) = waiting.remove(at: next)
            made.insert(entry.mntID)
            steps.append(
                Step(entry: entry, origin: origin, space: space, isRoot: roots.contains(entry.mntID)))
        }
    }

    /// Where all mounts are.
    static func places(_ spaces: [[MntEntry]]) -> [Int32: TreeMounts.Place] {
        var places: [Int32: TreeMounts.Place] = [:]
        for (space, entries) in spaces.enumerated() {
            for entry in entries {
                places[Int32(bitPattern: entry.mntID)] = TreeMounts.Place(
                    namespace: space, device: entry.rootDev, root: Array(entry.root), point: Array(entry.mountpoint))
            }
        }
        return places
    }

    /// The mount at / of a namespace.
    private static func root(of entries: [MntEntry]) throws(Failure) -> UInt32 {
        let ids = Set(entries.map(\.mntID))
        let roots = entries.filter { !ids.contains($0.parentMntID) || $0.parentMntID == $0.mntID }
        guard roots.count == 1, let root = roots.first, Array(root.mountpoint) == [0x2f] else {
            throw Failure(
                .unsupported, "the tree sees \(roots.count) mounts that are on no other, and not one at /",
                advice: "Have its root be a mount, as pivot_root(2) makes it")
        }
        return root.mntID
    }

    /// Whether a mount is in the way to another one: to that itself, or to one that it is on.
    private static func hides(_ one: MntEntry, _ other: MntEntry, _ all: [UInt32: MntEntry]) -> Bool {
        var (at, left) = (other, all.count)
        while at.mntID != one.mntID, left > 0 {
            if at.parentMntID == one.parentMntID, one.mountpoint.count < at.mountpoint.count,
                isInside(Array(at.mountpoint), of: Array(one.mountpoint))
            {
                return true
            }
            guard let parent = all[at.parentMntID], parent.mntID != at.mntID else { return false }
            at = parent
            left -= 1
        }
        return false
    }

    private func origin(of entry: MntEntry, _ space: Int) -> Origin? {
        if entry.hasExtKey { return .external(String(decoding: entry.extKey, as: UTF8.self)) }
        // Images of old have it there.
        if entry.extMount { return .external(String(decoding: entry.root, as: UTF8.self)) }
        let places = steps.indices.filter { index in
            let other = steps[index].entry
            guard other.rootDev == entry.rootDev, !other.extMount, !other.hasExtKey else { return false }
            return MountOrder.isInside(Array(entry.root), of: Array(other.root))
        }
        if let place = places.first(where: { steps[$0].space == space }) ?? places.first { return .bind(place) }
        // Mounts of one file system are one: the whole of it comes first.
        guard let kind = MountOptions.kind(entry), Array(entry.root) == [0x2f] else { return nil }
        return .fresh(kind: kind)
    }

    /// Whether a path is another one or below it.
    static func isInside(_ path: [UInt8], of other: [UInt8]) -> Bool {
        if other == [0x2f] || path == other { return true }
        return path.starts(with: other + [0x2f])
    }

    /// What the root of a bind is called from where it is bound from.
    func rest(_ step: Step) -> [UInt8] {
        guard case .bind(let index) = step.origin else { return [] }
        return MountOrder.rest(Array(step.entry.root), from: Array(steps[index].entry.root))
    }

    /// Whether something is mounted in time over what a bind is bound from.
    func isHidden(_ step: Step) -> Bool {
        guard case .bind(let index) = step.origin else { return false }
        let origin = steps[index].entry
        let place = (Array(origin.mountpoint) == [0x2f] ? [] : Array(origin.mountpoint)) + [0x2f] + rest(step)
        return steps.contains { other in
            other.entry.parentMntID == origin.mntID && other.entry.mntID != step.entry.mntID
                && MountOrder.isInside(place, of: Array(other.entry.mountpoint))
        }
    }

    /// What a path is called from another one that it is inside of; empty for the same.
    static func rest(_ path: [UInt8], from other: [UInt8]) -> [UInt8] {
        Array(path.dropFirst(other.count).drop { $0 == 0x2f })
    }

    /// What has to be unmounted, in this order, to see a mount alone: what is on it or over it. What is mounted on these goes with
    /// them. A place where several are on top of each other comes as often.
    static func inTheWay(of entry: MntEntry, _ entries: [MntEntry]) -> [[UInt8]] {
        // Where the way to it goes on, from each mount above it.
        var way: [UInt32: [UInt8]] = [:]
        var last = entry
        while let parent = entries.first(where: { $0.mntID == last.parentMntID }), parent.mntID != entry.mntID,
            way[parent.mntID] == nil
        {
            way[parent.mntID] = Array(last.mountpoint)
            last = parent
        }
        return entries.filter { other in
            if other.mntID == entry.mntID || way[other.mntID] != nil { return false }
            if other.parentMntID == entry.mntID { return true }
            return way[other.parentMntID].map { isInside($0, of: Array(other.mountpoint)) } ?? false
        }.sorted { $0.mountpoint.count < $1.mountpoint.count }.flatMap { other in
            var (count, top) = (1, other)
            while let next = entries.first(where: { $0.parentMntID == top.mntID && $0.mountpoint == top.mountpoint }) {
                (count, top) = (count + 1, next)
                if count > entries.count { break }
            }
            return [[UInt8]](repeating: Array(other.mountpoint), count: count)
        }
    }
}

extension MntEntry {
    /// Where it is mounted, for messages.
    var point: String { String(decoding: mountpoint, as: UTF8.self) }

    /// Where we find that in our /proc, through a task in the namespace.
    func place(through task: TaskID) -> [UInt8] {
        Array("/proc/\(task.rawValue)/root".utf8) + Array(mountpoint)
    }
}
