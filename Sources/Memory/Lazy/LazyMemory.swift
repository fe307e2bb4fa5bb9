internal import CLinux
internal import Diagnostics
internal import Linux
internal import Procfs

/// Whose pages they are in the images.
enum PageOrigin: Hashable {
    /// A process's.
    case process(Int32)
    /// Those of shared memory.
    case shared(UInt64)
}

/// An address space whose pages come while its task runs: its userfaultfd, and what is still missing.
final class LazyMemory {
    /// Whose pages these are.
    let origin: PageOrigin
    /// For messages.
    let name: String
    private let faults: Descriptor
    /// What is still to be brought, and what was asked for already.
    var missing: Extents, requested = Extents()
    /// Addresses at which threads wait.
    var waiting: Set<UInt64> = []
    /// What threads waited for, here and at earlier restores; nil for children that were forked since.
    let workingSet: WorkingSet?
    /// Shared memory that it has mapped, and where: in place of the image's, the addresses are those in the pager.
    private(set) var mapped: [(segment: LazySegment, places: Extents)] = []
    /// Mappings of huge pages, whose pages come as a whole.
    var huge = Extents()
    /// Mappings that were looked at and are none of such memory.
    private var others = Extents()
    /// The task that began with it; nil for children that were forked since.
    var task: TaskID?
    /// The task has ended.
    private(set) var isGone = false
    /// Bytes that were brought, and how often a thread had to wait.
    private(set) var broughtBytes: UInt64 = 0, faultCount = 0

    /// `UFFD_FEATURE_*`: fork, remap, remove and unmap are told, and wait until we have heard of them.
    static let features: UInt64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6

    init(
        _ faults: consuming Descriptor, of origin: PageOrigin, name: String, missing: Extents,
        _ workingSet: WorkingSet? = nil
    ) {
        self.faults = faults
        self.workingSet = workingSet
        self.origin = origin
        self.name = name
        self.missing = missing
    }

    /// The descriptor, for `poll(2)` only.
    var number: Int32 { faults.number }

    /// Whether nothing more is to be done.
    var isComplete: Bool {
        isGone || (missing.isEmpty && requested.isEmpty && waiting.isEmpty && !awaitsSegments)
    }

    /// Whether shared memory that it has mapped is still to come.
    private var awaitsSegments: Bool { mapped.contains { !$0.segment.pages.isComplete } }

    // MARK: shared memory

    /// Notes where a segment is mapped.
    func add(_ segment: LazySegment, at mapping: VMA) {
        if !mapped.contains(where: { $0.segment === segment }) { mapped.append((segment, Extents())) }
        for index in mapped.indices where mapped[index].segment === segment {
            mapped[index].places.insert(
                Extents.Extent(range: mapping.range, image: segment.start + mapping.offset))
        }
    }

    /// The shared memory at an address, and the address in the pager.
    func segment(at address: Address) -> (LazySegment, Address)? {
        for (segment, places) in mapped {
            if let place = places.find(address) { return (segment, place.image(of: address)) }
        }
        return nil
    }

    /// Whether an address may be one of shared memory that is not known of: a mapping can grow without a word, or be doubled.
    func mayMap(_ address: Address) -> Bool {
        awaitsSegments && segment(at: address) == nil && missing.find(address) == nil
            && requested.find(address) == nil && others.find(address) == nil
    }

    /// Looks at the mapping of an address, or at all mappings of the task.
    ///
    /// - Parameter roots: ancestors of the tasks that may use the memory.
    func look(at address: Address, _ roots: [TaskID]) {
        let segments = mapped.map(\.segment)
        let found =
            task.map { (try? VMA.readPlain(of: $0)) ?? [] }
            ?? LazySegment.users(of: segments, roots).flatMap(\.mappings).filter { $0.range.contains(address) }
        others = task == nil ? others : Extents()
        for mapping in found {
            if let segment = segments.first(where: { $0.isMapped(by: mapping) }) {
                add(segment, at: mapping)
            } else {
                others.insert(Extents.Extent(range: mapping.range, image: mapping.range.start))
            }
        }
        if others.find(address) == nil {
            others.insert(Extents.Extent(range: AddressRange(start: address, end: address + pageSize), image: address))
        }
    }

