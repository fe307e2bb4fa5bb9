internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// Makes a ring anew in its process, and winds it to where the old one stood.
struct RingRestore {
    private let entry: IoUringEntry
    private let context: RestoreContext

    init(_ entry: IoUringEntry, _ context: RestoreContext) {
        self.entry = entry
        self.context = context
    }

    private var shape: RingShape { RingShape(of: entry) }

    /// Most slots for files or buffers that a ring can have.
    private static let mostSlots = 1 << 15

    /// Checks what the image says.
    static func check(_ entry: IoUringEntry) throws(Failure) {
        func isPower(_ number: UInt32, upTo most: Int) -> Bool {
            number > 0 && number & (number - 1) == 0 && Int(number) <= most
        }
        let waiting = entry.cqTail &- entry.cqHead
        guard isPower(entry.sqEntries, upTo: RingShape.mostRequests),
            isPower(entry.cqEntries, upTo: RingShape.mostCompletions), entry.cqEntries >= entry.sqEntries,
            waiting <= entry.cqEntries, entry.setupFlags & ~RingSetup.restorable == 0,
            Int(entry.fileSlots) <= mostSlots, Int(entry.bufferSlots) <= mostSlots,
            entry.files.allSatisfy({ $0.slot < entry.fileSlots }),
            entry.buffers.allSatisfy({ $0.slot < entry.bufferSlots })
        else { throw Failure(.corruptImage, "the ring makes no sense") }
        let shape = RingShape(of: entry)
        guard entry.cqes.count == shape.completionBytes, entry.array.count == shape.arrayBytes,
            entry.sqes.count == shape.requestBytes
        else { throw Failure(.corruptImage, "the contents of the ring have the wrong length") }
    }

    private var process: RestoredProcess {
        get throws(Failure) {
            let id = TaskID(Int32(bitPattern: entry.owner))
            guard let found = context.processes.first(where: { $0.id == id && !$0.plan.isZombie }) else {
                throw Failure(.corruptImage, "its process \(id) is not in the tree")
            }
            return found
        }
    }

    /// Whether only one thread may submit, which has to enable the ring for that.
    private var hasSubmitter: Bool {
        entry.setupFlags & RingSetup.singleIssuer != 0 && entry.setupFlags & RingSetup.kernelPolls == 0
    }
    private var isDisabled: Bool { entry.setupFlags & RingSetup.disabled != 0 }

    // MARK: make

    /// Creates the ring and maps it in every process that had it mapped. Memory is in its place by now, the tables of
    /// descriptors are empty.
    func make() throws(Failure) {
        let process = try process
        var parameters = RingParameters()
        (parameters.requestCount, parameters.completionCount) = (entry.sqEntries, entry.cqEntries)
        parameters.flags = entry.setupFlags | RingSetup.sized | (hasSubmitter ? RingSetup.disabled : 0)
        parameters.threadProcessor = entry.sqThreadCpu
        parameters.threadPatience = entry.sqThreadIdle
        if entry.hasAttachedTo {
            parameters.flags |= RingSetup.attached
            let other = try context.deliver([try context.files.number(entry.attachedTo)], to: process.puppet)[0]
            parameters.attachedTo = UInt32(bitPattern: other.number)
        }
        let ring = try create(&parameters, in: process)
        let layout = parameters
        guard layout.requestCount == entry.sqEntries, layout.completionCount == entry.cqEntries else {
            throw Failure(.unsupported, "the kernel made a ring of another size")
        }
        if !hasSubmitter, !isDisabled {
            try wind(ring.number, layout) { (count, requests) throws(Failure) in
                try submit(count, requests, through: ring.number)
            }
        }
        try fill(ring.number, layout)
        context.courier?.unsendable.insert(ring.number)
        try map(ring.number)
        Layouts.of(context).layouts[entry.id] = layout
        try context.files.add(entry.id, ring)
    }

    /// Where things are in the rings made.
    private final class Layouts {
        var layouts: [UInt32: RingParameters] = [:]
        static func of(_ context: RestoreContext) -> Layouts { context.state(Layouts.self) { Layouts() } }
    }

