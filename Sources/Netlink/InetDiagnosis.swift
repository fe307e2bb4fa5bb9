public import Linux

/// What the kernel tells of internet sockets (`inet_diag` over `NETLINK_SOCK_DIAG`). Sockets without an address are not
/// listed.
public struct InetDiagnosis: Sendable {
    /// `AF_INET` 2, `AF_INET6` 10.
    public var family: UInt8
    /// The socket's inode; 0 if no descriptor has it: it was closed, or waits to be accepted.
    public var inode: UInt32
    /// `TCP_ESTABLISHED` 1 … `TCP_CLOSING` 11.
    public var state: UInt8
    /// Ports in host order, and four words of address each as in memory.
    public var sourcePort: UInt16, peerPort: UInt16, source: [UInt8], peer: [UInt8]
    /// Bytes to be received; for listeners connections that wait to be accepted.
    public var receiving: UInt32
    /// Bytes to be sent; for listeners the backlog.
    public var sending: UInt32
    /// `RCV_SHUTDOWN` 1, `SEND_SHUTDOWN` 2.
    public var shutdown: UInt8
    /// Whether TCP MD5 keys are set, if that was asked for.
    public var hasKeys: Bool

    /// All sockets of a protocol by inode, of both families.
    ///
    /// - Parameter states: a bit for each state that is of interest.
    public static func list(_ code: UInt8, states: UInt32 = .max) throws(SystemCallError) -> [UInt32: InetDiagnosis] {
        var found: [UInt32: InetDiagnosis] = [:]
        try forEach(code, states) { found[$0.inode] = $0 }
        return found
    }

    /// Calls for each socket of a protocol, also for those that have no inode.
    ///
    /// - Parameter asksForKeys: whether TCP MD5 keys are of interest, which costs some more.
    public static func forEach(
        _ code: UInt8, _ states: UInt32 = .max, asksForKeys: Bool = false, _ body: (InetDiagnosis) -> Void
    ) throws(SystemCallError) {
        let kernel = try NetlinkConnection(4)
        // INET_DIAG_SHUTDOWN 8. Keys come with INET_DIAG_INFO 2 only.
        let wanted: UInt8 = 1 << 7 | (asksForKeys ? 1 << 1 : 0)
        for family: UInt8 in [2, 10] {
            let request = [family, code, wanted, 0] + [UInt8](bytesOf: states) + [UInt8](repeating: 0, count: 48)
            do throws(SystemCallError) {
                try kernel.list(20, request) { answer in
                    if let one = InetDiagnosis(answer) { body(one) }
                }
            } catch {
                // A kernel without IPv6 has no such sockets.
                if family == 2 { throw error }
            }
        }
    }

    private init?(_ body: [UInt8]) {
        guard body.count >= 72, let here = body.load(UInt16.self, at: 4), let there = body.load(UInt16.self, at: 6),
            let receiving = body.load(UInt32.self, at: 56), let sending = body.load(UInt32.self, at: 60),
            let inode = body.load(UInt32.self, at: 68)
        else { return nil }
        self.inode = inode
        family = body[0]
        (state, sourcePort, peerPort) = (body[1], UInt16(bigEndian: here), UInt16(bigEndian: there))
        (source, peer) = (Array(body[8..<24]), Array(body[24..<40]))
        (self.receiving, self.sending) = (receiving, sending)
        (shutdown, hasKeys) = (0, false)
        var at = 72
        while let length = body.load(UInt16.self, at: at).map({ Int($0) }), length >= 4, at + length <= body.count,
            let kind = body.load(UInt16.self, at: at + 2)
        {
            switch kind & 0x3fff {
            case 8 where length > 4: shutdown = body[at + 4]  // INET_DIAG_SHUTDOWN
            case 18 where length > 4: hasKeys = true  // INET_DIAG_MD5SIG
            default: break
            }
            at += (length + 3) & ~3
        }
    }
}
