public import Diagnostics
public import Kinds
public import Linux
internal import Logging
internal import Procfs
public import Remote

/// Copies of the memory of a tree that goes on before its pages are written (`dump --live`; kernel-facts, section 4).
///
/// A copy is a fork, so both share all pages until the process writes to them. What a fork would not have is held
/// (`HeldMemory`), or written while the tree stands still, like the private memory of processes that can't be copied.
public final class MemoryCopies {
    private var made: [TaskID: MemoryCopy] = [:]
    /// Processes of the tree that become the parents of orphans below them, and all below those.
    private var reapers: Set<TaskID> = []
    /// What copies leave behind that are children of their processes.
    private var remains: [(process: TaskID, number: Int32)] = []

    /// Of one dump.
    public static func of(_ context: DumpContext) -> MemoryCopies {
        context.state(MemoryCopies.self) { MemoryCopies() }
    }

    /// Copies a stopped process that runs a server and waits for no requests. Where that can't be, its pages are written while
    /// it stands still.
    public func make(
        of process: DumpedProcess, _ server: borrowing Server, _ context: DumpContext
    ) throws(Failure) {
        // Locked memory is not locked in a copy, and what was kept from forks must not be anew if it no longer is.
        let locked = process.mappings.reduce(0) { $0 + ($1.flags.contains("lo") ? $1.range.length : 0) }
        if process.status.lockedMemory != locked || process.mappings.contains(where: MemoryCopies.isKeptFromForks) {
            try process.readFlags()
        }
        // A copy would need huge pages of its own, of which there may be none.
        let huge = process.mappings.filter { !$0.isShared && $0.hugePageSize != nil }
        if !huge.isEmpty {
            try process.readFlags()
            guard HeldMemory.of(context).take(huge, of: process) else {
                context.log.notice(
                    "the memory of task \(process.id) is written while it stands still: it has huge pages of its own (hugetlb)"
                )
                return
            }
        }
        var (first, last): ([(SystemCall, [Int])], [(SystemCall, [Int])]) = ([], [])
        // MADV_DONTFORK and MADV_DOFORK, MADV_WIPEONFORK and MADV_KEEPONFORK
        func advise(_ mapping: VMA, before: Int, after: Int) {
            let (start, length) = (Int(bitPattern: UInt(mapping.range.start.rawValue)), Int(mapping.range.length))
            first.append((.madvise, [start, length, before]))
            last.append((.madvise, [start, length, after]))
        }
        for mapping in huge where !mapping.flags.contains("dc") { advise(mapping, before: 10, after: 11) }
        for mapping in process.mappings where MemoryCopies.isKeptFromForks(mapping) && mapping.hugePageSize == nil {
            if mapping.flags.contains("dc") { advise(mapping, before: 11, after: 10) }
            if mapping.flags.contains("wf") { advise(mapping, before: 19, after: 18) }
        }
        let copy: MemoryCopy?
        let staysChild = try wouldBeAdopted(process, server, context)
        do throws(Failure) {
            copy = try server.copyMemory(first: first, last: last, staysChild: staysChild)
        } catch {
            if error.code == .vanished { throw error }
            context.log.warning("\(error)")
            copy = nil
        }
        guard let copy else {
            try process.readFlags()
            context.log.warning(
                "task \(process.id) can't be copied, its memory is written while it stands still; is a limit reached?")
            return
        }
        made[process.id] = copy
        if let number = copy.remains { remains.append((process.id, number)) }
        try context.faults.pass(.dumpCopied)
    }

    /// Whether a copy would not have the memory, unless it is told to. Memory that may be dropped at any moment is never
    /// copied.
    private static func isKeptFromForks(_ mapping: VMA) -> Bool {
        (mapping.flags.contains("dc") || mapping.flags.contains("wf")) && !mapping.flags.contains("dp")
            && !mapping.isShared && !mapping.isOfKernel
    }

    /// Whether a process of the tree would become the parent of an orphan, and see its end: one above that asked for it
    /// (`PR_SET_CHILD_SUBREAPER`), or the first of a PID namespace that is the tree's own.
    private func wouldBeAdopted(
        _ process: DumpedProcess, _ server: borrowing Server, _ context: DumpContext
    ) throws(Failure) -> Bool {
        if context.namespaces.apart.contains(.pid) { return true }
        var batch = Batch()
        let answer = batch.reserve(4)
        // PR_GET_CHILD_SUBREAPER
        batch.add(.prctl, .value(37), .buffer(answer), doing: "ask whether it adopts orphans")
        let adopts = try server.run(batch).value(Int32.self, answer) != 0 || process.id.rawValue == 1
        guard adopts || reapers.contains(process.frozen.parent) else { return false }
        reapers.insert(process.id)
        return true
    }

    /// The processes whose copies have to be reaped.
    public var bereaved: [TaskID] { remains.map(\.process) }

    /// Ends what copies are left.
    public func end() { made = [:] }

    /// Lets a stopped process that runs a server reap its copies, which have ended.
    public func reap(_ process: TaskID, _ server: borrowing Server) throws(Failure) {
        var batch = Batch()
        for child in remains where child.process == process {
            // P_PID; WEXITED | WNOHANG | __WCLONE
            batch.add(
                .waitid, .value(1), .value(Int(child.number)), .value(0), .value(0x8000_0005), .value(0),
                doing: "reap the copy of its memory", mayFail: true)
        }
        _ = try server.run(batch)
        remains.removeAll { $0.process == process }
    }

    /// Whether requests of a stopped process (AIO, io_uring) may still bring something to its memory, which a copy would
    /// miss: they have to be settled first.
    public static func hasToWait(_ process: DumpedProcess) -> Bool {
        process.hasRings || process.mappings.contains(where: \.isAioRing)
    }

    /// Corrects the flags of a process that were foreseen by those of its copy, which has them as they were at the stop, but
    /// for some that no copy has: those were certain before.
    static func correctFlags(of process: DumpedProcess, by copy: MemoryCopy) throws(Failure) {
        guard process.isForeseen else { return }
        func fail(_ mapping: VMA) -> Failure {
            Failure(
                .vanished, "its mapping \(mapping.range) was advised anew right before the task was stopped",
                advice: "Try again")
        }
        let exact = try VMA.read(of: copy.id)
        for mapping in exact where isKeptFromForks(mapping) { throw fail(mapping) }
        // Its pages were left out, or should have been.
        let droppable = Set(exact.filter { $0.flags.contains("dp") }.map(\.range))
        for mapping in process.mappings where mapping.flags.contains("dp") != droppable.contains(mapping.range) {
            throw fail(mapping)
        }
        try process.correct(by: exact, keeping: ["lo", "lf", "um", "uw", "ui"]) {
            (mapping) throws(Failure) in
            if !mapping.isShared, !mapping.isOfKernel { throw fail(mapping) }
        }
    }

    /// Gives a copy away, to who writes it.
    func take(_ process: TaskID) -> MemoryCopy? { made.removeValue(forKey: process) }
}
