internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux

/// The states of TCP, by the kernel's numbers.
enum TCPState: UInt32, Sendable {
    case established = 1, synSent, synReceived, finWait1, finWait2, timeWait, closed, closeWait, lastAck, listening
    case closing

    /// We have sent a FIN before the peer's was received.
    var sentFinFirst: Bool { self == .finWait1 || self == .finWait2 || self == .closing }
    /// We have sent a FIN after the peer's was received.
    var sentFinSecond: Bool { self == .lastAck || self == .closed }
    /// A FIN of ours was sent.
    var sentFin: Bool { sentFinFirst || sentFinSecond }
    /// The peer has acknowledged our FIN.
    var finIsAcknowledged: Bool { self == .finWait2 || self == .closed }
    /// The peer's FIN was received.
    var receivedFin: Bool { self == .closeWait || self == .lastAck || self == .closed || self == .closing }
}

/// Options of `TCP_REPAIR` and its like.
enum Repair {
    static let level = 6
    static let mode = 19, queue = 20, sequence = 21, options = 22, timestamp = 24, window = 29
    static let noQueue: Int32 = 0, receiveQueue: Int32 = 1, sendQueue: Int32 = 2

    static func set(_ socket: Int32, _ option: Int, _ value: UInt32) throws(SystemCallError) {
        try setSocketOption(socket, level: level, option, Int32(bitPattern: value))
    }

    /// Switches the mode on: closing the socket sends nothing any more.
    static func begin(_ socket: Int32) throws(SystemCallError) { try set(socket, mode, 1) }

    /// Switches the mode off without a word to the peer. The kernel forgets `SO_REUSEADDR` in this mode.
    static func end(_ socket: Int32, reuse: Bool) throws(SystemCallError) {
        do throws(SystemCallError) { try setSocketOption(socket, level: level, mode, -1) } catch {
            try set(socket, mode, 0)  // Before Linux 4.19.
        }
        if reuse { try setSocketOption(socket, 2, 1) }
    }

    /// Switches the mode off and tells the peer our window, so that a conversation that has stalled goes on.
    static func endWithProbe(_ socket: Int32, reuse: Bool) throws(SystemCallError) {
        try set(socket, mode, 0)
        if reuse { try setSocketOption(socket, 2, 1) }
    }
}

/// The state of a TCP connection: `tcp-stream-INODE.img`.
struct TCPStream: Sendable {
    var state: TCPState
    var entry = TcpStreamEntry()
    var received: [UInt8] = []
    var unacknowledged: [UInt8] = []

    /// TCPI_OPT_TIMESTAMPS 1, TCPI_OPT_SACK 2, TCPI_OPT_WSCALE 4.
    private static let timestamps: UInt32 = 1, selective: UInt32 = 2, scaling: UInt32 = 4

    /// The most that a queue can hold: what the kernel allows for buffers.
    static let longestQueue: UInt32 = 1 << 30

