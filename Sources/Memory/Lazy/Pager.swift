public import Diagnostics
public import ImageFormat
internal import ImageMessages
public import Linux
public import Logging
public import Pages
internal import Procfs

/// Brings pages to tasks that run already: those that threads wait for first, then those that threads waited for at earlier
/// restores, all others after them.
///
/// It ends when all pages are there, or the tasks are gone. If a page can't be had any more, the tasks are killed, and
/// what is missing is poisoned, so that nothing reads zeros in its place.
public final class Pager {
    private let images: ImageSet
    private let log: Logger
    /// The connection with the restore.
    private let restore: Descriptor
    private let signals: Descriptor
    private let requester: PageRequester?
    private let startGuard: (() throws(Failure) -> Descriptor)?
    private var link: GuardLink?
    private var located: [PageOrigin: [PagePiece]] = [:]
    private let loader = PageLoader()
    /// Those of tasks, and ours of shared memory.
    private var memories: [LazyMemory] = []
    private var segments: [LazySegment] = []
    private var workingSets: [WorkingSet] = []
    /// What was asked for, in order.
    private var requests: [(memory: LazyMemory, image: AddressRange)] = []
    private var tasks: [Target] = []
    private var isRestored = false
    /// Which private pages come later.
    private var scope = LazyScope.marked
    private var chunk = Pager.smallestChunk
    private var total: (bytes: UInt64, faults: Int) = (0, 0)

    /// A task to be killed if its pages are lost.
    private final class Target {
        let id: TaskID, handle: Descriptor
        var isAlive: Bool { (try? systemCall(.pidfd_send_signal, Int(handle.number), 0, 0, 0)) != nil }
        init(_ id: TaskID, _ handle: consuming Descriptor) {
            self.id = id
            self.handle = handle
        }
    }

    /// How much is brought at a time that nobody waits for, while somebody may.
    private static let smallestChunk: UInt64 = 256 << 10
    /// Requests to a server that nobody waits for.
    private static let mostRequests = 4

    /// Prepares to serve one restore.
    ///
    /// - Parameters:
    ///   - restore: the connection with it.
    ///   - requester: a page server's, nil if the pages are in the images.
    ///   - startGuard: starts a ``PagerGuard``, and connects to it.
    public init(
        _ restore: consuming Descriptor, _ images: ImageSet, from requester: PageRequester?, log: Logger,
        startGuard: (() throws(Failure) -> Descriptor)? = nil
    ) throws(Failure) {
        self.images = images
        self.log = log
        self.requester = requester
        self.startGuard = startGuard
        self.restore = consume restore
        // SIGHUP, SIGINT, SIGTERM: our end would be zeros for those who wait.
        var set: UInt64 = 1 << 0 | 1 << 1 | 1 << 14
        signals = try attempt("watch for signals") { () throws(SystemCallError) in
            let number = try withAddress(of: &set) { (set) throws(SystemCallError) in
                try systemCall(.rt_sigprocmask, 0, set, 0, 8)
                return try systemCall(.signalfd4, -1, set, 8, 0o2000000)
            }
            return Descriptor(owning: Int32(number))
        }
        PagerGuard.protectFromOutOfMemory()
    }

    /// Serves until the end.
    public func run() throws(Failure) {
        do throws(Failure) {
            try acquaint()
            while true {
                if isRestored { dismiss() }
                if isRestored, memories.isEmpty { break }
                try step()
            }
            try requester?.finish()
            // A restore that still stands still waits for this.
            _ = try? PagerSocket.send(PagerSocket.complete, to: restore.number)
            link?.finish()
            keepWorkingSets()
        } catch {
            if isRestored || !memories.isEmpty {
                log.error("\(error)")
                lose()
            }
            throw error
        }
        log.notice("all pages are there: \(total.bytes / pageSize) were brought, \(total.faults) were waited for")
    }

    /// A directory that can't be written to, keeps what it has.
    private func keepWorkingSets() {
        do throws(Failure) {
            for set in workingSets { try set.keep(beside: images) }
        } catch { log.info("what threads waited for is not kept: \(error)") }
    }

    // MARK: acquaintance

