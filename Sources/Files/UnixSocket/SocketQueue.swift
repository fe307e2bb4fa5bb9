internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux

/// What waits to be received on sockets: `sk-queues.img`.
final class SocketQueues {
    private var dumped: [(SkPacketEntry, [UInt8])] = []
    private var loaded: [UInt32: [[UInt8]]] = [:]
    private var isLoaded = false

    static func of(_ context: DumpContext) -> SocketQueues { context.state(SocketQueues.self) { SocketQueues() } }
    static func of(_ context: RestoreContext) -> SocketQueues { context.state(SocketQueues.self) { SocketQueues() } }

    /// Reads a queue and leaves it as it is (`MSG_PEEK` with `SO_PEEK_OFF`).
    func dump(_ number: Int32, id: UInt32, isStream: Bool) throws(Failure) {
        let before = try attempt("read the socket's peek offset") { () throws(SystemCallError) in
            try socketOption(number, 42)
        }
        try attempt("set the socket's peek offset") { () throws(SystemCallError) in try setSocketOption(number, 42, 0)
        }
        let outcome = Result { () throws(Failure) in try peek(number, id, isStream) }
        try attempt("set the socket's peek offset") { () throws(SystemCallError) in
            try setSocketOption(number, 42, before)
        }
        try outcome.get()
    }

    private func peek(_ number: Int32, _ id: UInt32, _ isStream: Bool) throws(Failure) {
        var room = [UInt8](repeating: 0, count: 1 << 20)
        while true {
            var control = [UInt8](repeating: 0, count: 1024)
            var head: [UInt64] = [0, 0, 0, 1, 0, UInt64(control.count), 0]
            var got = 0
            do throws(SystemCallError) {
                got = try room.withAddress { (data, count) throws(SystemCallError) in
                    var vector = (UInt64(data), UInt64(count))
                    return try withAddress(of: &vector) { (vector) throws(SystemCallError) in
                        try control.withAddress { (control, _) throws(SystemCallError) in
                            head[2] = UInt64(vector)
                            head[4] = UInt64(control)
                            return try head.withAddress { (head, _) throws(SystemCallError) in
                                // PEEK | DONTWAIT | CMSG_CLOEXEC
                                try systemCall(.recvmsg, Int(number), head, 0x4000_0042)
                            }
                        }
                    }
                }
            } catch {
                if error.errno == .EAGAIN { return }
                if error.errno == .ECONNRESET || error.errno == .EINVAL { return }
                throw Failure(.denied, "can't read the socket's queue", cause: error)
            }
            if head[5] >= 16, control.load(Int32.self, at: 8) == 1, control.load(Int32.self, at: 12) == 1 {
                for index in 0..<((Int(head[5]) - 16) / 4) {
                    if let copy = control.load(Int32.self, at: 16 + 4 * index) {
                        _ = try? systemCall(.close, Int(copy))
                    }
                }
                throw Failure(.unsupported, "descriptors are under way in its queue, which can't be dumped yet")
            }
            if head[6] & 0x20 != 0 {
                throw Failure(.unsupported, "a packet of more than \(room.count) bytes is in its queue")
            }
            if got == 0 { return }
            var entry = SkPacketEntry()
            entry.idFor = id
            entry.length = UInt32(got)
            dumped.append((entry, Array(room[..<got])))
        }
    }

    func finish(_ context: DumpContext) throws(Failure) {
        guard !dumped.isEmpty else { return }
        let image = context.images.create(.socketQueues)
        for (entry, bytes) in dumped {
            try image.append(entry)
            try image.append(raw: bytes)
        }
        try image.finish()
    }

    private func load(_ context: RestoreContext) throws(Failure) {
        guard !isLoaded else { return }
        isLoaded = true
        guard context.images.has(.socketQueues) else { return }
        try during(.image(ImageName.socketQueues.fileName)) { () throws(Failure) in
            let reader = try context.images.open(.socketQueues)
            while let entry = try reader.next(SkPacketEntry.self) {
                let bytes = try reader.read(Int(entry.length))
                guard entry.scm.isEmpty else {
                    throw Failure(.unsupported, "descriptors under way in a queue can't be restored yet")
                }
                loaded[entry.idFor, default: []].append(bytes)
            }
        }
    }

    /// Sends what a socket is to receive through its other end.
    func restore(id: UInt32, through other: Int32, _ context: RestoreContext) throws(Failure) {
        try load(context)
        for packet in loaded[id] ?? [] {
            try attempt("fill the socket's queue") { () throws(SystemCallError) in
                try packet.withConstantAddress { (address, count) throws(SystemCallError) in
                    var done = 0
                    repeat {
                        // DONTWAIT | NOSIGNAL
                        done += try systemCall(.sendto, Int(other), address + done, count - done, 0x4040, 0, 0)
                    } while done < count
                }
            }
        }
    }

    /// Whether something is to be received.
    func holds(id: UInt32, _ context: RestoreContext) throws(Failure) -> Bool {
        try load(context)
        return !(loaded[id] ?? []).isEmpty
    }
}
