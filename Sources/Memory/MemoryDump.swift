public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
internal import Linux
internal import Pages
internal import Procfs
public import Remote

/// Dumps the address spaces of a tree: `mm-PID.img`, `pagemap-PID.img` and `pages-N.img`.
public enum MemoryDump {
    /// What was asked of the leader.
    public struct Question: Sendable {
        let end: Batch.Slot
        let dumpable: Batch.Slot
        let hugePages: Batch.Slot
        let policies: MemoryPolicies
        let keys: [Batch.Slot]
        let lock: (isOn: Batch.Slot, state: Batch.Buffer)
    }

    /// Refuses, before any task is touched, what can't be dumped.
    public static func check(_ process: DumpedProcess, _ context: DumpContext) throws(Failure) {
        for mapping in process.mappings {
            try during(.mapping(mapping.range)) { () throws(Failure) in try check(mapping, of: process, context) }
        }
    }

    private static func check(
        _ mapping: VMA, of process: DumpedProcess, _ context: DumpContext
    ) throws(Failure) {
        let advice = "Unmap it before the dump, or see docs/unsupported.md"
        if mapping.isOfKernel || mapping.isRing || mapping.isSocket { return }
        if mapping.isDevice {
            guard plugin(for: mapping, of: process, context) != nil else {
                throw Failure(
                    .unsupported, "it maps device memory (\(mapping.text))",
                    advice: "Unmap it before the dump, or use a plugin that knows the device (docs/plugins.md)")
            }
            guard mapping.isShared || !mapping.flags.contains("mw") else {
                throw Failure(.unsupported, "it is a private copy of device memory", advice: advice)
            }
            return
        }
        if mapping.flags.contains("ss") { throw Failure(.unsupported, "it is a shadow stack", advice: advice) }
        for (start, words) in [
            ("anon_inode:", "it maps \(mapping.text)"), ("[uprobes]", "the task has uprobes"),
            ("/secretmem", "it is secret memory, which nobody else can read"),
        ] where mapping.name.starts(with: start.utf8) {
            throw Failure(.unsupported, words, advice: advice)
        }
    }

    /// The plugin that knows the device of a mapping.
    private static func plugin(for mapping: VMA, of process: DumpedProcess, _ context: DumpContext) -> Plugin? {
        let link = "/proc/\(process.id.rawValue)/map_files/\(mapping.range)"
        guard let status = try? FileStatus.read(link, in: currentDirectory) else { return nil }
        return context.plugins.plugin(for: status, link: mapping.name)
    }

    /// Adds what only the process itself can tell.
    public static func ask(_ leader: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
        let end = batch.add(.brk, .value(0), doing: "find the end of the heap")
        let dumpable = batch.add(.prctl, .value(3), doing: "read whether it is dumpable")
        let hugePages = batch.add(.prctl, .value(42), doing: "read whether huge pages are off", mayFail: true)
        let process = leader.process
        return Question(
            end: end, dumpable: dumpable, hugePages: hugePages, policies: try MemoryPolicies(process, &batch),
            keys: askKeys(process, &batch), lock: try askLock(process, &batch))
    }

    /// Nobody tells which protection keys are given out, but to give one to memory that is not there fails with ENOMEM,
    /// if it is, and with EINVAL, if it is not.
    private static func askKeys(_ process: DumpedProcess, _ batch: inout Batch) -> [Batch.Slot] {
        guard process.mappings.first?.range.start.rawValue ?? 0 >= pageSize else { return [] }
        return (1...15).map { key in
            batch.add(
                .pkey_mprotect, .value(0), .value(Int(pageSize)), .value(0), .value(key),
                doing: "find a protection key", mayFail: true)
        }
    }

    /// Nobody tells whether future mappings are to be locked (`MCL_FUTURE`), but the runway is such a mapping. Its last
    /// page is never used: locked memory can't be dropped, and is there from the beginning, unless it waits for a fault.
    private static func askLock(
        _ process: DumpedProcess, _ batch: inout Batch
    ) throws(Failure) -> (Batch.Slot, Batch.Buffer) {
        let runway = try RestorePlan.hole(in: process.mappings.map(\.range), size: Server.runwaySize)
        let last = Batch.Argument.address(Address(runway.end.rawValue - pageSize))
        let state = batch.reserve(1)
        batch.add(
            .mincore, last, .value(Int(pageSize)), .buffer(state), doing: "look at locked memory", mayFail: true)
        let isOn = batch.add(
            .madvise, last, .value(Int(pageSize)), .value(4), doing: "look for locked memory", mayFail: true)
        return (isOn, state)
    }

