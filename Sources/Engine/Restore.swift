public import Diagnostics
internal import Files
internal import IPC
internal import ImageFormat
internal import ImageMessages
public import Kinds
public import Linux
public import Logging
internal import Memory
internal import Namespaces
internal import Network
internal import Pages
internal import Procfs
internal import Remote
public import SystemPackage
internal import Tasks

/// An order to restore a tree.
public struct RestoreRequest: Sendable {
    /// Where the images are.
    public var images: FilePath
    /// Where the images come from instead (`--stream-from`).
    public var stream: StreamPlace?
    /// What is allowed.
    public var policy = RestorePolicy()
    /// The root becomes a child of our parent instead of ours (`--restore-sibling`).
    public var asSibling = false
    /// All tasks are stopped when they are let go.
    public var leaveStopped = false
    /// A file to write the root's pid to.
    public var pidFile: FilePath?
    /// The images are compared with the hashes that they have, before any task is made (off with `--no-verify`).
    public var verifies = true
    /// Action scripts.
    public var scripts = Scripts()
    /// Where plugins are, if the user says (`--libdir`).
    public var plugins: FilePath?
    /// Connects to a pager, which brings pages while the tasks run (`--lazy-pages`). If it starts one, that must not
    /// take one of these pids.
    public var pager: (@Sendable (_ taken: Set<TaskID>) throws(Failure) -> PagerConnection)?
    /// The network namespace that the tree comes up in, instead of ours or of a new one (`--join-ns net:FILE`).
    public var joinedNetwork: FilePath?
    /// Faults asked for by tests.
    public var faults = Faults()

    /// An order with CRIU's defaults.
    public init(images: FilePath) { self.images = images }
}

/// What a restore made.
public struct RestoreOutcome: Sendable {
    /// The root task.
    public var root: TaskID
    /// Figures, also in `stats-restore`.
    public var statistics: Statistics
}

/// Restores a tree. When it returns, the tree runs.
///
/// If it throws, nothing of the tree is left.
public func restore(_ request: RestoreRequest, log: Logger) throws(Failure) -> RestoreOutcome {
    raiseDescriptorLimit()
    guard let stream = try request.stream?.receive() else {
        return try restore(request, from: try ImageSet(request.images, verifies: request.verifies), nil, log)
    }
    do throws(Failure) {
        return try restore(request, from: try stream.images(verifies: request.verifies), stream, log)
    } catch {
        stream.refuse(error)
        throw error
    }
}

private func restore(
    _ request: RestoreRequest, from images: ImageSet, _ stream: StreamReceiver?, _ log: Logger
) throws(Failure) -> RestoreOutcome {
    var policy = request.policy
    policy.isLazy = request.pager != nil
    let context = RestoreContext(policy: policy, images: images, log: log, faults: request.faults)
    defer { context.plugins.end() }
    let order = RestoreOrder(context: context, request: request)
    order.stream = stream
    do throws(Failure) {
        try context.images.checkComplete()
        // A lazy restore compares pages when they are read.
        try context.images.verify(pages: !policy.isLazy)
        return try order.run()
    } catch {
        order.abandon()
        throw error
    }
}

/// One restore: the stages of ARCHITECTURE.md, one method each.
final class RestoreOrder {
    let context: RestoreContext
    let request: RestoreRequest
    var plan = RestorePlan()
    var tree: NascentTree?
    /// Every puppet by id, stand-ins included.
    var puppets: [TaskID: Puppet] = [:]
    var processes: [TaskID: RestoredProcess] = [:]
    var madePidFile = false
    /// Where the images came from, if somebody may wait for an answer.
    var stream: StreamReceiver?
    private var apart: [NamespaceKind: UInt32] { context.ownNamespaces }
    /// What fills a new network namespace.
    private var network: NetworkRestore?
    /// What makes the other namespaces.
    private var namespaces: NamespaceRestore?
    private var isUnlocked = false

    init(context: RestoreContext, request: RestoreRequest) {
        self.context = context
        self.request = request
    }

