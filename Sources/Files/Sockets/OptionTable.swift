internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux

/// A socket option that has no field in CRIU's images. It is noted where it differs from a new socket's.
struct SocketOption: Sendable {
    let level: Int, number: Int, name: String
    /// The most bytes that its value has; 4 for numbers.
    let size: Int
    /// Its value changes by itself, or is refused, once a connection is there.
    let isForUnconnected: Bool
    /// It is set once the socket has its final state.
    let isLate: Bool

    private init(
        _ level: Int, _ number: Int, _ name: String, size: Int = 4, unconnected: Bool = false, late: Bool = false
    ) {
        (self.level, self.number, self.name, self.size) = (level, number, name, size)
        (isForUnconnected, isLate) = (unconnected, late)
    }

    /// What all sockets have (`SOL_SOCKET`).
    static let common: [SocketOption] = [
        .init(1, 29, "SO_TIMESTAMP"), .init(1, 35, "SO_TIMESTAMPNS"), .init(1, 63, "SO_TIMESTAMP_NEW"),
        .init(1, 64, "SO_TIMESTAMPNS_NEW"), .init(1, 37, "SO_TIMESTAMPING", size: 8, late: true),
        .init(1, 65, "SO_TIMESTAMPING_NEW", size: 8, late: true), .init(1, 40, "SO_RXQ_OVFL"),
        .init(1, 41, "SO_WIFI_STATUS"), .init(1, 42, "SO_PEEK_OFF", late: true), .init(1, 43, "SO_NOFCS"),
        .init(1, 45, "SO_SELECT_ERR_QUEUE"), .init(1, 46, "SO_BUSY_POLL"), .init(1, 69, "SO_PREFER_BUSY_POLL"),
        .init(1, 47, "SO_MAX_PACING_RATE", size: 8), .init(1, 49, "SO_INCOMING_CPU", unconnected: true),
        .init(1, 60, "SO_ZEROCOPY"), .init(1, 61, "SO_TXTIME", size: 8), .init(1, 73, "SO_RESERVE_MEM"),
        .init(1, 74, "SO_TXREHASH"), .init(1, 75, "SO_RCVMARK"), .init(1, 82, "SO_RCVPRIORITY"),
    ]

    /// The limits before what they limit.
    private static let virtual: [SocketOption] = [
        .init(40, 2, "SO_VM_SOCKETS_BUFFER_MAX_SIZE", size: 8), .init(40, 1, "SO_VM_SOCKETS_BUFFER_MIN_SIZE", size: 8),
        .init(40, 0, "SO_VM_SOCKETS_BUFFER_SIZE", size: 8), .init(40, 8, "SO_VM_SOCKETS_CONNECT_TIMEOUT", size: 16),
    ]

    private static let internet: [SocketOption] = [
        .init(0, 4, "IP_OPTIONS", size: 40), .init(0, 10, "IP_MTU_DISCOVER"), .init(0, 11, "IP_RECVERR"),
        .init(0, 19, "IP_TRANSPARENT"), .init(0, 21, "IP_MINTTL"), .init(0, 24, "IP_BIND_ADDRESS_NO_PORT"),
        .init(0, 26, "IP_RECVERR_RFC4884"), .init(0, 50, "IP_UNICAST_IF"), .init(0, 51, "IP_LOCAL_PORT_RANGE"),
    ]

    private static let internetPackets: [SocketOption] = [
        .init(0, 6, "IP_RECVOPTS"), .init(0, 7, "IP_RETOPTS"), .init(0, 12, "IP_RECVTTL"), .init(0, 13, "IP_RECVTOS"),
        .init(0, 18, "IP_PASSSEC"), .init(0, 20, "IP_RECVORIGDSTADDR"), .init(0, 23, "IP_CHECKSUM"),
        .init(0, 25, "IP_RECVFRAGSIZE"), .init(0, 32, "IP_MULTICAST_IF"), .init(0, 33, "IP_MULTICAST_TTL"),
        .init(0, 34, "IP_MULTICAST_LOOP"), .init(0, 49, "IP_MULTICAST_ALL"),
    ]

    private static let sixth: [SocketOption] = [
        .init(41, 16, "IPV6_UNICAST_HOPS"), .init(41, 23, "IPV6_MTU_DISCOVER"), .init(41, 25, "IPV6_RECVERR"),
        .init(41, 31, "IPV6_RECVERR_RFC4884"), .init(41, 54, "IPV6_HOPOPTS", size: 2048),
        .init(41, 55, "IPV6_RTHDRDSTOPTS", size: 2048), .init(41, 57, "IPV6_RTHDR", size: 2048),
        .init(41, 59, "IPV6_DSTOPTS", size: 2048), .init(41, 62, "IPV6_DONTFRAG"), .init(41, 67, "IPV6_TCLASS"),
        .init(41, 70, "IPV6_AUTOFLOWLABEL"), .init(41, 72, "IPV6_ADDR_PREFERENCES"),
        .init(41, 73, "IPV6_MINHOPCOUNT"), .init(41, 75, "IPV6_TRANSPARENT"), .init(41, 76, "IPV6_UNICAST_IF"),
    ]