    /// Learns all memories from the restore: for each task of the tree its pid and then its userfaultfd, or the negated
    /// pid if it has nothing to wait for.
    private func acquaint() throws(Failure) {
        let count = try images.loadAll(.processTree, as: PstreeEntry.self).count
        for _ in 0..<count {
            var id = try receiveNumber(Int32.self)
            while true {
                switch id {
                case PagerSocket.shared: try takeSegment(try receiveNumber(UInt64.self))
                case PagerSocket.question: try PagerSocket.send(UInt32(requester == nil ? 1 : 0), to: restore.number)
                case PagerSocket.scope: scope = LazyScope(rawValue: try receiveNumber(Int32.self)) ?? .marked
                default: break
                }
                if id > PagerSocket.scope { break }
                id = try receiveNumber(Int32.self)
            }
            guard id > 0 else { continue }
            let received = try PagerSocket.receive(from: restore.number)
            let entry = try images.load(.memory(id), as: MmEntry.self)
            var areas: [Area] = []
            for vma in entry.vmas { areas.append(try Area(vma)) }
            areas.sort { $0.range.start < $1.range.start }
            let pagemap = try Pagemap.read(.pagemap(id), from: images)
            let lazy = LazyRanges(pagemap, areas, scope)
            if requester == nil { located[.process(id)] = try PageLocator(images, process: id, pagemap).pieces }
            let workingSet = WorkingSet(of: .process(id), images)
            workingSets.append(workingSet)
            let memory = LazyMemory(
                received.faults, of: .process(id), name: "task \(id)", missing: Extents(lazy.extents), workingSet)
            memory.huge = Extents(lazy.huge)
            log.debug(
                "\(memory.name): \(memory.missing.length / pageSize) pages are to come, \(workingSet.count) windows first"
            )
            memories.append(memory)
            // A restore that sends no pidfd gives the task the number of its image.
            if let pidfd = received.pidfd {
                let task = try TaskID(of: pidfd)
                tasks.append(Target(task, pidfd))
                memory.task = task
                try addSegments(of: task, to: memory)
            } else if let handle = try? TaskID(id).openHandle() {
                tasks.append(Target(TaskID(id), handle))
            }
        }
    }

    private func receiveNumber<T: BitwiseCopyable>(_ type: T.Type) throws(Failure) -> T {
        guard let number = try PagerSocket.receive(type, from: restore.number) else {
            throw Failure(.vanished, "the restore is gone before its tasks were there", advice: "See its log")
        }
        return number
    }

    /// Takes shared memory over, which is always in the images.
    private func takeSegment(_ id: UInt64) throws(Failure) {
        let received = try PagerSocket.receive(from: restore.number)
        let pagemap = try Pagemap.read(.sharedPagemap(id), from: images)
        located[.shared(id)] = try PageLocator(images, shared: id, pagemap).pieces
        let segment = try LazySegment(id, received.faults, pagemap, images)
        segments.append(segment)
        memories.append(segment.pages)
        if let workingSet = segment.pages.workingSet { workingSets.append(workingSet) }
        log.debug("\(segment.pages.name): \(segment.pages.missing.length / pageSize) pages are to come")
    }

    private func addSegments(of task: TaskID, to memory: LazyMemory) throws(Failure) {
        guard !segments.isEmpty else { return }
        for mapping in try VMA.readPlain(of: task) {
            if let segment = segments.first(where: { $0.isMapped(by: mapping) }) { memory.add(segment, at: mapping) }
        }
    }

    // MARK: steps

    /// Waits for something to do, and does it.
    private func step() throws(Failure) {
        let isIdle = !canFill && !memories.contains { !$0.waiting.isEmpty } && requester?.hasPending != true
        try wait(milliseconds: isIdle ? -1 : 0)
        var isUrgent = false
        for memory in memories {
            for address in memory.waiting {
                isUrgent = true
                try serve(memory, Address(address))
            }
        }
        chunk = isUrgent ? Pager.smallestChunk : min(chunk * 2, PageRequester.largest)
        if canFill, !isUrgent || requester != nil { try fill() }
    }

    /// Forgets memories that need nothing more: their descriptors close, and the kernel fills what was never written.
    private func dismiss() {
        let done = memories.filter { memory in memory.isComplete && !requests.contains { $0.memory === memory } }
        for memory in done {
            total.bytes += memory.broughtBytes
            total.faults += memory.faultCount
            link?.remove(memory)
            log.debug("\(memory.name): \(memory.isGone ? "it has ended" : "all pages are there")")
        }
        if !done.isEmpty { memories.removeAll { memory in done.contains { $0 === memory } } }
    }

