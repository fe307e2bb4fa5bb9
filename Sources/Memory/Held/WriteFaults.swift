internal import Diagnostics
internal import Linux
internal import Pages
internal import Synchronization

/// Holds up writes to shared memory until the pages are put aside. A thread of ours serves those who wait.
final class WriteFaults {
    /// Bytes that are put aside at once, at least: a wait costs more than copying a few pages.
    static let unit: UInt64 = 16 << 10
    /// Bytes that are let go at once where nothing has to be put aside.
    static let window: UInt64 = 1 << 20
    /// Bytes that are protected, or let go at the end, at once.
    fileprivate static let step: UInt64 = 64 << 20

    /// A mapping of held memory.
    struct Guarded: Sendable {
        var range: AddressRange
        /// The byte of the file that it begins with.
        let offset: UInt64
        let pages: HeldPages
        /// Bytes that are put aside at once: a power of two, one page at least.
        let unit: UInt64
        /// Where the file has data.
        let data: [AddressRange]

        /// Size of a page in bytes.
        let pageSize: UInt64
        /// Whether it is private memory, which is lost when the process gives it up.
        var isOwn = false
        /// Whether it is a child's copy of such memory, which nobody wants.
        var isCopy = false

        /// The part of the file that a range of addresses shows.
        func file(_ part: AddressRange) -> AddressRange {
            let start = Address(part.start.rawValue - range.start.rawValue + offset)
            return AddressRange(start: start, end: start + part.length)
        }

        /// The addresses around one of its own that lie in the same block of `size` bytes.
        func aligned(around address: Address, _ size: UInt64) -> AddressRange {
            let start = Address(address.rawValue & ~(size - 1))
            return AddressRange(start: max(range.start, start), end: min(range.end, start + size))
        }

        /// What lies in a range, as it is when that has moved.
        func part(in other: AddressRange, moved target: Address) -> Guarded {
            let start = max(range.start, other.start)
            let length = min(range.end, other.end).rawValue - start.rawValue
            let place = target + (start.rawValue - other.start.rawValue)
            return Guarded(
                range: AddressRange(start: place, end: place + length),
                offset: file(AddressRange(start: start, end: start)).start.rawValue,
                pages: pages, unit: unit, data: data, pageSize: pageSize, isOwn: isOwn, isCopy: isCopy)
        }
    }

    /// An address space with such mappings.
    struct Space: Sendable {
        let name: String
        let faults: SharedDescriptor
        var mappings: [Guarded]

        init(name: String, _ faults: SharedDescriptor, _ mappings: [Guarded]) {
            (self.name, self.faults, self.mappings) = (name, faults, mappings)
        }

        /// Whether some of a range is held in a certain way.
        func has(_ range: AddressRange, _ isMeant: (Guarded) -> Bool) -> Bool {
            mappings.contains { $0.range.overlaps(range) && isMeant($0) }
        }

        /// Moves what lies in a range.
        mutating func move(_ range: AddressRange, to target: Address) {
            var moved: [Guarded] = []
            for mapping in mappings {
                guard mapping.range.overlaps(range) else {
                    moved.append(mapping)
                    continue
                }
                moved.append(mapping.part(in: range, moved: target))
                for rest in [
                    AddressRange(start: mapping.range.start, end: max(mapping.range.start, range.start)),
                    AddressRange(start: min(mapping.range.end, range.end), end: mapping.range.end),
                ] where rest.length > 0 {
                    moved.append(mapping.part(in: rest, moved: rest.start))
                }
            }
            mappings = moved
        }
    }

    private let spaces: [Space]
    private let stop: SharedDescriptor
    private let saved = Counter()
    private var thread: Background?

    /// Pages that were put aside.
    fileprivate final class Counter: Sendable {
        let count = Mutex(0)
    }

    /// Registers the mappings of stopped tasks and starts the thread. Nothing is protected yet.
    init(_ spaces: [Space], _ disturbance: Disturbance) throws(Failure) {
        self.spaces = spaces
        stop = SharedDescriptor(
            try attempt("make an eventfd") { () throws(SystemCallError) in
                Descriptor(owning: Int32(try systemCall(.eventfd2, 0, 0o2000000)))
            })
        for space in spaces { try WriteFaults.register(space) }
        let (stop, saved) = (stop, saved)
        thread = try attempt("start a thread") { () throws(SystemCallError) in
            try Background.start {
                var service = WriteFaultService(spaces, stop: stop, disturbance, saved)
                service.run()
            }
        }
    }