    /// `TCP_INFO`.
    static func information(_ socket: Int32) throws(SystemCallError) -> [UInt8] {
        var room = [UInt8](repeating: 0, count: 104)
        var length: UInt32 = 104
        try room.withAddress { (value, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(socket), Repair.level, 11, value, length)
            }
        }
        return room
    }

    private static func count(_ socket: Int32, _ request: Int) throws(SystemCallError) -> UInt32 {
        var value: Int32 = 0
        try withAddress(of: &value) { (address) throws(SystemCallError) in
            try systemCall(.ioctl, Int(socket), request, address)
        }
        return UInt32(max(0, value))
    }

    // MARK: dump

    /// How often a connection is looked at again whose queues change.
    private static let mostLooks = 20

    /// Reads a connection. It is in repair mode meanwhile and not before and after.
    init(reading socket: Int32) throws(Failure) {
        let reuse = try attempt("read the connection") { () throws(SystemCallError) in
            let reuse = try socketOption(socket, 2) != 0
            try Repair.begin(socket)
            return reuse
        }
        var outcome = Result { () throws(Failure) in try TCPStream(repairing: socket) }
        // Between the count of a queue and the look into it a packet may have come: no lock holds up the connections of a
        // client whose peer nobody has accepted.
        for _ in 0..<TCPStream.mostLooks {
            guard case .failure(let failure) = outcome, failure.cause?.errno == .EMSGSIZE else { break }
            outcome = Result { () throws(Failure) in try TCPStream(repairing: socket) }
        }
        try attempt("end the repair mode of the connection") { () throws(SystemCallError) in
            try Repair.end(socket, reuse: reuse)
        }
        self = try outcome.get()
    }

    private init(repairing socket: Int32) throws(Failure) {
        let information = try attempt("read the connection's state") { () throws(SystemCallError) in
            try TCPStream.information(socket)
        }
        guard let state = TCPState(rawValue: UInt32(information[0])), state != .synReceived, state != .timeWait,
            state != .listening
        else { throw Failure(.unsupported, "its connection is in the state \(information[0]), which can't be dumped") }
        self.state = state
        try attempt("read the connection's state") { () throws(SystemCallError) in
            entry.inqLen = try TCPStream.count(socket, 0x541b)  // SIOCINQ
            entry.outqLen = try TCPStream.count(socket, 0x5411)  // SIOCOUTQ
            entry.unsqLen = try TCPStream.count(socket, 0x894b)  // SIOCOUTQNSD
            // What a closed connection had to send is of no use to anyone.
            if state == .closed { (entry.outqLen, entry.unsqLen) = (0, 0) }
            // A FIN has a number but no data.
            if state.sentFin {
                if entry.outqLen > 0 { entry.outqLen -= 1 }
                if entry.unsqLen > 0 { entry.unsqLen -= 1 }
            }
            entry.mssClamp = UInt32(bitPattern: try socketOption(socket, level: Repair.level, 2))  // TCP_MAXSEG
            entry.optMask = UInt32(information[5])
            entry.sndWscale = 0
            if entry.optMask & TCPStream.scaling != 0 {
                entry.sndWscale = UInt32(information[6] & 0xf)
                entry.rcvWscale = UInt32(information[6] >> 4)
            }
            if entry.optMask & TCPStream.timestamps != 0 {
                let stamp = try socketOption(socket, level: Repair.level, Repair.timestamp)
                entry.timestamp = UInt32(bitPattern: stamp)
            }
            try readWindow(socket)
        }
        received = try TCPStream.peek(socket, Repair.receiveQueue, entry.inqLen, &entry.inqSeq)
        unacknowledged = try TCPStream.peek(socket, Repair.sendQueue, entry.outqLen, &entry.outqSeq)
    }

    private mutating func readWindow(_ socket: Int32) throws(SystemCallError) {
        var window: (UInt32, UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0, 0)
        var length: UInt32 = 20
        try withAddress(of: &window) { (value) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(socket), Repair.level, Repair.window, value, length)
            }
        }
        (entry.sndWl1, entry.sndWnd, entry.maxWindow, entry.rcvWnd, entry.rcvWup) = window
    }

    /// The data of a queue, and the number that follows its last byte.
    private static func peek(
        _ socket: Int32, _ queue: Int32, _ length: UInt32, _ sequence: inout UInt32
    ) throws(Failure) -> [UInt8] {
        let name = queue == Repair.receiveQueue ? "was received" : "is to be sent"
        return try attempt("read what \(name)") { () throws(SystemCallError) in
            try setSocketOption(socket, level: Repair.level, Repair.queue, queue)
            let number = try socketOption(socket, level: Repair.level, Repair.sequence)
            sequence = UInt32(bitPattern: number)
            guard length > 0 else { return [] }
            let offset = try? socketOption(socket, 42)  // SO_PEEK_OFF
            if let offset, offset >= 0 { try setSocketOption(socket, 42, 0) }
            let outcome = Result { () throws(SystemCallError) in try peek(socket, Int(length)) }
            if let offset, offset >= 0 { try setSocketOption(socket, 42, offset) }
            return try outcome.get()
        }
    }

    private static func peek(_ socket: Int32, _ length: Int) throws(SystemCallError) -> [UInt8] {
        var room = [UInt8](repeating: 0, count: length + 1)
        let got = try room.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.recvfrom, Int(socket), address, count, 0x42, 0, 0)  // PEEK | DONTWAIT
        }
        // Less is there than was counted if urgent data is in the midst of it.
        guard got == length else { throw SystemCallError(.recvfrom, .EMSGSIZE) }
        room.removeLast()
        return room
    }

    /// What the image holds.
    func encoded(_ inode: UInt32) throws(Failure) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(128 + received.count + unacknowledged.count)
        try ImageWriter.encode(entry, .tcpStream(inode), into: &bytes)
        return bytes + received + unacknowledged
    }

    // MARK: restore

    /// Reads the image.
    init(_ inode: UInt32, state: UInt32, from images: ImageSet) throws(Failure) {
        let image = try images.open(.tcpStream(inode))
        guard let entry = try image.next(TcpStreamEntry.self), let state = TCPState(rawValue: state),
            entry.inqLen <= TCPStream.longestQueue, entry.outqLen <= TCPStream.longestQueue,
            entry.unsqLen <= entry.outqLen, entry.sndWscale <= 14, entry.rcvWscale <= 14
        else { throw Failure(.corruptImage, "the state of the connection \(inode) is damaged") }
        self.entry = entry
        self.state = state
        received = try image.read(Int(entry.inqLen))
        unacknowledged = try image.read(Int(entry.outqLen))
    }

    /// Reads and checks the images of many connections. Those with much in their queues are not kept.
    static func readAll(
        _ wanted: [(inode: UInt32, state: UInt32)], from images: ImageSet
    ) throws(Failure) -> [UInt32: TCPStream] {
        let threads = wanted.count < fewConnections ? 1 : Workers.count
        let streams = try Workers.map(wanted.count, share: share, threads: threads) { (range) throws(Failure) in
            try wanted[range].map { (inode, state) throws(Failure) -> TCPStream? in
                let stream = try TCPStream(inode, state: state, from: images)
                return stream.received.count + stream.unacknowledged.count <= 4096 ? stream : nil
            }
        }.joined()
        var found: [UInt32: TCPStream] = [:]
        for (stream, (inode, _)) in zip(streams, wanted) { if let stream { found[inode] = stream } }
        return found
    }

    /// From so many on, several threads work on them.
    static let fewConnections = 64
    /// How many a thread takes at once.
    static let share = 16

    /// The number of the first byte that waits to be received.
    private var receiveStart: UInt32 { entry.inqSeq &- (state.receivedFin ? 1 : 0) &- entry.inqLen }
    /// The number of the first byte that is not acknowledged.
    var sendStart: UInt32 {
        entry.outqSeq &- (state.sentFin ? 1 : 0) &- entry.outqLen &- (state == .synSent ? 1 : 0)
    }

    /// Whether something is put into the queues at the restore, for which the buffers' sizes and the flags are changed.
    var fillsQueues: Bool { !received.isEmpty || !unacknowledged.isEmpty || state == .synSent }

    /// Whether the other end has acknowledged everything, and this one knows how much the other takes.
    func hasToldAll(to other: TCPStream) -> Bool {
        unacknowledged.isEmpty && entry.outqSeq == other.entry.inqSeq && entry.hasSndWnd && other.entry.hasSndWnd
            && entry.outqSeq &+ entry.sndWnd == other.entry.rcvWup &+ other.entry.rcvWnd
    }

    /// Makes a new socket this connection. It stays in repair mode.
    ///
    /// - Parameter hasHeaders: IP options or extension headers are set on the socket.
    func restore(_ connection: Connection, on socket: Int32, hasHeaders: Bool) throws(Failure) {
        try attempt("make room for the queues") { () throws(SystemCallError) in
            if fillsQueues {
                // SO_SNDBUFFORCE, SO_RCVBUFFORCE; the real sizes come later.
                try setSocketOption(socket, 32, Int32.max / 2)
                try setSocketOption(socket, 33, Int32.max / 2)
                try setStatusFlags(socket, UInt32(OpenFlags.nonBlocking.rawValue))
            }
            try Repair.begin(socket)
        }
        try attempt("bind the connection to \(connection.here.text)", advice: "Restore where this address is") {
            () throws(SystemCallError) in try connection.here.give(to: socket, by: .bind)
        }
        try attempt("set the connection's numbers") { () throws(SystemCallError) in
            try Repair.set(socket, Repair.queue, UInt32(Repair.receiveQueue))
            try Repair.set(socket, Repair.sequence, receiveStart)
            try Repair.set(socket, Repair.queue, UInt32(Repair.sendQueue))
            try Repair.set(socket, Repair.sequence, sendStart)
        }
        try connect(connection, socket)
        guard state != .synSent else { return }
        try restoreOptions(socket)
        // A segment is at most half of the peer's largest window, which is known at the end.
        let isLater = entry.maxWindow / 2 < entry.mssClamp
        if fillsQueues || !isLater { try SegmentSize.recompute(connection, socket, hasHeaders: hasHeaders) }
        try send(received, Repair.receiveQueue, socket)
        let sent = unacknowledged.count - Int(entry.unsqLen)
        try send(Array(unacknowledged[..<sent]), Repair.sendQueue, socket)
        try sendUnsent(Array(unacknowledged[sent...]), socket)
        try restoreWindow(socket)
        if isLater { try SegmentSize.recompute(connection, socket, hasHeaders: hasHeaders) }
        try restoreEnds(connection, socket)
    }

    private func connect(_ connection: Connection, _ socket: Int32) throws(Failure) {
        do throws(SystemCallError) {
            // A connection that is still being made has to send its first packet again.
            if state == .synSent { try Repair.end(socket, reuse: true) }
            try connection.there.give(to: socket, by: .connect)
        } catch {
            guard error.errno == .EINPROGRESS else {
                throw Failure(
                    .conflict, "can't make the connection from \(connection.text)",
                    advice: "Check that it does not exist already, and that there is a route", cause: error)
            }
        }
        if state == .synSent {
            try attempt("repair the connection") { () throws(SystemCallError) in try Repair.begin(socket) }
        }
    }

    private func restoreOptions(_ socket: Int32) throws(Failure) {
        // Kinds of TCP options: MSS 2, window scale 3, SACK permitted 4, timestamps 8.
        var options: [(UInt32, UInt32)] = []
        if entry.optMask & TCPStream.selective != 0 { options.append((4, 0)) }
        if entry.optMask & TCPStream.scaling != 0 { options.append((3, entry.sndWscale | entry.rcvWscale << 16)) }
        if entry.optMask & TCPStream.timestamps != 0 { options.append((8, 0)) }
        options.append((2, entry.mssClamp))
        let words = options.flatMap { [$0.0, $0.1] }
        try attempt("set what the ends of the connection agreed on") { () throws(SystemCallError) in
            try words.withConstantAddress { (address, count) throws(SystemCallError) in
                try systemCall(.setsockopt, Int(socket), Repair.level, Repair.options, address, count)
            }
            if entry.optMask & TCPStream.timestamps != 0 {
                try Repair.set(socket, Repair.timestamp, entry.timestamp)
            }
        }
    }

    private func send(_ data: [UInt8], _ queue: Int32, _ socket: Int32) throws(Failure) {
        guard !data.isEmpty else { return }
        try attempt("fill the connection's queues") { () throws(SystemCallError) in
            try Repair.set(socket, Repair.queue, UInt32(queue))
            try TCPStream.sendAll(data, socket)
        }
    }

    /// What was never sent goes the way that new data goes. The peer's window is not set yet, so none leaves now.
    private func sendUnsent(_ data: [UInt8], _ socket: Int32) throws(Failure) {
        guard !data.isEmpty else { return }
        try attempt("fill the connection's queue of unsent data") { () throws(SystemCallError) in
            try Repair.end(socket, reuse: true)
            try TCPStream.sendAll(data, socket)
            try Repair.begin(socket)
        }
    }

    static func sendAll(_ data: [UInt8], _ socket: Int32) throws(SystemCallError) {
        try data.withConstantAddress { (address, count) throws(SystemCallError) in
            var done = 0
            // In repair mode the kernel wants each piece in one block of memory.
            var most = 1 << 16
            while done < count {
                do throws(SystemCallError) {
                    done += try systemCall(.sendto, Int(socket), address + done, min(most, count - done), 0x4000, 0, 0)
                } catch {
                    guard error.errno == .ENOMEM, most > 1024 else { throw error }
                    most /= 2
                }
            }
        }
    }

    private func restoreWindow(_ socket: Int32) throws(Failure) {
        guard entry.hasSndWnd else { return }
        let fin: UInt32 = state.receivedFin ? 1 : 0
        var window = (
            entry.sndWl1, entry.sndWnd, entry.maxWindow, entry.rcvWnd &+ fin, entry.rcvWup &- fin
        )
        try attempt("set the connection's windows") { () throws(SystemCallError) in
            try withAddress(of: &window) { (value) throws(SystemCallError) in
                try systemCall(.setsockopt, Int(socket), Repair.level, Repair.window, value, 20)
            }
        }
    }

    /// Half-closes the connection as it was. The peer's FIN, and its word that it has ours, are sent to the socket in the
    /// peer's name.
    private func restoreEnds(_ connection: Connection, _ socket: Int32) throws(Failure) {
        let sequence = receiveStart &+ entry.inqLen
        if state.sentFinFirst { try shutDown(socket) }
        if state.receivedFin {
            try ForgedPacket(connection.reversed, sequence: sequence, acknowledges: sendStart, window: entry.rcvWnd)
                .send(flags: ForgedPacket.end)
        }
        if state.sentFinSecond { try shutDown(socket) }
        if state.finIsAcknowledged {
            let after = state == .closed ? sequence &+ 1 : sequence
            try ForgedPacket(
                connection.reversed, sequence: after, acknowledges: sendStart &+ entry.outqLen &+ 1,
                window: entry.rcvWnd
            ).send(flags: ForgedPacket.acknowledgement)
        }
    }

    private func shutDown(_ socket: Int32) throws(Failure) {
        try attempt("half-close the connection") { () throws(SystemCallError) in
            // With the queue of sent data chosen, the FIN counts as sent.
            if state.finIsAcknowledged { try Repair.set(socket, Repair.queue, UInt32(Repair.sendQueue)) }
            try systemCall(.shutdown, Int(socket), 1)
            if state.finIsAcknowledged { try Repair.set(socket, Repair.queue, UInt32(Repair.noQueue)) }
        }
    }
}
