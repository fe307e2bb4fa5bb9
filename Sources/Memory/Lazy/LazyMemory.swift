internal import CLinux
internal import Diagnostics
internal import Linux

/// An address space whose pages come while its task runs: its userfaultfd, and what is still missing.
final class LazyMemory {
    /// The process in the image whose pages these are.
    let process: Int32
    /// For messages.
    let name: String
    private let faults: Descriptor
    /// What is still to be brought, and what was asked for already.
    var missing: Extents, requested = Extents()
    /// Addresses at which threads wait.
    var waiting: Set<UInt64> = []
    /// What threads waited for, here and at earlier restores; nil for children that were forked since.
    let workingSet: WorkingSet?
    /// The task has ended.
    private(set) var isGone = false
    /// Bytes that were brought, and how often a thread had to wait.
    private(set) var broughtBytes: UInt64 = 0, faultCount = 0

    /// `UFFD_FEATURE_*`: fork, remap, remove and unmap are told, and wait until we have heard of them.
    static let features: UInt64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6

    init(
        _ faults: consuming Descriptor, process: Int32, name: String, missing: Extents, _ workingSet: WorkingSet? = nil
    ) {
        self.faults = faults
        self.workingSet = workingSet
        self.process = process
        self.name = name
        self.missing = missing
    }

    /// The descriptor, for `poll(2)` only.
    var number: Int32 { faults.number }

    /// Whether nothing more is to be done.
    var isComplete: Bool { isGone || (missing.isEmpty && requested.isEmpty && waiting.isEmpty) }

    // MARK: events

    /// Reads all events that wait. Returns children that were forked.
    func readEvents() throws(Failure) -> [LazyMemory] {
        var children: [LazyMemory] = []
        while !isGone {
            let messages: [Userfaultfd.Message]
            do throws(SystemCallError) { messages = try Userfaultfd.readMessages(faults.number) } catch {
                throw Failure(.bug, "can't read the page faults of \(name)", cause: error)
            }
            if messages.isEmpty { break }
            for message in messages { if let child = take(message) { children.append(child) } }
        }
        return children
    }

    private func take(_ message: Userfaultfd.Message) -> LazyMemory? {
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
            return LazyMemory(child, process: process, name: "a child of \(name)", missing: inherited)
        case 0x14:  // UFFD_EVENT_REMAP
            let range = AddressRange(words[0], words[0] &+ words[2])
            missing.move(range, to: Address(words[1]))
            requested.move(range, to: Address(words[1]))
        case 0x15, 0x16:  // UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP
            missing.remove(AddressRange(words[0], words[1]))
            requested.remove(AddressRange(words[0], words[1]))
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
            case .elsewhere where length > pageSize: step = pageSize
            case .present where length > pageSize: step = pageSize
            case .elsewhere, .present:
                wake(range.start + done, pageSize)
                done += pageSize
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
        try fill(AddressRange(start: address, end: address + pageSize)) { (_, length) throws(Failure) in
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

    private func wake(_ address: Address, _ length: UInt64) {
        try? Userfaultfd.wake(faults.number, AddressRange(start: address, end: address + length))
    }
}