    private static func register(_ space: Space) throws(Failure) {
        let number = space.faults.number
        try attempt("use a userfaultfd that holds up writes", advice: "Linux 5.19 or later can") {
            () throws(SystemCallError) in
            // UFFD_FEATURE_*: WP, EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP, WP_HUGETLBFS_SHMEM
            try Userfaultfd.agree(number, features: 0xf | 1 << 6 | 1 << 12)
        }
        for mapping in space.mappings {
            try attempt("hold up writes to \(mapping.range) of \(space.name)") { () throws(SystemCallError) in
                try Userfaultfd.register(number, mapping.range, mode: 2)  // UFFDIO_REGISTER_MODE_WP
            }
        }
    }

    /// Protects all pages that there are.
    func protect() throws(Failure) {
        var parts: [(number: Int32, range: AddressRange)] = []
        for space in spaces {
            for mapping in space.mappings {
                for data in mapping.data {
                    let shown = mapping.file(mapping.range)
                    let (start, end) = (max(data.start, shown.start), min(data.end, shown.end))
                    var at = start
                    while at < end {
                        let next = min(end, at + WriteFaults.step)
                        let first = mapping.range.start + (at.rawValue - shown.start.rawValue)
                        parts.append(
                            (
                                space.faults.number,
                                AddressRange(start: first, end: first + (next.rawValue - at.rawValue))
                            ))
                        at = next
                    }
                }
            }
        }
        let all = parts
        _ = try Workers.map(all.count) { (indices) throws(Failure) in
            for part in all[indices] {
                try attempt("protect \(part.range)") { () throws(SystemCallError) in
                    try Userfaultfd.setProtection(part.number, part.range, isOn: true)
                }
            }
        }
    }

    /// Lets all go on and ends the thread. Returns how many pages were put aside.
    func end() -> Int {
        var one: UInt64 = 1
        _ = try? withAddress(of: &one) { (one) throws(SystemCallError) in
            try systemCall(.write, Int(stop.number), one, 8)
        }
        thread = nil
        return saved.count.withLock { $0 }
    }

    deinit { _ = end() }
}

/// What the thread does: it saves the pages that others are about to write to, and lets them go on.
private struct WriteFaultService {
    private var spaces: [WriteFaults.Space]
    private let stop: SharedDescriptor
    private let disturbance: Disturbance
    private let saved: WriteFaults.Counter
    /// Where threads wait, by the index of the space.
    private var waiting: [(space: Int, address: Address)] = []

    init(
        _ spaces: [WriteFaults.Space], stop: SharedDescriptor, _ disturbance: Disturbance,
        _ saved: WriteFaults.Counter
    ) {
        (self.spaces, self.stop, self.disturbance, self.saved) = (spaces, stop, disturbance, saved)
    }

    mutating func run() {
        do throws(Failure) {
            while try wait() {
                try hear()
                let now = waiting
                waiting = []
                for (space, address) in now { try serve(space, address) }
            }
            try hearTheRest()
        } catch { disturbance.note(error) }
        letGo()
    }

    /// Hears of what was under way when the last page was read: between a change of mappings and its message others may go on.
    private mutating func hearTheRest() throws(Failure) {
        try hear()
        for space in spaces {
            let started = ContinuousClock.now
            while Userfaultfd.hasEvent(space.faults.number) {
                guard ContinuousClock.now - started < .seconds(1) else {
                    throw Failure(.vanished, "\(space.name) does not stop changing its mappings", advice: "Try again")
                }
                try hear()
            }
        }
    }

    /// Waits for something to do. Returns false at the end.
    private func wait() throws(Failure) -> Bool {
        guard waiting.isEmpty else { return true }
        let numbers = ([stop] + spaces.map(\.faults)).map(\.number)
        return try attempt("wait for writes to shared memory") { () throws(SystemCallError) in
            try pollForInput(numbers, milliseconds: -1)[0] == 0
        }
    }

