internal import CLinux
internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Pages
internal import Procfs
internal import Remote

/// One process's address space under construction.
struct AddressSpace {
    private let process: RestoredProcess
    private let plan: MemoryPlan
    private let parent: MemoryPlan?
    private let context: RestoreContext
    private var puppet: Puppet { process.puppet }

    init(_ process: RestoredProcess, _ plan: MemoryPlan, _ parent: MemoryPlan?, _ context: RestoreContext) {
        self.process = process
        self.plan = plan
        self.parent = parent
        self.context = context
    }

    /// From this many pages on a userfaultfd pays.
    private static let manyPages: UInt64 = 64
    /// One past the last address that a task can have.
    private static let end: UInt64 = 0x7fff_ffff_f000

    // MARK: build

    func build() throws(Failure) {
        let placement: MemoryRestore.Placement
        if let inherited = parent?.placement {
            placement = inherited
        } else {
            let mappings = try VMA.readPlain(of: process.task)
            placement = MemoryRestore.Placement(mappings: mappings.filter(\.isOfKernel))
        }
        let kept = inherited()
        var batch = Batch()
        let final = try moveKernelMappings(placement, kept, &batch)
        let numbers = try deliverFiles(except: kept)
        for (index, area) in plan.areas.enumerated() where area.isMapped && kept[index] == nil {
            if area.status.contains(.sysv) {
                try attach(area, &batch)
                continue
            }
            try map(area, protection: plan.mappedProtection[index], numbers[index], &batch)
        }
        let (pieces, fresh, huge, drops) = try difference(kept)
        for drop in drops {
            batch.add(
                .madvise, .address(drop.start), .value(Int(drop.length)), .value(4), doing: "drop inherited pages")
        }
        for (index, inherited) in kept {
            if inherited & 2 == 0, plan.mappedProtection[index] & 2 != 0 {
                let range = plan.areas[index].range
                batch.add(
                    .mprotect, .address(range.start), .value(Int(range.length)), .value(plan.mappedProtection[index]),
                    doing: "make inherited memory writable")
            } else {
                plan.mappedProtection[index] = inherited
            }
        }
        for number in Set(numbers.values) { batch.add(.close, .descriptor(number), doing: "close a mapped file") }
        plan.placement = final
        try fill(pieces, fresh, batch)
        try fill(huge: huge)
        try writeJumps()
    }

    /// Which areas the parent's memory already has, with the protection that they have now.
    private func inherited() -> [Int: Int] {
        guard let parent else { return [:] }
        var kept: [Int: Int] = [:]
        var next = 0
        for (index, area) in plan.areas.enumerated() {
            while next < parent.areas.count, parent.areas[next].range.start < area.range.start { next += 1 }
            guard next < parent.areas.count else { break }
            if area.isInheritable(from: parent.areas[next]) { kept[index] = parent.mappedProtection[next] }
        }
        return kept
    }

    /// Unmaps everything that does not stay, and moves what the kernel made to its place.
    private func moveKernelMappings(
        _ placement: MemoryRestore.Placement, _ kept: [Int: Int], _ batch: inout Batch
    ) throws(Failure) -> MemoryRestore.Placement {
        let moves = try self.moves(placement)
        var final = MemoryRestore.Placement(mappings: moves.map(\.0))
        for (index, (_, place)) in moves.enumerated() { final.mappings[index].range = place }
        final.mappings.sort { $0.range.start < $1.range.start }
        var stays = kept.keys.map { plan.areas[$0].range } + [puppet.runway]
        if moves.allSatisfy({ $0.0.range == $0.1 }) {
            unmap(except: stays + moves.map(\.1), &batch)
            return final
        }
        // Places may overlap, so all go aside first.
        let taken = plan.areas.map(\.range) + stays + placement.mappings.map(\.range) + moves.map(\.1)
        let parking = try RestorePlan.hole(in: taken, size: 1 << 20)
        stays.append(parking)
        var parked: [(Address, AddressRange)] = []
        var at = parking.start
        for (mapping, place) in moves {
            move(mapping.range, to: at, &batch)
            parked.append((at, place))
            at = at + mapping.range.length
        }
        unmap(except: stays, &batch)
        for (from, place) in parked {
            move(AddressRange(start: from, end: from + place.length), to: place.start, &batch)
        }
        return final
    }

    private func move(_ range: AddressRange, to address: Address, _ batch: inout Batch) {
        let length = Int(range.length)
        batch.add(
            .mremap, .address(range.start), .value(length), .value(length), .value(3), .address(address),
            doing: "move the vdso")
    }

