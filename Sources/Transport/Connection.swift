public import Diagnostics
public import Linux

/// A stream between two machines: a connected socket, under TLS or not.
///
/// A peer that vanishes without a word is noticed within half a minute.
public final class Connection {
    private let socket: Descriptor
    private var session: SecureSession?
    /// The other end, for messages.
    public let peer: String

    /// Begins on a connected socket.
    ///
    /// - Parameters:
    ///   - name: what the peer's certificate must bear if `security` wants names checked.
    ///   - isServer: we answer the handshake.
    public init(
        _ socket: consuming Descriptor, peer: String, security: TransportSecurity?, name: String? = nil, isServer: Bool
    ) throws(Failure) {
        let number = socket.number
        self.socket = socket
        self.peer = peer
        Connection.noticeVanishedPeer(number)
        guard let security else { return }
        session = try during(.step("connection with \(peer)")) { () throws(Failure) in
            try SecureSession(number, security, isServer: isServer, name: security.verifiesName ? name : nil)
        }
    }

    /// Has a connection break when the peer does not answer for half a minute.
    static func noticeVanishedPeer(_ number: Int32) {
        // TCP alone knows these: a passed socket may be another.
        for (option, value) in [(1, 1), (4, 10), (5, 5), (6, 4), (18, 30_000)] as [(Int, Int32)] {
            // NODELAY, KEEPIDLE, KEEPINTVL, KEEPCNT, USER_TIMEOUT
            try? setSocketOption(number, level: 6, option, value)
        }
        try? setSocketOption(number, 9, 1)  // SO_KEEPALIVE
    }

    /// Connects to a server.
    ///
    /// - Parameter word: its address or name.
    public convenience init(to word: String, port: UInt16, security: TransportSecurity?) throws(Failure) {
        let address = try NetworkAddress(word, port: port)
        let socket = try attempt("connect to \(address)", advice: "Check that the server listens there") {
            () throws(SystemCallError) in
            let socket = Descriptor(owning: Int32(try systemCall(.socket, address.family, 1 | 0o2000000, 0)))
            let number = Int(socket.number)
            try address.bytes.withConstantAddress { (bytes, count) throws(SystemCallError) in
                try systemCall(.connect, number, bytes, count)
            }
            return socket
        }
        try self.init(socket, peer: "\(address)", security: security, name: word, isServer: false)
    }

    /// The descriptor, for `poll(2)` only.
    public var number: Int32 { socket.number }

    /// Whether bytes wait that `poll(2)` does not know of.
    public var hasPending: Bool { session?.hasPending ?? false }

    /// Whether what is sent together arrives together: under TLS, in records of its own.
    public var keepsRecords: Bool { session != nil }

    private func broken(_ error: SystemCallError) -> Failure {
        Failure(.vanished, "the connection with \(peer) broke", cause: error)
    }

    /// Sends `count` bytes of our memory.
    public func send(from address: Int, count: Int) throws(Failure) {
        if session != nil {
            try during(.step("connection with \(peer)")) { () throws(Failure) in
                try session?.send(from: address, count: count)
            }
            return
        }
        var done = 0
        while done < count {
            do throws(SystemCallError) {
                // MSG_NOSIGNAL
                done += try systemCall(.sendto, Int(number), address + done, count - done, 0x4000, 0, 0)
            } catch { throw broken(error) }
        }
    }

    /// Sends a trivial value.
    public func send<T: BitwiseCopyable>(_ value: T) throws(Failure) {
        var bytes = [UInt8](bytesOf: value)
        try bytes.withAddress { (address, count) throws(Failure) in try send(from: address, count: count) }
    }

    /// Receives `count` bytes; fewer if the stream ends.
    public func receive(into address: Int, count: Int) throws(Failure) -> Int {
        var done = 0
        while done < count {
            let got: Int
            if session != nil {
                got =
                    try during(.step("connection with \(peer)")) { () throws(Failure) in
                        try session?.receive(into: address + done, count: count - done)
                    } ?? 0
            } else {
                do throws(SystemCallError) {
                    got = try systemCall(.recvfrom, Int(number), address + done, count - done, 0, 0, 0)
                } catch { throw broken(error) }
            }
            if got == 0 { break }
            done += got
        }
        return done
    }

