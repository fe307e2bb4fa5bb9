public import Diagnostics
public import ImageMessages
public import Linux

/// A run of pages in a pagemap.
public struct PageRun: Hashable, Sendable {
    /// First page.
    public var address: Address
    /// Number of pages.
    public var pages: UInt64
    /// `PE_PRESENT`: the pages are in this set's pages file.
    public var isPresent: Bool
    /// `PE_PARENT`: the pages are in the parent set.
    public var isInParent: Bool
    /// `PE_LAZY`: the pages may be brought later.
    public var isLazy: Bool

    /// Describes a run of pages.
    public init(address: Address, pages: UInt64, isPresent: Bool = true, isInParent: Bool = false, isLazy: Bool = false)
    {
        self.address = address
        self.pages = pages
        self.isPresent = isPresent
        self.isInParent = isInParent
        self.isLazy = isLazy
    }

    /// The addresses.
    public var range: AddressRange { AddressRange(start: address, end: address + pages * pageSize) }

    /// As the image holds it.
    public var entry: PagemapEntry {
        var entry = PagemapEntry()
        entry.vaddr = address.rawValue
        entry.compatNrPages = 0
        entry.nrPages = pages
        entry.flags = (isInParent ? 1 : 0) | (isLazy ? 2 : 0) | (isPresent ? 4 : 0)
        return entry
    }
}

extension [PageRun] {
    /// The same pages, of which those in `known`, ascending ranges, are left to the parent set.
    public func divided(_ known: [AddressRange]) -> [PageRun] {
        var divided: [PageRun] = []
        var next = 0
        for run in self {
            var at = run.address
            func add(_ end: Address, isKnown: Bool) {
                guard end > at else { return }
                divided.append(
                    PageRun(
                        address: at, pages: (end.rawValue - at.rawValue) / pageSize, isPresent: !isKnown,
                        isInParent: isKnown, isLazy: run.isLazy && !isKnown))
                at = end
            }
            while next < known.count, known[next].end <= run.range.start { next += 1 }
            for part in known[next...].prefix(while: { $0.start < run.range.end }) {
                add(Swift.max(part.start, run.range.start), isKnown: false)
                add(Swift.min(part.end, run.range.end), isKnown: true)
            }
            add(run.range.end, isKnown: false)
        }
        return divided
    }
}

/// The pages of a process or of a piece of shared memory: runs, and the pages file where present ones lie in order.
public struct Pagemap: Sendable {
    /// Which pages file.
    public var pagesID: UInt32
    /// Ascending runs.
    public var runs: [PageRun]

    /// Describes a pagemap.
    public init(pagesID: UInt32, runs: [PageRun]) {
        self.pagesID = pagesID
        self.runs = runs
    }

    /// Number of pages in the pages file.
    public var presentPages: UInt64 { runs.reduce(0) { $0 &+ ($1.isPresent ? $1.pages : 0) } }

    /// Begins one, to which entries are appended.
    public static func begin(
        _ name: ImageName, pagesID: UInt32, in images: ImageDirectory
    ) throws(Failure) -> ImageWriter {
        let writer = images.create(name)
        var head = PagemapHead()
        head.pagesID = pagesID
        try writer.append(head)
        return writer
    }

    /// Writes it.
    public func write(_ name: ImageName, to images: ImageDirectory) throws(Failure) {
        let writer = try Pagemap.begin(name, pagesID: pagesID, in: images)
        for run in runs { try writer.append(run.entry) }
        try writer.finish()
    }

    /// Reads and checks one: runs are page-aligned, ascending, don't overlap, and lie in user space.
    ///
    /// - Parameter highest: first address that no page may have.
    public static func read(_ name: ImageName, from images: ImageSet, highest: UInt64 = 1 << 56) throws(Failure)
        -> Pagemap
    {
        try during(.image(name.fileName)) { () throws(Failure) in
            let reader = try images.open(name)
            guard let head = try reader.next(PagemapHead.self) else {
                throw Failure(.corruptImage, "it holds no message")
            }
            var runs: [PageRun] = []
            var last: UInt64 = 0
            while let entry = try reader.next(PagemapEntry.self) {
                let pages = entry.hasNrPages && entry.nrPages > 0 ? entry.nrPages : UInt64(entry.compatNrPages)
                let (bytes, over) = pages.multipliedReportingOverflow(by: pageSize)
                let (end, past) = entry.vaddr.addingReportingOverflow(bytes)
                guard !over, !past, pages > 0, entry.vaddr % pageSize == 0, entry.vaddr >= last, end <= highest else {
                    throw Failure(.corruptImage, "the run of \(pages) pages at \(Address(entry.vaddr)) makes no sense")
                }
                last = end
                // Without flags an entry is of the old format: in the parent or present.
                let flags = entry.hasFlags ? entry.flags : (entry.inParent ? 1 : 4)
                runs.append(
                    PageRun(
                        address: Address(entry.vaddr), pages: pages, isPresent: flags & 4 != 0,
                        isInParent: flags & 1 != 0,
                        isLazy: flags & 2 != 0))
            }
            return Pagemap(pagesID: head.pagesID, runs: runs)
        }
    }
}
