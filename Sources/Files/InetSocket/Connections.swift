internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink

/// The TCP connections of a dump. They are read together once all files are known, under the network's lock.
final class Connections {
    /// One end of a connection.
    fileprivate struct End {
        let file: OpenFile, connection: Connection, kind: SocketKind, inode: UInt32
        /// It was over when it was dumped; then nobody waits for an answer.
        let isOver: Bool
    }

    private var ends: [End] = []
    /// Holds up the packets of the connections.
    let lock = NetworkLock()
    private var diagnoses: [UInt8: [UInt32: InetDiagnosis]] = [:]

    static func of(_ context: DumpContext) -> Connections { context.state(Connections.self) { Connections() } }

    /// What the kernel tells of a socket that has an address; nil for others.
    func diagnosis(_ code: UInt8, _ inode: UInt32) throws(Failure) -> InetDiagnosis? {
        if let known = diagnoses[code] { return known[inode] }
        let list = try attempt("list the sockets of the protocol \(code)") { () throws(SystemCallError) in
            try InetDiagnosis.list(code)
        }
        diagnoses[code] = list
        return list[inode]
    }

    /// Notes an end of a connection, whose entry is completed later.
    func add(_ file: OpenFile, _ connection: Connection, _ kind: SocketKind, _ entry: InetSkEntry) {
        ends.append(
            End(
                file: file, connection: connection, kind: kind, inode: entry.ino,
                isOver: entry.state == TCPState.closed.rawValue))
    }

    /// Holds up all packets of the namespace of a tree that has its own, as soon as it stands still.
    func lockNamespace(_ context: DumpContext) throws(Failure) {
        try lock.take(.namespace, context.policy.networkLock, context.log)
    }

    /// Locks the connections and reads them.
    func finish(_ context: DumpContext) throws(Failure) {
        let waiting = WaitingConnections.of(context)
        try waiting.examine(Set(ends.map(\.connection.plain)), context)
        guard !ends.isEmpty || !waiting.outside.isEmpty else { return }
        guard !context.policy.tcpClose else { return }
        if !context.policy.tcpEstablished {
            let all = Set(ends.map(\.connection.plain)).union(waiting.inside)
            for end in ends where !all.contains(end.connection.reversed.plain) && !end.isOver {
                try inside(Place(end)) { () throws(Failure) in throw TCPPolicy.refusal(end.connection) }
            }
        }
        // A connection that is over needs no lock.
        let open = Set(ends.lazy.filter { !$0.isOver }.map(\.connection).filter { !waiting.isReconnected($0) })
            .union(waiting.outside)
        if !lock.isWhole { try lock.take(.connections(open), context.policy.networkLock, context.log) }
        var places: [UInt32: Int] = [:]
        for (place, entry) in context.files.enumerated() where entry.hasIsk { places[entry.id] = place }
        // A death of ours in repair mode would leave it on, so signals have to wait.
        let before = try attempt("block signals") { () throws(SystemCallError) in try Connections.setSignalMask(.max) }
        let outcome = Result { () throws(Failure) in try readAll(SocketDefaults.of(context)) }
        _ = try? Connections.setSignalMask(before)
        for (end, found) in zip(ends, try outcome.get()) {
            guard let place = places[end.file.id] else { throw Failure(.bug, "a connection without its file") }
            let image = context.images.create(.tcpStream(end.inode))
            try image.append(raw: found.stream)
            try image.finish()
            context.files[place].isk.state = found.state.rawValue
            if !found.more.isEmpty { context.files[place].isk.opts.more = found.more }
        }
        if context.policy.leaveRunning, !lock.isWhole { lock.drop(context.log) }
    }

    /// What was read of an end: its stream as an image holds it, and its options.
    private struct Found: Sendable {
        let state: TCPState, stream: [UInt8], more: [BrumateSocketOptionEntry]
    }

    /// Reads all ends.
    private func readAll(_ defaults: SocketDefaults) throws(Failure) -> [Found] {
        let jobs = ends.map { end in
            (number: end.file.handle.number, place: Place(end), usual: defaults.values(end.kind), inode: end.inode)
        }
        let threads = jobs.count < TCPStream.fewConnections ? 1 : Workers.count
        let found = try Workers.map(jobs.count, share: TCPStream.share, threads: threads) { (range) throws(Failure) in
            try jobs[range].map { (number, place, usual, inode) throws(Failure) in
                try inside(place) { () throws(Failure) in
                    let more = SocketOptions.more(number, usual, isConnected: true)
                    let stream = try TCPStream(reading: number)
                    return Found(state: stream.state, stream: try stream.encoded(inode), more: more)
                }
            }
        }
        return Array(found.joined())
    }

    /// Where an end is, for messages.
    fileprivate struct Place: Sendable {
        let task: TaskID, name: String, number: Int32

        fileprivate init(_ end: End) {
            (task, name, number) = (end.file.owner.id, end.file.owner.name, end.file.number)
        }
    }

