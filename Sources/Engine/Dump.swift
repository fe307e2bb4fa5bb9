public import Diagnostics
internal import Files
internal import IPC
public import ImageFormat
internal import ImageMessages
public import Kinds
public import Linux
public import Logging
internal import Memory
internal import Namespaces
internal import Network
internal import Pages
internal import Procfs
public import Remote
public import SystemPackage
internal import Tasks

/// An order to dump a tree.
public struct DumpRequest: Sendable {
    /// The root of the tree.
    public var root: TaskID
    /// Where the images go.
    public var images: FilePath
    /// What is allowed.
    public var policy = DumpPolicy()
    /// What becomes of the tree after a successful dump.
    public var afterwards = FrozenTree.Ending.killed
    /// The images are on the disk before the dump counts as successful (off with `--no-sync`).
    public var isSynced = true
    /// Note from now on which pages are written, for the next dump (`--track-mem`).
    public var tracksMemory = false
    /// The images of the last dump of this tree, relative to the new ones (`--prev-images-dir`).
    public var previous: FilePath?
    /// The tree goes on before its pages are written, from a copy (`--live`). It is left running.
    public var isLive = false
    /// The images tell that pages were read, not spliced (`--pre-dump-mode read`).
    public var readsPages = false
    /// Pages that these images have anew are taken out of the previous ones (`--auto-dedup`).
    public var deduplicates = false
    /// How page data is compressed (`--compress`); nil for not at all, as CRIU wants it.
    public var compression: Compression?
    /// The images get the hashes of all of them (`--checksum`).
    public var keepsSums = false
    /// How long stopping the tree may take.
    public var timeout: Duration = .seconds(10)
    /// Action scripts.
    public var scripts = Scripts()
    /// Where plugins are, if the user says (`--libdir`).
    public var plugins: FilePath?
    /// Where pages go instead of the image directory (`--page-server`).
    public var pageServer: PageServerPlace?
    /// Where all images go instead of the directory (`--stream-to`).
    public var stream: StreamPlace?
    /// Where the tree, while it stands still, serves its private pages to the pager of its restore, before it is ended
    /// (`--lazy-pages`). The second is called with the port when the images are complete and a pager can connect.
    public var lazySource: (place: PageServerPlace, ready: @Sendable (UInt16) throws(Failure) -> Void)?
    /// Faults asked for by tests.
    public var faults = Faults()

    /// An order with CRIU's defaults.
    public init(root: TaskID, images: FilePath) {
        self.root = root
        self.images = images
    }
}

/// Dumps a tree. Returns the figures, which are also in `stats-dump`.
///
/// If it throws, the tree runs on as before and the directory holds no valid image.
public func dump(_ request: DumpRequest, log: Logger) throws(Failure) -> Statistics {
    raiseDescriptorLimit()
    var isDisturbed = false
    do throws(Failure) { return try dump(request, holdsMemory: true, &isDisturbed, log: log) } catch {
        // What was sent can't be taken back.
        guard isDisturbed, request.stream == nil, request.pageServer == nil else { throw error }
        log.notice("the dump begins anew, and writes all shared memory while the tree stands still: \(error)")
        return try dump(request, holdsMemory: false, &isDisturbed, log: log)
    }
}

