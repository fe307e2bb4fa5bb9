internal import CLinux
internal import Linux

/// The format of a stream of images (docs/streams.md). All numbers are little-endian.
enum StreamFormat {
    /// The first eight bytes, `BRUMIMGS`.
    static let magic = UInt64(littleEndian: 0x5347_4d49_4d55_5242)
    static let version: UInt32 = 1
    /// A flag of the head: the sender waits for an answer.
    static let answers: UInt32 = 1
    /// Most bytes of a record's contents.
    static let longest: UInt32 = 1 << 20
    /// Most files of a stream.
    static let mostFiles: UInt32 = 1 << 20

    /// Magic, version, flags.
    typealias Head = (UInt64, UInt32, UInt32)

    /// What a record says.
    enum Kind: UInt32 {
        /// A file begins; its name follows.
        case file = 1
        /// Contents of a file.
        case data = 2
        /// One more name of a file that is there.
        case link = 3
        /// Everything was sent.
        case end = 4
    }

    /// What a record begins with: 24 bytes.
    struct Record {
        var kind: UInt32
        /// The number of the file: 0 for the first one, and so on. At the end: how many there are.
        var file: UInt32
        /// Data: where it belongs. Link: the number of the file that it names. End: how many bytes of data there are.
        var value: UInt64
        /// Bytes that follow.
        var length: UInt32
        /// CRC-32C of what is before it in the record, and of what follows.
        var checksum: UInt32 = 0

        /// As it travels.
        typealias Wire = (UInt32, UInt32, UInt64, UInt32, UInt32)

        init(_ kind: Kind, file: UInt32, value: UInt64, length: Int) {
            (self.kind, self.file, self.value, self.length) = (kind.rawValue, file, value, UInt32(length))
        }

        init(_ wire: Wire) {
            (kind, file, value) = (wire.0.littleEndian, wire.1.littleEndian, wire.2.littleEndian)
            (length, checksum) = (wire.3.littleEndian, wire.4.littleEndian)
        }

        var wire: Wire {
            (kind.littleEndian, file.littleEndian, value.littleEndian, length.littleEndian, checksum.littleEndian)
        }

        /// The checksum that it should have.
        ///
        /// - Parameter address: of the bytes that follow.
        func sum(with address: Int) -> UInt32 {
            var words = wire
            let head = unsafe withUnsafeBytes(of: &words) { unsafe clinux_crc32c(0, $0.baseAddress, 20) }
            return unsafe clinux_crc32c(head, UnsafeRawPointer(bitPattern: address), Int(length))
        }
    }

    /// What the ends say to each other after the end, a byte each.
    enum Answer: UInt8 {
        /// The receiver could go on at once: all is there, and a tree is restored but for its first step.
        case ready = 0x52
        /// The sender has given its tree up; the receiver is to go on.
        case go = 0x47
        /// The receiver has gone on.
        case done = 0x44
        /// The receiver gives up; a length of two bytes and a text follow.
        case failed = 0x46
    }
}
