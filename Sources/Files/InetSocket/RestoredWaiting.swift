internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink

/// Connections under restore that wait to be accepted: `tcp-waiting.img`.
///
/// A client of the tree is connected anew, with new numbers that nobody has seen. A client outside knows its numbers, so its
/// connection is made by packets in its name (`AcceptQueue`), and what it had sent is sent in its name once more.
final class RestoredWaiting {
    /// A connection as the listener's side sees it.
    struct Waiting {
        let connection: Connection
        let state: TCPState
        let client: WaitingClient
        let entry: TcpStreamEntry
        let received: [UInt8]

        /// The number that follows the last byte, and that of the first.
        var end: UInt32 { entry.inqSeq &- (state.receivedFin ? 1 : 0) }
        var start: UInt32 { end &- entry.inqLen }
    }

    private var byListener: [UInt32: [Waiting]] = [:]
    /// Clients in the tree, by the connection as they see it: the listener and the place in its queue.
    private var clients: [Connection: Waiting] = [:]
    private var concerned: Set<UInt32> = []

    static func of(_ context: RestoreContext) -> RestoredWaiting {
        context.state(RestoredWaiting.self) { RestoredWaiting() }
    }

    /// Whether there is nothing to do.
    var isEmpty: Bool { byListener.isEmpty }

    /// Connections whose clients have waited.
    private(set) var outside: Set<Connection> = []

    /// Reads and checks the image.
    func load(_ context: RestoreContext) throws(Failure) {
        guard context.images.has(.waitingTCP), !context.policy.tcpClose else { return }
        try during(.image(ImageName.waitingTCP.fileName)) { () throws(Failure) in
            let reader = try context.images.open(.waitingTCP)
            while let entry = try reader.next(BrumateWaitingEntry.self) {
                guard let state = TCPState(rawValue: entry.state), let client = WaitingClient(rawValue: entry.client),
                    [.established, .closeWait, .closed].contains(state), entry.stream.inqLen <= TCPStream.longestQueue,
                    entry.stream.sndWscale <= 14, entry.stream.rcvWscale <= 14,
                    let listener = context.entry(entry.listener), listener.hasIsk,
                    listener.isk.state == TCPState.listening.rawValue
                else { throw Failure(.corruptImage, "a connection that waits to be accepted is damaged") }
                let connection = Connection(
                    here: try InetAddress(family: entry.family, words: entry.srcAddr, port: entry.srcPort),
                    there: try InetAddress(family: entry.family, words: entry.dstAddr, port: entry.dstPort))
                let waiting = Waiting(
                    connection: connection, state: state, client: client, entry: entry.stream,
                    received: try reader.read(Int(entry.stream.inqLen)))
                if client == .outside {
                    outside.insert(connection.plain)
                    guard try isKept(connection, context) else { continue }
                }
                byListener[entry.listener, default: []].append(waiting)
                if client == .inTree { clients[connection.plain.reversed] = waiting }
            }
        }
        guard !isEmpty else { return }
        let ports = Set(byListener.keys.compactMap { context.entry($0)?.isk.srcPort })
        for entry in context.entries(of: .inetsk) where entry.hasIsk && entry.isk.type == UInt32(InetSocket.stream) {
            let ends = try InetSocket.connection(entry.isk).plain
            let isListener = entry.isk.state == TCPState.listening.rawValue && ports.contains(entry.isk.srcPort)
            if isListener || clients[ends] != nil { concerned.insert(entry.id) }
        }
    }

    private func isKept(_ connection: Connection, _ context: RestoreContext) throws(Failure) -> Bool {
        if context.policy.skipInFlight {
            context.log.warning("the connection from \(connection.there.plain.text), not accepted yet, is left out")
            return false
        }
        guard context.policy.tcpEstablished else {
            throw Failure(
                .denied,
                "the connection from \(connection.there.plain.text), not accepted yet, has its other end outside of the tree",
                advice: "Pass --tcp-established to keep it, or --skip-in-flight to leave it out")
        }
        return true
    }

    /// Whether a file has to be made together with the others that have to do with what waits.
    func concerns(_ id: UInt32) -> Bool { concerned.contains(id) }

    /// What waits on a listener at the other end of a client's connection.
    func other(_ connection: Connection) -> Waiting? { clients[connection.plain] }

    // MARK: filling queues