    private static func setSignalMask(_ mask: UInt64) throws(SystemCallError) -> UInt64 {
        var (fresh, before) = (mask, UInt64(0))
        try withAddress(of: &fresh) { (fresh) throws(SystemCallError) in
            try withAddress(of: &before) { (before) throws(SystemCallError) in
                try systemCall(.rt_sigprocmask, 2, fresh, before, 8)
            }
        }
        return before
    }

    /// The tree is gone and only our copies are left of its connections: they are closed without a word, and packets of
    /// their peers find the lock instead of a kernel that knows nothing of them.
    func leave(_ context: DumpContext) throws(Failure) {
        let waiting = WaitingConnections.of(context)
        waiting.leave()
        guard !ends.isEmpty || !waiting.outside.isEmpty, !context.policy.tcpClose else {
            if lock.isWhole { try lock.stay(.namespace) }
            return
        }
        let numbers = ends.map { $0.file.handle.number }
        let failures = Workers.map(
            numbers.count, share: TCPStream.share,
            threads: numbers.count < TCPStream.fewConnections ? 1 : Workers.count
        ) { range in
            numbers[range].map { number in
                Result { () throws(SystemCallError) in try Repair.begin(number) }
            }
        }
        for (end, outcome) in zip(ends, failures.joined()) {
            guard case .failure(let error) = outcome else { continue }
            context.log.warning("the connection from \(end.connection.text) ends for its peer: \(error)")
        }
        let held = ends.map(\.connection).filter { !waiting.isReconnected($0) }
        try lock.stay(lock.isWhole ? .namespace : .connections(Set(held).union(waiting.outside)))
    }

    /// Lets the connections go: the dump failed.
    func abandon() {
        lock.drop(Logger(label: "brumate"))
        ends = []
    }
}

/// What is asked of TCP connections before anything is stopped.
enum TCPPolicy {
    /// Every state but TIME_WAIT and SYN_RECV, which no descriptor has.
    private static let states: UInt32 = 0xfff & ~(1 << 6 | 1 << 3)

    /// Sockets that sign their packets (`TCP_MD5SIG`), by inode, of whatever program: the kernel tells of the keys only
    /// here.
    static func signing() -> Set<UInt32> {
        var found: Set<UInt32> = []
        try? InetDiagnosis.forEach(6, states, asksForKeys: true) {
            if $0.hasKeys, $0.inode != 0 { found.insert($0.inode) }
        }
        return found
    }

    /// Why a socket of `signing` can't be dumped.
    static var signingRefusal: Failure {
        Failure(
            .unsupported, "the socket signs its packets (TCP_MD5SIG), and keys are not written to images",
            advice: "Close it before the dump")
    }

    /// Finds sockets, by inode, that the dump would refuse. Returns the inode and why.
    static func check(_ inodes: Set<UInt32>, _ policy: DumpPolicy) -> (inode: UInt32, failure: Failure)? {
        var ours: [UInt32: InetDiagnosis] = [:]
        var waiting: [InetDiagnosis] = []
        let answer: Void? = try? InetDiagnosis.forEach(6, states, asksForKeys: true) { one in
            if inodes.contains(one.inode) { ours[one.inode] = one }
            if WaitingConnections.isWaiting(one) { waiting.append(one) }
        }
        guard answer != nil else { return nil }
        var open: [UInt32: Connection] = [:]
        for (inode, facts) in ours {
            if facts.hasKeys { return (inode, signingRefusal) }
            guard facts.peerPort != 0, facts.state != 7, facts.state != 10 else { continue }
            open[inode] = Connection(
                here: InetAddress(family: facts.family, facts.source, port: facts.sourcePort),
                there: InetAddress(family: facts.family, facts.peer, port: facts.peerPort))
        }
        guard !policy.tcpEstablished, !policy.tcpClose else { return nil }
        // What waits on our listeners is looked at later.
        let ports = Set(ours.values.filter { $0.state == TCPState.listening.rawValue }.map(\.sourcePort))
        let inside = Set(open.values.map(\.plain))
            .union(waiting.filter { ports.contains($0.sourcePort) }.map(\.connection.plain))
        let outside = open.filter { !inside.contains($0.value.reversed.plain) }.min { $0.key < $1.key }
        return outside.map { ($0.key, refusal($0.value)) }
    }

    /// The word that established connections need.
    static func refusal(_ connection: Connection) -> Failure {
        Failure(
            .denied, "the TCP connection from \(connection.text) is established, and its other end is not in the tree",
            advice:
                "Pass --tcp-established to keep it (its packets are held up until the restore, which has to be where "
                + "this address is), --tcp-close to let it break and restore it closed, or close it first")
    }
}

/// What is done with a descriptor of a task.
private func inside<R>(_ place: Connections.Place, _ body: () throws(Failure) -> R) throws(Failure) -> R {
    try during(.dumping(place.task, place.name)) { () throws(Failure) in
        try during(.descriptor(place.number), body)
    }
}
