public import Diagnostics
public import ImageFormat
public import ImageMessages
public import Kinds
public import Linux
public import Logging
internal import Pages
internal import Procfs
public import Remote
public import SystemPackage

/// Knows which pages were not written since the previous images (kernel-facts, section 5).
///
/// The private memory of each process is registered with a userfaultfd that lets writes pass and only notes them
/// (`UFFD_FEATURE_WP_ASYNC`). Between two orders a holder keeps these descriptors; the tasks don't have them. A page
/// counts as unchanged only if it lies in a mapping that this order found registered with the descriptor of the previous
/// one, the kernel says that it was not written, and the previous images have it. Everything else is written anew: new and
/// moved mappings, children of a fork, shared memory, address spaces of several processes, tasks with a userfaultfd or an
/// io_uring of their own.
public final class MemoryTracking {
    /// Whether writes are noted from this order on.
    public let continues: Bool
    /// Names the images of this order; empty if nobody is to refer to them.
    public let generation: [UInt8]
    /// The previous images as the new ones are to refer to them, if they do.
    public private(set) var parent: FilePath?
    /// Names those images.
    private var parentGeneration: [UInt8] = []
    private var kept: [TaskID: TrackedMemory] = [:]
    private var tracked: [TaskID: TrackedMemory] = [:]
    /// Tasks that are left alone.
    private var exempt: Set<TaskID> = []
    /// Whether no request that would write to memory unnoticed is under way when pages are found.
    private let waitsForRequests: Bool
    /// By the number of the process in the images.
    private var above: [Int32: [AddressRange]] = [:]
    private let log: Logger?

    /// Tracks nothing.
    init() { (continues, generation, log, waitsForRequests) = (false, [], nil, true) }

    /// Takes over what the previous order left, before anything is stopped.
    ///
    /// - Parameters:
    ///   - continues: writes are noted from this order on, for a later one.
    ///   - previous: the previous images, relative to the new ones.
    ///   - waitsForRequests: asynchronous requests (AIO) are over when pages are found, as those of a dump are.
    public init(
        _ root: TaskID, continues: Bool, previous: FilePath?, images: ImageDirectory, waitsForRequests: Bool,
        log: Logger
    ) throws(Failure) {
        self.waitsForRequests = waitsForRequests
        self.continues = continues
        self.log = log
        var random = [UInt8](repeating: 0, count: 16)
        try attempt("get random numbers") { () throws(SystemCallError) in
            try random.withAddress { (address, count) throws(SystemCallError) in
                _ = try systemCall(.getrandom, address, count, 0)
            }
        }
        generation = continues ? random : []
        let parcel: TrackingParcel?
        do throws(Failure) { parcel = try TrackingHolder.take(of: root) } catch {
            log.warning("\(error)")
            parcel = nil
        }
        for memory in parcel?.memories ?? [] { kept[memory.process] = memory }
        if let previous { connect(to: previous, parcel, images) }
        if continues || parent != nil { findExempt(root) }
    }

    /// Of one dump.
    public static func of(_ context: DumpContext) -> MemoryTracking {
        context.state(MemoryTracking.self) { MemoryTracking() }
    }

    /// Makes it the one of a dump.
    public func serve(_ context: DumpContext) { _ = context.state(MemoryTracking.self) { self } }

    /// Relies on the previous images, if they are the ones that the tracking began with.
    private func connect(to previous: FilePath, _ parcel: TrackingParcel?, _ images: ImageDirectory) {
        let everything = "everything is written"
        guard let parcel else {
            log?.warning("nobody tracked the memory since the images in \(previous): \(everything)")
            return
        }
        do throws(Failure) {
            let path = images.path.pushing(previous)
            let set = try ImageSet(path)
            let here = images.directory.number
            let (ours, theirs) = try attempt("look at \(path)") { () throws(SystemCallError) in
                (try FileStatus.read(in: here), try FileStatus.read(in: set.directory.number))
            }
            guard ours.inode != theirs.inode || ours.device != theirs.device else {
                throw Failure(.usage, "the previous images are in the directory of the new ones")
            }
            let inventory = try set.load(.inventory, as: InventoryEntry.self)
            guard inventory.hasGeneration, !parcel.generation.isEmpty,
                inventory.generation.elementsEqual(parcel.generation)
            else {
                log?.warning("\(previous) does not hold the last images of this tree: \(everything)")
                return
            }
            for name in try attempt("list \(path)", { () throws(SystemCallError) in try listDirectory(path) }) {
                let text = name.string
                guard text.hasPrefix("pagemap-"), text.hasSuffix(".img"),
                    let id = Int32(text.dropFirst(8).dropLast(4))
                else { continue }
                var ranges: [AddressRange] = []
                for run in try Pagemap.read(.pagemap(id), from: set).runs where run.isPresent || run.isInParent {
                    join(run.range, to: &ranges)
                }
                above[id] = ranges
            }
            (parent, parentGeneration) = (previous, parcel.generation)
        } catch {
            above = [:]
            log?.warning("can't use the previous images: \(everything). \(error)")
        }
    }