    /// Whether there are pages that could be brought unasked. Before the tasks run, only those that they waited for once.
    private var canFill: Bool {
        (requester == nil || requests.count < Pager.mostRequests)
            && memories.contains { !$0.missing.isEmpty && (isRestored || $0.workingSet?.hasMore == true) }
    }

    private func wait(milliseconds: Int) throws(Failure) {
        let numbers =
            memories.map(\.number) + [signals.number, isRestored ? -1 : restore.number, requester?.number ?? -1]
        let found = try attempt("wait for page faults") { () throws(SystemCallError) in
            try pollForInput(numbers, milliseconds: milliseconds)
        }
        let watched = memories
        for (memory, found) in zip(watched, found) where found != 0 { try hearEvents(memory) }
        if found[found.count - 3] != 0 { throw Failure(.denied, "the pager was told to end by a signal") }
        if found[found.count - 2] != 0 { try hearRestore() }
        if found[found.count - 1] != 0 || requester?.hasPending == true { try receive() }
    }

    private func hearRestore() throws(Failure) {
        let number = restore.number
        guard try PagerSocket.receive(UInt32.self, from: number) == PagerSocket.finished else {
            throw Failure(.vanished, "the restore failed", advice: "See its log")
        }
        isRestored = true
        // Not before: its pid could be one that the tree needs.
        do throws(Failure) {
            link = try startGuard.map { (start) throws(Failure) in GuardLink(try start()) }
        } catch { log.warning("nobody guards this pager: \(error)") }
        for task in tasks { link?.add(task.id) }
        for memory in memories { link?.add(memory) }
        log.debug("the tasks run")
    }

    /// Serves a thread that waits for a page.
    private func serve(_ memory: LazyMemory, _ address: Address) throws(Failure) {
        if memory.mayMap(address) { memory.look(at: address, tasks.map(\.id)) }
        if let (segment, place) = memory.segment(at: address) {
            try serve(segment.pages, place)
            memory.wake(address)
            memory.waiting.remove(address.rawValue)
        } else if let extent = memory.requested.find(address) {
            memory.waiting.remove(address.rawValue)
            memory.workingSet?.note(extent.image(of: address))
        } else if let extent = memory.missing.find(address) {
            memory.waiting.remove(address.rawValue)
            memory.workingSet?.note(extent.image(of: address))
            let start = Address(address.rawValue & ~(WorkingSet.window - 1))
            let range = extent.whole(in: AddressRange(start: start, end: start + WorkingSet.window)).range
            // One after the other: a child that is forked meanwhile is to miss what is still missing here.
            while let part = memory.missing.removeFirst(in: range) { try bring(part, to: memory) }
        } else if try memory.zero(address) || memory.isGone {
            memory.waiting.remove(address.rawValue)
        }
    }

    /// Brings pages that nobody waits for yet.
    private func fill() throws(Failure) {
        for memory in memories {
            guard let part = memory.workingSet?.take(from: &memory.missing) else { continue }
            return try bring(part, to: memory)
        }
        guard isRestored, let memory = memories.first(where: { !$0.missing.isEmpty }),
            let part = memory.missing.removeFirst(most: requester == nil ? Pager.smallestChunk : chunk)
        else { return }
        try bring(part, to: memory)
    }

    private func bring(_ extent: Extents.Extent, to memory: LazyMemory) throws(Failure) {
        memory.requested.insert(extent)
        if let requester, case .process(let process) = memory.origin {
            try requester.request(process, extent.imageRange)
            requests.append((memory, extent.imageRange))
            return
        }
        if extent.unit > pageSize { return try bringHuge(extent, to: memory) }
        try read(extent, of: memory) { (range, address) throws(Failure) in
            try deliver(range, at: address, to: memory)
        }
        segments.first { $0.pages === memory }?.hold(extent.range.length)
    }

