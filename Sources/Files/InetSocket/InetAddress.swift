internal import Diagnostics
internal import ImageMessages
internal import Linux

/// An internet address with its port.
struct InetAddress: Hashable {
    /// `AF_INET` 2, `AF_INET6` 10.
    var family: Int32
    var port: UInt16
    /// The device that a link-local address belongs to.
    var scope: UInt32 = 0
    /// The sixteen bytes, or the four of IPv4 and zeros, in network order as they lie in memory.
    private var halves: (UInt64, UInt64)

    /// Of a `sockaddr`; nil if it is of another family.
    init?(_ address: [UInt8]) {
        guard let family = address.load(UInt16.self), let port = address.load(UInt16.self, at: 2) else { return nil }
        self.family = Int32(family)
        self.port = UInt16(bigEndian: port)
        switch family {
        case 2:
            guard let low = address.load(UInt32.self, at: 4) else { return nil }
            halves = (UInt64(low), 0)
        case 10:
            guard let first = address.load(UInt64.self, at: 8), let second = address.load(UInt64.self, at: 16) else {
                return nil
            }
            halves = (first, second)
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
        halves = (UInt64(words[0]), 0)
        if family == 10 {
            halves = (UInt64(words[0]) | UInt64(words[1]) << 32, UInt64(words[2]) | UInt64(words[3]) << 32)
        }
        self.port = UInt16(port)
    }

    /// Of sixteen bytes as the kernel lists them, of which an IPv4 address takes the first four.
    init(family: UInt8, _ bytes: [UInt8], port: UInt16) {
        self.family = Int32(family)
        halves = (bytes.load(UInt64.self) ?? UInt64(bytes.load(UInt32.self) ?? 0), bytes.load(UInt64.self, at: 8) ?? 0)
        if family == 2 { halves = (halves.0 & 0xffff_ffff, 0) }
        self.port = port
    }

    /// Four or sixteen bytes in network order.
    var bytes: [UInt8] {
        family == 2 ? [UInt8](bytesOf: UInt32(truncatingIfNeeded: halves.0)) : [UInt8](bytesOf: halves)
    }

    /// The words of an image.
    var words: [UInt32] {
        let first = UInt32(truncatingIfNeeded: halves.0)
        if family == 2 { return [first] }
        return [
            first, UInt32(halves.0 >> 32), UInt32(truncatingIfNeeded: halves.1), UInt32(halves.1 >> 32),
        ]
    }

    /// A `sockaddr_in` or `sockaddr_in6`, and its length.
    private var asKernel: (words: (UInt64, UInt64, UInt64, UInt64), length: Int) {
        let head = UInt64(UInt16(truncatingIfNeeded: family)) | UInt64(port.bigEndian) << 16
        if family == 2 { return ((head | halves.0 << 32, 0, 0, 0), 16) }
        return ((head, halves.0, halves.1, UInt64(scope)), 28)
    }

    /// A `sockaddr_in` or `sockaddr_in6`.
    var socketAddress: [UInt8] {
        let (words, length) = asKernel
        return Array([UInt8](bytesOf: words).prefix(length))
    }

    static func == (one: InetAddress, two: InetAddress) -> Bool {
        one.family == two.family && one.port == two.port && one.scope == two.scope && one.halves == two.halves
    }

    func hash(into hasher: inout Hasher) {
        hasher.combine(halves.0)
        hasher.combine(halves.1)
        hasher.combine(UInt64(port) << 32 | UInt64(scope))
    }

    /// An IPv4 address as such, where it is written as one of IPv6 (::ffff:a.b.c.d).
    var plain: InetAddress {
        var plain = self
        plain.scope = 0
        guard family == 10, halves.0 == 0, halves.1 & 0xffff_ffff == 0xffff_0000 else { return plain }
        (plain.family, plain.halves) = (2, (halves.1 >> 32, 0))
        return plain
    }

    /// Whether it stands for any address.
    var isAny: Bool { halves == (0, 0) }

    /// Whether it means something only together with a device.
    var needsScope: Bool {
        family == 10 && (halves.0 & 0xc0ff == 0x80fe || halves.0 & 0xff == 0xff && halves.0 >> 8 & 0xf <= 2)
    }

    /// As text, for messages and rules.
    var host: String {
        let bytes = bytes
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
        var (words, length) = asKernel
        try withAddress(of: &words) { (address) throws(SystemCallError) in
            try systemCall(call, Int(socket), address, length)
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