    /// Finds tasks that can't be tracked: those with a userfaultfd, whose own could not be registered where ours is, and with
    /// an io_uring, which writes to registered buffers unnoticed.
    private func findExempt(_ root: TaskID) {
        let names = ["anon_inode:[userfaultfd]", "anon_inode:[io_uring]"]
        forEachProcess(of: root) { task in
            let path = "/proc/\(task.rawValue)/fd/"
            for number in (try? listNumbers(path)) ?? [] {
                guard let target = try? linkTarget(path + "\(number)"),
                    let name = names.first(where: { target.starts(with: $0.utf8) })
                else { continue }
                exempt.insert(task)
                log?.warning("task \(task) has an \(name): all of its memory is written")
                break
            }
            return true
        }
    }

    private func isExempt(_ process: DumpedProcess, _ context: DumpContext) -> Bool {
        exempt.contains(process.id)
            || process.mappings.contains { $0.isRing || ($0.isAioRing && !waitsForRequests) }
            || context.processes.contains { $0 !== process && $0.ids.vmID == process.ids.vmID }
    }

    // MARK: while the tree stands still

    /// Registers new mappings of a process with the descriptor of the previous order. Returns whether it needs a new
    /// descriptor, which only a server can bring.
    public func needsDescriptor(_ process: DumpedProcess, _ context: DumpContext) -> Bool {
        guard continues || parent != nil, !isExempt(process, context) else { return false }
        if let memory = kept[process.id], memory.mark == MemoryMark(process.stat), register(process, memory) {
            tracked[process.id] = memory
            return false
        }
        above[process.number] = nil
        return continues
    }

    /// Lets the process open a userfaultfd and registers its memory.
    public func open(_ process: DumpedProcess, _ server: borrowing Server) throws(Failure) {
        let descriptor: Descriptor
        do throws(Failure) {
            // O_CLOEXEC | UFFD_USER_MODE_ONLY, which needs no privilege; noting writes makes no difference between modes.
            descriptor = try server.fetch(.userfaultfd, 0o2000001, through: process.pidfd.number)
        } catch {
            if error.code == .vanished { throw error }
            log?.warning("the memory of task \(process.id) can't be tracked: \(error)")
            return
        }
        do throws(SystemCallError) {
            // UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED
            try Userfaultfd.agree(descriptor.number, features: 1 << 15 | 1 << 13)
        } catch {
            log?.warning("this kernel can't track memory: \(error)")
            return
        }
        let memory = TrackedMemory(process.id, MemoryMark(process.stat), descriptor)
        if register(process, memory) { tracked[process.id] = memory }
    }

    /// Registers what is not yet. Returns false if the descriptor is another address space's.
    private func register(_ process: DumpedProcess, _ memory: TrackedMemory) -> Bool {
        (memory.ranges, memory.watched) = ([], [])
        // Without pages above there is nothing to rely on.
        var scan = above[process.number] == nil ? nil : try? PagemapScan(process.id)
        for mapping in process.mappings where MemoryTracking.canTrack(mapping) {
            // A mapping that is moved next to others is joined with them, and all lose the userfaultfd; their pages go on to
            // look as if nobody had written to them.
            let isWatched = scan?.isWatched(mapping.range.start) ?? false
            do throws(SystemCallError) {
                // UFFDIO_REGISTER_MODE_WP; it changes nothing where ours is already.
                try Userfaultfd.register(memory.descriptor.number, mapping.range, mode: 2)
                memory.ranges.append(mapping.range)
                if isWatched { memory.watched.append(mapping.range) }
            } catch {
                if error.errno == .ESRCH { return false }
                log?.debug("the mapping \(mapping.range) of task \(process.id) can't be tracked: \(error)")
            }
        }
        return true
    }

