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
        if got.control >= 16, let length = control.load(UInt64.self), length >= 16, length <= UInt64(got.control) {
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
