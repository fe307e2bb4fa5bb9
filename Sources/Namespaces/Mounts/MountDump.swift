internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import SystemPackage

/// Dumps the mounts of a tree that has a mount namespace of its own, and what its file systems in memory hold.
enum MountDump {
    /// Finds the root of the tree's mounts, where its paths begin.
    static func openRoot(of task: TaskID) throws(Failure) -> Descriptor {
        let namespace = try NamespaceKind.mnt.open(of: task)
        let number = try attempt("open the root directory of task \(task)", advice: "This needs CAP_SYS_ADMIN") {
            () throws(SystemCallError) in
            try MountVisit.perform(in: namespace.number) { () throws(SystemCallError) in
                try openFile(FilePath("/"), [.path, .directory]).release()
            }
        }
        return Descriptor(owning: number)
    }

    /// Refuses mounts that could not be restored. Returns the numbers of all.
    static func check(_ root: TaskID, _ context: DumpContext) throws(Failure) -> Set<Int32> {
        let mounts = try Mount.all(of: root)
        let entries = try describe(mounts, context)
        _ = try MountOrder(entries)
        for entry in entries where entry.deleted { try checkRemoved(entry, of: root) }
        return Set(mounts.map(\.id))
    }

    /// A removed directory is empty. A removed file is not, as a rule, and what it holds would be lost.
    private static func checkRemoved(_ entry: MntEntry, of root: TaskID) throws(Failure) {
        let status = try attempt("look at the mount \(entry.point)") { () throws(SystemCallError) in
            let file = try openFile(entry.place(through: root), [.path])
            return try FileStatus.read(in: file.number)
        }
        guard status.kind == .directory || status.kind == .regular && status.size == 0 else {
            throw Failure(
                .unsupported,
                "the mount \(entry.point) is of a file that was removed since, and what it holds would be lost",
                advice: "Put the file back, or unmount it")
        }
    }

    /// Writes `mountpoints-N.img` and the archives of file systems in memory.
    static func dump(_ id: UInt32, of root: TaskID, _ context: DumpContext) throws(Failure) {
        let mounts = try Mount.all(of: root)
        let entries = try describe(mounts, context)
        try context.images.write(.mounts(id), entries)
        let namespace = try NamespaceKind.mnt.open(of: root)
        for entry in try MountOrder(entries).archived {
            try during(.step("the mount \(entry.point)")) { () throws(Failure) in
                try archive(entry, entries, of: root, namespace.number, context)
            }
        }
    }

    private static func archive(
        _ entry: MntEntry, _ entries: [MntEntry], of root: TaskID, _ namespace: Int32, _ context: DumpContext
    ) throws(Failure) {
        let place = try open(entry, entries, namespace)
        let number = place.number
        let status = try attempt("look at it") { () throws(SystemCallError) in try FileStatus.read(in: number) }
        guard status.kernelDevice == entry.rootDev else {
            throw Failure(
                .unsupported, "another mount hides it, so that what it holds can't be archived",
                advice: "Unmount what is mounted over it")
        }
        let bytes = try Archive.pack(place, as: context.owners.isApart ? root : nil)
        let image = context.images.create(.mountedFiles(entry.rootDev))
        try image.append(raw: bytes)
        try image.finish()
    }

    /// Opens a file system as it is without what is mounted on it, or over it.
    private static func open(
        _ entry: MntEntry, _ entries: [MntEntry], _ namespace: Int32
    ) throws(Failure) -> Descriptor {
        let point = Array(entry.mountpoint)
        let hidden = MountOrder.inTheWay(of: entry, entries)
        let number = try attempt("open it") { () throws(SystemCallError) in
            do throws(SystemCallError) {
                return try MountVisit.open(point, without: hidden, in: namespace).release()
            } catch {
                // Mounts of another user namespace can't be taken away. Where nothing is over it, a copy will do.
                guard error.errno == .EINVAL else { throw error }
                return try MountVisit.perform(in: namespace) { () throws(SystemCallError) in
                    try MountVisit.copy(point).release()
                }
            }
        }
        return Descriptor(owning: number)
    }

    /// What the image says of mounts.
    private static func describe(_ mounts: [Mount], _ context: DumpContext) throws(Failure) -> [MntEntry] {
        var known: [UInt32: [Mount]] = [:]
        for mount in mounts { known[mount.device, default: []].append(mount) }
        let ids = Set(mounts.map(\.id))
        let others = Set(try Mount.all().map(\.device))
        return try mounts.map { (mount) throws(Failure) in
            let text = String(decoding: mount.point, as: UTF8.self)
            var entry = MntEntry()
            let kind = String(decoding: mount.kind, as: UTF8.self)
            entry.fstype = MountOptions.kinds[kind] ?? 0
            entry.mntID = UInt32(bitPattern: mount.id)
            entry.parentMntID = UInt32(bitPattern: mount.parent)
            entry.rootDev = mount.device
            entry.flags = MountOptions.flags(mount.options) | (mount.isUnbindable ? MountOptions.unbindable : 0)
            let (flags, rest) = MountOptions.split(mount.fileSystemOptions, context.owners)
            entry.sbFlags = flags
            entry.options = imageBytes(rest.utf8)
            entry.source = imageBytes(mount.source)
            entry.mountpoint = imageBytes(mount.point)
            let removed = Array("//deleted".utf8)
            if mount.root.suffix(removed.count).elementsEqual(removed) {
                entry.deleted = true
                entry.root = imageBytes(mount.root.dropLast(removed.count))
            } else {
                entry.root = imageBytes(mount.root)
            }
            if mount.shared != 0 { entry.sharedID = mount.shared }
            if mount.master != 0 { entry.masterID = mount.master }
            if let key = context.policy.external.value("mnt[\(text)]") {
                entry.extKey = imageBytes(key.utf8)
                return entry
            }
            // The root comes from --root, and what is bound out of it with it. Other file systems are mounted anew, if that
            // brings back what they hold: one in memory that is mounted outside, too, would be two from then on.
            let parents = known[mount.device]?.filter { MountOrder.isInside(mount.root, of: $0.root) } ?? []
            let isOfRoot = parents.contains { !ids.contains($0.parent) }
            let isNew = MountOptions.kinds[kind] != nil && parents.contains { $0.root == [0x2f] }
            guard isOfRoot || isNew && !(kind == "tmpfs" && others.contains(mount.device)) else {
                throw Failure(
                    .unsupported,
                    "the mount \(text) (\(kind), \(String(decoding: mount.source, as: UTF8.self))) comes from outside of the tree",
                    advice: "Pass --external 'mnt[\(text)]:KEY', and --external mnt[KEY]:DIR on restore")
            }
            return entry
        }
    }
}
