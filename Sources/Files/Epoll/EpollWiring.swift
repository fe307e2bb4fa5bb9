internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Remote

/// Lets an epoll watch its files again.
///
/// The kernel knows an entry by the file and the number that the file had, so a task must do it that has the file under
/// that number. It must be one of the tree also because a signalfd wakes for the signals of the task that watched it.
struct EpollWiring {
    /// A file to be watched.
    private struct Watch {
        let number: Int32
        let file: UInt32
        var events: UInt32
        let data: UInt64
        /// Whether it has told already what can be told now.
        let isToldOf: Bool
    }

    private let id: UInt32
    private let epoll: Int32
    private let holders: [DescriptorTables.Holder]
    private let context: RestoreContext
    private let watches: [Watch]

    /// Bits of an entry that say how files are watched: EPOLLET, EPOLLONESHOT, EPOLLWAKEUP, EPOLLEXCLUSIVE.
    private static let modes: UInt32 = 0xf000_0000

    /// EPOLLONESHOT.
    private static let oneShot: UInt32 = 1 << 30

    /// Calls in one batch.
    private static let most = 4096

    init(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        id = entry.id
        epoll = try context.files.number(entry.id)
        holders = DescriptorTables.of(context).holders(of: entry.id)
        self.context = context
        var watches: [Watch] = []
        for watched in entry.epfd.tfd {
            let number = Int32(clamping: watched.hasNumber ? watched.number : watched.tfd)
            let known =
                watched.hasFileID
                ? watched.fileID : holders.lazy.compactMap { $0.table.files[number]?.id }.first
            guard number < 1 << 30, let known, context.files.contains(known) else {
                throw Failure(.corruptImage, "it watches the descriptor \(number), which does not exist")
            }
            let isToldOf = entry.epfd.idle && Epoll.isEdgeTriggered(watched)
            watches.append(
                Watch(
                    number: number, file: known, events: watched.events, data: watched.data, isToldOf: isToldOf))
        }
        self.watches = watches
    }

    func run() throws(Failure) {
        var (plain, disarmed, toldOf): ([Watch], [Watch], [Watch]) = ([], [], [])
        for watch in watches {
            // The kernel adds ERR and HUP to whatever is asked for, so only one-shot entries that fired lack them.
            let hasFired = watch.events & EpollWiring.oneShot != 0 && watch.events & ~EpollWiring.modes == 0
            if hasFired {
                disarmed.append(watch)
            } else if watch.isToldOf {
                toldOf.append(watch)
            } else {
                plain.append(watch)
            }
        }
        if !disarmed.isEmpty { plain += try disarm(disarmed) }
        if !toldOf.isEmpty {
            try add(toldOf)
            _ = try collect(toldOf.count)
        }
        try add(plain)
    }

    // MARK: entries that have fired

    /// Disarms one-shot entries in the only way there is: they fire. Returns those that can't, because nothing can be
    /// had from their files.
    private func disarm(_ watches: [Watch]) throws(Failure) -> [Watch] {
        var bait: [Bait] = []
        var (ready, others): ([Watch], [Watch]) = ([], [])
        for var watch in watches {
            let lure = try Bait(watch.file, context)
            if try isReady(watch.file) {
                watch.events |= Epoll.anything
                ready.append(watch)
            } else {
                others.append(watch)
            }
            if let lure { bait.append(lure) }
        }
        if !ready.isEmpty {
            try add(ready)
            let fired = try collect(ready.count)
            if fired < ready.count {
                context.log.warning("\(ready.count - fired) one-shot entries of the epoll \(id) could not be disarmed")
            }
        }
        for lure in bait { try lure.takeBack() }
        if !others.isEmpty {
            context.log.warning(
                "\(others.count) disarmed one-shot entries of the epoll \(id) will still tell errors and hang-ups")
        }
        return others
    }

    /// What makes a file ready for a moment.
    private final class Bait {
        private let file: Int32
        private let writer: Descriptor

