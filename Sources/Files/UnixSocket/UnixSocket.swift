internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import SystemPackage

/// A UNIX domain socket: dump. The restore is in UnixSocketMaking.
enum UnixSocket: FileKind {
    static let established: UInt32 = 1, closed: UInt32 = 7, listening: UInt32 = 10
    static let stream: UInt32 = 1, datagram: UInt32 = 2, seqpacket: UInt32 = 5
    /// `uflags` of an entry that stands for a socket outside of the tree.
    static let external: UInt32 = 1

    static func claims(_ facts: FileFacts) -> Bool { facts.begins(with: "socket:[") }

    // MARK: dump

    /// Sockets met in one dump.
    private final class Met {
        struct Socket {
            let file: OpenFile
            let inode: UInt32, type: UInt32
            let facts: UnixDiagnosis

            var text: String {
                file.number == OpenFile.underWay
                    ? "a descriptor under way to task \(file.owner.id) (\(file.owner.name))"
                    : "task \(file.owner.id) (\(file.owner.name)), descriptor \(file.number)"
            }
        }

        /// From how many descriptors on a process is taken for one with many sockets.
        static let few = 128

        let diagnoses = UnixDiagnoses()
        var sockets: [Socket] = []
        var places: [UInt32: Int] = [:]
        /// How many have been looked into.
        var revealed = 0
        var packets: [QueuedPacket] = []
        /// Those that were to hear of a reset.
        var reset: Set<UInt32> = []
        /// Files that were found too late for files.img.
        var lost: Set<UInt32> = []
        /// Listeners whose connections are taken when nothing else is left to do.
        var taking: [Socket] = []

        static func of(_ context: DumpContext) -> Met { context.state(Met.self) { Met() } }
    }

    /// What a socket says of itself.
    private struct Answers {
        let options: [Int64]
        /// Nobody if it is not connected.
        let peer: SkCredEntry?

        init(_ number: Int32) throws(Failure) {
            options = try attempt("read the socket's options") { () throws(SystemCallError) in
                try SocketOptions.ask(number)
            }
            peer = try PeerCredentials.read(number)
        }
    }

