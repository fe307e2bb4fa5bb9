public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
internal import Linux
internal import Logging
internal import Remote
internal import Synchronization

/// Restores files: each description once in the controller, then every descriptor table and directory.
public enum FileRestore {
    /// Begins to read a large files.img in other threads.
    public static func begin(_ context: RestoreContext) {
        guard context.images.size(.files) > 1 << 16 else { return }
        Heap.keep(ImageReader.mostReserved)
        context.state(Reading.self) { Reading() }.begin(context.images)
    }

    /// files.img while it is read.
    private final class Reading {
        private final class Outcome: Sendable {
            let entries = Mutex<Result<[FileEntry], Failure>?>(nil)
        }

        private let outcome = Outcome()
        private var thread: Background?

        func begin(_ images: ImageSet) {
            let outcome = outcome
            thread = Background {
                let read = Result { () throws(Failure) in try images.loadAll(.files, as: FileEntry.self) }
                outcome.entries.withLock { $0 = read }
            }
        }

        func finish(_ images: ImageSet) throws(Failure) -> [FileEntry] {
            guard let thread = thread.take() else { return try images.loadAll(.files, as: FileEntry.self) }
            thread.wait()
            let read = outcome.entries.withLock { $0.take() }
            return try read?.get() ?? []
        }
    }

    /// Reads and checks files.img, before anything is created.
    public static func load(_ context: RestoreContext) throws(Failure) {
        let kinds = Kinds.of(context)
        let entries = try context.state(Reading.self) { Reading() }.finish(context.images)
        kinds.byPlace.reserveCapacity(entries.count)
        for (place, entry) in entries.enumerated() {
            let likely = kinds.byType[entry.type]
            let isLikely = likely.map { fileKinds[$0].restores(entry) } ?? false
            guard let kind = isLikely ? likely : fileKinds.firstIndex(where: { $0.restores(entry) }) else {
                let name = FdTypes(rawValue: Int(entry.type)).map { "\($0)" } ?? "\(entry.type)"
                throw Failure(.unsupported, "the image holds a file of the type \(name), which can't be restored yet")
            }
            kinds.byType[entry.type] = kind
            kinds.byPlace.append(kind)
            if fileKinds[kind].comesAfterTasks(entry) { kinds.afterTasks.append(place) }
            if let owner = fileKinds[kind].owner(entry), owner.signum != 0 || owner.pid != 0 {
                kinds.owners.append((entry.id, owner))
            }
        }
        try context.take(entries)
        try RestoredRemaps.of(context).load(context)
        try PipeContents.load(context)
        for kind in fileKinds { try kind.load(context) }
        try RestoredLocks.of(context).load(context)
    }

    /// Which kind each entry is of, as an index into the registry.
    private final class Kinds {
        /// In the order of the context's entries.
        var byPlace: [Int] = []
        /// The kind that an entry of a type was of before.
        var byType: [UInt32: Int] = [:]
        /// Files with late steps, in the order of the registry; made at first use.
        private var late: [(kind: Int, id: UInt32, place: Int)]?

        private func allLate(_ context: RestoreContext) -> [(kind: Int, id: UInt32, place: Int)] {
            if let late { return late }
            var found: [(kind: Int, id: UInt32, place: Int)] = []
            var met: Set<Int> = []
            for (place, kind) in byPlace.enumerated() {
                switch fileKinds[kind].lateSteps {
                case .none: break
                case .together: if met.insert(kind).inserted { found.append((kind, context.entries[place].id, place)) }
                case .each: found.append((kind, context.entries[place].id, place))
                }
            }
            found.sort { $0 < $1 }
            late = found
            return found
        }

        func forEachLate(
            _ context: RestoreContext, _ body: (any FileKind.Type, FileEntry) throws(Failure) -> Void
        ) throws(Failure) {
            for (kind, _, place) in allLate(context) { try body(fileKinds[kind], context.entries[place]) }
        }

        /// Files of which someone is told by signals.
        var owners: [(id: UInt32, owner: FownEntry)] = []

        /// Who is told of a file of files.img.
        func owner(_ id: UInt32, _ context: RestoreContext) -> FownEntry? {
            guard let place = context.place(id) else { return nil }
            return fileKinds[byPlace[place]].owner(context.entries[place])
        }

        /// Places of files that can be made only once the tasks exist.
        var afterTasks: [Int] = []
        static func of(_ context: RestoreContext) -> Kinds { context.state(Kinds.self) { Kinds() } }
    }