        /// Puts a byte into an empty pipe, or a tick into a timer, which is set anew later. Other files get nothing.
        init?(_ id: UInt32, _ context: RestoreContext) throws(Failure) {
            guard let entry = context.entry(id) else { return nil }
            file = try context.files.number(id)
            if entry.hasTfd { try Timerfd.setTicks(file, 1) }
            let isAsynchronous = entry.pipe.flags & 0o20000 != 0
            guard entry.hasPipe, entry.pipe.flags & 3 == 0, !isAsynchronous, try !Epoll.isReady(file) else {
                return nil
            }
            let number = file
            writer = try attempt("write into an empty pipe") { () throws(SystemCallError) in
                let writer = try openFile("/proc/self/fd/\(number)", [.writeOnly, .nonBlocking])
                try writeAll([0], to: writer.number)
                return writer
            }
        }

        func takeBack() throws(Failure) {
            var byte: [UInt8] = [0]
            let number = Int(file)
            try attempt("empty a pipe again") { () throws(SystemCallError) in
                try byte.withAddress { (address, _) throws(SystemCallError) in
                    try systemCall(.read, number, address, 1)
                }
            }
        }
    }

    private func isReady(_ file: UInt32) throws(Failure) -> Bool {
        // A signalfd would show signals of ours.
        if context.entry(file)?.hasSgfd ?? true { return false }
        return try Epoll.isReady(context.files.number(file))
    }

    /// Takes all events that there are, of entries that tell them once.
    private func collect(_ most: Int) throws(Failure) -> Int {
        var room = [UInt8](repeating: 0, count: 16 * most)
        var total = 0
        let number = Int(epoll)
        try attempt("take events") { () throws(SystemCallError) in
            while true {
                let got = try room.withAddress { (address, _) throws(SystemCallError) in
                    try systemCall(.epoll_pwait, number, address, most, 0, 0, 8)
                }
                total += got
                if got == 0 || total >= most { return }
            }
        }
        return total
    }

    // MARK: adding

    /// An entry as the kernel wants it (`struct epoll_event`).
    private static func event(_ watch: Watch) -> [UInt8] {
        #if arch(x86_64)
            [UInt8](bytesOf: watch.events) + [UInt8](bytesOf: watch.data)
        #else
            [UInt8](bytesOf: (watch.events, UInt32(0))) + [UInt8](bytesOf: watch.data)
        #endif
    }

    /// Adds entries, each in a table that has both the epoll and the file under its number.
    private func add(_ watches: [Watch]) throws(Failure) {
        var byHolder = [[Watch]](repeating: [], count: holders.count)
        var homeless: [Watch] = []
        for watch in watches {
            if let index = holders.firstIndex(where: { $0.table.files[watch.number]?.id == watch.file }) {
                byHolder[index].append(watch)
            } else {
                homeless.append(watch)
            }
        }
        for (holder, watches) in zip(holders, byHolder) {
            var rest = watches[...]
            while !rest.isEmpty {
                var batch = Batch()
                for watch in rest.prefix(EpollWiring.most) { EpollWiring.add(watch, to: holder.number, &batch) }
                rest = rest.dropFirst(EpollWiring.most)
                try holder.table.process.puppet.run(batch)
            }
        }
        var rest = homeless[...]
        while !rest.isEmpty {
            try addHomeless(Array(rest.prefix(EpollWiring.most)))
            rest = rest.dropFirst(EpollWiring.most)
        }
    }

    private static func add(_ watch: Watch, to epoll: Int32, _ batch: inout Batch) {
        let event = batch.place(EpollWiring.event(watch))
        // EPOLL_CTL_ADD
        batch.add(
            .epoll_ctl, .value(Int(epoll)), .value(1), .value(Int(watch.number)), .buffer(event),
            doing: "watch a file")
    }