    static func ask(_ number: Int32) -> (any Sendable)? { try? Answers(number) }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let number = file.handle.number
        let domain: Int32
        if let known = file.facts.family {
            domain = known
        } else {
            domain = try attempt("ask what socket it is") { () throws(SystemCallError) in try socketOption(number, 39) }
        }
        guard domain == 1 else {
            throw Failure(
                .unsupported, "sockets of the address family \(domain) can't be dumped yet",
                advice: "Close it before the dump")
        }
        let met = Met.of(context)
        let status = file.facts.status
        let inode = UInt32(truncatingIfNeeded: status.inode)
        guard let facts = try met.diagnoses.of(inode, amongMany: file.owner.descriptors.count > Met.few) else {
            throw Failure(.unsupported, "the kernel does not know the socket: it is of another network namespace")
        }
        let answers = if let known = file.facts.answers as? Answers { known } else { try Answers(number) }
        var entry = UnixSkEntry()
        (entry.id, entry.ino, entry.type, entry.state) = (file.id, inode, UInt32(facts.type), UInt32(facts.state))
        (entry.flags, entry.uflags) = (file.facts.statusFlags, 0)
        (entry.backlog, entry.peer) = (UInt32(facts.state) == listening ? facts.backlog : 0, facts.peer)
        entry.fown = try FileOwner.dump(file, context)
        entry.opts = SocketOptions.entry(of: answers.options, context)
        entry.name = imageBytes(facts.name)
        if facts.shutdown != 0 { entry.shutdown = SkShutdown(rawValue: Int(facts.shutdown)) ?? .both }
        entry.nsID = file.owner.ids.netNsID
        if UInt32(facts.state) != closed, let peer = answers.peer { entry.peerCred = peer.numbered(context) }
        let owner = context.owners.owner(of: status)
        if owner != (0, 0) || status.mode & 0o7777 != usualMode {
            (entry.inode.mode, entry.inode.uid, entry.inode.gid) = (status.mode & 0o7777, owner.user, owner.group)
        }
        try describePlace(of: facts, file, &entry, context)
        met.places[inode] = met.sockets.count
        met.sockets.append(Met.Socket(file: file, inode: inode, type: UInt32(facts.type), facts: facts))
        var whole = FileEntry(.unixsk, file.id)
        whole.usk = entry
        return whole
    }

    private static let usualMode: UInt32 = 0o777

    /// Notes where the file is that a socket is bound to. Its name says only where it was made.
    private static func describePlace(
        of facts: UnixDiagnosis, _ file: OpenFile, _ entry: inout UnixSkEntry, _ context: DumpContext
    ) throws(Failure) {
        guard facts.file != nil, let first = facts.name.first, first != 0 else { return }
        let name = Array(facts.name.prefix { $0 != 0 })
        let number = Int(file.handle.number)
        let (place, bound) = try attempt("find the file that it is bound to") { () throws(SystemCallError) in
            let door = Descriptor(owning: Int32(try systemCall(.ioctl, number, 0x89e0)))  // SIOCUNIXFILE
            let ours = door.number
            return (try linkTarget("/proc/self/fd/\(ours)"), try FileStatus.read(in: ours))
        }
        if first != 0x2f {
            if place.count > name.count, place.suffix(name.count + 1).elementsEqual([0x2f] + name) {
                entry.nameDir = imageBytes(place.dropLast(name.count + 1))
            } else {
                let directory = try attempt("find the working directory") { () throws(SystemCallError) in
                    try readLink("/proc/\(file.owner.id.rawValue)/cwd").bytes
                }
                entry.nameDir = imageBytes(directory)
            }
        }
        if context.view.mounts.contains(bound.mountID) { entry.mntID = bound.mountID }
        let there = try context.view.at(mount: bound.mountID) { () throws(Failure) in
            try? FileStatus.read(path: place, followsLink: false)
        }
        guard let status = there, status.inode == bound.inode, status.device == bound.device
        else {
            entry.deleted = true
            return
        }
        (entry.filePerms.uid, entry.filePerms.gid) = context.owners.owner(of: status)
        entry.filePerms.mode = status.mode
        if place != (first == 0x2f ? name : Array(entry.nameDir) + [0x2f] + name) {
            // Only we can bring that back: for others the name is gone.
            entry.place = imageBytes(place)
            entry.deleted = true
        }
    }

    static func reveal(_ context: DumpContext) throws(Failure) {
        let met = Met.of(context)
        // Sockets that are under way themselves come to the end of the list.
        while met.revealed < met.sockets.count {
            let socket = met.sockets[met.revealed]
            met.revealed += 1
            guard UInt32(socket.facts.state) != listening else { continue }
            let bytes = socket.facts.queued
            if socket.type == seqpacket, SocketKind.hasError(socket.file.handle.number) {
                // Looking at the queue takes the error.
                met.reset.insert(socket.inode)
                if context.policy.leaveRunning {
                    if bytes == 0 { continue }
                    context.log.warning(
                        "the UNIX socket of \(socket.text) does not hear any more that its peer was closed with something unread (ECONNRESET): that was in the way of its queue"
                    )
                }
            }
            let waiting = try during(.file("UNIX socket of \(socket.text)")) { () throws(Failure) in
                try queue(of: socket.file.handle.number, socket, context).peek(bytes: Int(bytes))
            }
            for var packet in waiting {
                packet.entry.idFor = socket.file.id
                met.packets.append(packet)
            }
        }
    }

    private static func queue(
        of number: Int32, _ socket: Met.Socket, isLate: Bool = false, _ context: DumpContext
    ) -> SocketQueue {
        let met = Met.of(context)
        return SocketQueue(number, isStream: socket.type == stream, context) {
            (number) throws(Failure) in
            let handle = Descriptor(owning: number)
            guard let dumper = context.fileDumper else { throw Failure(.bug, "no dumper of files") }
            let known = context.files.count
            let id = try dumper.dump(underWay: handle, to: socket.file.owner)
            if isLate, context.files.count > known { met.lost.insert(id) }
            guard met.lost.contains(id) else { return id }
            context.log.warning("a descriptor on a waiting connection is lost, as no task has it")
            return 0
        }
    }

    static func finish(_ context: DumpContext) throws(Failure) {
        let met = Met.of(context)
        guard !met.sockets.isEmpty else { return }
        var entries: [UInt32: Int] = [:]
        for (index, entry) in context.files.enumerated() where entry.hasUsk { entries[entry.usk.ino] = index }
        for listener in met.sockets where !listener.facts.waiting.isEmpty {
            try during(.file("UNIX socket of \(listener.text)")) { () throws(Failure) in
                try describeWaiting(on: listener, met, entries, context)
            }
        }
        for socket in met.sockets {
            guard let index = entries[socket.inode] else { continue }
            let entry = context.files[index].usk
            if entry.peer != 0 {
                if met.places[entry.peer] == nil {
                    try describeOutside(entry, socket.text, context)
                    met.places[entry.peer] = -1
                }
            } else if entry.type != datagram, entry.state == established,
                met.reset.contains(socket.inode) || SocketKind.hasError(socket.file.handle.number)
            {
                // The other end was closed with something unread.
                context.files[index].usk.reset = true
            }
        }
        if !met.packets.isEmpty {
            let image = context.images.create(.socketQueues)
            for packet in met.packets {
                try image.append(packet.entry)
                try image.append(raw: packet.bytes)
            }
            try image.finish()
        }
    }

    /// Notes whose connections wait to be accepted.
    ///
    /// What was sent on them can't be looked at, only taken. That is done last of all, if the tree will be killed.
    private static func describeWaiting(
        on listener: Met.Socket, _ met: Met, _ entries: [UInt32: Int], _ context: DumpContext
    ) throws(Failure) {
        guard let place = entries[listener.inode] else { return }
        var isFilled = false
        for client in listener.facts.waiting {
            if let known = met.places[client], let index = entries[client] {
                let socket = met.sockets[known]
                context.files[index].usk.peer = listener.inode
                context.files[index].usk.ownCred = PeerCredentials.of(socket.file.owner, context.owners)
                isFilled = isFilled || socket.facts.underWay > 0
                context.files[place].usk.waiting.append(client)
            } else if try met.diagnoses.of(client) == nil {
                // Closed already. Only accepting tells whether it has sent something.
                isFilled = true
                context.files[place].usk.waiting.append(0)
            } else if context.policy.externalUnixSockets {
                context.log.warning(
                    "a connection from outside of the tree (inode \(client)) that waits on the UNIX socket of \(listener.text) is not restored"
                )
                isFilled = true
                context.files[place].usk.waiting.append(.max)
            } else {
                throw Failure(
                    .unsupported,
                    "a connection from outside of the tree (inode \(client)) waits to be accepted",
                    advice:
                        "Try again once the task has accepted it, or pass --ext-unix-sk: then the connection is not restored, and the other program sees it end"
                )
            }
        }
        guard isFilled else { return }
        guard context.policy.takesAtEnd else {
            throw Failure(
                .unsupported,
                "something was sent on a connection that waits to be accepted, which can be saved only if the tree is killed after a dump into a directory",
                advice:
                    "Try again once the task has accepted it, or dump without --leave-running, --leave-stopped, --stream-to and --lazy-pages"
            )
        }
        met.taking.append(listener)
    }

    /// Takes the connections that wait, and what was sent on them.
    static func part(_ context: DumpContext) throws(Failure) {
        let met = Met.of(context)
        guard !met.taking.isEmpty else { return }
        let image = context.images.create(.waitingConnections)
        for listener in met.taking {
            for place in listener.facts.waiting.indices {
                let number = Int(listener.file.handle.number)
                let taken = try attempt("accept a waiting connection of \(listener.text)") {
                    () throws(SystemCallError) in
                    // SOCK_CLOEXEC
                    Descriptor(owning: Int32(try systemCall(.accept4, number, 0, 0, 0o2000000)))
                }
                var credentials = SkPacketEntry()
                (credentials.idFor, credentials.length, credentials.waiting) = (listener.file.id, 0, UInt32(place))
                if let peer = try PeerCredentials.read(taken.number) { credentials.cred = peer.numbered(context) }
                // A packet without an scm list and without bytes names who connected.
                try image.append(credentials)
                let queued = Int(try waitingBytes(taken.number))
                for packet in try queue(of: taken.number, listener, isLate: true, context).peek(bytes: queued) {
                    var entry = packet.entry
                    (entry.idFor, entry.waiting, entry.sender) = (listener.file.id, UInt32(place), imageBytes([0]))
                    try image.append(entry)
                    try image.append(raw: packet.bytes)
                }
            }
        }
        try image.finish()
    }

    /// Bytes that wait to be received (`SIOCINQ`).
    private static func waitingBytes(_ number: Int32) throws(Failure) -> Int32 {
        var count: Int32 = 0
        try attempt("ask what waits on a connection") { () throws(SystemCallError) in
            try withAddress(of: &count) { (count) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), 0x541b, count)
            }
        }
        return count
    }

    /// Writes an entry for the outer end of a connection, if the user allows one.
    private static func describeOutside(_ entry: UnixSkEntry, _ text: String, _ context: DumpContext) throws(Failure) {
        let isNamed = context.policy.external.contains("unix[\(entry.ino)]")
        let name = try Met.of(context).diagnoses.of(entry.peer)?.name ?? []
        let isReachable =
            !name.isEmpty
            && (context.policy.externalUnixSockets || entry.type == datagram && OutsidePeer.isWellKnown(name))
        guard isNamed || isReachable else {
            let again =
                name.isEmpty
                ? ""
                : ", or --ext-unix-sk: the restored task is connected to that name anew\(entry.type == datagram ? "" : ", as a new client, or hung up if nobody listens")"
            throw Failure(
                .unsupported,
                "the UNIX socket of \(text) is connected to one outside of the tree (inode \(entry.peer), \(OutsidePeer.described(name)))",
                advice:
                    "Dump both ends, close the connection, or say what it is to be after the restore: --external unix[\(entry.ino)]: hung up, or what is passed to the restore with --inherit-fd fd[N]:socket:[\(entry.ino)]\(again)"
            )
        }
        let id = context.fileIndex.newID()
        var outside = FileEntry(.unixsk, id)
        (outside.usk.id, outside.usk.ino, outside.usk.peer) = (id, entry.peer, 0)
        // As CRIU writes them; it knows no others than datagram sockets.
        (outside.usk.type, outside.usk.state, outside.usk.uflags) = (
            isNamed ? datagram : entry.type, listening, external
        )
        (outside.usk.flags, outside.usk.backlog) = (0, 0)
        outside.usk.name = imageBytes(name)
        outside.usk.fown = FileOwner.nobody
        (outside.usk.opts.soSndbuf, outside.usk.opts.soRcvbuf) = (0, 0)
        (outside.usk.opts.soSndTmoSec, outside.usk.opts.soSndTmoUsec) = (0, 0)
        (outside.usk.opts.soRcvTmoSec, outside.usk.opts.soRcvTmoUsec) = (0, 0)
        context.files.append(outside)
    }

    // MARK: restore

    static func load(_ context: RestoreContext) throws(Failure) { try SavedPackets.of(context).load(context) }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.unixsk.rawValue) && entry.hasUsk }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.usk.fown }

    /// All are made together: connections are made through listeners.
    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 { 0 }

    static let lateSteps = LateSteps.together

    /// The kernel notes who makes a pair, listens and connects.
    static func comesAfterTasks(_ entry: FileEntry) -> Bool { true }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        let making = UnixSocketMaking(members, context)
        context.state(Made.self) { Made() }.making = making
        try making.make()
    }

    private final class Made {
        var making: UnixSocketMaking?
    }

    /// Once for all of them: queues are filled only when all files are there, and nothing is connected before.
    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let made = context.state(Made.self) { Made() }
        guard let making = made.making, !making.isComplete else { return }
        try making.complete()
    }

    static func start(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        context.state(Made.self) { Made() }.making?.isSettled = true
    }

    /// Removes the files that a failed restore has made.
    static func abandon(_ context: RestoreContext) { context.state(Made.self) { Made() }.making?.abandon() }
}