    private func unmap(except stays: [AddressRange], _ batch: inout Batch) {
        var at: UInt64 = 0
        for range in stays.sorted(by: { $0.start < $1.start }) + [AddressRange(AddressSpace.end, AddressSpace.end)] {
            if range.start.rawValue > at {
                batch.add(
                    .munmap, .address(Address(at)), .value(Int(range.start.rawValue - at)),
                    doing: "clear the address space")
            }
            at = max(at, range.end.rawValue)
        }
    }

    /// Pairs the kernel's mappings with their places.
    private func moves(_ placement: MemoryRestore.Placement) throws(Failure) -> [(VMA, AddressRange)] {
        let code = placement.mappings.filter { $0.isNamed("[vdso]") }
        let variables = placement.mappings.filter { !$0.isNamed("[vdso]") }
        switch plan.vdso.place {
        case .none: return []
        case .image(let variablesPlace, let codePlace):
            let length = variables.reduce(0) { $0 + $1.range.length }
            guard variablesPlace?.length ?? length == length, code.count == 1,
                codePlace?.length ?? code[0].range.length == code[0].range.length
            else { throw Failure(.unsupported, "the vdso of this kernel has another size than the image's") }
            var moves: [(VMA, AddressRange)] = []
            if var at = variablesPlace?.start {
                for mapping in variables {
                    moves.append((mapping, AddressRange(start: at, end: at + mapping.range.length)))
                    at = at + mapping.range.length
                }
            }
            if let codePlace { moves.append((code[0], codePlace)) }
            return moves
        case .hole:
            guard code.count == 1, let first = placement.mappings.first, let last = placement.mappings.last else {
                throw Failure(.unsupported, "the parent of the process has no vdso that it could inherit")
            }
            let start = try hole(last.range.end.rawValue - first.range.start.rawValue)
            return placement.mappings.map { mapping in
                let at = start + (mapping.range.start.rawValue - first.range.start.rawValue)
                return (mapping, AddressRange(start: at, end: at + mapping.range.length))
            }
        }
    }

    /// Room that a stack may grow into.
    private static let stackRoom: UInt64 = 1 << 30

    /// The highest free range, which is where the kernel places a vdso: above the stack, so that neither a growing heap
    /// or stack nor later mappings come there.
    private func hole(_ size: UInt64) throws(Failure) -> Address {
        var taken = plan.areas.filter { $0.isMapped }.map { area in
            let room = area.flags & MapFlags.growsDown != 0 ? min(AddressSpace.stackRoom, area.range.start.rawValue) : 0
            return AddressRange(area.range.start.rawValue - room, area.range.end.rawValue)
        }
        taken.append(puppet.runway)
        var end = AddressSpace.end
        for range in taken.sorted(by: { $0.end > $1.end }) {
            if range.end.rawValue + size <= end { break }
            end = min(end, range.start.rawValue)
        }
        guard end > size else { throw Failure(.unsupported, "no \(size) bytes of address space are free for the vdso") }
        return Address(end - size)
    }

    /// Leads the functions of an old vdso to the kernel's.
    private func writeJumps() throws(Failure) {
        guard !plan.vdso.jumps.isEmpty else { return }
        guard let code = plan.placement?.mappings.first(where: { $0.isNamed("[vdso]") }) else {
            throw Failure(.bug, "no vdso to jump to")
        }
        let memory = try TaskMemory(process.task)
        for (place, function) in plan.vdso.jumps {
            try attempt("redirect the old vdso") { () throws(SystemCallError) in
                try memory.write(Jump.code(to: code.range.start + UInt64(function)), at: place)
            }
        }
    }

    /// Delivers every file that is mapped anew, each once. The numbers are the puppet's, by area.
    private func deliverFiles(except kept: [Int: Int]) throws(Failure) -> [Int: RemoteDescriptor] {
        let built = BuiltMemories.of(context)
        var ours: [Int32] = []
        var places: [Int32: Int] = [:]
        var users: [(area: Int, place: Int)] = []
        for (index, area) in plan.areas.enumerated() where area.isMapped && kept[index] == nil {
            guard
                let number = try during(
                    .mapping(area.range), { () throws(Failure) in try built.number(for: area, context) })
            else { continue }
            if places[number] == nil {
                places[number] = ours.count
                ours.append(number)
            }
            users.append((index, places[number] ?? 0))
        }
        let arrived = try context.deliver(ours, to: puppet)
        var found: [Int: RemoteDescriptor] = [:]
        for (area, place) in users { found[area] = arrived[place] }
        return found
    }

