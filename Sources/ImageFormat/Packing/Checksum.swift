internal import CPacking
internal import Linux

/// The hash of some bytes: XXH3 with 128 bits. It tells damage, not what somebody made on purpose.
public struct Checksum: Hashable, Sendable {
    private let low, high: UInt64

    /// Bytes of one.
    static let size = 16

    /// Of memory.
    public init(at address: Int, count: Int) {
        let hash = cpacking_hash(UInt(bitPattern: address), count)
        (low, high) = (hash.low, hash.high)
    }

    /// Of an array.
    init(_ bytes: [UInt8]) {
        self = bytes.withConstantAddress { (address, count) in Checksum(at: address, count: count) }
    }

    /// Reads one; nil if there are too few bytes.
    public init?(in bytes: [UInt8], at offset: Int) {
        guard let low = bytes.load(UInt64.self, at: offset), let high = bytes.load(UInt64.self, at: offset + 8) else {
            return nil
        }
        (self.low, self.high) = (UInt64(littleEndian: low), UInt64(littleEndian: high))
    }

    /// As it is stored.
    public var bytes: [UInt8] { [UInt8](bytesOf: low.littleEndian) + [UInt8](bytesOf: high.littleEndian) }
}
