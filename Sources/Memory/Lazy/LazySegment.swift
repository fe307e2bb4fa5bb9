internal import Diagnostics
internal import ImageFormat
internal import Linux
internal import Pages
internal import Procfs

/// Shared memory whose pages come while the tasks that map it run.
///
/// The pager maps it, too, and fills it through a userfaultfd of its own: what it brings is there for everybody, wherever
/// their mappings went meanwhile. Theirs only tell who waits.
final class LazySegment {
    /// The pages in our own mapping.
    let pages: LazyMemory
    /// The address of the first byte there.
    let start: Address
    private let file: Descriptor
    private let mapping: Mapping
    private let device: UInt32, inode: UInt64
    /// When something was taken out of it last: its time of modification, which other writes through mappings leave alone.
    private var changed: Moment
    /// Bytes that our page tables have.
    private var held: UInt64 = 0

    private struct Moment: Equatable {
        var seconds: Int64, nanoseconds: UInt32
    }

    /// Maps it, empty, with what the images have of it.
    init(_ id: UInt64, _ file: consuming Descriptor, _ pagemap: Pagemap, _ images: ImageSet) throws(Failure) {
        let number = file.number
        let status = try attempt("look at shared memory") { () throws(SystemCallError) in
            try FileStatus.read(in: number)
        }
        let length = (max(status.size, 1) + pageSize - 1) & ~(pageSize - 1)
        mapping = try attempt("map shared memory") { () throws(SystemCallError) in
            try Mapping(length: Int(length), flags: 0x4001, file: number)  // MAP_SHARED | MAP_NORESERVE
        }
        let start = Address(UInt64(mapping.address))
        let faults = try attempt("open a userfaultfd") { () throws(SystemCallError) in
            // UFFD_USER_MODE_ONLY, as nobody touches that mapping.
            let faults = Descriptor(owning: Int32(try systemCall(.userfaultfd, 0o2004001)))
            try Userfaultfd.agree(faults.number, features: 0)
            try Userfaultfd.register(faults.number, AddressRange(start: start, end: start + length), mode: 1)
            return faults
        }
        self.start = start
        self.file = consume file
        (device, inode) = (status.kernelDevice, status.inode)
        changed = Moment(seconds: status.modified.seconds, nanoseconds: status.modified.nanoseconds)
        var missing = Extents()
        for run in pagemap.runs where run.isPresent || run.isInParent {
            guard run.range.end.rawValue <= length else {
                throw Failure(.corruptImage, "the page at \(run.range.end) is not in the shared memory \(id)")
            }
            let place = AddressRange(
                start: start + run.range.start.rawValue, end: start + run.range.end.rawValue)
            missing.insert(Extents.Extent(range: place, image: run.range.start))
        }
        pages = LazyMemory(
            faults, of: .shared(id), name: "shared memory \(id)", missing: missing,
            WorkingSet(of: .shared(id), images))
    }

    /// Whether a mapping is one of it.
    func isMapped(by mapping: VMA) -> Bool { mapping.inode == inode && mapping.major << 20 | mapping.minor == device }

    /// Notes that so many bytes were brought, and gives page tables back.
    func hold(_ length: UInt64) {
        held += length
        guard held >= 64 << 20 || pages.isComplete else { return }
        held = 0
        _ = try? systemCall(.madvise, mapping.address, mapping.length, 4)  // MADV_DONTNEED
    }

    // MARK: removal

    /// A task gives parts of a mapping back, and was told to go on: what belongs there is dropped if it is taken out of the
    /// memory, and still to come if only the mapping forgets it, which the kernel tells in the same way.
    ///
    /// - Parameter parts: their places, and in place of the image's addresses our own.
    func hearRemoval(of parts: [Extents.Extent]) {
        // Also if all of it is there: the next one who gives something back is not to be taken for this one.
        guard !pages.isComplete, !parts.isEmpty, isRemoved(parts.map(\.range)) else { return }
        for part in parts {
            pages.missing.remove(part.imageRange)
            pages.requested.remove(part.imageRange)
        }
    }

    /// Milliseconds that a task gets for its call, and nanoseconds between two looks.
    private static let patience = 10_000, interval = 100_000

    /// Whether what was told of a moment ago takes pages out of the memory. Waits until that is over, or plainly something else.
    private func isRemoved(_ ranges: [AddressRange]) -> Bool {
        let callers = Callers(of: self, in: ranges)
        let started = ContinuousClock.now
        while ContinuousClock.now - started < .milliseconds(LazySegment.patience) {
            if hasChanged() { return true }
            switch callers.look() {
            case .removing: break
            case .other: return hasChanged()
            }
            pause(nanoseconds: LazySegment.interval)
        }
        return hasChanged()
    }