    private func map(
        _ area: Area, protection: Int, _ file: RemoteDescriptor?, _ batch: inout Batch
    ) throws(Failure) {
        var flags =
            area.flags
            & (MapFlags.shared | MapFlags.private | MapFlags.droppable | MapFlags.growsDown | MapFlags.noReserve)
        if flags & MapFlags.droppable != 0 { flags &= ~MapFlags.private }
        if area.flags & MapFlags.hugePages != 0, file == nil {
            flags |= MapFlags.hugePages | area.flags & (0x3f << MapFlags.hugeShift)
        }
        if file == nil { flags |= MapFlags.anonymous }
        let offset = try file == nil ? 0 : area.status.contains(.device) ? deviceOffset(area) : area.offset
        batch.add(
            .mmap, .address(area.range.start), .value(Int(area.range.length)), .value(protection),
            .value(flags | MapFlags.fixedNoReplace), file.map { .descriptor($0) } ?? .value(-1),
            .bits(offset), doing: "map memory")
    }

    /// Where a plugin has what it gave for a mapping of device memory.
    private func deviceOffset(_ area: Area) throws(Failure) -> UInt64 {
        try during(.mapping(area.range)) { () throws(Failure) in
            guard let entry = context.entry(UInt32(truncatingIfNeeded: area.file)), entry.ext.hasPlugin else {
                throw Failure(.corruptImage, "no plugin made the device that it maps")
            }
            var request = PluginMessage("map")
            request.add("file", "\(entry.id)")
            request.add("range", "\(area.range)")
            request.add("offset", "\(area.offset)")
            request.add("task", "\(process.id) \(process.name)")
            let plugin = try context.plugins.plugin(named: String(decoding: entry.ext.plugin, as: UTF8.self))
            let (answer, descriptor) = try plugin.ask(request)
            if let descriptor { _ = try? systemCall(.close, Int(descriptor)) }
            guard let text = answer.first("offset") else { return area.offset }
            guard let offset = UInt64(text), offset % pageSize == 0, offset < 1 << 63 else {
                throw plugin.broken("the offset \(text.prefix(40)) is none")
            }
            return offset
        }
    }

    /// Attaches a System V segment. A part of one is attached as a whole elsewhere, and moved.
    private func attach(_ area: Area, _ batch: inout Batch) throws(Failure) {
        let whole = SystemVSegments.of(context).length(area.file) ?? 0
        guard area.offset < whole, area.range.length <= whole - area.offset else {
            throw Failure(.corruptImage, "the mapping \(area.range) reaches beyond its segment")
        }
        // SHM_RDONLY, SHM_EXEC
        let flags = (area.access == 0 ? 0o10000 : 0) | (area.protection & 4 != 0 ? 0o100000 : 0)
        let id = Batch.Argument.bits(area.file)
        if area.range.length == whole {
            batch.add(.shmat, id, .address(area.range.start), .value(flags), doing: "attach a System V segment")
            return
        }
        let taken = plan.areas.map(\.range) + [puppet.runway]
        let parking = try RestorePlan.hole(in: taken, size: whole)
        let part = parking.start + area.offset
        let length = Batch.Argument.bits(area.range.length)
        batch.add(.shmat, id, .address(parking.start), .value(flags), doing: "attach a System V segment")
        batch.add(
            .mremap, .address(part), length, length, .value(3), .address(area.range.start),
            doing: "move a part of a System V segment")
        batch.add(.munmap, .address(parking.start), .bits(whole), doing: "detach the rest of a System V segment")
    }

    // MARK: pages

    /// Which pages must be written: those in fresh mappings, whole huge pages apart, and those that differ from the parent's.
    /// Also the inherited pages that this process does not have.
    private func difference(
        _ kept: [Int: Int]
    ) throws(Failure) -> (written: [PagePiece], fresh: [PagePiece], huge: [PagePiece], drops: [AddressRange]) {
        var written: [PagePiece] = []
        var fresh: [PagePiece] = []
        var huge: [PagePiece] = []
        var drops: [AddressRange] = []
        var own = PieceCursor(plan.pieces)
        var theirs = PieceCursor(parent?.pieces ?? [])
        for (index, area) in plan.areas.enumerated() {
            let mine = own.pieces(in: area.range)
            guard area.isPrivate else { continue }
            guard kept[index] != nil else {
                let quick =
                    area.status.contains(.anonymousPrivate)
                    && area.flags & (MapFlags.hugePages | MapFlags.droppable) == 0
                if quick, !plan.entry.thpDisabled {
                    let runs = HugeRuns.cut(mine, in: area)
                    (huge, fresh) = (huge + runs.huge, fresh + runs.rest)
                } else if quick {
                    fresh += mine
                } else {
                    written += mine
                }
                continue
            }
            try compare(mine, theirs.pieces(in: area.range), &written, &drops)
        }
        context.statistics.pagesRestored += (written + fresh + huge).reduce(0) { $0 + $1.range.length / pageSize }
        return (written, fresh, huge, drops)
    }

