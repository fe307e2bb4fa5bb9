internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux

/// Something that waits to be received on a socket: a packet, or a stretch of a stream.
struct QueuedPacket {
    var entry: SkPacketEntry
    var bytes: [UInt8]
}

/// Dump: reads the queue of a socket and leaves it as it is.
///
/// `SO_PEEK_OFF` goes from packet to packet, and `SO_PASSCRED` is on meanwhile so that the senders show. Both are the
/// socket's, and are put back.
struct SocketQueue {
    private let number: Int32
    private let isStream: Bool
    /// Takes over a copy of a descriptor that is under way, and gives its id in files.img, or 0 if it is to be left out.
    private let identify: (Int32) throws(Failure) -> UInt32
    private let context: DumpContext

    private static let passCredentials = 16, peekOffset = 42

    init(
        _ number: Int32, isStream: Bool, _ context: DumpContext, identify: @escaping (Int32) throws(Failure) -> UInt32
    ) {
        self.number = number
        self.isStream = isStream
        self.context = context
        self.identify = identify
    }

    /// One answer of recvmsg(2).
    private struct Piece {
        var bytes: [UInt8] = []
        var sender: [UInt8] = []
        var credentials: (pid: UInt32, uid: UInt32, gid: UInt32)?
        var descriptors: [Int32] = []
        var isCut = false

        func close() { for number in descriptors { _ = try? systemCall(.close, Int(number)) } }
    }

    private static let largestPacket = 1 << 28

    /// Everything that waits.
    ///
    /// - Parameter bytes: how much is in a stream; reading on would take an error that waits behind it.
    func peek(bytes: Int) throws(Failure) -> [QueuedPacket] {
        if isStream ? bytes == 0 : bytes == 0 && !hasPacket { return [] }
        let (offset, passes) = try attempt("read the socket's options") { () throws(SystemCallError) in
            (try socketOption(number, SocketQueue.peekOffset), try socketOption(number, SocketQueue.passCredentials))
        }
        let outcome = Result { () throws(Failure) in
            try set(SocketQueue.passCredentials, 1)
            return try walk(bytes)
        }
        try set(SocketQueue.passCredentials, passes)
        try set(SocketQueue.peekOffset, offset)
        return try outcome.get()
    }

    private func set(_ option: Int, _ value: Int32) throws(Failure) {
        try attempt("set the socket's peek options") { () throws(SystemCallError) in
            try setSocketOption(number, option, value)
        }
    }

    /// Whether a packet may wait, if only an empty one. A look at it would count as the first, and be the last.
    private var hasPacket: Bool { ((try? poll(number, for: 1)) ?? 0) & 1 != 0 }  // POLLIN

    private func walk(_ total: Int) throws(Failure) -> [QueuedPacket] {
        var room = MessageRoom(bytes: 1 << 18, control: 2048, name: 128)
        if isStream, try urgentByteWaits() {
            throw Failure(
                .unsupported, "an urgent byte (MSG_OOB) waits in its queue, which can't be dumped",
                advice: "Try again once the task has read it")
        }
        var packets: [QueuedPacket] = []
        var at = 0
        while !isStream || at < total, var piece = try next(at, &room) {
            while piece.isCut, room.bytes.count < SocketQueue.largestPacket {
                piece.close()
                room.bytes = [UInt8](repeating: 0, count: 4 * room.bytes.count)
                guard let whole = try next(at, &room) else { break }
                piece = whole
            }
            guard !piece.isCut else {
                piece.close()
                throw Failure(.unsupported, "a packet of more than \(room.bytes.count) bytes is in its queue")
            }
            at += piece.bytes.count
            packets.append(try packet(piece))
        }
        return packets
    }

    private func packet(_ piece: Piece) throws(Failure) -> QueuedPacket {
        var entry = SkPacketEntry()
        entry.length = UInt32(piece.bytes.count)
        if !piece.descriptors.isEmpty {
            var rights = ScmEntry()
            rights.type = 1
            // Each becomes the index's, or is closed.
            var left = piece.descriptors[...]
            while let number = left.popFirst() {
                do throws(Failure) {
                    let id = try identify(number)
                    if id != 0 { rights.rights.append(id) }
                } catch {
                    for number in left { _ = try? systemCall(.close, Int(number)) }
                    throw error
                }
            }
            entry.scm = [rights]
        }
        if let from = piece.credentials, from.pid != 0 || from.uid != SocketQueue.nobody {
            entry.cred.pid = context.numbers.number(from.pid)
            (entry.cred.uid, entry.cred.gid) = (context.owners.user(from.uid), context.owners.group(from.gid))
        }
        if !isStream, !piece.sender.isEmpty { entry.sender = imageBytes(piece.sender) }
        return QueuedPacket(entry: entry, bytes: piece.bytes)
    }

