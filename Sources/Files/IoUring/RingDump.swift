internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// Finds out about an idle ring all that can be known from outside.
struct RingDump {
    private let file: OpenFile
    private let context: DumpContext
    private let answers: [RingAnswers.Answer]
    private var process: TaskID { file.owner.id }
    private var entry = IoUringEntry()

    init(_ file: OpenFile, _ context: DumpContext) {
        self.file = file
        self.context = context
        answers = RingAnswers.of(context).all(file.number, of: file.owner.id)
    }

    /// The rings met so far that a thread of the kernel polls.
    private final class Polled {
        var rings: [Int32: UInt32] = [:]
    }

    mutating func run() throws(Failure) -> IoUringEntry {
        let layout = try RingParameters.ofKernel()
        let first = try RingFacts.read(of: process, file.number)
        guard Int(first.requestMask) < RingShape.mostRequests, Int(first.completionMask) < RingShape.mostCompletions
        else { throw Failure(.unsupported, "it is larger than any known ring") }
        var shape = RingShape(
            requests: Int(first.requestMask) + 1, completions: Int(first.completionMask) + 1, hasWideRequests: false,
            hasWideCompletions: false)
        let hasArray = try measure(&shape, layout)
        let memory = try RingMemory(file.handle.number, shape, layout, hasArray: hasArray)
        let facts = try settle(memory)
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        entry.inode = file.facts.status.inode
        (entry.owner, entry.fd) = (UInt32(bitPattern: context.numbers[process]), UInt32(bitPattern: file.number))
        (entry.sqEntries, entry.cqEntries) = (UInt32(shape.requests), UInt32(shape.completions))
        (entry.sqHead, entry.sqTail) = (facts.requestHead, memory.requestTail)
        (entry.cqHead, entry.cqTail) = (memory.completionHead, facts.completionTail)
        (entry.sqDropped, entry.cqOverflow) = (memory.dropped, memory.overflow)
        entry.cqFlags = memory.completionFlags
        entry.cqes = imageBytes(memory.completions)
        entry.array = imageBytes(indices(memory))
        entry.sqes = imageBytes(memory.requests)
        try setUp(facts, shape)
        try register(facts)
        return entry
    }

    // MARK: shape

    /// Whether the ring has memory at an offset for so many bytes. Some kernels grant longer mappings, which lead
    /// nowhere, and no shorter ones; others the reverse.
    private func fits(_ length: Int, at offset: Int) -> Bool {
        let ring = file.handle.number
        for whole in [RingDump.longest, length] {
            guard let mapped = try? Mapping(length: whole, flags: 1, file: ring, offset: offset),
                let memory = try? openFile("/proc/self/mem")
            else { continue }
            var byte: [UInt8] = [0]
            let (number, last) = (memory.number, UInt64(mapped.address + length - 1))
            let got = try? byte.withAddress { (address, count) throws(SystemCallError) in
                try readFully(number, into: address, count: count, at: last)
            }
            return got == 1
        }
        return false
    }

    /// As long as the requests of the largest ring, and longer than its completions with their array.
    private static let longest = 128 * RingShape.mostRequests

    private static func pages(_ length: Int) -> Int { (length + Int(pageSize) - 1) / Int(pageSize) }

    /// Finds the widths of requests and completions by how much can be mapped. Where a page holds either, bytes where
    /// the narrow form has none tell. Returns whether there is room for the array.
    private func measure(_ shape: inout RingShape, _ layout: RingParameters) throws(Failure) -> Bool {
        guard fits(1, at: RingMemory.ringsAt), fits(1, at: RingMemory.requestsAt) else {
            throw Failure(
                .unsupported, "the ring lies in memory that the program gave (IORING_SETUP_NO_MMAP)",
                advice: "Close it before the dump")
        }
        let start = Int(layout.completions.cqes)
        func isUsed(at offset: Int, from first: Int) throws(Failure) -> Bool {
            let ring = file.handle.number
            let length = Int(pageSize) * RingDump.pages(max(first, 1))
            let mapped = try attempt("map an io_uring") { () throws(SystemCallError) in
                try Mapping(length: length, flags: 1, file: ring, offset: offset)
            }
            return !mapped.bytes(at: first, count: length - first).allSatisfy { $0 == 0 }
        }
        let narrow = shape
        shape.hasWideRequests = true
        let wide = RingDump.pages(shape.requestBytes)
        shape.hasWideRequests =
            wide > RingDump.pages(narrow.requestBytes)
            ? fits(shape.requestBytes, at: RingMemory.requestsAt)
            : try isUsed(at: RingMemory.requestsAt, from: narrow.requestBytes)
        // The ring is as long as the longest of the four forms that fits.
        let forms = [(false, false), (false, true), (true, false), (true, true)].map { (isWide, hasArray) in
            var form = narrow
            form.hasWideCompletions = isWide
            let length =
                hasArray ? form.array(completionsAt: start) + form.arrayBytes : start + form.completionBytes
            return (isWide: isWide, length: length)
        }
        let fitting = forms.filter { fits($0.length, at: RingMemory.ringsAt) }
        let longest = fitting.map { RingDump.pages($0.length) }.max() ?? 0
        let widths = Set(fitting.filter { RingDump.pages($0.length) == longest }.map(\.isWide))
        let end = narrow.array(completionsAt: start) + narrow.arrayBytes
        shape.hasWideCompletions =
            widths.count == 1 ? widths.contains(true) : try isUsed(at: RingMemory.ringsAt, from: end)
        let length = shape.array(completionsAt: start) + shape.arrayBytes
        return fits(length, at: RingMemory.ringsAt)
    }