    /// Whether something was taken out since the last time.
    private func hasChanged() -> Bool {
        guard let status = try? FileStatus.read(in: file.number) else { return false }
        let now = Moment(seconds: status.modified.seconds, nanoseconds: status.modified.nanoseconds)
        guard now != changed else { return false }
        changed = now
        // Older kernels have the same time for all that happens in one tick: the next removal is to have another.
        for _ in 0..<20 where coarseTime() == now { pause(nanoseconds: 1_000_000) }
        return true
    }

    private func coarseTime() -> Moment? {
        var words: (Int64, Int64) = (0, 0)
        let got = try? withAddress(of: &words) { (address) throws(SystemCallError) in
            try systemCall(.clock_gettime, 5, address)  // CLOCK_REALTIME_COARSE
        }
        return got.map { _ in Moment(seconds: words.0, nanoseconds: UInt32(truncatingIfNeeded: words.1)) }
    }
}

/// The threads that may just be giving a part of shared memory back.
private final class Callers {
    enum Verdict { case removing, other }

    private struct Thread: Hashable {
        let process: TaskID, id: TaskID
    }
    private let ranges: [AddressRange]
    /// Threads that were at work each time, with the time that they had spent outside of the kernel at first.
    private var busy: [Thread: UInt64?] = [:]

    /// Finds who maps the memory.
    init(of segment: LazySegment, in ranges: [AddressRange]) {
        self.ranges = ranges
        for process in LazySegment.users(of: [segment]) {
            for thread in (try? listNumbers("/proc/\(process.id.rawValue)/task")) ?? [] {
                let thread = Thread(process: process.id, id: TaskID(thread))
                busy[thread] = .some(Callers.userTime(thread))
            }
        }
    }

    /// Whether one of them may still be about it.
    func look() -> Verdict {
        var verdict = Verdict.other
        for (thread, time) in busy {
            let path = "/proc/\(thread.process.rawValue)/task/\(thread.id.rawValue)/syscall"
            guard let text = try? readWholeFile(path) else {
                busy[thread] = nil
                continue
            }
            let words = String(decoding: text, as: UTF8.self).split(whereSeparator: \.isWhitespace)
            if words.first == "running" {
                // It has left the kernel since: what it began is over.
                if let time, let now = Callers.userTime(thread), now > time {
                    busy[thread] = nil
                } else {
                    verdict = .removing
                }
            } else if isRemoval(words) {
                verdict = .removing
            } else {
                busy[thread] = nil
            }
        }
        return verdict
    }

    /// Whether a call is madvise(2) with MADV_REMOVE for a part of the memory.
    private func isRemoval(_ words: [Substring]) -> Bool {
        let numbers = words.prefix(4).map { word in
            word.hasPrefix("0x") ? UInt64(word.dropFirst(2), radix: 16) : UInt64(word)
        }
        guard numbers.count == 4, let start = numbers[1], let length = numbers[2] else { return false }
        let range = AddressRange(start, start &+ ((length &+ pageSize &- 1) & ~(pageSize - 1)))
        return numbers[0] == UInt64(SystemCall.madvise.rawValue) && numbers[3] == 9
            && ranges.contains { $0.overlaps(range) }
    }

    /// Clock ticks that a thread has run outside of the kernel.
    private static func userTime(_ thread: Thread) -> UInt64? {
        let path = "/proc/\(thread.process.rawValue)/task/\(thread.id.rawValue)/stat"
        guard let text = try? readWholeFile(path), let end = text.lastIndex(of: 0x29) else { return nil }
        let fields = String(decoding: text[(end + 1)...], as: UTF8.self).split(separator: " ")
        return fields.count > 11 ? UInt64(fields[11]) : nil
    }
}

extension LazySegment {
    /// The processes that map one of some segments, with all their mappings.
    static func users(of segments: [LazySegment]) -> [(id: TaskID, mappings: [VMA])] {
        ((try? listNumbers("/proc")) ?? []).compactMap { number in
            let id = TaskID(number)
            guard id != .current, let mappings = try? VMA.readPlain(of: id),
                mappings.contains(where: { mapping in segments.contains { $0.isMapped(by: mapping) } })
            else { return nil }
            return (id, mappings)
        }
    }
}
