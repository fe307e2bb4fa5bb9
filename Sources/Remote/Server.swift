internal import CLinux
public import Diagnostics
public import Linux

/// Stop signals that reached a task while it worked for us: SIGSTOP can't be blocked. They are sent again at the end.
private final class StopSignals {
    private var seen = false
    func note(_ signal: Int32) { if signal == 19 { seen = true } }
    func sendAgain(to task: TaskID) { if seen { _ = try? systemCall(.kill, Int(task.rawValue), 19) } }
}

/// The further thread that ran the last batch. It was asked to stop, and has its registers and its mask to get back.
private final class LentThread {
    var loan: (thread: Tracee, registers: Registers, mask: UInt64)?
}

/// A live task that makes system calls for us, and that survives our death at any moment.
///
/// The task runs the code of server.S in the padding behind its vdso. The owner ends it with `cure`, which leaves
/// every thread in its resting stop with its own registers and mask. If the controller dies, the kernel marks the
/// robust futex in the runway, and the task cures itself.
public struct Server: ~Copyable {
    /// The thread that runs the server.
    public let leader: Tracee
    private let code: Address
    private let runway: AddressRange
    private let memory: Mapping
    private let registers: Registers
    private let mask: UInt64
    private let stops: StopSignals
    private let lent = LentThread()
    private var armed = true

    /// Bytes of the runway.
    public static let runwaySize: UInt64 = 512 << 10

    /// The zero bytes behind the vdso's image: where they begin, in bytes from the vdso's start.
    private static let paddingOffset: UInt64? = OwnVdso.image.map { UInt64(rounded($0.count)) }

    /// Finds out, before anything is stopped, what is the same for all tasks.
    public static func prepare() { _ = (paddingOffset, Code.server.count) }

    private static func rounded(_ length: Int) -> Int { (length + 15) & ~15 }

    /// Where the server's code can be placed: zero bytes at the end of executable memory. The vdso has them in every
    /// process; a task that has unmapped it has them at the end of a program's text. What a dead controller left behind
    /// is written over.
    static func padding(of candidates: [AddressRange], in task: borrowing TaskMemory) throws(Failure) -> Address {
        for (index, range) in candidates.enumerated() {
            if index == 0, let offset = paddingOffset, offset + UInt64(Code.server.count) <= range.length,
                let now = try? task.read(range.start + offset, count: Code.server.count),
                now.allSatisfy({ $0 == 0 }) || now.prefix(64).elementsEqual(Code.server.prefix(64))
            {
                return range.start + offset
            }
            let length = min(range.length, 2 * pageSize)
            let start = Address(range.end.rawValue - length)
            guard let image = try? task.read(start, count: Int(length)) else { continue }
            let first = rounded(OwnVdso.end(of: image))
            if first + Code.server.count <= image.count { return start + UInt64(first) }
        }
        throw Failure(.unsupported, "no executable memory of task \(task.task) has room for the server of system calls")
    }

    /// Whether a thread stands in code that a controller left behind when it died. It must be let go until it has cured
    /// itself.
    public static func isHealing(_ registers: Registers, vdso: AddressRange) -> Bool {
        guard let offset = paddingOffset else { return false }
        return AddressRange(start: vdso.start + offset, end: vdso.end).contains(Address(registers.ip))
    }

