internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// A pipe without a name.
enum Pipe: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { facts.status.kind == .fifo && facts.begins(with: "pipe:[") }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let contents = PipeContents.of(context)
        var entry = PipeEntry()
        entry.id = file.id
        entry.pipeID = UInt32(truncatingIfNeeded: file.facts.status.inode)
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        let status = file.facts.status
        let owner = context.owners.owner(of: status)
        if owner != (0, 0) || status.mode & 0o7777 != usualMode {
            (entry.uid, entry.gid, entry.mode) = (owner.user, owner.group, status.mode & 0o7777)
        }
        try contents.dump(entry.pipeID, through: file, isFifo: false)
        var whole = FileEntry(.pipe, file.id)
        whole.pipe = entry
        return whole
    }

    private static let usualMode: UInt32 = 0o600

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.pipe.rawValue) && entry.hasPipe }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.pipe.fown }

    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 { UInt64(entry.pipe.pipeID) }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        guard let first = members.first else { return }
        let key = "pipe:[\(first.pipe.pipeID)]"
        try during(.file(key)) { () throws(Failure) in
            if context.inherits(key) {
                // What is in the passed pipe stays; the image's contents were the old one's.
                for member in members {
                    guard let made = try context.inherited(key, openedWith: member.pipe.flags) else { return }
                    try context.files.add(member.id, made)
                }
                return
            }
            var ends: (Int32, Int32) = (-1, -1)
            try attempt("create it") { () throws(SystemCallError) in
                try withAddress(of: &ends) { (ends) throws(SystemCallError) in try systemCall(.pipe2, ends, 0o2000000) }
            }
            let reading = Descriptor(owning: ends.0)
            let writing = Descriptor(owning: ends.1)
            try PipeContents.of(context).restore(first.pipe.pipeID, isFifo: false, writing: writing.number)
            // Its owner may open it again through /proc: /dev/stdout is such a way.
            let owners = context.owners
            if first.pipe.hasUid || first.pipe.hasMode || owners.isApart {
                try attempt("give it its owner") { () throws(SystemCallError) in
                    try owners.give(writing.number, to: first.pipe.uid, first.pipe.gid)
                    if first.pipe.hasMode { try systemCall(.fchmod, Int(writing.number), Int(first.pipe.mode & 0o777)) }
                }
            }
            // One description of each end exists already; further ones are opened through /proc.
            var (hasReader, hasWriter) = (false, false)
            for member in members {
                let flags = Int32(bitPattern: member.pipe.flags)
                let mode = flags & 3
                let status = Int(flags & (OpenFlags.nonBlocking.rawValue | OpenFlags.direct.rawValue | 0o20000))
                let from = mode == 0 ? reading.number : writing.number
                let known = mode == 0 ? hasReader : mode == 1 ? hasWriter : true
                let made = try attempt("open an end") { () throws(SystemCallError) in
                    let made: Descriptor
                    if flags & OpenFlags.path.rawValue != 0 {
                        return try openFile("/proc/self/fd/\(from)", [.path])
                    } else if known {
                        made = try openFile(
                            "/proc/self/fd/\(from)", OpenFlags(rawValue: mode | OpenFlags.nonBlocking.rawValue))
                    } else {
                        made = Descriptor(owning: Int32(try systemCall(.fcntl, Int(from), 1030, 3)))
                    }
                    try systemCall(.fcntl, Int(made.number), 4, status)
                    return made
                }
                if flags & OpenFlags.path.rawValue != 0 {
                    try context.files.add(member.id, made)
                    continue
                }
                if mode == 0 { hasReader = true }
                if mode == 1 { hasWriter = true }
                try context.files.add(member.id, made)
            }
        }
    }
}
