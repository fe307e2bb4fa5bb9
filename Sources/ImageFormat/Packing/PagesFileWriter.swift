public import Diagnostics
internal import Linux
internal import Synchronization

/// Writes one pages file: as it is, or packed. Several threads may write its chunks, in any order.
public final class PagesFileWriter: Sendable {
    /// Bytes of a chunk; only the last one is shorter.
    public static let chunkSize = 256 << 10

    private struct State {
        /// A hash, or a ``PackedChunk``, for each chunk.
        var records: [UInt8] = []
        /// Bytes of pages, and of the packed file.
        var total: UInt64 = 0, end = UInt64(PackedHeader.size)

        mutating func note(_ bytes: [UInt8], at index: Int, _ count: Int) {
            let missing = (index + 1) * bytes.count - records.count
            if missing > 0 { records += [UInt8](repeating: 0, count: missing) }
            records.replaceSubrange((index * bytes.count)..<((index + 1) * bytes.count), with: bytes)
            total += UInt64(count)
        }
    }

    private let name: ImageName
    private let file: Descriptor
    private let compression: Compression?
    private let keepsSums: Bool
    private let state = Mutex(State())

    init(_ name: ImageName, _ file: consuming Descriptor, _ compression: Compression?, keepsSums: Bool) {
        self.name = name
        self.file = file
        self.compression = compression
        self.keepsSums = keepsSums
    }

    /// The descriptor.
    public var number: Int32 { file.number }
    /// Whether the pages are compressed.
    public var isPacked: Bool { compression != nil }

    /// Writes a chunk.
    ///
    /// - Parameter count: a whole chunk, but for the last one.
    public func write(chunk index: Int, from address: Int, count: Int, with coder: ChunkCoder) throws(Failure) {
        guard let compression else {
            let sum = keepsSums ? Checksum(at: address, count: count).bytes : []
            state.withLock { $0.note(sum, at: index, count) }
            return try put(address, count, at: UInt64(index) * UInt64(PagesFileWriter.chunkSize))
        }
        let packed = try coder.pack(compression, from: address, count: count)
        let (from, stored) = (packed == nil ? address : try coder.buffer(), packed ?? count)
        let sum = Checksum(at: from, count: stored)
        let offset = state.withLock { state in
            let chunk = PackedChunk(
                offset: state.end, count: UInt32(stored), isCompressed: packed != nil, sum: sum)
            state.end += UInt64(stored)
            state.note(chunk.bytes, at: index, count)
            return chunk.offset
        }
        try put(from, stored, at: offset)
    }

    /// Writes all chunks.
    func write(_ bytes: [UInt8], with coder: ChunkCoder) throws(Failure) {
        try bytes.withConstantAddress { (address, count) throws(Failure) in
            for start in stride(from: 0, to: count, by: PagesFileWriter.chunkSize) {
                try write(
                    chunk: start / PagesFileWriter.chunkSize, from: address + start,
                    count: min(PagesFileWriter.chunkSize, count - start), with: coder)
            }
        }
    }

    /// Ends the file: a packed one by index and header, and one that was there before is cut to its size. Returns what
    /// the integrity image says of it.
    func finish() throws(Failure) -> FileSums {
        let state = state.withLock { $0 }
        guard let compression else {
            try ImageDirectory.cut(number, name, to: state.total)
            return FileSums(name: name.fileName, size: state.total, chunks: state.records)
        }
        let header = PackedHeader(
            compression.algorithm, total: state.total, index: state.end, indexSum: Checksum(state.records)
        ).bytes
        for (bytes, offset) in [(state.records, state.end), (header, 0)] {
            try bytes.withConstantAddress { (address, count) throws(Failure) in try put(address, count, at: offset) }
        }
        try ImageDirectory.cut(number, name, to: state.end + UInt64(state.records.count))
        return FileSums(
            name: name.fileName, size: state.end + UInt64(state.records.count), hash: Checksum(header + state.records))
    }

    private func put(_ address: Int, _ count: Int, at offset: UInt64) throws(Failure) {
        try attempt("write pages", advice: "Check that the disk has room") { () throws(SystemCallError) in
            try writeFully(number, from: address, count: count, at: offset)
        }
    }
}
