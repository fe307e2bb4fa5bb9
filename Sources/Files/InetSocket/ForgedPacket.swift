internal import Diagnostics
internal import Linux

/// A TCP packet that we send to a connection of this machine in its peer's name, to bring it into a state that only packets
/// bring about.
struct ForgedPacket {
    private let connection: Connection
    private let scope: UInt32
    private let sequence: UInt32, acknowledged: UInt32, window: UInt16

    /// Describes a packet as its sender sees it.
    init(_ connection: Connection, sequence: UInt32, acknowledges acknowledged: UInt32, window: UInt32) {
        self.connection = connection.plain
        scope = connection.there.scope
        self.sequence = sequence
        self.acknowledged = acknowledged
        self.window = UInt16(clamping: window)
    }

    /// Flags: ACK 16, PSH 8, RST 4, FIN 1.
    static let acknowledgement: UInt8 = 0x10, data: UInt8 = 0x18, end: UInt8 = 0x11, reset: UInt8 = 0x14

    /// How the TCP header of a packet begins: ports and numbers.
    static func numbers(_ connection: Connection, _ sequence: UInt32, _ acknowledged: UInt32) -> [UInt8] {
        big(connection.here.port) + big(connection.there.port) + big(sequence) + big(acknowledged)
    }

    private static func big<T: FixedWidthInteger & BitwiseCopyable>(_ value: T) -> [UInt8] {
        [UInt8](bytesOf: value.bigEndian)
    }

    /// The sum of 16-bit words of RFC 1071.
    private static func sum(_ bytes: [UInt8]) -> UInt16 {
        var total: UInt32 = 0
        for at in stride(from: 0, to: bytes.count - 1, by: 2) {
            total += UInt32(bytes[at]) << 8 | UInt32(bytes[at + 1])
        }
        if bytes.count % 2 != 0 { total += UInt32(bytes.last ?? 0) << 8 }
        while total > 0xffff { total = total & 0xffff + total >> 16 }
        return ~UInt16(total)
    }

    private func segment(_ flags: UInt8, _ data: [UInt8]) -> [UInt8] {
        let big16 = { (value: UInt16) in ForgedPacket.big(value) }
        var bytes = ForgedPacket.numbers(connection, sequence, acknowledged)
        // Five words of header.
        bytes += [5 << 4, flags] + big16(window) + [0, 0, 0, 0] + data
        let length = UInt32(bytes.count)
        let pseudo = connection.here.bytes + connection.there.bytes + ForgedPacket.big(length) + [0, 0, 0, 6]
        let check = big16(ForgedPacket.sum(pseudo + bytes))
        (bytes[16], bytes[17]) = (check[0], check[1])
        return bytes
    }

    /// The packet with its header.
    private func packet(_ flags: UInt8, _ data: [UInt8]) -> [UInt8] {
        let body = segment(flags, data)
        if connection.here.family == 2 {
            // Version 4, five words; the kernel adds length, number and checksum.
            let head: [UInt8] = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]
            return head + connection.here.bytes + connection.there.bytes + body
        }
        return [0x60, 0, 0, 0] + ForgedPacket.big(UInt16(body.count)) + [6, 64] + connection.here.bytes
            + connection.there.bytes + body
    }

    /// Sends it to this machine itself.
    func send(flags: UInt8, _ data: [UInt8] = []) throws(Failure) {
        let bytes = packet(flags, data)
        var target = connection.there
        (target.port, target.scope) = (0, scope)
        try attempt("send a packet in the name of the connection's peer") { () throws(SystemCallError) in
            // SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW: with headers of ours.
            let raw = Descriptor(
                owning: Int32(try systemCall(.socket, Int(target.family), 3 | 0o2000000, 255)))
            try setSocketOption(raw.number, 36, Int32(NetworkLock.passingMark))  // SO_MARK
            let address = target.socketAddress
            try bytes.withConstantAddress { (data, count) throws(SystemCallError) in
                try address.withConstantAddress { (address, length) throws(SystemCallError) in
                    try systemCall(.sendto, Int(raw.number), data, count, 0, address, length)
                }
            }
        }
    }
}
