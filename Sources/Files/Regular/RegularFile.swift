internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote
internal import SystemPackage

/// A file with a path: regular, directory, device without state, an entry of /proc, or anything opened with O_PATH.
enum RegularFile: FileKind {

    static func claims(_ facts: FileFacts) -> Bool {
        guard facts.begins(with: "/") else { return false }
        if facts.statusFlags & UInt32(OpenFlags.path.rawValue) != 0 { return true }
        switch facts.status.kind {
        case .regular, .directory, .symbolicLink: return true
        // Major 1: null, zero, full, random, urandom, kmsg.
        case .characterDevice: return facts.status.representedMajor == 1
        default: return false
        }
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        var whole = FileEntry(.reg, file.id)
        whole.reg = try describe(file, as: file.id, context)
        return whole
    }

    /// The path of a file, and what is needed to find or make it again.
    static func describe(_ file: OpenFile, as id: UInt32, _ context: DumpContext) throws(Failure) -> RegFileEntry {
        let facts = file.facts
        var entry = RegFileEntry()
        entry.id = id
        entry.flags = facts.statusFlags
        entry.pos = facts.information.position
        entry.fown = try FileOwner.dump(file, context)
        // Without images of mounts CRIU takes a mount id for one of another namespace.
        let mount = facts.information.mountID
        if context.view.mounts.contains(mount) { entry.mntID = mount }
        entry.mode = facts.status.mode
        if facts.status.kind == .regular {
            entry.size = facts.status.size
            // Only what is mapped or executed can be a program; nobody has it open.
            if context.policy.recordsBuildIDs, file.number < 0,
                try !LockedInodes.of(context).contains(facts.status.inode), let id = BuildID(of: file.handle.number)
            {
                entry.buildID = id.words
            }
        }
        let external = ExternalFile.name(facts)
        if context.policy.external.contains(external) {
            entry.name = imageBytes(external.utf8)
            entry.ext = true
            entry.clearSize()
        } else {
            entry.name = imageBytes(try Remaps.of(context).path(of: file, id: id, context))
        }
        return entry
    }

    /// By which name a descriptor can be passed for the file: its path without the leading slash.
    static func key(_ entry: RegFileEntry) -> String {
        String(decoding: entry.name.first == 0x2f ? entry.name.dropFirst() : entry.name, as: UTF8.self)
    }

    /// An external file has no path.
    static func refuseExternal(_ entry: RegFileEntry) throws(Failure) {
        guard entry.ext else { return }
        throw Failure(
            .conflict, "the file was left outside of the image by --external",
            advice: "Open it and pass --inherit-fd fd[NUMBER]:\(key(entry))")
    }

