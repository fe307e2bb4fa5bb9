public import Diagnostics
public import Linux
public import SwiftProtobuf
public import SystemPackage

/// A finished set of images, opened for reading. Nothing in it is trusted.
public final class ImageSet {
    /// The directory.
    public let directory: Descriptor
    /// Its path, for messages.
    public let path: FilePath
    /// The set that pages marked as `in parent` are in.
    public let parent: ImageSet?
    private var isMarked = false

    /// Longest chain of parents that is followed.
    static let deepest = 1024

    /// Opens the images in a directory.
    public convenience init(_ path: FilePath) throws(Failure) {
        let directory = try attempt("open the image directory \(path.string)", advice: "Check --images-dir") {
            () throws(SystemCallError) in try openFile(path, [.directory])
        }
        try self.init(directory, path, depth: 0)
    }

    private init(_ directory: consuming Descriptor, _ path: FilePath, depth: Int) throws(Failure) {
        parent = try ImageSet.above(directory.number, path, depth: depth)
        self.directory = directory
        self.path = path
    }

    private static func above(_ folder: Int32, _ path: FilePath, depth: Int) throws(Failure) -> ImageSet? {
        guard depth < ImageSet.deepest else { throw Failure(.corruptImage, "the chain of parent images is endless") }
        switch Result(catching: { () throws(SystemCallError) in
            try openFile("parent", [.directory], in: folder).release()
        }) {
        case .success(let number):
            return try ImageSet(Descriptor(owning: number), path.appending("parent"), depth: depth + 1)
        case .failure(let error):
            if error.errno == .ENOENT { return nil }
            throw Failure(.corruptImage, "can't open the parent images of \(path.string)", cause: error)
        }
    }

    /// A file that says that pages of this set were taken away, because a later set has them anew.
    static let incompleteMark = "deduplicated"

    /// Says in the directory that it can't be restored by itself any more.
    public func markIncomplete() throws(SystemCallError) {
        guard !isMarked else { return }
        _ = try openFile(ImageSet.incompleteMark, [.writeOnly, .create], mode: 0o644, in: directory.number)
        try systemCall(.fsync, Int(directory.number))
        isMarked = true
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
    public func loadAll<M: Message>(_ name: ImageName, as type: M.Type) throws(Failure) -> [M] {
        guard has(name) else { return [] }
        return try during(.image(name.fileName)) { () throws(Failure) in
            let reader = try open(name)
            var messages: [M] = []
            while let message = try reader.next(type) { messages.append(message) }
            return messages
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
        guard let length = window.load(UInt32.self, at: head).map({ Int($0) }), length <= ImageReader.longest else {
            throw Failure(.corruptImage, "\(name.fileName) has a message of impossible length at byte \(offset - 4)")
        }
        let start = offset
        let from = try take(length)
        do {
            return try unsafe M(serializedBytes: window.span.extracting(from..<(from + length)).bytes)
        } catch {
            throw Failure(.corruptImage, "\(name.fileName) has a damaged message at byte \(start): \(error)")
        }
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