/// Dumps a tree.
///
/// - Parameters:
///   - holdsMemory: shared memory is written while the tree goes on, in a live dump.
///   - isDisturbed: set if the dump failed because of what the tree did with that.
private func dump(
    _ request: DumpRequest, holdsMemory: Bool, _ isDisturbed: inout Bool, log: Logger
) throws(Failure) -> Statistics {
    let stream = try request.stream.map { (place) throws(Failure) in try OutgoingStream(to: place) }
    defer { stream?.close() }
    let images = try newImages(request, stream)
    guard !request.isLive || request.lazySource == nil else {
        throw Failure(.usage, "--live and --lazy-pages exclude each other: a lazy source stands still")
    }
    let haste = Background { FileDump.hasten() }
    var policy = request.policy
    (policy.isLive, policy.holdsMemory) = (request.isLive, holdsMemory)
    policy.leaveRunning = request.afterwards != .killed
    policy.takesAtEnd = request.afterwards == .killed && stream == nil && request.lazySource == nil
    policy.leavesPages = request.lazySource != nil
    policy.removesLinkRemaps = request.afterwards == .running
    let context = DumpContext(policy: policy, images: images, log: log, faults: request.faults)
    defer { context.plugins.end() }
    do throws(Failure) {
        context.plugins = try Plugins(in: request.plugins, order: "dump", log: log)
        try context.plugins.startAll(root: request.root)
        try Preflight.check(request.root, context)
        let tracking = try MemoryTracking(
            request.root, continues: request.tracksMemory && request.afterwards != .killed, previous: request.previous,
            images: images, waitsForRequests: true, log: log)
        tracking.serve(context)
        images.previous = tracking.parent
        images.tracksSharedMemory = request.tracksMemory || tracking.parent != nil
        try images.connect(to: request.pageServer)
        rehearse(context)
        try request.scripts.run(.preDump, images: images.directory.number, root: request.root)
        haste.wait()
        let foresight = request.isLive ? Foresight(request.root) : nil
        let started = ContinuousClock.now
        while true {
            let tree = try FrozenTree.freeze(request.root, deadline: started + request.timeout)
            context.statistics[.freezing] = ContinuousClock.now - started
            let order = DumpOrder(context: context, tree: tree.processes, files: FileDump(context), stream: stream)
            try order.files.prepare()
            try order.collect(foresight)
            guard order.isHealing else {
                // Nothing more is needed of a tree that goes on, unless a script wants to see it stand still.
                let isLetGoEarly =
                    request.isLive
                    || request.afterwards == .running && request.scripts.isEmpty && request.lazySource == nil
                do throws(Failure) {
                    try order.holdNetwork(request)
                    try context.view.inside { () throws(Failure) in
                        try order.run(request)
                        if request.isLive { try HeldMemory.of(context).hold(context) }
                    }
                    if !isLetGoEarly { try order.complete(request, started: started) }
                    try order.servePages(request)
                    if request.afterwards != .killed { order.releaseNetwork(request) }
                } catch {
                    order.files.letGo()
                    order.releaseNetwork(request)
                    tree.thaw(.running)
                    throw error
                }
                if request.afterwards != .killed { order.files.letGo() }
                if policy.takesAtEnd { try context.view.inside { () throws(Failure) in FileDump.part(context) } }
                tree.thaw(request.afterwards)
                if request.afterwards == .killed {
                    try context.view.inside { () throws(Failure) in FileDump.gone(context) }
                    order.files.letGo()
                }
                if isLetGoEarly {
                    context.statistics[.frozen] = ContinuousClock.now - started
                    try MemoryDump.writePages(context)
                    reapCopies(request, context)
                    try order.complete(request, started: started)
                }
                tracking.keep(request.root)
                if request.deduplicates { try deduplicate(request.images, log: log) }
                return context.statistics
            }
            tree.thaw(.running)
            try awaitHealing(request, started)
            context.processes = []
        }
    } catch {
        try? context.view.inside { () throws(Failure) in FileDump.abandon(context) }
        isDisturbed = HeldMemory.of(context).isDisturbed
        MemoryDump.endCopies(context)
        reapCopies(request, context)
        images.discard()
        throw error
    }
}

/// Stops those processes of a running tree once more that have ended copies as children, for a moment, and lets them reap
/// these.
private func reapCopies(_ request: DumpRequest, _ context: DumpContext) {
    let copies = MemoryCopies.of(context)
    guard !copies.bereaved.isEmpty else { return }
    let started = ContinuousClock.now
    do throws(Failure) {
        let tree = try FrozenTree.freeze(only: copies.bereaved, deadline: started + request.timeout)
        let order = DumpOrder(context: context, tree: tree.processes, files: FileDump(context))
        for frozen in tree.processes {
            do throws(Failure) {
                let process = try order.collect(frozen, nil, onlyMemory: true, onlyPlaces: true)
                let server = try startServer(process, context)
                let outcome = Result { () throws(Failure) in try copies.reap(process.id, server) }
                try server.cure(memory: process.memory)
                try outcome.get()
            } catch { context.log.warning("task \(frozen.id) keeps a dead child that it does not see: \(error)") }
        }
        tree.thaw(.running)
    } catch { context.log.warning("copied tasks keep dead children that they don't see: \(error)") }
    context.statistics[.frozen] += ContinuousClock.now - started
}