    private func compare(
        _ mine: [PagePiece], _ theirs: [PagePiece], _ written: inout [PagePiece], _ drops: inout [AddressRange]
    ) throws(Failure) {
        let comparison = PageComparison()
        var index = 0
        func drop(_ start: Address, _ end: Address) {
            guard start < end else { return }
            if let last = drops.last, last.end == start {
                drops[drops.count - 1].end = end
            } else {
                drops.append(AddressRange(start: start, end: end))
            }
        }
        func write(_ piece: PagePiece, _ range: AddressRange) {
            if let last = written.last, last.isFollowed(by: piece.part(in: range)) {
                written[written.count - 1] = written[written.count - 1].extended(to: range.end)
            } else {
                written.append(piece.part(in: range))
            }
        }
        var theirAt = theirs.first?.range.start ?? Address(.max)
        for piece in mine {
            var at = piece.range.start
            while at < piece.range.end {
                // Their pages before ours are not ours.
                while index < theirs.count, theirs[index].range.end <= at {
                    drop(max(theirAt, theirs[index].range.start), theirs[index].range.end)
                    index += 1
                    theirAt = index < theirs.count ? theirs[index].range.start : Address(.max)
                }
                if index < theirs.count, theirAt < at {
                    drop(theirAt, at)
                    theirAt = at
                }
                let next = at + pageSize
                if index < theirs.count, theirs[index].range.contains(at) {
                    context.statistics.pagesCompared += 1
                    if try comparison.areEqual(piece, theirs[index], at: at) {
                        context.statistics.pagesSkippedCopyOnWrite += 1
                    } else {
                        write(piece, AddressRange(start: at, end: next))
                    }
                    theirAt = next
                } else {
                    write(piece, AddressRange(start: at, end: next))
                }
                at = next
            }
        }
        while index < theirs.count {
            drop(max(theirAt, theirs[index].range.start), theirs[index].range.end)
            index += 1
            theirAt = index < theirs.count ? theirs[index].range.start : Address(.max)
        }
    }

    private func fill(_ pieces: [PagePiece], _ fresh: [PagePiece], _ batch: consuming Batch) throws(Failure) {
        let pages = fresh.reduce(0) { $0 + $1.range.length } / pageSize
        // Ordinary writes could bring in huge pages, with pages that have to stay missing.
        let hasMissing = plan.areas.contains { $0.more.contains("um") }
        guard pages >= AddressSpace.manyPages || (pages > 0 && hasMissing) else {
            try puppet.run(batch)
            try PageCopy.write(pieces + fresh, into: process.task)
            return
        }
        // The fault handler of a moment: registered ranges are filled page by page without faults or zeroing.
        // UFFD_USER_MODE_ONLY needs no privileges.
        let flags = context.owners.isApart ? 0o2004001 : 0o2004000
        let opened = batch.add(.userfaultfd, .value(flags), doing: "open a userfaultfd", mayFail: true)
        let interface = batch.place(value: (UInt64(0xaa), UInt64(0), UInt64(0)))
        batch.add(
            .ioctl, .result(opened), .value(0xc018_aa3f), .buffer(interface), doing: "use a userfaultfd", mayFail: true)
        var registered: [Batch.Slot] = []
        for area in plan.areas where isFilledQuickly(area, fresh) {
            let request = batch.place(value: (area.range.start.rawValue, area.range.length, UInt64(1), UInt64(0)))
            // The descriptor is fed forward once a call, so it is asked for again by its known number.
            registered.append(
                batch.add(
                    .ioctl, .value(Int(lowestFree)), .value(0xc020_aa00), .buffer(request), doing: "watch memory",
                    mayFail: true))
        }
        let results = try puppet.run(batch)
        guard let number = results.success(opened), number == Int(lowestFree),
            registered.allSatisfy({ results.success($0) != nil })
        else {
            if let number = results.success(opened) { try closeRemote(number) }
            try PageCopy.write(pieces + fresh, into: process.task)
            return
        }
        let handle = try attempt("fetch the userfaultfd") { () throws(SystemCallError) in
            try puppet.fetch(number)
        }
        try PageCopy.copy(fresh, through: handle.number)
        try closeRemote(number)
        try PageCopy.write(pieces, into: process.task)
    }

