public import Linux

/// What the kernel tells of packet sockets (`packet_diag`).
public struct PacketDiagnosis: Sendable {
    /// The protocol that is received, in host order.
    public var code: UInt16
    /// Device, version of the rings' frames, room before each packet, longest packet for a copy, kind of time stamps.
    public var device: UInt32, version: UInt32, reserve: UInt32, copyThreshold: UInt32, timestamp: UInt32
    /// `PDI_AUXDATA` 2, `PDI_ORIGDEV` 4, `PDI_VNETHDR` 8, `PDI_LOSS` 16.
    public var flags: UInt32
    /// Memberships: device, count, kind, address.
    public var memberships: [(device: UInt32, count: UInt32, kind: UInt16, address: [UInt8])]
    /// Seven numbers of a ring each: block size and count, frame size and count, timeout, private size, features.
    public var receiving: [UInt32]?, sending: [UInt32]?
    /// The group that packets are distributed over.
    public var fanout: UInt32?

    /// All packet sockets by inode.
    public static func list() throws(SystemCallError) -> [UInt32: PacketDiagnosis] {
        var found: [UInt32: PacketDiagnosis] = [:]
        // Information, memberships, rings, fanout.
        let request = [17, 0, 0, 0] + [UInt8](bytesOf: UInt32(0)) + [UInt8](bytesOf: UInt32(0xf)) + zeros(8)
        try NetlinkConnection(4).list(20, request) { body in
            guard let inode = body.load(UInt32.self, at: 4), let one = PacketDiagnosis(body) else { return }
            found[inode] = one
        }
        return found
    }

    private static func zeros(_ count: Int) -> [UInt8] { .init(repeating: 0, count: count) }

    private init?(_ body: [UInt8]) {
        let more = NetlinkBytes.attributes(body, from: 16)
        guard let code = body.load(UInt16.self, at: 2), let facts = more[0], facts.count >= 24 else { return nil }
        func word(_ index: Int) -> UInt32 { facts.load(UInt32.self, at: 4 * index) ?? 0 }
        self.code = code
        (device, version, reserve) = (word(0), word(1), word(2))
        (copyThreshold, timestamp, flags) = (word(3), word(4), word(5))
        memberships = []
        let list = more[1] ?? []
        for at in stride(from: 0, to: list.count - 43, by: 44) {
            let length = min(Int(list.load(UInt16.self, at: at + 10) ?? 0), 32)
            memberships.append(
                (
                    list.load(UInt32.self, at: at) ?? 0, list.load(UInt32.self, at: at + 4) ?? 0,
                    list.load(UInt16.self, at: at + 8) ?? 0, Array(list[(at + 12)..<(at + 12 + length)])
                ))
        }
        receiving = PacketDiagnosis.ring(more[2])
        sending = PacketDiagnosis.ring(more[3])
        fanout = more[4]?.load(UInt32.self)
    }

    private static func ring(_ bytes: [UInt8]?) -> [UInt32]? {
        guard let bytes, bytes.count >= 28 else { return nil }
        return (0..<7).compactMap { bytes.load(UInt32.self, at: 4 * $0) }
    }
}

/// What the kernel tells of netlink sockets (`netlink_diag`).
public struct NetlinkDiagnosis: Sendable {
    /// `NETLINK_CONNECTED` is 1.
    public var state: UInt8
    /// Own address, and that of the other end.
    public var port: UInt32, peerPort: UInt32, peerGroup: UInt32
    /// The groups, a bit for each, the first in the lowest bit of the first word.
    public var groups: [UInt32]

    /// All netlink sockets by inode.
    public static func list() throws(SystemCallError) -> [UInt32: NetlinkDiagnosis] {
        var found: [UInt32: NetlinkDiagnosis] = [:]
        // All protocols; groups.
        let request =
            [16, 255, 0, 0] + [UInt8](bytesOf: UInt32(0)) + [UInt8](bytesOf: UInt32(2))
            + [UInt8](repeating: 0, count: 8)
        try NetlinkConnection(4).list(20, request) { body in
            guard body.count >= 28, let inode = body.load(UInt32.self, at: 16) else { return }
            let groups = NetlinkBytes.attributes(body, from: 28)[1] ?? []
            found[inode] = NetlinkDiagnosis(
                state: body[3], port: body.load(UInt32.self, at: 4) ?? 0, peerPort: body.load(UInt32.self, at: 8) ?? 0,
                peerGroup: body.load(UInt32.self, at: 12) ?? 0,
                groups: stride(from: 0, to: groups.count - 3, by: 4).compactMap { groups.load(UInt32.self, at: $0) })
        }
        return found
    }
}