    /// Reads all events.
    private mutating func hear() throws(Failure) {
        var index = 0
        while index < spaces.count {
            let messages: [Userfaultfd.Message]
            do throws(SystemCallError) { messages = try Userfaultfd.readMessages(spaces[index].faults.number) } catch {
                throw Failure(.bug, "can't read the faults of \(spaces[index].name)", cause: error)
            }
            for message in messages { take(message, of: index) }
            if messages.count < Userfaultfd.mostMessages { index += 1 }
        }
    }

    private mutating func take(_ message: Userfaultfd.Message, of space: Int) {
        let words = message.words
        func disturb(_ what: String) {
            disturbance.note(
                Failure(.vanished, "\(spaces[space].name) \(what) while it was written", advice: "Try again"))
        }
        switch message.event {
        case 0x12:  // UFFD_EVENT_PAGEFAULT
            waiting.append((space, Address(words[1] & ~(pageSize - 1))))
        case 0x13:  // UFFD_EVENT_FORK: the child has inherited the protection.
            let child = SharedDescriptor(Descriptor(owning: Int32(truncatingIfNeeded: words[0])))
            var inherited = spaces[space].mappings
            for index in inherited.indices where inherited[index].isOwn {
                (inherited[index].isOwn, inherited[index].isCopy) = (false, true)
            }
            spaces.append(WriteFaults.Space(name: "a child of \(spaces[space].name)", child, inherited))
        case 0x14:  // UFFD_EVENT_REMAP
            guard words[2] > 0 else { return disturb("mapped memory once more") }
            let range = AddressRange(words[0], words[0] &+ words[2])
            // It is read at its old place, where something else may be by now.
            if spaces[space].has(range, \.isOwn) { disturb("moved huge pages") }
            spaces[space].move(range, to: Address(words[1]))
        case 0x15:  // UFFD_EVENT_REMOVE: of the file, or only of the task's view.
            if spaces[space].has(AddressRange(words[0], words[1]), { !$0.isCopy }) { disturb("gave memory up") }
        case 0x16:  // UFFD_EVENT_UNMAP
            if spaces[space].has(AddressRange(words[0], words[1]), \.isOwn) { disturb("unmapped huge pages") }
        default: break
        }
    }

    /// Serves a thread that waits.
    private mutating func serve(_ space: Int, _ address: Address) throws(Failure) {
        let faults = spaces[space].faults.number
        guard let mapping = spaces[space].mappings.first(where: { $0.range.contains(address) }) else {
            return wake(faults, address)
        }
        var part = mapping.aligned(around: address, max(WriteFaults.window, mapping.unit))
        if !mapping.isCopy, !mapping.pages.isFinished(mapping.file(part)) {
            part = mapping.aligned(around: address, mapping.unit)
            let count = try mapping.pages.save(mapping.file(part))
            saved.count.withLock { $0 += count }
        }
        do throws(SystemCallError) { try Userfaultfd.setProtection(faults, part, isOn: false) } catch {
            switch error.errno {
            // It forks, moves or removes something, and waits until we have heard of it.
            case .EAGAIN: waiting.append((space, address))
            // What was mapped there is gone, in part at least.
            case .ENOENT:
                let page = mapping.aligned(around: address, mapping.pageSize)
                if (try? Userfaultfd.setProtection(faults, page, isOn: false)) == nil { wake(faults, address) }
            case .ESRCH: break
            default: throw Failure(.denied, "can't let \(spaces[space].name) write to \(address)", cause: error)
            }
        }
    }

    private func wake(_ faults: Int32, _ address: Address) {
        try? Userfaultfd.wake(faults, AddressRange(start: address, end: address + pageSize))
    }

    /// Ends all protection, piece by piece: each holds the task up for a moment.
    private mutating func letGo() {
        for space in spaces {
            for mapping in space.mappings {
                var at = mapping.range.start
                while at < mapping.range.end {
                    let end = min(mapping.range.end, at + WriteFaults.step)
                    try? Userfaultfd.unregister(space.faults.number, AddressRange(start: at, end: end))
                    at = end
                }
            }
        }
        spaces = []
    }
}