    /// The array of indices; each index at its place for a ring that has none, or has never used it.
    private func indices(_ memory: borrowing RingMemory) -> [UInt8] {
        let array = memory.array
        if array.contains(where: { $0 != 0 }) { return array }
        return (0..<UInt32(memory.shape.requests)).flatMap { [UInt8](bytesOf: $0) }
    }

    // MARK: requests in flight

    /// How long requests are waited for.
    private static let patience = Duration.seconds(2)

    /// Waits until nothing is under way, as far as anyone can see.
    private func settle(_ memory: borrowing RingMemory) throws(Failure) -> RingFacts {
        let deadline = ContinuousClock.now + RingDump.patience
        let advice = "Let the program finish or cancel them before the dump"
        while true {
            let facts = try RingFacts.read(of: process, file.number)
            if let operation = facts.polls.first {
                throw Failure(
                    .unsupported,
                    "\(facts.polls.count) requests are in flight, among them one to \(RingFacts.name(operation))",
                    advice: advice)
            }
            if facts.overflowing > 0 {
                throw Failure(
                    .unsupported, "\(facts.overflowing) completions wait because the ring is full",
                    advice: "Let the program fetch its completions before the dump")
            }
            let unanswered = Int32(bitPattern: facts.requestHead &- memory.dropped &- facts.completionTail)
            let isTaken = facts.thread < 0 || memory.requestTail == facts.requestHead
            if unanswered < 0 {
                // Multishot requests and messages from other rings.
                context.log.warning(
                    "\(file.facts.text) of task \(process) has more completions than requests: timeouts in flight would be lost"
                )
            }
            if unanswered <= 0, isTaken { return facts }
            guard ContinuousClock.now < deadline else {
                throw Failure(
                    .unsupported,
                    isTaken
                        ? "\(unanswered) requests are in flight: timeouts or others that wait (or some that skip their completion)"
                        : "its thread does not take the requests that are made",
                    advice: advice)
            }
            pause(nanoseconds: 1_000_000)
        }
    }

    // MARK: set-up

    private mutating func setUp(_ facts: RingFacts, _ shape: RingShape) throws(Failure) {
        var flags: UInt32 = 0
        if shape.hasWideRequests { flags |= RingSetup.wideRequests }
        if shape.hasWideCompletions { flags |= RingSetup.wideCompletions }
        // What a stranger is answered: ourselves.
        let ring = Int(file.handle.number)
        func ask(_ call: SystemCall, _ b: Int, _ c: Int, _ d: Int) -> Int {
            do throws(SystemCallError) { return try systemCall(call, ring, b, c, d, 0, 0) } catch {
                return -Int(error.errno.rawValue)
            }
        }
        let entered = ask(.io_uring_enter, 0, 0, 1)
        if entered == -77 { flags |= RingSetup.disabled }
        if entered == -17 { flags |= RingSetup.defersWork }
        if ask(.io_uring_register, 4, -4096, 1) == -17 { flags |= RingSetup.singleIssuer }
        let submitter = answers.first { $0.eventfd != -17 }
        if flags & RingSetup.singleIssuer != 0, facts.thread < 0 {
            entry.submitter = UInt32(bitPattern: context.numbers[submitter?.thread ?? process])
        }
        let polling = flags & RingSetup.singleIssuer != 0 ? submitter?.polling : ask(.io_uring_register, 27, -4096, 1)
        if polling == -22 { flags |= RingSetup.polled }
        if facts.thread >= 0 { try pollingThread(facts.thread, &flags) }
        entry.setupFlags = flags
    }

