internal import Diagnostics
internal import ImageMessages
internal import Logging

/// Which mounts tell each other of mounts, and in which order they become members of their groups.
struct MountGroups {
    /// One mount, which is private until then.
    struct Member {
        let mount: UInt32
        /// A mount of the group that it is in, or is to be a slave of. The kernel wants one whose root is the same or above.
        let like: UInt32?
        let isSlave: Bool, isShared: Bool
    }

    private(set) var members: [Member] = []
    /// Who is in a group already.
    private var joined: [UInt32: [MntEntry]] = [:]

    /// Slaves of mounts outside, as copies of ours that are, and what is bound out of these.
    static func outerSlaves(_ steps: [MountOrder.Step]) -> Set<UInt32> {
        let known = Set(steps.map(\.entry.sharedID))
        var found: Set<UInt32> = []
        for step in steps {
            switch step.origin {
            case .bind(let index): if found.contains(steps[index].entry.mntID) { found.insert(step.entry.mntID) }
            case .root, .external, .found:
                if step.entry.masterID != 0, !known.contains(step.entry.masterID) { found.insert(step.entry.mntID) }
            case .fresh: break
            }
        }
        return found
    }

    /// Masters before their slaves, and in a group the widest first.
    init(_ steps: [MountOrder.Step], _ log: Logger) throws(Failure) {
        let known = Set(steps.map(\.entry.sharedID).filter { $0 != 0 })
        let outer = MountGroups.outerSlaves(steps)
        var waiting: [MntEntry] = []
        for step in steps where step.entry.sharedID != 0 || step.entry.masterID != 0 {
            var entry = step.entry
            if entry.masterID != 0, !known.contains(entry.masterID) {
                // What is bound out of a slave is one, too.
                if !outer.contains(entry.mntID) {
                    log.warning("the mount \(entry.point) had its master outside of the tree, and has none now")
                }
                entry.masterID = 0
            }
            if entry.sharedID != 0 || entry.masterID != 0 { waiting.append(entry) }
        }
        waiting.sort { $0.root.count < $1.root.count }
        while let next = waiting.firstIndex(where: { $0.masterID == 0 || joined[$0.masterID] != nil }) {
            add(waiting.remove(at: next))
        }
        guard waiting.isEmpty else { throw Failure(.corruptImage, "groups of mounts are each other's masters") }
    }

    private mutating func add(_ entry: MntEntry) {
        if let peer = cover(entry, in: entry.sharedID) {
            members.append(Member(mount: entry.mntID, like: peer, isSlave: false, isShared: true))
        } else {
            let master = cover(entry, in: entry.masterID)
            members.append(
                Member(mount: entry.mntID, like: master, isSlave: master != nil, isShared: entry.sharedID != 0))
        }
        if entry.sharedID != 0 { joined[entry.sharedID, default: []].append(entry) }
    }

    private func cover(_ entry: MntEntry, in group: UInt32) -> UInt32? {
        // Without one the kernel refuses, which is better than another group.
        let found = joined[group]?.first { MountOrder.isInside(Array(entry.root), of: Array($0.root)) }
        return (found ?? joined[group]?.first)?.mntID
    }
}
