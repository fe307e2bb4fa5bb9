internal import CLinux
public import Diagnostics
public import ImageFormat
public import Linux
internal import Synchronization

/// A pages file of an image set.
public final class PagesFile: Sendable {
    /// The bytes of its pages.
    let size: UInt64
    private let file: Descriptor
    /// Which file it is, whatever it is called.
    let device: UInt64, inode: UInt64
    /// The whole file in our memory, if its pages can be used as they are.
    private let mapping: Mapping?
    /// Our address of the first byte, if the file is mapped.
    let address: Int?
    private let layout: PagesLayout

    init(_ images: ImageSet, _ id: UInt32) throws(Failure) {
        let image = images.pagesName(id)
        let (name, folder) = (image.fileName, images.directory.number)
        file = try attempt("open the image \(name)", code: .corruptImage) { () throws(SystemCallError) in
            try openFile(name, [.noFollow], in: folder)
        }
        let number = file.number
        let status = try attempt("look at the image \(name)") { () throws(SystemCallError) in
            try FileStatus.read(in: number)
        }
        (device, inode) = (status.device, status.inode)
        layout = try images.layout(of: number, image)
        switch layout {
        case .packed(let packed, _):
            (size, address) = (packed.total, nil)
            mapping = nil
        case .summed:
            (size, address) = (status.size, nil)
            mapping = nil
        case .plain:
            let whole = try attempt("map the image \(name)") { () throws(SystemCallError) in
                try Mapping(length: max(Int(status.size), 1), protection: 1, flags: 1, file: number)
            }
            (size, address) = (status.size, whole.address)
            mapping = consume whole
        }
    }

    /// Brings a chunk to `address`, where there is room for 256 KiB. Returns how many bytes it has.
    fileprivate func read(_ chunk: Int, to address: Int, with coder: ChunkCoder) throws(Failure) -> Int {
        switch layout {
        case .packed(let packed, let checks):
            try packed.read(chunk, of: file.number, to: address, with: coder, checks: checks)
        case .summed(let sums): try sums.read(chunk, of: file.number, to: address)
        case .plain: throw Failure(.bug, "a mapped file is read by chunks")
        }
    }

    /// Reads bytes; unlike by the mapping, a file that was cut short is an error and not a signal.
    fileprivate func read(_ range: AddressRange, into address: Int) throws(Failure) {
        let (number, at, count) = (file.number, range.start.rawValue, Int(range.length))
        let got = try attempt("read pages of the image") { () throws(SystemCallError) in
            try readFully(number, into: address, count: count, at: at)
        }
        guard got == count else { throw Failure(.corruptImage, "pages of the image are missing") }
    }
}

/// Pages of an image that lie together in one pages file.
public struct PagePiece: Sendable {
    /// Where they belong.
    public var range: AddressRange
    /// Where they are.
    let file: PagesFile, offset: UInt64

    /// The offsets in the pages file.
    var place: AddressRange { AddressRange(offset, offset + range.length) }

    /// The part of it that lies in a range that overlaps it.
    public func part(in other: AddressRange) -> PagePiece {
        let cut = AddressRange(start: max(range.start, other.start), end: min(range.end, other.end))
        return PagePiece(range: cut, file: file, offset: offset + cut.start.rawValue - range.start.rawValue)
    }

    /// Whether the pages of another piece follow, in memory and in the file.
    public func isFollowed(by other: PagePiece) -> Bool {
        range.end == other.range.start && file === other.file && offset + range.length == other.offset
    }

    /// The same piece up to a later end; the pages between must follow in the same file.
    public func extended(to end: Address) -> PagePiece {
        PagePiece(range: AddressRange(start: range.start, end: end), file: file, offset: offset)
    }

    /// Whether the bytes of two pages are in the same place.
    fileprivate func isSame(as other: PagePiece, at address: Address) -> Bool {
        (file.device, file.inode) == (other.file.device, other.file.inode)
            && offset &- range.start.rawValue == other.offset &- other.range.start.rawValue
    }

