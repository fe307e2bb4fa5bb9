internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging

/// Datagrams that wait to be received on UDP and UDP-Lite sockets: `inet-queues.img`.
///
/// A dump looks at them (`SO_PEEK_OFF`) and leaves them. A restore sends them to the socket once more, in their senders'
/// names, over the device lo.
enum Datagrams {
    private static let peekOffset = 42

    private final class Found {
        var all: [(entry: BrumateDatagramEntry, bytes: [UInt8])] = []
        static func of(_ context: DumpContext) -> Found { context.state(Found.self) { Found() } }
    }

    // MARK: dump

    /// Looks at what waits on a socket.
    static func dump(_ file: OpenFile, _ kind: SocketKind, _ context: DumpContext) throws(Failure) {
        let number = file.handle.number
        // Asking would take an error that waits.
        guard !SocketKind.hasError(number) else {
            return context.log.warning("an error waits on a socket, and what waits behind it to be received is lost")
        }
        // IPV6_RECVPKTINFO, IP_PKTINFO: what each was sent to.
        let (level, option) = kind.family == 10 ? (41, 49) : (0, 8)
        let before = try attempt("read the socket's options") { () throws(SystemCallError) in
            (try socketOption(number, peekOffset), try socketOption(number, level: level, option))
        }
        let outcome = Result { () throws(SystemCallError) in
            try setSocketOption(number, level: level, option, 1)
            try setSocketOption(number, peekOffset, 0)
            let found = Found.of(context)
            var room = Room()
            while let pieces = try next(number, &room) {
                for piece in pieces {
                    var entry = BrumateDatagramEntry()
                    (entry.idFor, entry.length) = (file.id, UInt32(piece.count))
                    entry.sender = imageBytes(room.sender)
                    if let destination = room.destination { entry.destination = imageBytes(destination.socketAddress) }
                    found.all.append((entry, piece))
                }
            }
        }
        try attempt("look at what waits on the socket") { () throws(SystemCallError) in
            try setSocketOption(number, peekOffset, before.0)
            try setSocketOption(number, level: level, option, before.1)
            try outcome.get()
        }
    }

    /// One message, and what it was sent from and to.
    private struct Room {
        var message = MessageRoom(bytes: 1 << 16, control: 1024, name: 32)
        var sender: [UInt8] = []
        var destination: InetAddress?
    }

    /// The next datagram, or those that were received as one (`UDP_GRO`); nil at the end.
    private static func next(_ number: Int32, _ room: inout Room) throws(SystemCallError) -> [[UInt8]]? {
        let arrival: MessageRoom.Arrival
        do throws(SystemCallError) {
            arrival = try room.message.receive(from: number, flags: 0x42)  // PEEK | DONTWAIT
        } catch {
            if error.errno == .EAGAIN { return nil }
            throw error
        }
        let message = room.message
        room.sender = Array(message.name.prefix(arrival.name))
        var destination: InetAddress?
        var each = arrival.count
        message.forEachControl(arrival) { (level, type, place) in
            let start = place.lowerBound
            switch (level, type) {
            case (0, 8) where place.count >= 12:  // struct in_pktinfo
                let address = Array(message.control[(start + 8)..<(start + 12)])
                destination = InetAddress(family: 2, address + [UInt8](repeating: 0, count: 12), port: 0)
            case (41, 50) where place.count >= 20:  // struct in6_pktinfo
                destination = InetAddress(family: 10, Array(message.control[start..<(start + 16)]), port: 0)
            case (17, 104):  // UDP_GRO
                each = Int(max(1, message.control.load(Int32.self, at: start) ?? 1))
            default: break
            }
        }
        room.destination = destination
        let got = arrival.count
        guard got > each else { return [Array(message.bytes[..<got])] }
        return stride(from: 0, to: got, by: each).map { Array(message.bytes[$0..<min($0 + each, got)]) }
    }

    static func finish(_ context: DumpContext) throws(Failure) {
        let all = Found.of(context).all
        guard !all.isEmpty else { return }
        let image = context.images.create(.datagrams)
        for one in all {
            try image.append(one.entry)
            try image.append(raw: one.bytes)
        }
        try image.finish()
    }

    // MARK: restore

    private struct Waiting {
        let sender: InetAddress, destination: InetAddress?, bytes: [UInt8]
    }

    private final class Saved {
        var bySocket: [UInt32: [Waiting]] = [:]
        /// How many sockets have been made that share a port, by what they have in common.
        var sharing: [[UInt32]: Int32] = [:]
        static func of(_ context: RestoreContext) -> Saved { context.state(Saved.self) { Saved() } }
    }

