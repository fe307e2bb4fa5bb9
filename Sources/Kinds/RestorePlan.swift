public import Diagnostics
internal import ImageMessages
public import Linux

/// One step in the birth of a process tree. Steps are done in order; each needs only what earlier ones made.
public enum BirthStep: Hashable, Sendable {
    /// The root is sown.
    case sow(TaskID)
    /// The process's memory is built. Its children come after this, so that they inherit it copy-on-write.
    case build(TaskID)
    /// `creator` clones a child.
    case clone(creator: TaskID, child: TaskID)
    /// `creator` clones a sibling: a child of its own parent (`CLONE_PARENT`), in the creator's session. That is for
    /// vanished session leaders, and for siblings that share what their parent does not.
    case cloneSibling(creator: TaskID, child: TaskID)
    /// The process becomes a session leader.
    case startSession(TaskID)
    /// `creator` clones a short-lived task that stands in for a session or group leader that is no more.
    case cloneStandIn(creator: TaskID, child: TaskID)
    /// `creator` clones a short-lived task on any pid, which clones `child` and dies, so that `child` is handed to the
    /// nearest subreaper.
    case orphan(creator: TaskID, child: TaskID)
    /// The process becomes the leader of a new group.
    case startGroup(TaskID)
    /// The process joins a group of its session.
    case joinGroup(TaskID, group: TaskID)
    /// A stand-in dies.
    case dismiss(TaskID)
}

/// How a tree is brought back, decided before anything is created. A pure function of the images.
public struct RestorePlan: Sendable {
    /// All processes, parents before children.
    public var processes: [PlannedProcess] = []
    /// How they are born.
    public var births: [BirthStep] = []
    /// Pids that stand-ins need besides those of the tree.
    public var standIns: [TaskID] = []
    /// A range that is free in every process.
    public var runway = AddressRange(0, 0)
    /// The lowest descriptor number above all that the tree uses.
    public var firstUnusedDescriptor: Int32 = 0

    /// Every pid and tid that must be free.
    public var allIDs: [TaskID] { processes.flatMap(\.threads) + standIns }

    /// An empty plan.
    public init() {}

    /// Bytes of the runway: records and buffers, and a page of code.
    public static let runwaySize: UInt64 = 16 << 20

    /// Where the runway is looked for: above small and below usual addresses.
    static let search = AddressRange(0x100_0000_0000, 0x5000_0000_0000)

    /// Plans a restore.
    ///
    /// - Parameters:
    ///   - listed: the processes in the order of the image.
    ///   - mappings: the ranges that each process's memory takes.
    /// - Throws: `corruptImage` if the tree makes no sense, `unsupported` if no order of births can produce it.
    public static func make(_ listed: [PlannedProcess], mappings: [AddressRange], shellJob: Bool) throws(Failure)
        -> RestorePlan
    {
        var plan = RestorePlan()
        plan.processes = try sorted(listed)
        plan.runway = try hole(in: mappings, size: runwaySize)
        plan.firstUnusedDescriptor =
            (plan.processes.flatMap(\.descriptors).map { Int32(clamping: $0.fd) }.max() ?? -1) &+ 1
        var births = Births(plan.processes)
        try births.plan(shellJob: shellJob)
        plan.births = births.steps
        plan.standIns = births.standIns
        return plan
    }

    /// Checks the tree and orders it parents first.
    static func sorted(_ listed: [PlannedProcess]) throws(Failure) -> [PlannedProcess] {
        var seen: Set<TaskID> = []
        for process in listed {
            guard process.id.rawValue > 0, process.threads.first == process.id,
                process.threads.count == process.cores.count
            else { throw Failure(.corruptImage, "task \(process.id) of pstree.img makes no sense") }
            for thread in process.threads where !seen.insert(thread).inserted || thread.rawValue <= 0 {
                throw Failure(.corruptImage, "the task id \(thread) is twice in pstree.img")
            }
        }
        let byID = Dictionary(uniqueKeysWithValues: listed.enumerated().map { ($1.id, $0) })
        var children: [TaskID: [Int]] = [:]
        var roots: [Int] = []
        for (index, process) in listed.enumerated() {
            guard let parent = process.parent else {
                roots.append(index)
                continue
            }
            guard byID[parent] != nil else {
                throw Failure(
                    .corruptImage, "task \(process.id) has the parent \(parent), which pstree.img does not list")
            }
            children[parent, default: []].append(index)
        }
        guard roots.count == 1 else { throw Failure(.corruptImage, "pstree.img has \(roots.count) root tasks") }
        var order: [PlannedProcess] = []
        var queue = roots
        var next = 0
        while next < queue.count {
            let process = listed[queue[next]]
            next += 1
            order.append(process)
            queue += children[process.id] ?? []
        }
        guard order.count == listed.count else {
            throw Failure(.corruptImage, "the parents in pstree.img form a circle")
        }
        return order
    }