    private static func canTrack(_ mapping: VMA) -> Bool {
        !mapping.isShared && !mapping.isOfKernel && !mapping.isDevice && !mapping.isSocket && !mapping.isAioRing
            && !mapping.isRing && mapping.hugePageSize == nil && !mapping.flags.contains("dp")
    }

    /// Whether the scan of a process is to tell which pages were written.
    func tells(_ process: DumpedProcess) -> Bool { above[process.number] != nil && tracked[process.id] != nil }

    /// Whether the memory of a process is tracked before or after this order.
    func isConcerned(_ process: DumpedProcess) -> Bool { tracked[process.id] != nil }

    /// Divides the pages of a process into those that the previous images have and the others.
    ///
    /// - Parameter unwritten: what the kernel says of the memory that it watches.
    func divide(_ runs: [PageRun], of process: DumpedProcess, unwritten: [AddressRange]) -> [PageRun] {
        guard let above = above[process.number], let memory = tracked[process.id] else { return runs }
        var (one, two) = (0, 0)
        var known: [AddressRange] = []
        for range in memory.watched {
            for part in parts(of: unwritten, in: range, from: &one) {
                for piece in parts(of: above, in: part, from: &two) { join(piece, to: &known) }
            }
        }
        return runs.divided(known)
    }

    /// From here on writes are noted anew.
    ///
    /// - Parameter findings: what a scan has just found.
    func arm(
        _ process: DumpedProcess, _ scan: inout PagemapScan, _ findings: PagemapScan.Findings
    ) throws(Failure) {
        guard continues, let memory = tracked[process.id] else { return }
        let ranges = Set(memory.ranges)
        let written = tells(process) ? MemoryTracking.written(findings) : nil
        var next = 0
        for mapping in process.mappings where ranges.contains(mapping.range) {
            guard let written else {
                try scan.protect(mapping.scanned)
                continue
            }
            for part in parts(of: written, in: mapping.range, from: &next) {
                try scan.protect(PagemapScan.Region(part, isAnonymous: mapping.scanned.isAnonymous))
            }
        }
    }

    /// What lies between written pages and is not longer than this is looked at once more, which is cheaper than another call.
    private static let shortGap: UInt64 = 1 << 20

    /// The pages that are not protected, and perhaps some that are.
    private static func written(_ findings: PagemapScan.Findings) -> [AddressRange] {
        var written: [AddressRange] = []
        func add(_ start: Address, _ end: Address) {
            guard start < end else { return }
            if let last = written.last, start.rawValue - last.end.rawValue <= shortGap {
                written[written.count - 1].end = end
            } else {
                written.append(AddressRange(start: start, end: end))
            }
        }
        var next = 0
        for range in findings.pages {
            var at = range.start
            for part in parts(of: findings.unwritten, in: range, from: &next) {
                add(at, part.start)
                at = part.end
            }
            add(at, range.end)
        }
        return written
    }

    // MARK: at the end

    /// Adds to the inventory what a later order needs to know.
    public func describe(_ entry: inout InventoryEntry) {
        if parent != nil { entry.parentGeneration = imageBytes(parentGeneration) }
        guard continues else { return }
        entry.generation = imageBytes(generation)
        // Seconds with two decimals.
        let words = ((try? readWholeFile("/proc/uptime")) ?? []).prefix { $0 != 0x20 }.split(separator: 0x2e)
        let numbers = words.compactMap { UInt64(String(decoding: $0, as: UTF8.self)) }
        if numbers.count == 2 { entry.dumpUptime = numbers[0] * 1_000_000 + numbers[1] * 10_000 }
    }

    /// Gives what was tracked to a holder, now that the images are complete.
    public func keep(_ root: TaskID) {
        let memories = Array(tracked.values)
        kept = [:]
        defer { tracked = [:] }
        guard continues, !memories.isEmpty else { return }
        do throws(Failure) {
            try TrackingHolder.start(TrackingParcel(generation: generation, memories: memories), root: root)
        } catch { log?.warning("the next dump will write everything: \(error)") }
    }
}

/// Adds a range to ascending ranges, joined to the last one if they touch.
private func join(_ range: AddressRange, to ranges: inout [AddressRange]) {
    if let last = ranges.last, last.end == range.start {
        ranges[ranges.count - 1].end = range.end
    } else {
        ranges.append(range)
    }
}
