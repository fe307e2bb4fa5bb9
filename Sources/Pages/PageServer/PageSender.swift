public import Diagnostics
public import ImageFormat
internal import Linux
public import Transport

/// Sends page maps and pages to a page server.
public final class PageSender: PageReceiver {
    private let connection: Connection
    private let isPassed: Bool
    private let buffer: BounceBuffer
    private var waiting = 0
    private var owner: UInt64 = 0

    /// Begins to send.
    ///
    /// - Parameter isPassed: somebody else may hold the socket open (`--ps-socket`).
    public init(_ connection: Connection, isPassed: Bool) throws(Failure) {
        self.connection = connection
        self.isPassed = isPassed
        buffer = try BounceBuffer()
    }

    /// CRIU can't read a record that belongs to two things.
    public var keepsRunsApart: Bool { connection.keepsRecords }

    /// Begins a page map.
    public func begin(_ owner: PageOwner) throws(Failure) -> Bool {
        self.owner = owner.wire
        try send(PageMessage(.open, owner: self.owner))
        try flush()
        return try answer(UInt8.self) != 0
    }

    /// Sends a run.
    public func append(_ run: PageRun) throws(Failure) { try send(PageMessage(.add, run, owner: owner)) }

    /// Sends pages of the last run.
    public func append(pagesFrom address: Int, count: Int) throws(Failure) {
        if connection.keepsRecords { return try connection.send(from: address, count: count) }
        if waiting + count > BounceBuffer.size { try flush() }
        if waiting + count > BounceBuffer.size { return try connection.send(from: address, count: count) }
        copy(from: address, count)
    }

    /// Ends, and waits until the server has stored everything.
    public func finish() throws(Failure) {
        try send(PageMessage(isPassed ? .forcedClose : .close))
        try flush()
        guard try answer(Int32.self) == 0 else {
            throw Failure(.denied, "the page server could not store the pages", advice: "See the page server's log")
        }
        connection.finish(waitsForPeer: false)
    }

    private func send(_ message: PageMessage) throws(Failure) {
        if connection.keepsRecords { return try connection.send(message.wire) }
        var bytes = [UInt8](bytesOf: message.wire)
        if waiting + bytes.count > BounceBuffer.size { try flush() }
        bytes.withAddress { (address, count) in copy(from: address, count) }
    }

    private func copy(from address: Int, _ count: Int) {
        copyBytes(from: address, to: buffer.address + waiting, count)
        waiting += count
    }

    private func flush() throws(Failure) {
        try connection.send(from: buffer.address, count: waiting)
        waiting = 0
    }

    private func answer<T: BitwiseCopyable>(_ type: T.Type) throws(Failure) -> T {
        guard let answer = try connection.receive(type) else {
            throw Failure(
                .vanished, "the page server at \(connection.peer) closed the connection",
                advice: "See the page server's log")
        }
        return answer
    }
}
