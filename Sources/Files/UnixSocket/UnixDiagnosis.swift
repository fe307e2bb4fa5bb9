internal import Diagnostics
internal import Linux

/// What the kernel tells of a UNIX socket (`unix_diag` over `NETLINK_SOCK_DIAG`).
struct UnixDiagnosis {
    /// The socket.
    var inode: UInt32 = 0
    /// `SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_SEQPACKET`.
    var type: UInt8 = 0
    /// `TCP_ESTABLISHED` 1, `TCP_CLOSE` 7, `TCP_LISTEN` 10.
    var state: UInt8 = 0
    /// The address as in `sun_path`.
    var name: [UInt8] = []
    /// Inode and device (the kernel's encoding) of the file that it is bound to.
    var file: (inode: UInt32, device: UInt32)?
    /// The socket at the other end, 0 if there is none or it waits to be accepted.
    var peer: UInt32 = 0
    /// The sockets whose connections wait to be accepted, in their order. Closed ones are named still.
    var waiting: [UInt32] = []
    /// For listeners the backlog.
    var backlog: UInt32 = 0
    /// Bytes that wait to be received, for datagram sockets those of the first packet.
    var queued: UInt32 = 0
    /// Memory that what was sent and not yet received takes; nothing for listeners.
    var underWay: UInt32 = 0
    /// `RCV_SHUTDOWN` 1, `SEND_SHUTDOWN` 2.
    var shutdown: UInt8 = 0

    /// Reads the message that begins at an offset and has a length.
    fileprivate init(_ answer: [UInt8], _ start: Int, _ count: Int) {
        type = answer.load(UInt8.self, at: start + 17) ?? 0
        state = answer.load(UInt8.self, at: start + 18) ?? 0
        inode = answer.load(UInt32.self, at: start + 20) ?? 0
        var at = start + 32
        let end = start + count
        while let length = answer.load(UInt16.self, at: at).map({ Int($0) }),
            let kind = answer.load(UInt16.self, at: at + 2),
            length >= 4, at + length <= end
        {
            let value = at + 4
            switch kind {
            case 0: name = Array(answer[value..<(at + length)])
            case 1:
                file = (answer.load(UInt32.self, at: value) ?? 0, answer.load(UInt32.self, at: value + 4) ?? 0)
            case 2: peer = answer.load(UInt32.self, at: value) ?? 0
            case 3:
                waiting = (0..<((length - 4) / 4)).map { answer.load(UInt32.self, at: value + 4 * $0) ?? 0 }
            case 4:
                queued = answer.load(UInt32.self, at: value) ?? 0
                let second = answer.load(UInt32.self, at: value + 4) ?? 0
                if state == 10 { backlog = second } else { underWay = second }
            case 6: shutdown = answer.load(UInt8.self, at: value) ?? 0
            default: break
            }
            at += (length + 3) & ~3
        }
    }
}

/// What the kernel tells of many sockets: the first are asked for singly, then all of the namespace at once.
final class UnixDiagnoses {
    private var known: [UInt32: UnixDiagnosis] = [:]
    private var asked = 0
    private var hasAll = false
    private var socket: Int32 = -1
    private var room = [UInt8](repeating: 0, count: 1 << 16)

    /// A host may have many sockets that are none of ours.
    private static let mostSingle = 16

    deinit { if socket >= 0 { _ = try? systemCall(.close, Int(socket)) } }

    /// A socket's diagnosis, nil if it does not exist in this network namespace.
    ///
    /// - Parameter amongMany: others will be asked for.
    func of(_ inode: UInt32, amongMany: Bool = false) throws(Failure) -> UnixDiagnosis? {
        if let found = known[inode] { return found }
        if !hasAll, amongMany || asked >= UnixDiagnoses.mostSingle { try askAll() }
        if let found = known[inode] { return found }
        asked += 1
        try attempt("ask the kernel about a socket") { () throws(SystemCallError) in
            try request(inode, flags: 1)  // NLM_F_REQUEST
            _ = try receive()
        }
        return known[inode]
    }

    /// The socket that is bound to a file, if one is.
    func bound(to status: FileStatus) throws(Failure) -> UnixDiagnosis? {
        try askAll()
        return known.values.first {
            $0.file?.inode == UInt32(truncatingIfNeeded: status.inode) && $0.file?.device == status.kernelDevice
        }
    }

    private func askAll() throws(Failure) {
        hasAll = true
        known = [:]
        try attempt("ask the kernel about all sockets") { () throws(SystemCallError) in
            try request(0, flags: 0x301)  // NLM_F_REQUEST | NLM_F_DUMP
            while try receive() {}
        }
    }

    private func request(_ inode: UInt32, flags: UInt16) throws(SystemCallError) {
        // AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG
        if socket < 0 { socket = Int32(try systemCall(.socket, 16, 3 | 0o2000000, 4)) }
        var request: [UInt8] = []
        request += [UInt8](bytesOf: UInt32(40))
        request += [UInt8](bytesOf: UInt16(20))  // SOCK_DIAG_BY_FAMILY
        request += [UInt8](bytesOf: flags)
        request += [UInt8](repeating: 0, count: 8)
        request += [UInt8](bytesOf: UInt32(1))  // AF_UNIX
        request += [UInt8](bytesOf: UInt32.max)  // all states
        request += [UInt8](bytesOf: inode)
        request += [UInt8](bytesOf: UInt32(0x1f))  // name, vfs, peer, icons, rqlen
        request += [UInt8](bytesOf: UInt64.max)  // no cookie
        let number = Int(socket)
        try request.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.sendto, number, address, count, 0, 0, 0)
        }
    }

    /// Takes an answer in. Returns whether more follow.
    private func receive() throws(SystemCallError) -> Bool {
        let number = Int(socket)
        // MSG_TRUNC | MSG_PEEK: a listener with many connections waiting makes a large message. Those of a list of all
        // sockets are never larger than what we receive into.
        if !hasAll {
            let needed = try room.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.recvfrom, number, address, count, 0x22, 0, 0)
            }
            if needed > room.count { room = [UInt8](repeating: 0, count: needed) }
        }
        let got = try room.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.recvfrom, number, address, count, 0, 0, 0)
        }
        var at = 0
        while at + 16 <= got, let length = room.load(UInt32.self, at: at).map({ Int($0) }),
            let type = room.load(UInt16.self, at: at + 4), length >= 16, at + length <= got
        {
            if type == 2 || type == 3 { return false }  // NLMSG_ERROR, NLMSG_DONE
            if type == 20, length >= 32 {
                let found = UnixDiagnosis(room, at, length)
                known[found.inode] = found
            }
            at += (length + 3) & ~3
        }
        return true
    }
}