    static let lateSteps = LateSteps.none

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.reg.rawValue) && entry.hasReg }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.reg.fown }

    static func comesAfterTasks(_ entry: FileEntry) -> Bool {
        entry.hasReg && entry.reg.name.starts(with: "/proc/".utf8)
    }

    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 {
        RestoredRemaps.of(context).group(entry.reg.hasSameAs ? entry.reg.sameAs : entry.id)
    }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        let remaps = RestoredRemaps.of(context)
        // Entries that are another one's description come after it.
        let ordered =
            members.count == 1 ? members : members.filter { !$0.reg.hasSameAs } + members.filter(\.reg.hasSameAs)
        for member in ordered
        where !remaps.isOnlyPath(member.id) {
            let entry = member.reg
            try during(.file(String(decoding: entry.name, as: UTF8.self))) { () throws(Failure) in
                if entry.hasSameAs {
                    let other = Int(try context.files.number(entry.sameAs))
                    let made = try attempt("duplicate a descriptor") { () throws(SystemCallError) in
                        Descriptor(owning: Int32(try systemCall(.fcntl, other, 1030, 3)))
                    }
                    return try context.files.add(member.id, made)
                }
                // CRIU opens external files again, and takes passed ones for files with a path as they are.
                if entry.ext || !context.policy.inherited.isEmpty {
                    let key = key(entry)
                    let passed =
                        entry.ext
                        ? try context.inherited(key, openedWith: entry.flags) : try context.inherited(key)
                    if let passed { return try context.files.add(member.id, passed) }
                    try refuseExternal(entry)
                }
                if let taken = try RestoredLocks.of(context).takeOver(member.id) {
                    try check(entry, taken.number, context.policy)
                    return try context.files.add(member.id, taken)
                }
                try context.view.at(mount: entry.mntID) { () throws(Failure) in
                    let path = try remaps.prepare(entry, context)
                    let lent = try lendDescriptor(to: path, context)
                    let unnamed = try remaps.unnamedFile(of: entry)
                    let made = if let unnamed { unnamed } else { try open(entry, at: path) }
                    try lent?()
                    try check(entry, made.number, context.policy)
                    try context.files.add(member.id, made)
                }
            }
        }
    }

    /// /proc/PID/fdinfo/N can be opened only while the task has a descriptor N, and it has none yet: it gets one for a
    /// moment. Returns what takes it away.
    private static func lendDescriptor(
        to path: [UInt8], _ context: RestoreContext
    ) throws(Failure) -> (() throws(Failure) -> Void)? {
        guard path.starts(with: "/proc/".utf8) else { return nil }
        let words = String(decoding: path, as: UTF8.self).split(separator: "/")
        guard words.count == 4, words[0] == "proc", words[2] == "fdinfo", let id = Int32(words[1]),
            let number = Int32(words[3]), number >= 0, let courier = context.courier?.remote,
            number != courier.number, let process = context.processes.first(where: { $0.id == TaskID(id) }),
            !process.plan.isZombie
        else { return nil }
        var lend = Batch()
        lend.add(.dup3, .descriptor(courier), .value(Int(number)), .value(0), doing: "lend a descriptor")
        try process.puppet.run(lend)
        return { () throws(Failure) in
            var batch = Batch()
            batch.add(.close, .value(Int(number)), doing: "take a descriptor back")
            try process.puppet.run(batch)
        }
    }

    static func open(_ entry: RegFileEntry, at path: [UInt8]) throws(Failure) -> Descriptor {
        guard path.first == 0x2f, !path.contains(0) else { throw Failure(.corruptImage, "its path makes no sense") }
        // Flags that act only at open, or that could harm the file, are not repeated.
        let once: UInt32 = 0o100 | 0o200 | 0o1000 | 0o2000000
        var flags = OpenFlags(rawValue: Int32(bitPattern: entry.flags & ~once)).union(.noControllingTerminal)
        // O_TMPFILE made an unnamed file then; now it has a name.
        let temporary: Int32 = 0o20000000
        if flags.rawValue & temporary != 0 {
            flags = OpenFlags(rawValue: flags.rawValue & ~(temporary | OpenFlags.directory.rawValue))
        }
        if entry.hasMode, entry.mode & 0o170000 == FileStatus.Kind.symbolicLink.rawValue { flags.insert(.noFollow) }
        let position = Int(bitPattern: UInt(entry.pos))
        return try attempt(
            "open it", code: .conflict, advice: "Put the file back as it was at the dump"
        ) { () throws(SystemCallError) in
            let made = try OwnerVisit.open { () throws(SystemCallError) in try openFile(path, flags) }
            if position != 0, !flags.contains(.path) { try systemCall(.lseek, Int(made.number), position, 0) }
            return made
        }
    }

    /// Compares an opened file with what the image expects.
    static func check(_ entry: RegFileEntry, _ number: Int32, _ policy: RestorePolicy) throws(Failure) {
        if !entry.hasMode && !entry.hasSize || entry.name.starts(with: "/proc/".utf8) { return }
        let status = try attempt("look at the file") { () throws(SystemCallError) in try FileStatus.read(in: number) }
        if entry.hasMode, status.mode & 0o170000 != entry.mode & 0o170000 {
            throw Failure(.conflict, "the file is of another type than at the dump", advice: "Put the old file back")
        }
        if entry.hasMode, policy.checksPermissions, status.mode != entry.mode {
            throw Failure(
                .conflict,
                "the file has the mode \(String(status.mode, radix: 8)), expected \(String(entry.mode, radix: 8))",
                advice: "Put the old mode back, or pass --skip-file-rwx-check")
        }
        if entry.hasSize, status.kind == .regular, status.size != entry.size {
            throw Failure(
                .conflict, "the file has \(status.size) bytes, expected \(entry.size): it was changed after the dump",
                advice: "Put the old file back")
        }
        if !entry.buildID.isEmpty, policy.checksBuildIDs, status.kind == .regular {
            // As CRIU does: a file that has lost its id is judged by its size.
            guard let words = BuildID(of: number)?.words, words != entry.buildID else { return }
            throw Failure(
                .conflict,
                "the file has the build id \(BuildID.text(words)), expected \(BuildID.text(entry.buildID)): it is of "
                    + "another build than at the dump",
                advice: "Put the old file back, or pass --file-validation filesize to run with this one")
        }
    }
}
