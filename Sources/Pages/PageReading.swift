internal import CLinux
public import Diagnostics
public import ImageFormat
public import Linux
internal import Synchronization

/// A pages file of an image set, mapped for reading.
public final class PagesFile: Sendable {
    private let mapping: Mapping
    private let base: Int
    let size: UInt64
    private let file: Descriptor
    var number: Int32 { file.number }

    init(_ images: ImageSet, _ id: UInt32) throws(Failure) {
        let name = ImageName.pages(id).fileName
        let folder = images.directory.number
        file = try attempt("open the image \(name)", code: .corruptImage) { () throws(SystemCallError) in
            try openFile(name, [.noFollow], in: folder)
        }
        let number = file.number
        size = try attempt("look at the image \(name)") { () throws(SystemCallError) in
            try FileStatus.read(in: number).size
        }
        let length = Int(size)
        let mapping = try attempt("map the image \(name)") { () throws(SystemCallError) in
            try Mapping(length: max(length, 1), protection: 1, flags: 1, file: number)
        }
        base = mapping.address
        self.mapping = mapping
    }

    /// What stat(2) says of it.
    func status() throws(SystemCallError) -> FileStatus { try FileStatus.read(in: file.number) }

    /// Our address of a byte of the file.
    func address(_ offset: UInt64) -> Int { base + Int(offset) }
}

/// Pages of an image that lie together in one pages file.
public struct PagePiece: Sendable {
    /// Where they belong.
    public var range: AddressRange
    /// Where they are.
    let file: PagesFile, offset: UInt64

    /// Our address of the first byte.
    public var source: Int { file.address(offset) }

    /// The offsets in the pages file.
    var place: AddressRange { AddressRange(offset, offset + range.length) }

    /// What stat(2) says of the pages file.
    func status() throws(SystemCallError) -> FileStatus { try file.status() }

    /// The part of it that lies in a range that overlaps it.
    public func part(in other: AddressRange) -> PagePiece {
        let cut = AddressRange(start: max(range.start, other.start), end: min(range.end, other.end))
        return PagePiece(range: cut, file: file, offset: offset + cut.start.rawValue - range.start.rawValue)
    }

    /// The contents.
    public var bytes: [UInt8] {
        unsafe [UInt8](
            UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: source), count: Int(range.length)))
    }

    /// Reads the contents; unlike by the mapping, a file that was cut short is an error and not a signal.
    func read(into address: Int) throws(Failure) {
        let (number, at, count) = (file.number, offset, Int(range.length))
        let got = try attempt("read pages of the image") { () throws(SystemCallError) in
            try readFully(number, into: address, count: count, at: at)
        }
        guard got == count else { throw Failure(.corruptImage, "the pages at \(range.start) are missing") }
    }

    /// The same piece up to a later end; the pages between must follow in the same file.
    public func extended(to end: Address) -> PagePiece {
        PagePiece(range: AddressRange(start: range.start, end: end), file: file, offset: offset)
    }

    /// Whether the bytes of two pages are the same.
    ///
    /// - Parameter address: a page in both.
    public func equals(_ other: PagePiece, at address: Address) -> Bool {
        guard let a = unsafe UnsafeRawPointer(bitPattern: source + Int(address.rawValue - range.start.rawValue)),
            let b = unsafe UnsafeRawPointer(
                bitPattern: other.source + Int(address.rawValue - other.range.start.rawValue))
        else { return false }
        if unsafe a == b { return true }
        return unsafe clinux_equal(a, b, Int(pageSize)) != 0
    }

    /// Writes the pages into a file at the offset that their addresses say.
    func copy(toFile number: Int32) throws(Failure) {
        let (source, range) = (source, range)
        try attempt("fill shared memory") { () throws(SystemCallError) in
            try writeFully(number, from: source, count: Int(range.length), at: range.start.rawValue)
        }
    }
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
    init(_ images: ImageSet, shared: UInt64, _ pagemap: Pagemap) throws(Failure) {
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
                        "pages-\(pagemap.pagesID).img is truncated: the pages at \(run.address) are missing")
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
    /// Into memory that exists (`process_vm_writev`); the task must be allowed to write there.
    public static func write(_ pieces: [PagePiece], into task: TaskID) throws(Failure) {
        var index = 0
        while index < pieces.count {
            var local: [clinux_iovec] = []
            var remote: [clinux_iovec] = []
            var total = 0
            while index < pieces.count, local.count < 512, total < 64 << 20 {
                local.append(clinux_iovec(base: UInt64(pieces[index].source), length: pieces[index].range.length))
                remote.append(
                    clinux_iovec(base: pieces[index].range.start.rawValue, length: pieces[index].range.length))
                total += Int(pieces[index].range.length)
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
        let sizes = pieces.map(\.range.length)
        let total = sizes.reduce(0, +)
        let chunks = Chunk.cut(sizes, size: 2 << 20)
        let dealer = Dealer(chunks.count)
        try Workers.run(total < 8 << 20 ? 1 : Workers.count) { () throws(Failure) in
            while let index = dealer.take() {
                try chunks[index].forEachPart({ sizes[$0] }) { (piece, skip, length, _) throws(Failure) in
                    let to = pieces[piece].range.start.rawValue + skip
                    let from = UInt64(pieces[piece].source) + skip
                    try attempt("fill memory at \(Address(to))") { () throws(SystemCallError) in
                        var done: UInt64 = 0
                        while done < UInt64(length) {
                            var request = clinux_uffdio_copy(
                                destination: to + done, source: from + done, length: UInt64(length) - done, mode: 0,
                                copied: 0)
                            do throws(SystemCallError) {
                                try withAddress(of: &request) { (address) throws(SystemCallError) in
                                    try systemCall(.ioctl, Int(userfaultfd), 0xc028_aa03, address)
                                }
                                done = UInt64(length)
                            } catch {
                                guard error.errno == .EAGAIN, request.copied > 0 else { throw error }
                                done += UInt64(request.copied)
                            }
                        }
                    }
                }
            }
        }
    }
}