    /// Fills the queues of listeners that are all made, in the order in which they listened.
    func join(
        _ listeners: [FileEntry], _ context: RestoreContext, makeClient: (Connection) throws(Failure) -> Void
    ) throws(Failure) {
        /// What listeners that share a port by `SO_REUSEPORT` have in common.
        struct Group: Hashable {
            let family: UInt32, address: [UInt32], port: UInt32, isV6Only: Bool, device: [UInt8], owner: UInt32
        }
        var groups: [Group: Int32] = [:]
        for listener in listeners {
            let socket = listener.isk
            let key = Group(
                family: socket.family, address: socket.srcAddr, port: socket.srcPort, isV6Only: socket.v6Only,
                device: Array(socket.opts.soBoundDev), owner: socket.opts.uid)
            let place = groups[key, default: 0]
            groups[key] = place + 1
            guard let waiting = byListener[listener.id], !context.inherits("socket:[\(socket.ino)]") else { continue }
            let number = try context.files.number(listener.id)
            try during(.file("socket:[\(socket.ino)]")) { () throws(Failure) in
                let isShared = listeners.filter { $0.isk.srcPort == socket.srcPort }.count > 1
                try RestoredWaiting.choose(number, isShared ? place : nil) { () throws(Failure) in
                    try fill(number, socket, waiting, makeClient)
                }
            }
        }
    }