/// Begins a set of images.
func newImages(_ request: DumpRequest, _ stream: OutgoingStream? = nil) throws(Failure) -> ImageDirectory {
    guard request.compression == nil || request.pageServer == nil else {
        throw Failure(
            .usage, "--compress has nothing to compress: all pages go to the page server",
            advice: "Pass --compress to the page server instead")
    }
    let images = try ImageDirectory.open(request.images, stream)
    (images.compression, images.keepsSums) = (request.compression, request.keepsSums)
    try images.begin()
    return images
}

/// Gives tasks a moment to cure themselves after the death of another controller.
func awaitHealing(_ request: DumpRequest, _ started: ContinuousClock.Instant) throws(Failure) {
    guard ContinuousClock.now < started + request.timeout else {
        throw Failure(
            .denied, "task \(request.root) does not recover from an earlier dump that was killed", advice: "Try again")
    }
    pause(nanoseconds: 1_000_000)
}

/// Does to ourselves, before anything is stopped, what is then done to the tree as far as it needs no stop: what is set up
/// at first use is set up by then.
private func rehearse(_ context: DumpContext) {
    Server.prepare()
    Heap.reserve(512 << 10)
    do throws(Failure) {
        // A program that was replaced is a ghost, whose contents would go into an image.
        guard let program = try? readLink("/proc/self/exe"), !program.string.hasSuffix(" (deleted)") else { return }
        // Images that are never written.
        let images = try context.images.rehearsal()
        var policy = context.policy
        policy.shellJob = true
        let own = DumpContext(policy: policy, images: images, log: context.log, faults: Faults())
        let files = FileDump(own)
        own.fileDumper = files
        let me = FrozenProcess.current
        let status = try TaskStatus.read(of: me.id)
        let pidfd = try attempt("open a pidfd") { () throws(SystemCallError) in
            try me.id.openHandle()
        }
        let process = DumpedProcess(
            me, status: status, stat: try TaskStat.read(of: me.id), mappings: try VMA.read(of: me.id),
            memory: try TaskMemory(me.id), pidfd: pidfd)
        own.processes = [process]
        try DumpOrder(context: own, tree: [me], files: files).rehearse()
        TaskDump.rehearse()
        try MemoryDump.rehearse(process, own)
        try files.rehearse(process)
    } catch {
        // That harms nothing.
        context.log.debug("the rehearsal failed: \(error)")
    }
}

/// What a process's leader told.
struct LeaderAnswer {
    let question: MemoryDump.Question
    let parts: TaskDump.Answers
    let results: Results
}

/// What a further thread told.
private struct ThreadAnswer {
    let thread: TaskID
    let parts: TaskDump.Answers
    let results: Results

    /// Hands it to all parts. They ask ptrace too, which needs the thread at rest.
    func take(_ context: DumpContext) throws(Failure) {
        try during(.thread(thread)) { () throws(Failure) in try parts.take(results, context) }
    }
}

func startServer(_ process: DumpedProcess, _ context: DumpContext) throws(Failure) -> Server {
    guard let leader = process.threads.first else { throw Failure(.bug, "no threads") }
    let code =
        process.mappings.filter { $0.isNamed("[vdso]") }
        + process.mappings.filter { !$0.isShared && $0.protection & 5 == 5 && !$0.isNamed("[vdso]") }
    let hole = try RestorePlan.hole(in: process.mappings.map(\.range), size: Server.runwaySize)
    return try Server.start(
        in: leader.tracee, registers: leader.registers, mask: leader.signalMask, memory: process.memory,
        code: code.map(\.range), hole: hole.start, faults: context.faults)
}

/// Starts the server anew in a process that was cured already.
private final class LateServer: SystemCallServer {
    private unowned let context: DumpContext

    init(_ context: DumpContext) { self.context = context }

    func run(_ batch: consuming Batch, in process: DumpedProcess) throws(Failure) -> Results {
        let server = try startServer(process, context)
        let outcome: Result<Results, Failure>
        do throws(Failure) { outcome = .success(try server.run(batch)) } catch { outcome = .failure(error) }
        try server.cure(memory: process.memory)
        return try outcome.get()
    }
}