    func run() throws(Failure) -> RestoreOutcome {
        let started = ContinuousClock.now
        context.plugins = try Plugins(in: request.plugins, order: "restore", log: context.log)
        try makePlan()
        if let pager = request.pager {
            let zombies = plan.processes.filter(\.isZombie).map(\.id)
            let connection = try pager(Set(plan.allIDs))
            let (isOurs, hasPages) = (connection.isOurs, connection.hasPages)
            try LazyRestore.begin(
                connection.socket, isOurs: isOurs, hasPages: hasPages, zombies: zombies, context)
            try LazyRestore.choose(among: plan.processes, context)
        }
        try context.faults.pass(.restorePlanned)
        try request.scripts.run(.preRestore, images: context.images.directory.number, root: nil)
        try enterNetwork()
        try context.view.inside(sow)
        try context.faults.pass(.restoreSown)
        let root = context.processes[0]
        try request.scripts.run(.setupNamespaces, images: context.images.directory.number, root: root.task)
        try context.view.inside { () throws(Failure) in try network?.fill(context) }
        try context.faults.pass(.restoreNetwork)
        try request.scripts.run(.postSetupNamespaces, images: context.images.directory.number, root: root.task)
        try context.view.inside { () throws(Failure) in
            try IPCRestore.prepare(context)
            try FileRestore.make(context)
            try grow()
        }
        context.statistics[.forking] = ContinuousClock.now - started
        try context.faults.pass(.restoreGrown)
        try context.view.inside(fill)
        try context.faults.pass(.restoreFiles)
        try context.view.inside { () throws(Failure) in try FileRestore.wire(context) }
        try context.view.inside { () throws(Failure) in try IPCRestore.restore(context) }
        try buryZombies()
        try stopChildren()
        for stage in [Stage.thread, .pending] { try perform(stage) }
        try context.view.inside { () throws(Failure) in
            try FileRestore.settle(context)
            try network?.finish(context)
        }
        try namespaces?.seal(context)
        try context.view.inside { () throws(Failure) in
            try MemoryRestore.settle(context)
            try IPCRestore.settle(context)
        }
        try writePidFile(root.task)
        try context.plugins.finish(context.processes.map { ("task", "\($0.task)") })
        try request.scripts.run(.postRestore, images: context.images.directory.number, root: root.task)
        try perform(.seal)
        try context.faults.pass(.restoreSealed)
        try request.scripts.run(.preResume, images: context.images.directory.number, root: root.task)
        if try FileRestore.hasLateLocks(context) {
            try LazyRestore.bringAll(context)
            try context.view.inside { () throws(Failure) in try FileRestore.takeLateLocks(context) }
        }
        try release()
        context.statistics[.restoring] = ContinuousClock.now - started
        try request.scripts.run(.postResume, images: context.images.directory.number, root: root.task)
        if !request.scripts.isEmpty { stream?.sayDone() }
        if request.stream == nil { writeStatistics() }
        return RestoreOutcome(root: root.task, statistics: context.statistics)
    }

    // MARK: plan

    /// Reads all images and decides everything before anything is created.
    func makePlan(checksIDs: Bool = true) throws(Failure) {
        let images = context.images
        let inventory = try images.load(.inventory, as: InventoryEntry.self)
        guard inventory.imgVersion >= 1, inventory.imgVersion <= 2 else {
            throw Failure(.unsupported, "the images are of version \(inventory.imgVersion), known are 1 and 2")
        }
        FileRestore.begin(context)
        var listed: [PlannedProcess] = []
        var mappings: [AddressRange] = []
        for entry in try images.loadAll(.processTree, as: PstreeEntry.self) {
            let process = try readProcess(entry)
            for vma in process.memory?.vmas ?? [] { mappings.append(AddressRange(vma.start, vma.end)) }
            listed.append(process)
        }
        try FileRestore.load(context)
        try loadNamespaces(listed, inventory)
        plan = try RestorePlan.make(listed, mappings: mappings, shellJob: context.policy.shellJob)
        try TaskRestore.load(context)
        try IPCRestore.load(context)
        if checksIDs, apart[.pid] == nil { try checkIDs() }
    }

