public import Diagnostics
public import ImageFormat
public import Linux

/// A piece of shared memory that a dump has met: anonymous, memfd or System V.
public final class SharedMemoryPiece {
    /// Its file, which can be read.
    public let file: Descriptor
    /// What the images call it.
    public let id: UInt64
    /// The inode of its file.
    public let inode: UInt64
    /// Whether nobody can change it any more (`F_SEAL_WRITE`, `F_SEAL_SHRINK`).
    public let isSealed: Bool
    /// Size of its pages in bytes.
    public let granularity: UInt64
    /// Where it has data, in whole pages.
    public let data: [AddressRange]

    /// Number of bytes that it has data for.
    public var length: UInt64 { data.reduce(0) { $0 + $1.length } }

    /// Describes shared memory of `size` bytes, and finds out where it has data.
    public init(
        _ file: consuming Descriptor, id: UInt64, inode: UInt64, size: UInt64, granularity: UInt64 = pageSize,
        isSealed: Bool = false
    ) throws(Failure) {
        let number = file.number
        self.file = file
        (self.id, self.inode, self.isSealed) = (id, inode, isSealed)
        self.granularity = granularity
        data = try SharedMemoryImage.data(in: number, size: size, granularity: granularity)
    }
}

/// The shared memory of a tree under dump. What is large waits, in a live dump, until it is clear whether it can be written
/// while the tree runs on.
public final class SharedMemoryPieces {
    /// Bytes that are worth to be written later.
    private static let large: UInt64 = 1 << 20
    private var waiting: [SharedMemoryPiece] = []
    /// Inodes of files in memory that somebody has open.
    private var open: Set<UInt64> = []

    /// None yet.
    public init() {}

    /// Takes one: writes it, or lets it wait. Returns how many pages were written.
    ///
    /// - Parameter isLive: the tree goes on before its pages are written.
    public func take(_ piece: SharedMemoryPiece, isLive: Bool, _ images: ImageDirectory) throws(Failure) -> UInt64 {
        guard isLive, piece.length >= SharedMemoryPieces.large else {
            return try SharedMemoryImage.write(piece, to: images)
        }
        waiting.append(piece)
        return 0
    }

    /// Notes that somebody has a file in memory open, who could write to it by calls.
    public func noteOpen(_ inode: UInt64) { open.insert(inode) }

    /// Whether somebody has the file of a piece open.
    public func isOpen(_ piece: SharedMemoryPiece) -> Bool { open.contains(piece.inode) }

    /// Gives away those that wait.
    public func takeWaiting() -> [SharedMemoryPiece] {
        defer { waiting = [] }
        return waiting
    }
}
