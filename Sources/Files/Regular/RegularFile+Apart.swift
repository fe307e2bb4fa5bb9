internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Synchronization

/// Many files that only have to be opened are opened by several threads.
extension RegularFile {
    /// How many a thread takes at once.
    private static let share = 64

    static func makeApart(_ entries: [FileEntry], _ context: RestoreContext) throws(Failure) -> Set<UInt32> {
        guard Workers.count > 1, context.policy.inherited.isEmpty else { return [] }
        let (remaps, locks) = (RestoredRemaps.of(context), RestoredLocks.of(context))
        let plain = entries.filter {
            !$0.reg.hasSameAs && !$0.reg.ext && context.view.isHere($0.reg.mntID) && !locks.isTakenOver($0.id)
                && remaps.isByItself($0.id)
                && !comesAfterTasks($0)
        }
        let policy = context.policy
        let made = Mutex([Int32?](repeating: nil, count: plain.count))
        Descriptor.makeRoom(for: plain.count)
        let outcome = Result { () throws(Failure) in
            let dealer = Dealer((plain.count + share - 1) / share)
            try Workers.run(Workers.count) { () throws(Failure) in
                while let turn = dealer.take() {
                    for index in (turn * share)..<min((turn + 1) * share, plain.count) {
                        let entry = plain[index].reg
                        try during(.file(String(decoding: entry.name, as: UTF8.self))) { () throws(Failure) in
                            let file = try open(entry, at: Array(entry.name))
                            try check(entry, file.number, policy)
                            let number = file.release()
                            made.withLock { $0[index] = number }
                        }
                    }
                }
            }
        }
        for (entry, number) in zip(plain, made.withLock { $0 }) {
            if let number { try context.files.add(entry.id, Descriptor(owning: number)) }
        }
        try outcome.get()
        return Set(plain.map(\.id))
    }
}
