public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
internal import Linux
internal import Pages
internal import Procfs
internal import Remote

/// Builds the address spaces of a tree, parents before children, so that what they have in common stays shared
/// copy-on-write.
public enum MemoryRestore {
    /// Reads and checks the mappings of all processes, before anything is created.
    public static func prepare(_ processes: [PlannedProcess], _ context: RestoreContext) throws(Failure) {
        let built = BuiltMemories.of(context)
        for process in processes where !process.isZombie {
            guard let memory = process.memory else {
                throw Failure(.corruptImage, "task \(process.id) has no mm image")
            }
            try during(.restoring(process.id, "?")) { () throws(Failure) in
                built.plans[process.id] = try MemoryPlan(
                    memory, process.id,
                    threads: {
                        processes.filter { $0.id == process.id || $0.sharesMemory(with: process) }.flatMap(\.cores)
                    },
                    context)
            }
        }
        try built.createSegments(context)
        try SystemVSegments.of(context).create(for: built.plans.values.flatMap(\.areas), context)
    }

    /// Makes the process's mappings and fills them. Its children are cloned after this.
    public static func build(_ process: RestoredProcess, _ context: RestoreContext) throws(Failure) {
        let built = BuiltMemories.of(context)
        guard let plan = built.plans[process.id] else { throw Failure(.bug, "no plan of the memory") }
        let parent = process.parent
        if let parent, parent.plan.sharesMemory(with: process.plan) {
            plan.sharedWith = parent.id
            plan.placement = built.plans[parent.id]?.placement
            return
        }
        try AddressSpace(process, plan, parent.flatMap { built.plans[$0.id] }, context).build()
    }

    /// Gives the mappings their final protection and attributes, and the kernel the layout.
    public static func finish(_ process: RestoredProcess, _ context: RestoreContext) throws(Failure) {
        let built = BuiltMemories.of(context)
        guard let plan = built.plans[process.id] else { throw Failure(.bug, "no plan of the memory") }
        guard plan.sharedWith == nil else {
            if context.policy.isLazy { try LazyRestore.arm(process, [], context) }
            return
        }
        try AddressSpace(process, plan, nil, context).finish()
        if context.policy.isLazy {
            let postponed = PostponedMemory.of(context)
            let areas = plan.lazyAreas + plan.areas.filter { postponed.holds($0) }.map(\.range)
            try LazyRestore.arm(process, areas, context)
        }
        plan.pieces = []
    }

    /// Lets go of what all tasks have mapped by now.
    public static func settle(_ context: RestoreContext) throws(Failure) {
        try SystemVSegments.of(context).settle(context)
    }

    /// Takes back what a failed restore left in the kernel.
    public static func abandon(_ context: RestoreContext) { SystemVSegments.of(context).abandon() }

    /// What the kernel made in a task: [vvar], [vvar_vclock] and [vdso], in the order of addresses.
    struct Placement {
        var mappings: [VMA]
    }
}

extension PlannedProcess {
    /// Whether the two have one address space.
    fileprivate func sharesMemory(with other: PlannedProcess) -> Bool {
        !isZombie && ids.hasVmID && other.ids.hasVmID && ids.vmID == other.ids.vmID
    }
}

/// What one process's memory is to be.
final class MemoryPlan {
    let entry: MmEntry
    /// Ascending, without guard pages.
    let areas: [Area]
    let guards: [AddressRange]
    /// The pages, until they are restored; without those that come later.
    var pieces: [PagePiece]
    /// The mappings that have pages which come when the task runs already.
    private(set) var lazyAreas: [AddressRange] = []
    /// The protection that each area is mapped with until the end.
    var mappedProtection: [Int]
    var sharedWith: TaskID?
    var placement: MemoryRestore.Placement?
    /// How it gets its vdso.
    let vdso: VdsoPlan

    /// Whether pkey_alloc(2) gave a key out.
    func allocates(_ key: UInt32) -> Bool { entry.protectionKeys >> key & 1 == 1 }

    /// The last protection key that is to be given out, or that the kernel has.
    var lastKey: UInt32? {
        (1..<16 as Range<UInt32>).last { key in allocates(key) || areas.contains { $0.key == key } }
    }