    /// Starts the server in the leader of a process whose threads all rest in their stop.
    ///
    /// - Parameters:
    ///   - candidates: executable memory of the task, the vdso first.
    ///   - hole: a free range of `runwaySize` bytes in the task.
    public static func start(
        in leader: Tracee, registers: Registers, mask: UInt64, memory task: borrowing TaskMemory,
        code candidates: [AddressRange],
        hole: Address, faults: Faults
    ) throws(Failure) -> Server {
        let runway = AddressRange(start: hole, end: hole + Server.runwaySize)
        let code = try Server.padding(of: candidates, in: task)
        var image = Code.server
        image.replaceSubrange(
            Code.leaderState..<(Code.leaderState + 160),
            with: registers.saved(runway: runway, mask: mask).flatMap { [UInt8](bytesOf: $0) })
        try attempt("write the server into task \(leader.id)") { () throws(SystemCallError) in
            try task.write(image, at: code)
        }
        try faults.pass(.dumpPlanted)
        let stops = StopSignals()
        let memory = try attempt("run system calls in task \(leader.id)") { () throws(SystemCallError) in
            // Registers before the mask: if we die in between, the task must not keep all signals blocked.
            try leader.setRegisters(registers.serving(at: code, runway: runway.start))
            try leader.setSignalMask(.max)
            try leader.resume()
            return try Server.connect(leader, runway, stops)
        }
        let lock = unsafe clinux_robust_lock(memory.pointer + 64)
        for (block, waiters) in [(0, 192), (256, 320)] {
            memory.store(UInt64(0), at: waiters)
            memory.store(runway.start.rawValue + UInt64(block), at: waiters + 8)
            memory.store(UInt64(2), at: waiters + 16)
            memory.store(UInt64(memory.load(UInt32.self, at: 64)), at: waiters + 24)
            memory.store(runway.start.rawValue + 64, at: waiters + 32)
            memory.store(UInt64(2), at: waiters + 40)
        }
        memory.storeShared(1, at: 16)
        let server = Server(leader, code, runway, memory, registers, mask, stops)
        server.wake(0)
        guard lock == 0 else { throw Failure(.bug, "no robust futex: error \(lock)") }
        try faults.pass(.dumpConnected)
        return server
    }

    private init(
        _ leader: Tracee, _ code: Address, _ runway: AddressRange, _ memory: consuming Mapping, _ registers: Registers,
        _ mask: UInt64, _ stops: StopSignals
    ) {
        self.stops = stops
        self.leader = leader
        self.code = code
        self.runway = runway
        self.memory = memory
        self.registers = registers
        self.mask = mask
    }

    /// Maps the runway here as soon as the task has mapped it there.
    private static func connect(_ leader: Tracee, _ runway: AddressRange, _ stops: StopSignals) throws(SystemCallError)
        -> Mapping
    {
        let started = ContinuousClock.now
        while true {
            do throws(SystemCallError) {
                let file = try openFile("/proc/\(leader.id.rawValue)/map_files/\(runway.description)", .readWrite)
                return try Mapping(length: Int(runway.length), flags: 1, file: file.number)
            } catch {
                guard error.errno == .ENOENT, ContinuousClock.now - started < .seconds(5) else { throw error }
                // A task in a group stop reports that once more when it is let go.
                switch Result(catching: { () throws(Failure) in try leader.poll() }) {
                case .success(.some(.event)): try leader.resume()
                case .success(.some(.signal(let signal))):
                    stops.note(signal)
                    try leader.resume()
                default: break
                }
                _ = try? systemCall(.sched_yield)
            }
        }
    }

    private borrowing func wake(_ offset: Int) {
        _ = try? systemCall(.futex, memory.address + offset, 1, 1)
    }

    /// Runs a batch in the leader.
    public borrowing func run(_ batch: consuming Batch) throws(Failure) -> Results {
        if batch.isEmpty { return Results(values: [], data: batch.data) }
        let loaded = try load(batch, block: 0)
        wake(0)
        return try answers(loaded, block: 0, by: leader)
    }

    /// Lets the leader open a descriptor and fetches a copy. The leader closes its own before this returns, also if we die
    /// in between.
    ///
    /// - Parameters:
    ///   - call: opens it, with one argument.
    ///   - pidfd: of the leader's process.
    public borrowing func fetch(_ call: SystemCall, _ argument: Int, through pidfd: Int32) throws(Failure) -> Descriptor
    {
        var batch = Batch()
        let waiters = batch.place(waiters(for: Server.goOn))
        let opened = batch.add(call, .value(argument), doing: "open a descriptor", mayFail: true)
        batch.add(.futex_waitv, .buffer(waiters), .value(2), .value(0), .value(0), doing: "wait", mayFail: true)
        batch.add(.close, .result(opened), doing: "close a descriptor", mayFail: true)
        memory.storeShared(0, at: Server.goOn)
        let loaded = try load(batch, block: 0)
        wake(0)
        let number = try answer(opened, of: loaded)
        let outcome: Result<Int32, SystemCallError>
        do throws(SystemCallError) {
            if number < 0 { throw SystemCallError(call, Errno(rawValue: Int32(clamping: 0 - max(number, -4095)))) }
            outcome = .success(try fetchDescriptor(number, through: pidfd).release())
        } catch { outcome = .failure(error) }
        goOn(Server.goOn)
        return try finish(loaded, outcome)
    }

