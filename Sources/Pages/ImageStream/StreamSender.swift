public import Diagnostics
public import ImageFormat
internal import Linux
public import Transport

/// Writes a set of images into a stream.
public final class StreamSender: ImageReceiver {
    private let end: StreamEnd
    private var sizes: [String: (file: UInt32, size: UInt64)] = [:]
    private var count: UInt32 = 0
    private var total: UInt64 = 0

    /// Begins the stream.
    public init(_ end: StreamEnd) throws(Failure) {
        self.end = end
        let head: StreamFormat.Head = (
            StreamFormat.magic.littleEndian, StreamFormat.version.littleEndian,
            (end.kind == .socket ? StreamFormat.answers : 0).littleEndian
        )
        try end.send(head)
    }

    /// Sends contents of a file, and before the first ones its name.
    public func append(_ name: String, from address: Int, count: Int) throws(Failure) {
        var known: (file: UInt32, size: UInt64)
        if let before = sizes[name] { known = before } else { known = (try begin(.file, name, value: 0), 0) }
        var done = 0
        while done < count {
            let part = min(count - done, Int(StreamFormat.longest))
            try send(.data, known.file, known.size, from: address + done, part)
            done += part
            known.size += UInt64(part)
            total += UInt64(part)
        }
        sizes[name] = known
    }

    /// Sends that a file has one more name.
    public func link(_ name: String, to other: String) throws(Failure) {
        guard let there = sizes[other] else { throw Failure(.bug, "\(name) is to name \(other), which was not sent") }
        _ = try begin(.link, name, value: UInt64(there.file))
    }

    private func begin(_ kind: StreamFormat.Kind, _ name: String, value: UInt64) throws(Failure) -> UInt32 {
        guard ImageDirectory.isFileName(name) else { throw Failure(.bug, "\(name) can't be sent") }
        var bytes = Array(name.utf8)
        let file = count
        try bytes.withAddress { (address, length) throws(Failure) in try send(kind, file, value, from: address, length)
        }
        count += 1
        return file
    }

    private func send(
        _ kind: StreamFormat.Kind, _ file: UInt32, _ value: UInt64, from address: Int, _ length: Int
    ) throws(Failure) {
        var record = StreamFormat.Record(kind, file: file, value: value, length: length)
        record.checksum = record.sum(with: address)
        do throws(Failure) {
            try end.send(record.wire)
            try end.send(from: address, count: length)
        } catch {
            // Who could not go on may have told why.
            if end.kind == .socket, end.isReadable { try checkRefusal() }
            throw error
        }
    }

    /// Says that this was all: the stream is whole then.
    public func sendEnd() throws(Failure) { try send(.end, count, total, from: 0, 0) }

    /// Waits until the other end has everything, as far as it can tell.
    ///
    /// - Parameters:
    ///   - sync: a file is brought to the disk.
    ///   - giveUp: called when a receiver that can answer is ready to go on in our place. It does when this returns.
    /// - Throws: the receiver has not, or perhaps has not, everything.
    public func awaitReceiver(sync: Bool, giveUp: () throws(Failure) -> Void) throws(Failure) {
        guard end.kind == .socket else { return try end.flush(sync: sync) }
        try expect(.ready)
        try giveUp()
        try end.send(StreamFormat.Answer.go.rawValue)
        try expect(.done)
    }

    /// Closes the stream.
    public func close() { end.close() }

    private func receive(_ count: Int) throws(Failure) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let got = try bytes.withAddress { (address, count) throws(Failure) in
            try end.receive(into: address, count: count)
        }
        return Array(bytes[..<got])
    }

    private func expect(_ answer: StreamFormat.Answer) throws(Failure) {
        let first = try receive(1)
        guard let byte = first.first else {
            throw Failure(.vanished, "who reads the stream (\(end.name)) is gone before it said that all went well")
        }
        if byte == answer.rawValue { return }
        guard byte == StreamFormat.Answer.failed.rawValue else {
            throw Failure(.denied, "who reads the stream (\(end.name)) does not answer as a receiver of images does")
        }
        throw try refusal()
    }

    /// What follows `failed`.
    private func refusal() throws(Failure) -> Failure {
        let length = try receive(2)
        let text = length.count == 2 ? try receive(Int(length[0]) | Int(length[1]) << 8) : []
        let words = String(decoding: text, as: UTF8.self).filter { !$0.isNewline && $0 != "\u{1b}" }
        return Failure(.denied, "the other end of the stream (\(end.name)) gave up: \(words)")
    }

    private func checkRefusal() throws(Failure) {
        guard let byte = try? receive(1).first, byte == StreamFormat.Answer.failed.rawValue else { return }
        throw try refusal()
    }
}
