internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink
internal import Synchronization

/// A socket of the internet: TCP, UDP, UDP-Lite, ICMP (ping) and raw, of IPv4 and IPv6.
enum InetSocket: FileKind {
    static let stream: Int32 = 1, datagram: Int32 = 2, raw: Int32 = 3
    static let tcp: Int32 = 6, udp: Int32 = 17, udpLite: Int32 = 136, icmp: Int32 = 1, icmp6: Int32 = 58
    static let multipath: Int32 = 262

    static func claims(_ facts: FileFacts) -> Bool { facts.family == 2 || facts.family == 10 }

    // MARK: dump

    private static func check(_ kind: SocketKind) throws(Failure) {
        if kind.type == raw || [tcp, udp, udpLite, icmp, icmp6, multipath].contains(kind.code) { return }
        let names: [Int32: String] = [132: "SCTP", 33: "DCCP", 256: "SMC", 115: "L2TP"]
        throw Failure(
            .unsupported, "sockets of the protocol \(names[kind.code] ?? "\(kind.code)") can't be dumped",
            advice: "Close it before the dump")
    }

    /// What a socket says of itself.
    private struct Answers {
        let kind: SocketKind, here: InetAddress?, there: InetAddress?, namespace: UInt64?
        /// All that its entry says of the socket, but for what needs the owner or other sockets.
        var entry = InetSkEntry()
        /// Connections that wait to be accepted.
        var waiting = 0

        init(_ number: Int32) throws(Failure) {
            let kind = try attempt("ask what socket it is") { () throws(SystemCallError) in try SocketKind(number) }
            try InetSocket.check(kind)
            (entry.family, entry.type) = (UInt32(kind.family), UInt32(kind.type))
            entry.proto = UInt32(kind.code)
            (entry.state, entry.backlog) = (TCPState.closed.rawValue, 0)
            (here, there) = try attempt("ask for the socket's addresses") { () throws(SystemCallError) in
                (try InetAddress.local(of: number), try InetAddress.peer(of: number, family: kind.family))
            }
            self.kind = kind
            namespace = SocketOptions.namespace(of: number)
            entry.opts = try attempt("read the socket's options") { () throws(SystemCallError) in
                SocketOptions.entry(of: try SocketOptions.ask(number))
            }
            try InetSocket.describe(here, there, kind, number, &entry)
            if kind.type == stream, kind.code == tcp || kind.code == multipath {
                waiting = try InetSocket.describeStream(kind, number, &entry)
            }
            try InternetOptions.dump(number, kind, &entry)
            try SocketOptions.dumpNetwork(&entry.opts, number)
        }
    }