    /// Lets the leader open a descriptor by a request to a device that it has no access to, and fetches a copy. The leader closes
    /// all of its own before this returns, also if we die in between.
    ///
    /// - Parameters:
    ///   - device: a descriptor of ours.
    ///   - request: opens it (`ioctl(2)`), with one argument.
    ///   - pidfd: of the leader's process.
    public borrowing func fetch(
        from device: Int32, _ request: Int, _ argument: Int, through pidfd: Int32
    ) throws(Failure) -> Descriptor {
        // The kernel gives out the lowest numbers, and nobody else takes any while the process stands still.
        let used = try attempt("list the descriptors of task \(leader.id)") { () throws(SystemCallError) in
            Set(try listNumbers("/proc/\(leader.id.rawValue)/fd/"))
        }
        let free = (0...used.count + 1).filter { !used.contains(Int32($0)) }.prefix(2)
        guard let socket = free.first, let arrived = free.last, arrived > socket else {
            throw Failure(.bug, "no free descriptor")
        }
        var batch = Batch()
        let calls = addRequest(request, argument, socket: socket, arrived: arrived, &batch)
        memory.storeShared(0, at: Server.goOn)
        memory.storeShared(0, at: Server.goOnAgain)
        let loaded = try load(batch, block: 0)
        wake(0)
        _ = try answer(calls.bound, of: loaded)
        let outcome = Result { () throws(SystemCallError) in
            guard loaded.value(calls.made, memory) == socket else { throw SystemCallError(.socket, .EMFILE) }
            try Server.give(device, toOwnerOf: Int32(socket), through: pidfd)
        }
        goOn(Server.goOn)
        let number = (try? answer(calls.opened, of: loaded)) ?? -3  // ESRCH
        let fetched = Result { () throws(SystemCallError) in
            try outcome.get()
            if number < 0 { throw SystemCallError(.ioctl, Errno(rawValue: Int32(clamping: 0 - max(number, -4095)))) }
            return try fetchDescriptor(number, through: pidfd).release()
        }
        goOn(Server.goOnAgain)
        return try finish(loaded, fetched)
    }

    private borrowing func goOn(_ word: Int) {
        memory.storeShared(1, at: word)
        wake(word)
    }

    /// Waits for the end of a batch by which a descriptor was fetched.
    private borrowing func finish(
        _ loaded: borrowing LoadedBatch, _ fetched: Result<Int32, SystemCallError>
    ) throws(Failure) -> Descriptor {
        let leader = leader
        do throws(Failure) { _ = try answers(loaded, block: 0, by: leader) } catch {
            if case .success(let number) = fetched { _ = try? systemCall(.close, Int(number)) }
            throw error
        }
        return try attempt("open a descriptor in task \(leader.id)") { () throws(SystemCallError) in
            Descriptor(owning: try fetched.get())
        }
    }

