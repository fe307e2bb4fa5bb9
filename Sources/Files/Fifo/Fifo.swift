internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import SystemPackage

/// A pipe with a name in a file system. In files.img it is two entries: the path as a regular file, and the pipe.
enum Fifo: FileKind {

    static func claims(_ facts: FileFacts) -> Bool {
        facts.status.kind == .fifo && facts.begins(with: "/")
            && facts.statusFlags & UInt32(OpenFlags.path.rawValue) == 0
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let path = context.fileIndex.newID()
        var named = FileEntry(.reg, path)
        named.reg = try RegularFile.describe(file, as: path, context)
        context.files.append(named)
        var entry = FifoEntry()
        entry.id = file.id
        entry.pipeID = UInt32(truncatingIfNeeded: file.facts.status.inode)
        entry.regfID = path
        try PipeContents.of(context).dump(entry.pipeID, through: file, isFifo: true)
        var whole = FileEntry(.fifo, file.id)
        whole.fifo = entry
        return whole
    }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.fifo.rawValue) && entry.hasFifo }

    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 { UInt64(entry.fifo.pipeID) }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        guard let first = members.first else { return }
        let path = try self.path(of: first, context)
        try during(.file(String(decoding: path.name, as: UTF8.self))) { () throws(Failure) in
            let key = RegularFile.key(path)
            if context.inherits(key) {
                for member in members {
                    let flags = try self.path(of: member, context).flags
                    guard let made = try context.inherited(key, openedWith: flags) else { return }
                    try context.files.add(member.id, made)
                }
                return
            }
            try RegularFile.refuseExternal(path)
            // Open for both, so that no later open has to wait for the other end.
            let both = try context.view.at(mount: path.mntID) { () throws(Failure) in
                let place = try RestoredRemaps.of(context).prepare(path, context)
                return try attempt("open the fifo") { () throws(SystemCallError) in
                    try openFile(FilePath(bytes: place), [.readWrite, .nonBlocking])
                }
            }
            try RegularFile.check(path, both.number, context.policy)
            try PipeContents.of(context).restore(first.fifo.pipeID, isFifo: true, writing: both.number)
            for member in members {
                let entry = try self.path(of: member, context)
                let flags = Int32(bitPattern: entry.flags)
                let made = try context.view.at(mount: entry.mntID) { () throws(Failure) in
                    let place = try RestoredRemaps.of(context).prepare(entry, context)
                    return try attempt("open the fifo") { () throws(SystemCallError) in
                        let mode = OpenFlags(rawValue: flags & 3 | OpenFlags.nonBlocking.rawValue)
                        let made = try OwnerVisit.open { () throws(SystemCallError) in
                            try openFile(FilePath(bytes: place), mode)
                        }
                        try setStatusFlags(made.number, entry.flags)
                        return made
                    }
                }
                try context.files.add(member.id, made)
            }
        }
    }

    private static func path(of entry: FileEntry, _ context: RestoreContext) throws(Failure) -> RegFileEntry {
        let id = entry.fifo.hasRegfID ? entry.fifo.regfID : entry.id
        guard let other = context.entry(id), other.hasReg else {
            throw Failure(.corruptImage, "the fifo \(entry.id) has no path")
        }
        return other.reg
    }
}