    /// Makes all file descriptions that don't depend on tasks.
    public static func make(_ context: RestoreContext) throws(Failure) {
        let kinds = Kinds.of(context)
        let late = Set(kinds.afterTasks)
        let all = Array(context.entries.indices)
        try make(late.isEmpty ? all : all.filter { !late.contains($0) }, kinds, context)
        try context.mountTerminals()
    }

    /// From how many files of a kind on threads are worth their start.
    private static let manyFiles = 512

    /// Makes files, those of one group together.
    private static func make(_ places: [Int], _ kinds: Kinds, _ context: RestoreContext) throws(Failure) {
        var members: [(kind: Int, group: UInt64, id: UInt32, place: Int)] = []
        members.reserveCapacity(places.count)
        for place in places {
            let (kind, entry) = (kinds.byPlace[place], context.entries[place])
            members.append((kind, fileKinds[kind].group(entry, context), entry.id, place))
        }
        members.sort { $0 < $1 }
        var counts = [Int](repeating: 0, count: fileKinds.count)
        for member in members { counts[member.kind] += 1 }
        var apart: Set<UInt32> = []
        for (index, kind) in fileKinds.enumerated() where counts[index] >= manyFiles {
            let run = members.lazy.filter { $0.kind == index }.map { context.entries[$0.place] }
            apart.formUnion(try kind.makeApart(Array(run), context))
        }
        if !apart.isEmpty { members.removeAll { apart.contains($0.id) } }
        var start = 0
        while start < members.count {
            let (kind, group) = (members[start].kind, members[start].group)
            var end = start + 1
            while end < members.count, members[end].kind == kind, members[end].group == group { end += 1 }
            try fileKinds[kind].make(members[start..<end].map { context.entries[$0.place] }, context)
            start = end
        }
    }

    /// Lets the kinds act on the leader of a session that has just begun.
    public static func sessionStarted(by leader: RestoredProcess, _ context: RestoreContext) throws(Failure) {
        for kind in fileKinds { try kind.sessionStarted(by: leader, context) }
    }

    /// Lets the kinds act once all tasks exist.
    public static func grown(_ context: RestoreContext) throws(Failure) {
        for kind in fileKinds { try kind.grown(context) }
    }

