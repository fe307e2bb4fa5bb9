internal import Diagnostics
internal import Kinds
internal import Linux
internal import Procfs
internal import Synchronization

/// Descriptors of a stopped process, copied and looked at as far as it needs neither their kind nor other files.
///
/// Nothing is changed by that, so several threads share the work where there are many.
struct Looks: ~Copyable {
    /// What one descriptor looks like.
    struct Look: Sendable {
        /// Our copy. Who takes the look closes it.
        var handle: Int32
        var status: FileStatus
        var information: DescriptorInformation
        /// What is known already of what `FileFacts` holds.
        var family: Int32?
        var target: [UInt8]?
        var options: [Int64]?
        var owner: FileOwnership?
    }

    /// How many are looked at together.
    static let most = 2048
    /// From how many on a thread more is worth its start.
    private static let few = 256
    /// How many a thread takes at once.
    private static let share = 64

    private var looks: [Look?]
    private var next = 0

    /// Copies descriptors.
    ///
    /// - Parameter lens: to look through where one thread is enough.
    init(
        _ numbers: [Int32], of process: DumpedProcess, through lens: () throws(Failure) -> Lens
    ) throws(Failure) {
        let pidfd = process.pidfd.number
        looks = [Look?](repeating: nil, count: numbers.count)
        guard numbers.count >= Looks.few, Workers.count > 1 else {
            for (index, number) in numbers.enumerated() {
                looks[index] = try during(.descriptor(number)) { () throws(Failure) in
                    try Looks.take(number, pidfd, inFull: false, through: lens)
                }
            }
            return
        }
        Descriptor.makeRoom(for: numbers.count + Workers.count)
        let taken = Mutex(looks)
        let outcome = Result { () throws(Failure) in
            let dealer = Dealer((numbers.count + Looks.share - 1) / Looks.share)
            try Workers.run(Workers.count) { () throws(Failure) in
                let lens = try attempt("look at descriptors of our own in /proc") { () throws(SystemCallError) in
                    try Lens()
                }
                while let share = dealer.take() {
                    let start = share * Looks.share
                    for index in start..<min(start + Looks.share, numbers.count) {
                        let look = try during(.descriptor(numbers[index])) { () throws(Failure) in
                            try Looks.take(numbers[index], pidfd, inFull: true) { lens }
                        }
                        taken.withLock { $0[index] = look }
                    }
                }
            }
        }
        looks = taken.withLock { $0 }
        try outcome.get()
    }

    deinit {
        for case let look? in looks[next...] { _ = try? systemCall(.close, Int(look.handle)) }
    }

    /// The next look, in the order of the numbers.
    mutating func take() -> Look? {
        guard next < looks.count else { return nil }
        next += 1
        return looks[next - 1]
    }

    private static func take(
        _ number: Int32, _ pidfd: Int32, inFull: Bool, through lens: () throws(Failure) -> Lens
    ) throws(Failure) -> Look {
        let handle = try attempt(
            "copy the descriptor", advice: "Raise brumate's own limit on open files (RLIMIT_NOFILE)"
        ) { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.pidfd_getfd, Int(pidfd), Int(number), 0)))
        }
        let ours = handle.number
        let status = try attempt("look at the file") { () throws(SystemCallError) in try FileStatus.read(in: ours) }
        let plain = try plainInformation(ours, status)
        let information = if let plain { plain } else { try lens().information(of: ours) }
        var look = Look(handle: ours, status: status, information: information)
        if inFull, status.kind != .socket, Eventfd.number(information) == nil {
            look.target = plain == nil ? try lens().targetInSight() : try lens().target(of: ours)
        }
        if inFull, information.flags & OpenFlags.path.rawValue == 0 {
            look.owner = try attempt("read the file's owner") { () throws(SystemCallError) in try FileOwner.ask(ours) }
            if status.kind == .socket {
                look.family = try? socketOption(ours, 39)  // SO_DOMAIN
                look.options = try? SocketOptions.ask(ours)
            }
        }
        look.handle = handle.release()
        return look
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