    /// Waits until nothing that a stopped process has asked for can still bring something to its memory. What its io_urings
    /// were asked for is waited for with its files.
    public static func settle(_ process: DumpedProcess, _ context: DumpContext) throws(Failure) {
        for mapping in process.mappings where mapping.isAioRing {
            try during(.mapping(mapping.range)) { () throws(Failure) in
                try AioRing(mapping.range).settle(process, context)
            }
        }
    }

    /// Writes the memory of a cured, stopped process whose requests are settled.
    public static func dump(
        _ question: Question, _ results: Results, _ process: DumpedProcess, _ context: DumpContext
    ) throws(Failure) {
        var layout = try self.layout(of: process, context)
        layout.mmBrk = UInt64(bitPattern: Int64(results[question.end]))
        layout.dumpable = Int32(truncatingIfNeeded: results[question.dumpable])
        let hugePages = results.success(question.hugePages) ?? 0
        layout.thpDisabled = hugePages != 0
        if hugePages > 1 { layout.thpFlags = UInt32(truncatingIfNeeded: hugePages & ~1) }
        for (index, slot) in question.keys.enumerated() where results[slot] == -12 {
            layout.protectionKeys |= 1 << UInt32(index + 1)
        }
        if results[question.lock.isOn] == -22 {
            let waits = results.value(UInt8.self, question.lock.state) & 1 == 0
            layout.lockAll = UInt32(LockAll.future | (waits ? LockAll.onFault : 0))
        }
        var areas: [VmaEntry] = []
        for mapping in process.mappings {
            try during(.mapping(mapping.range)) { () throws(Failure) in
                if mapping.isNamed("[vvar_vclock]"), let last = areas.last, last.end == mapping.range.start.rawValue,
                    AreaStatus(rawValue: last.status).contains(.vvar)
                {
                    areas[areas.count - 1].end = mapping.range.end.rawValue
                } else {
                    var entry = try describe(
                        mapping, of: process, heap: layout.mmStartBrk..<max(layout.mmBrk, layout.mmStartBrk), context)
                    question.policies.describe(mapping, results, &entry)
                    areas.append(entry)
                }
            }
        }
        let guards = try dumpPages(process, context)
        if hasVsyscall {
            var entry = VmaEntry()
            (entry.start, entry.end, entry.pgoff, entry.shmid) = (0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000, 0, 0)
            (entry.prot, entry.flags, entry.fd) = (4, UInt32(MapFlags.private | MapFlags.anonymous), -1)
            entry.status = AreaStatus([.vsyscall, .anonymousPrivate]).rawValue
            areas.append(entry)
        }
        layout.vmas = areas + guards.map(describe)
        layout.aios = process.mappings.filter(\.isAioRing).map { AioRing($0.range).entry }
        Layouts.of(context).all.append((process, layout))
    }

    /// Guard pages are listed behind all mappings, which they lie in.
    private static func describe(guards range: AddressRange) -> VmaEntry {
        var entry = VmaEntry()
        (entry.start, entry.end, entry.pgoff, entry.shmid) = (range.start.rawValue, range.end.rawValue, 0, 0)
        (entry.prot, entry.flags, entry.fd) = (0, 0, -1)
        entry.status = AreaStatus.guardPages.rawValue
        return entry
    }

    /// Layouts wait for the ids of the sockets that they map.
    private final class Layouts {
        var all: [(process: DumpedProcess, layout: MmEntry)] = []
        /// Those of processes whose copy is still to tell the rest.
        var unfinished: [TaskID: MmEntry] = [:]
        static func of(_ context: DumpContext) -> Layouts { context.state(Layouts.self) { Layouts() } }
    }

