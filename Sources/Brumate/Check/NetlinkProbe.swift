internal import Linux

/// Probes by one netlink request each.
enum NetlinkProbe {
    private static let request: UInt16 = 1
    private static let dump: UInt16 = 0x300
    private static let acknowledge: UInt16 = 4

    /// What the kernel answers a request: the first message's type, and the error it carries, 0 for none.
    private static func ask(
        family: Int, type: UInt16, flags: UInt16, _ body: [UInt8]
    ) throws(SystemCallError) -> (type: UInt16, error: Int32) {
        let socket = try SocketProbe.socket(16, 3, family)
        let number = Int(socket.number)
        let message =
            bytes(UInt32(16 + body.count)) + bytes(type) + bytes(flags | request) + bytes(UInt32(1)) + bytes(UInt32(0))
            + body
        var answer = [UInt8](repeating: 0, count: 8192)
        try message.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.sendto, number, address, count)
        }
        let length = try answer.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.recvfrom, number, address, count)
        }
        guard length >= 20 else { return (0, 0) }
        let kind = UInt16(answer[4]) | UInt16(answer[5]) << 8
        let word = answer[16..<20].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        // NLMSG_ERROR, NLMSG_DONE.
        return (kind, kind == 2 || kind == 3 ? -Int32(bitPattern: word) : 0)
    }

    private static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        (0..<(T.bitWidth / 8)).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
    }

    private static func zeros(_ count: Int) -> [UInt8] { .init(repeating: 0, count: count) }

    /// Whether the kernel takes the question for raw sockets (`SOCK_DIAG_BY_FAMILY`, IPPROTO_RAW). As with CRIU, one that
    /// has no list, and ends it at once, will do: /proc has one too.
    static func listsRawSockets() throws(SystemCallError) -> Bool {
        for family: UInt8 in [2, 10] {
            let body = [family, 255, 0, 0] + bytes(UInt32.max) + zeros(48)
            let answer = try ask(family: 4, type: 20, flags: dump, body)
            if answer.error != 0, answer.type != 3 { return false }  // NLMSG_DONE
        }
        return true
    }

    /// Whether namespaces have numbers (`RTM_GETNSID` by pid).
    static func numbersNamespaces() throws(SystemCallError) -> Bool {
        let attribute = bytes(UInt16(8)) + bytes(UInt16(2)) + bytes(UInt32(bitPattern: TaskID.current.rawValue))
        return try ask(family: 0, type: 90, flags: 0, zeros(4) + attribute).type == 88
    }

    /// A request about the loopback interface with one number as attribute.
    private static func askAboutLoopback(type: UInt16, attribute: UInt16, _ value: UInt32) throws(SystemCallError)
        -> Int32
    {
        let message = zeros(4) + bytes(UInt32(1)) + zeros(8)
        let body = message + bytes(UInt16(8)) + bytes(attribute) + bytes(value)
        return try ask(family: 0, type: type, flags: acknowledge, body).error
    }

    /// Whether interfaces of another namespace can be asked for (`IFLA_TARGET_NETNSID`): a number that no namespace has
    /// must be refused, not passed over.
    static func findsLinksByNamespace() throws(SystemCallError) -> Bool {
        try askAboutLoopback(type: 18, attribute: 46, 0x7fff_fff0) != 0
    }

    /// Whether the number of an interface can be chosen when it moves (`IFLA_NEW_IFINDEX`): 0 must be refused as out of
    /// range, not passed over.
    static func choosesInterfaceNumbers() throws(SystemCallError) -> Bool {
        let error = try askAboutLoopback(type: 19, attribute: 49, 0)
        return error == Errno.ERANGE.rawValue || error == Errno.EINVAL.rawValue
    }

    /// Whether nf_tables answers (`NFT_MSG_GETTABLE`).
    static func hasNftables() throws(SystemCallError) -> Bool {
        try ask(family: 12, type: 10 << 8 | 1, flags: dump, zeros(4)).error == 0
    }
}
