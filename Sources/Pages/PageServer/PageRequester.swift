public import Diagnostics
internal import ImageFormat
public import Linux
public import Transport

/// Asks a page server for pages, and receives them in the order in which they were asked for.
public final class PageRequester {
    private let connection: Connection
    private let buffer: Mapping
    /// Most bytes of one request.
    public static let largest: UInt64 = 4 << 20

    /// Begins to ask.
    public init(_ connection: Connection) throws(Failure) {
        self.connection = connection
        buffer = try attempt("get memory for pages") { () throws(SystemCallError) in
            try Mapping(length: Int(PageRequester.largest), flags: 0x22)
        }
    }

    /// The descriptor, for `poll(2)` only.
    public var number: Int32 { connection.number }
    /// Whether an answer is there already.
    public var hasPending: Bool { connection.hasPending }

    /// Asks for pages of a process.
    public func request(_ process: Int32, _ range: AddressRange) throws(Failure) {
        let run = PageRun(
            address: range.start, pages: range.length / pageSize, isPresent: false, isInParent: false, isLazy: false)
        try connection.send(PageMessage(.get, run, owner: UInt64(UInt32(bitPattern: process))).wire)
    }

    /// Receives the answer to the oldest request.
    ///
    /// - Parameter range: what was asked for.
    /// - Returns: how many bytes came, at least a page, and where they are until the next call.
    public func receive(_ range: AddressRange) throws(Failure) -> (address: Int, count: UInt64) {
        guard let wire = try connection.receive(PageMessage.Wire.self) else {
            throw Failure(.vanished, "the page server at \(connection.peer) closed the connection")
        }
        let message = PageMessage(wire)
        guard message.command == PageMessage.Command.add.rawValue, message.address == range.start.rawValue,
            let run = message.run, run.range.length <= range.length, range.length <= PageRequester.largest
        else {
            throw Failure(
                .vanished, "the page server at \(connection.peer) does not have the pages at \(range.start)",
                advice: "See its log")
        }
        let count = Int(run.range.length)
        guard try connection.receive(into: buffer.address, count: count) == count else {
            throw Failure(.vanished, "the page server at \(connection.peer) closed the connection")
        }
        return (buffer.address, run.range.length)
    }

    /// Says that no more is needed, and waits until that was heard.
    public func finish() throws(Failure) {
        try connection.send(PageMessage(.close).wire)
        guard try connection.receive(Int32.self) == 0 else {
            throw Failure(.vanished, "the page server at \(connection.peer) did not hear that all pages are here")
        }
        connection.finish(waitsForPeer: false)
    }
}