    /// Sets up the ring in its process: registered buffers and polling threads belong to that.
    private func create(
        _ parameters: inout RingParameters, in process: RestoredProcess
    ) throws(Failure) -> Descriptor {
        var batch = Batch()
        let place = batch.place(value: parameters)
        // A polling thread keeps the rights that the task has now.
        let lowers = entry.setupFlags & RingSetup.kernelPolls != 0
        if lowers { try Rights(process).take(&batch) }
        let made = batch.add(
            .io_uring_setup, .value(Int(entry.sqEntries)), .buffer(place), doing: "create an io_uring", mayFail: true)
        if lowers { Rights.takeBack(&batch) }
        let results = try process.puppet.run(batch)
        guard let number = results.success(made) else {
            throw Failure(
                .denied, "can't create an io_uring",
                advice: "Allow it with: sysctl kernel.io_uring_disabled=0",
                cause: SystemCallError(.io_uring_setup, Errno(rawValue: Int32(-results[made]))))
        }
        let ring = try attempt("fetch the io_uring") { () throws(SystemCallError) in
            try process.puppet.fetch(number)
        }
        var close = Batch()
        close.add(.close, .value(number), doing: "close the io_uring")
        if entry.hasAttachedTo { close.add(.close, .bits(UInt64(parameters.attachedTo)), doing: "close an io_uring") }
        try process.puppet.run(close)
        let flags = entry.flags
        try attempt("set the flags of the io_uring") { () throws(SystemCallError) in
            try setStatusFlags(ring.number, flags)
        }
        parameters = results.value(RingParameters.self, place)
        return ring
    }

