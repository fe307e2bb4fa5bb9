public import Diagnostics
internal import Linux

/// The beginning of `packed-N.img`: page data like that of `pages-N.img`, compressed in chunks of 256 KiB.
///
/// All numbers are little-endian. The chunks follow in any order, then the index, at the file's end, with a
/// ``PackedChunk`` for each in the order of the pages. The header is written last: a file without it is none.
struct PackedHeader {
    static let size = 64, version: UInt32 = 1
    var algorithm: UInt32
    /// Bytes of the pages.
    var total: UInt64
    /// Where the index is, and its hash.
    var index: UInt64, indexSum: Checksum

    var bytes: [UInt8] {
        var bytes: [UInt8] = []
        let name = ImageName.packedPages(0)
        for word in name.header + [PackedHeader.version, algorithm, UInt32(PagesFileWriter.chunkSize), 0] {
            bytes += [UInt8](bytesOf: word.littleEndian)
        }
        for word in [total, index] { bytes += [UInt8](bytesOf: word.littleEndian) }
        bytes += indexSum.bytes
        return bytes + Checksum(bytes).bytes.prefix(PackedHeader.size - bytes.count)
    }

    init(_ algorithm: Compression.Algorithm, total: UInt64, index: UInt64, indexSum: Checksum) {
        self.algorithm = algorithm.rawValue
        (self.total, self.index, self.indexSum) = (total, index, indexSum)
    }

    /// Nil if any of the bytes is not as it was written, or the version is another.
    init?(_ bytes: [UInt8]) {
        guard let algorithm = bytes.load(UInt32.self, at: 12), let total = bytes.load(UInt64.self, at: 24),
            let index = bytes.load(UInt64.self, at: 32), let sum = Checksum(in: bytes, at: 40)
        else { return nil }
        self.algorithm = UInt32(littleEndian: algorithm)
        (self.total, self.index, indexSum) = (UInt64(littleEndian: total), UInt64(littleEndian: index), sum)
        guard bytes == self.bytes else { return nil }
    }
}

/// Where a chunk is, and how.
struct PackedChunk {
    static let size = 32
    /// First byte in the file.
    var offset: UInt64
    /// Bytes in the file.
    var count: UInt32
    /// Incompressible chunks are stored as they are.
    var isCompressed: Bool
    /// Of the bytes in the file.
    var sum: Checksum

    var bytes: [UInt8] {
        [UInt8](bytesOf: offset.littleEndian) + [UInt8](bytesOf: count.littleEndian)
            + [UInt8](bytesOf: UInt32(isCompressed ? 1 : 0).littleEndian) + sum.bytes
    }
}

/// Reads a packed pages file. Nothing in it is trusted: whatever it says, a chunk is 256 KiB at most, and the index is
/// not larger than the file.
public struct PackedPages: Sendable {
    /// Bytes of the pages.
    public let total: UInt64
    private let algorithm: Compression.Algorithm
    private let index: [UInt8]
    private let name: String
    /// Of header and index, which have the hashes of all the rest.
    let sum: Checksum

