internal import CLinux
public import Diagnostics
public import Linux
internal import Procfs
internal import SystemPackage

/// A task to be created by a puppet.
public struct CloneRequest: Sendable {
    /// `CLONE_*` bits besides those that tracing needs.
    public var flags: UInt64
    /// The pid or tid in our namespace; nil for any.
    public var id: TaskID?
    /// The signal its parent gets when it ends.
    public var exitSignal: UInt64

    /// Describes a task to be created.
    public init(id: TaskID?, flags: UInt64 = 0, exitSignal: UInt64 = 17) {
        self.id = id
        self.flags = flags
        self.exitSignal = exitSignal
    }
}

/// The tree under restore. Its tasks die with us, whatever happens, until they are released.
public final class NascentTree {
    /// The runway that every puppet sees at the same place: records and buffers, then one page of code.
    public let runway: AddressRange
    let memory: Mapping
    private let file: Descriptor
    /// Whether it is in a pid namespace of its own, and which of its tasks' numbers in ours are known by now.
    private(set) var isApart = false
    fileprivate var known: Set<TaskID> = []
    /// The task that all others descend from.
    public private(set) var root: Puppet?

    var code: Address { Address(runway.end.rawValue - pageSize) }
    /// Bytes that one batch may need.
    public var capacity: Int { memory.length - Int(pageSize) }

    /// Maps the runway here. Nothing runs yet.
    ///
    /// - Parameter runway: a page-aligned range that is free in every task of the image.
    public init(runway: AddressRange) throws(Failure) {
        self.runway = runway
        let length = Int(runway.length)
        file = try attempt("create the runway") { () throws(SystemCallError) in try NascentTree.runwayFile(length) }
        let number = file.number
        memory = try attempt("map the runway") { () throws(SystemCallError) in
            try Mapping(length: length, flags: 1, file: number)
        }
        memory.store(Code.loop, at: memory.length - Int(pageSize))
        memory.store([0x0f, 0x05] as [UInt8], at: memory.length - Int(pageSize) + NascentTree.instruction)
    }

    /// Where a lone `syscall` instruction is in the code page.
    private static let instruction = 1024

    /// The address of a lone system call instruction in the code page.
    var instruction: Address { code + UInt64(NascentTree.instruction) }

    private static func runwayFile(_ length: Int) throws(SystemCallError) -> Descriptor {
        let raw = try withPath("brumate-runway") { (name) throws(SystemCallError) in
            try systemCall(.memfd_create, name, 0)  // inherited by the seed
        }
        try systemCall(.ftruncate, raw, length)
        return Descriptor(owning: Int32(raw))
    }

    /// Creates the first task: an executable of one page, started by a vfork-like clone, with nothing in its memory
    /// but that page, a stack and the vdso.
    ///
    /// - Parameters:
    ///   - id: its pid; nil for any.
    ///   - flags: further `CLONE_*` bits: `CLONE_PARENT`, namespaces. In a new pid namespace, it is the first task.
    public func sow(_ id: TaskID?, flags: UInt64 = 0) throws(Failure) -> Puppet {
        let executable = try attempt("create the seed") { () throws(SystemCallError) in try NascentTree.seedFile() }
        isApart = flags & 0x2000_0000 != 0
        if isApart { try NascentTree.checkFirst(id) }
        var number = id?.rawValue ?? 0
        var failed: Int32 = 0
        var outcome = 0
        unsafe withUnsafeMutablePointer(to: &number) { number in
            var arguments = clinux_clone_args()
            arguments.flags = 0x100 | 0x4000 | 0x1_0000_0000 | flags  // VM, VFORK, CLEAR_SIGHAND
            arguments.exit_signal = flags & 0x8000 != 0 ? 0 : 17
            if !isApart, id != nil {
                arguments.set_tid = UInt64(UInt(bitPattern: number))
                arguments.set_tid_size = 1
            }
            outcome = unsafe clinux_spawn(&arguments, executable.number, "brumate-seed", &failed)
            var tries = 0
            while outcome == -17, tries < NascentTree.mostTries {
                tries += 1
                pause(nanoseconds: NascentTree.retryInterval)
                outcome = unsafe clinux_spawn(&arguments, executable.number, "brumate-seed", &failed)
            }
        }
        guard outcome > 0 else {
            let call: SystemCall = failed != 0 ? .execveat : .clone3
            throw NascentTree.cloneFailure(id ?? TaskID(0), SystemCallError(call, Errno(rawValue: Int32(-outcome))))
        }
        let ours = TaskID(Int32(truncatingIfNeeded: outcome))
        known.insert(ours)
        let id = id ?? ours
        let tracee = try attempt("take control of the new task \(id)") { () throws(SystemCallError) in
            let tracee = try Tracee.seize(ours, options: TraceOptions.killOnExit | TraceOptions.suspendSeccomp)
            try tracee.interrupt()
            return tracee
        }
        guard case .event = try tracee.wait() else { throw Failure(.bug, "the new task \(id) did not stop") }
        let puppet = Puppet(tracee, id, tree: self)
        root = puppet
        try puppet.board(self, file: file.number)
        return puppet
    }

