internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs

/// Marks on files, mounts and file systems (`fanotify(7)`).
enum Fanotify: FileKind {
    /// Flags of `fanotify_mark(2)`.
    private enum Flag {
        static let add: UInt32 = 0x1, mount: UInt32 = 0x10, ignoredMask: UInt32 = 0x20, survivesModify: UInt32 = 0x40
        static let fileSystem: UInt32 = 0x100, evictable: UInt32 = 0x200, ignore: UInt32 = 0x400
    }

    /// FAN_UNLIMITED_QUEUE of `fanotify_init(2)`.
    private static let unlimitedQueue: UInt32 = 0x10

    /// Events for which somebody waits for a permission: FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM,
    /// FAN_PRE_ACCESS.
    private static let permissionEvents: UInt32 = 0x17_0000

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:[fanotify]" }

    static var isRefusedSingly: Bool { true }

    static func refusal(_ facts: FileFacts) -> Failure? {
        guard claims(facts) else { return nil }
        for line in facts.information.lines {
            guard let mark = Mark(line, of: "fanotify"), let mask = try? mark.word("mask") else { continue }
            if mask & permissionEvents != 0 {
                return Failure(
                    .unsupported, "it grants permissions: while its task stands still, everyone else would wait for it",
                    advice: "Remove its marks for FAN_*_PERM and FAN_PRE_ACCESS before the dump")
            }
            if mark.has("mnt_ns") {
                return Failure(
                    .unsupported, "it has a mark on a mount namespace, which can't be dumped",
                    advice: "Remove the mark before the dump")
            }
        }
        return nil
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        if let refusal = refusal(file.facts) { throw refusal }
        var entry = FanotifyFileEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        for line in file.facts.information.lines {
            guard let mark = Mark(line, of: "fanotify") else { continue }
            if mark.has("event-flags") {
                (entry.faflags, entry.evflags) = (try mark.word("flags"), try mark.word("event-flags"))
            } else {
                entry.mark.append(try describe(mark, file.id, context))
            }
        }
        guard entry.hasFaflags else { throw Failure(.kernelTooOld, "the kernel does not tell its flags") }
        if isUnprivileged(entry, file.owner) { entry.unprivileged = true }
        if try bytesWaiting(file.handle.number) > 0 {
            entry.hasEvents_p = true
            if entry.faflags & unlimitedQueue != 0 {
                context.log.warning(
                    "events wait in the fanotify \(file.number) of task \(file.owner.id) and will be lost; its queue is unlimited, so that no overflow can tell"
                )
            }
        }
        var whole = FileEntry(.fanotify, file.id)
        whole.ffy = entry
        return whole
    }

    /// Whether the group was made without CAP_SYS_ADMIN. It remembers that, but does not tell: it is so if its owner has no
    /// such right and the group nothing that needs one.
    private static func isUnprivileged(_ entry: FanotifyFileEntry, _ owner: DumpedProcess) -> Bool {
        // FAN_REPORT_FID and FAN_REPORT_DIR_FID, of which one is needed, FAN_REPORT_NAME and FAN_REPORT_TARGET_FID.
        let free: UInt32 = 0x1 | 0x2 | 0x1e00
        return owner.status.effectiveCapabilities & 1 << Capability.systemAdministration == 0
            && entry.faflags & ~free == 0 && entry.faflags & 0x600 != 0 && entry.mark.allSatisfy { $0.type == .inode }
    }