    /// Describes the mappings of a process and forgets them.
    public static func rehearse(_ process: DumpedProcess, _ context: DumpContext) throws(Failure) {
        try check(process, context)
        var batch = Batch()
        _ = (try MemoryPolicies(process, &batch), hasVsyscall)
        var layout = try layout(of: process, context)
        layout.mmBrk = 0
        for mapping in process.mappings { layout.vmas.append(try describe(mapping, of: process, heap: 0..<0, context)) }
        let writer = context.images.create(.memory(0))
        try writer.append(layout)
        var core = CoreEntry()
        core.mtype = .x8664
        (core.tc.taskState, core.tc.exitCode, core.tc.personality, core.tc.flags) = (1, 0, 0, 0)
        (core.tc.blkSigset, core.tc.comm) = (0, imageBytes("rehearsal".utf8))
        (core.threadCore.futexRla, core.threadCore.futexRlaLen) = (0, 0)
        try writer.append(core)
    }

    /// Writes what processes share. Shared memory is written where its file is met.
    public static func finish(_ context: DumpContext) throws(Failure) {
        let sockets = SocketMappings.of(context).ids
        let copied = Set(PagePlans.of(context).all.filter { $0.copy != nil }.map(\.process.id))
        let layouts = Layouts.of(context)
        for (process, layout) in layouts.all {
            var layout = layout
            for index in layout.vmas.indices where layout.vmas[index].status & SocketMappings.status != 0 {
                guard let id = sockets[layout.vmas[index].shmid] else {
                    throw Failure(
                        .unsupported, "task \(process.id) (\(process.name)) maps a socket that no task has open",
                        advice: "Unmap it before the dump")
                }
                layout.vmas[index].shmid = UInt64(id)
            }
            if copied.contains(process.id) {
                layouts.unfinished[process.id] = layout
            } else {
                try context.images.write(.memory(process.number), [layout])
            }
        }
        // Those who run on are not written yet.
        if PagePlans.of(context).all.isEmpty { SharedPages.of(context).finish(context) }
        try SystemVSegments.of(context).finish(context)
    }

    /// Whether tasks see [vsyscall]: the same for all.
    private static let hasVsyscall: Bool = {
        guard let text = try? procText(of: .current, "maps") else { return false }
        return text.split(separator: 0x0a).last.map { String(decoding: $0, as: UTF8.self).hasSuffix("[vsyscall]") }
            ?? false
    }()

    private static func layout(of process: DumpedProcess, _ context: DumpContext) throws(Failure) -> MmEntry {
        let stat = process.stat
        var entry = MmEntry()
        (entry.mmStartCode, entry.mmEndCode) = (stat.startCode, stat.endCode)
        (entry.mmStartData, entry.mmEndData) = (stat.startData, stat.endData)
        (entry.mmStartStack, entry.mmStartBrk) = (stat.startStack, stat.startBreak)
        (entry.mmArgStart, entry.mmArgEnd) = (stat.argumentStart, stat.argumentEnd)
        (entry.mmEnvStart, entry.mmEnvEnd) = (stat.environmentStart, stat.environmentEnd)
        let vector = try procText(of: process.id, "auxv")
        var words: [UInt64] = []
        for index in 0..<(vector.count / 8) { words.append(vector.load(UInt64.self, at: index * 8) ?? 0) }
        while words.count >= 2, words[words.count - 1] == 0, words[words.count - 2] == 0 { words.removeLast(2) }
        entry.mmSavedAuxv = words
        guard let files = context.fileDumper else { throw Failure(.bug, "nobody dumps files") }
        entry.exeFileID = try files.dump(link: "exe", of: process)
        return entry
    }

    // MARK: mappings

