internal import Linux
internal import SystemPackage

/// Probes of sockets and of tun.
enum SocketProbe {
    private static let internet = 2
    private static let stream = 1
    private static let datagram = 2
    private static let closeOnExec = 0o2000000
    /// `SIOCGSKNS`.
    private static let askNamespace = 0x894c

    /// A new socket.
    static func socket(_ domain: Int, _ type: Int, _ code: Int = 0) throws(SystemCallError) -> Descriptor {
        Descriptor(owning: Int32(try systemCall(.socket, domain, type | closeOnExec, code)))
    }

    /// Whether a socket's namespace can be opened.
    static func tellsNamespace() throws(SystemCallError) -> Bool {
        let socket = try socket(internet, datagram)
        _ = Descriptor(owning: Int32(try systemCall(.ioctl, Int(socket.number), askNamespace)))
        return true
    }

    /// Whether there is /dev/net/tun.
    static func hasTun() throws(SystemCallError) -> Bool {
        _ = try openFile("/dev/net/tun", [.readWrite])
        return true
    }

    /// Whether the namespace of a tun device can be opened.
    static func tellsTunNamespace() throws(SystemCallError) -> Bool {
        let tun = try openFile("/dev/net/tun", [.readWrite])
        _ = Descriptor(owning: Int32(try systemCall(.ioctl, Int(tun.number), askNamespace)))
        return true
    }

    /// Whether the file of a UNIX socket can be opened (`SIOCUNIXFILE`): ours has none, which must be what it says.
    static func opensUnixFiles() throws(SystemCallError) -> Bool {
        let socket = try socket(1, stream)
        do {
            _ = Descriptor(owning: Int32(try systemCall(.ioctl, Int(socket.number), 0x89e0)))
            return true
        } catch {
            if error.errno == .ENOENT { return true }
            throw error
        }
    }

    /// Whether fixed buffer sizes can be told from automatic ones (`SO_BUF_LOCK`).
    static func locksBuffers() throws(SystemCallError) -> Bool {
        let socket = try socket(internet, stream)
        _ = try socketOption(socket.number, 72)
        return true
    }

    /// Whether an IPv6 socket can be bound to an address that is not there yet (`IPV6_FREEBIND`).
    static func bindsFreely() throws(SystemCallError) -> Bool {
        let socket = try socket(10, stream)
        try setSocketOption(socket.number, level: 41, 78, 1)
        return true
    }

    /// Whether a half-closed connection can be put in repair mode.
    static func repairsHalfClosed() throws(SystemCallError) -> Bool {
        let server = try socket(internet, stream)
        let client = try socket(internet, stream)
        let (listening, connecting) = (Int(server.number), Int(client.number))
        // sockaddr_in: AF_INET, any port, 127.0.0.1; the last four bytes are the length for getsockname.
        var address: [UInt8] = [2, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0]
        try address.withAddress { (place, _) throws(SystemCallError) in
            try systemCall(.bind, listening, place, 16)
            try systemCall(.listen, listening, 1)
            try systemCall(.getsockname, listening, place, place + 16)
            try systemCall(.connect, connecting, place, 16)
        }
        try systemCall(.shutdown, connecting, 1)
        try setSocketOption(client.number, level: 6, 19, 1)  // TCP_REPAIR
        try setSocketOption(client.number, level: 6, 19, 0)
        return true
    }
}