    /// Maps the ring at its places.
    private func map(_ ring: Int32) throws(Failure) {
        var seen: Set<UInt32> = []
        for process in context.processes where !process.plan.isZombie {
            let mappings = RingMapping.all(of: entry.inode, in: process.plan)
            guard !mappings.isEmpty, !process.plan.ids.hasVmID || seen.insert(process.plan.ids.vmID).inserted else {
                continue
            }
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                try map(ring, at: mappings, in: process)
            }
        }
    }

    /// The kernel refuses to map a ring at a given address and to move it. But it takes the only gap that there is.
    private func map(_ ring: Int32, at mappings: [VmaEntry], in process: RestoredProcess) throws(Failure) {
        let file = try context.deliver([ring], to: process.puppet)[0]
        let gaps = RingRestore.gaps(between: try VMA.readPlain(of: process.task).map(\.range))
        var batch = Batch()
        for gap in gaps {
            // PRIVATE | ANONYMOUS | NORESERVE | FIXED_NOREPLACE
            batch.add(
                .mmap, .address(gap.start), .bits(gap.length), .value(0), .value(0x10_4022), .value(-1), .value(0),
                doing: "fill a gap in the address space")
        }
        var slots: [Batch.Slot] = []
        for mapping in mappings {
            let (start, length) = (
                Batch.Argument.bits(mapping.start), Batch.Argument.bits(mapping.end &- mapping.start)
            )
            batch.add(.munmap, start, length, doing: "open a gap in the address space")
            // SHARED
            slots.append(
                batch.add(
                    .mmap, .value(0), length, .value(Int(mapping.prot & 7)), .value(1), .descriptor(file),
                    .bits(mapping.pgoff), doing: "map the io_uring"))
            for bit in 1..<64 where mapping.madv >> UInt64(bit) & 1 == 1 {
                batch.add(.madvise, start, length, .value(bit), doing: "set an attribute of memory", mayFail: true)
            }
        }
        let places = mappings.map { AddressRange($0.start, $0.end) }
        for rest in RingRestore.gaps(between: places, within: gaps) {
            batch.add(.munmap, .address(rest.start), .bits(rest.length), doing: "clear the address space")
        }
        batch.add(.close, .descriptor(file), doing: "close the io_uring")
        let results = try process.puppet.run(batch)
        for (slot, mapping) in zip(slots, mappings) where UInt64(bitPattern: Int64(results[slot])) != mapping.start {
            throw Failure(.denied, "the kernel maps the io_uring at another address than \(Address(mapping.start))")
        }
    }

    /// Addresses that a task may map.
    private static let userSpace = AddressRange(0x1_0000, 0x7fff_ffff_f000)

    /// What ranges leave free of others.
    private static func gaps(between taken: [AddressRange], within: [AddressRange] = [userSpace]) -> [AddressRange] {
        let taken = taken.sorted { $0.start < $1.start }
        var free: [AddressRange] = []
        for range in within {
            var at = range.start
            for other in taken where other.end > at && other.start < range.end {
                if other.start > at { free.append(AddressRange(start: at, end: other.start)) }
                at = other.end
            }
            if at < range.end { free.append(AddressRange(start: at, end: range.end)) }
        }
        return free
    }

    // MARK: wire

    /// What needs threads and descriptors: the submitter, and registered objects.
    func wire() throws(Failure) {
        let process = try process
        var thread = process.puppet
        if entry.hasSubmitter {
            let id = TaskID(Int32(bitPattern: entry.submitter))
            thread = process.threads.first { $0.id == id }?.puppet ?? thread
        }
        let number = RemoteDescriptor(Int32(bitPattern: entry.fd))
        guard
            process.plan.descriptors.isEmpty
                || process.plan.descriptors.contains(where: { $0.fd == entry.fd && $0.id == entry.id })
        else { throw Failure(.corruptImage, "it is not the descriptor \(entry.fd) of task \(process.id)") }
        if hasSubmitter, !isDisabled {
            var batch = Batch()
            batch.add(
                .io_uring_register, .descriptor(number), .value(12), .value(0), .value(0), doing: "enable an io_uring")
            try thread.run(batch)
            let ring = try context.files.number(entry.id)
            guard let layout = Layouts.of(context).layouts[entry.id] else { throw Failure(.bug, "an unmade ring") }
            try wind(ring, layout) { (count, requests) throws(Failure) in
                var batch = Batch()
                // GETEVENTS: completions that wait for the submitter are posted.
                let slot = batch.add(
                    .io_uring_enter, .descriptor(number), .value(count), .value(0), .value(1), .value(0), .value(0),
                    doing: "wind an io_uring")
                return try thread.run(batch)[slot]
            }
            try fill(ring, layout)
        }
        try register(number, thread)
        for handle in entry.handles {
            guard let owner = process.threads.first(where: { UInt32(bitPattern: $0.id.rawValue) == handle.thread })
            else { throw Failure(.corruptImage, "its thread \(handle.thread) is not in the tree") }
            var batch = Batch()
            let update = batch.place(value: (handle.index, UInt32(0), UInt64(entry.fd)))
            batch.add(
                .io_uring_register, .descriptor(number), .value(20), .buffer(update), .value(1),
                doing: "register an io_uring in its thread")
            try owner.puppet.run(batch)
        }
    }

    private func register(_ ring: RemoteDescriptor, _ thread: Puppet) throws(Failure) {
        var batch = Batch()
        if entry.bufferSlots > 0 {
            var vectors = [UInt64](repeating: 0, count: 2 * Int(entry.bufferSlots))
            for buffer in entry.buffers {
                vectors[2 * Int(buffer.slot)] = buffer.address
                vectors[2 * Int(buffer.slot) + 1] = buffer.length
            }
            let list = batch.place(vectors.flatMap { [UInt8](bytesOf: $0) })
            batch.add(
                .io_uring_register, .descriptor(ring), .value(0), .buffer(list), .value(Int(entry.bufferSlots)),
                doing: "register the buffers of an io_uring")
        }
        if entry.fileSlots > 0 {
            var numbers = [Int32](repeating: -1, count: Int(entry.fileSlots))
            for file in entry.files { numbers[Int(file.slot)] = Int32(bitPattern: file.fd) }
            let list = batch.place(numbers.flatMap { [UInt8](bytesOf: $0) })
            batch.add(
                .io_uring_register, .descriptor(ring), .value(2), .buffer(list), .value(Int(entry.fileSlots)),
                doing: "register the files of an io_uring; the limit on open files counts them too")
        }
        if entry.hasEventfd {
            let number = batch.place(value: entry.eventfd)
            batch.add(
                .io_uring_register, .descriptor(ring), .value(4), .buffer(number), .value(1),
                doing: "register the eventfd of an io_uring")
        }
        if !batch.isEmpty { try thread.run(batch) }
    }

    // MARK: contents

    /// Puts back what the program sees.
    private func fill(_ ring: Int32, _ layout: RingParameters) throws(Failure) {
        let memory = try RingMemory(ring, shape, layout)
        memory.completions = Array(entry.cqes)
        memory.requests = Array(entry.sqes)
        memory.array = Array(entry.array)
        memory.dropped = entry.sqDropped
        memory.overflow = entry.cqOverflow
        memory.completionFlags = entry.cqFlags
        if !isDisabled, !hasSubmitter || memory.requestHead == entry.sqHead { memory.requestTail = entry.sqTail }
    }

    /// Beyond so many requests that do nothing a restore takes noticeable time.
    private static let many: UInt32 = 1 << 25

    /// Brings the kernel's counters to where they stood, by requests that do nothing. The head of the completions
    /// follows, so that it never is ahead of what the kernel has cached.
    ///
    /// - Parameter submit: submits requests that are in the ring, and returns how many were taken.
    private func wind(
        _ ring: Int32, _ layout: RingParameters, _ submit: (Int, borrowing RingMemory) throws(Failure) -> Int
    ) throws(Failure) {
        let memory = try RingMemory(ring, shape, layout)
        // Zero bytes are such a request, and a zero in the array is its index.
        memory.requests = [UInt8](repeating: 0, count: shape.requestBytes)
        memory.array = [UInt8](repeating: 0, count: shape.arrayBytes)
        if entry.sqHead > RingRestore.many {
            context.log.warning(
                "io_uring \(entry.id): bringing it back to its \(entry.sqHead)th request takes about \(entry.sqHead >> 23) s"
            )
        }
        // Requests with an impossible index are dropped without a completion.
        for _ in 0..<entry.sqDropped {
            memory.setIndex(.max, at: memory.requestTail)
            memory.requestTail = memory.requestTail &+ 1
            _ = try submit(1, memory)
        }
        memory.array = [UInt8](repeating: 0, count: shape.arrayBytes)
        // Completions beyond requests: multishot ones.
        let answered = entry.sqHead &- entry.sqDropped
        try post(entry.cqTail &- answered, to: ring, memory) { () throws(Failure) in _ = try submit(0, memory) }
        while true {
            follow(memory)
            let rest = entry.sqHead &- memory.requestTail
            if rest == 0 { break }
            let room = entry.cqEntries &- (memory.completionTail &- memory.completionHead)
            let count = min(rest, entry.sqEntries, room)
            memory.requestTail = memory.requestTail &+ count
            let taken = try submit(Int(count), memory)
            guard taken == Int(count), memory.requestHead == memory.requestTail else {
                throw Failure(.bug, "an io_uring took \(taken) of \(count) requests")
            }
        }
        guard memory.requestHead == entry.sqHead, memory.completionTail == entry.cqTail,
            memory.completionHead == entry.cqHead
        else {
            throw Failure(
                .bug, "the ring stands at \(memory.requestHead), \(memory.completionHead)/\(memory.completionTail)")
        }
    }

    /// Moves the head of the completions to the tail, but not beyond where it was.
    private func follow(_ memory: borrowing RingMemory) {
        let (head, tail) = (memory.completionHead, memory.completionTail)
        memory.completionHead = head &+ min(tail &- head, entry.cqHead &- head)
    }

    /// Submits requests from here.
    private func submit(_ count: Int, _ memory: borrowing RingMemory, through ring: Int32) throws(Failure) -> Int {
        let polls = entry.setupFlags & RingSetup.kernelPolls != 0
        // SQ_WAKEUP | SQ_WAIT for a ring with a thread of its own
        let flags = polls ? 6 : 0
        let taken = try attempt("wind an io_uring") { () throws(SystemCallError) in
            try systemCall(.io_uring_enter, Int(ring), count, 0, flags, 0, 0)
        }
        guard polls else { return taken }
        for _ in 0..<100_000 where memory.requestHead != memory.requestTail { pause(nanoseconds: 10_000) }
        return count
    }

    /// Posts completions to the ring from another one (`IORING_OP_MSG_RING`).
    private func post(
        _ count: UInt32, to ring: Int32, _ memory: borrowing RingMemory, _ look: () throws(Failure) -> Void
    ) throws(Failure) {
        guard count > 0 else { return }
        var parameters = RingParameters()
        let source = try attempt("create an io_uring") { () throws(SystemCallError) in
            Descriptor(
                owning: Int32(
                    try withAddress(of: &parameters) { (address) throws(SystemCallError) in
                        try systemCall(.io_uring_setup, RingRestore.messages, address)
                    }))
        }
        let own = try RingMemory(
            source.number,
            RingShape(
                requests: RingRestore.messages, completions: Int(parameters.completionCount), hasWideRequests: false,
                hasWideCompletions: false), parameters)
        var message = [UInt8](repeating: 0, count: 64)
        message[0] = 40
        message.replaceSubrange(4..<8, with: [UInt8](bytesOf: ring))
        own.requests = Array(repeatElement(message, count: RingRestore.messages).joined())
        for index in 0..<UInt32(RingRestore.messages) { own.setIndex(index, at: index) }
        var rest = count
        while rest > 0 {
            follow(memory)
            let room = entry.cqEntries &- (memory.completionTail &- memory.completionHead)
            let several = min(rest, UInt32(RingRestore.messages), room)
            own.requestTail = own.requestTail &+ several
            let (number, before) = (Int(source.number), memory.completionTail)
            let taken = try attempt("send messages to an io_uring") { () throws(SystemCallError) in
                try systemCall(.io_uring_enter, number, Int(several), 0, 0, 0, 0)
            }
            try look()
            own.completionHead = own.completionTail
            guard taken == Int(several), memory.completionTail &- before == several else {
                throw Failure(.unsupported, "the kernel can't send messages to a ring of this kind")
            }
            rest -= several
        }
    }

    /// Requests of the ring that sends messages.
    private static let messages = 1024
}