    /// Makes the first task of a new pid namespace, in the user namespace of a task that is only there for that, and ends that.
    /// It is the child of who made the other.
    public func replant(_ id: TaskID, from carrier: Puppet) throws(Failure) -> Puppet {
        try NascentTree.checkFirst(id)
        isApart = true
        let made = try carrier.clone([CloneRequest(id: id, flags: 0x2000_0000 | 0x8000)])  // CLONE_NEWPID, CLONE_PARENT
        guard let puppet = made.first else { throw Failure(.bug, "no task was made") }
        root = puppet
        try attempt("end the task that made the tree's first") { () throws(SystemCallError) in
            try systemCall(.kill, Int(carrier.task.rawValue), 9)
        }
        while carrier.tracee.isAttached { _ = try carrier.tracee.wait() }
        return puppet
    }

    private static func checkFirst(_ id: TaskID?) throws(Failure) {
        guard id?.rawValue == 1 else {
            let text = id.map { "\($0)" } ?? "another"
            throw Failure(.unsupported, "the root of the tree was not the first task of its PID namespace, but \(text)")
        }
    }

    /// A pid stays taken for a moment after its task has left /proc, and for as long as it names a session or group.
    static let mostTries = 5000

    /// Nanoseconds between two tries.
    static let retryInterval = 1_000_000

    static func cloneFailure(_ id: TaskID, _ error: SystemCallError) -> Failure {
        if error.errno == .EEXIST {
            return Failure(
                .conflict, "the pid \(id) is taken", advice: "End that process, or restore into a new pid namespace",
                cause: error)
        }
        return Failure(.denied, "can't create task \(id)", cause: error)
    }

    private static func seedFile() throws(SystemCallError) -> Descriptor {
        let raw = try withPath("brumate-seed") { (name) throws(SystemCallError) in
            try systemCall(.memfd_create, name, 1)
        }
        let writable = Descriptor(owning: Int32(raw))
        try writeAll(Code.seed, to: writable.number)
        try systemCall(.fchmod, raw, 0o755)
        // A file that is open for writing can't be executed.
        let readable = try openFile("/proc/self/fd/\(raw)")
        try writable.close()
        return readable
    }
}

/// A task under restore, driven by batches of system calls.
public final class Puppet {
    /// The traced thread.
    public let tracee: Tracee
    /// What it calls itself.
    public let id: TaskID
    /// What its process calls itself.
    public let process: TaskID
    /// What we call its process.
    public let task: TaskID
    private unowned let tree: NascentTree
    private var base = Registers()

    /// Whether it is its process's first thread.
    public var isLeader: Bool { id == process }

    init(_ tracee: Tracee, _ id: TaskID, tree: NascentTree) {
        (self.tracee, self.id, process, task, self.tree) = (tracee, id, id, tracee.id, tree)
    }

    init(_ tracee: Tracee, _ id: TaskID, thread leader: Puppet, tree: NascentTree) {
        (self.tracee, self.id, self.tree) = (tracee, id, tree)
        (process, task) = (leader.process, leader.task)
    }

    /// Signals that stay deliverable while it is a puppet: only the breakpoint's.
    static let mask: UInt64 = ~(1 << 4)

    /// Maps the runway into the seed and drops the seed's own page.
    func board(_ tree: NascentTree, file: Int32) throws(Failure) {
        guard let offset = Code.seed.indices.first(where: { Code.seed[$0] == 0x0f && Code.seed[$0 + 1] == 0x05 }) else {
            throw Failure(.bug, "the seed has no system call")
        }
        let instruction = Address(0x400000 + UInt64(offset))
        try attempt("prepare the new task \(id)") { () throws(SystemCallError) in
            try tracee.setSignalMask(Puppet.mask)
            base = try tracee.registers()
        }
        let length = tree.runway.length - pageSize
        for (start, count, protection, from) in [
            (tree.runway.start, length, 3, UInt64(0)), (tree.code, pageSize, 5, length),
        ] {
            let got = try step(
                .mmap, [start.rawValue, count, UInt64(protection), 0x100001, UInt64(file), from], at: instruction)
            guard UInt64(bitPattern: Int64(got)) == start.rawValue else {
                throw Failure(.bug, "the runway can't be mapped at \(start): \(got)")
            }
        }
        base.originalAX = .max
    }

