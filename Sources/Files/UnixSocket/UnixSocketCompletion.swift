internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging

/// What is done to the sockets when all are made.
extension UnixSocketMaking {
    /// Fills the queues, connects what receives from one sender only, and sets options and flags.
    func complete() throws(Failure) {
        isComplete = true
        let packets = SavedPackets.of(context)
        let posting = Posting(context, witnesses)
        for member in mine where !reconnected.contains(member.id) {
            guard let queue = packets.queues[member.id] else { continue }
            try naming(member) { () throws(Failure) in try fill(member, queue, posting) }
        }
        for listener in mine where listener.usk.state == UnixSocket.listening {
            try naming(listener) { () throws(Failure) in
                try connectWaiting(on: listener, packets.waiting[listener.id] ?? [], posting)
            }
        }
        for member in mine where member.usk.type == UnixSocket.datagram && member.usk.peer != 0 {
            try naming(member) { () throws(Failure) in try connectDatagrams(member) }
        }
        try endAll()
        for member in mine where !member.usk.name.isEmpty && !accepted.contains(member.id) {
            try naming(member) { () throws(Failure) in
                try SocketName(member.usk).open(try context.files.number(member.id), context.owners)
            }
        }
        try witnesses.dismiss()
    }

    private func fill(_ member: Member, _ queue: [QueuedPacket], _ posting: Posting) throws(Failure) {
        let socket = member.usk
        if let mate = mates[member.id] {
            try posting.makeRoom(in: mate, for: queue)
            for packet in queue { try posting.send(packet, through: mate, isStream: socket.type == UnixSocket.stream) }
            return
        }
        guard socket.type == UnixSocket.datagram, !socket.name.isEmpty else {
            context.log.warning(
                "\(queue.count) packets for \(UnixSocketMaking.key(socket)) are lost: nobody can send them")
            return
        }
        let number = try context.files.number(member.id)
        let way = try Way(to: number, socket)
        defer { way.close() }
        for packet in queue {
            let sender = Array(packet.entry.sender)
            let known = mine.first {
                $0.usk.type == UnixSocket.datagram && Array($0.usk.name) == sender
                    && (!sender.isEmpty || $0.usk.peer == socket.ino)
            }
            let through = known != nil ? try context.files.number(known?.id ?? 0) : try posting.stranger(sender)
            try posting.makeRoom(in: through, for: [packet])
            try posting.send(packet, through: through, to: way.address, isStream: false)
        }
    }

    private func connectWaiting(
        on listener: Member, _ packets: [QueuedPacket], _ posting: Posting
    ) throws(Failure) {
        var waiting = listener.usk.waiting
        let listed = Set(waiting)
        for member in mine
        where member.usk.peer == listener.usk.ino && member.usk.state == UnixSocket.established
            && !listed.contains(member.usk.ino)
        {
            waiting.append(member.usk.ino)
        }
        guard !waiting.isEmpty else { return }
        guard waiting.count <= Int(clamping: listener.usk.backlog) + 1 else {
            throw Failure(.corruptImage, "more connections wait than its backlog allows")
        }
        let way = try Way(to: try context.files.number(listener.id), listener.usk)
        defer { way.close() }
        for (place, inode) in waiting.enumerated() where inode != .max {
            let own = packets.filter { $0.entry.waiting == UInt32(place) }
            let client = mine.first { $0.usk.ino == inode }
            let noted = own.first { !$0.entry.hasSender && $0.entry.hasCred }?.entry.cred
            let who = noted ?? (client?.usk.hasOwnCred ?? false ? client?.usk.ownCred : nil)
            let made: Descriptor
            if let client {
                let number = try context.files.number(client.id)
                made = try attempt("copy a socket") { () throws(SystemCallError) in
                    Descriptor(owning: Int32(try systemCall(.fcntl, Int(number), 1030, 3)))
                }
            } else if inode == 0 {
                made = try UnixSocketMaking.create(listener.usk.type)
            } else {
                throw Failure(.corruptImage, "the socket \(inode) that waits to be accepted is not there")
            }
            try connect([made.number], to: way.address, door: way.door, as: who)
            let sent = own.filter { $0.entry.hasSender }
            try posting.makeRoom(in: made.number, for: sent)
            for packet in sent {
                try posting.send(packet, through: made.number, isStream: listener.usk.type == UnixSocket.stream)
            }
        }
    }

