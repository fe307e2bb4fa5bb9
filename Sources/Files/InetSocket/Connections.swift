internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink

/// The TCP connections of a dump. They are read together once all files are known, under the network's lock.
final class Connections {
    /// One end of a connection.
    private struct End {
        let file: OpenFile, connection: Connection, inode: UInt32

        /// Whether there is a peer that waits for an answer.
        var isEstablished: Bool {
            guard let state = try? TCPStream.information(file.handle.number).first else { return false }
            return TCPState(rawValue: UInt32(state)) != .closed
        }
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
    func add(_ file: OpenFile, _ connection: Connection, _ entry: InetSkEntry) {
        ends.append(End(file: file, connection: connection, inode: entry.ino))
    }

    /// Locks the connections and reads them.
    func finish(_ context: DumpContext) throws(Failure) {
        guard !ends.isEmpty else { return }
        var outside = Set(ends.map(\.connection))
        if !context.policy.tcpEstablished, !context.policy.tcpClose {
            for end in ends where !outside.contains(end.connection.reversed) && end.isEstablished {
                throw during(end) { TCPPolicy.refusal(end.connection) }
            }
        }
        guard !context.policy.tcpClose else { return }
        // A connection that was reset or is long over needs no lock.
        outside = Set(ends.filter(\.isEstablished).map(\.connection))
        try lock.take(outside, context.policy.networkLock, context.log)
        var places: [UInt32: Int] = [:]
        for (place, entry) in context.files.enumerated() where entry.hasIsk { places[entry.id] = place }
        // A death of ours in repair mode would leave it on, so signals have to wait.
        let before = try attempt("block signals") { () throws(SystemCallError) in try Connections.setSignalMask(.max) }
        let outcome = Result { () throws(Failure) in
            for end in ends {
                try read(end, &context.files[places[end.file.id] ?? 0], context)
            }
        }
        _ = try? Connections.setSignalMask(before)
        try outcome.get()
        if context.policy.leaveRunning { lock.drop(context.log) }
    }

    private func read(_ end: End, _ entry: inout FileEntry, _ context: DumpContext) throws(Failure) {
        try inside(end) { () throws(Failure) in
            let stream = try TCPStream(reading: end.file.handle.number)
            try stream.write(end.inode, to: context.images)
            guard entry.hasIsk, entry.id == end.file.id else { throw Failure(.bug, "a connection without its file") }
            entry.isk.state = stream.state.rawValue
        }
    }

    private func inside<R>(_ end: End, _ body: () throws(Failure) -> R) throws(Failure) -> R {
        let owner = end.file.owner
        return try Diagnostics.during(.dumping(owner.id, owner.name)) { () throws(Failure) in
            try Diagnostics.during(.descriptor(end.file.number), body)
        }
    }

    private func during(_ end: End, _ failure: () -> Failure) -> Failure {
        do throws(Failure) { try inside(end) { () throws(Failure) in throw failure() } } catch { return error }
        return failure()
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
        guard !ends.isEmpty, !context.policy.tcpClose else { return }
        for end in ends {
            do throws(SystemCallError) { try Repair.begin(end.file.handle.number) } catch {
                context.log.warning("the connection from \(end.connection.text) ends for its peer: \(error)")
            }
        }
        try lock.stay(Set(ends.map(\.connection)))
    }

    /// Lets the connections go: the dump failed.
    func abandon() {
        lock.drop(Logger(label: "brumate"))
        ends = []
    }
}

/// The word that established connections need.
enum TCPPolicy {
    static func refusal(_ connection: Connection) -> Failure {
        Failure(
            .denied, "the TCP connection from \(connection.text) is established, and its other end is not in the tree",
            advice: "Pass --tcp-established to keep it (its packets are held up until the restore, which has to be where "
                + "this address is), --tcp-close to let it break and restore it closed, or close it first")
    }
}