    /// The lowest free range of a size.
    public static func hole(in taken: [AddressRange], size: UInt64) throws(Failure) -> AddressRange {
        var start = search.start.rawValue
        for range in taken.sorted(by: { $0.start < $1.start }) {
            guard range.end.rawValue > start else { continue }
            if range.start.rawValue >= start &+ size { break }
            start = (range.end.rawValue &+ pageSize &- 1) & ~(pageSize - 1)
        }
        guard start &+ size <= search.end.rawValue, start &+ size > start else {
            throw Failure(.unsupported, "no \(size) bytes of address space are free in all tasks")
        }
        return AddressRange(start, start + size)
    }
}

/// A kernel object that a process may have in common with others.
struct SharedObject: Hashable {
    enum Kind: String {
        case memory, files = "descriptor table", fs = "directories", signals = "signal dispositions"
        case undo = "undo list of semaphores"
    }
    let kind: Kind, id: UInt32
}

extension PlannedProcess {
    /// What the process can share; a zombie has nothing left.
    var objects: Set<SharedObject> {
        guard !isZombie else { return [] }
        return Set(
            [
                SharedObject(kind: .memory, id: ids.vmID), SharedObject(kind: .files, id: ids.filesID),
                SharedObject(kind: .fs, id: ids.fsID), SharedObject(kind: .signals, id: ids.sighandID),
                SharedObject(kind: .undo, id: ids.semUndoID),
            ].filter { $0.id != 0 })
    }

    /// What it has in common with another.
    func shared(with other: PlannedProcess) -> Set<SharedObject> { objects.intersection(other.objects) }
}

/// Finds an order of births that gives every process its parent, session and group.
///
/// A process is born in its creator's session and can leave it only by starting its own. So a child whose session is
/// its parent's old one comes before the parent's setsid; one whose session nobody in its line has had is cloned as a
/// sibling by a stand-in for the vanished leader; one that was handed to a subreaper is orphaned on purpose.
private struct Births {
    let processes: [PlannedProcess]
    let byID: [TaskID: PlannedProcess]
    var children: [TaskID: [TaskID]] = [:]
    var birthSession: [TaskID: TaskID] = [:]
    var steps: [BirthStep] = []
    var standIns: [TaskID] = []
    var orphans: [(TaskID, creator: TaskID)] = []
    var born: Set<TaskID> = []

    init(_ processes: [PlannedProcess]) {
        self.processes = processes
        byID = Dictionary(uniqueKeysWithValues: processes.map { ($0.id, $0) })
        for process in processes {
            if let parent = process.parent { children[parent, default: []].append(process.id) }
        }
    }

    mutating func plan(shellJob: Bool) throws(Failure) {
        guard let root = processes.first else { throw Failure(.corruptImage, "pstree.img lists no task") }
        if root.session != root.id && !shellJob {
            throw Failure(
                .denied, "the root task \(root.id) is not a session leader",
                advice: "Pass --shell-job to let the tree join the session of your shell")
        }
        // A session leader is born where its earlier children expect it. Children come after parents in the list, so
        // walking backwards sees them first.
        for process in processes.reversed() {
            if process.session != process.id {
                birthSession[process.id] = process.session
                continue
            }
            for child in children[process.id] ?? [] {
                if let wanted = birthSession[child], wanted != process.id, standInSession(of: child) == nil {
                    birthSession[process.id] = wanted
                }
            }
        }
        steps.append(.sow(root.id))
        born.insert(root.id)
        grow(root.id, inherited: root.session == root.id ? nil : root.session)
        try finishOrphans()
        try checkSharing()
        try groups(root)
        for standIn in standIns.reversed() { steps.append(.dismiss(standIn)) }
    }

    /// The session of a child that no ancestor can have given it: a session whose leader is neither among its ancestors
    /// nor the session of one of them.
    func standInSession(of child: TaskID) -> TaskID? {
        guard let process = byID[child], process.session != process.id else { return nil }
        var ancestor = process.parent.flatMap { byID[$0] }
        while let at = ancestor {
            if at.session == process.session || at.id == process.session { return nil }
            ancestor = at.parent.flatMap { byID[$0] }
        }
        return process.session
    }

