public import Diagnostics
public import FoundationEssentials
internal import Linux
public import SwiftProtobuf

/// Writes one image file through a buffer.
public final class ImageWriter {
    private let folder: ImageDirectory
    private let name: ImageName
    private var file: Int32?
    private var buffer: [UInt8] = []

    init(_ name: ImageName, in folder: ImageDirectory) {
        self.folder = folder
        self.name = name
        buffer = ImageWriter.start(of: name)
    }

    deinit { if let file { _ = try? systemCall(.close, Int(file)) } }

    /// The bytes that an image begins with.
    static func start(of name: ImageName) -> [UInt8] {
        name.header.flatMap { [UInt8](bytesOf: $0.littleEndian) }
    }

    /// Appends a message with its length to some bytes. Any thread may do that for an image.
    public static func encode(
        _ message: some Message, _ name: ImageName, into buffer: inout [UInt8]
    ) throws(Failure) {
        let bytes: [UInt8]
        do { bytes = try message.serializedBytes() } catch {
            throw Failure(.bug, "can't encode a message of \(name.fileName): \(error)")
        }
        buffer += [UInt8](bytesOf: UInt32(bytes.count).littleEndian)
        buffer += bytes
    }

    /// Appends a message with its length.
    public func append(_ message: some Message) throws(Failure) {
        try ImageWriter.encode(message, name, into: &buffer)
        try spill()
    }

    /// From how many messages on one thread more is worth its start.
    private static let fewMessages = 1024

    /// Appends many messages, encoded by several threads.
    public func append(contentsOf messages: [some Message & Sendable]) throws(Failure) {
        let (name, size) = (name, ImageWriter.fewMessages / 2)
        guard messages.count >= ImageWriter.fewMessages else {
            for message in messages { try append(message) }
            return
        }
        let encoded = try Workers.map(messages.count, share: size) { (range) throws(Failure) in
            var bytes: [UInt8] = []
            for message in messages[range] { try ImageWriter.encode(message, name, into: &bytes) }
            return bytes
        }
        for bytes in encoded { try append(raw: bytes) }
    }

    /// Appends raw bytes.
    public func append(raw bytes: [UInt8]) throws(Failure) {
        buffer += bytes
        try spill()
    }

    private func spill() throws(Failure) {
        if buffer.count > ImageDirectory.largestHeld { try flush() }
    }

    private func flush() throws(Failure) {
        if file == nil { file = try folder.createFile(name).release() }
        if let file { try ImageDirectory.write(buffer, to: file, name) }
        buffer.removeAll(keepingCapacity: true)
    }

    /// Hands the image over: to the file if it has one, else to the directory, which writes it later.
    public func finish() throws(Failure) {
        if file == nil { try folder.hold(name, buffer) } else { try flush() }
        buffer = []
    }
}

/// Bytes as a field of a message wants them.
public func imageBytes(_ bytes: some Sequence<UInt8>) -> Data { Data(bytes) }
