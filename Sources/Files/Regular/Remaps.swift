internal import CLinux
internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote
internal import SystemPackage

/// Dump: files whose path leads elsewhere or nowhere.
///
/// An unlinked file without other names is a ghost: its contents go into the image. One that has other names gets a
/// temporary one (a link remap). A file in the /proc directory of a dead task is a remap of its own kind.
final class Remaps {
    private var entries: [RemapFilePathEntry] = []
    private var ghosts: [Inode: UInt32] = [:]
    private var links: [Inode: UInt32] = [:]
    /// Names that this dump created, and in which of the tree's mount namespaces.
    private var created: [(name: [UInt8], namespace: Int)] = []

    private struct Inode: Hashable {
        let device: UInt64, inode: UInt64
    }

    private static let deleted = " (deleted)"

    static func of(_ context: DumpContext) -> Remaps { context.state(Remaps.self) { Remaps() } }

    /// The path by which a file is found at restore, for files.img.
    func path(of file: OpenFile, id: UInt32, _ context: DumpContext) throws(Failure) -> [UInt8] {
        let facts = file.facts
        var path = facts.target
        guard path.first == 0x2f else {
            throw Failure(
                .unsupported, "the file is out of reach from the root directory (its mount is detached or foreign)")
        }
        let saysDeleted = path.reversed().starts(with: Remaps.deleted.utf8.reversed())
        if facts.begins(with: "/proc/"), isProc(file.handle.number) {
            let found = try pathInProc(path, saysDeleted, id, facts.status, context)
            if !saysDeleted { warnOfStranger(found, context) }
            return found
        }
        if facts.status.links == 0 {
            if saysDeleted { path.removeLast(Remaps.deleted.utf8.count) }
            try dumpGhost(file, id, context)
            return path
        }
        if leads(path, to: facts.status, context) { return path }
        if saysDeleted { path.removeLast(Remaps.deleted.utf8.count) }
        if facts.status.kind == .directory {
            throw Failure(
                .unsupported, "its path leads to another file than the open one: something is mounted over it")
        }
        try linkAgain(file, id, path, context)
        return path
    }

    private func isProc(_ number: Int32) -> Bool {
        (try? FileSystem.of(number))?.magic == FileSystem.proc
    }

    /// Where paths lead, for files that are open many times.
    private var led: [Place: Inode] = [:]

    private struct Place: Hashable {
        let path: [UInt8], namespace: Int
    }

    private func leads(_ path: [UInt8], to status: FileStatus, _ context: DumpContext) -> Bool {
        let inode = Inode(device: status.device, inode: status.inode)
        let place = Place(path: path, namespace: context.view.namespace)
        if led[place] == inode { return true }
        guard let found = try? FileStatus.read(path: path, followsLink: status.kind != .symbolicLink) else {
            return false
        }
        led[place] = Inode(device: found.device, inode: found.inode)
        return led[place] == inode
    }

    /// Nobody keeps the number of a task that is not in the tree.
    private func warnOfStranger(_ path: [UInt8], _ context: DumpContext) {
        let word = path.dropFirst("/proc/".utf8.count).prefix { $0 != 0x2f }
        guard let number = Int32(String(decoding: word, as: UTF8.self)), let task = context.numbers.task(number),
            !context.processes.contains(where: { $0.threads.contains { $0.tracee.id == task } })
        else { return }
        // A dead task has a remap; a zombie has only its parent.
        guard let stat = try? TaskStat.read(of: task), !context.processes.contains(where: { $0.id == stat.parent })
        else { return }
        context.log.warning(
            "\(String(decoding: path, as: UTF8.self)) is of task \(task), which is not in the tree: it will be of whoever has this number at the restore"
        )
    }

    /// Only the directory of a dead task itself is called deleted; what lies in it leads nowhere, or to another task's.
    private func pathInProc(
        _ path: [UInt8], _ saysDeleted: Bool, _ id: UInt32, _ status: FileStatus, _ context: DumpContext
    ) throws(Failure) -> [UInt8] {
        guard saysDeleted || !leads(path, to: status, context) else { return path }
        let plain = saysDeleted ? Array(path.dropLast(Remaps.deleted.utf8.count)) : path
        let word = plain.dropFirst("/proc/".utf8.count).prefix { $0 != 0x2f }
        let folder = Array("/proc/".utf8) + word
        if (try? FileStatus.read(path: folder)) != nil {
            // The descriptor that the entry tells of was closed; it is lent one at restore.
            if plain.dropFirst(folder.count).starts(with: "/fdinfo/".utf8) { return plain }
            throw Failure(
                .unsupported, "it was opened when another task, or an entry that is gone, had this path",
                advice: "Close it before the dump")
        }
        guard let pid = UInt32(String(decoding: word, as: UTF8.self)) else {
            throw Failure(.unsupported, "the entry of /proc is gone")
        }
        var entry = RemapFilePathEntry()
        (entry.origID, entry.remapID, entry.remapType) = (id, pid, .procfs)
        entries.append(entry)
        return plain
    }

