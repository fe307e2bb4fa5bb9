internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// A context for asynchronous I/O (`io_setup(2)`): a ring of completions in the task's memory, whose address is the
/// context's id.
struct AioRing {
    let range: AddressRange

    /// `struct aio_ring` and `struct io_event` of the kernel.
    private static let headerLength: UInt64 = 32, eventLength: UInt64 = 32
    private static let magic: UInt32 = 0xa10a_10a1

    /// The header of the ring. The kernel has its own copy of the tail; the head is the task's.
    private struct Header {
        let events: UInt32, head: UInt32, tail: UInt32

        init(at address: Address, in memory: borrowing TaskMemory) throws(Failure) {
            let bytes = try attempt("read the AIO ring at \(address)") { () throws(SystemCallError) in
                try memory.read(address, count: Int(AioRing.headerLength))
            }
            guard let events = bytes.load(UInt32.self, at: 4), let head = bytes.load(UInt32.self, at: 8),
                let tail = bytes.load(UInt32.self, at: 12), let magic = bytes.load(UInt32.self, at: 16),
                magic == AioRing.magic, events > 0, tail < events
            else { throw Failure(.unsupported, "the AIO ring at \(address) makes no sense") }
            (self.events, self.head, self.tail) = (events, head % events, tail)
        }

        /// How many completions wait to be fetched.
        var waiting: Int { Int((tail + events - head) % events) }
    }

    init(_ range: AddressRange) { self.range = range }

    // MARK: dump

    /// What the image says of the ring.
    var entry: AioRingEntry {
        var entry = AioRingEntry()
        entry.id = range.start.rawValue
        entry.ringLen = UInt32(truncatingIfNeeded: range.length)
        entry.nrReq = UInt32(truncatingIfNeeded: requests)
        return entry
    }

    /// What to ask `io_setup` for. It doubles the number, adds two, and fills up the last page.
    private var requests: UInt64 { ((range.length - AioRing.headerLength) / AioRing.eventLength - 2) / 2 }

    /// Waits until no request of the stopped process can be under way.
    ///
    /// The kernel tells nowhere how many there are. Those to block devices are the only ones that usually outlive
    /// `io_submit`: they are done once each device was seen without any, and the tails stand still.
    func settle(_ process: DumpedProcess, _ context: DumpContext) throws(Failure) {
        try BlockDevices.of(context).settle("AIO requests")
        var tail = try Header(at: range.start, in: process.memory).tail
        for _ in 0..<AioRing.looks {
            pause(nanoseconds: 1_000_000)
            let now = try Header(at: range.start, in: process.memory).tail
            if now == tail { return }
            tail = now
        }
        throw Failure(
            .unsupported, "AIO requests are in flight: the ring's tail does not stand still",
            advice: "Try again when the task has fetched its completions")
    }

    /// Most looks at a tail that moves.
    private static let looks = 1000

    // MARK: restore

    /// Makes the contexts of a process whose rings' contents lie at their places in ordinary memory.
    static func restore(_ plan: MemoryPlan, _ puppet: Puppet, _ context: RestoreContext) throws(Failure) {
        let rings = plan.areas.filter { $0.status.contains(.aioRing) }
        guard !rings.isEmpty else { return }
        // Writing to it is over at once.
        let sink = try attempt("open /dev/null") { () throws(SystemCallError) in try openFile("/dev/null", .writeOnly) }
        let file = try context.deliver([sink.number], to: puppet)[0]
        let affinity = try Affinity(puppet.tracee.id)
        // Each processor hoards free places of a ring, so all requests are made on one.
        try affinity.narrow()
        for area in rings {
            try during(.mapping(area.range)) { () throws(Failure) in
                let listed = plan.entry.aios.first { $0.id == area.range.start.rawValue }
                try AioRing(area.range).restore(listed, puppet, file)
            }
        }
        try affinity.restore()
        var batch = Batch()
        batch.add(.close, .descriptor(file), doing: "close /dev/null")
        try puppet.run(batch)
    }

