internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// Seccomp modes and filters. Filters are written once for each chain; a thread refers to its youngest.
enum Seccomp: TaskPart {
    /// The chains met in one dump.
    private final class Chains {
        var filters: [SeccompFilter] = []
        var known: [Chain: UInt32] = [:]
    }

    private struct Chain: Hashable {
        let programs: [[UInt8]], flags: [UInt64]
    }

    /// The filters of one restore.
    private final class Loaded {
        var filters: [SeccompFilter] = []
    }

    /// Longest program in bytes (`BPF_MAXINSNS`).
    private static let longest = 4096 * 8

    static func dump(_ question: Void, _ results: Results, _ thread: DumpedThread, _ context: DumpContext)
        throws(Failure)
    {
        let mode = thread.status.seccompMode
        thread.core.threadCore.seccompMode = SeccompMode(rawValue: Int(mode)) ?? .disabled
        guard mode == 2 else { return }
        let chains = context.state(Chains.self) { Chains() }
        var programs: [[UInt8]] = []
        var flags: [UInt64] = []
        let tracee = thread.tracee
        try attempt("read the seccomp filters", advice: "Run as root and outside of seccomp") {
            () throws(SystemCallError) in
            while let program = try tracee.seccompFilter(programs.count) {
                flags.append((try? tracee.seccompFilterFlags(programs.count)) ?? 0)
                programs.append(program)
            }
        }
        let chain = Chain(programs: programs, flags: flags)
        if let known = chains.known[chain] {
            thread.core.threadCore.seccompFilter = known
            return
        }
        for (index, program) in programs.enumerated() {
            var filter = SeccompFilter()
            filter.filter = imageBytes(program)
            filter.flags = UInt32(truncatingIfNeeded: flags[index])
            if index > 0 { filter.prev = UInt32(chains.filters.count - 1) }
            chains.filters.append(filter)
        }
        let last = UInt32(chains.filters.count - 1)
        chains.known[chain] = last
        thread.core.threadCore.seccompFilter = last
    }

    static func finish(_ context: DumpContext) throws(Failure) {
        var entry = SeccompEntry()
        entry.seccompFilters = context.state(Chains.self) { Chains() }.filters
        try context.images.write(.seccomp, [entry])
    }

    static func load(_ context: RestoreContext) throws(Failure) {
        guard context.images.has(.seccomp) else { return }
        let loaded = context.state(Loaded.self) { Loaded() }
        for entry in try context.images.loadAll(.seccomp, as: SeccompEntry.self) {
            loaded.filters += entry.seccompFilters
        }
    }

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        // Filters sleep as long as we trace (PTRACE_O_SUSPEND_SECCOMP).
        guard stage == .seal else { return }
        let core = thread.core.threadCore
        var mode = core.seccompMode
        var index = core.seccompFilter
        if !core.hasSeccompMode, let old = thread.process.plan.cores.first?.tc, old.hasOldSeccompMode {
            (mode, index) = (old.oldSeccompMode, old.oldSeccompFilter)
        }
        switch mode {
        case .disabled: return
        case .strict:
            batch.add(.prctl, .value(22), .value(1), .value(0), .value(0), .value(0), doing: "enter strict seccomp")
        case .filter:
            let filters = context.state(Loaded.self) { Loaded() }.filters
            var chain: [SeccompFilter] = []
            while true {
                guard filters.indices.contains(Int(index)), chain.count <= filters.count else {
                    throw Failure(.corruptImage, "the seccomp filter \(index) is not in seccomp.img")
                }
                let filter = filters[Int(index)]
                guard filter.filter.count % 8 == 0, !filter.filter.isEmpty, filter.filter.count <= longest else {
                    throw Failure(.corruptImage, "the seccomp filter \(index) makes no sense")
                }
                chain.append(filter)
                guard filter.hasPrev else { break }
                index = filter.prev
            }
            // Threads with the same filters share them, which a later SECCOMP_FILTER_FLAG_TSYNC of theirs depends on: the
            // leader installs them for all.
            let isShared =
                thread.process.threads.count > 1
                && thread.process.threads.allSatisfy { other in
                    other.core.threadCore.seccompMode == .filter
                        && other.core.threadCore.seccompFilter == core.seccompFilter
                }
            if isShared && !thread.isLeader { return }
            for filter in chain.reversed() {
                let program = batch.place(Array(filter.filter))
                let head = batch.place(value: (UInt64(filter.filter.count / 8), UInt64(0)))
                batch.point(head, at: 8, to: program)
                let flags = UInt64(filter.flags & ~1) | (isShared ? 1 : 0)
                batch.add(.seccomp, .value(1), .bits(flags), .buffer(head), doing: "install a seccomp filter")
            }
        }
    }
}