/// One dump while the tree stands still.
struct DumpOrder {
    let context: DumpContext
    let tree: [FrozenProcess]
    let files: FileDump
    var stream: OutgoingStream?

    /// Holds up all packets of a network namespace that is the tree's own. What its packet filters are is read before.
    func holdNetwork(_ request: DumpRequest) throws(Failure) {
        guard let network = context.network, network.isApart else { return }
        try network.inside { () throws(Failure) in try NetworkDump.dumpFilters(NamespaceKind.net.treeID, context) }
        try request.scripts.run(.networkLock, images: context.images.directory.number, root: request.root)
        try network.inside { () throws(Failure) in try FileDump.lockNetwork(context) }
        try context.faults.pass(.dumpLocked)
    }

    /// Lets the packets of a tree move that will go on.
    func releaseNetwork(_ request: DumpRequest) {
        guard let network = context.network, network.isApart else { return }
        do throws(Failure) {
            try network.inside { () throws(Failure) in FileDump.unlockNetwork(context) }
            try request.scripts.run(.networkUnlock, images: context.images.directory.number, root: request.root)
        } catch { context.log.warning("\(error)") }
    }

    /// Collects everything that needs the tree to stand still.
    func run(_ request: DumpRequest) throws(Failure) {
        let log = context.log
        try checkSession(request)
        var sharing = ObjectSharing(context)
        for process in context.processes { try sharing.identify(process) }
        SystemVUse.prepare(tree.map(\.id), context)
        try IPCDump.collect(context)
        try checkPlan()
        let server = LateServer(context)
        context.server = server
        context.fileDumper = files
        var answers: [LeaderAnswer] = []
        for process in context.processes {
            try during(.dumping(process.id, process.name)) { () throws(Failure) in
                answers.append(try infect(process))
                log.debug("cured task \(process.id)")
            }
        }
        log.debug("cured all processes")
        try context.faults.pass(.dumpCured)
        for process in context.processes {
            try during(.dumping(process.id, process.name)) { () throws(Failure) in
                if process.ownsFiles { try files.dumpTable(of: process) }
                try files.dumpDirectories(of: process)
            }
        }
        // After the files: no request of an io_uring is in flight any more that would still bring something to memory.
        for process in context.processes {
            try during(.dumping(process.id, process.name)) { () throws(Failure) in
                try MemoryDump.settle(process, context)
                if context.policy.isLive, MemoryCopies.hasToWait(process) { try copy(process) }
            }
        }
        for (process, answer) in zip(context.processes, answers) {
            try during(.dumping(process.id, process.name)) { () throws(Failure) in
                try MemoryDump.dump(answer.question, answer.results, process, context)
            }
        }
        log.debug("dumped \(context.files.count) files")
        try context.faults.pass(.dumpFiles)
        try MemoryDump.finish(context)
        try IPCDump.finish(context)
        try files.finish()
        try NamespaceDump.dump(request.root, context)
        if context.network?.isApart ?? false { try NetworkDump.dump(NamespaceKind.net.treeID, context) }
        try writeTree()
        try TaskDump.finish(context)
        try context.plugins.finish([("afterwards", request.afterwards.rawValue)])
        log.debug("collected the tree")
    }

    /// Looks at a tree as `run` begins with.
    func rehearse() throws(Failure) {
        var sharing = ObjectSharing(context)
        for process in context.processes { try sharing.identify(process) }
        SystemVUse.prepare(tree.map(\.id), context)
        try checkPlan()
    }

    /// Makes the image complete.
    func complete(_ request: DumpRequest, started: ContinuousClock.Instant) throws(Failure) {
        let images = context.images
        try files.write()
        try images.writeOut()
        try images.pageReceiver?.finish()
        try context.faults.pass(.dumpCommit)
        try images.commit(inventory(request), sync: request.isSynced ? .best() : .none)
        try request.scripts.run(.postDump, images: images.directory.number, root: request.root)
        if context.statistics[.frozen] == .zero { context.statistics[.frozen] = ContinuousClock.now - started }
        try images.write(.dumpStatistics, [statisticsEntry(dump: context.statistics)])
        try images.writeOut()
        try stream?.finish(sync: request.isSynced) { () throws(Failure) in try giveUp(request) }
        context.log.debug("the image is complete")
    }

