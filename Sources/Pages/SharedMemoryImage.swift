public import Diagnostics
public import ImageFormat
public import Linux

/// The contents of a piece of shared memory: anonymous, memfd or SysV. Its image is `pagemap-shmem-ID.img`.
public enum SharedMemoryImage {
    /// Writes the contents of a shared memory file. Holes stay holes.
    ///
    /// - Parameters:
    ///   - file: a descriptor that can be read.
    ///   - granularity: the page size of the file.
    /// - Returns: the number of pages written.
    public static func write(
        _ file: Int32, id: UInt64, size: UInt64, granularity: UInt64 = pageSize, to images: ImageDirectory
    ) throws(Failure) -> UInt64 {
        let stretches = try data(in: file, size: size, granularity: granularity).map { PageStretch($0) }
        let pagemap = Pagemap(
            pagesID: images.newPagesID(),
            runs: stretches.map { PageRun(address: $0.range.start, pages: $0.range.length / pageSize) })
        try writePages(stretches, from: .file(file), to: images, .pages(pagemap.pagesID))
        try pagemap.write(.sharedPagemap(id), to: images)
        return pagemap.presentPages
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
        for piece in try PageLocator(images, shared: id, pagemap).pieces {
            try piece.copy(toFile: file)
        }
    }
}