    /// Receives a trivial value whose bytes may have any value. Returns nil if the stream ends before it.
    public func receive<T: BitwiseCopyable>(_ type: T.Type) throws(Failure) -> T? {
        var bytes = [UInt8](repeating: 0, count: MemoryLayout<T>.size)
        let got = try bytes.withAddress { (address, count) throws(Failure) in
            try receive(into: address, count: count)
        }
        if got == 0 { return nil }
        guard got == bytes.count, let value = bytes.load(type) else {
            throw Failure(.vanished, "the connection with \(peer) ended in the midst of a message")
        }
        return value
    }

    /// Says that nothing more will come, in an orderly way, and waits for the peer to close, but not long.
    public func finish(waitsForPeer: Bool) {
        session.take()?.close(isOrderly: true)
        guard waitsForPeer else { return }
        // Who closes first keeps the port busy for a minute.
        var byte = [UInt8](repeating: 0, count: 1)
        guard wait(for: number, milliseconds: 2000) else { return }
        _ = try? byte.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.recvfrom, Int(number), address, count, 0, 0, 0)
        }
    }
}

/// Waits until a descriptor can be read (`poll(2)`). Returns whether it can.
func wait(for number: Int32, milliseconds: Int) -> Bool {
    ((try? poll(number, for: 1, milliseconds: milliseconds)) ?? 0) != 0
}

/// A socket that waits for one connection.
public struct Listener: ~Copyable {
    private let socket: Descriptor
    /// The port, also if the kernel chose it.
    public let port: UInt16

    /// Listens.
    ///
    /// - Parameters:
    ///   - word: the address to listen at; nil for all.
    ///   - port: 0 for any that is free.
    public init(_ word: String?, port: UInt16) throws(Failure) {
        if let word {
            try self.init(NetworkAddress(word, port: port))
            return
        }
        do { try self.init(.any(port: port, isIPv6: true)) } catch {
            // A machine without IPv6.
            guard error.cause?.errno == .EAFNOSUPPORT || error.cause?.errno == .EADDRNOTAVAIL else { throw error }
            try self.init(.any(port: port, isIPv6: false))
        }
    }

    private init(_ address: NetworkAddress) throws(Failure) {
        let (socket, port) = try attempt("listen at \(address)", advice: "Check --address and --port") {
            () throws(SystemCallError) -> (Int32, UInt16) in
            let socket = Descriptor(owning: Int32(try systemCall(.socket, address.family, 1 | 0o2000000, 0)))
            let number = socket.number
            try setSocketOption(number, 2, 1)  // SO_REUSEADDR
            if address.family == 10 { try setSocketOption(number, level: 41, 26, 0) }  // IPV6_V6ONLY
            try address.bytes.withConstantAddress { (bytes, count) throws(SystemCallError) in
                try systemCall(.bind, Int(number), bytes, count)
            }
            try systemCall(.listen, Int(number), 1)
            var name = address.bytes
            var length: UInt32 = UInt32(name.count)
            try name.withAddress { (bytes, _) throws(SystemCallError) in
                try withAddress(of: &length) { (length) throws(SystemCallError) in
                    try systemCall(.getsockname, Int(number), bytes, length)
                }
            }
            return (socket.release(), UInt16(name[2]) << 8 | UInt16(name[3]))
        }
        self.socket = Descriptor(owning: socket)
        self.port = port
    }

    /// Waits for a connection, and listens no more.
    public consuming func accept(security: TransportSecurity?) throws(Failure) -> Connection {
        let number = Int(socket.number)
        let accepted = try attempt("accept a connection") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.accept4, number, 0, 0, 0o2000000)))
        }
        return try Connection(accepted, peer: "the client", security: security, isServer: true)
    }
}