    /// What the kernel shows as user where a message has none.
    private static let nobody: UInt32 = 65534

    private func urgentByteWaits() throws(Failure) -> Bool {
        var byte: [UInt8] = [0]
        let got = try? byte.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.recvfrom, Int(number), address, 1, 0x43, 0, 0)  // PEEK | OOB | DONTWAIT
        }
        return (got ?? 0) > 0
    }

    /// An error comes before the packets that wait, and only once.
    private func receive(into room: inout MessageRoom) throws(SystemCallError) -> MessageRoom.Arrival {
        let flags = 0x4000_0042  // MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC
        do throws(SystemCallError) { return try room.receive(from: number, flags: flags) } catch {
            guard !isStream, error.errno == .ECONNRESET else { throw error }
            return try room.receive(from: number, flags: flags)
        }
    }

    /// What follows behind some bytes, nil at the end.
    private func next(_ offset: Int, _ room: inout MessageRoom) throws(Failure) -> Piece? {
        // Reading moves the offset on by itself, but not to where a piece is looked at again. A packet of no bytes is
        // passed over only if the offset is left alone.
        let current = try attempt("read the socket's options") { () throws(SystemCallError) in
            try socketOption(number, SocketQueue.peekOffset)
        }
        if current != Int32(clamping: offset) {
            try set(SocketQueue.peekOffset, Int32(clamping: offset))
        }
        let arrival: MessageRoom.Arrival
        do throws(SystemCallError) {
            arrival = try receive(into: &room)
        } catch {
            // ECONNRESET: nothing is left of a stream. EINVAL, ENOTCONN: never connected.
            if [.EAGAIN, .ECONNRESET, .EINVAL, .ENOTCONN].contains(error.errno) { return nil }
            throw Failure(.denied, "can't read the socket's queue", cause: error)
        }
        var piece = Piece()
        let (got, flags) = (arrival.count, arrival.flags)
        piece.isCut = flags & 0x20 != 0 && !isStream  // MSG_TRUNC
        room.forEachControl(arrival) { (level, type, place) in
            switch (level, type) {
            case (1, 1):  // SCM_RIGHTS
                piece.descriptors += (0..<(place.count / 4)).compactMap {
                    room.control.load(Int32.self, at: place.lowerBound + 4 * $0)
                }
            case (1, 2):  // SCM_CREDENTIALS
                piece.credentials = (
                    room.control.load(UInt32.self, at: place.lowerBound) ?? 0,
                    room.control.load(UInt32.self, at: place.lowerBound + 4) ?? 0,
                    room.control.load(UInt32.self, at: place.lowerBound + 8) ?? 0
                )
            case (1, 4):  // SCM_PIDFD
                if let pidfd = room.control.load(Int32.self, at: place.lowerBound), pidfd >= 0 {
                    _ = try? systemCall(.close, Int(pidfd))
                }
            default: break
            }
        }
        // The end of a connection has no sender.
        if got == 0, isStream || piece.credentials == nil {
            piece.close()
            return nil
        }
        if flags & 0x8 != 0 {  // MSG_CTRUNC
            piece.close()
            throw Failure(
                .denied, "descriptors that are under way in its queue could not be copied",
                advice: "Raise brumate's own limit on open files (RLIMIT_NOFILE)")
        }
        piece.bytes = Array(room.bytes[..<got])
        // What has descriptors ends a piece, but they show from farther ahead too.
        if isStream, !piece.descriptors.isEmpty, got == room.bytes.count { piece.isCut = true }
        if arrival.name > 2 { piece.sender = Array(room.name[2..<min(arrival.name, room.name.count)]) }
        return piece
    }
}

/// Restore: what waits to be received, `sk-queues.img` and `sk-waiting.img`.
final class SavedPackets {
    /// By the id of the socket's file.
    private(set) var queues: [UInt32: [QueuedPacket]] = [:]
    /// By the id of the listener's file: what the connections that wait have sent, and who made them.
    private(set) var waiting: [UInt32: [QueuedPacket]] = [:]

    static func of(_ context: RestoreContext) -> SavedPackets { context.state(SavedPackets.self) { SavedPackets() } }

    func load(_ context: RestoreContext) throws(Failure) {
        for name in [ImageName.socketQueues, .waitingConnections] where context.images.has(name) {
            try during(.image(name.fileName)) { () throws(Failure) in
                let reader = try context.images.open(name)
                while let entry = try reader.next(SkPacketEntry.self) {
                    let packet = QueuedPacket(entry: entry, bytes: try reader.read(Int(entry.length)))
                    if entry.hasWaiting {
                        waiting[entry.idFor, default: []].append(packet)
                    } else {
                        queues[entry.idFor, default: []].append(packet)
                    }
                }
            }
        }
    }
}