    private static func describe(
        _ mapping: VMA, of process: DumpedProcess, heap: Range<UInt64>, _ context: DumpContext
    ) throws(Failure) -> VmaEntry {
        var entry = VmaEntry()
        entry.start = mapping.range.start.rawValue
        entry.end = mapping.range.end.rawValue
        (entry.pgoff, entry.shmid, entry.fd) = (0, 0, -1)
        entry.prot = UInt32(mapping.protection)
        entry.flags = UInt32(mapping.isShared ? MapFlags.shared : MapFlags.private)
        var status: AreaStatus = .regular
        let anonymous = UInt32(MapFlags.anonymous)

        if mapping.isNamed("[vdso]") {
            status.formUnion([.vdso, .anonymousPrivate])
            entry.flags |= anonymous
        } else if mapping.isOfKernel {
            status.formUnion([.vvar, .anonymousPrivate])
            entry.flags |= anonymous
        } else if mapping.isAioRing {
            status = .aioRing
        } else if mapping.isSystemV {
            status.formUnion([.sysv, .anonymousShared])
            entry.flags |= anonymous
            (entry.shmid, entry.pgoff) = (mapping.inode, mapping.offset)
            // Attached for reading only.
            entry.fdflags = mapping.flags.contains("mw") ? 2 : 0
            try SystemVSegments.of(context).dump(mapping, of: process, context)
        } else if mapping.isRing {
            status = .ring
            (entry.shmid, entry.pgoff) = (mapping.inode, mapping.offset)
        } else if mapping.isSocket {
            status = [.regular, .socket]
            (entry.shmid, entry.pgoff) = (mapping.inode, mapping.offset)
        } else if mapping.inode == 0 || (!mapping.isShared && mapping.isNamed("/anon_hugepage (deleted)")) {
            status.insert(.anonymousPrivate)
            entry.flags |= anonymous
            if mapping.isNamed("[heap]") || heap.overlaps(entry.start..<entry.end) { status.insert(.heap) }
        } else {
            try describeFile(mapping, of: process, &entry, &status, context)
        }
        if let name = anonymousName(mapping) { entry.name = imageBytes(name) }
        entry.status = status.rawValue
        describeFlags(of: mapping, &entry)
        return entry
    }

    /// Describes what only smaps tells of a mapping, perhaps anew.
    private static func describeFlags(of mapping: VMA, _ entry: inout VmaEntry) {
        var flags = Int(entry.flags) & (MapFlags.shared | MapFlags.private | MapFlags.anonymous)
        for (code, bit) in [
            ("gd", MapFlags.growsDown), ("lo", MapFlags.locked), ("nr", MapFlags.noReserve), ("ht", MapFlags.hugePages),
            ("dp", MapFlags.droppable),
        ] as [(StaticString, Int)]
        where mapping.flags.contains(code) { flags |= bit }
        if let size = mapping.hugePageSize { flags |= size.trailingZeroBitCount << MapFlags.hugeShift }
        entry.flags = UInt32(truncatingIfNeeded: flags)
        entry.madv = 0
        for (code, advice) in [
            ("rr", 1), ("sr", 2), ("dc", 10), ("mg", 12), ("hg", 14), ("nh", 15), ("dd", 16), ("wf", 18),
        ] as [(StaticString, UInt64)] where mapping.flags.contains(code) { entry.madv |= 1 << advice }
        if AreaStatus(rawValue: entry.status).contains(.vvar) { entry.madv = 1 << 16 }
        if mapping.protectionKey != 0 {
            entry.protectionKey = mapping.protectionKey
        } else {
            entry.clearProtectionKey()
        }
        var known = ["lf", "sl", "um"].filter { mapping.flags.all.contains($0) }
        // Memory that was writable once is accounted for good.
        if !mapping.isShared, mapping.protection & 2 == 0, mapping.flags.contains("ac") { known.append("ac") }
        if known.isEmpty {
            entry.clearMoreFlags()
        } else {
            entry.moreFlags = imageBytes(known.joined(separator: " ").utf8)
        }
    }

    private static func describeFile(
        _ mapping: VMA, of process: DumpedProcess, _ entry: inout VmaEntry, _ status: inout AreaStatus,
        _ context: DumpContext
    ) throws(Failure) {
        guard let files = context.fileDumper else { throw Failure(.bug, "nobody dumps files") }
        status.insert(mapping.isShared ? .fileShared : .filePrivate)
        let link = "/proc/\(process.id.rawValue)/map_files/\(mapping.range)"
        // The link's own permission bits tell how the file was opened.
        let mode = try attempt("look at the mapped file", advice: "Run as root or with CAP_CHECKPOINT_RESTORE") {
            () throws(SystemCallError) in try FileStatus.read(link, in: currentDirectory, followsLink: false).mode
        }
        let flags: OpenFlags = mode & 0o200 != 0 ? (mode & 0o400 != 0 ? .readWrite : .writeOnly) : .readOnly
        entry.fdflags = UInt32(flags.rawValue)
        entry.shmid = UInt64(try files.dump(mapped: mapping, of: process, flags: flags))
        entry.pgoff = mapping.offset
        if mapping.name.starts(with: "/memfd:".utf8) || mapping.isNamed("/dev/zero (deleted)")
            || mapping.isNamed("/anon_hugepage (deleted)") || mapping.name.starts(with: "[anon_shmem:".utf8)
        {
            status.insert(.memfd)
        }
        guard mapping.isDevice else { return }
        status.insert(.device)
        guard let plugin = plugin(for: mapping, of: process, context) else { throw Failure(.bug, "no plugin") }
        var request = PluginMessage("map")
        request.add("file", "\(entry.shmid)")
        request.add("range", "\(mapping.range)")
        request.add("offset", "\(mapping.offset)")
        request.add("task", "\(process.id) \(process.name)")
        if let number = try plugin.ask(request).descriptor { _ = try? systemCall(.close, Int(number)) }
    }

