internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink

/// Whose the other end of a connection is that waits to be accepted, by the numbers of the image.
enum WaitingClient: UInt32 {
    /// A socket of the tree has it.
    case inTree = 0
    /// It was closed, on this machine.
    case nobody = 1
    /// Another program has it.
    case outside = 2
}

/// The TCP connections of a dump that nobody has accepted yet.
///
/// No descriptor leads to them, so they can only be accepted by us, which nothing takes back. That is done once the image is
/// complete otherwise and the tree will be killed. Before that, the kernel lists them without telling in which order they
/// are.
final class WaitingConnections {
    private struct Listener {
        let file: OpenFile, address: InetAddress, count: Int
    }

    private var listeners: [Listener] = []
    /// Connections seen while the tree stood, as the listener's side sees them.
    private var noted: [Connection: WaitingClient] = [:]
    private var accepted: [(socket: Int32, client: WaitingClient)] = []

    static func of(_ context: DumpContext) -> WaitingConnections {
        context.state(WaitingConnections.self) { WaitingConnections() }
    }

    /// Notes a listener on which connections wait.
    func add(_ file: OpenFile, _ address: InetAddress, count: Int, _ context: DumpContext) throws(Failure) {
        guard !context.policy.skipInFlight, !context.policy.tcpClose else {
            return context.log.warning(
                "\(WaitingConnections.number(count)) on the port \(address.port), not accepted yet, will break")
        }
        guard context.policy.takesAtEnd else {
            throw Failure(
                .unsupported,
                "\(WaitingConnections.number(count)) on the port \(address.port) to be accepted, and can be saved only if the tree is killed after a dump into a directory",
                advice:
                    "Try again once the task has accepted them, dump without --leave-running, --leave-stopped, --stream-to and --lazy-pages, or pass --skip-in-flight to leave them out of the image"
            )
        }
        listeners.append(Listener(file: file, address: address, count: count))
    }

    private static func number(_ count: Int) -> String {
        count == 1 ? "1 connection waits" : "\(count) connections wait"
    }

    /// Whether a socket is one that waits on a listener: it has no inode, and nothing was done to it from this side.
    static func isWaiting(_ socket: InetDiagnosis) -> Bool {
        socket.inode == 0
            && (socket.state == TCPState.established.rawValue || socket.state == TCPState.closeWait.rawValue)
    }

    /// Finds out whose the connections are.
    ///
    /// - Parameter clients: the connections of the tree.
    func examine(_ clients: Set<Connection>, _ context: DumpContext) throws(Failure) {
        guard !listeners.isEmpty else { return }
        var waiting: [Connection] = []
        var owners: [Connection: UInt32] = [:]
        try attempt("list the connections that wait to be accepted") { () throws(SystemCallError) in
            try InetDiagnosis.forEach(6) { one in
                let connection = one.connection.plain
                owners[connection] = one.inode
                if WaitingConnections.isWaiting(one) { waiting.append(connection) }
            }
        }
        for listener in listeners {
            let outside = waiting.filter { connection in
                guard connection.here.port == listener.address.port,
                    listener.address.isAny || listener.address.plain.bytes == connection.here.bytes
                else { return false }
                let owner = owners[connection.reversed]
                let client: WaitingClient =
                    clients.contains(connection.reversed)
                    ? .inTree : owner == 0 || owner == nil && connection.there.isOurs ? .nobody : .outside
                noted[connection] = client
                return client == .outside
            }
            let owner = listener.file.owner
            try during(.dumping(owner.id, owner.name)) { () throws(Failure) in
                try during(.descriptor(listener.file.number)) { () throws(Failure) in
                    try check(outside, listener.address.port, context)
                }
            }
        }
    }

    private func check(_ outside: [Connection], _ port: UInt16, _ context: DumpContext) throws(Failure) {
        guard !outside.isEmpty else { return }
        let peers = outside.map(\.there.text).sorted()
        let shown = peers.prefix(5).joined(separator: ", ") + (peers.count > 5 ? " …" : "")
        let what =
            "\(WaitingConnections.number(peers.count)) from outside of the tree on the port \(port) to be accepted (of \(shown))"
        guard context.policy.tcpEstablished else {
            throw Failure(
                .denied, what,
                advice:
                    "Pass --tcp-established to keep them (their packets are held up until the restore), --skip-in-flight to let them break, or try again once the task has accepted them"
            )
        }
        do throws(Failure) { try AcceptQueue.check() } catch {
            throw Failure(
                .unsupported, "\(what), and this kernel could not take them back: \(error)",
                advice: "Pass --skip-in-flight to let them break, or try again once the task has accepted them")
        }
    }