    // MARK: ghosts

    private func dumpGhost(_ file: OpenFile, _ id: UInt32, _ context: DumpContext) throws(Failure) {
        let inode = Inode(device: file.facts.status.device, inode: file.facts.status.inode)
        let ghost = ghosts[inode] ?? UInt32(ghosts.count + 1)
        var entry = RemapFilePathEntry()
        (entry.origID, entry.remapID, entry.remapType) = (id, ghost, .ghost)
        entries.append(entry)
        guard ghosts.updateValue(ghost, forKey: inode) == nil else { return }
        try writeGhost(file, ghost, context)
    }

    private func writeGhost(_ file: OpenFile, _ ghost: UInt32, _ context: DumpContext) throws(Failure) {
        let status = file.facts.status
        var entry = GhostFileEntry()
        (entry.uid, entry.gid) = context.owners.owner(of: status)
        entry.mode = status.mode
        entry.dev = status.kernelDevice
        entry.ino = status.inode
        entry.atim = Remaps.time(status.accessed)
        entry.mtim = Remaps.time(status.modified)
        var pieces: [AddressRange] = []
        let ours = file.handle.number
        switch status.kind {
        case .regular:
            let stored = min(status.size, status.blocks * 512)
            guard stored <= context.policy.ghostLimit else {
                throw Failure(
                    .denied,
                    "the unlinked file holds \(stored) bytes, more than the ghost limit of \(context.policy.ghostLimit)",
                    advice: "Pass --ghost-limit \(stored) or more")
            }
            try Locks.refuseWriteLease(file.facts)
            entry.size = status.size
            entry.chunks = true
            pieces = try data(of: ours, size: status.size)
        case .characterDevice, .blockDevice:
            entry.rdev = UInt32(truncatingIfNeeded: status.representedDevice)
        case .symbolicLink:
            entry.symlnkTarget = imageBytes(
                try attempt("read the unlinked link") { () throws(SystemCallError) in
                    try readLink(FilePath(""), in: ours).bytes
                })
        case .directory, .fifo: break
        default: throw Failure(.unsupported, "an unlinked file of this type can't be dumped")
        }
        if status.kind != .symbolicLink { entry.attributes = ExtendedAttributes.read(of: ours) }
        let image = context.images.create(.ghost(ghost))
        try image.append(entry)
        if !pieces.isEmpty { try copy(pieces, of: ours, to: image) }
        try image.finish()
    }

    private func data(of number: Int32, size: UInt64) throws(Failure) -> [AddressRange] {
        let reading = try reopen(number)
        return try attempt("read the unlinked file") { () throws(SystemCallError) in
            try dataRanges(of: reading.number, size: size)
        }
    }

    private func copy(_ pieces: [AddressRange], of number: Int32, to image: ImageWriter) throws(Failure) {
        let reading = try reopen(number)
        var room = [UInt8](repeating: 0, count: 1 << 18)
        for piece in pieces {
            var chunk = GhostChunkEntry()
            (chunk.off, chunk.len) = (piece.start.rawValue, piece.length)
            try image.append(chunk)
            var at = piece.start.rawValue
            while at < piece.end.rawValue {
                let wanted = min(Int(piece.end.rawValue - at), room.count)
                let got = try attempt("read the unlinked file") { () throws(SystemCallError) in
                    try room.withAddress { (address, _) throws(SystemCallError) in
                        try systemCall(.pread64, Int(reading.number), address, wanted, Int(at))
                    }
                }
                guard got > 0 else { throw Failure(.vanished, "the unlinked file became shorter while it was read") }
                try image.append(raw: Array(room[..<got]))
                at += UInt64(got)
            }
        }
    }