    /// Makes one system call by stepping over a `syscall` instruction. Returns the raw result.
    @discardableResult
    func step(_ call: SystemCall, _ arguments: [UInt64], at instruction: Address) throws(Failure) -> Int {
        let arguments = arguments + [UInt64](repeating: 0, count: 6 - arguments.count)
        try attempt("run \(call) in task \(id)") { () throws(SystemCallError) in
            var registers = base.calling(call, arguments[0], arguments[1], at: instruction)
            registers.dx = arguments[2]
            registers.r10 = arguments[3]
            registers.r8 = arguments[4]
            registers.r9 = arguments[5]
            try tracee.setRegisters(registers)
            try tracee.step()
        }
        let stop = try tracee.wait()
        guard stop == .signal(5) else { throw Failure(.bug, "task \(id) stopped with \(stop) in \(call)") }
        return try attempt("read the registers of task \(id)") { () throws(SystemCallError) in
            Int(bitPattern: UInt(try tracee.registers().ax))
        }
    }

    /// Runs a batch and reads its answers.
    ///
    /// - Parameter body: what is done here meanwhile. Whatever it throws, the batch has run.
    @discardableResult
    public func run(
        _ batch: consuming Batch, meanwhile body: () throws(Failure) -> Void = {}
    ) throws(Failure) -> Results {
        if batch.isEmpty {
            try body()
            return Results(values: [], data: batch.data)
        }
        let loaded = try begin(batch)
        let outcome = Result { () throws(Failure) in try body() }
        let stop = try tracee.wait()
        try outcome.get()
        guard stop == .signal(5) else {
            let place = (try? tracee.registers()).map { "\(Address($0.ip))" } ?? "?"
            throw Failure(.bug, "task \(id) stopped with \(stop) at \(place) in a batch")
        }
        return try loaded.results(tree.memory, of: id)
    }

    /// Places a batch in the runway and lets the task run it.
    private func begin(_ batch: consuming Batch) throws(Failure) -> LoadedBatch {
        let loaded = try LoadedBatch(batch, into: tree.memory, at: 0..<tree.capacity, base: tree.runway.start)
        let (first, end) = (loaded.first, loaded.end)
        try attempt("run system calls in task \(id)") { () throws(SystemCallError) in
            try tracee.setRegisters(base.looping(at: tree.code, first: first, end: end))
            try tracee.resume()
        }
        return loaded
    }

    /// Copies one of its descriptors (`pidfd_getfd(2)`).
    public func fetch(_ number: Int) throws(SystemCallError) -> Descriptor {
        let pidfd = try task.openHandle()
        return try fetchDescriptor(number, through: pidfd.number)
    }

    /// Creates tasks, all stopped before their first instruction.
    public func clone(_ requests: [CloneRequest]) throws(Failure) -> [Puppet] {
        try clone(requests, tries: 0)
    }

    private func clone(_ requests: [CloneRequest], tries: Int) throws(Failure) -> [Puppet] {
        var batch = Batch()
        var slots: [Batch.Slot] = []
        for request in requests {
            let id = batch.place(value: request.id?.rawValue ?? 0)
            var arguments = clinux_clone_args()
            arguments.flags = request.flags | 0x2000  // CLONE_PTRACE
            arguments.exit_signal = request.flags & 0x18000 != 0 ? 0 : request.exitSignal  // not with PARENT or THREAD
            arguments.set_tid_size = request.id == nil ? 0 : 1
            let place = batch.place(value: arguments)
            if request.id != nil {
                batch.point(place, at: MemoryLayout<clinux_clone_args>.offset(of: \.set_tid) ?? 0, to: id)
            }
            slots.append(
                batch.add(
                    .clone3, .buffer(place), .value(MemoryLayout<clinux_clone_args>.size), doing: "create a task",
                    mayFail: true))
        }
        let results = try run(batch)
        var made: [Puppet] = []
        var names: [TaskID: TaskID] = [:]
        for (request, slot) in zip(requests, slots) {
            guard let number = results.success(slot) else {
                if results[slot] == -17, tries < NascentTree.mostTries {
                    pause(nanoseconds: NascentTree.retryInterval)
                    made += try clone([request], tries: tries + 1)
                    continue
                }
                throw NascentTree.cloneFailure(
                    request.id ?? TaskID(0), SystemCallError(.clone3, Errno(rawValue: Int32(-results[slot]))))
            }
            let isThread = request.flags & 0x10000 != 0
            let id = request.id ?? TaskID(Int32(truncatingIfNeeded: number))
            let tracee = try Tracee.adopt(try ours(id, request.flags, &names))
            let puppet =
                isThread ? Puppet(tracee, id, thread: self, tree: tree) : Puppet(tracee, id, tree: tree)
            puppet.base = base
            made.append(puppet)
        }
        return made
    }