    static func load(_ context: RestoreContext) throws(Failure) {
        guard context.images.has(.datagrams) else { return }
        let saved = Saved.of(context)
        try during(.image(ImageName.datagrams.fileName)) { () throws(Failure) in
            let reader = try context.images.open(.datagrams)
            while let entry = try reader.next(BrumateDatagramEntry.self) {
                guard entry.length <= 1 << 16, let sender = InetAddress(padded(entry.sender)) else {
                    throw Failure(.corruptImage, "a datagram that waits is damaged")
                }
                let destination = entry.hasDestination ? InetAddress(padded(entry.destination)) : nil
                saved.bySocket[entry.idFor, default: []].append(
                    Waiting(sender: sender, destination: destination, bytes: try reader.read(Int(entry.length))))
            }
        }
    }

    private static func padded(_ bytes: some Collection<UInt8>) -> [UInt8] {
        Array(bytes.prefix(32)) + [UInt8](repeating: 0, count: 32 - min(bytes.count, 32))
    }

    /// Sends a socket what waited on it. Of all that share its port it is the newest, and so the one that receives.
    static func restore(_ id: UInt32, _ socket: InetSkEntry, on number: Int32, _ context: RestoreContext)
        throws(Failure)
    {
        guard socket.type == UInt32(InetSocket.datagram) else { return }
        let saved = Saved.of(context)
        var place: Int32?
        if socket.opts.soReuseport {
            let key = [socket.family, socket.proto, socket.srcPort, socket.opts.uid] + socket.srcAddr
            place = saved.sharing[key, default: 0]
            saved.sharing[key, default: 0] += 1
        }
        guard let waiting = saved.bySocket.removeValue(forKey: id) else { return }
        let (size, lock) = try attempt("make room for what waits") { () throws(SystemCallError) in
            let before = (try socketOption(number, 8), try? socketOption(number, 72))  // SO_RCVBUF, SO_BUF_LOCK
            try setSocketOption(number, 33, Int32.max / 2)  // SO_RCVBUFFORCE
            return before
        }
        var lost = 0
        try RestoredWaiting.choose(number, place) { () throws(Failure) in
            for one in waiting where !arrives(one, socket, number) { lost += 1 }
        }
        try attempt("set the socket's options") { () throws(SystemCallError) in
            try setSocketOption(number, 33, size / 2)
            if let lock { try setSocketOption(number, 72, lock) }
        }
        if lost > 0 {
            context.log.warning("\(lost) of \(waiting.count) datagrams that waited on socket:[\(socket.ino)] are lost")
        }
    }

    /// Sends one and tells whether it has come.
    private static func arrives(_ one: Waiting, _ socket: InetSkEntry, _ number: Int32) -> Bool {
        guard var to = (try? InetAddress.local(of: number)) ?? nil else { return false }
        let port = to.port
        // Groups and broadcasts, and addresses that are another machine's by now, can't be sent to without going out.
        if to.isAny, let destination = one.destination, destination.isOurs, !destination.isGroup { to = destination }
        to.port = port
        if to.isAny {
            let isFourth = one.sender.plain.family == 2
            to = InetAddress(
                family: isFourth ? 2 : 10, words: isFourth ? [0x0100_007f] : [0, 0, 0, 0x0100_0000], to.port)
        }
        to = to.plain
        guard to.isOurs, !to.isGroup, one.sender.plain.family == to.family else { return false }
        let before = memory(number)
        guard (try? ForgedPacket.send(datagram: one.bytes, UInt8(socket.proto), one.sender.plain, to)) != nil else {
            return false
        }
        for _ in 0..<100 {
            if memory(number) > before { return true }
            pause(nanoseconds: 100_000)
        }
        return false
    }

    /// Bytes that what waits to be received takes (`SO_MEMINFO`).
    private static func memory(_ number: Int32) -> UInt32 {
        var words = [UInt32](repeating: 0, count: 16)
        var length: UInt32 = 64
        _ = try? words.withAddress { (value, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(number), 1, 55, value, length)
            }
        }
        return words[0]
    }
}

extension InetAddress {
    /// Of words as in memory.
    fileprivate init(family: Int32, words: [UInt32], _ port: UInt16) {
        self.init(family: UInt8(family), words.flatMap { [UInt8](bytesOf: $0) }, port: port)
    }

    /// Whether it is one of many receivers: multicast, or broadcast of the local network.
    fileprivate var isGroup: Bool {
        let plain = plain
        if plain.family == 10 { return plain.bytes[0] == 0xff }
        return plain.bytes[0] >= 224
    }
}
