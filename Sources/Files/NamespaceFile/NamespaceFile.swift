internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// A descriptor of a namespace (`/proc/PID/ns/…`) that the tree is in. Others can't be dumped yet.
enum NamespaceFile: FileKind {
    private static func kind(_ facts: FileFacts) -> NamespaceKind? {
        NamespaceKind.allCases.first { facts.begins(with: $0.rawValue + ":[") }
    }

    static func claims(_ facts: FileFacts) -> Bool { kind(facts) != nil }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        guard let kind = kind(file.facts) else { throw Failure(.bug, "no kind") }
        guard context.namespaces.contains(file.facts.text) else {
            throw Failure(.unsupported, "descriptors of other namespaces than the tree's can't be dumped yet")
        }
        var entry = NsFileEntry()
        entry.id = file.id
        entry.nsCflag = UInt32(truncatingIfNeeded: kind.flag)
        entry.flags = file.facts.statusFlags
        entry.nsID = file.owner.ids[keyPath: kind.field]
        var whole = FileEntry(.ns, file.id)
        whole.nsf = entry
        return whole
    }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.ns.rawValue) && entry.hasNsf }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        guard let root = context.processes.first?.task else { throw Failure(.bug, "a namespace before its tree") }
        for member in members {
            guard
                let kind = NamespaceKind.allCases.first(where: {
                    UInt32(truncatingIfNeeded: $0.flag) == member.nsf.nsCflag
                })
            else { throw Failure(.corruptImage, "there is no namespace of the kind \(member.nsf.nsCflag)") }
            let flags = OpenFlags(rawValue: Int32(bitPattern: member.nsf.flags & ~0o2000300))
            let made = try attempt("open the tree's \(kind.text) namespace") { () throws(SystemCallError) in
                try openFile("/proc/\(root.rawValue)/ns/\(kind.rawValue)", flags)
            }
            try context.files.add(member.id, made)
        }
    }
}
