internal import Diagnostics
internal import Linux

/// What the kernel tells of a UNIX socket (`unix_diag` over `NETLINK_SOCK_DIAG`).
struct UnixDiagnosis {
    /// `TCP_ESTABLISHED` 1, `TCP_CLOSE` 7, `TCP_LISTEN` 10.
    var state: UInt8 = 0
    /// The address as in `sun_path`.
    var name: [UInt8] = []
    /// Inode and device (the kernel's encoding) of the file that it is bound to.
    var file: (inode: UInt32, device: UInt32)?
    /// The socket at the other end, 0 if there is none.
    var peer: UInt32 = 0
    /// Connections that wait to be accepted.
    var waiting = 0
    /// For listeners the backlog.
    var backlog: UInt32 = 0
    /// Bytes or packets to be received.
    var queued: UInt32 = 0
    /// `RCV_SHUTDOWN` 1, `SEND_SHUTDOWN` 2.
    var shutdown: UInt8 = 0

    /// Asks for one socket.
    init(inode: UInt32) throws(Failure) {
        let answer = try attempt("ask the kernel about the socket") { () throws(SystemCallError) in
            try UnixDiagnosis.ask(inode)
        }
        guard let type = answer.load(UInt16.self, at: 4), type == 20, let state = answer.load(UInt8.self, at: 18) else {
            let error = answer.load(Int32.self, at: 16) ?? 0
            throw Failure(
                .unsupported, "the kernel does not know the socket: it is of another network namespace",
                cause: error < 0 ? SystemCallError(.recvmsg, Errno(rawValue: -error)) : nil)
        }
        self.state = state
        var at = 32
        while let length = answer.load(UInt16.self, at: at).map({ Int($0) }),
            let kind = answer.load(UInt16.self, at: at + 2),
            length >= 4, at + length <= answer.count
        {
            let value = Array(answer[(at + 4)..<(at + length)])
            switch kind {
            case 0: name = value
            case 1: file = (value.load(UInt32.self) ?? 0, value.load(UInt32.self, at: 4) ?? 0)
            case 2: peer = value.load(UInt32.self) ?? 0
            case 3: waiting = value.count / 4
            case 4:
                queued = value.load(UInt32.self) ?? 0
                backlog = value.load(UInt32.self, at: 4) ?? 0
            case 6: shutdown = value.first ?? 0
            default: break
            }
            at += (length + 3) & ~3
        }
    }

    private static func ask(_ inode: UInt32) throws(SystemCallError) -> [UInt8] {
        let socket = Descriptor(owning: Int32(try systemCall(.socket, 16, 3 | 0o2000000, 4)))
        var request: [UInt8] = []
        request += [UInt8](bytesOf: UInt32(40))
        request += [UInt8](bytesOf: UInt16(20))  // SOCK_DIAG_BY_FAMILY
        request += [UInt8](bytesOf: UInt16(1))  // NLM_F_REQUEST
        request += [UInt8](repeating: 0, count: 8)
        request += [UInt8](bytesOf: UInt32(1))  // AF_UNIX
        request += [UInt8](bytesOf: UInt32.max)  // all states
        request += [UInt8](bytesOf: inode)
        request += [UInt8](bytesOf: UInt32(0x1f))  // name, vfs, peer, icons, rqlen
        request += [UInt8](bytesOf: UInt64.max)  // no cookie
        let number = Int(socket.number)
        try request.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.sendto, number, address, count, 0, 0, 0)
        }
        var room = [UInt8](repeating: 0, count: 65536)
        let got = try room.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.recvfrom, number, address, count, 0, 0, 0)
        }
        return Array(room[..<got])
    }
}
