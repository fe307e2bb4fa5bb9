internal import CPacking
internal import Diagnostics
internal import Linux

/// How page data is compressed.
public struct Compression: Hashable, Sendable {
    /// What compresses; the numbers are those of the format.
    public enum Algorithm: UInt32, Sendable {
        /// LZ4: fast.
        case lz4 = 1
        /// Zstandard: smaller.
        case zstd = 2
    }
    /// What compresses.
    public var algorithm: Algorithm
    /// How hard Zstandard tries, from 1.
    public var level: Int32

    /// Describes a compression.
    public init(_ algorithm: Algorithm, level: Int32 = 1) {
        self.algorithm = algorithm
        self.level = level
    }

    /// Reads `lz4`, `zstd` or `zstd:LEVEL`.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        switch (parts.first, parts.count) {
        case ("lz4", 1): self.init(.lz4)
        case ("zstd", 1): self.init(.zstd)
        case ("zstd", 2):
            guard let level = Int32(parts[1]), level >= 1, level <= 19 else { return nil }
            self.init(.zstd, level: level)
        default: return nil
        }
    }
}

/// Compresses and decompresses chunks of page data; each thread has its own.
@safe public final class ChunkCoder {
    private var state: OpaquePointer?
    private var room: Mapping?

    /// Takes no memory before it is needed.
    public init() {}

    deinit { if let state = unsafe state { unsafe cpacking_zstd_close(state) } }

    /// Memory for the compressed bytes of a chunk.
    func buffer() throws(Failure) -> Int {
        if let address = room?.address { return address }
        let fresh = try attempt("get memory for compressed pages") { () throws(SystemCallError) in
            try Mapping(length: PagesFileWriter.chunkSize, flags: 0x22)  // PRIVATE | ANONYMOUS
        }
        let address = fresh.address
        room = consume fresh
        return address
    }

    private func zstd() throws(Failure) -> OpaquePointer {
        if let state = unsafe state { return unsafe state }
        guard let fresh = unsafe cpacking_zstd_open() else { throw Failure(.denied, "no memory is left for zstd") }
        unsafe state = fresh
        return unsafe fresh
    }

    /// Compresses into `buffer`. Returns the number of bytes, nil if they are not fewer.
    func pack(_ compression: Compression, from address: Int, count: Int) throws(Failure) -> Int? {
        let (from, to, room) = (UInt(bitPattern: address), UInt(bitPattern: try buffer()), count - 1)
        let done: Int
        switch compression.algorithm {
        case .lz4: done = cpacking_lz4_pack(from, count, to, room)
        case .zstd: done = unsafe cpacking_zstd_pack(try zstd(), from, count, to, room, compression.level)
        }
        return done > 0 ? done : nil
    }

    /// Decompresses. Returns whether the bytes make sense and give exactly `size` bytes.
    func unpack(
        _ algorithm: Compression.Algorithm, from source: Int, count: Int, to address: Int, size: Int
    ) throws(Failure) -> Bool {
        let (from, to) = (UInt(bitPattern: source), UInt(bitPattern: address))
        switch algorithm {
        case .lz4: return cpacking_lz4_unpack(from, count, to, size) != 0
        case .zstd: return unsafe cpacking_zstd_unpack(try zstd(), from, count, to, size) != 0
        }
    }
}