    /// Gives birth to everything below a process that exists, in the session `inherited` (nil: whichever).
    mutating func grow(_ id: TaskID, inherited: TaskID?) {
        guard let process = byID[id] else { return }
        if process.isZombie {
            if process.session == process.id { steps.append(.startSession(id)) }
            return
        }
        steps.append(.build(id))
        let mine = children[id] ?? []
        var later: [TaskID] = []
        var foreign: [TaskID: [TaskID]] = [:]
        var early: [TaskID] = []
        for child in mine {
            let wanted = birthSession[child]
            if let session = standInSession(of: child) {
                foreign[session, default: []].append(child)
            } else if process.session == id, let wanted, wanted != id {
                early.append(child)
            } else {
                later.append(child)
            }
        }
        clone(early, by: process)
        if process.session == id { steps.append(.startSession(id)) }
        clone(later, by: process)
        for session in foreign.keys.sorted() {
            let members = foreign[session] ?? []
            if byID[session] != nil {
                // Its leader lives elsewhere in the tree: a grandchild of the leader, handed to this subreaper.
                for child in members { orphans.append((child, creator: session)) }
            } else if standIns.contains(session) {
                for child in members { orphans.append((child, creator: session)) }
            } else {
                steps.append(.cloneStandIn(creator: id, child: session))
                steps.append(.startSession(session))
                standIns.append(session)
                for child in members {
                    steps.append(.cloneSibling(creator: session, child: child))
                    born.insert(child)
                }
            }
        }
        for child in mine where born.contains(child) {
            grow(child, inherited: early.contains(child) ? inherited : process.session)
        }
    }

    /// Clones children that are born in the same session: one that shares more with an older sibling than with its parent
    /// is that sibling's clone.
    private mutating func clone(_ children: [TaskID], by parent: PlannedProcess) {
        let inherited = parent.objects
        var owners: [SharedObject: [(index: Int, process: PlannedProcess)]] = [:]
        for (index, id) in children.enumerated() {
            var partner: PlannedProcess?
            if let child = byID[id] {
                let objects = child.objects
                let own = objects.subtracting(inherited)
                let common = objects.intersection(inherited)
                // Only who has one of its own objects can share more with it.
                partner =
                    own.compactMap { owners[$0]?.first { $0.process.objects.isSuperset(of: common) } }
                    .min { $0.index < $1.index }?.process
                for object in own { owners[object, default: []].append((index, child)) }
            }
            steps.append(
                partner.map { .cloneSibling(creator: $0.id, child: id) } ?? .clone(creator: parent.id, child: id))
            born.insert(id)
        }
    }

    /// What processes share passes on from creator to child only, so each shared object must have one origin.
    func checkSharing() throws(Failure) {
        var creators: [TaskID: TaskID] = [:]
        for step in steps {
            if case .clone(let creator, let child) = step { creators[child] = creator }
            if case .cloneSibling(let creator, let child) = step { creators[child] = creator }
        }
        var origins: [SharedObject: TaskID] = [:]
        for process in processes where !process.isZombie {
            let inherited = creators[process.id].flatMap { byID[$0] }.map { process.shared(with: $0) } ?? []
            for object in process.objects.subtracting(inherited) {
                guard let other = origins.updateValue(process.id, forKey: object) else { continue }
                throw Failure(
                    .unsupported,
                    "task \(process.id) shares its \(object.kind.rawValue) with task \(other), which is neither its parent nor a "
                        + "sibling that can have created it", advice: "End one of them before the dump")
            }
        }
    }

    mutating func finishOrphans() throws(Failure) {
        var waiting = orphans
        while !waiting.isEmpty {
            var rest: [(TaskID, creator: TaskID)] = []
            for (child, creator) in waiting {
                guard born.contains(creator) || standIns.contains(creator) else {
                    rest.append((child, creator: creator))
                    continue
                }
                steps.append(.orphan(creator: creator, child: child))
                born.insert(child)
                grow(child, inherited: byID[child]?.session)
            }
            if rest.count == waiting.count && orphans.count == waiting.count {
                throw Failure(.unsupported, "no order of births gives task \(waiting[0].0) its session")
            }
            orphans.removeAll()
            waiting = rest
        }
    }

    mutating func groups(_ root: PlannedProcess) throws(Failure) {
        var led: [TaskID: TaskID] = [:]  // group, session
        for process in processes where process.group == process.id && process.session != process.id {
            steps.append(.startGroup(process.id))
            led[process.id] = process.session
        }
        for process in processes where process.session == process.id { led[process.id] = process.id }
        for standIn in standIns { led[standIn] = standIn }
        for process in processes where process.group != process.id {
            // The root's own group may be outside of the tree; then all its members stay in the one they are born in.
            if process.group == root.group && byID[root.group] == nil && !standIns.contains(root.group)
                && root.session != root.id
            {
                continue
            }
            if led[process.group] == nil {
                guard byID[process.group] == nil else {
                    throw Failure(
                        .corruptImage,
                        "task \(process.id) is in the group \(process.group), whose leader is in another one")
                }
                steps.append(.cloneStandIn(creator: process.id, child: process.group))
                steps.append(.startGroup(process.group))
                standIns.append(process.group)
                led[process.group] = process.session
            }
            steps.append(.joinGroup(process.id, group: process.group))
        }
    }
}