    /// Finds out which namespaces the tree had for its own, and reads the images of those that are to be made.
    private func loadNamespaces(_ processes: [PlannedProcess], _ inventory: InventoryEntry) throws(Failure) {
        guard inventory.hasRootIds else { return }
        let living = processes.filter { !$0.isZombie }
        var mounts: [UInt32] = []
        for kind in NamespaceKind.allCases {
            // An image from before the kind was known has 0.
            let home = inventory.rootIds[keyPath: kind.field]
            guard let id = living.first?.ids[keyPath: kind.field], id != 0, home != 0 else { continue }
            if kind == .mnt, id != home {
                // Any task may have one.
                for other in living.map(\.ids.mntNsID) where other != id && !mounts.contains(other) {
                    mounts.append(other)
                }
            } else if let other = living.first(where: { $0.ids[keyPath: kind.field] != id }) {
                throw Failure(
                    .unsupported,
                    "task \(other.id) was in another \(kind.text) namespace than the root of the tree, which can't be restored yet"
                )
            }
            guard id != home else { continue }
            guard TreeNamespaces.restorable.contains(kind) else {
                throw Failure(
                    .unsupported,
                    "the tree was in a \(kind.text) namespace of its own, which can't be restored yet")
            }
            context.ownNamespaces[kind] = id
        }
        if let id = apart[.net], request.joinedNetwork == nil { network = try NetworkRestore(id, context) }
        if apart[.pid] != nil { context.numbers.part() }
        namespaces = try NamespaceRestore(apart, mounts: mounts, context)
    }

    /// Finds or makes the tree's network namespace. Our thread stays outside.
    private func enterNetwork() throws(Failure) {
        if let path = request.joinedNetwork {
            context.network = try TreeNetwork(at: path)
            guard apart[.net] != nil, FileRestore.needsOpenNetwork(context) else { return }
            try context.view.inside { () throws(Failure) in try FileRestore.lockConnections(context) }
            try unlockNetwork()
        } else if apart[.net] != nil, apart[.user] == nil {
            // That of another user namespace is made from within.
            context.network = try TreeNetwork.make()
        }
    }

    /// Takes back the lock of the dump, which is where the tree was. A new namespace has none.
    private func unlockNetwork() throws(Failure) {
        guard apart[.net] != nil else { return FileRestore.unlockNetwork(context, isWhole: false) }
        guard request.joinedNetwork != nil, !isUnlocked else { return }
        isUnlocked = true
        try context.view.inside { () throws(Failure) in FileRestore.unlockNetwork(context, isWhole: true) }
        do throws(Failure) {
            try request.scripts.run(
                .networkUnlock, images: context.images.directory.number, root: context.processes.first?.task)
        } catch { context.log.warning("\(error)") }
    }

    func readProcess(_ entry: PstreeEntry) throws(Failure) -> PlannedProcess {
        let images = context.images
        let id = Int32(bitPattern: entry.pid)
        let leader = try images.load(.core(id), as: CoreEntry.self)
        guard leader.hasTc else { throw Failure(.corruptImage, "core-\(id).img has no process-wide part") }
        // TASK_DEAD (2) and zombies (6) of the format have nothing but an exit code.
        let isZombie = leader.tc.taskState == 2 || leader.tc.taskState == 6
        var threads = entry.threads.map { TaskID(Int32(bitPattern: $0)) }
        if isZombie { threads = [TaskID(id)] }
        var cores = [leader]
        for thread in threads.dropFirst() { cores.append(try images.load(.core(thread.rawValue), as: CoreEntry.self)) }
        var process = PlannedProcess(
            id: TaskID(id), parent: entry.ppid == 0 ? nil : TaskID(Int32(bitPattern: entry.ppid)),
            session: TaskID(Int32(bitPattern: entry.sid)), group: TaskID(Int32(bitPattern: entry.pgid)),
            threads: threads,
            cores: cores, ids: TaskKobjIdsEntry(), isZombie: isZombie)
        if isZombie { return process }
        process.ids = try images.load(.ids(id), as: TaskKobjIdsEntry.self)
        process.memory = try images.load(.memory(id), as: MmEntry.self)
        process.directories = try images.load(.directories(id), as: FsEntry.self)
        process.descriptors = try images.loadAll(.descriptors(process.ids.filesID), as: FdinfoEntry.self)
        return process
    }

    /// How long the dead may take to be reaped by their parent, often init; and any holder to show that it is dying.
    private static let reapingTime = Duration.seconds(10), graceTime = Duration.milliseconds(100)