    /// Writes whole huge pages, after all others: an ordinary write could bring in a huge page where some have to stay missing.
    private func fill(huge: [PagePiece]) throws(Failure) {
        guard !huge.isEmpty else { return }
        var batch = Batch()
        // The advice to a part would leave two mappings for ever, as each gets pages while they are two.
        for area in plan.areas where HugeRuns.needsAdvice && area.isMapped && area.wantsHugePages {
            batch.add(
                .madvise, .address(area.range.start), .value(Int(area.range.length)), .value(14),
                doing: "ask for huge pages", mayFail: true)
        }
        try puppet.run(batch)
        try PageCopy.writeByThreads(huge, into: process.task)
    }

    /// The number that the next descriptor gets: the table holds nothing but the courier's socket, high up.
    private var lowestFree: Int32 { 0 }

    private func closeRemote(_ number: Int) throws(Failure) {
        var batch = Batch()
        batch.add(.close, .value(number), doing: "close the userfaultfd")
        try puppet.run(batch)
    }

    private func isFilledQuickly(_ area: Area, _ fresh: [PagePiece]) -> Bool {
        guard area.isMapped, area.status.contains(.anonymousPrivate) else { return false }
        var (low, high) = (0, fresh.count)
        while low < high {
            let middle = (low + high) / 2
            if fresh[middle].range.end <= area.range.start { low = middle + 1 } else { high = middle }
        }
        return low < fresh.count && fresh[low].range.start < area.range.end
    }

    // MARK: finish

    func finish() throws(Failure) {
        try AioRing.restore(plan, puppet, context)
        let executable = try context.deliver([try context.files.number(plan.entry.exeFileID)], to: puppet)
        var batch = Batch()
        allocateKeys(&batch)
        var policies: [(Area, Batch.Slot)] = []
        for (index, area) in plan.areas.enumerated() where area.isMapped {
            let (start, length) = (
                Batch.Argument.address(area.range.start), Batch.Argument.value(Int(area.range.length))
            )
            if area.key != 0, !area.isExecuteOnly || plan.allocates(area.key) {
                batch.add(
                    .pkey_mprotect, start, length, .value(area.protection), .value(Int(area.key)),
                    doing: "protect memory by a key (does this CPU have them?)")
            } else if plan.mappedProtection[index] != area.protection {
                batch.add(.mprotect, start, length, .value(area.protection), doing: "protect memory")
            }
            if area.policy != 0 {
                let nodes = batch.place(area.nodes)
                policies.append(
                    (
                        area,
                        batch.add(
                            .mbind, start, length, .bits(UInt64(area.policy)),
                            area.nodes.contains { $0 != 0 } ? .buffer(nodes) : .value(0),
                            .value(area.nodes.contains { $0 != 0 } ? area.nodes.count * 8 + 1 : 0), .value(2),
                            doing: "set the memory policy of a mapping", mayFail: true)
                    ))
            }
            for bit in 1..<64 where area.advice >> UInt64(bit) & 1 == 1 {
                batch.add(.madvise, start, length, .value(bit), doing: "set an attribute of memory", mayFail: true)
            }
            if !area.name.isEmpty {
                let name = batch.place(string: area.name)
                batch.add(
                    .prctl, .value(0x5356_4d41), .value(0), start, length, .buffer(name), doing: "name memory",
                    mayFail: true)
            }
        }
        // Behind the attributes, which keep neighbours apart: what is joined for a moment has the guards' flag for good.
        // Before the locks, as locked memory takes no guard pages.
        for range in plan.guards {
            batch.add(
                .madvise, .address(range.start), .value(Int(range.length)), .value(102), doing: "install guard pages")
        }
        for area in plan.areas where area.isMapped && area.flags & MapFlags.locked != 0 {
            let (start, length) = (
                Batch.Argument.address(area.range.start), Batch.Argument.value(Int(area.range.length))
            )
            batch.add(.mlock2, start, length, .value(1), doing: "lock memory")
            if !area.more.contains("lf") {
                // What can't be accessed can't be brought in, and is locked all the same.
                batch.add(.mlock2, start, length, .value(0), doing: "bring in locked memory", mayFail: true)
            }
        }
        freeKeys(&batch)
        if plan.entry.thpDisabled {
            batch.add(
                .prctl, .value(41), .value(1), .bits(UInt64(plan.entry.thpFlags)), .value(0), .value(0),
                doing: "turn huge pages off")
        }
        setLayout(&batch, executable[0])
        batch.add(.close, .descriptor(executable[0]), doing: "close the executable")
        if plan.entry.lockAll != 0 {
            batch.add(
                .mlockall, .bits(UInt64(plan.entry.lockAll) & UInt64(LockAll.future | LockAll.onFault)),
                doing: "lock all future memory")
        }
        var seals: [(Area, Batch.Slot)] = []
        for area in plan.areas where area.isMapped && area.more.contains("sl") {
            let slot = batch.add(
                .mseal, .address(area.range.start), .value(Int(area.range.length)), .value(0), doing: "seal memory",
                mayFail: true)
            seals.append((area, slot))
        }
        let results = try puppet.run(batch)
        for (area, slot) in policies where results.success(slot) == nil {
            context.log.warning("task \(process.id): the NUMA policy of \(area.range) can't be had here")
        }
        for (area, slot) in seals where results.success(slot) == nil {
            context.log.warning("task \(process.id): \(area.range) is not sealed, this kernel can't do it")
        }
    }

