internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// Signals to be read (`signalfd4(2)`).
enum Signalfd: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:[signalfd]" }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        guard let mask = file.facts.information.value("sigmask", base: 16) else {
            throw Failure(.kernelTooOld, "the kernel does not tell the signals")
        }
        var entry = SignalfdEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        entry.sigmask = mask
        var whole = FileEntry(.signalfd, file.id)
        whole.sgfd = entry
        return whole
    }

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.signalfd.rawValue) && entry.hasSgfd
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.sgfd.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.sgfd
            let made = try attempt("create a signalfd") { () throws(SystemCallError) in
                var mask = entry.sigmask
                let raw = try withAddress(of: &mask) { (mask) throws(SystemCallError) in
                    try systemCall(.signalfd4, -1, mask, 8, 0o2000000)
                }
                let made = Descriptor(owning: Int32(raw))
                try setStatusFlags(made.number, entry.flags)
                return made
            }
            try context.files.add(member.id, made)
        }
    }
}
