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
    /// What a task sees that is in one of the namespaces.
    private struct Space {
        let task: TaskID
        let mounts: [Mount]
        let entries: [MntEntry]
    }

    /// Finds the root of a task's mounts, where paths in its namespace begin.
    private static func openRoot(of task: TaskID) throws(Failure) -> Descriptor {
        let namespace = try NamespaceKind.mnt.open(of: task)
        let number = try attempt("open the root directory of task \(task)", advice: "This needs CAP_SYS_ADMIN") {
            () throws(SystemCallError) in
            try MountVisit.perform(in: namespace.number) { () throws(SystemCallError) in
                try openFile(FilePath("/"), [.path, .directory]).release()
            }
        }
        return Descriptor(owning: number)
    }

    /// Finds the namespaces, and refuses mounts that could not be restored.
    static func prepare(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        let known = context.view.mounts
        var tasks: [TaskID] = []
        try forEachProcess(of: root) { (task) throws(Failure) in
            // Who has ended is in none.
            guard (try? readLink("/proc/\(task.rawValue)/ns/mnt")) != nil, try known.index(of: task) == nil else {
                return true
            }
            let index = known.count
            try known.add(index == 0 ? NamespaceKind.mnt.treeID : TreeNamespaces.furtherID(index), of: task)
            known.take(root: try openRoot(of: task))
            tasks.append(task)
            return true
        }
        let spaces = try spaces(tasks, context)
        _ = try MountOrder(spaces.map(\.entries))
        for space in spaces {
            for entry in space.entries where entry.deleted { try checkRemoved(entry, of: space.task) }
        }
        known.take(mounts: MountOrder.places(spaces.map(\.entries)))
    }

    /// Looks at the mounts of tasks that are in different namespaces.
    private static func spaces(_ tasks: [TaskID], _ context: DumpContext) throws(Failure) -> [Space] {
        let mounts = try tasks.map { (task) throws(Failure) in try Mount.all(of: task) }
        let outside = try context.state(OutsideMounts.self) { () throws(Failure) in
            OutsideMounts(try Mount.all())
        }
        return try zip(tasks, mounts).map { (task, own) throws(Failure) in
            Space(task: task, mounts: own, entries: try describe(own, in: mounts, outside, context))
        }
    }

    /// The mounts that we see ourselves, before we go to the tree's root for the first time.
    private final class OutsideMounts {
        private let mounts: [Mount]
        let devices: Set<UInt32>

        init(_ mounts: [Mount]) {
            self.mounts = mounts
            devices = Set(mounts.map(\.device))
        }

        /// Where we see what a mount shows; nil if nowhere.
        func place(of mount: Mount) -> [UInt8]? {
            for other in mounts.reversed()
            where other.device == mount.device && MountOrder.isInside(mount.root, of: other.root) {
                let rest = MountOrder.rest(mount.root, from: other.root)
                return rest.isEmpty ? other.point : (other.point == [0x2f] ? [] : other.point) + [0x2f] + rest
            }
            return nil
        }
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

    /// Writes `mountpoints-N.img` of each namespace, and the archives of file systems in memory.
    static func dump(_ context: DumpContext) throws(Failure) {
        let known = context.view.mounts
        var tasks: [(index: Int, task: TaskID)] = []
        for process in context.processes {
            guard let index = try known.index(of: process.id), !tasks.contains(where: { $0.index == index }) else {
                continue
            }
            tasks.append((index, process.id))
        }
        let spaces = try spaces(tasks.map(\.task), context)
        for space in spaces { try context.images.write(.mounts(known.id(of: space.task)), space.entries) }
        for step in try MountOrder(spaces.map(\.entries)).steps where step.isArchived {
            try during(.step("the mount \(step.entry.point)")) { () throws(Failure) in
                try archive(step.entry, spaces[step.space], context)
            }
        }
    }

    private static func archive(_ entry: MntEntry, _ space: Space, _ context: DumpContext) throws(Failure) {
        let namespace = try NamespaceKind.mnt.open(of: space.task)
        let place = try open(entry, space.entries, namespace.number)
        let number = place.number
        let status = try attempt("look at it") { () throws(SystemCallError) in try FileStatus.read(in: number) }
        // What is at the top of a file system in memory has its first inode.
        guard status.kernelDevice == entry.rootDev, status.inode == 1 else {
            throw Failure(
                .unsupported, "another mount hides it, so that what it holds can't be archived",
                advice: "Unmount what is mounted over it")
        }
        let bytes = try Archive.pack(place, as: context.owners.isApart ? space.task : nil)
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
                // Mounts of another user namespace can't be taken away.
                guard error.errno == .EINVAL else { throw error }
                return try MountVisit.open(point, withoutLocked: hidden, in: namespace).release()
            }
        }
        return Descriptor(owning: number)
    }

    /// What the image says of mounts.
    ///
    /// - Parameter all: those of all namespaces of the tree, its root's first.
    private static func describe(
        _ mounts: [Mount], in all: [[Mount]], _ outside: OutsideMounts, _ context: DumpContext
    ) throws(Failure) -> [MntEntry] {
        let external = context.policy.external
        var known: [UInt32: [Mount]] = [:]
        for mount in all.joined() { known[mount.device, default: []].append(mount) }
        let ids = Set(all.joined().map(\.id))
        let first = all.first ?? []
        let root = first.first { !ids.contains($0.parent) }?.id
        // Places are the root's: in other namespaces other things may be there.
        var keys: [Int32: String] = [:]
        for mount in first {
            keys[mount.id] = external.value("mnt[\(String(decoding: mount.point, as: UTF8.self))]")
        }
        return try mounts.map { (mount) throws(Failure) in
            var entry = describe(mount, context)
            if let key = keys[mount.id] {
                entry.extKey = imageBytes(key.utf8)
                return entry
            }
            // The root comes from --root, and what is bound out of it with it, as does what is bound out of external mounts. Other
            // file systems are mounted anew, if that brings back what they hold: one in memory that is mounted outside, too,
            // would be two from then on.
            let kind = String(decoding: mount.kind, as: UTF8.self)
            let parents = known[mount.device]?.filter { MountOrder.isInside(mount.root, of: $0.root) } ?? []
            let isOfOther = parents.contains { $0.id == root || keys[$0.id] != nil }
            let isNew = MountOptions.kinds[kind] != nil && parents.contains { $0.root == [0x2f] }
            if isOfOther || isNew && !(kind == "tmpfs" && outside.devices.contains(mount.device)) { return entry }
            if external.contains("mnt[]"), let place = outside.place(of: mount) {
                entry.extKey = imageBytes(MountOrder.found.utf8)
                entry.source = imageBytes(place)
                return entry
            }
            let text = String(decoding: mount.point, as: UTF8.self)
            throw Failure(
                .unsupported,
                "the mount \(text) (\(kind), \(String(decoding: mount.source, as: UTF8.self))) comes from outside of the tree",
                advice:
                    "Pass --external 'mnt[\(text)]:KEY', and --external mnt[KEY]:DIR on restore, or --external 'mnt[]' to both"
            )
        }
    }

    private static func describe(_ mount: Mount, _ context: DumpContext) -> MntEntry {
        var entry = MntEntry()
        entry.fstype = MountOptions.kinds[String(decoding: mount.kind, as: UTF8.self)] ?? 0
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
        return entry
    }
}
