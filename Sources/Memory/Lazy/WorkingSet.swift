internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux
internal import SystemPackage

/// What threads waited for of a process, or of shared memory, at its lazy restores, in the order in which they did: the next
/// one brings it first.
///
/// It lies beside the images, as `working-set-PID` or `working-set-shmem-ID`, in windows of the image's addresses. It is a
/// hint: what it names and is not missing is passed over.
final class WorkingSet {
    /// Bytes of a window, which come together.
    static let window: UInt64 = 64 << 10
    /// Most windows of a process that are remembered.
    private static let most = 1 << 20

    private let name: ImageName
    private var windows: [UInt64] = []
    private var known: Set<UInt64> = []
    private var next = 0
    private var hasGrown = false

    /// Reads what earlier restores noted, if anything.
    init(of origin: PageOrigin, _ images: ImageSet) {
        name =
            switch origin {
            case .process(let id): .workingSet(id)
            case .shared(let id): .sharedWorkingSet(id)
            }
        for entry in (try? images.loadAll(name, as: PagemapEntry.self)) ?? [] { add(entry.vaddr) }
        hasGrown = false
    }

    /// Windows that are known.
    var count: Int { windows.count }
    /// Whether some of them were not brought yet.
    var hasMore: Bool { next < windows.count }

    private func add(_ address: UInt64) {
        let window = address & ~(WorkingSet.window - 1)
        guard windows.count < WorkingSet.most, known.insert(window).inserted else { return }
        windows.append(window)
        hasGrown = true
    }

    /// Notes that a thread waits for a page, by its address in the image.
    func note(_ address: Address) { add(address.rawValue) }

    /// The next part of what was known that is still missing; nil if there is no more. It is taken out of `missing`.
    func take(from missing: inout Extents) -> Extents.Extent? {
        while next < windows.count {
            let start = Address(windows[next])
            if let part = missing.removeFirst(image: AddressRange(start: start, end: start + WorkingSet.window)) {
                return part
            }
            next += 1
        }
        return nil
    }

    /// Writes it beside the images.
    func keep(beside images: ImageSet) throws(Failure) {
        guard hasGrown else { return }
        let entries = windows.map { window in
            var entry = PagemapEntry()
            entry.vaddr = window
            (entry.compatNrPages, entry.nrPages) = (UInt32(WorkingSet.window / pageSize), WorkingSet.window / pageSize)
            return entry
        }
        // The order may have come by a path of another working directory.
        let folder = try ImageDirectory(FilePath("/proc/self/fd/\(images.directory.number)"))
        try folder.write(name, entries)
        try folder.writeOut()
        hasGrown = false
    }
}
