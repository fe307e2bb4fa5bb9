internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// A descriptor of a namespace (`/proc/PID/ns/…`). Only the tree's own namespaces can be dumped yet.
enum NamespaceFile: FileKind {

    /// Names in /proc/PID/ns and the `CLONE_NEW*` bits.
    private static let kinds: [(name: String, flag: UInt32)] = [
        ("net", 0x4000_0000), ("mnt", 0x2_0000), ("uts", 0x400_0000), ("ipc", 0x800_0000), ("user", 0x1000_0000),
        ("pid", 0x2000_0000), ("cgroup", 0x200_0000), ("time", 0x80),
    ]

    static func claims(_ facts: FileFacts) -> Bool {
        kinds.contains { facts.begins(with: $0.name + ":[") }
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        guard let kind = kinds.first(where: { file.facts.begins(with: $0.name + ":[") }) else {
            throw Failure(.bug, "no kind")
        }
        let own = try attempt("look at our namespace") { () throws(SystemCallError) in
            try readLink("/proc/self/ns/\(kind.name)").bytes
        }
        guard own == file.facts.target else {
            throw Failure(.unsupported, "descriptors of other namespaces than the tree's can't be dumped yet")
        }
        let ids = file.owner.ids
        var entry = NsFileEntry()
        entry.id = file.id
        entry.nsCflag = kind.flag
        entry.flags = file.facts.statusFlags
        switch kind.name {
        case "net": entry.nsID = ids.netNsID
        case "mnt": entry.nsID = ids.mntNsID
        case "uts": entry.nsID = ids.utsNsID
        case "ipc": entry.nsID = ids.ipcNsID
        case "user": entry.nsID = ids.userNsID
        case "pid": entry.nsID = ids.pidNsID
        case "cgroup": entry.nsID = ids.cgroupNsID
        default: entry.nsID = ids.timeNsID
        }
        var whole = FileEntry(.ns, file.id)
        whole.nsf = entry
        return whole
    }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.ns.rawValue) && entry.hasNsf }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            guard let kind = kinds.first(where: { $0.flag == member.nsf.nsCflag }) else {
                throw Failure(.corruptImage, "there is no namespace of the kind \(member.nsf.nsCflag)")
            }
            let flags = OpenFlags(rawValue: Int32(bitPattern: member.nsf.flags & ~0o2000300))
            let made = try attempt("open our \(kind.name) namespace") { () throws(SystemCallError) in
                try openFile("/proc/self/ns/\(kind.name)", flags)
            }
            try context.files.add(member.id, made)
        }
    }
}