    private func restore(_ listed: AioRingEntry?, _ puppet: Puppet, _ file: RemoteDescriptor) throws(Failure) {
        var batch = Batch()
        let id = batch.place(value: UInt64(0))
        let number = listed.map { Int($0.nrReq) } ?? Int(requests)
        batch.add(
            .io_setup, .value(number), .buffer(id), doing: "create an AIO context; /proc/sys/fs/aio-max-nr may limit it"
        )
        let made = Address(try puppet.run(batch).value(UInt64.self, id))
        let memory = try TaskMemory(puppet.task)
        let old = try Header(at: range.start, in: memory)
        let new = try Header(at: made, in: memory)
        guard new.events == old.events,
            AioRing.headerLength + UInt64(old.events) * AioRing.eventLength <= range.length
        else {
            throw Failure(
                .unsupported, "this kernel makes an AIO ring of \(new.events) places, the image's has \(old.events)",
                advice: "Restore on a machine with as many processors")
        }
        // The kernel's tail moves only by completions. The head follows it, until what waits is left.
        var head = 0
        while head < Int(old.head) {
            let count = min(Int(old.head) - head, max(1, Int(old.events) / 4))
            try submit(count, to: made, puppet, file)
            head += count
            let position = [UInt8](bytesOf: UInt32(head))
            try attempt("set the head of an AIO ring") { () throws(SystemCallError) in
                try memory.write(position, at: made + 8)
            }
        }
        try submit(old.waiting, to: made, puppet, file)
        let reached = try Header(at: made, in: memory)
        guard reached.head == old.head, reached.tail == old.tail else {
            throw Failure(.bug, "the AIO ring stands at \(reached.head)/\(reached.tail)")
        }
        try attempt("fill an AIO ring") { () throws(SystemCallError) in
            let events = try memory.read(
                range.start + AioRing.headerLength, count: Int(range.length - AioRing.headerLength))
            try memory.write(events, at: made + AioRing.headerLength)
        }
        let length = Batch.Argument.value(Int(range.length))
        var move = Batch()
        // MAYMOVE | FIXED
        move.add(
            .mremap, .address(made), length, length, .value(3), .address(range.start),
            doing: "move an AIO ring to its place")
        try puppet.run(move)
    }

    /// Makes requests that are completed at once.
    private func submit(
        _ count: Int, to ring: Address, _ puppet: Puppet, _ file: RemoteDescriptor
    ) throws(Failure) {
        var rest = count
        while rest > 0 {
            let several = min(rest, 4096)
            var batch = Batch()
            let byte = batch.reserve(8)
            // struct iocb, IOCB_CMD_PWRITE of one byte
            let request = batch.place(
                value: (
                    UInt64(0), UInt64(0), UInt16(1), Int16(0), file.number, UInt64(0), UInt64(1), UInt64(0), UInt64(0),
                    UInt64(0)
                ))
            batch.point(request, at: 24, to: byte)
            let list = batch.reserve(8 * several)
            for index in 0..<several { batch.point(list, at: 8 * index, to: request) }
            let slot = batch.add(
                .io_submit, .address(ring), .value(several), .buffer(list), doing: "move the tail of an AIO ring")
            let done = try puppet.run(batch)[slot]
            guard done > 0 else { throw Failure(.bug, "an AIO ring took no request") }
            rest -= done
        }
    }
}

/// The processors that a thread may run on, to be changed for a while.
private struct Affinity {
    private let task: TaskID
    private var mask = [UInt8](repeating: 0, count: 1024)

    init(_ task: TaskID) throws(Failure) {
        self.task = task
        let number = Int(task.rawValue)
        let length = try attempt("read the affinity of task \(task)") { () throws(SystemCallError) in
            try mask.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.sched_getaffinity, number, count, address)
            }
        }
        mask.removeLast(mask.count - length)
    }

    private func set(_ mask: [UInt8]) throws(Failure) {
        let number = Int(task.rawValue)
        try attempt("set the affinity of task \(task)") { () throws(SystemCallError) in
            try mask.withConstantAddress { (address, count) throws(SystemCallError) in
                try systemCall(.sched_setaffinity, number, count, address)
            }
        }
    }

    /// Leaves the first of them.
    func narrow() throws(Failure) {
        guard let first = mask.firstIndex(where: { $0 != 0 }) else { return }
        var one = [UInt8](repeating: 0, count: mask.count)
        one[first] = mask[first] & (0 &- mask[first])
        try set(one)
    }

    func restore() throws(Failure) { try set(mask) }
}

extension VMA {
    /// Whether it is the ring of an AIO context.
    var isAioRing: Bool { isShared && isNamed("/[aio] (deleted)") }
}
