internal import CLinux

/// Messages with descriptors on UNIX sockets (SCM_RIGHTS).
public enum SocketMessage {
    /// Sends bytes and copies of descriptors of ours, at most 253, in one message.
    public static func send(_ bytes: [UInt8], _ descriptors: [Int32] = [], to socket: Int32) throws(SystemCallError) {
        var control: [UInt8] = []
        if !descriptors.isEmpty {
            control = [UInt8](bytesOf: UInt64(16 + 4 * descriptors.count)) + [UInt8](bytesOf: (Int32(1), Int32(1)))
            for number in descriptors { control += [UInt8](bytesOf: number) }
            while control.count & 7 != 0 { control.append(0) }
        }
        try bytes.withConstantAddress { (bytes, count) throws(SystemCallError) in
            try control.withConstantAddress { (control, room) throws(SystemCallError) in
                _ = try exchange(.sendmsg, socket, bytes, count, control, room, flags: 0x4000)  // MSG_NOSIGNAL
            }
        }
    }

    /// Receives one message of at most `count` bytes. Its descriptors close on exec. No bytes: the end.
    public static func receive(_ count: Int, from socket: Int32) throws(SystemCallError) -> (
        bytes: [UInt8], descriptors: [Int32]
    ) {
        var bytes = [UInt8](repeating: 0, count: count)
        var control = [UInt8](repeating: 0, count: 16 + 4 * 253 + 8)
        let got = try bytes.withAddress { (bytes, count) throws(SystemCallError) in
            try control.withAddress { (control, room) throws(SystemCallError) in
                try exchange(.recvmsg, socket, bytes, count, control, room, flags: 0x4000_0000)  // MSG_CMSG_CLOEXEC
            }
        }
        bytes.removeLast(count - got.count)
        var descriptors: [Int32] = []
        if got.control >= 16, let length = control.load(UInt64.self), length >= 16, length <= UInt64(got.control),
            control.load(Int32.self, at: 8) == 1, control.load(Int32.self, at: 12) == 1  // SOL_SOCKET, SCM_RIGHTS
        {
            for place in stride(from: 16, through: Int(length) - 4, by: 4) {
                if let number = control.load(Int32.self, at: place) { descriptors.append(number) }
            }
        }
        return (bytes, descriptors)
    }

    private static func exchange(
        _ call: SystemCall, _ socket: Int32, _ bytes: Int, _ count: Int, _ control: Int, _ room: Int, flags: Int
    ) throws(SystemCallError) -> (count: Int, control: Int) {
        var vector: (Int, Int) = (bytes, count)
        return try withAddress(of: &vector) { (vector) throws(SystemCallError) in
            var message: (Int, Int, Int, Int, Int, Int, Int) = (0, 0, vector, 1, room > 0 ? control : 0, room, 0)
            let done = try withAddress(of: &message) { (message) throws(SystemCallError) in
                try systemCall(call, Int(socket), message, flags)
            }
            return (done, message.5)
        }
    }
}

/// Room for what recvmsg(2) brings, used again and again.
public struct MessageRoom: Sendable {
    /// Contents, control messages, and the sender's address, each as long as there is room.
    public var bytes: [UInt8], control: [UInt8], name: [UInt8]

    /// Lengths, and `MSG_*` flags.
    public struct Arrival: Sendable {
        /// Bytes that there are of each.
        public var count: Int, control: Int, name: Int
        /// What the kernel says of the message (`MSG_TRUNC` and the like).
        public var flags: Int
    }

    /// Room for so many bytes of each.
    public init(bytes: Int, control: Int, name: Int) {
        self.bytes = [UInt8](repeating: 0, count: bytes)
        self.control = [UInt8](repeating: 0, count: control)
        self.name = [UInt8](repeating: 0, count: name)
    }

    /// Receives a message, or looks at it (`MSG_PEEK`).
    public mutating func receive(from socket: Int32, flags: Int) throws(SystemCallError) -> Arrival {
        let (controlRoom, nameRoom) = (control.count, name.count)
        var head: [UInt64] = [0, UInt64(nameRoom), 0, 1, 0, UInt64(controlRoom), 0]  // struct msghdr
        let got = try bytes.withAddress { (data, count) throws(SystemCallError) in
            var vector = (UInt64(data), UInt64(count))
            return try withAddress(of: &vector) { (vector) throws(SystemCallError) in
                try control.withAddress { (control, _) throws(SystemCallError) in
                    try name.withAddress { (name, _) throws(SystemCallError) in
                        (head[0], head[2], head[4]) = (UInt64(name), UInt64(vector), UInt64(control))
                        return try head.withAddress { (head, _) throws(SystemCallError) in
                            try systemCall(.recvmsg, Int(socket), head, flags)
                        }
                    }
                }
            }
        }
        return Arrival(
            count: got, control: Int(head[5]), name: Int(head[1] & 0xffff_ffff), flags: Int(head[6] & 0xffff_ffff))
    }

    /// Calls `body` with level, type and place in `control` of the contents of each control message that came.
    public func forEachControl(_ arrival: Arrival, _ body: (Int32, Int32, Range<Int>) -> Void) {
        var at = 0
        while at + 16 <= arrival.control, let size = control.load(UInt64.self, at: at).map({ Int(clamping: $0) }),
            size >= 16, size <= arrival.control - at, let level = control.load(Int32.self, at: at + 8),
            let type = control.load(Int32.self, at: at + 12)
        {
            body(level, type, (at + 16)..<(at + size))
            at += (size + 7) & ~7
        }
    }
}
