internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import SystemPackage

/// A UNIX domain socket.
enum UnixSocket: FileKind {
    private static let established: UInt32 = 1, closed: UInt32 = 7, listening: UInt32 = 10
    private static let stream: UInt32 = 1, datagram: UInt32 = 2

    static func claims(_ facts: FileFacts) -> Bool { facts.begins(with: "socket:[") }

    /// Sockets met in one dump, to find peers outside of the tree at its end.
    private final class Met {
        var inodes: Set<UInt32> = []
        var peers: [(entry: UnixSkEntry, text: String)] = []
    }

    // MARK: dump

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let number = file.handle.number
        let (domain, type) = try attempt("ask what socket it is") { () throws(SystemCallError) in
            (try socketOption(number, 39), try socketOption(number, 3))
        }
        guard domain == 1 else {
            throw Failure(
                .unsupported, "sockets of the address family \(domain) can't be dumped yet",
                advice: "Close it before the dump")
        }
        let inode = UInt32(truncatingIfNeeded: file.facts.status.inode)
        let facts = try UnixDiagnosis(inode: inode)
        guard facts.waiting == 0 else {
            throw Failure(
                .unsupported, "\(facts.waiting) connections wait to be accepted, which can't be dumped yet",
                advice: "Try again once the task has accepted them")
        }
        var entry = UnixSkEntry()
        (entry.id, entry.ino, entry.type, entry.state) = (file.id, inode, UInt32(type), UInt32(facts.state))
        (entry.flags, entry.uflags) = (file.facts.statusFlags, 0)
        (entry.backlog, entry.peer) = (UInt32(facts.state) == listening ? facts.backlog : 0, facts.peer)
        entry.fown = try FileOwner.dump(file)
        entry.opts = try SocketOptions.dump(number)
        entry.name = imageBytes(facts.name)
        if facts.shutdown != 0 { entry.shutdown = SkShutdown(rawValue: Int(facts.shutdown)) ?? .both }
        entry.nsID = file.owner.ids.netNsID
        try describePlace(of: facts, file, &entry)
        if UInt32(facts.state) != listening {
            try SocketQueues.of(context).dump(number, id: file.id, isStream: UInt32(type) == stream)
        }
        let met = context.state(Met.self) { Met() }
        met.inodes.insert(inode)
        if facts.peer != 0 {
            met.peers.append((entry, "task \(file.owner.id) (\(file.owner.name)), descriptor \(file.number)"))
        }
        var whole = FileEntry(.unixsk, file.id)
        whole.usk = entry
        return whole
    }

    /// Notes whether the file that a socket is bound to is still where its name says.
    private static func describePlace(of facts: UnixDiagnosis, _ file: OpenFile, _ entry: inout UnixSkEntry)
        throws(Failure)
    {
        guard let bound = facts.file, let first = facts.name.first, first != 0 else { return }
        var path = Array(facts.name.prefix { $0 != 0 })
        if first != 0x2f {
            let directory = try attempt("find the working directory") { () throws(SystemCallError) in
                try readLink("/proc/\(file.owner.id.rawValue)/cwd").bytes
            }
            entry.nameDir = imageBytes(directory)
            path = directory + [0x2f] + path
        }
        guard let status = try? FileStatus.read(path: path, followsLink: false),
            UInt32(truncatingIfNeeded: status.inode) == bound.inode, status.kind == .socket
        else {
            entry.deleted = true
            return
        }
        (entry.filePerms.mode, entry.filePerms.uid, entry.filePerms.gid) = (status.mode, status.uid, status.gid)
    }

    static func finish(_ context: DumpContext) throws(Failure) {
        let met = context.state(Met.self) { Met() }
        for (entry, text) in met.peers where !met.inodes.contains(entry.peer) {
            try describeOutside(entry, text, context)
            met.inodes.insert(entry.peer)
        }
        try SocketQueues.of(context).finish(context)
    }

    /// `uflags` of an entry that stands for a socket outside of the tree.
    private static let external: UInt32 = 1

    /// Writes an entry for the outer end of a connection, if the user allows one.
    private static func describeOutside(_ entry: UnixSkEntry, _ text: String, _ context: DumpContext) throws(Failure) {
        let isNamed = context.policy.external.contains("unix[\(entry.ino)]")
        let name = (try? UnixDiagnosis(inode: entry.peer))?.name ?? []
        let isReachable = context.policy.externalUnixSockets && entry.type == datagram && !name.isEmpty
        guard isNamed || isReachable else {
            throw Failure(
                .unsupported,
                "the UNIX socket of \(text) is connected to one outside of the tree (inode \(entry.peer))",
                advice: "Dump both ends, close the connection, or pass --external unix[\(entry.ino)]")
        }
        let id = context.fileIndex.newID()
        var outside = FileEntry(.unixsk, id)
        (outside.usk.id, outside.usk.ino, outside.usk.peer) = (id, entry.peer, 0)
        // As CRIU writes them.
        (outside.usk.type, outside.usk.state, outside.usk.uflags) = (datagram, listening, external)
        (outside.usk.flags, outside.usk.backlog) = (0, 0)
        outside.usk.name = imageBytes(name)
        outside.usk.fown = FileOwner.nobody
        (outside.usk.opts.soSndbuf, outside.usk.opts.soRcvbuf) = (0, 0)
        (outside.usk.opts.soSndTmoSec, outside.usk.opts.soSndTmoUsec) = (0, 0)
        (outside.usk.opts.soRcvTmoSec, outside.usk.opts.soRcvTmoUsec) = (0, 0)
        context.files.append(outside)
    }

    // MARK: restore

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.unixsk.rawValue) && entry.hasUsk }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.usk.fown }

    /// The two ends of a connection are made together.
    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 {
        let socket = entry.usk
        guard socket.peer != 0, let other = sockets(context)[socket.peer], other.usk.peer == socket.ino else {
            // A name that is gone can be connected to only while it is being made.
            if let other = sockets(context)[socket.peer], isUnreachable(other.usk) { return UInt64(socket.peer) }
            return UInt64(socket.ino)
        }
        return UInt64(min(socket.ino, socket.peer))
    }

    private static func isUnreachable(_ entry: UnixSkEntry) -> Bool { entry.type == datagram && entry.deleted }

    private final class ByInode {
        var entries: [UInt32: FileEntry]?
    }

    private static func sockets(_ context: RestoreContext) -> [UInt32: FileEntry] {
        let known = context.state(ByInode.self) { ByInode() }
        if let entries = known.entries { return entries }
        var entries: [UInt32: FileEntry] = [:]
        for entry in context.entries.values where entry.hasUsk { entries[entry.usk.ino] = entry }
        known.entries = entries
        return entries
    }

    private static func key(_ entry: UnixSkEntry) -> String { "socket:[\(entry.ino)]" }

    static func make(_ all: [FileEntry], _ context: RestoreContext) throws(Failure) {
        var members: [FileEntry] = []
        for member in all where member.usk.uflags & external == 0 {
            if let passed = try context.inherited(key(member.usk)) {
                try context.files.add(member.id, passed)
            } else {
                members.append(member)
            }
        }
        guard !members.isEmpty else { return }
        if let target = members.first(where: { isUnreachable($0.usk) }),
            members.allSatisfy({ $0.usk.peer != 0 || $0.id == target.id }),
            target.usk.peer == 0
        {
            return try during(.file("UNIX socket \(target.usk.ino)")) { () throws(Failure) in
                let others = members.filter { $0.id != target.id }
                for other in others { try makeSingle(other, context) }
                try makeSingle(target, connecting: others, context)
            }
        }
        guard let first = members.first, members.count <= 2 else {
            throw Failure(.corruptImage, "more than two ends of a socket")
        }
        try during(.file("UNIX socket \(first.usk.ino)")) { () throws(Failure) in
            if members.count == 2 {
                try makePair(first, members[1], context)
            } else if first.usk.state == established, first.usk.type != datagram || first.usk.peer == 0 {
                if let outer = sockets(context)[first.usk.peer], outer.usk.uflags & external != 0 {
                    context.log.warning("\(key(first.usk)) is disconnected: no --inherit-fd says what it is to be")
                }
                try makePair(first, nil, context)
            } else {
                try makeSingle(first, context)
            }
        }
    }

    private static func makePair(_ one: FileEntry, _ two: FileEntry?, _ context: RestoreContext) throws(Failure) {
        var pair: (Int32, Int32) = (-1, -1)
        let type = Int(one.usk.type & 0xf) | 0o2000000
        try attempt("create it") { () throws(SystemCallError) in
            try withAddress(of: &pair) { (pair) throws(SystemCallError) in try systemCall(.socketpair, 1, type, 0, pair)
            }
        }
        let here = Descriptor(owning: pair.0)
        let there = Descriptor(owning: pair.1)
        let queues = SocketQueues.of(context)
        try prepare(one.usk, here.number)
        if let two { try prepare(two.usk, there.number) }
        try queues.restore(id: one.id, through: there.number, context)
        if let two { try queues.restore(id: two.id, through: here.number, context) }
        try end(one.usk, here.number)
        if let two {
            try end(two.usk, there.number)
            try context.files.add(two.id, there)
        }
        try context.files.add(one.id, here)
    }

    private static func makeSingle(
        _ entry: FileEntry, connecting others: [FileEntry] = [], _ context: RestoreContext
    ) throws(Failure) {
        let socket = entry.usk
        let made = try attempt("create it") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.socket, 1, Int(socket.type & 0xf) | 0o2000000, 0)))
        }
        var numbers: [Int32] = []
        for other in others { numbers.append(try context.files.number(other.id)) }
        try prepare(socket, made.number, connecting: numbers)
        let number = Int(made.number)
        if socket.state == listening {
            try attempt("listen") { () throws(SystemCallError) in try systemCall(.listen, number, Int(socket.backlog)) }
        }
        if try SocketQueues.of(context).holds(id: entry.id, context) {
            // A datagram socket receives from anyone: what waits in it comes from one that then goes away.
            let sender = try attempt("create a sender") { () throws(SystemCallError) in
                Descriptor(owning: Int32(try systemCall(.socket, 1, Int(socket.type & 0xf) | 0o2000000, 0)))
            }
            try connect(sender.number, to: socket, context)
            try SocketQueues.of(context).restore(id: entry.id, through: sender.number, context)
        }
        try end(socket, made.number)
        try context.files.add(entry.id, made)
    }

    /// Options and name.
    private static func prepare(_ entry: UnixSkEntry, _ number: Int32, connecting others: [Int32] = []) throws(Failure)
    {
        try SocketOptions.restore(entry.opts, on: number)
        guard !entry.name.isEmpty else { return }
        try SocketName(entry).bind(number, connecting: others)
    }

    /// What would get in the way earlier: half-closing, and flags.
    private static func end(_ entry: UnixSkEntry, _ number: Int32) throws(Failure) {
        try attempt("set its state") { () throws(SystemCallError) in
            if entry.hasShutdown, entry.shutdown.rawValue > 0, entry.state == established {
                try systemCall(.shutdown, Int(number), entry.shutdown.rawValue - 1)
            }
            try setStatusFlags(number, entry.flags)
        }
    }

    private static func connect(_ number: Int32, to entry: UnixSkEntry, _ context: RestoreContext) throws(Failure) {
        let address = SocketName(entry).address
        try attempt("connect it") { () throws(SystemCallError) in
            try address.withConstantAddress { (address, count) throws(SystemCallError) in
                try systemCall(.connect, Int(number), address, count)
            }
        }
    }

    /// Datagram sockets are connected once all of them have their names.
    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let socket = entry.usk
        guard socket.type == datagram, socket.peer != 0, let peer = sockets(context)[socket.peer],
            peer.usk.peer != socket.ino, !context.inherits(key(socket)), !isUnreachable(peer.usk),
            peer.usk.uflags & external == 0 || !peer.usk.name.isEmpty
        else { return }
        try connect(try context.files.number(entry.id), to: peer.usk, context)
    }
}