    /// The name that the task gave to an anonymous mapping (`PR_SET_VMA_ANON_NAME`).
    private static func anonymousName(_ mapping: VMA) -> [UInt8]? {
        for prefix in ["[anon:", "[anon_shmem:"]
        where mapping.name.starts(with: prefix.utf8) && mapping.name.last == 0x5d {
            return Array(mapping.name.dropFirst(prefix.utf8.count).dropLast())
        }
        return nil
    }

    // MARK: pages

    /// The stretches of the pages that are to be written.
    private static func written(_ stretches: [PageStretch], _ runs: [PageRun]) -> [PageStretch] {
        let present = runs.filter(\.isPresent).map(\.range)
        var next = 0
        return stretches.flatMap { stretch in
            parts(of: present, in: stretch.range, from: &next).map { PageStretch($0, isReadable: stretch.isReadable) }
        }
    }

    /// Pages of a process that wait to be written.
    private struct PagePlan {
        let process: DumpedProcess
        /// Where the pages are, if not in the process.
        var copy: MemoryCopy?
        /// Nil as long as they were not found.
        var pages: FoundPages?
        /// What the copy has in common with the process, as it was at the stop.
        var common: [CommonMemory] = []
    }

    /// Memory that a copy sees change with the process: a ring of completions.
    private struct CommonMemory {
        let range: AddressRange, bytes: [UInt8]
    }

    private static func readCommon(_ process: DumpedProcess) throws(Failure) -> [CommonMemory] {
        try process.mappings.filter(\.isAioRing).map { (mapping) throws(Failure) in
            let bytes = try attempt("read the AIO ring at \(mapping.range.start)") { () throws(SystemCallError) in
                try process.memory.read(mapping.range.start, count: Int(mapping.range.length))
            }
            return CommonMemory(range: mapping.range, bytes: bytes)
        }
    }

    private struct FoundPages {
        var stretches: [PageStretch]
        let pagemap: Pagemap
    }

    private final class PagePlans {
        var all: [PagePlan] = []
        static func of(_ context: DumpContext) -> PagePlans { context.state(PagePlans.self) { PagePlans() } }
    }

    /// Writes the private pages. Returns the guard pages.
    private static func dumpPages(_ process: DumpedProcess, _ context: DumpContext) throws(Failure) -> [AddressRange] {
        if let copy = MemoryCopies.of(context).take(process.id) {
            var plan = PagePlan(process: process, copy: copy, common: try readCommon(process))
            // Only the process itself knows what was written to it, all else can be found in the copy later.
            guard MemoryTracking.of(context).isConcerned(process) else {
                PagePlans.of(context).all.append(plan)
                return []
            }
            let found = try findPages(process, context)
            plan.pages = found.pages
            PagePlans.of(context).all.append(plan)
            return found.guards
        }
        let found = try findPages(process, context)
        try context.faults.pass(.dumpPages)
        try write(found.pages, of: process, .task(process.id, memory: process.memory.number), context)
        return found.guards
    }

    /// Finds the private pages of a stopped process, for `writePages` to write when it runs again. What is written then may
    /// be newer, but such pages count as written.
    public static func notePages(_ process: DumpedProcess, _ context: DumpContext) throws(Failure) {
        let found = try findPages(process, context, sharesPages: false)
        PagePlans.of(context).all.append(PagePlan(process: process, pages: found.pages))
    }

    /// Ends all copies whose pages are not written.
    public static func endCopies(_ context: DumpContext) {
        PagePlans.of(context).all = []
        MemoryCopies.of(context).end()
        HeldMemory.of(context).end()
    }