    // MARK: events

    /// Reads all events that wait. Returns children that were forked.
    ///
    /// - Parameter roots: ancestors of the tasks that may use the memory.
    func readEvents(_ roots: [TaskID]) throws(Failure) -> [LazyMemory] {
        var children: [LazyMemory] = []
        while !isGone {
            let messages: [Userfaultfd.Message]
            var calls: [MappingCall] = []
            do throws(SystemCallError) {
                // Who gives shared memory back is looked at before they go on.
                let isCareful = awaitsSegments
                if isCareful {
                    // What is there now is read next: faults first, then the oldest event.
                    guard try poll(faults.number, for: 1, milliseconds: 0) != 0 else { break }
                    if Userfaultfd.hasEvent(faults.number) {
                        calls = MappingCall.waiting(task, roots: roots, segments: mapped.map(\.segment))
                    }
                }
                messages = try Userfaultfd.readMessages(
                    faults.number, most: isCareful ? 1 : Userfaultfd.mostMessages)
            } catch {
                throw Failure(.bug, "can't read the page faults of \(name)", cause: error)
            }
            if messages.isEmpty { break }
            for message in messages { if let child = take(message, calls, roots) { children.append(child) } }
        }
        return children
    }

    private func take(_ message: Userfaultfd.Message, _ calls: [MappingCall], _ roots: [TaskID]) -> LazyMemory? {
        let words = message.words
        switch message.event {
        case 0x12:  // UFFD_EVENT_PAGEFAULT
            faultCount += 1
            waiting.insert(words[1] & ~(pageSize - 1))
        case 0x13:  // UFFD_EVENT_FORK
            var inherited = missing
            // What was asked for, is asked for again for the child.
            for extent in requested.all { inherited.insert(extent) }
            let child = Descriptor(owning: Int32(truncatingIfNeeded: words[0]))
            let memory = LazyMemory(child, of: origin, name: "a child of \(name)", missing: inherited)
            memory.mapped = mapped
            memory.huge = huge
            return memory
        case 0x14:  // UFFD_EVENT_REMAP
            let range = AddressRange(words[0], words[0] &+ words[2])
            missing.move(range, to: Address(words[1]))
            requested.move(range, to: Address(words[1]))
            for index in mapped.indices { mapped[index].places.move(range, to: Address(words[1])) }
            huge.move(range, to: Address(words[1]))
            others = Extents()
        case 0x15, 0x16:  // UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP
            let range = AddressRange(words[0], words[1])
            missing.remove(range)
            requested.remove(range)
            if message.event == 0x15 {
                if mayMap(range.start) { look(at: range.start, roots) }
                if calls.contains(where: { $0.removes(range) }) {
                    for (segment, places) in mapped { segment.drop(places.parts(in: range)) }
                }
            } else {
                for index in mapped.indices { mapped[index].places.remove(range) }
                others.remove(range)
                huge.remove(range)
            }
        default: break
        }
        return nil
    }

    // MARK: pages

    /// What became of an attempt.
    private enum Outcome {
        case done
        /// The kernel wants its events to be read first.
        case busy
        /// Something is there already.
        case present
        /// The addresses are not ours, or not all in one mapping.
        case elsewhere
        case gone
    }

