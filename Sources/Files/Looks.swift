internal import Diagnostics
internal import Kinds
internal import Linux
internal import Procfs
internal import Synchronization

/// Descriptors of a stopped process, copied and looked at as far as it needs no other files.
///
/// Nothing is changed by that, so other threads run ahead of the one that takes the looks, if there are many.
struct Looks: ~Copyable {
    /// What one descriptor looks like.
    struct Look: Sendable {
        /// Our copy. Who takes the look closes it.
        var handle: Int32
        var status: FileStatus
        var information: DescriptorInformation
        /// All the rest, if another thread had the time.
        var facts: FileFacts?
    }

    /// How many are looked at together.
    static let most = 1024
    /// From how many on a thread more is worth its start.
    private static let few = 256
    /// How many a thread takes at once.
    private static let share = 64

    private let work: Work
    private let threads: Background?
    /// Those of a share that are not taken yet, the next one last.
    private var current: [Look] = []
    private var next = 0

    /// Begins to copy descriptors. There is room for that many in our table (`Descriptor.makeRoom`).
    init(_ numbers: [Int32], of process: DumpedProcess) {
        let work = Work(numbers, process.pidfd.number, inFull: Looks.isSharedWork(numbers.count))
        self.work = work
        guard work.inFull else {
            threads = nil
            return
        }
        threads = Background {
            // What fails is told to who takes the look.
            try? Workers.run(Workers.count - 1) { () throws(Failure) in
                let lens = try Looks.makeLens()
                while work.doShare({ lens }) {}
            }
        }
    }

    deinit { work.stop() }

    /// Whether other threads look at a table of a size.
    static func isSharedWork(_ count: Int) -> Bool { count >= few && Workers.count > 1 }

    private static func makeLens() throws(Failure) -> Lens {
        try attempt("look at descriptors of our own in /proc") { () throws(SystemCallError) in try Lens() }
    }

    /// The next look, in the order of the numbers.
    ///
    /// - Parameter lens: to look through for what nobody has looked at yet.
    mutating func take(through lens: () throws(Failure) -> Lens) throws(Failure) -> Look? {
        if current.isEmpty {
            guard next < work.shares.count else { return nil }
            // Rather than to wait for a share, another is done.
            while !work.shares[next].isDone, work.doShare(lens) {}
            current = try work.take(next, lens).reversed()
            next += 1
        }
        return current.popLast()
    }

    /// Looks at some descriptors, once. Who comes meanwhile waits.
    private final class Share: Sendable {
        let looks = Mutex<Result<[Look], Failure>?>(nil)
        private let done = Atomic<Bool>(false)
        var isDone: Bool { done.load(ordering: .relaxed) }

        func fill(_ make: () throws(Failure) -> [Look]) {
            looks.withLock { looks in
                if looks != nil { return }
                looks = Result { () throws(Failure) in try make() }
            }
            done.store(true, ordering: .relaxed)
        }

        deinit {
            looks.withLock { looks in
                guard case .success(let left) = looks else { return }
                for look in left { _ = try? systemCall(.close, Int(look.handle)) }
            }
        }
    }

    private final class Work: Sendable {
        let shares: [Share]
        let inFull: Bool
        private let numbers: [Int32], pidfd: Int32
        private let dealer: Dealer
        private let isStopped = Atomic<Bool>(false)

        init(_ numbers: [Int32], _ pidfd: Int32, inFull: Bool) {
            (self.numbers, self.pidfd, self.inFull) = (numbers, pidfd, inFull)
            shares = (0..<((numbers.count + Looks.share - 1) / Looks.share)).map { _ in Share() }
            dealer = Dealer(shares.count)
        }

        func stop() { isStopped.store(true, ordering: .relaxed) }

        /// Looks at the next share. Returns whether there was one.
        func doShare(_ lens: () throws(Failure) -> Lens) -> Bool {
            guard !isStopped.load(ordering: .relaxed), let index = dealer.take() else { return false }
            fill(index, lens)
            return true
        }

