internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// A counter (`eventfd2(2)`).
enum Eventfd: FileKind {
    /// The most that a counter can hold.
    private static let highest = UInt64.max - 1

    /// What /proc says where others have a path.
    static let target = Array("anon_inode:[eventfd]".utf8)

    /// The number that tells a counter from all others, where the kernel gives it (5.2).
    static func number(_ information: DescriptorInformation) -> UInt64? {
        // No other kind has such a line, and it is the second of four.
        information.lines.count < 2 ? nil : information.value("eventfd-id", base: 10)
    }

    static func claims(_ facts: FileFacts) -> Bool { facts.target == target }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        guard let counter = file.facts.information.value("eventfd-count", base: 16) else {
            throw Failure(.kernelTooOld, "the kernel does not tell the counter")
        }
        var entry = EventfdFileEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        entry.counter = counter
        if file.facts.information.value("eventfd-semaphore", base: 10) == 1 { entry.semaphore = true }
        var whole = FileEntry(.eventfd, file.id)
        whole.efd = entry
        return whole
    }

    static let lateSteps = LateSteps.none

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.eventfd.rawValue) && entry.hasEfd }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.efd.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.efd
            let made = try attempt("create an eventfd") { () throws(SystemCallError) in
                let semaphore = entry.semaphore ? 1 : 0  // EFD_SEMAPHORE
                let made = Descriptor(owning: Int32(try systemCall(.eventfd2, 0, 0o2000000 | semaphore)))
                // The call takes 32 bits only; a write takes all but the mark of an overflow.
                let counter = min(entry.counter, Eventfd.highest)
                if counter > 0 { try writeAll([UInt8](bytesOf: counter), to: made.number) }
                try setStatusFlags(made.number, entry.flags)
                return made
            }
            try context.files.add(member.id, made)
        }
    }
}

extension DescriptorInformation {
    /// The number in a line of the kind's own.
    func value(_ key: String, base: Int) -> UInt64? {
        for line in lines where line.starts(with: (key + ":").utf8) {
            let text = String(decoding: line.dropFirst(key.utf8.count + 1), as: UTF8.self)
            return UInt64(text.filter { $0 != " " && $0 != "\t" }, radix: base)
        }
        return nil
    }
}