    /// Makes a socket the one of those sharing its port that gets everything, as long as the body runs.
    ///
    /// - Parameter place: which of them it is; nil if it has the port for itself.
    static func choose(_ number: Int32, _ place: Int32?, _ body: () throws(Failure) -> Void) throws(Failure) {
        guard let place else { return try body() }
        try attempt("choose the socket among those of its port") { () throws(SystemCallError) in
            // A classic program that returns a number; SO_ATTACH_REUSEPORT_CBPF.
            var code: [UInt64] = [UInt64(6) | UInt64(UInt32(place)) << 32]
            try code.withAddress { (code, _) throws(SystemCallError) in
                var program: (UInt64, UInt64) = (1, UInt64(code))
                try withAddress(of: &program) { (program) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(number), 1, 51, program, 16)
                }
            }
        }
        let outcome = Result(catching: body)
        _ = try? setSocketOption(number, 68, 0)  // SO_DETACH_REUSEPORT_BPF
        try outcome.get()
    }

    private func fill(
        _ number: Int32, _ listener: InetSkEntry, _ all: [Waiting], _ makeClient: (Connection) throws(Failure) -> Void
    ) throws(Failure) {
        let backlog = Int(min(listener.backlog, 1 << 30))
        let needsRoom = all.count > backlog
        if needsRoom {
            try attempt("make room for connections that wait") { () throws(SystemCallError) in
                try systemCall(.listen, Int(number), all.count)
            }
        }
        for (place, waiting) in all.enumerated() {
            switch waiting.client {
            case .inTree: try makeClient(waiting.connection.plain.reversed)
            case .nobody: try comeAndGo(waiting)
            case .outside: try forge(waiting, number)
            }
            try arrive(place + 1, waiting, number)
            if waiting.client == .outside { try forgeQueue(waiting) }
        }
        if needsRoom {
            try attempt("listen") { () throws(SystemCallError) in try systemCall(.listen, Int(number), backlog) }
        }
    }

    /// Waits until so many connections wait.
    private func arrive(_ count: Int, _ waiting: Waiting, _ listener: Int32) throws(Failure) {
        for _ in 0..<1000 {
            let information = try attempt("read the listener's state") { () throws(SystemCallError) in
                try TCPStream.information(listener)
            }
            if Int(information.load(UInt32.self, at: 24) ?? 0) >= count { return }
            pause(nanoseconds: 1_000_000)
        }
        throw Failure(
            .conflict, "the connection \(waiting.connection.reversed.text) did not come to its listener",
            advice:
                "Check the rules of the packet filter and the route; --skip-in-flight leaves outside connections out")
    }

    // MARK: clients on this machine

    /// Connects a client's socket to the listener, and sends what the client had sent.
    ///
    /// - Parameter unsent: what was not received yet.
    func connect(_ waiting: Waiting, _ ends: Connection, _ socket: Int32, unsent: [UInt8]) throws(Failure) {
        try attempt("make room for the queue") { () throws(SystemCallError) in
            try setSocketOption(socket, 32, Int32.max / 2)  // SO_SNDBUFFORCE; the real size comes later.
            try setStatusFlags(socket, UInt32(OpenFlags.nonBlocking.rawValue))
        }
        // Other connections may have the port as well, which the kernel chose for them. It allows that in repair mode.
        try attempt("bind the connection to \(ends.here.text)", advice: "Restore where this address is") {
            () throws(SystemCallError) in
            try Repair.begin(socket)
            try ends.here.give(to: socket, by: .bind)
            try Repair.end(socket, reuse: true)
        }
        try attempt("connect \(ends.text) to the listener") { () throws(SystemCallError) in
            do throws(SystemCallError) { try ends.there.give(to: socket, by: .connect) } catch {
                guard error.errno == .EINPROGRESS else { throw error }
                _ = try poll(socket, for: 4, milliseconds: 2000)  // POLLOUT
                let code = try socketOption(socket, 4)  // SO_ERROR
                if code != 0 { throw SystemCallError(.connect, Errno(rawValue: code)) }
            }
            try TCPStream.sendAll(waiting.received + unsent, socket)
        }
    }

    /// A client that has sent something and ended.
    private func comeAndGo(_ waiting: Waiting) throws(Failure) {
        let ends = waiting.connection.reversed
        let socket = try attempt("create a socket") { () throws(SystemCallError) in
            // SOCK_STREAM | SOCK_CLOEXEC
            let socket = Descriptor(owning: Int32(try systemCall(.socket, Int(ends.here.family), 1 | 0o2000000, 6)))
            try setSocketOption(socket.number, 2, 1)
            return socket
        }
        try connect(waiting, ends, socket.number, unsent: [])
        guard waiting.state == .closed else { return }
        // It was reset.
        var linger: (Int32, Int32) = (1, 0)
        try attempt("reset the connection") { () throws(SystemCallError) in
            try withAddress(of: &linger) { (linger) throws(SystemCallError) in
                try systemCall(.setsockopt, Int(socket.number), 1, 13, linger, 8)
            }
        }
    }

    // MARK: clients elsewhere

    /// Makes a connection that only its client knows of.
    private func forge(_ waiting: Waiting, _ listener: Int32) throws(Failure) {
        let entry = waiting.entry
        // TCPI_OPT_TIMESTAMPS 1, SACK 2, WSCALE 4, ECN 8. The kernel takes no less than every peer takes.
        func has(_ option: UInt32) -> UInt8 { entry.optMask & option != 0 ? 1 : 0 }
        let least: UInt32 = waiting.connection.plain.here.family == 2 ? 536 : 1220
        // rcv_tsval (0: not known), rcv_tsecr, mss, scales, ECN, scaling, SACK, time stamps, not in microseconds.
        var attributes = [UInt8](bytesOf: UInt32(0)) + [UInt8](bytesOf: entry.timestamp)
        attributes += [UInt8](bytesOf: UInt16(clamping: max(entry.mssClamp, least)))
        attributes += [UInt8(entry.rcvWscale), UInt8(entry.sndWscale), has(8), has(4), has(2), has(1), 0, 0, 0, 0]
        try AcceptQueue(listener).admit(
            waiting.connection, sequence: waiting.start, acknowledges: entry.outqSeq, window: window(entry),
            attributes: attributes)
    }

    private func window(_ entry: TcpStreamEntry) -> UInt32 { entry.sndWnd >> entry.sndWscale }

    /// Sends to it what its client had sent, in the client's name.
    private func forgeQueue(_ waiting: Waiting) throws(Failure) {
        func packet(_ sequence: UInt32) -> ForgedPacket {
            ForgedPacket(
                waiting.connection.reversed, sequence: sequence, acknowledges: waiting.entry.outqSeq,
                window: window(waiting.entry))
        }
        var done = 0
        while done < waiting.received.count {
            let piece = Array(waiting.received[done..<min(done + (16 << 10), waiting.received.count)])
            try packet(waiting.start &+ UInt32(done)).send(flags: ForgedPacket.data, piece)
            done += piece.count
        }
        switch waiting.state {
        case .closeWait: try packet(waiting.end).send(flags: ForgedPacket.end)
        case .closed: return try packet(waiting.end).send(flags: ForgedPacket.reset)
        default: break
        }
        guard !waiting.received.isEmpty else { return }
        for _ in 0..<100 {
            var isThere = false
            try attempt("look at the connection") { () throws(SystemCallError) in
                try InetDiagnosis.forEach(6, 1 << 1 | 1 << 8) { one in
                    if one.inode == 0, one.connection.plain == waiting.connection.plain,
                        one.receiving >= UInt32(waiting.received.count)
                    {
                        isThere = true
                    }
                }
            }
            if isThere { return }
            pause(nanoseconds: 1_000_000)
        }
        throw Failure(
            .conflict,
            "what was sent on the connection \(waiting.connection.reversed.text) does not fit into it",
            advice: "--skip-in-flight leaves it out")
    }
}
