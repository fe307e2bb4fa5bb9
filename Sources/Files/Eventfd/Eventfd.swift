internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// A counter (`eventfd2(2)`).
enum Eventfd: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:[eventfd]" }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        guard let counter = file.facts.information.value("eventfd-count", base: 16) else {
            throw Failure(.kernelTooOld, "the kernel does not tell the counter")
        }
        if file.facts.information.value("eventfd-semaphore", base: 10) == 1 {
            throw Failure(.unsupported, "semaphores of this kind can't be dumped yet")
        }
        var entry = EventfdFileEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file)
        entry.counter = counter
        var whole = FileEntry(.eventfd, file.id)
        whole.efd = entry
        return whole
    }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.eventfd.rawValue) && entry.hasEfd }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.efd.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.efd
            let made = try attempt("create an eventfd") { () throws(SystemCallError) in
                let made = Descriptor(owning: Int32(try systemCall(.eventfd2, 0, 0o2000000)))
                // The call takes 32 bits only; a write takes all.
                if entry.counter > 0 { try writeAll([UInt8](bytesOf: entry.counter), to: made.number) }
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
