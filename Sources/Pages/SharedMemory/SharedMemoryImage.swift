public import Diagnostics
public import ImageFormat
internal import Linux
internal import SystemPackage

/// The contents of a piece of shared memory: anonymous, memfd or SysV. Its image is `pagemap-shmem-ID.img`.
public enum SharedMemoryImage {
    /// Writes the contents of a piece of shared memory. Holes stay holes.
    ///
    /// - Parameters:
    ///   - held: its pages as they were at an earlier moment, if they may have changed since.
    ///   - isChanging: others write to it meanwhile. The hashes are those of what was written.
    /// - Returns: the number of pages written.
    public static func write(
        _ piece: SharedMemoryPiece, held: HeldPages? = nil, isChanging: Bool = false, to images: ImageDirectory
    ) throws(Failure) -> UInt64 {
        let file = piece.file.number
        let sums =
            images.tracksSharedMemory
            ? try SharedMemorySums(of: held.map { .held($0, isLast: false) } ?? .file(file), piece.data) : nil
        let known = sums.map { unchanged($0, piece.id, images) } ?? []
        for range in known { held?.finish(range) }
        let runs = piece.data.map { PageRun(address: $0.start, pages: $0.length / pageSize) }.divided(known)
        let pagemap = Pagemap(pagesID: images.newPagesID(), runs: runs)
        let noted = isChanging ? sums.map(NotedSums.init) : nil
        try storePages(
            pagemap, of: .shared(piece.id), runs.filter(\.isPresent).map { PageStretch($0.range) },
            from: held.map { .held($0, isLast: true) } ?? noted.map { .changing(file, $0) } ?? .file(file), to: images)
        try (noted?.all ?? sums)?.write(piece.id, to: images)
        if !known.isEmpty {
            images.share([], inheriting: [(.sharedPagemap(piece.id), runs.filter(\.isInParent))])
        }
        return pagemap.presentPages
    }

    /// Finds the pages that the previous images have.
    private static func unchanged(_ sums: SharedMemorySums, _ id: UInt64, _ images: ImageDirectory) -> [AddressRange] {
        guard let previous = images.previous, let set = try? ImageSet(images.path.pushing(previous)),
            let earlier = SharedMemorySums(id, in: set), let pagemap = try? Pagemap.read(.sharedPagemap(id), from: set)
        else { return [] }
        let same = sums.unchanged(since: earlier)
        var known: [AddressRange] = []
        var next = 0
        for run in pagemap.runs where run.isPresent || run.isInParent {
            for part in parts(of: same, in: run.range, from: &next) { known.append(part) }
        }
        return known
    }

    /// Where a file has data, in whole pages (`SEEK_DATA`).
    static func data(in file: Int32, size: UInt64, granularity: UInt64) throws(Failure) -> [AddressRange] {
        let end = (size + granularity - 1) / granularity * granularity
        let ranges = try attempt("find the data of shared memory") { () throws(SystemCallError) in
            try dataRanges(of: file, size: end)
        }
        var found: [AddressRange] = []
        for range in ranges {
            let first = max(range.start.rawValue & ~(granularity - 1), found.last?.end.rawValue ?? 0)
            let last = (range.end.rawValue + granularity - 1) / granularity * granularity
            if last > first { found.append(AddressRange(first, last)) }
        }
        return found
    }

    /// Fills a shared memory file from the images.
    ///
    /// - Parameter size: what must hold all pages of the image.
    public static func read(id: UInt64, into file: Int32, size: UInt64, from images: ImageSet) throws(Failure) {
        guard images.has(.sharedPagemap(id)) else { return }
        let pagemap = try Pagemap.read(.sharedPagemap(id), from: images, highest: (size + (2 << 20)) & ~(pageSize - 1))
        let pieces = try PageLocator(images, shared: id, pagemap).pieces
        let unit = try attempt("look at shared memory") { () throws(SystemCallError) in
            try FileSystem.pageUnit(of: file)
        }
        if unit > pageSize {
            try fill(file, hugePages: unit, with: pieces)
        } else {
            // Threads that write to one file wait for each other, but not while they decompress.
            let threads = pieces.allSatisfy { $0.file.address != nil } ? 1 : Workers.count
            try PageCopy.forEachPart(of: pieces, threads: threads) { (range, address) throws(Failure) in
                try attempt("fill shared memory") { () throws(SystemCallError) in
                    try writeFully(file, from: address, count: Int(range.length), at: range.start.rawValue)
                }
            }
        }
    }

    /// hugetlbfs has no write call: its files are filled through a mapping.
    private static func fill(_ file: Int32, hugePages: UInt64, with pieces: [PagePiece]) throws(Failure) {
        guard let end = pieces.map(\.range.end.rawValue).max() else { return }
        let length = Int((end + hugePages - 1) / hugePages * hugePages)
        let mapping = try attempt("map shared memory") { () throws(SystemCallError) in
            try Mapping(length: length, flags: 0x4001, file: file)  // MAP_SHARED | MAP_NORESERVE
        }
        let start = mapping.address
        try PageCopy.forEachPart(of: pieces, threads: 1) { (range, address) throws(Failure) in
            // Into ourselves by a system call: where no page is left it fails, and a store would be fatal.
            var from = (address, Int(range.length))
            var to = (start + Int(range.start.rawValue), from.1)
            let done = try attempt(
                "fill shared memory", advice: "Provide more huge pages of \(hugePages) bytes (vm.nr_hugepages)"
            ) { () throws(SystemCallError) in
                try withAddress(of: &from) { (from) throws(SystemCallError) in
                    try withAddress(of: &to) { (to) throws(SystemCallError) in
                        try systemCall(.process_vm_writev, Int(TaskID.current.rawValue), from, 1, to, 1, 0)
                    }
                }
            }
            guard done == to.1 else {
                throw Failure(
                    .denied, "can't fill shared memory: no huge page is left",
                    advice: "Provide more huge pages of \(hugePages) bytes (vm.nr_hugepages)")
            }
        }
    }
}