    private static let sixthPackets: [SocketOption] = [
        .init(41, 2, "IPV6_2292PKTINFO"), .init(41, 3, "IPV6_2292HOPOPTS"), .init(41, 4, "IPV6_2292DSTOPTS"),
        .init(41, 5, "IPV6_2292RTHDR"), .init(41, 8, "IPV6_2292HOPLIMIT"), .init(41, 11, "IPV6_FLOWINFO"),
        .init(41, 17, "IPV6_MULTICAST_IF"), .init(41, 18, "IPV6_MULTICAST_HOPS"), .init(41, 19, "IPV6_MULTICAST_LOOP"),
        .init(41, 29, "IPV6_MULTICAST_ALL"), .init(41, 51, "IPV6_RECVHOPLIMIT"), .init(41, 53, "IPV6_RECVHOPOPTS"),
        .init(41, 56, "IPV6_RECVRTHDR"), .init(41, 58, "IPV6_RECVDSTOPTS"), .init(41, 60, "IPV6_RECVPATHMTU"),
        .init(41, 66, "IPV6_RECVTCLASS"), .init(41, 74, "IPV6_ORIGDSTADDR"), .init(41, 77, "IPV6_RECVFRAGSIZE"),
    ]

    private static let raw: [SocketOption] = [.init(41, 7, "IPV6_CHECKSUM")]

    private static let tcp: [SocketOption] = [
        .init(6, 2, "TCP_MAXSEG", unconnected: true), .init(6, 7, "TCP_SYNCNT"), .init(6, 8, "TCP_LINGER2"),
        .init(6, 9, "TCP_DEFER_ACCEPT"), .init(6, 10, "TCP_WINDOW_CLAMP", unconnected: true),
        .init(6, 13, "TCP_CONGESTION", size: 16), .init(6, 16, "TCP_THIN_LINEAR_TIMEOUTS"),
        .init(6, 18, "TCP_USER_TIMEOUT"), .init(6, 23, "TCP_FASTOPEN", unconnected: true),
        .init(6, 25, "TCP_NOTSENT_LOWAT"), .init(6, 27, "TCP_SAVE_SYN", unconnected: true),
        .init(6, 30, "TCP_FASTOPEN_CONNECT", unconnected: true),
        .init(6, 33, "TCP_FASTOPEN_KEY", size: 32, unconnected: true),
        .init(6, 34, "TCP_FASTOPEN_NO_COOKIE", unconnected: true), .init(6, 36, "TCP_INQ"),
        .init(6, 37, "TCP_TX_DELAY"), .init(6, 44, "TCP_RTO_MAX_MS"), .init(6, 45, "TCP_RTO_MIN_US"),
        .init(6, 46, "TCP_DELACK_MAX_US"),
    ]

    private static let udp: [SocketOption] = [
        .init(17, 100, "UDP_ENCAP"), .init(17, 101, "UDP_NO_CHECK6_TX"), .init(17, 102, "UDP_NO_CHECK6_RX"),
        .init(17, 103, "UDP_SEGMENT"), .init(17, 104, "UDP_GRO"), .init(17, 1, "UDP_CORK", late: true),
    ]

    private static let udpLite: [SocketOption] = [
        .init(136, 10, "UDPLITE_SEND_CSCOV"), .init(136, 11, "UDPLITE_RECV_CSCOV"),
        .init(136, 1, "UDP_CORK", late: true),
    ]

    private static let netlink: [SocketOption] = [
        .init(270, 3, "NETLINK_PKTINFO"), .init(270, 4, "NETLINK_BROADCAST_ERROR"), .init(270, 5, "NETLINK_NO_ENOBUFS"),
        .init(270, 8, "NETLINK_LISTEN_ALL_NSID"), .init(270, 10, "NETLINK_CAP_ACK"), .init(270, 11, "NETLINK_EXT_ACK"),
        .init(270, 12, "NETLINK_GET_STRICT_CHK"),
    ]

    private static let packet: [SocketOption] = [
        .init(263, 20, "PACKET_QDISC_BYPASS"), .init(263, 23, "PACKET_IGNORE_OUTGOING"),
        .init(263, 19, "PACKET_TX_HAS_OFF"),
    ]

