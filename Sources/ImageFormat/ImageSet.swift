public import Diagnostics
public import Linux
public import SwiftProtobuf
internal import Synchronization
public import SystemPackage

/// A finished set of images, opened for reading. Nothing in it is trusted.
public final class ImageSet: Sendable {
    /// The directory.
    public let directory: Descriptor
    /// Its path, for messages.
    public let path: FilePath
    /// The set that pages marked as `in parent` are in.
    public let parent: ImageSet?
    /// Whether what is read is compared with the hashes that the set has.
    let verifies: Bool
    /// The hashes; nil if it has none, or they are not wanted.
    let integrity: Integrity?
    private let verified = Atomic(false)

    /// Longest chain of parents that is followed.
    static let deepest = 1024

    /// Opens the images in a directory.
    ///
    /// - Parameter verifies: what is read is compared with the hashes that the images, and their parents, have.
    public convenience init(_ path: FilePath, verifies: Bool = false) throws(Failure) {
        let directory = try attempt("open the image directory \(path.string)", advice: "Check --images-dir") {
            () throws(SystemCallError) in try openFile(path, [.directory])
        }
        try self.init(directory, path, verifies: verifies, below: nil, depth: 0)
    }

    /// Opens the images that were written by us to a directory.
    public convenience init(_ images: ImageDirectory, verifies: Bool = false) throws(Failure) {
        let own = try attempt("open \(images.path)") { () throws(SystemCallError) in
            try images.directory.duplicate()
        }
        try self.init(own, images.path, verifies: verifies, below: nil, depth: 0)
    }

    private init(
        _ directory: consuming Descriptor, _ path: FilePath, verifies: Bool, below: Integrity?, depth: Int
    ) throws(Failure) {
        let folder = directory.number
        var integrity: Integrity?
        if verifies {
            // The folder of shared pages is a part of the set below it.
            let isPart = (try? openFile(ImageName.inventory.fileName, [.path], in: folder)) == nil
            integrity = isPart ? below?.ofSharedPages : try Integrity(in: folder, path)
        }
        self.integrity = integrity
        self.verifies = verifies
        parent = try ImageSet.above(folder, path, verifies: verifies, integrity, depth: depth)
        self.directory = directory
        self.path = path
    }

    private static func above(
        _ folder: Int32, _ path: FilePath, verifies: Bool, _ below: Integrity?, depth: Int
    ) throws(Failure) -> ImageSet? {
        guard depth < ImageSet.deepest else { throw Failure(.corruptImage, "the chain of parent images is endless") }
        switch Result(catching: { () throws(SystemCallError) in
            try openFile("parent", [.directory], in: folder).release()
        }) {
        case .success(let number):
            return try ImageSet(
                Descriptor(owning: number), path.appending("parent"), verifies: verifies, below: below,
                depth: depth + 1)
        case .failure(let error):
            if error.errno == .ENOENT { return nil }
            throw Failure(.corruptImage, "can't open the parent images of \(path.string)", cause: error)
        }
    }

    /// A file that says that pages of this set were taken away, because a later set has them anew.
    static let incompleteMark = "deduplicated"

    /// Says in the directory that it can't be restored by itself any more.
    public func markIncomplete() throws(SystemCallError) {
        guard (try? openFile(ImageSet.incompleteMark, [.path], in: directory.number)) == nil else { return }
        _ = try openFile(ImageSet.incompleteMark, [.writeOnly, .create], mode: 0o644, in: directory.number)
        try systemCall(.fsync, Int(directory.number))
    }

    /// Refuses a set whose pages were taken away.
    public func checkComplete() throws(Failure) {
        guard (try? openFile(ImageSet.incompleteMark, [.path], in: directory.number)) == nil else {
            throw Failure(
                .corruptImage,
                "pages of the images in \(path.string) were dropped, because later images have them anew",
                advice: "Restore the images that refer to these")
        }
    }

    /// What to do about images that are not as they were written.
    static let damageAdvice = "Use another copy of the images; --no-verify takes what is there"

