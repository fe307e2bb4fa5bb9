internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Remote

/// Restore: sends what waits to be received, as those who sent it.
final class Posting {
    private let context: RestoreContext
    private let witnesses: Witnesses
    /// Sockets of senders that are no longer there, by their names.
    private var strangers: [[UInt8]: Int32] = [:]

    init(_ context: RestoreContext, _ witnesses: Witnesses) {
        self.context = context
        self.witnesses = witnesses
    }

    deinit { for number in strangers.values { _ = try? systemCall(.close, Int(number)) } }

    /// A datagram socket with a name, or with none, of our own.
    func stranger(_ name: [UInt8]) throws(Failure) -> Int32 {
        if let known = strangers[name] { return known }
        guard name.count <= 108 else { throw Failure(.corruptImage, "a sender's name is too long") }
        let made = try attempt("create a sender") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.socket, 1, 2 | 0o2000000, 0)))
        }
        if !name.isEmpty {
            do throws(Failure) {
                try SocketName(sender: name).bind(made.number, aside: true, UnixDiagnoses())
            } catch {
                context.log.warning("a packet's sender has no name now, as another socket has it: \(error)")
            }
        }
        let number = made.release()
        strangers[name] = number
        return number
    }

    /// Lets a socket send so much. Its own size comes with its options.
    func makeRoom(in number: Int32, for packets: [QueuedPacket]) throws(Failure) {
        let needed = packets.reduce(0) { $0 + 2 * $1.bytes.count + 2048 }
        try attempt("make room for a queue") { () throws(SystemCallError) in
            if needed > Int(try socketOption(number, 7)) {
                try setSocketOption(number, 32, Int32(clamping: needed))  // SO_SNDBUFFORCE
            }
        }
    }

    /// Sends a packet, or a stretch of a stream.
    func send(
        _ packet: QueuedPacket, through number: Int32, to address: [UInt8] = [], isStream: Bool
    ) throws(Failure) {
        var rights: [Int32] = []
        for scm in packet.entry.scm {
            guard scm.type == 1 else {
                throw Failure(.unsupported, "something unknown (type \(scm.type)) is under way in a socket's queue")
            }
            for id in scm.rights { rights.append(try context.files.number(id)) }
        }
        guard rights.count <= 253 else { throw Failure(.corruptImage, "too many descriptors in one packet") }
        var who = packet.entry.hasCred ? packet.entry.cred : nil
        if let known = who, let task = context.numbers.task(Int32(bitPattern: known.pid)) {
            who?.pid = UInt32(bitPattern: task.rawValue)
        }
        if let known = who {
            who?.uid = UInt32(truncatingIfNeeded: context.owners.ourUser(known.uid))
            who?.gid = UInt32(truncatingIfNeeded: context.owners.ourGroup(known.gid))
        }
        var done = 0
        var (isSent, isKnown) = (false, true)
        repeat {
            do throws(SystemCallError) {
                done += try post(packet.bytes, from: done, through: number, to: address, who, rights)
                rights = []
                isSent = true
            } catch {
                guard let sender = who, [.ESRCH, .EPERM, .EINVAL].contains(error.errno) else {
                    throw Failure(.denied, "can't fill the socket's queue", cause: error)
                }
                // The kernel takes only pids that exist.
                if error.errno == .ESRCH, isKnown, let puppet = try witnesses.witness(packet.entry.cred.pid) {
                    isKnown = false
                    if puppet.process.rawValue != Int32(bitPattern: packet.entry.cred.pid) {
                        context.log.warning(
                            "a message's sender, task \(packet.entry.cred.pid), is shown as \(puppet.process)")
                    }
                    who?.pid = UInt32(bitPattern: puppet.task.rawValue)
                } else {
                    context.log.warning("a message has lost its sender, task \(sender.pid): \(error)")
                    who = nil
                }
            }
        } while !isSent || isStream && done < packet.bytes.count
    }

    private func post(
        _ bytes: [UInt8], from start: Int, through number: Int32, to address: [UInt8], _ who: SkCredEntry?,
        _ rights: [Int32]
    ) throws(SystemCallError) -> Int {
        var control: [UInt8] = []
        if !rights.isEmpty {
            control += [UInt8](bytesOf: UInt64(16 + 4 * rights.count)) + [UInt8](bytesOf: (Int32(1), Int32(1)))
            for number in rights { control += [UInt8](bytesOf: number) }
            while control.count & 7 != 0 { control.append(0) }
        }
        if let who {
            // SOL_SOCKET, SCM_CREDENTIALS
            control += [UInt8](bytesOf: UInt64(28)) + [UInt8](bytesOf: (Int32(1), Int32(2)))
            control += [UInt8](bytesOf: (who.pid, who.uid, who.gid, UInt32(0)))
        }
        let length = control.count
        return try bytes.withConstantAddress { (data, count) throws(SystemCallError) in
            try address.withConstantAddress { (name, nameLength) throws(SystemCallError) in
                try control.withAddress { (control, _) throws(SystemCallError) in
                    var vector: (Int, Int) = (data + start, count - start)
                    return try withAddress(of: &vector) { (vector) throws(SystemCallError) in
                        var message: (Int, Int, Int, Int, Int, Int, Int) = (
                            nameLength == 0 ? 0 : name, nameLength, vector, 1, length == 0 ? 0 : control, length, 0
                        )
                        return try withAddress(of: &message) { (message) throws(SystemCallError) in
                            // DONTWAIT | NOSIGNAL
                            try systemCall(.sendmsg, Int(number), message, 0x4040)
                        }
                    }
                }
            }
        }
    }
}