    static func ask(_ number: Int32) -> (any Sendable)? { try? Answers(number) }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let number = file.handle.number
        let answers = if let known = file.facts.answers as? Answers { known } else { try Answers(number) }
        let (kind, here, there) = (answers.kind, answers.here, answers.there)
        try SocketOptions.checkNamespace(answers.namespace, context)
        var entry = answers.entry
        entry.id = file.id
        entry.ino = UInt32(truncatingIfNeeded: file.facts.status.inode)
        entry.flags = file.facts.statusFlags
        entry.nsID = file.owner.ids.netNsID
        entry.fown = try FileOwner.dump(file, context)
        (entry.opts.uid, entry.opts.gid) = context.owners.owner(of: file.facts.status)
        if kind.type == stream {
            if answers.waiting > 0 { try keepWaiting(answers, file, context) }
        } else {
            try dumpPackets(kind, file, &entry, context)
            let groups = context.state(Memberships.self) { Memberships() }
            entry.memberships = groups.dump(number, family: kind.family)
        }
        // Also one that is closed by now.
        let isConnected = kind.type == stream && there != nil
        // The others are asked together.
        if here == nil || !isConnected || context.policy.tcpClose {
            entry.opts.more = SocketOptions.more(
                number, SocketDefaults.of(context).values(kind), isConnected: isConnected)
        }
        if let here, let there, kind.type == stream {
            Connections.of(context).add(file, Connection(here: here, there: there), kind, entry)
        }
        var whole = FileEntry(.inetsk, file.id)
        whole.isk = entry
        return whole
    }

    private static func describe(
        _ here: InetAddress?, _ there: InetAddress?, _ kind: SocketKind, _ number: Int32, _ entry: inout InetSkEntry
    ) throws(Failure) {
        let nowhere = [UInt32](repeating: 0, count: kind.family == 2 ? 1 : 4)
        (entry.srcAddr, entry.dstAddr) = (here?.words ?? nowhere, there?.words ?? nowhere)
        (entry.srcPort, entry.dstPort) = (UInt32(here?.port ?? 0), UInt32(there?.port ?? 0))
        if there != nil { entry.state = TCPState.established.rawValue }
        if kind.family == 10 {
            entry.v6Only = try attempt("ask for the socket's addresses") { () throws(SystemCallError) in
                try socketOption(number, level: 41, 26) != 0
            }
        }
        if let scope = [here, there].compactMap({ $0?.scope }).first(where: { $0 != 0 }) {
            let name = try attempt("ask for the socket's device") { () throws(SystemCallError) in
                try NetworkDevice.name(scope, number)
            }
            entry.ifname = imageBytes(name)
        }
    }

    /// Returns how many connections wait to be accepted.
    private static func describeStream(
        _ kind: SocketKind, _ number: Int32, _ entry: inout InetSkEntry
    ) throws(Failure) -> Int {
        let information = try attempt("read the socket's state") { () throws(SystemCallError) in
            try TCPStream.information(number)
        }
        entry.state = UInt32(information[0])
        var waiting = 0
        if TCPState(rawValue: entry.state) == .listening {
            // tcpi_unacked and tcpi_sacked of a listener: connections that wait, and how many may.
            waiting = Int(information.load(UInt32.self, at: 24) ?? 0)
            entry.backlog = information.load(UInt32.self, at: 28) ?? 0
        } else if kind.code == multipath, TCPState(rawValue: entry.state) != .closed || entry.dstPort != 0 {
            throw Failure(
                .unsupported, "connections of Multipath TCP can't be dumped: the kernel has no way to restore them",
                advice: "Close it, or run the program without MPTCP (GODEBUG=multipathtcp=0 for Go)")
        }
        if kind.code == tcp {
            let layer = SocketKind.upperLayer(of: number)
            guard layer.isEmpty else {
                throw Failure(
                    .unsupported, "the kernel does the \(layer) of this connection and does not give out its state",
                    advice: "Run the program without kernel TLS")
            }
        }
        if kind.code == tcp, signs(number) {
            throw Failure(
                .unsupported, "the connection signs its packets (TCP-AO), and keys are not written to images",
                advice: "Close it before the dump")
        }
        // POLLRDHUP: what was shut down for receiving. Sending is told by the state.
        let state = try attempt("ask for the socket's state") { () throws(SystemCallError) in
            try poll(number, for: 0x2000)
        }
        if state & 0x2000 != 0 { entry.shutdown = .read }
        return waiting
    }

    /// Notes a listener with connections that wait to be accepted.
    private static func keepWaiting(_ answers: Answers, _ file: OpenFile, _ context: DumpContext) throws(Failure) {
        guard answers.kind.code == tcp || context.policy.skipInFlight else {
            throw Failure(
                .unsupported,
                "\(answers.waiting) connections of Multipath TCP wait to be accepted, which can't be kept",
                advice: "Try again once the task has accepted them, or pass --skip-in-flight to let them break")
        }
        guard let here = answers.here else { return }
        try WaitingConnections.of(context).add(file, here, count: answers.waiting, context)
    }

    /// Whether a socket has keys (`TCP_AO_INFO`, which fails where there are none).
    private static func signs(_ number: Int32) -> Bool {
        var room = [UInt8](repeating: 0, count: 64)
        var length: UInt32 = 64
        let answer: Void? = try? room.withAddress { (value, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(number), 6, 40, value, length)
            }
        }
        return answer != nil
    }

    private static func dumpPackets(
        _ kind: SocketKind, _ file: OpenFile, _ entry: inout InetSkEntry, _ context: DumpContext
    ) throws(Failure) {
        let number = file.handle.number
        let isUDP = kind.code == udp || kind.code == udpLite
        if isUDP, SocketKind.hasData(number) {
            try Datagrams.dump(file, kind, context)
        } else if SocketKind.hasData(number) {
            context.log.warning("what waits to be received on socket:[\(entry.ino)] is lost")
        }
        if kind.type == raw {
            // A raw socket's peer has no port that would tell of it.
            if let words = rawPeer(entry.ino, kind.family), words.contains(where: { $0 != 0 }) {
                entry.dstAddr = words
                entry.state = TCPState.established.rawValue
            }
            return
        }
        guard isUDP else { return }
        let facts = try Connections.of(context).diagnosis(UInt8(truncatingIfNeeded: kind.code), entry.ino)
        entry.shutdown = SkShutdown(rawValue: Int(facts?.shutdown ?? 0)) ?? .none
        let (pending, corked) = try attempt("read the socket's state") { () throws(SystemCallError) in
            var pending: Int32 = 0
            try withAddress(of: &pending) { (address) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), 0x5411, address)  // SIOCOUTQ
            }
            return (pending, try socketOption(number, level: Int(kind.code), 1) != 0)  // UDP_CORK
        }
        if corked {
            throw Failure(
                .unsupported, "the socket is corked: what it holds back can't be read (\(pending) bytes)",
                advice: "Try again once the task has sent it")
        }
    }

    /// The words of the address that a raw socket is connected to, from /proc/net/raw: not every kernel lists raw sockets
    /// otherwise.
    private static func rawPeer(_ inode: UInt32, _ family: Int32) -> [UInt32]? {
        let text = (try? readWholeFile("/proc/self/net/raw\(family == 2 ? "" : "6")")) ?? []
        for line in text.split(separator: 0x0a).dropFirst() {
            let fields = line.split(separator: 0x20).map { String(decoding: $0, as: UTF8.self) }
            guard fields.count > 9, fields[9] == "\(inode)" else { continue }
            let digits = Array(fields[2].prefix { $0 != ":" })
            return stride(from: 0, to: digits.count - 7, by: 8).compactMap {
                UInt32(String(digits[$0..<($0 + 8)]), radix: 16)
            }
        }
        return nil
    }

    static func finish(_ context: DumpContext) throws(Failure) {
        try Datagrams.finish(context)
        try Connections.of(context).finish(context)
    }

    static func part(_ context: DumpContext) throws(Failure) { try WaitingConnections.of(context).part(context) }

    // MARK: restore

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.inetsk.rawValue) && entry.hasIsk }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.isk.fown }

    private static func kind(_ entry: InetSkEntry) -> SocketKind {
        SocketKind(
            family: Int32(truncatingIfNeeded: entry.family), type: Int32(truncatingIfNeeded: entry.type),
            code: Int32(truncatingIfNeeded: entry.proto))
    }

    private static func isConnection(_ entry: InetSkEntry) -> Bool {
        entry.type == UInt32(stream) && entry.proto == UInt32(tcp) && entry.dstPort != 0
    }

    static func connection(_ entry: InetSkEntry) throws(Failure) -> Connection {
        Connection(
            here: try InetAddress(family: entry.family, words: entry.srcAddr, port: entry.srcPort),
            there: try InetAddress(family: entry.family, words: entry.dstAddr, port: entry.dstPort))
    }

    /// Connections under restore.
    private final class Restored {
        var method = NetworkLockMethod.skip
        var id = ""
        /// All of the image, which the dump's lock holds up, and those that are to be made.
        var dumped: Set<Connection> = [], connections: Set<Connection> = []
        let lock = NetworkLock()
        var isLocked = false
        /// What connections have in their images, by inode; without those that have much of it.
        var streams: [UInt32: TCPStream] = [:]
        /// Ports that more than one listener has.
        var sharedPorts: Set<UInt32> = []
        /// Connections, by id, of which both ends are ours and have nothing to tell each other.
        var settled: Set<UInt32> = []
        static func of(_ context: RestoreContext) -> Restored { context.state(Restored.self) { Restored() } }
    }

    static func load(_ context: RestoreContext) throws(Failure) {
        let entries = context.entries(of: .inetsk).filter { restores($0) }.map(\.isk)
        let restored = Restored.of(context)
        let inventory = try context.images.load(.inventory, as: InventoryEntry.self)
        restored.method = NetworkLockMethod(rawValue: inventory.networkLockMethod) ?? .iptables
        restored.id = String(decoding: inventory.dumpCriuRunID.prefix(64), as: UTF8.self)
        if inventory.tcpClose, !context.policy.tcpClose {
            guard entries.allSatisfy({ !isConnection($0) }) else {
                throw Failure(
                    .denied, "the image was made with --tcp-close and holds no state of connections",
                    advice: "Pass --tcp-close")
            }
        }
        try Datagrams.load(context)
        let waiting = RestoredWaiting.of(context)
        try waiting.load(context)
        var all: Set<Connection> = waiting.outside
        for entry in entries {
            guard [2, 10].contains(entry.family), (1...3).contains(entry.type), entry.proto < 1 << 16 else {
                throw Failure(.corruptImage, "the socket \(entry.ino) is of no known kind")
            }
            let ends = try connection(entry)
            if isConnection(entry), waiting.other(ends) == nil { all.insert(ends.plain) }
        }
        restored.dumped = all
        var ports: Set<UInt32> = []
        for entry in entries where entry.type == UInt32(stream) && !isConnection(entry) && entry.srcPort != 0 {
            if !ports.insert(entry.srcPort).inserted { restored.sharedPorts.insert(entry.srcPort) }
        }
        guard !context.policy.tcpClose else { return }
        var wanted: [(inode: UInt32, state: UInt32)] = []
        for entry in entries where isConnection(entry) {
            let ends = try connection(entry)
            let isOver = entry.state == TCPState.closed.rawValue
            guard
                context.policy.tcpEstablished || isOver || all.contains(ends.reversed.plain)
                    || waiting.other(ends) != nil
            else { throw TCPPolicy.refusal(ends) }
            if waiting.other(ends) == nil {
                wanted.append((entry.ino, entry.state))
            } else {
                _ = try TCPStream(entry.ino, state: entry.state, from: context.images)
            }
        }
        restored.streams = try TCPStream.readAll(wanted, from: context.images)
        restored.connections = all
    }

    /// Whether a file is a connection that we make.
    private static func makesConnection(_ entry: InetSkEntry, _ context: RestoreContext) -> Bool {
        isConnection(entry) && !context.policy.tcpClose && !context.inherits("socket:[\(entry.ino)]")
    }

    /// Listeners and what waits on them are made together, and after them all other connections.
    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 {
        if RestoredWaiting.of(context).concerns(entry.id) { return 1 << 40 }
        return makesConnection(entry.isk, context) ? .max : UInt64(entry.id)
    }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        let waiting = RestoredWaiting.of(context)
        if let first = members.first, !waiting.concerns(first.id), makesConnection(first.isk, context) {
            return try makeConnections(members.map { ($0.id, $0.isk) }, context)
        }
        var clients: [Connection: FileEntry] = [:]
        for member in members {
            let ends = try connection(member.isk).plain
            if waiting.other(ends) != nil { clients[ends] = member } else { try makeOne(member, context) }
        }
        guard !waiting.isEmpty, let first = members.first, waiting.concerns(first.id) else { return }
        if !waiting.outside.isEmpty { try lock(context) }
        let listeners = members.filter { $0.isk.state == TCPState.listening.rawValue }
        try waiting.join(listeners, context) { (ends) throws(Failure) in
            guard let client = clients.removeValue(forKey: ends) else {
                throw Failure(.corruptImage, "the client \(ends.here.text) of a waiting connection is not there")
            }
            try makeOne(client, context)
        }
        guard clients.isEmpty else {
            throw Failure(.corruptImage, "a client of a waiting connection has no listener")
        }
    }

    private static func makeConnections(
        _ members: [(id: UInt32, entry: InetSkEntry)], _ context: RestoreContext
    ) throws(Failure) {
        try lock(context)
        let restored = Restored.of(context)
        let (streams, images) = (restored.streams, context.images)
        restored.streams = [:]
        restored.settled = try settled(members, streams)
        let dealer = Dealer(members.count)
        let made = Mutex<[(id: UInt32, number: Int32)]>([])
        var usual: [UInt32: InternetOptions.Defaults] = [:]
        for family in Set(members.map(\.entry.family)) {
            let kind = SocketKind(family: Int32(truncatingIfNeeded: family), type: stream, code: tcp)
            usual[family] = try attempt("create a socket") { () throws(SystemCallError) in
                try InternetOptions.Defaults(kind)
            }
        }
        let (defaults, owners) = (usual, context.owners)
        Descriptor.makeRoom(for: members.count + Workers.count)
        let outcome = Result { () throws(Failure) in
            try Workers.run(members.count < TCPStream.fewConnections ? 1 : Workers.count) { () throws(Failure) in
                while let index = dealer.take() {
                    let (id, entry) = members[index]
                    let number = try during(.file("socket:[\(entry.ino)]")) { () throws(Failure) in
                        let known = streams[entry.ino]
                        let stream =
                            if let known { known } else {
                                try TCPStream(entry.ino, state: entry.state, from: images)
                            }
                        let made = try make(
                            entry, owners, sharesPort: false, closes: false, repairs: true,
                            over: stream.fillsQueues ? nil : defaults[entry.family]
                        ) { (ends, number) throws(Failure) in
                            try stream.restore(ends, on: number, hasHeaders: SegmentSize.hasHeaders(entry.opts))
                            return true
                        }
                        return made.release()
                    }
                    made.withLock { $0.append((id, number)) }
                }
            }
        }
        for (id, number) in made.withLock({ $0 }) { try context.files.add(id, Descriptor(owning: number)) }
        try outcome.get()
    }

    private static func settled(
        _ members: [(id: UInt32, entry: InetSkEntry)], _ streams: [UInt32: TCPStream]
    ) throws(Failure) -> Set<UInt32> {
        var known: [(id: UInt32, ends: Connection, stream: TCPStream)] = []
        known.reserveCapacity(members.count)
        var byEnds: [Connection: Int] = [:]
        byEnds.reserveCapacity(members.count)
        for (id, entry) in members {
            guard let stream = streams[entry.ino], stream.state == .established else { continue }
            let ends = try connection(entry).plain
            byEnds[ends] = known.count
            known.append((id, ends, stream))
        }
        var found: Set<UInt32> = []
        found.reserveCapacity(known.count)
        for (id, ends, stream) in known {
            guard let place = byEnds[ends.reversed], stream.hasToldAll(to: known[place].stream),
                known[place].stream.hasToldAll(to: stream)
            else { continue }
            found.insert(id)
        }
        return found
    }

    private static func makeOne(_ member: FileEntry, _ context: RestoreContext) throws(Failure) {
        let entry = member.isk
        try context.addSocket(member.id, inode: entry.ino) { () throws(Failure) in try make(entry, member.id, context) }
    }

    /// Connects a client anew to its listener, with what it had sent.
    private static func reconnect(
        _ waiting: RestoredWaiting.Waiting, _ entry: InetSkEntry, _ ends: Connection, _ number: Int32,
        _ context: RestoreContext
    ) throws(Failure) {
        let stream = try TCPStream(entry.ino, state: entry.state, from: context.images)
        // More may have been received since the client was looked at.
        let arrived = max(0, min(Int(Int32(bitPattern: waiting.end &- stream.sendStart)), stream.unacknowledged.count))
        try RestoredWaiting.of(context).connect(
            waiting, ends, number, unsent: Array(stream.unacknowledged[arrived...]))
        guard stream.state.sentFin else { return }
        try attempt("half-close the connection") { () throws(SystemCallError) in
            try systemCall(.shutdown, Int(number), 1)
        }
    }

    private static func make(
        _ entry: InetSkEntry, _ id: UInt32, _ context: RestoreContext
    ) throws(Failure) -> Descriptor {
        try make(
            entry, context.owners, sharesPort: sharesPort(entry, context), closes: context.policy.tcpClose,
            connect: { (ends, number) throws(Failure) in
                guard isConnection(entry), let waiting = RestoredWaiting.of(context).other(ends) else { return false }
                try reconnect(waiting, entry, ends, number, context)
                return true
            }, fill: { (number) throws(Failure) in try Datagrams.restore(id, entry, on: number, context) })
    }

    /// Makes a socket, which may be done in any thread.
    ///
    /// - Parameters:
    ///   - repairs: it becomes a connection in repair mode, which lets it have an address that others have.
    ///   - defaults: what it has until its options are set, as far as that is known.
    ///   - connect: connects it, if it is to be; else it gets its address here. Returns whether it did.
    ///   - fill: brings what waits in it.
    private static func make(
        _ entry: InetSkEntry, _ owners: TreeOwners, sharesPort: Bool, closes: Bool, repairs: Bool = false,
        over defaults: InternetOptions.Defaults? = nil,
        connect: (Connection, Int32) throws(Failure) -> Bool, fill: (Int32) throws(Failure) -> Void = { _ in }
    ) throws(Failure) -> Descriptor {
        let kind = kind(entry)
        let made = try create(kind, entry, owners)
        let number = made.number
        try attempt("prepare the socket") { () throws(SystemCallError) in
            if kind.family == 10, try socketOption(number, level: 41, 26) != (entry.v6Only ? 1 : 0) {
                try setSocketOption(number, level: 41, 26, entry.v6Only ? 1 : 0)
            }
            // Others may have the address at the same time while not all is restored.
            if kind.type != raw, !repairs { try setSocketOption(number, 2, 1) }
            if entry.opts.soReuseport || sharesPort { try setSocketOption(number, 15, 1) }
        }
        try SocketOptions.prepareNetwork(entry.opts, on: number, kind, owners)
        try InternetOptions.prepare(entry, kind, number)
        let ends = try connection(entry, number)
        if try !connect(ends, number) { try address(entry, kind, ends, number, closes: closes) }
        try InternetOptions.complete(entry, kind, number, over: defaults)
        var options = entry.opts
        options.reuseaddr = !repairs
        let fresh = try defaults.map { (defaults) throws(Failure) in
            try attempt("read the socket's options") { () throws(SystemCallError) in
                try SocketOptions.Fresh(number, like: defaults.general)
            }
        }
        try SocketOptions.restore(options, on: number, over: fresh)
        try fill(number)
        try SocketOptions.completeNetwork(entry.opts, on: number, kind)
        try Memberships.restore(entry.memberships, on: number)
        try halfClose(entry, kind, number, closes: closes)
        // O_RDWR is all that a new socket has.
        if defaults == nil || entry.flags != 2 {
            try attempt("set the socket's flags") { () throws(SystemCallError) in
                try setStatusFlags(number, entry.flags)
            }
        }
        return made
    }

    /// A new socket. One for pings is only for groups that the system names, so it is made as one of its owner's group.
    private static func create(
        _ kind: SocketKind, _ entry: InetSkEntry, _ owners: TreeOwners
    ) throws(Failure) -> Descriptor {
        do throws(SystemCallError) { return try kind.make() } catch {
            guard error.errno == .EACCES, entry.opts.hasGid else {
                throw Failure(.denied, "can't create the socket", cause: error)
            }
        }
        let group = owners.ourGroup(entry.opts.gid)
        return try attempt("create the socket", advice: "See net.ipv4.ping_group_range") { () throws(SystemCallError) in
            try systemCall(.setresgid, -1, group, -1)
            let outcome = Result { () throws(SystemCallError) in try kind.make().release() }
            try systemCall(.setresgid, -1, 0, -1)
            try OwnerVisit.renew()
            return Descriptor(owning: try outcome.get())
        }
    }

    /// The ends with their device, where they need one.
    private static func connection(_ entry: InetSkEntry, _ number: Int32) throws(Failure) -> Connection {
        var ends = try connection(entry)
        guard entry.hasIfname, !entry.ifname.isEmpty else { return ends }
        let device = try NetworkDevice.index(entry.ifname, number)
        if ends.here.needsScope { ends.here.scope = device }
        if ends.there.needsScope { ends.there.scope = device }
        return ends
    }

    private static func address(
        _ entry: InetSkEntry, _ kind: SocketKind, _ ends: Connection, _ number: Int32, closes: Bool
    ) throws(Failure) {
        let isPing = kind.type == datagram && (kind.code == icmp || kind.code == icmp6)
        if closes, isConnection(entry) { return }
        if ends.here.port != 0 || !ends.here.isAny {
            do throws(Failure) { try InternetOptions.bind(ends.here, entry, kind, number) } catch {
                // The number of a ping is the kernel's choice.
                guard isPing else { throw error }
                var address = ends.here
                address.port = 0
                try InternetOptions.bind(address, entry, kind, number)
            }
        }
        if entry.state == TCPState.listening.rawValue {
            try attempt("listen") { () throws(SystemCallError) in
                try systemCall(.listen, Int(number), Int(min(entry.backlog, 1 << 30)))
            }
        } else if kind.type != stream, entry.dstPort != 0 || !ends.there.isAny {
            try attempt("connect it to \(ends.there.text)") { () throws(SystemCallError) in
                try ends.there.give(to: number, by: .connect)
            }
        }
    }

    private static func halfClose(
        _ entry: InetSkEntry, _ kind: SocketKind, _ number: Int32, closes: Bool
    ) throws(Failure) {
        var how = entry.hasShutdown ? entry.shutdown.rawValue - 1 : -1
        if closes, isConnection(entry) { how = 2 }
        guard how >= 0, kind.type != raw else { return }
        do throws(SystemCallError) { try systemCall(.shutdown, Int(number), how) } catch {
            // An unconnected socket says so, and is shut down.
            if error.errno != .ENOTCONN { throw Failure(.denied, "can't half-close the socket", cause: error) }
        }
    }

    /// Locks the network before the first connection is made, unless the dump's lock is still there: a restore may be
    /// elsewhere.
    static func lock(_ context: RestoreContext) throws(Failure) {
        let restored = Restored.of(context)
        guard !restored.connections.isEmpty, !restored.isLocked else { return }
        restored.isLocked = true
        guard restored.method != .skip, !NetworkLock.isHere(restored.method, id: restored.id) else { return }
        try restored.lock.take(.connections(restored.connections), nil, context.log)
    }

    /// Whether other listeners have the socket's port: they all allowed that, even if one does so no more.
    private static func sharesPort(_ entry: InetSkEntry, _ context: RestoreContext) -> Bool {
        entry.type == UInt32(stream) && !isConnection(entry)
            && Restored.of(context).sharedPorts.contains(entry.srcPort)
    }

    /// All have their addresses now, so what only allowed them that goes.
    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let socket = entry.isk
        guard !context.inherits("socket:[\(socket.ino)]"), !isConnection(socket) || context.policy.tcpClose else {
            return
        }
        let number = try context.files.number(entry.id)
        try attempt("set the socket's options") { () throws(SystemCallError) in
            if !socket.opts.reuseaddr { try setSocketOption(number, 2, 0) }
            if !socket.opts.soReuseport, sharesPort(socket, context) { try setSocketOption(number, 15, 0) }
        }
    }

    /// Takes back the lock that the dump left.
    ///
    /// - Parameter isWhole: it held up the whole namespace that we are in.
    static func unlock(_ context: RestoreContext, isWhole: Bool) {
        let restored = Restored.of(context)
        guard isWhole || !restored.dumped.isEmpty else { return }
        NetworkLock.release(
            isWhole ? .namespace : .connections(restored.dumped), restored.method, id: restored.id, context.log)
    }

    static func start(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let restored = Restored.of(context)
        if !restored.dumped.isEmpty {
            restored.lock.drop(context.log)
            restored.dumped = []
            try letGoOn(context)
        }
    }

    /// Switches the repair mode of all connections off.
    private static func letGoOn(_ context: RestoreContext) throws(Failure) {
        let settled = Restored.of(context).settled
        var ends: [(number: Int32, reuse: Bool, isSettled: Bool)] = []
        for entry in context.entries(of: .inetsk) where restores(entry) && makesConnection(entry.isk, context) {
            ends.append(
                (try context.files.number(entry.id), entry.isk.opts.reuseaddr, settled.contains(entry.id)))
        }
        let all = ends
        _ = try Workers.map(
            all.count, share: TCPStream.share, threads: all.count < TCPStream.fewConnections ? 1 : Workers.count
        ) { (range) throws(Failure) in
            for (number, reuse, isSettled) in all[range] {
                try attempt("let the connection go on") { () throws(SystemCallError) in
                    if isSettled {
                        try Repair.end(number, reuse: reuse)
                    } else {
                        try Repair.endWithProbe(number, reuse: reuse)
                    }
                }
            }
        }
    }
}

extension SocketKind {
    /// What the kernel does on top of a TCP connection (`TCP_ULP`): `tls`, or nothing.
    static func upperLayer(of socket: Int32) -> String {
        var name = [UInt8](repeating: 0, count: 16)
        var length: UInt32 = 16
        _ = try? name.withAddress { (value, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(socket), 6, 31, value, length)
            }
        }
        return String(decoding: name.prefix { $0 != 0 }, as: UTF8.self)
    }
}
