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
    private let mapping: Mapping
    private let device: UInt32, inode: UInt64
    /// Bytes that our page tables have.
    private var held: UInt64 = 0

    /// Maps it, empty, with what the images have of it.
    init(_ id: UInt64, _ file: consuming Descriptor, _ pagemap: Pagemap, _ images: ImageSet) throws(Failure) {
        let number = file.number
        let status = try attempt("look at shared memory") { () throws(SystemCallError) in
            try FileStatus.read(in: number)
        }
        let unit = try attempt("look at shared memory") { () throws(SystemCallError) in
            try FileSystem.pageUnit(of: number)
        }
        let length = (max(status.size, 1) + unit - 1) / unit * unit
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
        (device, inode) = (status.kernelDevice, status.inode)
        var missing = Extents()
        for run in pagemap.runs where run.isPresent || run.isInParent {
            guard run.range.end.rawValue <= length else {
                throw Failure(.corruptImage, "the page at \(run.range.end) is not in the shared memory \(id)")
            }
            let place = AddressRange(
                start: start + run.range.start.rawValue, end: start + run.range.end.rawValue)
            missing.insert(Extents.Extent(range: place, image: run.range.start, unit: unit))
        }
        pages = LazyMemory(
            faults, of: .shared(id), name: "shared memory \(id)", missing: missing,
            WorkingSet(of: .shared(id), images))
        if unit > pageSize {
            let whole = AddressRange(start: start, end: start + length)
            pages.huge = Extents([Extents.Extent(range: whole, image: Address(0), unit: unit)])
        }
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

    /// Parts were taken out of it: what belongs there is not to come any more.
    ///
    /// - Parameter parts: their places, and in place of the image's addresses our own.
    func drop(_ parts: [Extents.Extent]) {
        for part in parts {
            pages.missing.remove(part.imageRange)
            pages.requested.remove(part.imageRange)
        }
    }
}

extension LazySegment {
    /// The processes that map one of some segments, with all their mappings.
    ///
    /// - Parameter roots: ancestors of those that are looked at; if none of them does, it is everybody.
    static func users(of segments: [LazySegment], _ roots: [TaskID] = []) -> [(id: TaskID, mappings: [VMA])] {
        var found: [(id: TaskID, mappings: [VMA])] = []
        func look(_ id: TaskID) {
            guard id != .current, let mappings = try? VMA.readPlain(of: id),
                mappings.contains(where: { mapping in segments.contains { $0.isMapped(by: mapping) } })
            else { return }
            found.append((id, mappings))
        }
        forEachProcess(of: roots) { (process) -> Bool in
            look(process)
            return true
        }
        if found.isEmpty { for number in (try? listNumbers("/proc")) ?? [] { look(TaskID(number)) } }
        return found
    }
}