    /// The contents.
    public func bytes() throws(Failure) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(range.length))
        try bytes.withAddress { (address, _) throws(Failure) in try PageLoader().read(self, into: address) }
        return bytes
    }
}

/// Brings pages of images into our memory. It keeps what it read last, for one thread.
public final class PageLoader {
    /// A chunk in memory.
    private struct Slot {
        let address: Int
        var file: PagesFile?
        var chunk = 0, count = 0
    }

    private let coder = ChunkCoder()
    private let most: Int
    private var slots: [Slot] = []
    private var memory: Mapping?
    /// The slot that is overwritten next.
    private var oldest = 0

    /// Takes no memory before it is needed.
    ///
    /// - Parameter chunks: how many chunks of 256 KiB are kept: pages of a process may be spread over as many images.
    public init(chunks: Int = 8) { most = max(chunks, 1) }

    private func slot(of file: PagesFile, _ chunk: Int) throws(Failure) -> Slot {
        if let known = slots.first(where: { $0.file === file && $0.chunk == chunk }) { return known }
        if slots.isEmpty {
            let (size, most) = (PagesFileWriter.chunkSize, most)
            let fresh = try attempt("get memory for pages") { () throws(SystemCallError) in
                try Mapping(length: most * size, flags: 0x22)  // PRIVATE | ANONYMOUS
            }
            slots = (0..<most).map { Slot(address: fresh.address + $0 * size) }
            memory = consume fresh
        }
        let index = oldest
        oldest = (oldest + 1) % most
        slots[index].file = nil
        let count = try file.read(chunk, to: slots[index].address, with: coder)
        (slots[index].file, slots[index].chunk, slots[index].count) = (file, chunk, count)
        return slots[index]
    }

    /// Where the pages of a piece from a byte on are, until the next call, and how many bytes there are together.
    private func find(_ piece: PagePiece, from skip: UInt64) throws(Failure) -> (address: Int, count: UInt64) {
        let (offset, left) = (piece.offset + skip, piece.range.length - skip)
        if let start = piece.file.address { return (start + Int(offset), left) }
        let size = UInt64(PagesFileWriter.chunkSize)
        let slot = try slot(of: piece.file, Int(offset / size))
        guard offset % size < UInt64(slot.count) else { throw Failure(.corruptImage, "pages of the image are missing") }
        return (slot.address + Int(offset % size), min(left, UInt64(slot.count) - offset % size))
    }

    /// Calls `body` with the parts of a piece, and where the bytes of each are during the call.
    ///
    /// - Parameters:
    ///   - skip: the first byte.
    ///   - count: how many bytes.
    public func forEachPart(
        of piece: PagePiece, from skip: UInt64 = 0, count: UInt64? = nil,
        _ body: (AddressRange, Int) throws(Failure) -> Void
    ) throws(Failure) {
        let end = skip + (count ?? piece.range.length - skip)
        var at = skip
        while at < end {
            let found = try find(piece, from: at)
            let part = min(found.count, end - at)
            try body(AddressRange(start: piece.range.start + at, end: piece.range.start + at + part), found.address)
            at += part
        }
    }

    /// Copies the contents of a piece. A file that was cut short is an error.
    func read(_ piece: PagePiece, into address: Int) throws(Failure) {
        guard piece.file.address == nil else { return try piece.file.read(piece.place, into: address) }
        try forEachPart(of: piece) { (range, from) throws(Failure) in
            copyBytes(
                from: from, to: address + Int(range.start.rawValue - piece.range.start.rawValue), Int(range.length))
        }
    }

    /// The address of a page of a piece.
    fileprivate func page(_ address: Address, of piece: PagePiece) throws(Failure) -> Int {
        try find(piece, from: address.rawValue - piece.range.start.rawValue).address
    }
}

/// Compares pages of two images.
public final class PageComparison {
    private let (one, other) = (PageLoader(), PageLoader())

    /// Takes no memory before it is needed.
    public init() {}