    private borrowing func addRequest(
        _ request: Int, _ argument: Int, socket: Int, arrived: Int, _ batch: inout Batch
    ) -> (made: Batch.Slot, bound: Batch.Slot, opened: Batch.Slot) {
        // AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC
        let made = batch.add(
            .socket, .value(1), .value(0o2000002), .value(0), doing: "make a socket", mayFail: true)
        let name = batch.place(value: UInt16(1))
        let bound = batch.add(.bind, .value(socket), .buffer(name), .value(2), doing: "name a socket", mayFail: true)
        let wait = batch.place(waiters(for: Server.goOn))
        batch.add(.futex_waitv, .buffer(wait), .value(2), .value(0), .value(0), doing: "wait", mayFail: true)
        let (byte, control) = (batch.reserve(16), batch.reserve(32))
        let vector = batch.place(value: (UInt64(0), UInt64(1)))
        batch.point(vector, at: 0, to: byte)
        let head = [UInt64](arrayLiteral: 0, 0, 0, 1, 0, 24, 0)  // struct msghdr
        let message = batch.place(head.flatMap { [UInt8](bytesOf: $0) })
        batch.point(message, at: 16, to: vector)
        batch.point(message, at: 32, to: control)
        // MSG_DONTWAIT | MSG_CMSG_CLOEXEC
        batch.add(
            .recvmsg, .value(socket), .buffer(message), .value(0x4000_0040), doing: "receive a descriptor",
            mayFail: true)
        let opened = batch.add(
            .ioctl, .value(arrived), .value(request), .value(argument), doing: "open a descriptor", mayFail: true)
        let waitAgain = batch.place(waiters(for: Server.goOnAgain))
        batch.add(.futex_waitv, .buffer(waitAgain), .value(2), .value(0), .value(0), doing: "wait", mayFail: true)
        batch.add(.close, .result(opened), doing: "close a descriptor", mayFail: true)
        batch.add(.close, .value(arrived), doing: "close a descriptor", mayFail: true)
        batch.add(.close, .value(socket), doing: "close a descriptor", mayFail: true)
        return (made, bound, opened)
    }

    /// Sends a descriptor of ours by a datagram socket of the task, which was named but not connected, to itself.
    private static func give(
        _ descriptor: Int32, toOwnerOf number: Int32, through pidfd: Int32
    ) throws(SystemCallError) {
        let socket = try fetchDescriptor(Int(number), through: pidfd)
        let ours = Int(socket.number)
        var name = [UInt8](repeating: 0, count: 128)
        var length: Int32 = 128
        // From now on it receives from nobody else.
        try name.withAddress { (name, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                _ = try systemCall(.getsockname, ours, name, length)
            }
            try systemCall(.connect, ours, name, Int(length))
        }
        while (try? name.withAddress({ (room, count) throws(SystemCallError) in
            try systemCall(.recvfrom, ours, room, count, 0x40, 0, 0)
        })) != nil {}
        try SocketMessage.send([0], [descriptor], to: socket.number)
    }

    /// Two struct futex_waitv: a word that we set, and our robust futex.
    private borrowing func waiters(for word: Int) -> [UInt8] {
        var words: [UInt64] = []
        for (value, offset) in [(0, word), (UInt64(memory.load(UInt32.self, at: 64)), 64)] {
            words += [value, runway.start.rawValue + UInt64(offset), 2]
        }
        return words.flatMap { [UInt8](bytesOf: $0) }
    }

    /// Waits for what one call of a batch answers, while the batch goes on.
    private borrowing func answer(_ slot: Batch.Slot, of loaded: borrowing LoadedBatch) throws(Failure) -> Int {
        var spins = 0
        while memory.loadShared(at: 4) == 0 {
            let value = loaded.value(slot, memory)
            if value != .min { return value }
            spins += 1
            if spins < 20_000 {
                clinux_relax()
                continue
            }
            if case .ended = try leader.poll() {
                throw Failure(.vanished, "task \(leader.id) ended while we looked at it")
            }
            pause(nanoseconds: 10_000)
        }
        return loaded.value(slot, memory)
    }