    /// Keys are given out from the lowest on. The kernel needs one of its own for memory that can only be executed: just
    /// that one is free when such memory is protected.
    private func allocateKeys(_ batch: inout Batch) {
        let kernels = plan.areas.first { $0.isExecuteOnly && $0.key != 0 && !plan.allocates($0.key) }?.key
        guard let last = plan.lastKey else { return }
        for _ in 1...last {
            batch.add(
                .pkey_alloc, .value(0), .value(0), doing: "allocate a protection key (does this CPU have them?)")
        }
        if let kernels { batch.add(.pkey_free, .value(Int(kernels)), doing: "free a protection key") }
    }

    private func freeKeys(_ batch: inout Batch) {
        guard let last = plan.lastKey else { return }
        let kernels = Set(plan.areas.filter(\.isExecuteOnly).map(\.key))
        for key in 1...last where !plan.allocates(key) && !kernels.contains(key) {
            batch.add(.pkey_free, .value(Int(key)), doing: "free a protection key")
        }
    }

    private func setLayout(_ batch: inout Batch, _ executable: RemoteDescriptor) {
        let entry = plan.entry
        var vector = entry.mmSavedAuxv
        vector += [0, 0]
        let words = batch.place(vector.flatMap { [UInt8](bytesOf: $0) })
        var map = clinux_mm_map()
        (map.start_code, map.end_code) = (entry.mmStartCode, entry.mmEndCode)
        (map.start_data, map.end_data) = (entry.mmStartData, entry.mmEndData)
        (map.start_brk, map.brk, map.start_stack) = (entry.mmStartBrk, entry.mmBrk, entry.mmStartStack)
        (map.arg_start, map.arg_end) = (entry.mmArgStart, entry.mmArgEnd)
        (map.env_start, map.env_end) = (entry.mmEnvStart, entry.mmEnvEnd)
        map.auxv_size = UInt32(vector.count * 8)
        map.exe_fd = executable.number
        let place = batch.place(value: map)
        batch.point(place, at: MemoryLayout<clinux_mm_map>.offset(of: \.auxv) ?? 0, to: words)
        batch.add(
            .prctl, .value(35), .value(14), .buffer(place), .value(MemoryLayout<clinux_mm_map>.size), .value(0),
            doing: "set the memory layout")
    }
}

extension SystemCall {
    /// `mseal(2)`, newer than the headers.
    fileprivate static let mseal = SystemCall(rawValue: 462)
}

/// Walks along ascending pieces.
private struct PieceCursor {
    private let pieces: [PagePiece]
    private var next = 0

    init(_ pieces: [PagePiece]) { self.pieces = pieces }

    /// The parts that lie in a range; ranges must be asked for in ascending order.
    mutating func pieces(in range: AddressRange) -> [PagePiece] {
        while next < pieces.count, pieces[next].range.end <= range.start { next += 1 }
        var found: [PagePiece] = []
        var index = next
        while index < pieces.count, pieces[index].range.start < range.end {
            found.append(pieces[index].part(in: range))
            index += 1
        }
        return found
    }
}
