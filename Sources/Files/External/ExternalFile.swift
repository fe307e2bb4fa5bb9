internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import SystemPackage

/// A file that only the user's word lets us leave outside of the image.
///
/// `--external file[MOUNT:INODE]` files are regular files with that name instead of a path, as in CRIU. This kind is
/// for devices without state, `--external dev[MAJOR/MINOR]:KEY`: at restore they are the descriptor passed with
/// `--inherit-fd fd[N]:KEY`, the device named by `--external dev[KEY]:PATH`, or opened again by their old path.
enum ExternalFile: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { false }

    /// How `--external` names a file.
    static func name(_ facts: FileFacts) -> String {
        let mount = UInt32(bitPattern: facts.information.mountID)
        return "file[\(String(mount, radix: 16)):\(String(facts.status.inode, radix: 16))]"
    }

    /// How `--external` names a device; nil for other files.
    private static func device(_ facts: FileFacts) -> String? {
        guard facts.status.kind == .characterDevice || facts.status.kind == .blockDevice else { return nil }
        return "dev[\(facts.status.representedMajor)/\(facts.status.representedMinor)]"
    }

    /// The kind that dumps a file that no kind claims.
    static func kind(of facts: FileFacts, _ policy: DumpPolicy) -> (any FileKind.Type)? {
        if policy.external.contains(name(facts)) { return RegularFile.self }
        return device(facts).map { policy.external.contains($0) } ?? false ? ExternalFile.self : nil
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        guard let name = device(file.facts), let key = context.policy.external.value(name) else {
            throw Failure(.bug, "an external file of no type")
        }
        var entry = ExtFileEntry()
        entry.id = file.id
        entry.fown = try FileOwner.dump(file, context)
        entry.key = imageBytes((key.isEmpty ? name : key).utf8)
        entry.flags = file.facts.statusFlags
        entry.pos = file.facts.information.position
        entry.path = imageBytes(file.facts.target)
        entry.rdev = file.facts.status.representedDevice
        var whole = FileEntry(.ext, file.id)
        whole.ext = entry
        return whole
    }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.ext.rawValue) && entry.hasExt }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.ext.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let key = String(decoding: member.ext.key, as: UTF8.self)
            try during(.file("the external file \(key)")) { () throws(Failure) in
                if let passed = try context.inherited(key) { return try context.files.add(member.id, passed) }
                try context.files.add(member.id, try open(member.ext, key, context))
            }
        }
    }

    private static func open(_ entry: ExtFileEntry, _ key: String, _ context: RestoreContext) throws(Failure)
        -> Descriptor
    {
        guard entry.hasKey else {
            throw Failure(.unsupported, "a plugin of CRIU dumped it", advice: "Restore with CRIU and that plugin")
        }
        let replacement = context.policy.external.value("dev[\(key)]")
        let path = replacement.map { Array($0.utf8) } ?? Array(entry.path)
        let flags = OpenFlags(rawValue: Int32(bitPattern: entry.flags & ~0o2001300)).union(.noControllingTerminal)
        let advice = "Pass --inherit-fd fd[NUMBER]:\(key) or --external dev[\(key)]:PATH"
        guard path.first == 0x2f else { throw Failure(.corruptImage, "its path makes no sense", advice: advice) }
        let made = try attempt(
            "open \(String(decoding: path, as: UTF8.self))", code: .conflict, advice: advice
        ) { () throws(SystemCallError) in
            // What the path leads to is looked at before it is opened: opening a device may act on it.
            let place = try openFile(FilePath(bytes: path), [.path])
            let status = try FileStatus.read(in: place.number)
            guard status.kind == .characterDevice || status.kind == .blockDevice,
                replacement != nil || status.representedDevice == entry.rdev
            else { throw SystemCallError(.openat, .ENODEV) }
            let made = try openFile("/proc/self/fd/\(place.number)", flags)
            if entry.pos != 0 { _ = try? systemCall(.lseek, Int(made.number), Int(bitPattern: UInt(entry.pos)), 0) }
            return made
        }
        return made
    }
}
