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
        let check = big16(ForgedPacket.check(bytes, 6, connection))
        (bytes[16], bytes[17]) = (check[0], check[1])
        return bytes
    }

    /// The checksum of what is in a packet.
    private static func check(_ bytes: [UInt8], _ code: UInt8, _ ends: Connection) -> UInt16 {
        sum(ends.here.bytes + ends.there.bytes + big(UInt32(bytes.count)) + [0, 0, 0, code] + bytes)
    }

    /// A packet with its header.
    private static func packet(_ body: [UInt8], _ code: UInt8, _ ends: Connection) -> [UInt8] {
        if ends.here.family == 2 {
            // Version 4, five words; the kernel adds length, number and checksum.
            return [0x45, 0, 0, 0, 0, 0, 0, 0, 64, code, 0, 0] + ends.here.bytes + ends.there.bytes + body
        }
        return [0x60, 0, 0, 0] + big(UInt16(body.count)) + [code, 64] + ends.here.bytes + ends.there.bytes + body
    }

    /// Sends it to this machine itself.
    func send(flags: UInt8, _ data: [UInt8] = []) throws(Failure) {
        try attempt("send a packet in the name of the connection's peer") { () throws(SystemCallError) in
            try ForgedPacket.send(ForgedPacket.packet(segment(flags, data), 6, connection), to: connection.there, scope)
        }
    }

    /// Sends a datagram of UDP or UDP-Lite to this machine itself.
    static func send(
        datagram data: [UInt8], _ code: UInt8, _ from: InetAddress, _ to: InetAddress
    ) throws(SystemCallError) {
        guard data.count + 48 <= 65535 else { throw SystemCallError(.sendto, .EMSGSIZE) }
        // Of UDP-Lite, 0 says that the checksum covers all.
        let length = code == 17 ? UInt16(data.count + 8) : 0
        var bytes = big(from.port) + big(to.port) + big(length) + [0, 0] + data
        let ends = Connection(here: from, there: to)
        let sum = check(bytes, code, ends)
        let check = big(sum == 0 ? 0xffff : sum)
        (bytes[6], bytes[7]) = (check[0], check[1])
        try send(packet(bytes, code, ends), to: to, 0)
    }

    private static func send(_ bytes: [UInt8], to end: InetAddress, _ scope: UInt32) throws(SystemCallError) {
        var target = end
        (target.port, target.scope) = (0, scope)
        // SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW: with headers of ours.
        let raw = Descriptor(owning: Int32(try systemCall(.socket, Int(target.family), 3 | 0o2000000, 255)))
        try setSocketOption(raw.number, 36, Int32(NetworkLock.passingMark))  // SO_MARK
        let address = target.socketAddress
        try bytes.withConstantAddress { (data, count) throws(SystemCallError) in
            try address.withConstantAddress { (address, length) throws(SystemCallError) in
                try systemCall(.sendto, Int(raw.number), data, count, 0, address, length)
            }
        }
    }
}