    /// Whether the bytes of two pages are the same.
    ///
    /// - Parameter address: a page in both.
    public func areEqual(_ a: PagePiece, _ b: PagePiece, at address: Address) throws(Failure) -> Bool {
        if a.isSame(as: b, at: address) { return true }
        guard let first = unsafe UnsafeRawPointer(bitPattern: try one.page(address, of: a)),
            let second = unsafe UnsafeRawPointer(bitPattern: try other.page(address, of: b))
        else { return false }
        return unsafe clinux_equal(first, second, Int(pageSize)) != 0
    }
}

/// Copies bytes within our memory.
public func copyBytes(from source: Int, to address: Int, _ count: Int) {
    guard let from = unsafe UnsafeRawPointer(bitPattern: source),
        let to = unsafe UnsafeMutableRawPointer(bitPattern: address)
    else { return }
    unsafe to.copyMemory(from: from, byteCount: count)
}

/// Finds each page of a pagemap: in this set or up the chain of parents.
public struct PageLocator: Sendable {
    /// Ascending.
    public let pieces: [PagePiece]

    /// Locates the pages of a process.
    public init(_ images: ImageSet, process: Int32, _ pagemap: Pagemap) throws(Failure) {
        pieces = try PageLocator.locate(images, .pagemap(process), pagemap)
    }

    /// Locates the pages of a piece of shared memory.
    public init(_ images: ImageSet, shared: UInt64, _ pagemap: Pagemap) throws(Failure) {
        pieces = try PageLocator.locate(images, .sharedPagemap(shared), pagemap)
    }

    /// Locates the pages of a page map by its name.
    init(_ images: ImageSet, _ name: ImageName, _ pagemap: Pagemap) throws(Failure) {
        pieces = try PageLocator.locate(images, name, pagemap)
    }

    private static func locate(_ images: ImageSet, _ name: ImageName, _ pagemap: Pagemap) throws(Failure)
        -> [PagePiece]
    {
        var found: [PagePiece] = []
        guard pagemap.runs.contains(where: { $0.isPresent || $0.isInParent }) else { return [] }
        let file = pagemap.runs.contains { $0.isPresent } ? try PagesFile(images, pagemap.pagesID) : nil
        var above: [PagePiece]?
        var next = 0
        var offset: UInt64 = 0
        for run in pagemap.runs {
            if run.isPresent, let file {
                guard run.range.length <= file.size, offset <= file.size - run.range.length else {
                    throw Failure(
                        .corruptImage,
                        "\(images.pagesName(pagemap.pagesID).fileName) is truncated: the pages at \(run.address) are "
                            + "missing")
                }
                found.append(PagePiece(range: run.range, file: file, offset: offset))
                offset += run.range.length
            } else if run.isInParent {
                if above == nil {
                    guard let parent = images.parent else {
                        throw Failure(.corruptImage, "\(name.fileName) refers to parent images, and there are none")
                    }
                    above = try locate(parent, name, try Pagemap.read(name, from: parent))
                }
                let pieces = above ?? []
                var at = run.range.start
                while at < run.range.end {
                    while next < pieces.count, pieces[next].range.end <= at { next += 1 }
                    guard next < pieces.count, pieces[next].range.contains(at) else {
                        throw Failure(.corruptImage, "the page at \(at) is in no parent image")
                    }
                    let part = pieces[next].part(in: AddressRange(start: at, end: run.range.end))
                    found.append(part)
                    at = part.range.end
                }
            }
        }
        return found
    }
}

/// Copies pages from images into tasks.
public enum PageCopy {
    /// From how many bytes on more threads than one are worth their start.
    private static let many: UInt64 = 8 << 20

