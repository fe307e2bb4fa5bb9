public import Diagnostics
public import ImageFormat
public import Linux

/// Shared memory whose contents come when the tasks that map it run already, in one lazy restore.
///
/// Only what nobody but its mappings reaches can come so: a call that reads the file would find holes.
public final class PostponedMemory {
    /// A piece of it, empty so far.
    public struct Piece: ~Copyable {
        /// The number in the name of its image.
        public let id: UInt64
        /// Open for reading and writing.
        public let file: Descriptor
    }

    /// The files, by their ids in files.img, that can come later.
    public var candidates: Set<UInt32> = []
    /// The files and the anonymous segments that do.
    private var files: Set<UInt32> = [], segments: Set<UInt64> = []
    private var pieces: [(id: UInt64, file: Int32)] = []

    /// What is smaller comes at once: that is not slower.
    private static let smallest: UInt64 = 1 << 20

    /// None so far.
    public init() {}

    deinit { for piece in pieces { _ = try? systemCall(.close, Int(piece.file)) } }

    /// Whether the mappings of a file, or of an anonymous segment, have pages that come later.
    public func holds(file: UInt32) -> Bool { files.contains(file) }
    /// Whether the mappings of an anonymous segment have pages that come later.
    public func holds(segment: UInt64) -> Bool { segments.contains(segment) }

    /// Postpones a file with all its descriptions, or fills it now if it can't be postponed.
    public func fill(
        _ id: UInt64, files members: [UInt32], _ file: Int32, size: UInt64, canWait: Bool, from images: ImageSet
    ) throws(Failure) {
        let canWait = canWait && members.allSatisfy(candidates.contains)
        if try settle(id, file, size, canWait: canWait, images) { files.formUnion(members) }
    }

    /// Postpones an anonymous segment, or fills it now.
    public func fill(segment id: UInt64, _ file: Int32, size: UInt64, canWait: Bool, from images: ImageSet)
        throws(Failure)
    {
        if try settle(id, file, size, canWait: canWait, images) { segments.insert(id) }
    }

    /// Returns whether it is postponed.
    private func settle(_ id: UInt64, _ file: Int32, _ size: UInt64, canWait: Bool, _ images: ImageSet)
        throws(Failure) -> Bool
    {
        if canWait, try keep(id, file, size, images) { return true }
        try SharedMemoryImage.read(id: id, into: file, size: size, from: images)
        return false
    }

    private func keep(_ id: UInt64, _ file: Int32, _ size: UInt64, _ images: ImageSet) throws(Failure) -> Bool {
        guard size >= PostponedMemory.smallest, images.has(.sharedPagemap(id)) else { return false }
        let unit = try attempt("look at shared memory") { () throws(SystemCallError) in
            try FileSystem.pageUnit(of: file)
        }
        if unit > pageSize {
            // Larger ones would hold everybody up, and a part of one can't come alone.
            guard unit <= 2 << 20 else { return false }
            let runs = try Pagemap.read(.sharedPagemap(id), from: images).runs
            guard runs.allSatisfy({ $0.range.start.rawValue % unit == 0 && $0.range.length % unit == 0 }) else {
                return false
            }
        }
        let kept = try attempt("keep shared memory") { () throws(SystemCallError) in
            Int32(try systemCall(.fcntl, Int(file), 1030, 3))  // F_DUPFD_CLOEXEC
        }
        pieces.append((id, kept))
        return true
    }

    /// Gives all pieces to `body`, once.
    public func hand(_ body: (borrowing Piece) throws(Failure) -> Void) throws(Failure) {
        while let (id, file) = pieces.popLast() { try body(Piece(id: id, file: Descriptor(owning: file))) }
    }
}