    private static func describe(
        _ mark: Mark, _ id: UInt32, _ context: DumpContext
    ) throws(Failure) -> FanotifyMarkEntry {
        let paths = try WatchedPaths.of(context)
        var entry = FanotifyMarkEntry()
        entry.id = id
        entry.mflags = try mark.word("mflags")
        entry.mask = try mark.word("mask")
        entry.ignoredMask = try mark.word("ignored_mask")
        if mark.has("ino") {
            let inode = try mark.inode()
            entry.type = .inode
            entry.sDev = inode.device
            entry.ie.iIno = inode.number
            entry.ie.fHandle = try paths.entry(for: inode)
            return entry
        }
        let mount: Mount?
        if mark.has("mnt_id") {
            entry.type = .mount
            let id = Int32(bitPattern: try mark.word("mnt_id"))
            mount = paths.mounts.first { $0.id == id }
        } else {
            entry.type = .filesystem
            let device = try mark.word("sdev")
            mount = paths.mounts.first { $0.device == device }
        }
        guard let mount else {
            throw Failure(
                .unsupported, "it has a mark on a mount or file system that is not mounted in brumate's namespace",
                advice: "Run brumate in the mount namespace of the tree")
        }
        entry.sDev = mount.device
        entry.me.mntID = UInt32(bitPattern: mount.id)
        entry.me.path = imageBytes(mount.point)
        return entry
    }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.fanotify.rawValue) && entry.hasFfy }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.ffy.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.ffy
            let made: Descriptor
            if entry.unprivileged {
                made = Descriptor(
                    owning: try Capability.without(Capability.systemAdministration) { () throws(Failure) in
                        try create(entry).release()
                    })
            } else {
                made = try create(entry)
            }
            if entry.hasEvents_p, entry.faflags & unlimitedQueue == 0 {
                do throws(Failure) { try FanotifyQueue(made.number).overflow() } catch {
                    context.log.warning("lost events of a fanotify can't be reported: \(error)")
                }
            }
            try context.files.add(member.id, made)
        }
    }

    private static func create(_ entry: FanotifyFileEntry) throws(Failure) -> Descriptor {
        try attempt("create a fanotify group", advice: "Raise /proc/sys/fs/fanotify/max_user_groups") {
            () throws(SystemCallError) in
            // The kernel shows the flags as they were given, FAN_CLOEXEC included.
            let made = Descriptor(
                owning: Int32(try systemCall(.fanotify_init, Int(entry.faflags), Int(entry.evflags))))
            try systemCall(.fcntl, Int(made.number), 2, 1)
            try setStatusFlags(made.number, entry.flags)
            return made
        }
    }

    /// Marks are added oldest first, which fdinfo lists last.
    static func start(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let number = try context.files.number(entry.id)
        for mark in entry.ffy.mark.reversed() { try add(mark, to: number, context) }
    }

    private static func add(_ mark: FanotifyMarkEntry, to number: Int32, _ context: RestoreContext) throws(Failure) {
        let targets = try WatchTargets.of(context)
        let target: Descriptor
        var flags = Flag.add
        switch mark.type {
        case .inode:
            guard mark.hasIe else { throw Failure(.corruptImage, "a mark without an inode") }
            target = try targets.open(mark.ie.fHandle, device: mark.sDev, number: mark.ie.iIno)
            flags |= mark.mflags & Flag.evictable
        case .mount:
            target = try targets.open(mount: mark.me, as: "mount")
            flags |= Flag.mount
        case .filesystem:
            target = try targets.open(mount: mark.me, as: "file system")
            flags |= Flag.fileSystem
        }
        let file = target.number
        if mark.mask != 0 { try add(flags, mark.mask, to: number, file) }
        if mark.ignoredMask != 0 || mark.mask == 0 {
            flags |= mark.mflags & Flag.ignore != 0 ? Flag.ignore : Flag.ignoredMask
            try add(flags | mark.mflags & Flag.survivesModify, mark.ignoredMask, to: number, file)
        }
    }

    private static func add(_ flags: UInt32, _ mask: UInt32, to number: Int32, _ file: Int32) throws(Failure) {
        try attempt("add a mark", advice: "Raise /proc/sys/fs/fanotify/max_user_marks") { () throws(SystemCallError) in
            try withCString("/proc/self/fd/\(file)") { (path) throws(SystemCallError) in
                try systemCall(.fanotify_mark, Int(number), Int(flags), Int(mask), Int(currentDirectory), path)
            }
        }
    }
}