    private mutating func pollingThread(_ thread: Int32, _ flags: inout UInt32) throws(Failure) {
        flags |= RingSetup.kernelPolls
        let polled = context.state(Polled.self) { Polled() }
        if let other = polled.rings[thread] {
            entry.attachedTo = other
            return
        }
        polled.rings[thread] = file.id
        // A thread that may run on one processor only was bound to it.
        var mask = [UInt64](repeating: 0, count: 128)
        let length = try attempt("read the affinity of the polling thread \(thread)") { () throws(SystemCallError) in
            try mask.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.sched_getaffinity, Int(thread), count, address)
            }
        }
        let words = mask.prefix(length / 8)
        let processors = words.reduce(0) { $0 + $1.nonzeroBitCount }
        if processors == 1, let word = words.firstIndex(where: { $0 != 0 }),
            file.owner.threads.first.map({ RingDump.processors($0.tracee.id) > 1 }) ?? false
        {
            flags |= RingSetup.affine
            entry.sqThreadCpu = UInt32(word * 64 + words[word].trailingZeroBitCount)
        }
    }

    private static func processors(_ task: TaskID) -> Int {
        var mask = [UInt64](repeating: 0, count: 128)
        _ = try? mask.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.sched_getaffinity, Int(task.rawValue), count, address)
        }
        return mask.reduce(0) { $0 + $1.nonzeroBitCount }
    }

    // MARK: registered objects

    private mutating func register(_ facts: RingFacts) throws(Failure) {
        for answer in answers {
            if let group = answer.groups.first {
                throw Failure(
                    .unsupported, "the program has provided buffers (group \(group)), which can't be read back",
                    advice: "Unregister them before the dump")
            }
        }
        entry.bufferSlots = facts.bufferSlots
        for (slot, address, length) in facts.buffers {
            guard address != 0 else {
                throw Failure(.unsupported, "the registered buffer \(slot) belongs to the kernel")
            }
            var buffer = IoUringBuffer()
            (buffer.slot, buffer.address, buffer.length) = (slot, address, length)
            entry.buffers.append(buffer)
        }
        entry.fileSlots = facts.fileSlots
        let ring = Int(file.handle.number)
        var eventfd = answers.map(\.eventfd).contains(-16)
        if !eventfd {
            // EBUSY also answers a stranger, unless the ring has a single issuer.
            do throws(SystemCallError) { try systemCall(.io_uring_register, ring, 4, -4096, 1) } catch {
                eventfd = error.errno == .EBUSY
            }
        }
        let handles = RingAnswers.of(context).handles[process] ?? []
        guard !facts.files.isEmpty || eventfd || !handles.isEmpty else { return }
        let descriptors = try OwnDescriptors(of: process)
        for (slot, path) in facts.files {
            var registered = IoUringFile()
            registered.slot = slot
            registered.fd = UInt32(
                try descriptors.only(path, as: "the registered file \(slot) (\(String(decoding: path, as: UTF8.self)))")
            )
            entry.files.append(registered)
        }
        if eventfd {
            entry.eventfd = UInt32(
                try descriptors.only(Array("anon_inode:[eventfd]".utf8), as: "the registered eventfd"))
        }
        guard !handles.isEmpty else { return }
        _ = try descriptors.only(
            Array("anon_inode:[io_uring]".utf8), as: "the ring that thread \(handles[0].thread) has registered")
        entry.handles = handles.map { (thread, index) in
            var handle = IoUringHandle()
            (handle.thread, handle.index) = (UInt32(bitPattern: thread.rawValue), UInt32(index))
            return handle
        }
    }
}

/// The descriptors of a process by what they refer to.
private struct OwnDescriptors {
    private let process: TaskID
    private var numbers: [[UInt8]: [Int32]] = [:]

    init(of process: TaskID) throws(Failure) {
        self.process = process
        let folder = "/proc/\(process.rawValue)/fd"
        let all = try attempt("list the descriptors", code: .vanished) { () throws(SystemCallError) in
            try listNumbers(folder)
        }
        for number in all {
            guard let link = try? readLink("\(folder)/\(number)").bytes else { continue }
            numbers[OwnDescriptors.escaped(link), default: []].append(number)
        }
    }

    /// As the kernel writes paths in fdinfo.
    private static func escaped(_ path: [UInt8]) -> [UInt8] {
        var out: [UInt8] = []
        for byte in path {
            if byte == 0x20 || byte == 0x09 || byte == 0x0a || byte == 0x5c {
                out += [0x5c, 0x30 + (byte >> 6), 0x30 + (byte >> 3 & 7), 0x30 + (byte & 7)]
            } else {
                out.append(byte)
            }
        }
        return out
    }

    /// The number of the only description with a name. The kernel tells no more of what is registered.
    func only(_ path: [UInt8], as words: String) throws(Failure) -> Int32 {
        guard let all = numbers[path], let first = all.first else {
            throw Failure(
                .unsupported, "\(words) is no longer among the descriptors, so nobody can get at it",
                advice: "Keep it open, or unregister it before the dump")
        }
        let task = Int(process.rawValue)
        for other in all.dropFirst() {
            let order = try attempt("compare descriptors") { () throws(SystemCallError) in
                try systemCall(.kcmp, task, task, 0, Int(first), Int(other))
            }
            guard order == 0 else {
                throw Failure(
                    .unsupported, "\(words) may be either of the descriptors \(first) and \(other)",
                    advice: "Close one of them before the dump")
            }
        }
        return first
    }
}