    private func connectDatagrams(_ member: Member) throws(Failure) {
        let socket = member.usk
        let number = try context.files.number(member.id)
        guard let peer = self.member(socket.peer) else { return }
        if mates[member.id] != nil, mates[member.id] == (try? context.files.number(peer.id)) { return }
        if peer.usk.uflags & UnixSocket.external != 0 {
            guard !peer.usk.name.isEmpty else { return }
            let name = Array(peer.usk.name)
            do throws(Failure) {
                try connect([number], to: SocketName(peer.usk).address, door: nil, as: nil)
            } catch {
                guard OutsidePeer.isWellKnown(name) else {
                    throw Failure(
                        .denied, "can't connect it to the socket outside of the tree \(OutsidePeer.described(name))",
                        advice: "Start the program that has that socket", cause: error.cause)
                }
                context.log.warning(
                    "\(UnixSocketMaking.key(socket)) is not connected: nobody answers \(OutsidePeer.described(name))")
            }
            return
        }
        guard !peer.usk.name.isEmpty else {
            context.log.warning("\(UnixSocketMaking.key(socket)) is not connected: its peer has no name")
            return
        }
        let way = try Way(to: try context.files.number(peer.id), peer.usk)
        defer { way.close() }
        try connect([number], to: way.address, door: nil, as: nil)
    }

    /// From how many sockets on, and how many a thread takes at once.
    private static let manyEnds = 512, share = 128

    /// What would get in the way earlier: half-closing, owners, options and flags.
    private func endAll() throws(Failure) {
        for member in mine { try naming(member) { () throws(Failure) in try disconnect(member) } }
        var jobs: [(entry: UnixSkEntry, number: Int32)] = []
        jobs.reserveCapacity(mine.count)
        var fresh: [UInt32: SocketOptions.Fresh] = [:]
        for member in mine {
            let (entry, number) = (member.usk, try context.files.number(member.id))
            jobs.append((entry, number))
            // All new sockets of a type are the same.
            guard fresh[entry.type] == nil else { continue }
            fresh[entry.type] = try attempt("read the socket's options") { () throws(SystemCallError) in
                try SocketOptions.Fresh(number)
            }
        }
        let (all, options, owners) = (jobs, fresh, context.owners)
        _ = try Workers.map(
            all.count, share: UnixSocketMaking.share,
            threads: all.count < UnixSocketMaking.manyEnds ? 1 : Workers.count
        ) { (range) throws(Failure) in
            for (entry, number) in all[range] {
                try during(.file("UNIX socket \(entry.ino)")) { () throws(Failure) in
                    try UnixSocketMaking.end(entry, number, over: options[entry.type], owners)
                }
            }
        }
    }

    private func disconnect(_ member: Member) throws(Failure) {
        let mate = temporary.removeValue(forKey: member.id)
        let socket = member.usk
        guard mate != nil || socket.peer == 0 else { return }
        let number = try context.files.number(member.id)
        if let mate {
            try attempt("close the other end") { () throws(SystemCallError) in
                if socket.reset {
                    // An end that is closed with something unread tells the other so.
                    var byte: [UInt8] = [0]
                    _ = try byte.withAddress { (address, _) throws(SystemCallError) in
                        try systemCall(.sendto, Int(number), address, 1, 0x4040, 0, 0)
                    }
                }
                try systemCall(.close, Int(mate))
            }
        } else if mates[member.id] != nil, socket.type == UnixSocket.datagram {
            try attempt("disconnect it") { () throws(SystemCallError) in
                var unspecified: [UInt8] = [0, 0]
                _ = try unspecified.withAddress { (address, count) throws(SystemCallError) in
                    try systemCall(.connect, Int(number), address, count)
                }
            }
        }
    }

    /// Touches no other socket, so any thread may do it.
    private static func end(
        _ socket: UnixSkEntry, _ number: Int32, over fresh: SocketOptions.Fresh?, _ owners: TreeOwners
    ) throws(Failure) {
        try SocketOptions.restore(socket.opts, on: number, over: fresh)
        try attempt("set its state") { () throws(SystemCallError) in
            if socket.hasInode || (!socket.name.isEmpty && socket.name.first != 0) {
                let mode = socket.hasInode ? Int(socket.inode.mode & 0o7777) : 0o777
                try systemCall(.fchmod, Int(number), mode)
            }
            if socket.hasInode || owners.isApart {
                try owners.give(number, to: socket.inode.uid, socket.inode.gid)
            }
            if socket.hasShutdown, socket.shutdown.rawValue > 0 {
                do throws(SystemCallError) {
                    try systemCall(.shutdown, Int(number), socket.shutdown.rawValue - 1)
                } catch { if error.errno != .ENOTCONN { throw error } }
            }
            if socket.flags != UnixSocketMaking.freshFlags { try setStatusFlags(number, socket.flags) }
        }
    }

    /// O_RDWR, which is all that a new socket has.
    private static let freshFlags: UInt32 = 2
}