    /// Whether an end of the tree will be connected anew to its listener, so that nobody has to wait for it.
    func isReconnected(_ connection: Connection) -> Bool { noted[connection.plain.reversed] == .inTree }

    /// Connections whose clients are in the tree or have ended, as the listener's side sees them.
    var inside: Set<Connection> { Set(noted.filter { $0.value != .outside }.keys) }

    /// Connections whose clients have to wait.
    var outside: Set<Connection> { Set(noted.filter { $0.value == .outside }.keys) }

    // MARK: taking

    /// Accepts what waits, and writes it.
    func part(_ context: DumpContext) throws(Failure) {
        guard !listeners.isEmpty else { return }
        let image = context.images.create(.waitingTCP)
        for listener in listeners {
            for _ in 0..<listener.count { try take(from: listener, image, context.log) }
        }
        try image.finish()
    }

    private func take(from listener: Listener, _ image: ImageWriter, _ log: Logger) throws(Failure) {
        let number = listener.file.handle.number
        // POLLIN; the task may have left it to wait.
        let taken = try attempt("accept a connection that waits") { () throws(SystemCallError) in
            guard try poll(number, for: 1) != 0 else { return Int32(-1) }
            return Int32(try systemCall(.accept4, Int(number), 0, 0, 0o2000000))  // SOCK_CLOEXEC
        }
        guard taken >= 0 else { return log.warning("a connection that waited to be accepted is gone") }
        let (here, there) = try attempt("ask for a connection's addresses") { () throws(SystemCallError) in
            (
                try InetAddress.local(of: taken),
                try InetAddress.peer(of: taken, family: try socketOption(taken, 39))  // SO_DOMAIN
            )
        }
        guard let here, let there else { return log.warning("a connection that waited to be accepted has no peer") }
        let connection = Connection(here: here, there: there)
        let stream = try TCPStream(reading: taken)
        var client = noted[connection.plain]
        // One that was reset is not listed.
        if client == nil, stream.state == .closed { client = there.plain.isOurs ? .nobody : .outside }
        guard let client else {
            accepted.append((taken, .nobody))
            return log.warning("the connection from \(connection.there.plain.text) came during the dump, and breaks")
        }
        accepted.append((taken, client))
        var entry = BrumateWaitingEntry()
        (entry.listener, entry.family) = (listener.file.id, UInt32(here.family))
        (entry.srcPort, entry.srcAddr) = (UInt32(here.port), here.words)
        (entry.dstPort, entry.dstAddr) = (UInt32(there.port), there.words)
        (entry.state, entry.client, entry.stream) = (stream.state.rawValue, client.rawValue, stream.entry)
        try image.append(entry)
        try image.append(raw: stream.received)
    }

    /// The tree is gone: what we have accepted ends without a word, where somebody waits or will be connected anew.
    func leave() {
        for (socket, client) in accepted {
            if client == .nobody {
                // Not even a time of waiting shall keep the port from the restore: SO_LINGER 0 resets the other end.
                var linger: (Int32, Int32) = (1, 0)
                _ = try? withAddress(of: &linger) { (linger) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(socket), 1, 13, linger, 8)
                }
            } else {
                _ = try? Repair.begin(socket)
            }
            _ = try? systemCall(.close, Int(socket))
        }
        accepted = []
    }

    deinit { for (socket, _) in accepted { _ = try? systemCall(.close, Int(socket)) } }
}

extension InetDiagnosis {
    /// Its two ends.
    var connection: Connection {
        Connection(
            here: InetAddress(family: family, source, port: sourcePort),
            there: InetAddress(family: family, peer, port: peerPort))
    }
}

extension InetAddress {
    /// Whether this machine has the address.
    var isOurs: Bool {
        // SOCK_DGRAM | SOCK_CLOEXEC
        guard let number = try? systemCall(.socket, Int(family), 2 | 0o2000000, 0) else { return false }
        let socket = Descriptor(owning: Int32(number))
        var address = self
        address.port = 0
        return (try? address.give(to: socket.number, by: .bind)) != nil
    }
}
