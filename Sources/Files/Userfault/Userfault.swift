internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// A handler of page faults (`userfaultfd(2)`) that waits for none.
enum Userfault: FileKind {
    // UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WRITEPROTECT
    private static let interface = 0xc018_aa3f, register = 0xc020_aa00, unregister = 0x8010_aa01
    private static let protect = 0xc018_aa06
    /// How a range is watched: `UFFDIO_REGISTER_MODE_*`, and the letters in smaps.
    private static let modes: [(letters: StaticString, bit: UInt64)] = [("um", 1), ("uw", 2), ("ui", 4)]
    /// Set by the kernel when the features are agreed upon.
    private static let initialized: UInt64 = 1 << 31

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:[userfaultfd]" }

    // MARK: dump

    /// Which ranges have a handler in the tree.
    private final class Watched {
        var ranges: Set<Place> = []
        struct Place: Hashable {
            let memory: UInt32, start: UInt64
        }
        static func of(_ context: DumpContext) -> Watched { context.state(Watched.self) { Watched() } }
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        var entry = UserfaultEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        guard let features = features(file.facts) else {
            throw Failure(.kernelTooOld, "the kernel does not tell its features")
        }
        if file.facts.information.value("total", base: 10) != 0 {
            throw Failure(
                .unsupported, "faults or events wait for this handler of page faults (userfaultfd)",
                advice: "Try again when it has nothing to do")
        }
        if features & initialized != 0 {
            entry.features = features & ~initialized
            let process = try watched(by: file, context)
            entry.owner = UInt32(bitPattern: process.number)
            entry.ranges = try ranges(of: file, process, context)
        } else {
            // Nothing tells whose memory it would watch: of those who have it, the first is all others' ancestor.
            entry.owner = UInt32(bitPattern: file.owner.number)
        }
        var whole = FileEntry(.userfault, file.id)
        whole.userfault = entry
        return whole
    }

    /// The middle number of `API: aa:FEATURES:SUPPORTED`.
    private static func features(_ facts: FileFacts) -> UInt64? {
        for line in facts.information.lines where line.starts(with: "API:".utf8) {
            let words = line.split { $0 == 0x3a || $0 == 0x09 || $0 == 0x20 }
            if words.count == 4 { return UInt64(String(decoding: words[2], as: UTF8.self), radix: 16) }
        }
        return nil
    }

    /// Whose memory it watches: a page that just one process has can be registered only if it is that process's memory.
    private static func watched(by file: OpenFile, _ context: DumpContext) throws(Failure) -> DumpedProcess {
        let having = context.processes.filter { $0 === file.owner } + context.processes.filter { $0 !== file.owner }
        var tried: Set<UInt32> = []
        let all = context.processes.flatMap(\.mappings).map(\.range)
        // The server's runway takes the beginning.
        let place = try RestorePlan.hole(in: all, size: Server.runwaySize + 2 * pageSize)
        let page = AddressRange(place.end.rawValue - pageSize, place.end.rawValue)
        for process in having where tried.insert(process.ids.vmID).inserted {
            if try isWatched(process, by: file.handle.number, page, context) { return process }
        }
        throw Failure(
            .unsupported, "it handles page faults of a task that is not in the tree, or gone",
            advice: "Dump that task as well, or close the handler before the dump")
    }