    /// Makes one call that fills memory. `progress` is its answer's place: bytes done, or an error.
    private func call<T: BitwiseCopyable>(
        _ code: Int, _ request: inout T, progress: KeyPath<T, Int64>
    ) throws(Failure) -> (Outcome, UInt64) {
        let number = Int(faults.number)
        do throws(SystemCallError) {
            try withAddress(of: &request) { (address) throws(SystemCallError) in
                try systemCall(.ioctl, number, code, address)
            }
            return (.done, 0)
        } catch {
            let done = request[keyPath: progress]
            if done > 0 { return (.done, UInt64(done)) }
            switch error.errno {
            case .EAGAIN: return (.busy, 0)
            case .EEXIST: return (.present, 0)
            case .ENOENT: return (.elsewhere, 0)
            case .ESRCH:
                isGone = true
                return (.gone, 0)
            default: throw Failure(.denied, "can't fill the memory of \(name)", cause: error)
            }
        }
    }

    /// Fills a range by calls of `body`, which does a part of it. Returns how many bytes are settled: fewer than all if
    /// the kernel wants its events to be read first, or the task is gone.
    private func fill(
        _ range: AddressRange, _ body: (UInt64, UInt64) throws(Failure) -> (Outcome, UInt64)
    ) throws(Failure) -> UInt64 {
        let unit = huge.find(range.start)?.unit ?? pageSize
        var done: UInt64 = 0
        var step = range.length
        while done < range.length {
            let length = min(step, range.length - done)
            let (outcome, part) = try body(done, length)
            switch outcome {
            case .done:
                let count = part > 0 ? part : length
                broughtBytes += count
                done += count
            case .busy, .gone: return done
            case .elsewhere where length > unit: step = unit
            case .present where length > unit: step = unit
            case .elsewhere, .present:
                wake(range.start + done, unit)
                done += unit
            }
        }
        return done
    }

    /// Copies pages from our memory.
    func copy(_ range: AddressRange, from address: Int) throws(Failure) -> UInt64 {
        try fill(range) { (skip, length) throws(Failure) in
            var request = clinux_uffdio_copy(
                destination: range.start.rawValue + skip, source: UInt64(address) + skip, length: length, mode: 0,
                copied: 0)
            return try call(0xc028_aa03, &request, progress: \.copied)  // UFFDIO_COPY
        }
    }

    /// Gives a thread that waits the page of zeros that it would have without us. Returns whether that is settled.
    func zero(_ address: Address) throws(Failure) -> Bool {
        if let unit = huge.find(address)?.unit {
            let start = Address(address.rawValue & ~(unit - 1))
            let zeros = try attempt("get memory for zeros") { () throws(SystemCallError) in
                try Mapping(length: Int(unit), flags: 0x22)  // PRIVATE | ANONYMOUS
            }
            return try copy(AddressRange(start: start, end: start + unit), from: zeros.address) == unit
        }
        return try fill(AddressRange(start: address, end: address + pageSize)) { (_, length) throws(Failure) in
            var request = clinux_uffdio_zeropage(start: address.rawValue, length: length, mode: 0, zeroed: 0)
            return try call(0xc020_aa04, &request, progress: \.zeroed)  // UFFDIO_ZEROPAGE
        } == pageSize
    }

    /// Makes accesses to pages fail that will never come. Throws where the kernel can't (before 6.6).
    func poison(_ range: AddressRange) throws(Failure) -> UInt64 {
        try fill(range) { (skip, length) throws(Failure) in
            // `struct uffdio_poison` is laid out alike.
            var request = clinux_uffdio_zeropage(
                start: range.start.rawValue + skip, length: length, mode: 0, zeroed: 0)
            return try call(0xc020_aa08, &request, progress: \.zeroed)  // UFFDIO_POISON
        }
    }

    /// The same for shared memory that it has mapped and that will never come, as far as the kernel can.
    func poisonSegments() {
        for (segment, places) in mapped {
            for extent in segment.pages.missing.all + segment.pages.requested.all {
                for part in places.parts(image: extent.range) { _ = try? poison(part.range) }
            }
        }
    }

    /// Lets those go on who wait for a page, which is there by now.
    func wake(_ address: Address, _ length: UInt64 = pageSize) {
        try? Userfaultfd.wake(faults.number, AddressRange(start: address, end: address + length))
    }
}