    /// Fills the descriptor tables and sets directories.
    public static func fill(_ context: RestoreContext) throws(Failure) {
        let kinds = Kinds.of(context)
        try make(kinds.afterTasks, kinds, context)
        var filled: Set<UInt32> = []
        var placed: Set<UInt32> = []
        for process in context.processes where !process.plan.isZombie {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                if placed.insert(process.plan.ids.fsID).inserted { try setDirectories(process, context) }
            }
        }
        for process in context.processes where !process.plan.isZombie {
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                if filled.insert(process.plan.ids.filesID).inserted {
                    try fillTable(process.puppet, process.plan.descriptors, context)
                }
            }
        }
        RestoredRemaps.of(context).dismissStandIns()
    }

    private static func setDirectories(_ process: RestoredProcess, _ context: RestoreContext) throws(Failure) {
        guard let directories = process.plan.directories else { return }
        let numbers = [try context.files.number(directories.rootID), try context.files.number(directories.cwdID)]
        let arrived = try context.deliver(numbers, to: process.puppet)
        var batch = Batch()
        let dot = batch.place(string: ".".utf8)
        let root = context.entry(directories.rootID)
        if root.map({ !Array($0.reg.name).elementsEqual("/".utf8) }) ?? false {
            batch.add(.fchdir, .descriptor(arrived[0]), doing: "enter the root directory")
            batch.add(.chroot, .buffer(dot), doing: "set the root directory")
        }
        batch.add(.fchdir, .descriptor(arrived[1]), doing: "set the working directory")
        for number in arrived { batch.add(.close, .descriptor(number), doing: "close a directory") }
        if directories.hasUmask { batch.add(.umask, .value(Int(directories.umask)), doing: "set the umask") }
        try process.puppet.run(batch)
    }

    /// Numbers that are to stay free, lowest first, below which less is missing than comes above.
    private static func gaps(in table: [FdinfoEntry]) -> [Range<Int32>] {
        var found: [Range<Int32>] = []
        var next: Int32 = 0
        for (index, entry) in table.enumerated() {
            let number = Int32(truncatingIfNeeded: entry.fd)
            if number > next {
                guard Int(number - next) <= table.count - index else { break }
                found.append(next..<number)
            }
            next = number + 1
        }
        return found
    }

    /// Descriptors arrive in the order of their numbers, each no higher than its place; then each goes up to its place,
    /// the highest first. Gaps are filled before, so that most arrive at their places.
    private static func fillTable(
        _ puppet: Puppet, _ table: [FdinfoEntry], _ context: RestoreContext
    ) throws(Failure) {
        let table = table.sorted { $0.fd < $1.fd }
        var numbers: [Int32] = []
        for (index, entry) in table.enumerated() {
            guard entry.fd < 1 << 30, index == 0 || table[index - 1].fd < entry.fd else {
                throw Failure(.corruptImage, "the descriptor \(entry.fd) is listed twice")
            }
            let number = try during(.descriptor(Int32(entry.fd))) { () throws(Failure) in
                try context.files.number(entry.id)
            }
            numbers.append(number)
        }
        let gaps = gaps(in: table)
        if let courier = context.courier, !gaps.isEmpty {
            var start = Batch()
            for number in gaps.joined() {
                start.add(
                    .dup3, .descriptor(courier.remote), .value(Int(number)), .value(0o2000000),
                    doing: "fill a gap between descriptors")
            }
            try puppet.run(start)
        }
        let arrived = try context.deliver(numbers, to: puppet)
        var batch = Batch()
        for gap in gaps {
            batch.add(
                .close_range, .value(Int(gap.lowerBound)), .value(Int(gap.upperBound - 1)), .value(0),
                doing: "free a gap between descriptors")
        }
        for (entry, number) in zip(table, arrived).reversed() {
            if number.number == Int32(entry.fd) {
                if entry.flags & 1 != 0 {
                    batch.add(.fcntl, .descriptor(number), .value(2), .value(1), doing: "set close-on-exec")
                }
                continue
            }
            batch.add(
                .dup3, .descriptor(number), .value(Int(entry.fd)), .value(entry.flags & 1 != 0 ? 0o2000000 : 0),
                doing: "move a descriptor to its number")
        }
        let kept = Set(table.map { Int32($0.fd) })
        for number in arrived where !kept.contains(number.number) {
            batch.add(.close, .descriptor(number), doing: "close a descriptor")
        }
        try puppet.run(batch)
    }

    /// Joins files to other objects: owners, and what the kinds ask for.
    public static func wire(_ context: RestoreContext) throws(Failure) {
        let kinds = Kinds.of(context)
        for (id, owner) in kinds.owners where context.files.contains(id) {
            try FileOwner.restore(owner, on: try context.files.number(id), context)
        }
        try kinds.forEachLate(context) { (kind, entry) throws(Failure) in try kind.wire(entry, context) }
        // Last, as nothing may open or close files after them.
        try RestoredLocks.of(context).restore(context) { (id) in kinds.owner(id, context) }
    }

    /// Whether locks could not be taken yet, as the tree's source has them until all its pages were fetched.
    public static func hasLateLocks(_ context: RestoreContext) throws(Failure) -> Bool {
        let locks = RestoredLocks.of(context)
        guard locks.isLate else { return false }
        try locks.checkWaiters(context)
        return true
    }

    /// Takes these once the source is gone.
    public static func takeLateLocks(_ context: RestoreContext) throws(Failure) {
        let kinds = Kinds.of(context)
        try RestoredLocks.of(context).restoreLate(context) { (id) in kinds.owner(id, context) }
    }

    /// Removes what only the restore needed: names of ghosts, and whatever the kinds have.
    public static func settle(_ context: RestoreContext) throws(Failure) {
        for key in context.unusedDescriptors { context.log.warning("--inherit-fd: nothing in the image is \(key)") }
        RestoredRemaps.of(context).removeNames(context)
        RestoredRemaps.of(context).removeTemporary(context)
        try Kinds.of(context).forEachLate(context) { (kind, entry) throws(Failure) in try kind.settle(entry, context) }
    }

    /// Whether sockets are made that connect anew, whose packets a lock on everything would hold up.
    public static func needsOpenNetwork(_ context: RestoreContext) -> Bool { !RestoredWaiting.of(context).isEmpty }

    /// Holds up the packets of connections until `start`.
    public static func lockConnections(_ context: RestoreContext) throws(Failure) { try InetSocket.lock(context) }

    /// Takes back the lock that the dump left in the network namespace that we are in.
    ///
    /// - Parameter isWhole: it held up all packets.
    public static func unlockNetwork(_ context: RestoreContext, isWhole: Bool) {
        InetSocket.unlock(context, isWhole: isWhole)
    }

    /// Starts what runs by the clock or watches files.
    public static func start(_ context: RestoreContext) throws(Failure) {
        try Kinds.of(context).forEachLate(context) { (kind, entry) throws(Failure) in try kind.start(entry, context) }
    }

    /// Takes back what a failed restore left on file systems.
    public static func abandon(_ context: RestoreContext) {
        RestoredRemaps.of(context).dismissStandIns()
        RestoredRemaps.of(context).removeNames(context)
        UnixSocket.abandon(context)
    }
}
