internal import Diagnostics
internal import ImageMessages
internal import Linux

/// An internet address with its port.
struct InetAddress: Hashable {
    /// `AF_INET` 2, `AF_INET6` 10.
    var family: Int32
    /// Four or sixteen bytes in network order.
    var bytes: [UInt8]
    var port: UInt16
    /// The device that a link-local address belongs to.
    var scope: UInt32 = 0

    /// Of a `sockaddr`; nil if it is of another family.
    init?(_ address: [UInt8]) {
        guard let family = address.load(UInt16.self), let port = address.load(UInt16.self, at: 2) else { return nil }
        self.family = Int32(family)
        self.port = UInt16(bigEndian: port)
        switch family {
        case 2 where address.count >= 8: bytes = Array(address[4..<8])
        case 10 where address.count >= 24:
            bytes = Array(address[8..<24])
            scope = address.load(UInt32.self, at: 24) ?? 0
        default: return nil
        }
    }

    /// Of an image: words as in memory.
    init(family: UInt32, words: [UInt32], port: UInt32) throws(Failure) {
        let count = family == 2 ? 1 : 4
        guard family == 2 || family == 10, words.count >= count, port <= UInt16.max else {
            throw Failure(.corruptImage, "a socket has an impossible address")
        }
        self.family = Int32(family)
        bytes = words.prefix(count).flatMap { [UInt8](bytesOf: $0) }
        self.port = UInt16(port)
    }

    /// Of four words as the kernel lists them.
    init(family: UInt8, _ words: [UInt8], port: UInt16) {
        self.family = Int32(family)
        bytes = Array(words.prefix(family == 2 ? 4 : 16))
        self.port = port
    }

    /// The words of an image.
    var words: [UInt32] { stride(from: 0, to: bytes.count, by: 4).compactMap { bytes.load(UInt32.self, at: $0) } }

    /// A `sockaddr_in` or `sockaddr_in6`.
    var socketAddress: [UInt8] {
        let head = [UInt8](bytesOf: UInt16(family)) + [UInt8](bytesOf: port.bigEndian)
        if family == 2 { return head + bytes + [UInt8](repeating: 0, count: 8) }
        return head + [UInt8](repeating: 0, count: 4) + bytes + [UInt8](bytesOf: scope)
    }

    /// An IPv4 address as such, where it is written as one of IPv6 (::ffff:a.b.c.d).
    var plain: InetAddress {
        var plain = self
        plain.scope = 0
        guard family == 10, bytes.prefix(12) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] else { return plain }
        (plain.family, plain.bytes) = (2, Array(bytes.suffix(4)))
        return plain
    }

    /// Whether it stands for any address.
    var isAny: Bool { bytes.allSatisfy { $0 == 0 } }

    /// Whether it means something only together with a device.
    var needsScope: Bool {
        family == 10 && (bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80 || bytes[0] == 0xff && bytes[1] & 0xf <= 2)
    }

    /// As text, for messages and rules.
    var host: String {
        if family == 2 { return bytes.map { "\($0)" }.joined(separator: ".") }
        return stride(from: 0, to: 16, by: 2)
            .map { String(UInt16(bytes[$0]) << 8 | UInt16(bytes[$0 + 1]), radix: 16) }.joined(separator: ":")
    }

    /// Address and port, for messages.
    var text: String { family == 2 ? "\(host):\(port)" : "[\(host)]:\(port)" }

    /// The address of a socket's own end; nil if it has none.
    static func local(of socket: Int32) throws(SystemCallError) -> InetAddress? {
        var room = [UInt8](repeating: 0, count: 32)
        var length: UInt32 = 28
        try room.withAddress { (address, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockname, Int(socket), address, length)
            }
        }
        return InetAddress(room)
    }

    /// The address of the other end, also of one that is closed by now (`SO_PEERNAME`).
    static func peer(of socket: Int32, family: Int32) throws(SystemCallError) -> InetAddress? {
        var room = [UInt8](repeating: 0, count: 32)
        // The kernel refuses to answer into more room than it needs.
        var length: UInt32 = family == 2 ? 16 : 28
        do throws(SystemCallError) {
            try room.withAddress { (address, _) throws(SystemCallError) in
                try withAddress(of: &length) { (length) throws(SystemCallError) in
                    try systemCall(.getsockopt, Int(socket), 1, 28, address, length)
                }
            }
        } catch {
            if error.errno == .ENOTCONN { return nil }
            throw error
        }
        return InetAddress(room)
    }

    /// Calls `bind` or `connect`.
    func give(to socket: Int32, by call: SystemCall) throws(SystemCallError) {
        try socketAddress.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(call, Int(socket), address, count)
        }
    }
}

/// The two ends of a connection, as one of them sees it.
struct Connection: Hashable {
    var here: InetAddress, there: InetAddress

    /// The same as the other end sees it.
    var reversed: Connection { Connection(here: there, there: here) }

    /// The same with IPv4 addresses as such.
    var plain: Connection { Connection(here: here.plain, there: there.plain) }

    /// For messages.
    var text: String { "\(here.plain.text) to \(there.plain.text)" }
}

/// Names and numbers of network devices, asked over a socket.
enum NetworkDevice {
    /// The name of a device, without its final zero.
    static func name(_ index: UInt32, _ socket: Int32) throws(SystemCallError) -> [UInt8] {
        var request = [UInt8](repeating: 0, count: 16) + [UInt8](bytesOf: index) + [UInt8](repeating: 0, count: 20)
        try request.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.ioctl, Int(socket), 0x8910, address)  // SIOCGIFNAME
        }
        return Array(request.prefix(16).prefix { $0 != 0 })
    }

    /// The number of a device.
    static func index(_ name: some Collection<UInt8>, _ socket: Int32) throws(Failure) -> UInt32 {
        let name = Array(name.prefix(15).prefix { $0 != 0 })
        var request = name + [UInt8](repeating: 0, count: 40 - name.count)
        try attempt(
            "find the network device \(String(decoding: name, as: UTF8.self))",
            advice: "Restore where there is such a device"
        ) { () throws(SystemCallError) in
            try request.withAddress { (address, _) throws(SystemCallError) in
                try systemCall(.ioctl, Int(socket), 0x8933, address)  // SIOCGIFINDEX
            }
        }
        return request.load(UInt32.self, at: 16) ?? 0
    }
}