    /// Adds entries whose number means another file by now, or none: the right file is there for a moment.
    private func addHomeless(_ watches: [Watch]) throws(Failure) {
        guard let table = holders.first?.table ?? DescriptorTables.of(context).first else {
            throw Failure(.bug, "no table")
        }
        guard let courier = context.courier else { throw Failure(.bug, "no courier") }
        let files = Array(Set(watches.map(\.file)))
        var numbers = [epoll]
        for file in files { numbers.append(try context.files.number(file)) }
        let arrived = try context.deliver(numbers, to: table.process.puppet).map(\.number)
        var taken = Set(table.files.keys)
        taken.insert(courier.remote.number)
        let wanted = Set(watches.map(\.number))
        var spare = Spares(avoiding: taken.union(wanted).union(arrived))
        var batch = Batch()
        // Nothing that arrived may stay at a number that is wanted.
        var places: [Int32] = []
        for number in arrived {
            guard wanted.contains(number) else {
                places.append(number)
                continue
            }
            let place = spare.next()
            move(number, to: place, &batch)
            batch.add(.close, .value(Int(number)), doing: "close a descriptor")
            places.append(place)
        }
        let place = Dictionary(uniqueKeysWithValues: zip(files, places.dropFirst()))
        let refuge = spare.next()
        for watch in watches {
            guard let from = place[watch.file] else { throw Failure(.bug, "a file did not arrive") }
            let isTaken = taken.contains(watch.number)
            if isTaken { move(watch.number, to: refuge, &batch) }
            move(from, to: watch.number, &batch)
            EpollWiring.add(watch, to: places[0], &batch)
            if isTaken {
                move(refuge, to: watch.number, &batch, closesOnExec: table.files[watch.number]?.closesOnExec ?? false)
                batch.add(.close, .value(Int(refuge)), doing: "close a descriptor")
            } else {
                batch.add(.close, .value(Int(watch.number)), doing: "close a descriptor")
            }
        }
        for number in places { batch.add(.close, .value(Int(number)), doing: "close a descriptor") }
        try table.process.puppet.run(batch)
    }

    private func move(_ from: Int32, to number: Int32, _ batch: inout Batch, closesOnExec: Bool = true) {
        batch.add(
            .dup3, .value(Int(from)), .value(Int(number)), .value(closesOnExec ? 0o2000000 : 0),
            doing: "move a descriptor for a moment")
    }

    /// Numbers that nobody uses.
    private struct Spares {
        private let taken: Set<Int32>
        private var last: Int32 = -1

        init(avoiding taken: Set<Int32>) { self.taken = taken }

        mutating func next() -> Int32 {
            repeat { last += 1 } while taken.contains(last)
            return last
        }
    }
}

/// The descriptor tables under restore, each once.
final class DescriptorTables {
    /// A table.
    final class Table {
        /// The first process that has it.
        let process: RestoredProcess
        /// What its numbers refer to.
        private(set) lazy var files = Dictionary(
            process.plan.descriptors.map {
                (Int32(clamping: $0.fd), (id: $0.id, closesOnExec: $0.flags & 1 != 0))
            }, uniquingKeysWith: { first, _ in first })

        init(_ process: RestoredProcess) { self.process = process }
    }

    /// A table that has a file.
    struct Holder {
        let table: Table
        /// The lowest number of the file there.
        let number: Int32
    }

    /// The table of the root.
    private(set) var first: Table?
    private var holders: [UInt32: [Holder]] = [:]

    static func of(_ context: RestoreContext) -> DescriptorTables {
        context.state(DescriptorTables.self) { DescriptorTables(context) }
    }

    private init(_ context: RestoreContext) {
        let epolls = Set(context.entries.lazy.filter(\.hasEpfd).map(\.id))
        var seen: Set<UInt32> = []
        for process in context.processes where !process.plan.isZombie && seen.insert(process.plan.ids.filesID).inserted
        {
            let table = Table(process)
            if first == nil { first = table }
            var lowest: [UInt32: Int32] = [:]
            for entry in process.plan.descriptors where epolls.contains(entry.id) {
                let number = Int32(clamping: entry.fd)
                lowest[entry.id] = min(lowest[entry.id] ?? number, number)
            }
            for (id, number) in lowest { holders[id, default: []].append(Holder(table: table, number: number)) }
        }
    }

    /// Where an epoll is, parents first.
    func holders(of epoll: UInt32) -> [Holder] { holders[epoll] ?? [] }
}
