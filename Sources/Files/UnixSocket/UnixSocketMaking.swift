internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Remote
internal import SystemPackage

/// Restore: makes all UNIX sockets of the tree.
///
/// Connections are made the way they came about where that shows: pairs by the task that the kernel noted, accepted
/// sockets through their listener, by a task that looks like the one that connected. Queues are filled last, through the
/// sockets that sent, before anything is connected that would receive from one sender only.
final class UnixSocketMaking {
    let context: RestoreContext
    private let all: [Member]
    /// Places in `all`.
    private var byInode: [UInt32: Int] = [:]
    /// What is ours to make, by id: neither outside nor passed by the caller.
    var mine: [Member] = []
    let witnesses: Witnesses
    private let others = UnixDiagnoses()
    /// The other ends: of members by their ids, or our own, which are closed in the end.
    var mates: [UInt32: Int32] = [:]
    var temporary: [UInt32: Int32] = [:]
    /// Members whose name is not theirs to bind.
    var accepted: Set<UInt32> = []
    /// Connections to the outside that could be made anew.
    var reconnected: Set<UInt32> = []

    init(_ entries: [FileEntry], _ context: RestoreContext) {
        self.context = context
        var sorted = entries.enumerated().map { Member(place: $0.offset, id: $0.element.id, usk: $0.element.usk) }
        if zip(sorted, sorted.dropFirst()).contains(where: { $0.id > $1.id }) {
            sorted.sort { $0.id < $1.id }
            for place in sorted.indices { sorted[place].place = place }
        }
        all = sorted
        witnesses = Witnesses(context)
        byInode.reserveCapacity(all.count)
        for member in all { byInode[member.usk.ino] = member.place }
    }

    func member(_ inode: UInt32) -> Member? { byInode[inode].map { all[$0] } }

    /// A socket of files.img.
    struct Member {
        var place: Int
        let id: UInt32, usk: UnixSkEntry
    }

    /// Files that were made, and on which mounts, to be removed if the restore fails.
    private var files: [(path: [UInt8], mount: Int32)] = []
    /// Whether all that is left is to let the tasks go.
    var isSettled = false
    /// Whether `complete` has begun.
    var isComplete = false

    deinit { for number in temporary.values { _ = try? systemCall(.close, Int(number)) } }

    /// Removes what a failed restore has made, from inside: outside the paths are others' files.
    func abandon() {
        guard !isSettled else { return }
        for (path, mount) in files {
            try? context.view.at(mount: mount) { () throws(Failure) in _ = try? removeName(FilePath(bytes: path)) }
        }
        files = []
    }

    static func key(_ entry: UnixSkEntry) -> String { "socket:[\(entry.ino)]" }

    func naming<R>(_ member: Member, _ body: () throws(Failure) -> R) throws(Failure) -> R {
        try during(.file("UNIX socket \(member.usk.ino)"), body)
    }

    // MARK: make

    /// A connection of two members through a listener.
    private struct Joint {
        let client: Member, accepted: Member
    }

    /// A pair, of which one end may be ours to close.
    private struct Pair {
        let one: Member, two: Member?

        var who: SkCredEntry? {
            one.usk.hasPeerCred ? one.usk.peerCred : (two?.usk.hasPeerCred ?? false) ? two?.usk.peerCred : nil
        }
    }

    /// Makes the sockets, with their names, listening and connected.
    func make() throws(Failure) {
        for member in all {
            let socket = member.usk
            guard socket.uflags & UnixSocket.external == 0 else { continue }
            guard socket.name.count <= 108, socket.type == 1 || socket.type == 2 || socket.type == 5 else {
                throw Failure(.corruptImage, "the UNIX socket \(socket.ino) has an impossible name or type")
            }
            if let passed = try context.inherited(UnixSocketMaking.key(socket)) {
                try context.files.add(member.id, passed)
            } else {
                mine.append(member)
            }
        }
        let sorted = try sort()
        var (singles, pairs) = (sorted.0, sorted.1)
        let joints = sorted.2
        for member in singles { try naming(member) { () throws(Failure) in try makeSingle(member) } }
        for member in singles where isOutside(member) && !reconnected.contains(member.id) {
            pairs.append(Pair(one: member, two: nil))
        }
        singles.removeAll { isOutside($0) && !reconnected.contains($0.id) }
        try makePairs(pairs)
        for joint in joints.values.joined() {
            try naming(joint.client) { () throws(Failure) in try makeSingle(joint.client) }
        }
        let clients = joints.values.joined().map(\.client)
        for member in singles + pairs.flatMap({ [$0.one, $0.two].compactMap { $0 } }) + clients
        where !member.usk.name.isEmpty && !reconnected.contains(member.id) {
            try naming(member) { () throws(Failure) in
                try bind(
                    try context.files.number(member.id), as: member.usk, aside: accepted.contains(member.id))
                if !accepted.contains(member.id), let place = SocketName(member.usk).place {
                    files.append((place, member.usk.mntID))
                }
            }
        }
        try listen(singles.filter { $0.usk.state == UnixSocket.listening })
        for (name, joints) in joints.sorted(by: { $0.key.lexicographicallyPrecedes($1.key) }) {
            try join(joints, named: name)
        }
        try witnesses.dismiss()
    }