    /// The kernel takes huge pages as a whole only, which may be in parts in the images.
    private func bringHuge(_ extent: Extents.Extent, to memory: LazyMemory) throws(Failure) {
        let room = try attempt("get memory for huge pages") { () throws(SystemCallError) in
            try Mapping(length: Int(extent.unit), flags: 0x22)  // PRIVATE | ANONYMOUS
        }
        let start = room.address
        var at = extent.range.start
        while at < extent.range.end {
            let page = extent.part(in: AddressRange(start: at, end: at + extent.unit))
            try read(page, of: memory) { (range, address) throws(Failure) in
                copyBytes(
                    from: address, to: start + Int(range.start.rawValue - page.image.rawValue), Int(range.length))
            }
            try deliver(page.imageRange, at: start, to: memory)
            at = page.range.end
        }
    }

    /// Calls `body` with the parts of what the images have of an extent, and where their bytes are.
    private func read(
        _ extent: Extents.Extent, of memory: LazyMemory, _ body: (AddressRange, Int) throws(Failure) -> Void
    ) throws(Failure) {
        let pieces = located[memory.origin] ?? []
        var at = extent.image
        var next = pieces.firstIndex(endingAfter: at)
        while at < extent.imageRange.end {
            guard next < pieces.count, pieces[next].range.contains(at) else {
                throw Failure(
                    .corruptImage, "the page at \(at) of \(memory.name) is not in the images",
                    advice: "It is still with the source: pass --page-server, --address and --port")
            }
            let part = pieces[next].part(in: AddressRange(start: at, end: extent.imageRange.end))
            try loader.forEachPart(of: part, body)
            at = part.range.end
            next += 1
        }
    }

    /// Receives the answer to the oldest request.
    private func receive() throws(Failure) {
        guard let requester else { return }
        guard !requests.isEmpty else {
            throw Failure(.vanished, "the page server closed the connection, or answers what it was not asked")
        }
        let (memory, image) = requests.removeFirst()
        let (address, count) = try requester.receive(image)
        let came = AddressRange(start: image.start, end: image.start + count)
        try deliver(came, at: address, to: memory)
        for rest in memory.requested.remove(image: AddressRange(start: came.end, end: image.end)) {
            memory.missing.insert(rest)
        }
    }

    /// Puts pages into their places: those of `image`, which lie at `address`.
    private func deliver(_ image: AddressRange, at address: Int, to memory: LazyMemory) throws(Failure) {
        while !memory.isGone {
            var parts = memory.requested.remove(image: image)[...]
            while let part = parts.first {
                let from = address + Int(part.image.rawValue - image.start.rawValue)
                let done = try memory.copy(part.range, from: from)
                parts.removeFirst()
                guard done < part.range.length else { continue }
                let rest = AddressRange(start: part.range.start + done, end: part.range.end)
                parts.insert(part.part(in: rest), at: parts.startIndex)
                break
            }
            if parts.isEmpty || memory.isGone { return }
            // The kernel moves, removes or forks something, and waits until we have heard of it.
            for part in parts { memory.requested.insert(part) }
            try hear(memory)
        }
    }

    private func hear(_ memory: LazyMemory) throws(Failure) {
        _ = try? poll(memory.number, for: 1, milliseconds: 1)
        try hearEvents(memory)
    }

    private func hearEvents(_ memory: LazyMemory) throws(Failure) {
        for child in try memory.readEvents(tasks.map(\.id)) {
            link?.add(child)
            memories.append(child)
        }
    }

    // MARK: loss

    /// Ends the tasks, and sees to it that what is missing is never read as zeros.
    private func lose() {
        if !isRestored { return }  // Then the restore ends them.
        log.error("the pages that are missing can't be had any more: the tasks are killed")
        PagerGuard.kill(tasks.filter(\.isAlive).map(\.id))
        for memory in memories { memory.poisonSegments() }
        while !memories.isEmpty {
            for memory in memories { _ = try? poison(memory) }
            memories.removeAll { $0.isComplete }
        }
        link?.finish()
    }

    private func poison(_ memory: LazyMemory) throws(Failure) {
        memory.waiting = []
        do throws(Failure) {
            try hearEvents(memory)
            for extent in memory.requested.all { memory.missing.insert(extent) }
            memory.requested = Extents()
            for extent in memory.missing.all where try memory.poison(extent.range) == extent.range.length {
                memory.missing.remove(extent.range)
            }
        } catch {
            // A kernel that can't: they are killed all the same.
            memory.missing = Extents()
            throw error
        }
    }
}