    /// Reads header and index.
    public init(_ file: Int32, _ name: String) throws(Failure) {
        self.name = name
        func damaged(_ what: String) -> Failure {
            Failure(.corruptImage, "the image \(name) is damaged or incomplete: \(what)", advice: ImageSet.damageAdvice)
        }
        func read(_ count: Int, at offset: UInt64) throws(Failure) -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: count)
            let got = try attempt("read \(name)") { () throws(SystemCallError) in
                try bytes.withAddress { (address, count) throws(SystemCallError) in
                    try readFully(file, into: address, count: count, at: offset)
                }
            }
            guard got == count else { throw damaged("it is too short") }
            return bytes
        }
        let size = try attempt("look at \(name)") { () throws(SystemCallError) in
            try FileStatus.read(in: file).size
        }
        let head = try read(PackedHeader.size, at: 0)
        guard let header = PackedHeader(head), let algorithm = Compression.Algorithm(rawValue: header.algorithm) else {
            throw damaged("its header is wrong, or of a version that this program does not know")
        }
        let chunk = UInt64(PagesFileWriter.chunkSize)
        let chunks = header.total / chunk + (header.total % chunk > 0 ? 1 : 0)
        guard header.total % pageSize == 0, header.index >= PackedHeader.size, header.index <= size,
            (size - header.index) % UInt64(PackedChunk.size) == 0,
            (size - header.index) / UInt64(PackedChunk.size) == chunks
        else { throw damaged("its index is not at its end") }
        index = try read(Int(size - header.index), at: header.index)
        guard Checksum(index) == header.indexSum else { throw damaged("its index is wrong") }
        (total, self.algorithm, sum) = (header.total, algorithm, Checksum(head + index))
        for number in 0..<count {
            let chunk = self[number]
            let bytes = length(of: number)
            guard let chunk, chunk.offset >= PackedHeader.size, chunk.offset <= header.index,
                UInt64(chunk.count) <= header.index - chunk.offset, chunk.count > 0,
                chunk.isCompressed ? chunk.count < bytes : chunk.count == bytes
            else { throw damaged("chunk \(number) is in no possible place") }
        }
    }

    /// The number of chunks.
    public var count: Int { index.count / PackedChunk.size }

    /// Bytes of the pages in a chunk.
    func length(of number: Int) -> Int {
        Int(min(UInt64(PagesFileWriter.chunkSize), total - UInt64(number) * UInt64(PagesFileWriter.chunkSize)))
    }

    private subscript(_ number: Int) -> PackedChunk? {
        let at = number * PackedChunk.size
        guard let offset = index.load(UInt64.self, at: at), let count = index.load(UInt32.self, at: at + 8),
            let flags = index.load(UInt32.self, at: at + 12), let sum = Checksum(in: index, at: at + 16)
        else { return nil }
        return PackedChunk(
            offset: UInt64(littleEndian: offset), count: UInt32(littleEndian: count),
            isCompressed: UInt32(littleEndian: flags) & 1 == 1, sum: sum)
    }

    private func damaged(_ number: Int) -> Failure {
        let at = UInt64(number) * UInt64(PagesFileWriter.chunkSize)
        return Failure(
            .corruptImage, "the image \(name) is damaged: the pages from byte \(at) on can't be read",
            advice: ImageSet.damageAdvice)
    }

    /// Brings a chunk as it is stored to `address`, which has room for it.
    private func fetch(_ number: Int, of file: Int32, to address: Int, checks: Bool) throws(Failure) -> PackedChunk {
        guard let chunk = self[number] else { throw damaged(number) }
        let got = try attempt("read \(name)") { () throws(SystemCallError) in
            try readFully(file, into: address, count: Int(chunk.count), at: chunk.offset)
        }
        guard got == chunk.count, !checks || Checksum(at: address, count: got) == chunk.sum else {
            throw damaged(number)
        }
        return chunk
    }

    /// Fails if the bytes of a chunk are not those that were written.
    func check(_ number: Int, of file: Int32, with coder: ChunkCoder) throws(Failure) {
        _ = try fetch(number, of: file, to: try coder.buffer(), checks: true)
    }

    /// Brings the pages of a chunk to `address`, where there is room for 256 KiB. Returns how many bytes they are.
    public func read(
        _ number: Int, of file: Int32, to address: Int, with coder: ChunkCoder, checks: Bool
    ) throws(Failure) -> Int {
        guard let chunk = self[number] else { throw damaged(number) }
        let length = length(of: number)
        guard chunk.isCompressed else {
            _ = try fetch(number, of: file, to: address, checks: checks)
            return length
        }
        let buffer = try coder.buffer()
        _ = try fetch(number, of: file, to: buffer, checks: checks)
        guard try coder.unpack(algorithm, from: buffer, count: Int(chunk.count), to: address, size: length) else {
            throw damaged(number)
        }
        return length
    }
}