    /// Makes a copy of the process's memory: a task that never runs, and which ends with us at the latest.
    ///
    /// The leader makes a helper that shares its memory, and waits for its end. The helper, which from then on dies with us,
    /// makes the copy, which inherits that, and which is nobody's child that the process could see. If we die before, both
    /// end by themselves.
    ///
    /// - Parameters:
    ///   - first: calls to make before, `last` after it, in any case.
    ///   - staysChild: the copy is to be the process's own child, without a signal at its end, so that nobody else becomes
    ///     its parent. It has to be reaped (`MemoryCopy.remains`).
    /// - Returns: nil if the process can't be copied at this moment.
    public borrowing func copyMemory(
        first: [(call: SystemCall, arguments: [Int])], last: [(call: SystemCall, arguments: [Int])],
        staysChild: Bool
    ) throws(Failure) -> MemoryCopy? {
        var batch = Batch()
        Server.add(first, to: &batch)
        // CLONE_PTRACE | CLONE_FILES | CLONE_FS, and CLONE_VM for a helper; no signal at its end
        let cloned = batch.add(
            .clone, .value(staysChild ? 0x2600 : 0x2700), .value(0), .value(0), .value(0), .value(0),
            doing: "copy memory", mayFail: true)
        if !staysChild {
            // P_PID, which refuses what is no pid; WEXITED | __WCLONE
            batch.add(
                .waitid, .value(1), .result(cloned), .value(0), .value(0x8000_0004), .value(0), doing: "copy memory",
                mayFail: true)
        }
        Server.add(last, to: &batch)
        let loaded = try load(batch, block: 0)
        wake(0)
        let number = Int32(clamping: try answer(cloned, of: loaded))
        let outcome: Result<MemoryCopy?, Failure>
        do throws(Failure) {
            outcome = .success(
                number <= 0
                    ? nil
                    : staysChild
                        ? try MemoryCopy(child: number, of: leader.id, code: code)
                        : try MemoryCopy(helper: TaskID(number), code: code))
        } catch { outcome = .failure(error) }
        _ = try answers(loaded, block: 0, by: leader)
        return try outcome.get()
    }

    private static func add(_ calls: [(call: SystemCall, arguments: [Int])], to batch: inout Batch) {
        for (call, arguments) in calls where arguments.count == 3 {
            batch.add(
                call, .value(arguments[0]), .value(arguments[1]), .value(arguments[2]), doing: "copy memory",
                mayFail: true)
        }
    }

    /// Bytes of the runway: futex words that a batch waits for.
    private static let goOn = 32, goOnAgain = 36

    /// Places a batch and the command to run it.
    private borrowing func load(_ batch: consuming Batch, block: Int) throws(Failure) -> LoadedBatch {
        let loaded = try LoadedBatch(batch, into: memory, at: 4096..<memory.length, base: runway.start)
        memory.store(loaded.first.rawValue, at: block + 24)
        memory.store(loaded.end.rawValue, at: block + 8)
        memory.storeShared(0, at: block + 4)
        memory.storeShared(1, at: block)
        return loaded
    }

    /// Waits until a batch has run.
    private borrowing func answers(
        _ loaded: borrowing LoadedBatch, block: Int, by thread: Tracee
    ) throws(Failure) -> Results {
        var spins = 0
        while memory.loadShared(at: block + 4) == 0 {
            if spins < 2000 {
                spins += 1
                clinux_relax()
                continue
            }
            var limit: (Int, Int) = (0, 20_000_000)
            let word = memory.address + block + 4
            _ = try? withAddress(of: &limit) { (limit) throws(SystemCallError) in
                try systemCall(.futex, word, 0, 0, limit)
            }
            switch try thread.poll() {
            case .none: break
            case .ended: throw Failure(.vanished, "task \(thread.id) ended while we looked at it")
            case .some(let stop):
                // A group stop takes effect again when we let go.
                if case .signal(let signal) = stop { stops.note(signal) }
                try attempt("resume task \(thread.id)") { () throws(SystemCallError) in try thread.resume() }
            }
        }
        return try loaded.results(memory, of: thread.id)
    }