extension RingShape {
    /// As the image says.
    init(of entry: IoUringEntry) {
        self.init(
            requests: Int(entry.sqEntries), completions: Int(entry.cqEntries),
            hasWideRequests: entry.setupFlags & RingSetup.wideRequests != 0,
            hasWideCompletions: entry.setupFlags & RingSetup.wideCompletions != 0)
    }
}

/// The rights of a task, lent to its puppet for a moment.
private struct Rights {
    private let creds: CredsEntry

    init(_ process: RestoredProcess) throws(Failure) {
        guard let core = process.plan.cores.first, core.threadCore.hasCreds else {
            throw Failure(.corruptImage, "task \(process.id) has no credentials")
        }
        creds = core.threadCore.creds
    }

    /// `struct __user_cap_header_struct`, version 3.
    private static func header(_ batch: inout Batch) -> Batch.Buffer {
        batch.place(value: (UInt32(0x2008_0522), UInt32(0)))
    }

    /// Only effective ids and capabilities count for what a thread does.
    func take(_ batch: inout Batch) {
        let groups = batch.place(creds.groups.flatMap { [UInt8](bytesOf: $0) })
        batch.add(.setgroups, .value(creds.groups.count), .buffer(groups), doing: "set the groups")
        batch.add(.setresgid, .value(-1), .bits(UInt64(creds.egid)), .value(-1), doing: "set the group id")
        batch.add(.prctl, .value(28), .value(4), .value(0), .value(0), .value(0), doing: "keep capabilities")
        batch.add(.setresuid, .value(-1), .bits(UInt64(creds.euid)), .value(-1), doing: "set the user id")
        var sets: [UInt32] = []
        for word in 0..<2 {
            let effective = creds.capEff.dropFirst(word).first ?? 0
            sets += [effective, Rights.all(word), 0]
        }
        let place = batch.place(sets.flatMap { [UInt8](bytesOf: $0) })
        batch.add(.capset, .buffer(Rights.header(&batch)), .buffer(place), doing: "lower the capabilities")
    }

    private static let permitted: UInt64 = (try? TaskStatus.read(of: .current))?.permittedCapabilities ?? 0
    private static func all(_ word: Int) -> UInt32 { UInt32(truncatingIfNeeded: permitted >> UInt64(32 * word)) }

    /// Gives the puppet back what it had.
    static func takeBack(_ batch: inout Batch) {
        let sets: [UInt32] = [all(0), all(0), 0, all(1), all(1), 0]
        let place = batch.place(sets.flatMap { [UInt8](bytesOf: $0) })
        batch.add(.capset, .buffer(header(&batch)), .buffer(place), doing: "raise the capabilities")
        batch.add(.setresuid, .value(0), .value(0), .value(0), doing: "set the user id")
        batch.add(.setresgid, .value(0), .value(0), .value(0), doing: "set the group id")
        batch.add(.prctl, .value(28), .value(0), .value(0), .value(0), .value(0), doing: "reset the secure bits")
    }
}