    /// Writes the pages of running processes.
    public static func writePages(_ context: DumpContext) throws(Failure) {
        let plans = PagePlans.of(context)
        for plan in plans.all { try plan.copy?.detach() }
        if !plans.all.isEmpty { try context.faults.pass(.dumpPages) }
        try HeldMemory.of(context).write(context)
        // As long as all copies are there, no frame holds one page now and another then.
        for index in plans.all.indices {
            guard let copy = plans.all[index].copy else { continue }
            let process = plans.all[index].process
            try during(.dumping(process.id, process.name)) { () throws(Failure) in
                try MemoryCopies.correctFlags(of: process, by: copy)
                var guards: [AddressRange] = []
                if plans.all[index].pages == nil {
                    let found = try findPages(process, context, in: copy)
                    (plans.all[index].pages, guards) = (found.pages, found.guards)
                }
                try finishLayout(of: process, guards, context)
            }
        }
        while !plans.all.isEmpty {
            // A copy ends as soon as it is written.
            let plan = plans.all.removeFirst()
            let process = plan.process
            try during(.dumping(process.id, process.name)) { () throws(Failure) in
                guard var pages = plan.pages else { throw Failure(.bug, "pages that nobody looked for") }
                guard let copy = plan.copy else {
                    return try write(pages, of: process, .running(process.id, memory: process.memory.number), context)
                }
                let huge = HeldMemory.of(context).hugePages(of: process.id)
                for index in pages.stretches.indices {
                    pages.stretches[index].isReadable = false
                    let range = pages.stretches[index].range
                    if let huge, huge.data.contains(where: { $0.overlaps(range) }) {
                        pages.stretches[index].held = huge.pages
                    }
                    guard let common = plan.common.first(where: { $0.range.contains(range.start) }) else { continue }
                    let start = Int(range.start.rawValue - common.range.start.rawValue)
                    pages.stretches[index].contents = Array(common.bytes[start..<(start + Int(range.length))])
                }
                try write(pages, of: process, .task(copy.id, memory: copy.memory.number), context)
            }
        }
        try HeldMemory.of(context).finish(context)
        SharedPages.of(context).finish(context)
    }

    /// Writes the shared memory of running processes, so that a later dump has to write only what is other then. What is gone by
    /// now is left out.
    public static func writeSharedMemory(_ context: DumpContext) throws(Failure) {
        var seen: Set<UInt64> = []
        for process in context.processes {
            for mapping in process.mappings where HeldMemory.canHold(mapping) || mapping.isSystemV && mapping.isShared {
                // What the images call it: the segment's id, or a part of the inode.
                let id = mapping.isSystemV ? mapping.inode : UInt64(UInt32(truncatingIfNeeded: mapping.inode))
                let path = "/proc/\(process.id.rawValue)/map_files/\(mapping.range)"
                guard !seen.contains(id), let file = try? openFile(path),
                    let status = try? FileStatus.read(in: file.number),
                    status.inode == mapping.inode, let unit = try? FileSystem.pageUnit(of: file.number)
                else { continue }
                seen.insert(id)
                let piece = try SharedMemoryPiece(
                    file, id: id, inode: mapping.inode, size: status.size,
                    granularity: unit)
                context.statistics.sharedPagesWritten += try SharedMemoryImage.write(
                    piece, isChanging: true, to: context.images)
            }
        }
    }

    /// Writes the layout of a process with what its copy told.
    private static func finishLayout(
        of process: DumpedProcess, _ guards: [AddressRange], _ context: DumpContext
    ) throws(Failure) {
        guard var layout = Layouts.of(context).unfinished.removeValue(forKey: process.id) else {
            throw Failure(.bug, "a copy without a layout")
        }
        let known = Dictionary(process.mappings.map { ($0.range.start.rawValue, $0) }) { $1 }
        let areas = layout.vmas.indices.filter { layout.vmas[$0].status & AreaStatus.guardPages.rawValue == 0 }
        for index in areas {
            if let mapping = known[layout.vmas[index].start] { describeFlags(of: mapping, &layout.vmas[index]) }
        }
        layout.vmas += guards.map(describe)
        try context.images.write(.memory(process.number), [layout])
    }