    /// Finds pids that are taken, and by whom, before anything is created.
    func checkIDs() throws(Failure) {
        let started = ContinuousClock.now
        for id in plan.allIDs {
            while let holder = try? TaskStatus.read(of: id) {
                let waited = ContinuousClock.now - started
                guard waited < (holder.isDying ? RestoreOrder.reapingTime : RestoreOrder.graceTime) else {
                    throw Failure(
                        .conflict, "the pid \(id) is taken by another task (\(holder.name))",
                        advice: "End that task, or restore into a new pid namespace")
                }
                pause(nanoseconds: 500_000)
            }
        }
    }

    // MARK: sow

    func sow() throws(Failure) {
        var number = max(plan.firstUnusedDescriptor, 3)
        while isOpen(number) { number += 1 }
        context.courier = try Courier(at: number)
        let tree = try NascentTree(runway: plan.runway)
        self.tree = tree
        let root = plan.processes[0]
        let puppet: Puppet
        if let namespaces, apart[.user] != nil {
            guard !request.asSibling else {
                throw Failure(
                    .unsupported, "a tree in a user namespace of its own can't become a sibling yet",
                    advice: "Leave --restore-sibling out")
            }
            // A task that makes the user namespace, and the root in it, but is not of the tree.
            let carrier = try tree.sow(nil)
            try during(.step("the user namespace of the tree")) { () throws(Failure) in
                try namespaces.enterUsers(carrier, context)
            }
            puppet = try tree.replant(root.id, from: carrier)
        } else {
            let parent: UInt64 = request.asSibling ? 0x8000 : 0
            puppet = try tree.sow(root.id, flags: parent | (apart[.pid] == nil ? 0 : NamespaceKind.pid.flag))
        }
        puppets[root.id] = puppet
        add(root, puppet, inherits: nil)
        // The courier's socket stays; everything else that we leaked into the seed goes.
        var batch = Batch()
        if number > 0 {
            batch.add(.close_range, .value(0), .value(Int(number) - 1), .value(0), doing: "close descriptors")
        }
        batch.add(.close_range, .value(Int(number) + 1), .value(Int(Int32.max)), .value(0), doing: "close descriptors")
        // While the tree grows, stand-ins must vanish without a trace.
        let ignore = batch.place(value: (UInt64(1), UInt64(0), UInt64(0), UInt64(0)))
        batch.add(.rt_sigaction, .value(17), .buffer(ignore), .value(0), .value(8), doing: "ignore SIGCHLD")
        try puppet.run(batch)
        try during(.step("the namespaces of the tree")) { () throws(Failure) in
            try namespaces?.make(in: puppet, context)
        }
    }

    private func isOpen(_ number: Int32) -> Bool { (try? systemCall(.fcntl, Int(number), 1)) != nil }

    private func add(_ plan: PlannedProcess, _ puppet: Puppet, inherits: RestoredProcess?) {
        let process = RestoredProcess(plan, puppet: puppet, parent: inherits)
        processes[plan.id] = process
        context.processes.append(process)
        context.numbers.note(puppet.task, as: plan.id.rawValue)
    }

    // MARK: grow