    /// Whether the pages of the set are known to be as they were written.
    var isVerified: Bool {
        get { verified.load(ordering: .relaxed) }
        set { verified.store(newValue, ordering: .relaxed) }
    }

    /// Largest image that is read at once.
    private static let largest: UInt64 = 1 << 30

    /// The contents of a file; nil if there is no such file.
    static func contents(of name: String, in folder: Int32) -> [UInt8]? {
        guard let file = try? openFile(name, [.noFollow, .nonBlocking], in: folder),
            let status = try? FileStatus.read(in: file.number), status.kind == .regular, status.size <= largest
        else { return nil }
        return try? readToEnd(file)
    }

    /// Whether an image is there.
    public func has(_ name: ImageName) -> Bool {
        do throws(SystemCallError) {
            _ = try openFile(name.fileName, [.path], in: directory.number)
            return true
        } catch { return false }
    }

    /// The size of an image in bytes, 0 if there is none.
    public func size(_ name: ImageName) -> Int {
        let status = try? FileStatus.read(name.fileName, in: directory.number, followsLink: false)
        return Int(clamping: status?.size ?? 0)
    }

    /// Opens an image and checks its magic.
    public func open(_ name: ImageName) throws(Failure) -> ImageReader {
        let folder = directory.number
        if let integrity, !name.isService, !integrity.lists(name.fileName), has(name) {
            throw Failure(
                .corruptImage,
                "the image \(name.fileName) in \(path.string) does not belong to the images that were dumped there",
                advice: "Remove it, or use another copy of the images; --no-verify takes it")
        }
        switch Result(catching: { () throws(SystemCallError) in
            try openFile(name.fileName, [.noFollow], in: folder).release()
        }) {
        case .success(let number): return try ImageReader(Descriptor(owning: number), name)
        case .failure(let error):
            if error.errno == .ENOENT && name == .inventory {
                throw Failure(
                    .corruptImage,
                    "\(path.string) holds no complete image: the dump did not finish, or this is no image directory",
                    advice: "Check --images-dir, or dump again")
            }
            throw Failure(.corruptImage, "can't open the image \(name.fileName) in \(path.string)", cause: error)
        }
    }

    /// The only message of an image.
    public func load<M: Message>(_ name: ImageName, as type: M.Type) throws(Failure) -> M {
        try during(.image(name.fileName)) { () throws(Failure) in
            let reader = try open(name)
            guard let message = try reader.next(type) else { throw Failure(.corruptImage, "it holds no message") }
            return message
        }
    }

    /// All messages of an image; none if there is no such image.
    public func loadAll<M: Message & Sendable>(_ name: ImageName, as type: M.Type) throws(Failure) -> [M] {
        guard has(name) else { return [] }
        return try during(.image(name.fileName)) { () throws(Failure) in
            let reader = try open(name)
            return try reader.rest(type)
        }
    }
}

/// Reads one image file. Every length is checked against the file's size.
public final class ImageReader {
    private let file: Descriptor
    private let name: ImageName
    /// Size of the file in bytes.
    public let size: Int
    /// Offset of the next byte.
    public private(set) var offset = 0
    private var window: [UInt8] = []
    private var windowStart = 0

    /// Longest message that is read.
    static let longest = 64 << 20

    init(_ file: consuming Descriptor, _ name: ImageName) throws(Failure) {
        let number = Int(file.number)
        self.file = file
        self.name = name
        size = try attempt("find the size of \(name.fileName)") { () throws(SystemCallError) in
            try systemCall(.lseek, number, 0, 2)
        }
        for word in name.header {
            guard let bytes = try? read(4), bytes.load(UInt32.self) == word.littleEndian else {
                throw Failure(.corruptImage, "\(name.fileName) is no such image: its magic number is wrong")
            }
        }
    }

    /// The descriptor, for reading raw contents by offset.
    public var number: Int32 { file.number }

    /// The next message, nil at the end.
    public func next<M: Message>(_ type: M.Type) throws(Failure) -> M? {
        if offset == size { return nil }
        let head = try take(4)
        let length = try length(in: window, at: head, offset - 4)
        let start = offset
        let from = try take(length)
        return try ImageReader.decode(window, from..<(from + length), name, at: start)
    }