    /// The options of a kind of socket, in the order in which they are set.
    static func all(_ kind: SocketKind) -> [SocketOption] {
        let isStream = kind.type == 1
        // Streams have no groups; the kernel answers all the same.
        func fitting(_ options: [SocketOption]) -> [SocketOption] {
            isStream ? options.filter { !$0.name.contains("MULTICAST") } : options
        }
        switch kind.family {
        case 2: return common + internet + fitting(internetPackets) + (isStream ? tcp : protocolOptions(kind))
        case 10:
            let fourth = kind.type == 3 ? [] : internet + fitting(internetPackets)
            return common + fourth + sixth + fitting(sixthPackets) + (isStream ? tcp : protocolOptions(kind))
        case 16: return common + netlink
        case 17: return common + packet
        case 40: return common + virtual
        default: return common
        }
    }

    private static func protocolOptions(_ kind: SocketKind) -> [SocketOption] {
        if kind.type == 3 { return raw }
        return kind.code == 17 ? udp : kind.code == 136 ? udpLite : []
    }

    /// Whether it has this value; false if the kernel or the protocol does not have it.
    func has(_ known: [UInt8], on socket: Int32) -> Bool {
        guard size <= 8 else { return value(of: socket) == known }
        // Thousands of sockets have dozens of these: no array.
        var answer: (value: UInt64, length: UInt32) = (0, UInt32(size))
        let answers: Void? = try? withAddress(of: &answer) { (address) throws(SystemCallError) in
            try systemCall(.getsockopt, Int(socket), level, number, address, address + 8)
        }
        guard answers != nil, Int(answer.length) == known.count else { return false }
        for (index, byte) in known.enumerated() {
            // Little endian.
            if UInt8(truncatingIfNeeded: answer.value >> (8 * UInt64(index))) != byte { return false }
        }
        return true
    }

    /// Its value; nil if the kernel or the protocol does not have it.
    func value(of socket: Int32) -> [UInt8]? {
        var room = [UInt8](repeating: 0, count: size)
        var length = UInt32(size)
        do throws(SystemCallError) {
            try room.withAddress { (value, _) throws(SystemCallError) in
                try withAddress(of: &length) { (length) throws(SystemCallError) in
                    try systemCall(.getsockopt, Int(socket), level, number, value, length)
                }
            }
        } catch { return nil }
        return Array(room.prefix(Int(length)))
    }

    /// Gives a socket this value.
    func set(_ value: [UInt8], on socket: Int32) throws(SystemCallError) {
        try value.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.setsockopt, Int(socket), level, number, address, count)
        }
    }
}

/// What decides which options a socket has.
struct SocketKind: Hashable, Sendable {
    /// `AF_*`, `SOCK_*`, `IPPROTO_*`.
    var family: Int32, type: Int32, code: Int32

    /// Asks a socket.
    init(_ socket: Int32) throws(SystemCallError) {
        // SO_DOMAIN, SO_TYPE, SO_PROTOCOL
        (family, type, code) = (try socketOption(socket, 39), try socketOption(socket, 3), try socketOption(socket, 38))
    }

    /// A kind.
    init(family: Int32, type: Int32, code: Int32) {
        (self.family, self.type, self.code) = (family, type, code)
    }

    /// A new socket of this kind, close-on-exec.
    func make() throws(SystemCallError) -> Descriptor {
        Descriptor(owning: Int32(try systemCall(.socket, Int(family), Int(type) | 0o2000000, Int(code))))
    }
}

extension SocketKind {
    /// Whether something waits to be received. Nothing is taken away by asking, not even an error.
    static func hasData(_ socket: Int32) -> Bool {
        // POLLIN, which a socket that is shut down (POLLRDHUP) tells as well.
        ((try? poll(socket, for: 0x2001)) ?? 0) & 0x2001 == 1
    }

    /// Whether an error waits to be told. Looking does not take it.
    static func hasError(_ socket: Int32) -> Bool { ((try? poll(socket, for: 0)) ?? 0) & 0x8 != 0 }  // POLLERR
}

/// What new sockets have, by kind.
final class SocketDefaults {
    /// An option and its value of a new socket. What the kernel does not tell of a new one it tells of none.
    typealias Default = (option: SocketOption, value: [UInt8])
    private var known: [SocketKind: [Default]] = [:]

    static func of(_ context: DumpContext) -> SocketDefaults { context.state(SocketDefaults.self) { SocketDefaults() } }

    /// The values of a new socket's options; none if it can't be made.
    func values(_ kind: SocketKind) -> [Default] {
        if let values = known[kind] { return values }
        guard let fresh = try? kind.make() else { return [] }
        let values = SocketOption.all(kind).compactMap { option in
            option.value(of: fresh.number).map { (option, $0) }
        }
        known[kind] = values
        return values
    }
}
