internal import Diagnostics
internal import Linux

/// A message of rtnetlink(7), without its header.
struct RouteMessage {
    /// `RTM_NEWLINK` 16, `RTM_NEWADDR` 20, `RTM_NEWROUTE` 24.
    var type: UInt16
    /// Structure and attributes.
    var body: [UInt8]

    /// The attributes behind a structure of some length, by type.
    func attributes(behind length: Int) -> [UInt16: [UInt8]] { RouteMessage.attributes(body.dropFirst(length)) }

    /// The attributes in some bytes, by type.
    static func attributes(_ bytes: some Sequence<UInt8>) -> [UInt16: [UInt8]] {
        let bytes = Array(bytes)
        var found: [UInt16: [UInt8]] = [:]
        var at = 0
        while let length = bytes.load(UInt16.self, at: at).map({ Int($0) }), length >= 4, length <= bytes.count - at,
            let type = bytes.load(UInt16.self, at: at + 2)
        {
            found[type & 0x3fff] = Array(bytes[(at + 4)..<(at + length)])
            at += (length + 3) & ~3
        }
        return found
    }
}

/// A socket to the kernel's network configuration (`NETLINK_ROUTE`), in our own network namespace.
struct RouteSocket: ~Copyable {
    private let socket: Descriptor

    init() throws(SystemCallError) {
        socket = Descriptor(owning: Int32(try systemCall(.socket, 16, 3 | 0o2000000, 0)))
    }

    /// Lists objects of a type (`RTM_GETLINK` 18, `RTM_GETADDR` 22, `RTM_GETROUTE` 26).
    func list(_ type: UInt16) throws(SystemCallError) -> [RouteMessage] {
        // NLM_F_REQUEST, NLM_F_DUMP; a structure for any family.
        try send(type, flags: 0x301, [UInt8](repeating: 0, count: 16))
        var found: [RouteMessage] = []
        while true {
            for message in try receive() {
                if message.type == 3 { return found }  // NLMSG_DONE
                if message.type == 2 { throw try RouteSocket.error(in: message) }
                found.append(message)
            }
        }
    }

    /// Creates an object, or does nothing if it is there; or removes one.
    func change(_ message: RouteMessage) throws(SystemCallError) {
        try send(message.type, flags: 0x505, message.body)  // NLM_F_REQUEST, _ACK, _REPLACE, _CREATE
        for answer in try receive() where answer.type == 2 {
            let error = answer.body.load(Int32.self) ?? 0
            if error != 0, error != -Errno.EEXIST.rawValue { throw try RouteSocket.error(in: answer) }
        }
    }

    private static func error(in message: RouteMessage) throws(SystemCallError) -> SystemCallError {
        SystemCallError(.sendmsg, Errno(rawValue: -(message.body.load(Int32.self) ?? -5)))
    }

    private func send(_ type: UInt16, flags: UInt16, _ body: [UInt8]) throws(SystemCallError) {
        var request = [UInt8](bytesOf: UInt32(16 + body.count))
        request += [UInt8](bytesOf: type)
        request += [UInt8](bytesOf: flags)
        request += [UInt8](repeating: 0, count: 8)
        request += body
        let number = Int(socket.number)
        try request.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.sendto, number, address, count, 0, 0, 0)
        }
    }

    private func receive() throws(SystemCallError) -> [RouteMessage] {
        var room = [UInt8](repeating: 0, count: 65536)
        let number = Int(socket.number)
        let got = try room.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.recvfrom, number, address, count, 0, 0, 0)
        }
        var found: [RouteMessage] = []
        var at = 0
        while let length = room.load(UInt32.self, at: at).map({ Int($0) }), length >= 16, length <= got - at,
            let type = room.load(UInt16.self, at: at + 4)
        {
            found.append(RouteMessage(type: type, body: Array(room[(at + 16)..<(at + length)])))
            at += (length + 3) & ~3
        }
        return found
    }
}