    /// Runs a batch in a further thread of the same process, which rests in its stop before. It does so again, as it was,
    /// once `giveBack` has returned, or the next batch runs in a further thread, or the server ends.
    ///
    /// - Parameter meanwhile: done as soon as the thread runs, when the one before rests.
    public borrowing func run(
        _ batch: consuming Batch, in thread: Tracee, registers: Registers, mask: UInt64,
        memory task: borrowing TaskMemory, meanwhile: () throws(Failure) -> Void = {}
    ) throws(Failure) -> Results {
        let runway = runway
        let state = registers.saved(runway: runway, mask: mask).flatMap { [UInt8](bytesOf: $0) }
        let code = code
        try giveBack()
        if batch.isEmpty {
            try meanwhile()
            return Results(values: [], data: batch.data)
        }
        // The command is there before the thread is, which then runs it without waiting.
        let loaded = try load(batch, block: 256)
        memory.storeShared(1, at: 20)
        try attempt("run system calls in thread \(thread.id)") { () throws(SystemCallError) in
            try task.write(state, at: code + UInt64(Code.threadState))
            try thread.setRegisters(registers.serving(at: code + UInt64(Code.threadEntry), runway: runway.start))
            try thread.setSignalMask(.max)
            try thread.resume()
        }
        lent.loan = (thread, registers, mask)
        let outcome: Result<Results, Failure>
        do throws(Failure) {
            let other = Result { () throws(Failure) in try meanwhile() }
            let results = try answers(loaded, block: 256, by: thread)
            try other.get()
            outcome = .success(results)
        } catch { outcome = .failure(error) }
        try attempt("stop thread \(thread.id)") { () throws(SystemCallError) in try thread.interrupt() }
        return try outcome.get()
    }

    /// Waits until the further thread that ran the last batch rests, and gives it its registers and its mask back.
    public borrowing func giveBack() throws(Failure) {
        guard let (thread, registers, mask) = lent.loan else { return }
        lent.loan = nil
        defer { memory.storeShared(0, at: 20) }
        guard case .event = try thread.wait() else {
            throw Failure(.vanished, "thread \(thread.id) ended or was disturbed while we looked at it")
        }
        try attempt("give thread \(thread.id) its registers back") { () throws(SystemCallError) in
            try thread.setRegisters(registers)
            try thread.setSignalMask(mask)
        }
    }

    /// Ends the server: no runway, no code left in the task, and the leader in its resting stop as it was.
    public consuming func cure(memory task: borrowing TaskMemory) throws(Failure) {
        // Only after a failure there is still something to give.
        _ = try? giveBack()
        armed = false
        let (registers, mask, code, leader, stops) = (registers, mask, code, leader, stops)
        memory.storeShared(2, at: 0)
        wake(0)
        awaitDeparture()
        while true {
            try attempt("stop task \(leader.id)") { () throws(SystemCallError) in try leader.interrupt() }
            switch try leader.wait() {
            case .event: break
            case .signal(let signal):
                stops.note(signal)
                try attempt("resume task \(leader.id)") { () throws(SystemCallError) in try leader.resume() }
                continue
            default: throw Failure(.vanished, "task \(leader.id) ended while we looked at it")
            }
            let now = try attempt("read the registers of task \(leader.id)") { () throws(SystemCallError) in
                try leader.registers()
            }
            if now.r14 == 1 { break }
            try attempt("resume task \(leader.id)") { () throws(SystemCallError) in try leader.resume() }
            // On a shared CPU a stop that follows at once would hit it before its first instruction, for ever.
            pause(nanoseconds: 20_000)
        }
        try attempt("give task \(leader.id) its registers back") { () throws(SystemCallError) in
            try leader.setRegisters(registers)
            try leader.setSignalMask(mask)
            try task.write([UInt8](repeating: 0, count: Code.server.count), at: code)
        }
        stops.sendAgain(to: leader.id)
        unsafe clinux_robust_unlock(memory.pointer + 64)
    }

    /// Waits until the task has unmapped the runway.
    private borrowing func awaitDeparture() {
        let name = "/proc/\(leader.id.rawValue)/map_files/\(runway.description)"
        let started = ContinuousClock.now
        while (try? readLink(name)) != nil, ContinuousClock.now - started < .seconds(1) {
            _ = try? systemCall(.sched_yield)
        }
    }

    deinit {
        guard armed else { return }
        _ = try? giveBack()
        // A failure on the way: the task unmaps the runway and heals itself; whoever owns the frozen tree lets it go.
        memory.storeShared(2, at: 0)
        wake(0)
        awaitDeparture()
        unsafe clinux_robust_unlock(memory.pointer + 64)
    }
}
