internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Remote

/// The semaphore sets of a restore, and the undo lists of the tree.
///
/// A set that is still there is the tree's, if nobody else has touched it. Each task takes again what its end gave back:
/// the values become those of the dump by that, and become what they were if the restore fails and the tasks end.
final class SemaphoreRestore {
    private struct Wanted {
        let entry: IpcSemEntry
        let values: [UInt16]
    }

    private var sets: [Wanted] = []
    private var made: [UInt32] = []

    static func of(_ context: RestoreContext) -> SemaphoreRestore {
        context.state(SemaphoreRestore.self) { SemaphoreRestore() }
    }

    // MARK: load

    /// Reads and checks the image.
    func load(_ context: RestoreContext) throws(Failure) {
        let name = ImageName.semaphores(SystemVUse.id(context))
        guard context.images.has(name) else { return }
        try during(.image(name.fileName)) { () throws(Failure) in
            let reader = try context.images.open(name)
            while var entry = try reader.next(IpcSemEntry.self) {
                entry.desc = context.owners.ours(entry.desc)
                let count = Int(entry.nsems)
                guard count > 0, count <= 1 << 16, entry.desc.id <= UInt32(Int32.max),
                    entry.pids.isEmpty || entry.pids.count == count
                else { throw Failure(.corruptImage, "the semaphore set \(entry.desc.id) makes no sense") }
                let raw = try reader.read((count * 2 + 7) & ~7)
                let values = (0..<count).map { UInt16(littleEndian: raw.load(UInt16.self, at: $0 * 2) ?? 0) }
                guard values.allSatisfy({ $0 <= Semaphores.most }), entry.undo.allSatisfy({ check($0, count) }) else {
                    throw Failure(.corruptImage, "the values of the semaphore set \(entry.desc.id) make no sense")
                }
                sets.append(Wanted(entry: entry, values: values))
            }
        }
        guard Set(sets.map(\.entry.desc.id)).count == sets.count else {
            throw Failure(.corruptImage, "\(name.fileName) has two semaphore sets with one id")
        }
    }

    private func check(_ undo: BrumateSemUndoEntry, _ count: Int) -> Bool {
        undo.numbers.count == undo.adjustments.count && undo.numbers.allSatisfy { $0 < count }
            && Set(undo.numbers).count == undo.numbers.count
            && undo.adjustments.allSatisfy { (Adjustment.least...Semaphores.most).contains(Int($0)) }
    }

    // MARK: restore

    /// Gives threads undo lists of their own, finds or makes the sets, and fills the lists and the sets.
    func restore(_ context: RestoreContext) throws(Failure) {
        try separateThreads(context)
        for set in sets {
            try during(.step("System V semaphore set \(set.entry.desc.id)")) { () throws(Failure) in
                if set.entry.shared {
                    try takeAgain(set, context)
                } else {
                    if try !find(set, context) { try make(set) }
                    try fill(set, context)
                }
            }
        }
    }

    /// Threads are born with their leader's list.
    private func separateThreads(_ context: RestoreContext) throws(Failure) {
        for thread in context.processes.flatMap(\.threads) where thread.core.threadCore.brumate.hasSemUndoID {
            guard !thread.isLeader else { continue }
            var batch = Batch()
            batch.add(.unshare, .value(0x40000), doing: "leave the undo list of semaphores")  // CLONE_SYSVSEM
            try thread.puppet.run(batch)
        }
    }

    /// Whether the set is still there.
    private func find(_ set: Wanted, _ context: RestoreContext) throws(Failure) -> Bool {
        let id = set.entry.desc.id
        guard let now = try? Semaphores.status(id) else { return false }
        var named: [Int32] = []
        var isUsed = false
        if now.count == UInt64(set.values.count) {
            (named, isUsed) = try attempt("look at it") { () throws(SystemCallError) in
                var (named, isUsed): ([Int32], Bool) = ([], false)
                for number in set.values.indices {
                    named.append(try Semaphores.process(id, number))
                    if !isUsed { isUsed = try Semaphores.hasWaiters(id, number) }
                }
                return (named, isUsed)
            }
        }
        let identity = SystemVIdentity(context, named: set.entry.pids)
        let then = set.entry.hasChanged ? set.entry.changed : nil
        guard now.count == UInt64(set.values.count), now.permissions.matches(set.entry.desc), !isUsed,
            identity.isSame(changed: (now.changed, then), named: named)
        else {
            throw Failure(
                .conflict, "another set has this id, or others have used it since the dump",
                advice: "Remove it with: ipcrm -s \(id)")
        }
        if !now.permissions.equals(set.entry.desc) {
            try attempt("set its owner and permissions") { () throws(SystemCallError) in
                try Semaphores.set(id, set.entry.desc)
            }
        }
        return true
    }

