internal import Diagnostics
internal import ImageMessages
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
    }

    private(set) var steps: [Step] = []
    /// More mounts would take too long, and no tree has them.
    private static let most = 10_000

    /// Finds the order: as it was, but what is mounted on comes before what is mounted on it, what a neighbour hides before the
    /// neighbour, and what is bound after where it is bound from.
    init(_ entries: [MntEntry]) throws(Failure) {
        let ids = Set(entries.map(\.mntID))
        guard entries.count <= MountOrder.most else {
            throw Failure(
                .unsupported, "\(entries.count) mounts are more than the \(MountOrder.most) that are restored")
        }
        guard ids.count == entries.count else { throw Failure(.corruptImage, "two mounts have one number") }
        let roots = entries.filter { !ids.contains($0.parentMntID) || $0.parentMntID == $0.mntID }
        guard roots.count == 1, let root = roots.first, Array(root.mountpoint) == [0x2f] else {
            throw Failure(.corruptImage, "the mounts have \(roots.count) roots")
        }
        steps = [Step(entry: root, origin: .root)]
        var made: Set<UInt32> = [root.mntID]
        var waiting = entries.filter { $0.mntID != root.mntID }
        while !waiting.isEmpty {
            let next = waiting.firstIndex { entry in
                made.contains(entry.parentMntID) && origin(of: entry) != nil
                    && !waiting.contains { MountOrder.hides(entry, $0) }
            }
            guard let next, let origin = origin(of: waiting[next]) else {
                let text = String(decoding: waiting[0].mountpoint, as: UTF8.self)
                throw Failure(.unsupported, "the mount \(text) can't be made from anything that the tree has")
            }
            let entry = waiting.remove(at: next)
            made.insert(entry.mntID)
            steps.append(Step(entry: entry, origin: origin))
        }
    }

    /// Whether a mount is in the way to another one beside it.
    private static func hides(_ one: MntEntry, _ other: MntEntry) -> Bool {
        one.parentMntID == other.parentMntID && one.mountpoint.count < other.mountpoint.count
            && isInside(Array(other.mountpoint), of: Array(one.mountpoint))
    }

    private func origin(of entry: MntEntry) -> Origin? {
        if entry.extMount {
            return .external(String(decoding: entry.hasExtKey ? entry.extKey : entry.root, as: UTF8.self))
        }
        let place = steps.firstIndex { step in
            guard step.entry.rootDev == entry.rootDev, !step.entry.extMount else { return false }
            return MountOrder.isInside(Array(entry.root), of: Array(step.entry.root))
        }
        if let place { return .bind(place) }
        // Mounts of one file system are one: the whole of it comes first.
        guard let kind = MountOptions.kind(entry), Array(entry.root) == [0x2f] else { return nil }
        return .fresh(kind: kind)
    }

    /// Whether a path is another one or below it.
    static func isInside(_ path: [UInt8], of other: [UInt8]) -> Bool {
        if other == [0x2f] || path == other { return true }
        return path.starts(with: other + [0x2f])
    }

    /// What a path is called from another one that it is inside of; empty for the same.
    static func rest(_ path: [UInt8], from other: [UInt8]) -> [UInt8] {
        Array(path.dropFirst(other.count).drop { $0 == 0x2f })
    }

    /// The file systems in memory whose contents are archived, each once.
    static func archived(_ entries: [MntEntry]) -> [MntEntry] {
        guard let order = try? MountOrder(entries) else { return [] }
        return order.steps.filter { $0.origin == .fresh(kind: "tmpfs") }.map(\.entry)
    }
}
