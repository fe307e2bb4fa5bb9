internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux

/// `struct semid64_ds`: what the kernel says of a set of System V semaphores.
struct SemaphoreStatus: BitwiseCopyable {
    var permissions = SystemVPermissions()
    #if arch(x86_64)
        var operated: UInt64 = 0, unused1: UInt64 = 0, changed: UInt64 = 0, unused2: UInt64 = 0
    #else
        var operated: UInt64 = 0, changed: UInt64 = 0
    #endif
    var count: UInt64 = 0, unused3: UInt64 = 0, unused4: UInt64 = 0
}

/// The calls of `semctl(2)` that we make.
enum Semaphores {
    /// The largest value of a semaphore and of an adjustment (`SEMVMX`, `SEMAEM`).
    static let most = 32767

    private static func control(_ id: UInt32, _ command: Int, number: Int = 0) throws(SystemCallError) -> Int {
        try systemCall(.semctl, Int(id), number, command)
    }

    private static func status(_ place: Int, _ command: Int) throws(SystemCallError) -> (
        id: UInt32, status: SemaphoreStatus
    ) {
        var status = SemaphoreStatus()
        let id = try withAddress(of: &status) { (address) throws(SystemCallError) in
            try systemCall(.semctl, place, 0, command, address)
        }
        return (id: UInt32(truncatingIfNeeded: id), status: status)
    }

    /// All sets, whoever may read them.
    static func all() -> [(id: UInt32, status: SemaphoreStatus)] {
        var information = [Int32](repeating: 0, count: 10)  // struct seminfo
        let last = try? information.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.semctl, 0, 0, 19, address)  // SEM_INFO
        }
        guard let last, information[7] > 0 else { return [] }
        return (0...last).compactMap { (try? status($0, 20)) ?? (try? status($0, 18)) }  // SEM_STAT_ANY, SEM_STAT
    }

    /// What a set says of itself.
    static func status(_ id: UInt32) throws(SystemCallError) -> SemaphoreStatus {
        try status(Int(id), 2).status  // IPC_STAT
    }

    /// The values of a set.
    static func values(_ id: UInt32, count: Int) throws(SystemCallError) -> [UInt16] {
        var values = [UInt16](repeating: 0, count: count)
        try values.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.semctl, Int(id), 0, 13, address)  // GETALL
        }
        return values
    }

    /// Who operated on a semaphore last, 0 if nobody has.
    static func process(_ id: UInt32, _ number: Int) throws(SystemCallError) -> Int32 {
        Int32(truncatingIfNeeded: try control(id, 11, number: number))  // GETPID
    }

    /// Whether anyone waits for a semaphore to grow, or to become zero.
    static func hasWaiters(_ id: UInt32, _ number: Int) throws(SystemCallError) -> Bool {
        // GETNCNT, GETZCNT
        if try control(id, 14, number: number) > 0 { return true }
        return try control(id, 15, number: number) > 0
    }

    /// Sets owner and permissions.
    static func set(_ id: UInt32, _ entry: IpcDescEntry) throws(SystemCallError) {
        var now = try status(id)
        now.permissions.take(entry)
        try withAddress(of: &now) { (address) throws(SystemCallError) in
            try systemCall(.semctl, Int(id), 0, 1, address)  // IPC_SET
        }
    }

    /// Removes a set.
    static func remove(_ id: UInt32) { _ = try? control(id, 0) }  // IPC_RMID
}

/// `struct sembuf`: one operation of `semop(2)`.
struct SemaphoreOperation: BitwiseCopyable, Equatable {
    var number: UInt16
    var change: Int16
    var flags: Int16 = 0

    /// An operation that never waits.
    ///
    /// - Parameter undone: whether its opposite is added to what the end of the task gives back.
    init(_ number: Int, _ change: Int, undone: Bool = false) {
        self.number = UInt16(clamping: number)
        self.change = Int16(clamping: change)
        flags = undone ? 0o14000 : 0o4000  // SEM_UNDO (0x1000), IPC_NOWAIT
    }

    static func bytes(_ operations: [SemaphoreOperation]) -> [UInt8] { operations.flatMap { [UInt8](bytesOf: $0) } }
}

/// What a task's end adds to a semaphore, from `-32768` to `32767` (`semadj`).
///
/// The kernel does not tell it. But it refuses, with ERANGE, an operation that would leave this range, before it does
/// anything: a call of several operations happens as a whole or not at all. So a call that shifts the adjustment to the
/// edge of the range, and that can't succeed in the end anyway, tells by its error on which side of a threshold the
/// adjustment is. Nothing changes: no value, no adjustment, nobody is woken, and nobody can see that we have asked.
enum Adjustment {
    static let least = -Semaphores.most - 1

    /// Operations of which none is ever carried out. The call fails with ERANGE if the adjustment is above (or, if
    /// `threshold` is negative, not above) the threshold, else with EAGAIN.
    static func question(_ number: Int, value: Int, above threshold: Int) -> [SemaphoreOperation] {
        var operations: [SemaphoreOperation] = []
        var value = value
        func add(_ change: Int, undone: Bool = false) {
            guard change != 0 else { return }
            operations.append(SemaphoreOperation(number, change, undone: undone))
            value += change
        }
        if threshold >= 0 {
            add(Semaphores.most - value)
            add(threshold - Semaphores.most, undone: true)
        } else {
            // adjustment - shift < least, if and only if adjustment <= threshold
            let shift = threshold + 1 - least
            add(-value)
            add(min(shift, Semaphores.most), undone: true)
            if shift > Semaphores.most {
                add(-value)
                add(1, undone: true)
            }
        }
        operations.append(SemaphoreOperation(number, value > 0 ? 0 : -1))
        return operations
    }

    /// Operations that make a new list's adjustment of a semaphore this, and its value what it is less that, as far as
    /// values go.
    static func setting(_ number: Int, to adjustment: Int, value: Int) -> (operations: [SemaphoreOperation], value: Int)
    {
        var operations: [SemaphoreOperation] = []
        var now = value
        func add(_ change: Int, undone: Bool = false) {
            guard change != 0 else { return }
            operations.append(SemaphoreOperation(number, change, undone: undone))
            now += change
        }
        let wanted = min(max(value - adjustment, 0), Semaphores.most)
        if wanted == value - adjustment, adjustment > least {
            add(-adjustment, undone: true)
        } else if adjustment > 0 {
            add(Semaphores.most - now)
            add(-adjustment, undone: true)
        } else {
            add(-now)
            add(min(-adjustment, Semaphores.most), undone: true)
            if -adjustment > Semaphores.most {
                add(-now)
                add(1, undone: true)
            }
        }
        add(wanted - now)
        return (operations, now)
    }
}