    /// Has a tree that is to be killed end with us from now on: it is about to live at another place.
    private func giveUp(_ request: DumpRequest) throws(Failure) {
        guard request.afterwards == .killed else { return }
        try attempt("give the tree up") { () throws(SystemCallError) in
            for process in tree { for thread in process.threads { try thread.setOptions(TraceOptions.killOnExit) } }
        }
        try context.faults.pass(.dumpGivenUp)
    }

    /// Gives the tree's pages to the pager of its restore. If that is gone before it has all, the tree goes on here.
    func servePages(_ request: DumpRequest) throws(Failure) {
        guard let (place, ready) = request.lazySource else { return }
        let log = context.log
        let connection = try place.accept { (port) throws(Failure) in
            log.info("the images are complete, the tree's pages are served on port \(port)")
            try ready(port)
        }
        try PageServer.serve(connection, from: LazySource.of(context).pages, log: log) { () throws(Failure) in
            try giveUp(request)
        }
    }

    /// Reads what /proc tells of the whole tree.
    ///
    /// - Parameters:
    ///   - foresight: what was seen of its memory before.
    ///   - onlyMemory: nothing else will be dumped.
    func collect(_ foresight: Foresight?, onlyMemory: Bool = false) throws(Failure) {
        try context.faults.pass(.dumpFrozen)
        context.log.debug("stopped \(tree.count) processes")
        for frozen in tree {
            if frozen.isZombie {
                context.numbers.note(try .read(of: frozen.id), try .read(of: frozen.id), of: frozen.id)
            } else {
                context.processes.append(try collect(frozen, foresight, onlyMemory: onlyMemory))
            }
        }
        context.log.debug("collected what /proc tells")
    }

    /// Whether a task still cures itself after the death of another controller. It needs to run for that.
    var isHealing: Bool {
        context.processes.contains { process in
            guard let vdso = process.mappings.first(where: { $0.isNamed("[vdso]") }) else { return false }
            return process.threads.contains { Server.isHealing($0.registers, vdso: vdso.range) }
        }
    }

    /// How many threads are worth a worker.
    private static let fewThreads = 32

    /// Reads what /proc tells of a stopped process.
    ///
    /// - Parameter onlyPlaces: of its mappings no flags, for which the kernel looks at every page.
    fileprivate func collect(
        _ frozen: FrozenProcess, _ foresight: Foresight?, onlyMemory: Bool, onlyPlaces: Bool = false
    ) throws(Failure) -> DumpedProcess {
        let status = try TaskStatus.read(of: frozen.id)
        return try during(.dumping(frozen.id, status.name)) { () throws(Failure) in
            let pidfd = try attempt("open a pidfd") { () throws(SystemCallError) in
                try frozen.id.openHandle()
            }
            let foreseen = try foresight?.mappings(of: frozen.id)
            let mappings =
                if let foreseen { foreseen } else if onlyPlaces { try VMA.readPlain(of: frozen.id) } else {
                    try VMA.read(of: frozen.id)
                }
            let process = DumpedProcess(
                frozen, status: status, stat: try TaskStat.read(of: frozen.id), mappings: mappings,
                memory: try TaskMemory(frozen.id), isForeseen: foreseen != nil, pidfd: pidfd)
            let (id, others) = (frozen.id, frozen.threads.map(\.id).filter { $0 != frozen.id })
            let statuses = try Workers.map(
                others.count, share: DumpOrder.fewThreads,
                threads: min(Workers.count, others.count / DumpOrder.fewThreads)
            ) { (range) throws(Failure) in
                try others[range].map { (thread) throws(Failure) in try TaskStatus.read(of: id, thread: thread) }
            }.joined()
            for (tracee, own) in zip(frozen.threads, [status] + statuses) {
                let registers = try attempt("read the registers of thread \(tracee.id)") { () throws(SystemCallError) in
                    try tracee.registers()
                }
                let mask = try attempt("read the signal mask of thread \(tracee.id)") { () throws(SystemCallError) in
                    try tracee.signalMask()
                }
                if registers.isCompat {
                    throw Failure(.unsupported, "it runs 32-bit code, which can't be dumped yet")
                }
                process.threads.append(
                    DumpedThread(tracee, of: process, status: own, registers: registers, signalMask: mask))
                if let number = own.namespaceIDs.last { context.numbers.note(tracee.id, as: number) }
            }
            context.numbers.note(status, process.stat, of: frozen.id)
            process.number = context.numbers[frozen.id]
            if onlyMemory { return process }
            try MemoryDump.check(process, context)
            for thread in process.threads { try TaskDump.prepare(thread) }
            return process
        }
    }