    func grow() throws(Failure) {
        try MemoryRestore.prepare(plan.processes, context)
        let byID = Dictionary(uniqueKeysWithValues: plan.processes.map { ($0.id, $0) })
        for step in plan.births {
            switch step {
            case .sow: break
            case .build(let id):
                guard let process = processes[id] else { throw Failure(.bug, "no process \(id)") }
                try during(.restoring(id, process.name)) { () throws(Failure) in
                    try MemoryRestore.build(process, context)
                }
            case .clone(let creator, let child):
                guard let planned = byID[child] else { throw Failure(.bug, "no process \(child)") }
                try birth(planned, by: creator, flags: sharing(planned, with: creator), inherits: processes[creator])
            case .cloneSibling(let creator, let child):
                guard let planned = byID[child] else { throw Failure(.bug, "no process \(child)") }
                let flags = sharing(planned, with: creator)
                // Its memory is the creator's, or as the parent's was when the creator was born.
                let origin = flags & 0x100 != 0 ? creator : planned.parent
                try birth(planned, by: creator, flags: flags | 0x8000, inherits: origin.flatMap { processes[$0] })
            case .cloneStandIn(let creator, let child):
                let puppet = try self.puppet(creator).clone([CloneRequest(id: child)])
                for made in puppet { puppets[made.id] = made }
            case .startSession(let id):
                try call(id, .setsid, doing: "start a session")
                if let leader = processes[id], !leader.plan.isZombie {
                    try during(.restoring(id, leader.name)) { () throws(Failure) in
                        try FileRestore.sessionStarted(by: leader, context)
                    }
                }
            case .startGroup(let id):
                try call(id, .setpgid, 0, 0, doing: "start a process group")
            case .joinGroup(let id, let group):
                try call(id, .setpgid, 0, Int(group.rawValue), doing: "join a process group")
            case .orphan(let creator, let child):
                guard let planned = byID[child], let parent = planned.parent else {
                    throw Failure(.bug, "no process \(child)")
                }
                try orphan(planned, from: creator, to: parent)
            case .dismiss(let id):
                try dismiss(id)
            }
        }
        try FileRestore.grown(context)
        try context.faults.pass(.restoreMemory)
    }

    private func puppet(_ id: TaskID) throws(Failure) -> Puppet {
        guard let puppet = puppets[id] else { throw Failure(.bug, "no task \(id)") }
        return puppet
    }

    private func call(_ id: TaskID, _ call: SystemCall, _ a: Int = 0, _ b: Int = 0, doing: StaticString) throws(Failure)
    {
        let puppet = try puppet(id)
        try during(.restoring(id, processes[id]?.name ?? "stand-in")) { () throws(Failure) in
            var batch = Batch()
            batch.add(call, .value(a), .value(b), doing: doing)
            try puppet.run(batch)
        }
    }

    /// `CLONE_*` bits for what a child shares with its creator.
    private func sharing(_ child: PlannedProcess, with creator: TaskID) -> UInt64 {
        guard !child.isZombie, let ids = processes[creator]?.plan.ids, ids.hasVmID else { return 0 }
        var flags: UInt64 = 0
        if ids.vmID == child.ids.vmID {
            flags |= 0x100
            if ids.sighandID == child.ids.sighandID { flags |= 0x800 }
        }
        if ids.filesID == child.ids.filesID { flags |= 0x400 }
        if ids.fsID == child.ids.fsID { flags |= 0x200 }
        if ids.hasSemUndoID, ids.semUndoID == child.ids.semUndoID { flags |= 0x40000 }
        return flags
    }

    private func birth(_ planned: PlannedProcess, by creator: TaskID, flags: UInt64, inherits: RestoredProcess?)
        throws(Failure)
    {
        try during(
            .restoring(planned.id, planned.cores.first.map { String(decoding: $0.tc.comm, as: UTF8.self) } ?? "?")
        ) {
            () throws(Failure) in
            let request = CloneRequest(id: planned.id, flags: flags, exitSignal: planned.exitSignal)
            for made in try puppet(creator).clone([request]) {
                puppets[made.id] = made
                add(planned, made, inherits: inherits)
                try enterMounts(planned, made)
            }
        }
    }

    private func enterMounts(_ planned: PlannedProcess, _ puppet: Puppet) throws(Failure) {
        if !planned.isZombie { try namespaces?.enterMounts(puppet, planned.ids.mntNsID, context) }
    }

    /// A grandchild of `creator` whose parent dies at once, so that it is handed to the subreaper `parent`.
    private func orphan(_ planned: PlannedProcess, from creator: TaskID, to parent: TaskID) throws(Failure) {
        var free = TaskID(planned.id.rawValue &+ 1)
        let taken = Set(plan.allIDs)
        func isTaken(_ id: TaskID) -> Bool {
            if taken.contains(id) { return true }
            return apart[.pid] == nil && (try? readWholeFile("/proc/\(id.rawValue)/comm")) != nil
        }
        while isTaken(free) { free.rawValue += 1 }
        var batch = Batch()
        batch.add(.prctl, .value(36), .value(1), doing: "become a subreaper")
        _ = try puppet(parent).run(batch)
        for middle in try puppet(creator).clone([CloneRequest(id: free)]) {
            puppets[free] = middle
            for made in try middle.clone([CloneRequest(id: planned.id)]) {
                puppets[made.id] = made
                add(planned, made, inherits: processes[creator])
                try enterMounts(planned, made)
            }
            try dismiss(free)
        }
        // The final setting of the attribute comes with the parent's own state.
        var back = Batch()
        back.add(.prctl, .value(36), .value(0), doing: "stop being a subreaper")
        _ = try puppet(parent).run(back)
    }