    private func reopen(_ number: Int32) throws(Failure) -> Descriptor {
        try attempt("open the unlinked file for reading") { () throws(SystemCallError) in
            try openFile("/proc/self/fd/\(number)")
        }
    }

    private static func time(_ time: (seconds: Int64, nanoseconds: UInt32)) -> Timeval {
        var value = Timeval()
        value.tvSec = UInt64(bitPattern: time.seconds)
        value.tvUsec = UInt64(time.nanoseconds / 1000)
        return value
    }

    // MARK: link remaps

    /// The nearest directory above a path that is still there.
    private static func directory(above path: [UInt8]) -> [UInt8] {
        var parent = path
        while let slash = parent.lastIndex(of: 0x2f), slash > 0 {
            parent = Array(parent[..<slash])
            if (try? FileStatus.read(path: parent, followsLink: false))?.kind == .directory { return parent }
        }
        return []
    }

    /// Gives a file that has other names a temporary one beside its old one, or above if its directory is gone, too.
    private func linkAgain(_ file: OpenFile, _ id: UInt32, _ path: [UInt8], _ context: DumpContext) throws(Failure) {
        let status = file.facts.status
        let inode = Inode(device: status.device, inode: status.inode)
        if links[inode] == nil {
            guard context.policy.linkRemap else {
                throw Failure(
                    .denied, "the file was unlinked under this name but has \(status.links) others",
                    advice: "Pass --link-remap to give it a temporary name on its file system")
            }
            let number = context.fileIndex.newID()
            // Named by the inode, so that what a killed dump left is found again instead of being in the way.
            let name = Remaps.directory(above: path) + Array("/link_remap.\(status.inode)".utf8)
            let ours = file.handle.number
            let isThere = (try? FileStatus.read(path: name, followsLink: false)).map {
                $0.inode == status.inode && $0.device == status.device
            }
            try attempt(
                "give the unlinked file the temporary name \(String(decoding: name, as: UTF8.self))",
                advice: "Check that its directory exists and can be written"
            ) { () throws(SystemCallError) in
                if isThere == true { return 0 }
                return try withCString("/proc/self/fd/\(ours)") { (from) throws(SystemCallError) in
                    try withCString(name) { (to) throws(SystemCallError) in
                        try systemCall(.linkat, Int(currentDirectory), from, Int(currentDirectory), to, 0x400)
                    }
                }
            }
            if isThere != true { created.append((name, context.view.namespace)) }
            var entry = FileEntry(.reg, number)
            entry.reg.id = number
            entry.reg.flags = 0
            entry.reg.pos = 0
            entry.reg.fown = FownEntry()
            (entry.reg.fown.uid, entry.reg.fown.euid, entry.reg.fown.signum) = (0, 0, 0)
            (entry.reg.fown.pidType, entry.reg.fown.pid) = (0, 0)
            entry.reg.name = imageBytes(name)
            entry.reg.mode = status.mode
            let mount = file.facts.information.mountID
            if context.view.mounts.contains(mount) { entry.reg.mntID = mount }
            if status.kind == .regular { entry.reg.size = status.size }
            context.files.append(entry)
            links[inode] = number
        }
        var entry = RemapFilePathEntry()
        (entry.origID, entry.remapID, entry.remapType) = (id, links[inode] ?? 0, .linked)
        entries.append(entry)
    }

    func finish(_ context: DumpContext) throws(Failure) {
        try context.images.write(.remapPaths, entries)
    }

    /// Removes the temporary names of a dump that failed, or after which the tree runs on.
    func abandon(_ context: DumpContext) {
        for (name, namespace) in created {
            try? context.view.at(namespace: namespace) { () throws(Failure) in
                _ = try? removeName(FilePath(bytes: name))
            }
        }
    }

    /// Takes the temporary names away. They belong to the image, but the tree, which runs on, needs none, and nobody
    /// would ever remove them (CRIU does the same).
    func removeNames(_ context: DumpContext) {
        for (name, _) in created {
            context.log.warning(
                "\(String(decoding: name, as: UTF8.self)) is removed, as the tree runs on: this image can't be restored without it"
            )
        }
        abandon(context)
    }
}

extension FileStatus {
    /// The status of a path of arbitrary bytes.
    static func read(path: [UInt8], followsLink: Bool = true) throws(SystemCallError) -> FileStatus {
        let place = try openFile(FilePath(bytes: path), followsLink ? [.path] : [.path, .noFollow])
        return try FileStatus.read(in: place.number)
    }
}
