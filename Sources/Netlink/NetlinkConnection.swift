public import Linux

/// A socket to a part of the kernel that speaks netlink.
public struct NetlinkConnection: ~Copyable {
    private let socket: Descriptor

    /// Opens one.
    ///
    /// - Parameter family: `NETLINK_SOCK_DIAG` (4), `NETLINK_NETFILTER` (12) and the like.
    public init(_ family: Int) throws(SystemCallError) {
        // AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC
        socket = Descriptor(owning: Int32(try systemCall(.socket, 16, 3 | 0o2000000, family)))
        // SO_SNDBUFFORCE: transactions are sent in one piece. SO_RCVBUFFORCE.
        _ = try? setSocketOption(socket.number, 32, 8 << 20)
        _ = try? setSocketOption(socket.number, 33, 4 << 20)
    }

    /// Sends messages in one piece.
    public func send(_ bytes: [UInt8]) throws(SystemCallError) {
        let number = Int(socket.number)
        try bytes.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.sendto, number, address, count, 0, 0, 0)
        }
    }

    /// Receives the messages of one datagram.
    ///
    /// - Parameter waits: otherwise EAGAIN is thrown if there are none.
    public func receive(waits: Bool = true) throws(SystemCallError) -> [NetlinkAnswer] {
        let number = Int(socket.number)
        var room = [UInt8](repeating: 0, count: 1 << 16)
        let got = try room.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.recvfrom, number, address, count, waits ? 0 : 0x40, 0, 0)  // MSG_DONTWAIT
        }
        var found: [NetlinkAnswer] = []
        var at = 0
        while at + 16 <= got, let length = room.load(UInt32.self, at: at).map({ Int($0) }), length >= 16,
            at + length <= got
        {
            found.append(
                NetlinkAnswer(
                    type: room.load(UInt16.self, at: at + 4) ?? 0, sequence: room.load(UInt32.self, at: at + 8) ?? 0,
                    body: Array(room[(at + 16)..<(at + length)])))
            at += (length + 3) & ~3
        }
        return found
    }

    /// Asks for a list and calls `body` with the body of every message of the answer.
    public func list(
        _ type: UInt16, _ request: [UInt8], _ body: ([UInt8]) -> Void
    ) throws(SystemCallError) {
        try forEachAnswer(type, request) { body($0.body) }
    }

    /// Asks for a list and returns all messages of the answer.
    public func list(_ type: UInt16, _ request: [UInt8]) throws(SystemCallError) -> [NetlinkAnswer] {
        var found: [NetlinkAnswer] = []
        try forEachAnswer(type, request) { found.append($0) }
        return found
    }

    private func forEachAnswer(
        _ type: UInt16, _ request: [UInt8], _ body: (NetlinkAnswer) -> Void
    ) throws(SystemCallError) {
        try send(NetlinkBytes.message(type: type, flags: 0x301, sequence: 1, request))  // REQUEST | DUMP
        while true {
            for answer in try receive() {
                if answer.type == 3 { return }  // NLMSG_DONE
                if let error = answer.error { throw SystemCallError(.sendto, error) }
                body(answer)
            }
        }
    }

    /// Has something done, and waits until it is.
    ///
    /// - Parameter flags: beyond `NLM_F_REQUEST` and `NLM_F_ACK`: `NLM_F_REPLACE` 0x100, `NLM_F_CREATE` 0x400.
    public func change(_ type: UInt16, flags: UInt16 = 0, _ request: [UInt8]) throws(SystemCallError) {
        try send(NetlinkBytes.message(type: type, flags: 5 | flags, sequence: 1, request))
        while true {
            for answer in try receive() where answer.type == 2 {
                if let error = answer.error { throw SystemCallError(.sendto, error) }
                return
            }
        }
    }
}

/// A message from the kernel.
public struct NetlinkAnswer: Hashable, Sendable {
    /// Its type.
    public var type: UInt16
    /// The number of the request that it answers.
    public var sequence: UInt32
    /// What follows the header.
    public var body: [UInt8]

    /// A message as an image has it.
    public init(type: UInt16, sequence: UInt32 = 0, body: [UInt8]) {
        (self.type, self.sequence, self.body) = (type, sequence, body)
    }

    /// The messages in some bytes, each with its header; nil if they are damaged.
    public static func all(in bytes: [UInt8], from start: Int = 0) -> [NetlinkAnswer]? {
        var found: [NetlinkAnswer] = []
        var at = start
        while at < bytes.count {
            guard let length = bytes.load(UInt32.self, at: at).map({ Int($0) }), length >= 16,
                length <= bytes.count - at, let type = bytes.load(UInt16.self, at: at + 4)
            else { return nil }
            found.append(NetlinkAnswer(type: type, body: Array(bytes[(at + 16)..<(at + length)])))
            at += (length + 3) & ~3
        }
        return found
    }

    /// The error of an `NLMSG_ERROR`; nil for other messages and for acknowledgements.
    public var error: Errno? {
        guard type == 2, let code = body.load(Int32.self), code != 0 else { return nil }
        return Errno(rawValue: -code)
    }
}

/// Messages and attributes under construction.
public struct NetlinkBytes: Sendable {
    /// The bytes so far.
    public private(set) var bytes: [UInt8] = []

    /// Nothing.
    public init() {}

    /// A whole message.
    public static func message(type: UInt16, flags: UInt16, sequence: UInt32, _ body: [UInt8]) -> [UInt8] {
        [UInt8](bytesOf: UInt32(16 + body.count)) + [UInt8](bytesOf: type) + [UInt8](bytesOf: flags)
            + [UInt8](bytesOf: sequence) + [UInt8](repeating: 0, count: 4) + body
            + [UInt8](repeating: 0, count: (4 - body.count & 3) & 3)
    }

    /// Appends bytes without a header.
    public mutating func append(_ raw: some Collection<UInt8>) { bytes += raw }

    /// Appends an attribute.
    public mutating func append(_ attribute: UInt16, _ value: [UInt8]) {
        bytes += [UInt8](bytesOf: UInt16(4 + value.count)) + [UInt8](bytesOf: attribute) + value
        bytes += [UInt8](repeating: 0, count: (4 - value.count & 3) & 3)
    }

    /// Appends a string with its final zero.
    public mutating func append(_ attribute: UInt16, text: String) { append(attribute, Array(text.utf8) + [0]) }

    /// Appends a number in network order, as netfilter wants it.
    public mutating func append(_ attribute: UInt16, number: UInt32) {
        append(attribute, [UInt8](bytesOf: number.bigEndian))
    }

    /// Appends an attribute made of attributes.
    public mutating func nest(_ attribute: UInt16, _ body: (inout NetlinkBytes) -> Void) {
        var inner = NetlinkBytes()
        body(&inner)
        append(attribute | 0x8000, inner.bytes)  // NLA_F_NESTED
    }

    /// The attributes in some bytes from an offset on.
    public static func attributes(_ bytes: [UInt8], from start: Int) -> [UInt16: [UInt8]] {
        var found: [UInt16: [UInt8]] = [:]
        var at = start
        while let length = bytes.load(UInt16.self, at: at).map({ Int($0) }), length >= 4, at + length <= bytes.count,
            let kind = bytes.load(UInt16.self, at: at + 2)
        {
            found[kind & 0x3fff] = Array(bytes[(at + 4)..<(at + length)])
            at += (length + 3) & ~3
        }
        return found
    }
}