    /// What only sockets have in common that one can be connected to through the other's name: type, mount and name.
    private static func address(_ socket: UnixSkEntry) -> [UInt8] {
        [UInt8(truncatingIfNeeded: socket.type)] + [UInt8](bytesOf: socket.mntID) + Array(socket.name)
    }

    /// Binds a socket to a member's name, where that leads.
    private func bind(_ number: Int32, as socket: UnixSkEntry, aside: Bool) throws(Failure) {
        try context.view.at(mount: socket.mntID) { () throws(Failure) in
            try SocketName(socket).bind(number, aside: aside, others)
        }
    }

    /// Decides how each member is made. Joints are by the name of the accepted end.
    private func sort() throws(Failure) -> ([Member], [Pair], [[UInt8]: [Joint]]) {
        var isMine = [Bool](repeating: false, count: all.count), isDone = isMine
        for member in mine { isMine[member.place] = true }
        let listeners = Set(
            mine.filter { $0.usk.state == UnixSocket.listening }.map { UnixSocketMaking.address($0.usk) })
        var uses: [[UInt8]: Int] = [:]
        for member in mine where !member.usk.name.isEmpty {
            uses[UnixSocketMaking.address(member.usk), default: 0] += 1
        }
        var singles: [Member] = []
        var pairs: [Pair] = []
        var joints: [[UInt8]: [Joint]] = [:]
        func isAccepted(_ member: Member) throws(Failure) -> Bool {
            if member.usk.name.isEmpty { return false }
            let address = UnixSocketMaking.address(member.usk)
            if listeners.contains(address) || uses[address] ?? 0 > 1 { return true }
            let socket = SocketName(member.usk)
            if socket.place == nil { return true }
            return try context.view.at(mount: member.usk.mntID) { () throws(Failure) in try socket.isTaken(others) }
        }
        for member in mine {
            let socket = member.usk
            guard socket.peer != 0, socket.peer != socket.ino, !isDone[member.place],
                let other = self.member(socket.peer), isMine[other.place], other.usk.peer == socket.ino,
                other.usk.type == socket.type
            else { continue }
            (isDone[member.place], isDone[other.place]) = (true, true)
            if socket.type != UnixSocket.datagram, try isAccepted(member) {
                joints[UnixSocketMaking.address(socket), default: []].append(
                    Joint(client: other, accepted: member))
            } else if socket.type != UnixSocket.datagram, try isAccepted(other) {
                joints[UnixSocketMaking.address(other.usk), default: []].append(
                    Joint(client: member, accepted: other))
            } else {
                pairs.append(Pair(one: member, two: other))
            }
        }
        for member in mine where !isDone[member.place] {
            let socket = member.usk
            let other = self.member(socket.peer)
            if socket.type == UnixSocket.datagram {
                if socket.peer != socket.ino, let other, isMine[other.place], !isDone[other.place],
                    other.usk.name.isEmpty, other.usk.type == UnixSocket.datagram
                {
                    // It was made as one of a pair, of which the other then found another peer.
                    isDone[other.place] = true
                    pairs.append(Pair(one: member, two: other))
                } else if socket.peer == 0, socket.state == UnixSocket.established, socket.name.isEmpty {
                    // Its peer is closed. One with a name may only be someone else's peer.
                    pairs.append(Pair(one: member, two: nil))
                } else {
                    singles.append(member)
                }
            } else if socket.state == UnixSocket.established {
                if let other, isMine[other.place], other.usk.state == UnixSocket.listening {
                    singles.append(member)
                } else if let other, other.usk.uflags & UnixSocket.external != 0, !other.usk.name.isEmpty,
                    other.usk.type == socket.type
                {
                    singles.append(member)
                } else {
                    if let other, other.usk.uflags & UnixSocket.external != 0 {
                        context.log.warning(
                            "\(UnixSocketMaking.key(socket)) is disconnected: no --inherit-fd says what it is to be")
                    }
                    if try isAccepted(member) { accepted.insert(member.id) }
                    pairs.append(Pair(one: member, two: nil))
                }
            } else {
                singles.append(member)
            }
        }
        // One that is the second of a pair may have been sorted before its mate.
        if !singles.isEmpty {
            let paired = Set(pairs.flatMap { [$0.one.id, $0.two?.id ?? 0] })
            singles.removeAll { paired.contains($0.id) }
        }
        for joint in joints.values.joined() { accepted.insert(joint.accepted.id) }
        return (singles, pairs, joints)
    }

