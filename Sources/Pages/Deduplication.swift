public import Diagnostics
public import ImageFormat
internal import Linux
internal import SystemPackage

/// Takes pages out of the parents of a set of images that the set, or one between, has anew.
///
/// The newest set stays whole at any moment: what it refers to is never touched, and it is on the disk before anything is
/// taken away. Its parents can't be restored by themselves any more; a mark says so before the first page goes.
public struct Deduplication: ~Copyable {
    private struct File: Hashable {
        let device: UInt64, inode: UInt64
    }

    private let images: ImageSet
    /// What the newest set refers to, ascending offsets.
    private var needed: [File: [AddressRange]] = [:]
    /// Pages that a later set has.
    private var covered: [String: [AddressRange]] = [:]

    /// Files that could give something back, and can't because they are packed.
    public private(set) var packed: [String] = []

    /// Finds out what a complete set needs.
    public init(_ images: ImageSet) throws(Failure) {
        self.images = images
        for name in try Deduplication.names(in: images) {
            let pagemap = try Pagemap.read(name, from: images)
            covered[name.fileName] = pagemap.runs.filter(\.isPresent).map(\.range)
            for piece in try PageLocator(images, name, pagemap).pieces {
                needed[File(device: piece.file.device, inode: piece.file.inode), default: []].append(piece.place)
            }
        }
        for file in needed.keys { needed[file] = Deduplication.joined(needed[file] ?? []) }
    }

    /// Takes the pages away. Returns the number of bytes that the disk gets back.
    public mutating func run() throws(Failure) -> UInt64 {
        let number = Int(images.directory.number)
        try attempt("sync the images in \(images.path)") { () throws(SystemCallError) in
            _ = try systemCall(.syncfs, number)
        }
        var freed: UInt64 = 0
        var next = images.parent
        while let set = next {
            for name in try Deduplication.names(in: set) { freed += try take(name, from: set) }
            next = set.parent
        }
        return freed
    }

    private mutating func take(_ name: ImageName, from set: ImageSet) throws(Failure) -> UInt64 {
        let later = covered[name.fileName] ?? []
        let pagemap = try Pagemap.read(name, from: set)
        let present = pagemap.runs.filter(\.isPresent).map(\.range)
        defer { covered[name.fileName] = Deduplication.joined(later + present) }
        var (offset, at) = (UInt64(0), 0)
        var places: [AddressRange] = []
        for range in present {
            for part in parts(of: later, in: range, from: &at) {
                let start = offset + part.start.rawValue - range.start.rawValue
                places.append(AddressRange(start, start + part.length))
            }
            offset += range.length
        }
        guard !places.isEmpty else { return 0 }
        let image = set.pagesName(pagemap.pagesID)
        guard image == .pages(pagemap.pagesID) else {
            packed.append("\(set.path)/\(image.fileName)")
            return 0
        }
        let (pages, folder) = (image.fileName, set.directory.number)
        return try attempt("take pages out of \(pages) in \(set.path)") { () throws(SystemCallError) in
            let file = try openFile(pages, [.readWrite, .noFollow], in: folder)
            let status = try FileStatus.read(in: file.number)
            let kept = needed[File(device: status.device, inode: status.inode)] ?? []
            var (freed, next) = (UInt64(0), 0)
            for place in places where place.end.rawValue <= status.size {
                var start = place.start
                for hole in parts(of: kept, in: place, from: &next) + [AddressRange(start: place.end, end: place.end)] {
                    let piece = AddressRange(start: start, end: hole.start)
                    start = hole.end
                    guard piece.length > 0 else { continue }
                    try set.markIncomplete()
                    // FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
                    try systemCall(.fallocate, Int(file.number), 3, Int(piece.start.rawValue), Int(piece.length))
                    freed += piece.length
                }
            }
            return freed
        }
    }

    /// The page maps of a set.
    private static func names(in set: ImageSet) throws(Failure) -> [ImageName] {
        let all = try attempt("list \(set.path)") { () throws(SystemCallError) in
            try listDirectory(".", in: set.directory.number)
        }
        return all.compactMap { path in
            let text = path.string
            guard text.hasPrefix("pagemap-"), text.hasSuffix(".img") else { return nil }
            let id = text.dropFirst(8).dropLast(4)
            if let process = Int32(id) { return .pagemap(process) }
            guard id.hasPrefix("shmem-"), let shared = UInt64(id.dropFirst(6)) else { return nil }
            return .sharedPagemap(shared)
        }
    }

    /// Ascending, without overlaps.
    private static func joined(_ ranges: [AddressRange]) -> [AddressRange] {
        var found: [AddressRange] = []
        for range in ranges.sorted(by: { $0.start < $1.start }) {
            if let last = found.last, last.end >= range.start {
                found[found.count - 1].end = max(last.end, range.end)
            } else {
                found.append(range)
            }
        }
        return found
    }
}
