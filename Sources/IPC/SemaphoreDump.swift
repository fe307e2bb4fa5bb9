internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Remote

/// The semaphore sets of a dump, and the undo lists of the tree.
final class SemaphoreDump {
    private struct Found {
        var entry: IpcSemEntry
        let values: [UInt16]
        let verdict: SystemVUse.Verdict
    }

    private var sets: [Found] = []
    /// Undo lists by thread that was asked, with their ids.
    private var lists: [UInt32: [UInt32: [(number: Int, adjustment: Int)]]] = [:]
    private var index = SharingIndex(.undo)

    static func of(_ context: DumpContext) -> SemaphoreDump { context.state(SemaphoreDump.self) { SemaphoreDump() } }

    // MARK: sets

    /// Looks at all sets of our IPC namespace.
    func collect(_ context: DumpContext) throws(Failure) {
        for (id, status) in Semaphores.all() {
            guard let found = try? look(at: id, status, SystemVUse.of(context), context) else { continue }
            sets.append(found)
            if case .shared(let other) = found.verdict { SystemVUse.warn("the semaphore set \(id)", other, context) }
        }
    }

    private func look(at id: UInt32, _ status: SemaphoreStatus, _ use: SystemVUse, _ context: DumpContext)
        throws(SystemCallError) -> Found
    {
        var entry = IpcSemEntry()
        let count = Int(clamping: status.count)
        entry.desc = status.permissions.entry(id: id, context.owners)
        entry.nsems = UInt32(count)
        entry.changed = status.changed
        var hasWaiters = false
        for number in 0..<count {
            entry.pids.append(UInt32(bitPattern: try Semaphores.process(id, number)))
            // The waiting tasks of the tree have left the queue when they were stopped.
            if !hasWaiters { hasWaiters = try Semaphores.hasWaiters(id, number) }
        }
        let verdict = use.verdict(
            id, named: entry.pids.map { Int32(bitPattern: $0) }, calls: [.semop, .semtimedop], hasOthers: hasWaiters)
        entry.pids = entry.pids.map { context.numbers.number($0) }
        return Found(entry: entry, values: try Semaphores.values(id, count: count), verdict: verdict)
    }

    // MARK: undo lists

    /// Gives the undo lists of all threads their ids.
    func identify(_ context: DumpContext) throws(Failure) {
        for process in context.processes {
            let leader = try list(of: process.id)
            if let leader { process.ids.semUndoID = leader }
            // Without any set all lists are empty.
            guard !sets.isEmpty else { continue }
            for thread in process.threads where !thread.isLeader {
                let own = try list(of: thread.tracee.id)
                if own != leader || own == nil { thread.core.threadCore.brumate.semUndoID = own ?? 0 }
            }
        }
        try checkThreads(context)
    }

    private func list(of thread: TaskID) throws(Failure) -> UInt32? {
        switch SharingIndex.hasUndoList(thread) {
        case .some(false): nil
        case .some(true): try index.id(of: thread).id
        case .none: index.newID()
        }
    }

    /// A thread with a list that is not its leader's gets a new one, which nobody else can have.
    private func checkThreads(_ context: DumpContext) throws(Failure) {
        var holders: [UInt32: TaskID] = [:]
        for process in context.processes where process.ids.hasSemUndoID { holders[process.ids.semUndoID] = process.id }
        for thread in context.processes.flatMap(\.threads) {
            let id = thread.core.threadCore.brumate.semUndoID
            guard id != 0, let other = holders.updateValue(thread.tracee.id, forKey: id) else { continue }
            throw Failure(
                .unsupported,
                "thread \(thread.tracee.id) shares its undo list of semaphores with \(other), but not with its own leader",
                advice: "End one of them before the dump")
        }
    }

    private func listID(of thread: DumpedThread) -> UInt32? {
        let own = thread.core.threadCore.brumate
        if own.hasSemUndoID { return own.semUndoID == 0 ? nil : own.semUndoID }
        return thread.isLeader && thread.process.ids.hasSemUndoID ? thread.process.ids.semUndoID : nil
    }

    /// What has to be asked of a thread.
    func search(_ thread: DumpedThread) -> UndoSearch? {
        guard !sets.isEmpty, let id = listID(of: thread), lists[id] == nil else { return nil }
        return UndoSearch(thread.tracee.id, sets.map { ($0.entry.desc.id, Int($0.entry.nsems)) })
    }

    func take(_ search: UndoSearch, _ thread: DumpedThread, _ context: DumpContext) {
        guard let id = listID(of: thread) else { return }
        lists[id] = search.found
        for set in search.unreadable {
            guard sets.contains(where: { $0.entry.desc.id == set && $0.verdict != .others }) else { continue }
            context.log.warning(
                "thread \(thread.tracee.id) may not change the semaphore set \(set): what its end gives back is unknown"
            )
        }
    }

    // MARK: image

    /// Writes `ipcns-sem-N.img`: an entry, then the values in whole words.
    func finish(_ context: DumpContext) throws(Failure) {
        var written: ImageWriter?
        for found in sets {
            var entry = found.entry
            for (list, adjustments) in lists.sorted(by: { $0.key < $1.key }) {
                guard let mine = adjustments[entry.desc.id], !mine.isEmpty else { continue }
                var undo = BrumateSemUndoEntry()
                undo.list = list
                undo.numbers = mine.map { UInt32($0.number) }
                undo.adjustments = mine.map { Int32($0.adjustment) }
                entry.undo.append(undo)
            }
            if found.verdict != .tree {
                guard !entry.undo.isEmpty else { continue }
                entry.shared = true
                context.log.warning(
                    "tasks hold semaphores of the shared set \(entry.desc.id): their end gives back, the restore takes")
            }
            let writer = written ?? context.images.create(.semaphores(SystemVUse.id(context)))
            written = writer
            try writer.append(entry)
            var raw = found.values.flatMap { [UInt8](bytesOf: $0.littleEndian) }
            raw += [UInt8](repeating: 0, count: -raw.count & 7)
            try writer.append(raw: raw)
        }
        try written?.finish()
    }
}