    private static func write(
        _ pages: FoundPages, of process: DumpedProcess, _ source: PageSource, _ context: DumpContext
    ) throws(Failure) {
        let writing = ContinuousClock.now
        try storePages(
            pages.pagemap, of: .process(process.number), pages.stretches, from: source, to: context.images)
        context.statistics.pagesWritten += pages.pagemap.presentPages
        context.statistics[.memoryWrite] += ContinuousClock.now - writing
    }

    /// Mappings whose pages or guard pages are the process's own.
    private static func own(_ process: DumpedProcess) -> [PagemapScan.Region] {
        // Shared memory is written elsewhere, but guard pages in it are each process's own.
        let own = process.mappings.filter {
            (!$0.isShared || $0.flags.contains("gu") || process.isForeseen) && !$0.isOfKernel && !$0.isDevice
                && !$0.isSocket
        }
        return own.map(\.scanned)
    }

    /// Finds the private pages of a stopped process, and the guard pages.
    private static func findPages(
        _ process: DumpedProcess, _ context: DumpContext, in copy: MemoryCopy? = nil, sharesPages: Bool = true
    ) throws(Failure) -> (pages: FoundPages, guards: [AddressRange]) {
        let started = ContinuousClock.now
        var scan = try PagemapScan(copy?.id ?? process.id)
        let tracking = MemoryTracking.of(context)
        var findings = try scan.scan(own(process), findsUnwritten: tracking.tells(process))
        if copy != nil, let huge = HeldMemory.of(context).hugePages(of: process.id) {
            findings.pages = (findings.pages + huge.data).sorted { $0.start < $1.start }
        }
        var stretches: [PageStretch] = []
        var runs: [PageRun] = []
        var guards: [AddressRange] = []
        var (nextPage, nextGuard) = (0, 0)
        for mapping in process.mappings {
            if mapping.isNamed("[vdso]") || mapping.isAioRing {
                stretches.append(PageStretch(mapping.range, isReadable: false))
                runs.append(PageRun(address: mapping.range.start, pages: mapping.range.length / pageSize))
                continue
            }
            if mapping.isShared {
                guards += parts(of: findings.guards, in: mapping.range, from: &nextGuard)
                continue
            }
            if mapping.isOfKernel || mapping.isDevice { continue }
            // What may be dropped at any moment is.
            if mapping.flags.contains("dp") { continue }
            context.statistics.pagesScanned += mapping.range.length / pageSize
            // What is missing is told from zeros.
            var missing = 0
            let pages =
                mapping.flags.contains("um")
                ? parts(of: try scan.present(mapping.range), in: mapping.range, from: &missing)
                : parts(of: findings.pages, in: mapping.range, from: &nextPage)
            for part in pages {
                stretches.append(PageStretch(part, isReadable: mapping.protection & 1 != 0 && !mapping.hasSharedPages))
                runs.append(PageRun(address: part.start, pages: part.length / pageSize, isLazy: mapping.canBeLazy))
            }
            guards += parts(of: findings.guards, in: mapping.range, from: &nextGuard)
        }
        let id = context.images.newPagesID()
        runs = tracking.divide(runs, of: process, unwritten: findings.unwritten)
        // A page server knows no pages of relatives.
        if sharesPages, context.processes.count > 1, context.images.pageReceiver == nil, !context.policy.leavesPages {
            runs = try SharedPages.of(context).divide(runs, of: process, pagesID: id, scan)
        }
        if context.policy.leavesPages {
            LazySource.of(context).pages.add(
                process.number, stretches, from: .task(process.id, memory: process.memory.number))
            for index in runs.indices where runs[index].isLazy {
                (runs[index].isPresent, runs[index].isInParent) = (false, false)
                context.statistics.pagesLazy += runs[index].pages
            }
        }
        if runs.contains(where: { !$0.isPresent }) { stretches = written(stretches, runs) }
        context.statistics.pagesSkippedParent += runs.reduce(0) { $0 + ($1.isInParent ? $1.pages : 0) }
        try tracking.arm(process, &scan, findings)
        context.statistics[.memoryDump] += ContinuousClock.now - started
        return (FoundPages(stretches: stretches, pagemap: Pagemap(pagesID: id, runs: runs)), guards)
    }
}

extension VMA {
    /// For a scan of its pages.
    var scanned: PagemapScan.Region { PagemapScan.Region(range, isAnonymous: inode == 0 && !isShared) }
}