    private func make(_ set: Wanted) throws(Failure) {
        let desc = set.entry.desc
        let got = try attempt(
            "create it", code: .conflict, advice: "A set of the same key may exist: see ipcs -s"
        ) { () throws(SystemCallError) in
            try NewObject.make("sem", desc) { () throws(SystemCallError) in
                // IPC_CREAT | IPC_EXCL
                try systemCall(
                    .semget, Int(Int32(bitPattern: desc.key)), set.values.count, Int(desc.mode & 0o777) | 0o3000)
            }
        }
        made.append(got)
        guard got == desc.id else { throw NewObject.taken(desc.id, by: got) }
        try attempt("set its owner and permissions") { () throws(SystemCallError) in try Semaphores.set(got, desc) }
    }

    // MARK: values

    /// One call for a semaphore. It happens as a whole or not at all.
    private func add(
        _ operations: [SemaphoreOperation], of id: UInt32, _ batch: inout Batch, doing: StaticString,
        mayFail: Bool = false
    ) -> Batch.Slot {
        let buffer = batch.place(SemaphoreOperation.bytes(operations))
        return batch.add(
            .semop, .value(Int(id)), .buffer(buffer), .value(operations.count), doing: doing, mayFail: mayFail)
    }

    private func fill(_ set: Wanted, _ context: RestoreContext) throws(Failure) {
        let id = set.entry.desc.id
        var now = try attempt("read its values") { () throws(SystemCallError) in
            try Semaphores.values(id, count: set.values.count).map { Int($0) }
        }
        for undo in set.entry.undo {
            var batch = Batch()
            for (number, adjustment) in zip(undo.numbers, undo.adjustments) where adjustment != 0 {
                let step = Adjustment.setting(Int(number), to: Int(adjustment), value: now[Int(number)])
                _ = add(step.operations, of: id, &batch, doing: "take again what its end gave back of a semaphore")
                now[Int(number)] = step.value
            }
            try holder(of: undo.list, context).puppet.run(batch)
        }
        // The values of the dump, by those who operated on them last.
        var changes: [TaskID: [[SemaphoreOperation]]] = [:]
        for (number, value) in set.values.enumerated() {
            let pid = set.entry.pids.isEmpty ? 0 : set.entry.pids[number]
            let change = Int(value) - now[number]
            guard change != 0 || pid != 0 else { continue }
            let touch = now[number] < Semaphores.most ? [1, -1] : [-1, 1]
            let actor = try context.living(pid)
            changes[actor.id, default: []].append(
                (change == 0 ? touch : [change]).map { SemaphoreOperation(number, $0) })
        }
        for process in context.processes {
            guard let mine = changes[process.id] else { continue }
            var batch = Batch()
            for operations in mine { _ = add(operations, of: id, &batch, doing: "set the value of a semaphore") }
            try process.puppet.run(batch)
        }
    }

    /// Takes from a set that others use what the ends of the tasks gave back.
    private func takeAgain(_ set: Wanted, _ context: RestoreContext) throws(Failure) {
        let (id, entry) = (set.entry.desc.id, set.entry)
        guard let now = try? Semaphores.status(id), now.count == UInt64(entry.nsems),
            now.permissions.matches(entry.desc)
        else {
            throw Failure(
                .conflict, "tasks of the tree hold semaphores of it, others use it too, and it is not there any more",
                advice: "Restore where it is, or dump when the tree holds none")
        }
        for undo in entry.undo {
            let thread = try holder(of: undo.list, context)
            var batch = Batch()
            var slots: [Batch.Slot] = []
            for (number, adjustment) in zip(undo.numbers, undo.adjustments) where adjustment != 0 {
                let parts = adjustment > Adjustment.least ? [-Int(adjustment)] : [Semaphores.most, 1]
                slots.append(
                    add(
                        parts.map { SemaphoreOperation(Int(number), $0, undone: true) }, of: id, &batch,
                        doing: "take again what its end gave back of a semaphore", mayFail: true))
            }
            let results = try thread.puppet.run(batch)
            for slot in slots where results.success(slot) == nil {
                throw Failure(
                    .conflict, "another task holds what thread \(thread.id) held at the dump",
                    advice: "Wait until it is given back, and restore again",
                    cause: SystemCallError(.semop, Errno(rawValue: Int32(clamping: -results[slot]))))
            }
        }
    }

    /// Whose undo list has an id.
    private func holder(of list: UInt32, _ context: RestoreContext) throws(Failure) -> RestoredThread {
        for process in context.processes where !process.plan.isZombie {
            if process.plan.ids.hasSemUndoID, process.plan.ids.semUndoID == list, let first = process.threads.first {
                return first
            }
            if let own = process.threads.first(where: { $0.core.threadCore.brumate.semUndoID == list }) { return own }
        }
        throw Failure(.corruptImage, "no task has the undo list \(list)")
    }

    /// Takes back what a failed restore has made.
    func abandon() {
        for id in made { Semaphores.remove(id) }
        made = []
    }
}

extension RestoreContext {
    /// Who acts for a process that an object names: itself, or the root if it has ended.
    func living(_ id: UInt32) throws(Failure) -> RestoredProcess {
        let living = processes.filter { !$0.plan.isZombie }
        guard let first = living.first else { throw Failure(.corruptImage, "no task is alive") }
        return living.first { UInt32(bitPattern: $0.id.rawValue) == id } ?? first
    }
}