    /// What we call a task that this one has created.
    ///
    /// - Parameter names: those that were found already.
    private func ours(_ id: TaskID, _ flags: UInt64, _ names: inout [TaskID: TaskID]) throws(Failure) -> TaskID {
        guard tree.isApart else { return id }
        if let known = names[id] { return known }
        let candidates: [TaskID]
        if flags & 0x10000 != 0 {
            candidates = ((try? listNumbers("/proc/\(task.rawValue)/task")) ?? []).map { TaskID($0) }
        } else {
            let parent = flags & 0x8000 == 0 ? task : try TaskStat.read(of: task).parent
            let threads = ((try? listNumbers("/proc/\(parent.rawValue)/task")) ?? []).map { TaskID($0) }
            candidates = listChildren(of: parent, threads: threads)
        }
        for candidate in candidates.reversed() where !tree.known.contains(candidate) {
            guard let status = try? TaskStatus.read(of: candidate), status.namespaceIDs.count > 1,
                let number = status.namespaceIDs.last
            else { continue }
            names[TaskID(number)] = candidate
        }
        guard let found = names[id] else { throw Failure(.vanished, "the new task \(id) can't be found") }
        tree.known.insert(found)
        return found
    }

    /// Ends the process. The caller waits for its end.
    public func exit(status: Int) throws(Failure) {
        var batch = Batch()
        batch.add(.exit_group, .value(status), doing: "end")
        _ = try begin(batch)
    }

    /// Ends the process with a status as wait(2) reports it, and waits for the end.
    public func end(as status: UInt32) throws(Failure) {
        let signal = Int32(status & 0x7f)
        if signal == 0 {
            try exit(status: Int(status >> 8 & 0xff))
        } else {
            try attempt("end it as it ended") { () throws(SystemCallError) in
                try tracee.setSignalMask(0)
                try systemCall(.tgkill, Int(task.rawValue), Int(tracee.id.rawValue), Int(signal))
            }
            // SIGKILL has ended it already.
            _ = try? tracee.resume()
        }
        while tracee.isAttached {
            switch try tracee.wait() {
            case .signal(let number):
                try attempt("end it as it ended") { () throws(SystemCallError) in try tracee.resume(signal: number) }
            case .ended: break
            default: _ = try? systemCall(.kill, Int(task.rawValue), 9)  // The signal is none that ends a task.
            }
        }
    }

    /// Puts a thread to sleep in a system call and stops it there, so that the kernel holds a fresh restart block.
    /// After this only calls that don't sleep may be run.
    public func arm(_ call: SystemCall, _ arguments: [UInt64], with batch: consuming Batch = Batch()) throws(Failure) {
        _ = try LoadedBatch(batch, into: tree.memory, at: 0..<tree.capacity, base: tree.runway.start)
        let arguments = arguments + [UInt64](repeating: 0, count: 6 - arguments.count)
        try attempt("restart \(call) in task \(id)") { () throws(SystemCallError) in
            var registers = base.calling(call, arguments[0], arguments[1], at: tree.instruction)
            registers.dx = arguments[2]
            registers.r10 = arguments[3]
            registers.r8 = arguments[4]
            registers.r9 = arguments[5]
            try tracee.setRegisters(registers)
            try tracee.resumeToSystemCall()
        }
        guard try tracee.wait() == .signal(5) else { throw Failure(.bug, "task \(id) did not enter \(call)") }
        try attempt("restart \(call) in task \(id)") { () throws(SystemCallError) in
            try tracee.interrupt()
            try tracee.resume()
        }
        guard case .event = try tracee.wait() else { throw Failure(.bug, "task \(id) did not sleep in \(call)") }
    }

    /// The last act of a process: its leader unmaps the runway while the other threads stand still.
    ///
    /// Afterwards only registers and masks can be set. The thread rests in a signal stop, so the kernel's restart
    /// decision is still to come when it goes on.
    public func leaveRunway() throws(Failure) {
        let got = try step(.munmap, [tree.runway.start.rawValue, tree.runway.length], at: tree.instruction)
        guard got == 0 else { throw Failure(.bug, "the runway can't be unmapped in task \(id): \(got)") }
    }

    /// The address of a place in the runway, for batches that need memory that stays.
    public var runway: AddressRange { tree.runway }
}

extension Tracee {
    /// Lets it run one instruction (`PTRACE_SINGLESTEP`).
    func step() throws(SystemCallError) {
        try ptrace(9)
        isStopped = false
    }

    /// Lets it run to the entry or exit of a system call (`PTRACE_SYSCALL`).
    func resumeToSystemCall() throws(SystemCallError) {
        try ptrace(24)
        isStopped = false
    }
}