    func checkSession(_ request: DumpRequest) throws(Failure) {
        guard let root = context.processes.first else { return }
        if root.stat.session != root.id && !context.policy.shellJob {
            throw Failure(
                .denied,
                "task \(root.id) (\(root.name)) is not a session leader: it belongs to the session \(root.stat.session)",
                advice: "Pass --shell-job to dump it out of its shell's session, or start it with setsid")
        }
    }

    /// Plans the restore, so that a tree which no order of births can bring back is refused now and not after it is gone.
    private func checkPlan() throws(Failure) {
        let living = Dictionary(uniqueKeysWithValues: context.processes.map { ($0.id, $0) })
        var listed: [PlannedProcess] = []
        for frozen in tree {
            let stat = if let process = living[frozen.id] { process.stat } else { try TaskStat.read(of: frozen.id) }
            // We have none at a rehearsal.
            let others = living[frozen.id]?.threads.dropFirst().map(\.tracee.id) ?? []
            let threads = [frozen.id] + others
            listed.append(
                PlannedProcess(
                    id: frozen.id, parent: frozen === tree.first ? nil : frozen.parent, session: stat.session,
                    group: stat.group, threads: threads,
                    cores: [CoreEntry](repeating: CoreEntry(), count: threads.count),
                    ids: living[frozen.id]?.ids ?? TaskKobjIdsEntry(), isZombie: frozen.isZombie))
        }
        do throws(Failure) {
            _ = try RestorePlan.make(listed, mappings: [], shellJob: context.policy.shellJob)
        } catch {
            throw Failure(
                .unsupported, "the tree could not be restored: \(error.reason)", advice: error.advice,
                cause: error.cause)
        }
    }

    /// Runs all system calls that the process must make itself, one batch per thread, and cures it.
    func infect(_ process: DumpedProcess) throws(Failure) -> LeaderAnswer {
        let server = try startServer(process, context)
        let outcome = question(process, server)
        let tracking = MemoryTracking.of(context)
        do throws(Failure) {
            if tracking.needsDescriptor(process, context) { try tracking.open(process, server) }
            if context.policy.isLive, case .success = outcome {
                try HeldMemory.of(context).prepare(process, server, context)
                if !MemoryCopies.hasToWait(process) {
                    try MemoryCopies.of(context).make(of: process, server, context)
                }
            }
        } catch {
            try server.cure(memory: process.memory)
            throw error
        }
        try server.cure(memory: process.memory)
        let answer = try outcome.get()
        // The parts ask ptrace too, which needs the leader at rest.
        try answer.parts.take(answer.results, context)
        return answer
    }

    /// Copies the memory of a process that was cured already.
    private func copy(_ process: DumpedProcess) throws(Failure) {
        let server = try startServer(process, context)
        let outcome = Result { () throws(Failure) in
            try MemoryCopies.of(context).make(of: process, server, context)
        }
        try server.cure(memory: process.memory)
        try outcome.get()
    }

    private func question(_ process: DumpedProcess, _ server: borrowing Server) -> Result<LeaderAnswer, Failure> {
        do throws(Failure) {
            guard let leader = process.threads.first(where: \.isLeader) else { throw Failure(.bug, "no leader") }
            let answer = try questionLeader(leader, server)
            var last: ThreadAnswer?
            for thread in process.threads where !thread.isLeader {
                last = try questionThread(thread, process, server, meanwhile: last)
            }
            try server.giveBack()
            try last?.take(context)
            return .success(answer)
        } catch {
            return .failure(error)
        }
    }