    /// Calls `body` with each part of some pieces, and where its bytes are; by several threads if they are many.
    static func forEachPart(
        of pieces: [PagePiece], threads: Int = Workers.count,
        _ body: @escaping @Sendable (AddressRange, Int) throws(Failure) -> Void
    ) throws(Failure) {
        let sizes = pieces.map(\.range.length)
        let chunks = Chunk.cut(sizes, size: 2 << 20)
        let dealer = Dealer(chunks.count)
        try Workers.run(sizes.reduce(0, +) < many ? 1 : threads) { () throws(Failure) in
            let loader = PageLoader()
            while let index = dealer.take() {
                try chunks[index].forEachPart({ sizes[$0] }) { (piece, skip, length, _) throws(Failure) in
                    try loader.forEachPart(of: pieces[piece], from: skip, count: UInt64(length), body)
                }
            }
        }
    }

    /// Into memory that exists (`process_vm_writev`); the task must be allowed to write there.
    public static func write(_ pieces: [PagePiece], into task: TaskID) throws(Failure) {
        let mapped = pieces.compactMap { piece in
            piece.file.address.map { (piece.range, $0 + Int(piece.offset)) }
        }
        if !mapped.isEmpty { try write(mapped, into: task) }
        try forEachPart(of: pieces.filter { $0.file.address == nil }) { (range, address) throws(Failure) in
            try write([(range, address)], into: task)
        }
    }

    /// The same by several threads, which pays where the kernel brings in huge pages.
    public static func writeByThreads(_ pieces: [PagePiece], into task: TaskID) throws(Failure) {
        try forEachPart(of: pieces) { (range, address) throws(Failure) in try write([(range, address)], into: task) }
    }

    private static func write(_ parts: [(range: AddressRange, address: Int)], into task: TaskID) throws(Failure) {
        var index = 0
        while index < parts.count {
            var local: [clinux_iovec] = []
            var remote: [clinux_iovec] = []
            var total = 0
            while index < parts.count, local.count < 512, total < 64 << 20 {
                let (range, address) = parts[index]
                local.append(clinux_iovec(base: UInt64(address), length: range.length))
                remote.append(clinux_iovec(base: range.start.rawValue, length: range.length))
                total += Int(range.length)
                index += 1
            }
            try attempt("write the memory of task \(task)") { () throws(SystemCallError) in
                while !local.isEmpty {
                    let count = local.count
                    var done = try local.withConstantAddress { (from, _) throws(SystemCallError) in
                        try remote.withConstantAddress { (to, _) throws(SystemCallError) in
                            try systemCall(.process_vm_writev, Int(task.rawValue), from, count, to, count, 0)
                        }
                    }
                    if done == 0 { throw SystemCallError(.process_vm_writev, .EFAULT) }
                    while done > 0, let first = local.first {
                        let step = min(done, Int(first.length))
                        local[0].base += UInt64(step)
                        local[0].length -= UInt64(step)
                        remote[0].base += UInt64(step)
                        remote[0].length -= UInt64(step)
                        done -= step
                        if local[0].length == 0 {
                            local.removeFirst()
                            remote.removeFirst()
                        }
                    }
                }
            }
        }
    }

    /// Into memory that was never touched and is registered with a userfaultfd (`UFFDIO_COPY`), by several threads: no
    /// fault and no zeroing for each page.
    public static func copy(_ pieces: [PagePiece], through userfaultfd: Int32) throws(Failure) {
        try forEachPart(of: pieces) { (range, address) throws(Failure) in
            try attempt("fill memory at \(range.start)") { () throws(SystemCallError) in
                var done: UInt64 = 0
                while done < range.length {
                    var request = clinux_uffdio_copy(
                        destination: range.start.rawValue + done, source: UInt64(address) + done,
                        length: range.length - done, mode: 0, copied: 0)
                    do throws(SystemCallError) {
                        try withAddress(of: &request) { (address) throws(SystemCallError) in
                            try systemCall(.ioctl, Int(userfaultfd), 0xc028_aa03, address)
                        }
                        done = range.length
                    } catch {
                        guard error.errno == .EAGAIN, request.copied > 0 else { throw error }
                        done += UInt64(request.copied)
                    }
                }
            }
        }
    }
}