    private static func isWatched(
        _ process: DumpedProcess, by number: Int32, _ page: AddressRange, _ context: DumpContext
    ) throws(Failure) -> Bool {
        var map = Batch()
        // MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE
        map.add(
            .mmap, .address(page.start), .bits(page.length), .value(3), .value(0x10_0022), .value(-1), .value(0),
            doing: "map a page")
        _ = try context.run(map, in: process)
        let isWatched = tryRegister(page, 1, number) == nil
        if isWatched {
            var range = (page.start.rawValue, page.length)
            _ = try? withAddress(of: &range) { (range) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), unregister, range)
            }
        }
        var unmap = Batch()
        unmap.add(.munmap, .address(page.start), .bits(page.length), doing: "unmap a page")
        _ = try context.run(unmap, in: process)
        return isWatched
    }

    /// Registers a range; the error if that can't be. It changes nothing if the range is registered in this way already.
    private static func tryRegister(_ range: AddressRange, _ mode: UInt64, _ number: Int32) -> SystemCallError? {
        var request = (range.start.rawValue, range.length, mode, UInt64(0))
        do throws(SystemCallError) {
            try withAddress(of: &request) { (request) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), register, request)
            }
            return nil
        } catch { return error }
    }

    private static func mode(_ mapping: VMA) -> UInt64 {
        modes.reduce(0) { mapping.flags.contains($1.letters) ? $0 | $1.bit : $0 }
    }

    /// The ranges that this handler watches; those of others are busy.
    private static func ranges(
        of file: OpenFile, _ process: DumpedProcess, _ context: DumpContext
    ) throws(Failure) -> [UserfaultRange] {
        var found: [UserfaultRange] = []
        try process.readFlags()
        for mapping in process.mappings where mode(mapping) != 0 {
            if let error = tryRegister(mapping.range, mode(mapping), file.handle.number) {
                if error.errno == .EBUSY { continue }
                throw Failure(
                    .denied, "can't tell whether it handles the page faults of \(mapping.range)", cause: error)
            }
            Watched.of(context).ranges.insert(
                Watched.Place(memory: process.ids.vmID, start: mapping.range.start.rawValue))
            if mapping.isShared || mapping.inode != 0 || mapping.flags.contains("ht") {
                throw Failure(
                    .unsupported, "it handles page faults of \(mapping.range), which is shared memory or of huge pages",
                    advice: "Unregister that before the dump")
            }
            var range = UserfaultRange()
            (range.start, range.end) = (mapping.range.start.rawValue, mapping.range.end.rawValue)
            range.mode = UInt32(mode(mapping))
            if mode(mapping) & 2 != 0 { range.protected = try protectedPages(mapping.range, of: process) }
            found.append(range)
        }
        return found
    }

    /// Starts and ends of the stretches of protected pages, by bit 57 of the pagemap.
    private static func protectedPages(_ range: AddressRange, of process: DumpedProcess) throws(Failure) -> [UInt64] {
        let file = try attempt("open the pagemap") { () throws(SystemCallError) in
            try openFile("/proc/\(process.id.rawValue)/pagemap")
        }
        var found: [UInt64] = []
        var words = [UInt64](repeating: 0, count: 8192)
        var at = range.start.rawValue
        while at < range.end.rawValue {
            let wanted = Int(min(UInt64(words.count), (range.end.rawValue - at) / pageSize))
            let offset = at / pageSize * 8
            let got = try attempt("read the pagemap") { () throws(SystemCallError) in
                try words.withAddress { (address, _) throws(SystemCallError) in
                    try readFully(file.number, into: address, count: wanted * 8, at: offset)
                }
            }
            guard got == wanted * 8 else { throw Failure(.vanished, "the pagemap ends at \(Address(at))") }
            for index in 0..<wanted where words[index] >> 57 & 1 == 1 {
                let page = at + UInt64(index) * pageSize
                if found.last == page {
                    found[found.count - 1] = page + pageSize
                } else {
                    found += [page, page + pageSize]
                }
            }
            at += UInt64(wanted) * pageSize
        }
        return found
    }

    /// Memory whose handler is elsewhere would be without one.
    static func finish(_ context: DumpContext) throws(Failure) {
        let watched = Watched.of(context).ranges
        for process in context.processes {
            for mapping in process.mappings where mode(mapping) & 5 != 0 {
                let place = Watched.Place(memory: process.ids.vmID, start: mapping.range.start.rawValue)
                guard !watched.contains(place) else { continue }
                try during(.dumping(process.id, process.name)) { () throws(Failure) in
                    throw Failure(
                        .unsupported,
                        "its page faults in \(mapping.range) are handled by a task that is not in the tree (userfaultfd)",
                        advice:
                            "Dump that task as well, let it unregister the memory, or wait until a lazy restore has brought all pages"
                    )
                }
            }
        }
    }

    // MARK: restore

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.userfault.rawValue) && entry.hasUserfault
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.userfault.fown }

    static func comesAfterTasks(_ entry: FileEntry) -> Bool { true }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.userfault
            let id = TaskID(Int32(bitPattern: entry.owner))
            guard let process = context.processes.first(where: { $0.id == id && !$0.plan.isZombie }) else {
                throw Failure(.corruptImage, "a userfaultfd watches the memory of task \(id), which is not in the tree")
            }
            var open = Batch()
            let slot = open.add(.userfaultfd, .value(0o2000000), doing: "create a userfaultfd")
            let number = Int(try process.puppet.run(open)[slot])
            let made = try attempt("fetch a userfaultfd") { () throws(SystemCallError) in
                let made = try process.puppet.fetch(number)
                try setStatusFlags(made.number, entry.flags)
                return made
            }
            var close = Batch()
            close.add(.close, .value(number), doing: "close a userfaultfd")
            _ = try process.puppet.run(close)
            if entry.hasFeatures {
                var request = (UInt64(0xaa), entry.features, UInt64(0))
                try attempt("agree upon the features of a userfaultfd", code: .kernelTooOld) {
                    () throws(SystemCallError) in
                    try withAddress(of: &request) { (request) throws(SystemCallError) in
                        try systemCall(.ioctl, Int(made.number), interface, request)
                    }
                }
            }
            try context.files.add(member.id, made)
        }
    }

    /// From here on whoever touches a missing page waits, so it comes last.
    static func start(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let number = try context.files.number(entry.id)
        for watched in entry.userfault.ranges {
            guard watched.start < watched.end, watched.mode > 0, watched.mode < 8, watched.protected.count % 2 == 0
            else {
                throw Failure(.corruptImage, "a userfaultfd watches nothing")
            }
            let range = AddressRange(watched.start, watched.end)
            try during(.mapping(range)) { () throws(Failure) in
                if let error = tryRegister(range, UInt64(watched.mode), number) {
                    throw Failure(.denied, "can't register it with a userfaultfd", cause: error)
                }
                for index in stride(from: 0, to: watched.protected.count, by: 2) {
                    let (start, end) = (watched.protected[index], watched.protected[index + 1])
                    guard start >= watched.start, start < end, end <= watched.end else {
                        throw Failure(.corruptImage, "pages beyond it are protected")
                    }
                    var request = (start, end - start, UInt64(1))  // UFFDIO_WRITEPROTECT_MODE_WP
                    try attempt("protect pages against writing") { () throws(SystemCallError) in
                        try withAddress(of: &request) { (request) throws(SystemCallError) in
                            try systemCall(.ioctl, Int(number), protect, request)
                        }
                    }
                }
            }
        }
    }
}