        private func fill(_ index: Int, _ lens: () throws(Failure) -> Lens) {
            let start = index * Looks.share
            let mine = numbers[start..<min(start + Looks.share, numbers.count)]
            shares[index].fill { () throws(Failure) in
                var looks: [Look] = []
                looks.reserveCapacity(mine.count)
                do throws(Failure) {
                    for number in mine {
                        looks.append(
                            try during(.descriptor(number)) { () throws(Failure) in
                                try Looks.look(at: number, pidfd, inFull: inFull, through: lens)
                            })
                    }
                } catch {
                    for look in looks { _ = try? systemCall(.close, Int(look.handle)) }
                    throw error
                }
                return looks
            }
        }

        /// Hands a share over.
        func take(_ index: Int, _ lens: () throws(Failure) -> Lens) throws(Failure) -> [Look] {
            fill(index, lens)
            let found = shares[index].looks.withLock { looks in
                defer { looks = .success([]) }
                return looks
            }
            return try found?.get() ?? []
        }
    }

    private static func look(
        at number: Int32, _ pidfd: Int32, inFull: Bool, through lens: () throws(Failure) -> Lens
    ) throws(Failure) -> Look {
        let handle = try attempt(
            "copy the descriptor", advice: "Raise brumate's own limit on open files (RLIMIT_NOFILE)"
        ) { () throws(SystemCallError) in
            try fetchDescriptor(Int(number), through: pidfd)
        }
        let ours = handle.number
        let status = try attempt("look at the file") { () throws(SystemCallError) in try FileStatus.read(in: ours) }
        let plain = try plainInformation(ours, status)
        let information = if let plain { plain } else { try lens().information(of: ours) }
        var look = Look(handle: ours, status: status, information: information)
        if inFull {
            var facts = try facts(of: ours, status, information, isInSight: plain == nil, through: lens)
            if information.flags & OpenFlags.path.rawValue == 0 {
                facts.owner = try attempt("read the file's owner") { () throws(SystemCallError) in
                    try FileOwner.ask(ours)
                }
            }
            if let family = facts.family { facts.answers = socketKind(family)?.ask(ours) }
            look.facts = facts
        }
        look.handle = handle.release()
        return look
    }

    /// What is told of a file that is looked at closer.
    ///
    /// - Parameter isInSight: the lens looks at the file already.
    static func facts(
        of ours: Int32, _ status: FileStatus, _ information: DescriptorInformation, isInSight: Bool = false,
        through lens: () throws(Failure) -> Lens
    ) throws(Failure) -> FileFacts {
        let family = status.kind == .socket ? try? socketOption(ours, 39) : nil  // SO_DOMAIN
        // What /proc says of these is known, and reading it is dear.
        let target: [UInt8]
        if family != nil {
            target = Array("socket:[\(status.inode)]".utf8)
        } else if Eventfd.number(information) != nil {
            target = Eventfd.target
        } else {
            target = isInSight ? try lens().targetInSight() : try lens().target(of: ours)
        }
        return FileFacts(status: status, target: target, information: information, family: family)
    }

    /// What fdinfo would say of files that have no lines of their own there.
    static func plainInformation(_ ours: Int32, _ status: FileStatus) throws(Failure) -> DescriptorInformation? {
        var position: UInt64 = 0
        switch status.kind {
        case .regular, .directory:
            position = (try? systemCall(.lseek, Int(ours), 0, 1)).map { UInt64($0) } ?? 0
        case .fifo, .socket, .symbolicLink: break
        // null, zero, full, random, urandom.
        case .characterDevice where status.representedMajor == 1 && [3, 5, 7, 8, 9].contains(status.representedMinor):
            break
        default: return nil
        }
        let flags = try attempt("read the flags of the file") { () throws(SystemCallError) in
            try systemCall(.fcntl, Int(ours), 3)  // F_GETFL
        }
        return DescriptorInformation(
            position: position, flags: Int32(truncatingIfNeeded: flags), mountID: status.mountID)
    }
}