    private func dismiss(_ id: TaskID) throws(Failure) {
        let puppet = try puppet(id)
        try attempt("end a stand-in") { () throws(SystemCallError) in
            try systemCall(.kill, Int(puppet.task.rawValue), 9)
        }
        while puppet.tracee.isAttached { _ = try puppet.tracee.wait() }
        puppets[id] = nil
    }

    // MARK: fill

    /// Final memory attributes, threads, directories, descriptors: some of these refer to threads.
    func fill() throws(Failure) {
        for process in context.processes where !process.plan.isZombie {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                try MemoryRestore.finish(process, context)
                try cloneThreads(process)
            }
        }
        try FileRestore.fill(context)
    }

    private func cloneThreads(_ process: RestoredProcess) throws(Failure) {
        let cores = process.plan.cores
        process.threads = [RestoredThread(process.puppet, core: cores[0], of: process)]
        let ids = process.plan.threads.dropFirst()
        guard !ids.isEmpty else { return }
        // VM, FS, FILES, SIGHAND, THREAD, SYSVSEM
        let flags: UInt64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000
        let made = try process.puppet.clone(ids.map { CloneRequest(id: $0, flags: flags) })
        for (puppet, core) in zip(made, cores.dropFirst()) {
            puppets[puppet.id] = puppet
            context.numbers.note(puppet.tracee.id, as: puppet.id.rawValue)
            process.threads.append(RestoredThread(puppet, core: core, of: process))
        }
    }

    // MARK: seal

    /// One batch per thread, then what the controller does from outside.
    func perform(_ stage: Stage) throws(Failure) {
        for process in context.processes where !process.plan.isZombie {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                for thread in process.threads {
                    try during(.thread(thread.id)) { () throws(Failure) in
                        try TaskRestore.perform(stage, thread, context)
                    }
                }
            }
        }
    }

    /// Zombies end with their code, and their parents are told nothing: what was pending comes from the image.
    func buryZombies() throws(Failure) {
        let zombies = context.processes.filter(\.plan.isZombie)
        let parents = Set(zombies.compactMap(\.plan.parent))
        for process in context.processes where parents.contains(process.id) {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                try TaskRestore.expectZombies(process)
            }
        }
        for process in zombies {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                try TaskRestore.bury(process)
                puppets[process.id] = nil
            }
        }
        for process in context.processes where parents.contains(process.id) {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                try TaskRestore.forgetChildren(process)
            }
        }
    }

    /// Children of whose stop their parents know are stopped before there is anyone to be told.
    private func stopChildren() throws(Failure) {
        for process in context.processes where TaskRestore.isStoppedAndTold(process) {
            guard let parent = process.plan.parent.flatMap({ processes[$0] }) else { continue }
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                try TaskRestore.stop(process, toldTo: parent)
            }
        }
    }

    // MARK: release

    func release() throws(Failure) {
        let living = context.processes.filter { !$0.plan.isZombie }
        for process in living {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                for thread in process.threads { try TaskRestore.perform(.clocks, thread, context) }
                for thread in process.threads { try TaskRestore.rearm(thread) }
                // Processes that share memory leave the runway once, with the last of them.
                let shares = living.contains { $0.plan.ids.vmID == process.plan.ids.vmID && $0.id != process.id }
                if !shares || living.last(where: { $0.plan.ids.vmID == process.plan.ids.vmID })?.id == process.id {
                    try process.puppet.leaveRunway()
                }
            }
        }
        for process in living {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                for thread in process.threads { try TaskRestore.setFinalState(thread) }
            }
        }
        try unlockNetwork()
        try context.view.inside { () throws(Failure) in try FileRestore.start(context) }
        try LazyRestore.check(context)
        // The tasks have their own: with ours, what they close would not be closed.
        context.files = FileTable()
        try letLive(living.flatMap(\.threads).map(\.puppet.tracee))
        // From here on nothing can fail any more but by a task's death.
        for process in living where !TaskRestore.isStoppedAndTold(process) {
            if let signal = TaskRestore.stopSignal(of: process) ?? (request.leaveStopped ? 19 : nil) {
                if TaskRestore.hasPendingSignals(process) {
                    TaskRestore.stop(process, by: signal)
                } else {
                    _ = try? systemCall(.kill, Int(process.task.rawValue), Int(signal))
                }
            }
        }
        for process in living {
            for thread in process.threads.dropFirst() { _ = try? thread.puppet.tracee.detach() }
            _ = try? process.puppet.tracee.detach()
        }
        LazyRestore.finish(context)
        if request.leaveStopped { awaitStop(of: living.map { ($0.task, $0.threads.map(\.task)) }) }
    }

    /// The point of no return: until here all tasks die with us, from here on all live without us.
    ///
    /// A task that stands in the stop of a breakpoint would die of it with us all the same, so each goes over to the
    /// resting stop first, in which it has not run a single instruction. Taking back the kernel's order to kill them is one
    /// short call for each.
    private func letLive(_ tracees: [Tracee]) throws(Failure) {
        for tracee in tracees {
            try attempt("bring task \(tracee.id) to rest") { () throws(SystemCallError) in
                try tracee.interrupt()
                try tracee.resume()
            }
        }
        for tracee in tracees {
            guard case .event = try tracee.wait() else {
                throw Failure(.vanished, "task \(tracee.id) was disturbed before it was let go", advice: "Try again")
            }
        }
        try stream?.awaitGo()
        try attempt("let the tree live") { () throws(SystemCallError) in
            for tracee in tracees { try tracee.setOptions(0) }
        }
        try context.faults.pass(.restoreReleasing)
        // A script that can still fail would take the tree back.
        if request.scripts.isEmpty { stream?.sayDone() }
    }

    // MARK: ending

    func writePidFile(_ root: TaskID) throws(Failure) {
        guard let path = request.pidFile else { return }
        try attempt("write the pid file \(path.string)", code: .conflict, advice: "Remove an older one first") {
            () throws(SystemCallError) in
            let file = try openFile(path, [.writeOnly, .create, .exclusive], mode: 0o600)
            try writeAll(Array("\(root.rawValue)".utf8), to: file.number)
        }
        madePidFile = true
    }

    func writeStatistics() {
        // The figures are for information; a read-only image directory must not fail the restore.
        guard let folder = try? ImageDirectory(request.images) else { return }
        try? folder.write(.restoreStatistics, [statisticsEntry(restore: context.statistics)])
        try? folder.writeOut()
    }

    /// Nothing of the tree may be left.
    func abandon() {
        try? context.view.inside { () throws(Failure) in network?.abandon(context) }
        // Orphans become ours, so that their pids are free when we end: an init may take its time.
        _ = try? systemCall(.prctl, 36, 1, 0, 0, 0)  // PR_SET_CHILD_SUBREAPER
        if let root = tree?.root { _ = try? systemCall(.kill, Int(root.task.rawValue), 9) }
        for puppet in puppets.values where puppet.isLeader { _ = try? systemCall(.kill, Int(puppet.task.rawValue), 9) }
        for process in context.processes {
            for thread in process.threads.dropFirst() {
                while thread.puppet.tracee.isAttached, (try? thread.puppet.tracee.wait()) != nil {}
            }
        }
        // The first task of a PID namespace ends after all others there.
        for puppet in puppets.values where puppet !== tree?.root {
            while puppet.tracee.isAttached, (try? puppet.tracee.wait()) != nil {}
        }
        if let root = tree?.root { while root.tracee.isAttached, (try? root.tracee.wait()) != nil {} }
        for puppet in puppets.values where puppet.isLeader {
            _ = try? systemCall(.wait4, Int(puppet.task.rawValue), 0, 0x4000_0000, 0)  // __WALL
        }
        try? context.view.inside { () throws(Failure) in FileRestore.abandon(context) }
        MemoryRestore.abandon(context)
        IPCRestore.abandon(context)
        if madePidFile, let path = request.pidFile {
            _ = try? removeName(path)
        }
    }
}