    /// The length of the message whose head is at a place in `bytes`, and at another in the file.
    private func length(in bytes: [UInt8], at place: Int, _ offset: Int) throws(Failure) -> Int {
        guard let length = bytes.load(UInt32.self, at: place).map({ Int($0) }), length <= ImageReader.longest else {
            throw Failure(.corruptImage, "\(name.fileName) has a message of impossible length at byte \(offset)")
        }
        return length
    }

    private static func decode<M: Message>(
        _ bytes: [UInt8], _ range: Range<Int>, _ name: ImageName, at start: Int
    ) throws(Failure) -> M {
        do { return try unsafe M(serializedBytes: bytes.span.extracting(range).bytes) } catch {
            throw Failure(.corruptImage, "\(name.fileName) has a damaged message at byte \(start): \(error)")
        }
    }

    /// From how many bytes on several threads decode an image, and up to how many it is read at once.
    private static let large = 128 << 10, largest = 256 << 20
    /// The most memory that a thread gets in advance for the messages that it decodes (`Heap.keep`).
    public static let mostReserved = 8 << 20

    /// All messages up to the end.
    public func rest<M: Message & Sendable>(_ type: M.Type) throws(Failure) -> [M] {
        guard size - offset >= ImageReader.large, size - offset <= ImageReader.largest else {
            var messages: [M] = []
            while let message = try next(type) { messages.append(message) }
            return messages
        }
        let first = offset
        let bytes = try read(size - offset)
        var ranges: [Range<Int>] = []
        var at = 0
        while at < bytes.count {
            let length = try length(in: bytes, at: at, first + at)
            guard length <= bytes.count - at - 4 else {
                throw Failure(
                    .corruptImage, "\(name.fileName) is truncated: a message at byte \(first + at) is not whole")
            }
            ranges.append((at + 4)..<(at + 4 + length))
            at += 4 + length
        }
        let (all, name) = (ranges, name)
        // One share for each thread.
        let share = max(1, (all.count + Workers.count - 1) / Workers.count)
        let decoded = try Workers.map(all.count, share: share) { (part) throws(Failure) in
            // What is made of a message takes about ten times its bytes.
            Heap.reserveHere(min(10 * bytes.count / Workers.count, ImageReader.mostReserved))
            var messages: [M] = []
            messages.reserveCapacity(part.count)
            for range in all[part] {
                messages.append(try ImageReader.decode(bytes, range, name, at: first + range.lowerBound))
            }
            return messages
        }
        var messages: [M] = []
        messages.reserveCapacity(all.count)
        for part in decoded { messages += part }
        return messages
    }

    /// Raw bytes.
    public func read(_ count: Int) throws(Failure) -> [UInt8] {
        let from = try take(count)
        return Array(window[from..<(from + count)])
    }

    /// Passes over bytes and returns where they are in the window.
    private func take(_ count: Int) throws(Failure) -> Int {
        guard count >= 0, count <= size - offset else {
            throw Failure(.corruptImage, "\(name.fileName) is truncated: \(count) bytes are missing at byte \(offset)")
        }
        if offset < windowStart || offset + count > windowStart + window.count {
            var fresh = [UInt8](repeating: 0, count: min(max(count, 1 << 16), size - offset))
            let (number, at) = (file.number, UInt64(offset))
            let got = try attempt("read \(name.fileName)") { () throws(SystemCallError) in
                try fresh.withAddress { (address, count) throws(SystemCallError) in
                    try readFully(number, into: address, count: count, at: at)
                }
            }
            guard got >= count else {
                throw Failure(.corruptImage, "\(name.fileName) became shorter while it was read")
            }
            window = fresh
            windowStart = offset
        }
        let from = offset - windowStart
        offset += count
        return from
    }

    /// Passes over raw bytes.
    public func skip(_ count: Int) throws(Failure) {
        guard count >= 0, count <= size - offset else {
            throw Failure(.corruptImage, "\(name.fileName) is truncated: \(count) bytes are missing at byte \(offset)")
        }
        offset += count
    }
}