    private func questionLeader(_ leader: DumpedThread, _ server: borrowing Server) throws(Failure) -> LeaderAnswer {
        var batch = Batch()
        let memory = try MemoryDump.ask(leader, &batch)
        let parts = try TaskDump.ask(leader, &batch)
        let results = try server.run(batch)
        if var search = IPCDump.search(leader, context) {
            while !search.isFinished { try search.take(server.run(search.ask())) }
            IPCDump.take(search, leader, context)
        }
        if leader.process.ownsFiles { try files.listTable(of: leader.process, server) }
        return LeaderAnswer(question: memory, parts: parts, results: results)
    }

    /// Asks a further thread, while the answers of the one before are taken, which rests again by then.
    private func questionThread(
        _ thread: DumpedThread, _ process: DumpedProcess, _ server: borrowing Server, meanwhile before: ThreadAnswer?
    ) throws(Failure) -> ThreadAnswer {
        try during(.thread(thread.tracee.id)) { () throws(Failure) in
            func run(
                _ batch: consuming Batch, meanwhile: () throws(Failure) -> Void = {}
            ) throws(Failure) -> Results {
                try server.run(
                    batch, in: thread.tracee, registers: thread.registers, mask: thread.signalMask,
                    memory: process.memory, meanwhile: meanwhile)
            }
            var batch = Batch()
            let parts = try TaskDump.ask(thread, &batch)
            let results = try run(batch) { () throws(Failure) in try before?.take(context) }
            if var search = IPCDump.search(thread, context) {
                while !search.isFinished { try search.take(run(search.ask())) }
                IPCDump.take(search, thread, context)
            }
            return ThreadAnswer(thread: thread.tracee.id, parts: parts, results: results)
        }
    }

    /// Writes pstree, and core and ids of every process.
    func writeTree() throws(Failure) {
        let living = Dictionary(uniqueKeysWithValues: context.processes.map { ($0.id, $0) })
        let image = context.images.create(.processTree)
        let numbers = context.numbers
        for frozen in tree {
            var entry = PstreeEntry()
            let number = numbers[frozen.id]
            entry.pid = UInt32(bitPattern: number)
            entry.ppid = frozen === tree.first ? 0 : UInt32(bitPattern: numbers[frozen.parent])
            if let process = living[frozen.id] {
                entry.pgid = UInt32(bitPattern: numbers[process.stat.group])
                entry.sid = UInt32(bitPattern: numbers[process.stat.session])
                entry.threads = process.threads.map { UInt32(bitPattern: numbers[$0.tracee.id]) }
                for thread in process.threads {
                    try context.images.write(.core(numbers[thread.tracee.id]), [thread.core])
                }
                try context.images.write(.ids(number), [process.ids])
            } else {
                let stat = try TaskStat.read(of: frozen.id)
                entry.pgid = UInt32(bitPattern: numbers[stat.group])
                entry.sid = UInt32(bitPattern: numbers[stat.session])
                entry.threads = [entry.pid]
                try context.images.write(.core(number), [try TaskDump.zombie(frozen)])
            }
            try image.append(entry)
        }
        try image.finish()
    }

    func inventory(_ request: DumpRequest) throws(Failure) -> InventoryEntry {
        var entry = InventoryEntry()
        entry.imgVersion = 2
        entry.fdinfoPerID = true
        entry.nsPerID = true
        if let root = context.processes.first { entry.rootIds = ObjectSharing.ownIDs(like: root.ids) }
        entry.lsmtype = .noLsm
        let lock = FileDump.lock(context)
        entry.networkLockMethod = lock.method.rawValue
        entry.dumpCriuRunID = imageBytes(lock.id.utf8)
        if context.policy.tcpClose { entry.tcpClose = true }
        if request.lazySource != nil { entry.heldBy = imageBytes(try HeldTree.ownName().utf8) }
        MemoryTracking.of(context).describe(&entry)
        return entry
    }
}

/// Raises our own limit on open files as far as it goes: we hold copies of every file of the tree.
func raiseDescriptorLimit() {
    var limit: (UInt64, UInt64) = (0, 0)
    do throws(SystemCallError) {
        try withAddress(of: &limit) { (address) throws(SystemCallError) in try systemCall(.prlimit64, 0, 7, 0, address)
        }
        limit.0 = limit.1
        try withAddress(of: &limit) { (address) throws(SystemCallError) in try systemCall(.prlimit64, 0, 7, address, 0)
        }
    } catch {
        // The limit stays as it is; what does not fit is reported where it fails.
    }
}