    /// Whether it was connected to a listener outside of the tree.
    private func isOutside(_ member: Member) -> Bool {
        member.usk.type != UnixSocket.datagram && member.usk.peer != 0
            && self.member(member.usk.peer).map { $0.usk.uflags & UnixSocket.external != 0 } ?? false
    }

    static func create(_ type: UInt32) throws(Failure) -> Descriptor {
        try attempt("create it") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.socket, 1, Int(type) | 0o2000000, 0)))
        }
    }

    private func makeSingle(_ member: Member) throws(Failure) {
        let made = try UnixSocketMaking.create(member.usk.type)
        if isOutside(member), let outside = self.member(member.usk.peer) {
            if !member.usk.name.isEmpty {
                try bind(made.number, as: member.usk, aside: accepted.contains(member.id))
            }
            do throws(Failure) {
                try connect([made.number], to: SocketName(outside.usk).address, door: nil, as: member.usk.ownCred)
                reconnected.insert(member.id)
                context.log.warning(
                    "\(UnixSocketMaking.key(member.usk)) has a new connection to the socket \(OutsidePeer.described(Array(outside.usk.name)))"
                )
            } catch {
                context.log.warning(
                    "\(UnixSocketMaking.key(member.usk)) is hung up: nobody answers \(OutsidePeer.described(Array(outside.usk.name))): \(error)"
                )
                return
            }
        }
        try context.files.add(member.id, made)
    }

    /// Makes pairs, those with the same maker together.
    private func makePairs(_ pairs: [Pair]) throws(Failure) {
        struct Maker: Hashable {
            let who: SkCredEntry?
            let type: UInt32
        }
        var groups: [(maker: Maker, pairs: [Pair])] = []
        var places: [Maker: Int] = [:]
        var last = 0
        for pair in pairs {
            let maker = Maker(who: pair.who, type: pair.one.usk.type)
            // Mostly it is that of the one before.
            if !groups.isEmpty, groups[last].maker == maker {
                groups[last].pairs.append(pair)
                continue
            }
            last = places[maker] ?? groups.count
            if last == groups.count {
                places[maker] = last
                groups.append((maker, []))
            }
            groups[last].pairs.append(pair)
        }
        for (maker, pairs) in groups {
            if let who = maker.who, let puppet = try witnesses.witness(who.pid) {
                try makePairs(pairs, in: puppet, who, maker.type)
            } else {
                for pair in pairs {
                    var ends: (Int32, Int32) = (-1, -1)
                    try attempt("create a pair") { () throws(SystemCallError) in
                        try withAddress(of: &ends) { (ends) throws(SystemCallError) in
                            try systemCall(.socketpair, 1, Int(maker.type) | 0o2000000, 0, ends)
                        }
                    }
                    try add(pair, Descriptor(owning: ends.0), Descriptor(owning: ends.1))
                }
            }
        }
    }

    /// Sockets that a witness handles in one batch; it may have a low limit on open files.
    private static let mostAtOnce = 200

    /// While the witness makes some, we fetch those before, and what has been fetched it closes.
    private func makePairs(
        _ pairs: [Pair], in puppet: Puppet, _ who: SkCredEntry, _ type: UInt32
    ) throws(Failure) {
        let source = try witnesses.source(puppet)
        var made: [(here: Int32, there: Int32)] = [], fetched = made
        var rest = pairs[...], waiting = rest.prefix(0)
        while !(rest.isEmpty && made.isEmpty && fetched.isEmpty) {
            let some = rest.prefix(UnixSocketMaking.mostPairs)
            rest = rest.dropFirst(some.count)
            var batch = Batch()
            for range in UnixSocketMaking.stretches(fetched.flatMap { [$0.here, $0.there] }) {
                batch.add(
                    .close_range, .value(Int(range.lowerBound)), .value(Int(range.upperBound)), .value(0),
                    doing: "close sockets")
            }
            if !some.isEmpty { Witnesses.assume(who, &batch) }
            let rooms = some.map { _ in
                let room = batch.reserve(8)
                batch.add(
                    .socketpair, .value(1), .value(Int(type) | 0o2000000), .value(0), .buffer(room),
                    doing: "create a pair of sockets")
                return room
            }
            if !some.isEmpty { Witnesses.resume(who, &batch) }
            let results = try puppet.run(batch) { () throws(Failure) in
                for (pair, (here, there)) in zip(waiting, made) {
                    try add(pair, try source.fetch(Int(here)), try source.fetch(Int(there)))
                }
            }
            (fetched, waiting) = (made, some)
            made = rooms.map { (results.value(Int32.self, $0), results.value(Int32.self, $0, at: 4)) }
        }
    }

    /// Numbers in their order, neighbours together.
    private static func stretches(_ numbers: [Int32]) -> [ClosedRange<Int32>] {
        var found: [ClosedRange<Int32>] = []
        for number in numbers.sorted() {
            if let last = found.last, last.upperBound + 1 == number {
                found[found.count - 1] = last.lowerBound...number
            } else {
                found.append(number...number)
            }
        }
        return found
    }

    /// Pairs that a witness makes in one batch. The two before are still open in it, and its limit on open files is ours.
    private static let mostPairs = max(1, min(500, Descriptor.limit() / 8))

    private func add(_ pair: Pair, _ here: consuming Descriptor, _ there: consuming Descriptor) throws(Failure) {
        mates[pair.one.id] = there.number
        if let two = pair.two {
            mates[two.id] = here.number
            try context.files.add(two.id, there)
        } else {
            temporary[pair.one.id] = there.release()
        }
        try context.files.add(pair.one.id, here)
    }

    private func listen(_ listeners: [Member]) throws(Failure) {
        for listener in listeners {
            try naming(listener) { () throws(Failure) in
                try listen(
                    try context.files.number(listener.id), listener.usk.backlog,
                    as: listener.usk.hasPeerCred ? listener.usk.peerCred : nil)
            }
        }
    }

    private func listen(_ number: Int32, _ backlog: UInt32, as who: SkCredEntry?) throws(Failure) {
        guard let who, let puppet = try witnesses.witness(who.pid) else {
            try attempt("listen") { () throws(SystemCallError) in
                try systemCall(.listen, Int(number), Int(Int32(clamping: backlog)))
            }
            return
        }
        let arrived = try context.deliver([number], to: puppet)
        var batch = Batch()
        Witnesses.assume(who, &batch)
        batch.add(.listen, .descriptor(arrived[0]), .value(Int(Int32(clamping: backlog))), doing: "listen")
        Witnesses.resume(who, &batch)
        batch.add(.close, .descriptor(arrived[0]), doing: "close a socket")
        try puppet.run(batch)
    }

    /// Connects members through the listener that has the accepted ends' name, or through one that is there only for this.
    private func join(_ joints: [Joint], named name: [UInt8]) throws(Failure) {
        guard let first = joints.first else { return }
        let known = mine.first {
            $0.usk.state == UnixSocket.listening && UnixSocketMaking.address($0.usk) == name
        }
        if let known {
            return try join(
                joints, through: try context.files.number(known.id), backlog: known.usk.backlog, known.usk)
        }
        let listener = try UnixSocketMaking.create(first.accepted.usk.type)
        let number = listener.number
        do throws(Failure) {
            try bind(number, as: first.accepted.usk, aside: true)
        } catch {
            context.log.warning(
                "accepted sockets have no name, as their listener is outside of the tree and has it: \(error)")
            var autobind = SocketName.address([])
            try attempt("bind a listener") { () throws(SystemCallError) in
                try autobind.withAddress { (address, count) throws(SystemCallError) in
                    try systemCall(.bind, Int(number), address, count)
                }
            }
        }
        try listen(
            number, UInt32(joints.count), as: first.client.usk.hasPeerCred ? first.client.usk.peerCred : nil)
        try join(joints, through: number, backlog: UInt32(joints.count), first.accepted.usk)
    }

    private func join(
        _ joints: [Joint], through listener: Int32, backlog: UInt32, _ name: UnixSkEntry
    ) throws(Failure) {
        let way = try Way(to: listener, name)
        defer { way.close() }
        var start = 0
        while start < joints.count {
            let who = joints[start].accepted.usk.hasPeerCred ? joints[start].accepted.usk.peerCred : nil
            let most = min(start + Int(clamping: min(backlog, UInt32(UnixSocketMaking.mostAtOnce))) + 1, joints.count)
            let end =
                joints[start..<most].firstIndex {
                    ($0.accepted.usk.hasPeerCred ? $0.accepted.usk.peerCred : nil) != who
                } ?? most
            var clients: [Int32] = []
            for joint in joints[start..<end] { clients.append(try context.files.number(joint.client.id)) }
            let maker = try connect(clients, to: way.address, door: way.door, as: who)
            for joint in joints[start..<end] {
                try naming(joint.accepted) { () throws(Failure) in
                    let made = try accept(listener, from: maker)
                    mates[joint.accepted.id] = try context.files.number(joint.client.id)
                    mates[joint.client.id] = made.number
                    try context.files.add(joint.accepted.id, made)
                }
            }
            start = end
        }
    }

    /// Accepts a connection that one of ours made. Strangers may have found the name already; they have to come again.
    private func accept(_ listener: Int32, from maker: TaskID) throws(Failure) -> Descriptor {
        while true {
            let made = try attempt("accept a connection") { () throws(SystemCallError) in
                Descriptor(owning: Int32(try systemCall(.accept4, Int(listener), 0, 0, 0o2000000)))
            }
            if try PeerCredentials.read(made.number)?.pid == UInt32(bitPattern: maker.rawValue) { return made }
            context.log.warning("a program outside of the tree connected during the restore, and is refused")
        }
    }

    /// How to reach a socket of ours.
    struct Way {
        let address: [UInt8]
        let door: Int32?

        init(to number: Int32, _ entry: UnixSkEntry) throws(Failure) {
            if entry.name.first == 0 || entry.name.isEmpty {
                door = nil
                address = try Way.ownName(number)
            } else {
                let opened = try attempt("find the file of a socket") { () throws(SystemCallError) in
                    try SocketName.door(number).release()
                }
                door = opened
                address = Way.address(ourPath("/proc/self/fd/\(opened)"))
            }
        }

        static func address(_ door: String) -> [UInt8] { SocketName.address(Array(door.utf8) + [0]) }

        func close() { if let door { _ = try? systemCall(.close, Int(door)) } }

        private static func ownName(_ number: Int32) throws(Failure) -> [UInt8] {
            var room = [UInt8](repeating: 0, count: 128)
            var length: UInt32 = 128
            try attempt("ask for a socket's name") { () throws(SystemCallError) in
                try room.withAddress { (address, _) throws(SystemCallError) in
                    try withAddress(of: &length) { (length) throws(SystemCallError) in
                        try systemCall(.getsockname, Int(number), address, length)
                    }
                }
            }
            return Array(room.prefix(Int(length)))
        }
    }

    /// Connects sockets to a name, or to the file behind a door, as someone. Returns the task that did.
    @discardableResult
    func connect(
        _ clients: [Int32], to address: [UInt8], door: Int32?, as who: SkCredEntry?
    ) throws(Failure) -> TaskID {
        guard let who, let puppet = try witnesses.witness(who.pid) else {
            for client in clients {
                try attempt("connect it") { () throws(SystemCallError) in
                    try address.withConstantAddress { (address, count) throws(SystemCallError) in
                        try systemCall(.connect, Int(client), address, count)
                    }
                }
            }
            return TaskID.current
        }
        let arrived = try context.deliver(clients + (door.map { [$0] } ?? []), to: puppet)
        var batch = Batch()
        var there = address
        if door != nil, let remote = arrived.last { there = Way.address("/proc/self/fd/\(remote.number)") }
        let place = batch.place(there)
        Witnesses.assume(who, &batch)
        for number in arrived.prefix(clients.count) {
            batch.add(.connect, .descriptor(number), .buffer(place), .value(there.count), doing: "connect a socket")
        }
        Witnesses.resume(who, &batch)
        for number in arrived { batch.add(.close, .descriptor(number), doing: "close a socket") }
        try puppet.run(batch)
        return puppet.task
    }
}