    init(_ entry: MmEntry, _ id: TaskID, threads: () -> [CoreEntry], _ context: RestoreContext) throws(Failure) {
        self.entry = entry
        var areas: [Area] = []
        var guards: [AddressRange] = []
        for vma in entry.vmas {
            let area = try Area(vma)
            if area.status.contains(.guardPages) { guards.append(area.range) } else { areas.append(area) }
        }
        areas.sort { $0.range.start < $1.range.start }
        for (one, two) in zip(areas, areas.dropFirst()) where one.range.end > two.range.start {
            throw Failure(.corruptImage, "the mappings \(one.range) and \(two.range) overlap")
        }
        let pagemap = try Pagemap.read(.pagemap(id.rawValue), from: context.images)
        pieces = try PageLocator(context.images, process: id.rawValue, pagemap).pieces
        vdso = try VdsoPlan(&areas, pieces, threads: threads, context)
        self.areas = areas
        self.guards = guards
        mappedProtection = []
        if context.policy.isLazy { postpone(pagemap, LazyRestore.scope(context)) }
        try checkPresence(pagemap)
        // The kernel's protection key comes when all others are given out.
        mappedProtection = areas.map { area in
            if area.status.contains(.sysv) { return area.attachedProtection }
            return (area.isExecuteOnly ? 0 : area.protection) | (area.isPrivate && area.more.contains("ac") ? 2 : 0)
        }
        var next = 0
        for piece in pieces {
            var at = piece.range.start
            while at < piece.range.end {
                while next < areas.count, areas[next].range.end <= at { next += 1 }
                guard next < areas.count, areas[next].range.contains(at) else {
                    throw Failure(.corruptImage, "the page at \(at) is in no mapping")
                }
                // What is filled has to be writable until it is full.
                if areas[next].isPrivate { mappedProtection[next] |= 2 }
                at = min(piece.range.end, areas[next].range.end)
            }
        }
    }
}

extension MemoryPlan {
    /// Takes out the pages that can come later.
    private func postpone(_ pagemap: Pagemap, _ scope: LazyScope) {
        let jumps = vdso.jumps.map(\.at)
        let candidates = areas.filter { area in !jumps.contains { area.range.contains($0) } }
        let lazy = LazyRanges(pagemap, candidates, scope).ranges
        var kept: [PagePiece] = []
        var next = 0
        for piece in pieces {
            var at = piece.range.start
            for later in parts(of: lazy, in: piece.range, from: &next) {
                if at < later.start { kept.append(piece.part(in: AddressRange(start: at, end: later.start))) }
                at = later.end
            }
            if at < piece.range.end { kept.append(piece.part(in: AddressRange(start: at, end: piece.range.end))) }
        }
        pieces = kept
        var index = 0
        lazyAreas = candidates.map(\.range).filter { !parts(of: lazy, in: $0, from: &index).isEmpty }
    }

    /// Refuses pages that nobody has: they stayed with the source of the images.
    private func checkPresence(_ pagemap: Pagemap) throws(Failure) {
        for run in pagemap.runs where !run.isPresent && !run.isInParent {
            guard lazyAreas.contains(where: { $0.contains(run.address) }) else {
                throw Failure(
                    .corruptImage, "the page at \(run.address) is not in the images",
                    advice: "It is still with the source: restore with --lazy-pages, and lazy-pages --page-server")
            }
        }
    }
}

/// The memories built so far, and the shared memory that several of them map.
final class BuiltMemories {
    var plans: [TaskID: MemoryPlan] = [:]
    private var segments: [UInt64: Int32] = [:]

    static func of(_ context: RestoreContext) -> BuiltMemories { context.state(BuiltMemories.self) { BuiltMemories() } }

    deinit {
        for number in Array(segments.values) + Array(reopened.values) { _ = try? systemCall(.close, Int(number)) }
    }

    /// Creates anonymous shared memory that images name by a number instead of a file.
    func createSegments(_ context: RestoreContext) throws(Failure) {
        var sizes: [UInt64: UInt64] = [:]
        var urgent: Set<UInt64> = []
        for plan in plans.values {
            for area in plan.areas
            where area.status.contains(.anonymousShared) && !area.status.contains(.sysv) {
                if !area.canBePostponed { urgent.insert(area.file) }
                let (end, over) = area.offset.addingReportingOverflow(area.range.length)
                guard !over, end <= 1 << 47 else {
                    throw Failure(.corruptImage, "the shared memory \(area.file) is too large")
                }
                sizes[area.file] = max(sizes[area.file] ?? 0, end)
            }
        }
        for (id, size) in sizes {
            let segment = try SharedMemoryFile.create(size: size)
            let canWait = !urgent.contains(id) && LazyRestore.postpones(context)
            try PostponedMemory.of(context).fill(
                segment: id, segment.number, size: size, canWait: canWait, from: context.images)
            segments[id] = segment.release()
        }
    }

    private var reopened: [UInt64: Int32] = [:]

    /// The description in files.img may be open in another way than the mapping needs it.
    private func number(forFile area: Area, _ context: RestoreContext) throws(Failure) -> Int32 {
        let held = try context.files.number(UInt32(truncatingIfNeeded: area.file))
        guard let access = area.access, !area.status.contains(.device) else { return held }
        let now = try attempt("look at a mapped file") { () throws(SystemCallError) in
            try systemCall(.fcntl, Int(held), 3)
        }
        if UInt32(now & 3) == access { return held }
        let key = area.file << 2 | UInt64(access)
        if let known = reopened[key] { return known }
        let made = try attempt("open a mapped file") { () throws(SystemCallError) in
            try openFile("/proc/self/fd/\(held)", OpenFlags(rawValue: Int32(access))).release()
        }
        reopened[key] = made
        return made
    }

    /// Our descriptor of what an area maps.
    func number(for area: Area, _ context: RestoreContext) throws(Failure) -> Int32? {
        if area.isFile { return try number(forFile: area, context) }
        if area.status.contains(.anonymousShared), !area.status.contains(.sysv) { return segments[area.file] }
        return nil
    }
}
