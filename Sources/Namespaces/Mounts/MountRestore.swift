internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Remote
internal import SystemPackage

/// Makes the mounts of a tree in a new mount namespace, through the tree's first task, which is the only one in there.
struct MountRestore {
    private let order: MountOrder
    private let archives: [UInt32: [UInt8]]
    private let readOnly = ReadOnlyMounts()

    /// The most bytes of an archive.
    private static let largest = 1 << 30

    /// Reads and checks the images.
    init(_ id: UInt32, _ context: RestoreContext) throws(Failure) {
        let images = context.images
        let name = ImageName.mounts(id)
        order = try during(.image(name.fileName)) { () throws(Failure) in
            try MountOrder(images.loadAll(name, as: MntEntry.self))
        }
        var archives: [UInt32: [UInt8]] = [:]
        for step in order.steps {
            if case .external(let key) = step.origin, MountRestore.place(of: key, context) == nil {
                throw Failure(
                    .usage, "the mount \(String(decoding: step.entry.mountpoint, as: UTF8.self)) comes from outside",
                    advice: "Pass --external 'mnt[\(key)]:DIR' with the directory to bind there")
            }
            guard step.origin == .fresh(kind: "tmpfs") else { continue }
            let name = ImageName.mountedFiles(step.entry.rootDev)
            guard images.has(name) else { continue }
            let reader = try images.open(name)
            guard reader.size <= MountRestore.largest else {
                throw Failure(.corruptImage, "\(name.fileName) is too large to be true")
            }
            archives[step.entry.rootDev] = try reader.read(reader.size)
        }
        self.archives = archives
    }

    private static func place(of key: String, _ context: RestoreContext) -> String? {
        context.policy.external.value("mnt[\(key)]")
    }

    /// Makes all mounts, and the first of them the root of the tree's first task.
    func make(in seed: Puppet, _ context: RestoreContext) throws(Failure) {
        var handles: [UInt32: Int] = [:]
        try enter(seed, context, &handles)
        for step in order.steps.dropFirst() {
            let text = String(decoding: step.entry.mountpoint, as: UTF8.self)
            try during(.step("the mount \(text)")) { () throws(Failure) in
                try mount(step, in: seed, &handles)
                if let archive = archives[step.entry.rootDev], step.origin == .fresh(kind: "tmpfs") {
                    let place = try open(step.entry, in: seed)
                    try Archive.unpack(archive, into: place, as: context.owners.isApart ? seed.task : nil)
                }
            }
        }
        try finish(seed, handles, context)
    }

    /// Goes to the new root, with what comes from outside at hand: copies of our mounts.
    private func enter(_ seed: Puppet, _ context: RestoreContext, _ handles: inout [UInt32: Int]) throws(Failure) {
        let root = (context.policy.root ?? FilePath("/")).bytes
        var ids = [order.steps[0].entry.mntID]
        var copies = [try MountRestore.copy(root, "the tree's root (--root)").release()]
        defer { for number in copies { _ = try? systemCall(.close, Int(number)) } }
        for step in order.steps {
            guard case .external(let key) = step.origin, let text = MountRestore.place(of: key, context) else {
                continue
            }
            copies.append(try MountRestore.copy(Array(text.utf8), "what --external mnt[\(key)]:DIR names").release())
            ids.append(step.entry.mntID)
        }
        let arrived = try context.deliver(copies, to: seed)
        for (id, number) in zip(ids, arrived) { handles[id] = Int(number.number) }
        var batch = Batch()
        let everything = batch.place(string: "/".utf8)
        batch.add(
            .mount, .value(0), .buffer(everything), .value(0), .value(0x44000), .value(0),
            doing: "make the new mount namespace private")  // MS_REC | MS_PRIVATE
        let nothing = batch.place(string: "".utf8)
        batch.add(
            .move_mount, .descriptor(arrived[0]), .buffer(nothing), .value(Int(currentDirectory)), .buffer(everything),
            .value(4),
            doing: "mount the tree's root")  // MOVE_MOUNT_F_EMPTY_PATH
        batch.add(.fchdir, .descriptor(arrived[0]), doing: "enter the tree's root")
        let here = batch.place(string: ".".utf8)
        batch.add(.pivot_root, .buffer(here), .buffer(here), doing: "make it the root")
        try seed.run(batch)
    }

    private static func copy(_ path: [UInt8], _ what: String) throws(Failure) -> Descriptor {
        try attempt("copy the mount of \(what)", advice: "Name a directory or file that exists") {
            () throws(SystemCallError) in try MountVisit.copy(path)
        }
    }

    private func mount(
        _ step: MountOrder.Step, in seed: Puppet, _ handles: inout [UInt32: Int]
    ) throws(Failure) {
        let entry = step.entry
        var batch = Batch()
        let point = batch.place(string: Array(entry.mountpoint))
        let nothing = batch.place(string: "".utf8)
        let handle: Batch.Slot
        switch step.origin {
        case .root: return
        case .external:
            guard let number = handles[entry.mntID] else {
                throw Failure(.bug, "an external mount that was not opened")
            }
            batch.add(
                .move_mount, .value(number), .buffer(nothing), .value(Int(currentDirectory)), .buffer(point), .value(4),
                doing: "mount it")
            try seed.run(batch)
            return
        case .bind(let index):
            let origin = order.steps[index].entry
            guard let number = handles[origin.mntID] else { throw Failure(.bug, "a bind of an unknown mount") }
            let rest = batch.place(string: MountOrder.rest(Array(entry.root), from: Array(origin.root)))
            handle = batch.add(
                .open_tree, .value(number), .buffer(rest), .value(0o2000001 | 0x1000), doing: "open what is bound")
            batch.add(
                .move_mount, .result(handle), .buffer(nothing), .value(Int(currentDirectory)), .buffer(point),
                .value(4),
                doing: "mount it")
        case .fresh(let kind):
            let source = batch.place(string: Array(entry.source))
            let kind = batch.place(string: kind.utf8)
            let options = batch.place(string: Array(entry.options))
            // A file system of one instance keeps the options that it has.
            batch.add(
                .mount, .buffer(source), .buffer(point), .buffer(kind), .value(Int(entry.sbFlags & ~1)),
                .buffer(options),
                doing: "mount it")
            handle = batch.add(.open, .buffer(point), .value(Int(OpenFlags.path.rawValue)), .value(0), doing: "open it")
        }
        handles[entry.mntID] = try seed.run(batch)[handle]
    }

    /// Options and propagation, once everything is there, and leaves the old root.
    private func finish(_ seed: Puppet, _ handles: [UInt32: Int], _ context: RestoreContext) throws(Failure) {
        var batch = Batch()
        let nothing = batch.place(string: "".utf8)
        for step in order.steps {
            guard let mount = handles[step.entry.mntID] else { continue }
            let attributes = MountOptions.attributes(step.entry.flags)
            MountRestore.change(
                mount, set: attributes & ~MountOptions.readOnly, clear: MountOptions.all, &batch,
                doing: "set the options of a mount")
            var isWhole = step.entry.sbFlags & 1 != 0
            if case .fresh = step.origin {} else { isWhole = false }
            if isWhole || attributes & MountOptions.readOnly != 0 {
                try readOnly.add(mount, of: seed, isWhole: isWhole, isItself: attributes & MountOptions.readOnly != 0)
            }
        }
        for group in groups(context) {
            guard let mount = handles[group.mount] else { continue }
            let other = group.like.flatMap { handles[$0] }
            if let other {
                batch.add(
                    .move_mount, .value(other), .buffer(nothing), .value(mount), .buffer(nothing), .value(0x144),
                    doing: "join a group of mounts")  // MOVE_MOUNT_SET_GROUP
            }
            if group.isSlave { MountRestore.change(mount, propagation: 1 << 19, &batch, doing: "make a mount a slave") }
            if group.isShared, other == nil || group.isSlave {
                MountRestore.change(mount, propagation: 1 << 20, &batch, doing: "make a mount shared")
            }
        }
        for (_, mount) in handles.sorted(by: { $0.value < $1.value }) {
            batch.add(.close, .value(mount), doing: "close a mount")
        }
        let here = batch.place(string: ".".utf8)
        batch.add(.umount2, .buffer(here), .value(2), doing: "leave the old root")  // MNT_DETACH
        try seed.run(batch)
    }

    /// Changes a mount (`mount_setattr(2)`).
    private static func change(
        _ mount: Int, set: UInt64 = 0, clear: UInt64 = 0, propagation: UInt64 = 0, _ batch: inout Batch,
        doing: StaticString
    ) {
        let nothing = batch.place(string: "".utf8)
        let change = batch.place(value: (set, clear, propagation, UInt64(0)))  // struct mount_attr
        batch.add(
            .mount_setattr, .value(mount), .buffer(nothing), .value(0x1000), .buffer(change), .value(32), doing: doing)
    }

    /// Makes mounts read-only that were, once nothing more is written there.
    func seal(_ context: RestoreContext) throws(Failure) { try readOnly.seal(context) }

    private struct Membership {
        let mount: UInt32
        /// A mount of the group that it is in, or is a slave of.
        let like: UInt32?
        let isSlave: Bool, isShared: Bool
    }

    /// Which mounts tell each other of mounts, masters first.
    private func groups(_ context: RestoreContext) -> [Membership] {
        var found: [Membership] = []
        var leaders: [UInt32: UInt32] = [:]
        let known = Set(order.steps.map(\.entry.sharedID).filter { $0 != 0 })
        var waiting: [MntEntry] = []
        for entry in order.steps.map(\.entry) where entry.sharedID != 0 || entry.masterID != 0 {
            var entry = entry
            if entry.masterID != 0, !known.contains(entry.masterID) {
                context.log.warning(
                    "the mount \(String(decoding: entry.mountpoint, as: UTF8.self)) had its master outside of the tree, and has none now"
                )
                entry.masterID = 0
            }
            waiting.append(entry)
        }
        while let next = waiting.firstIndex(where: { entry in
            leaders[entry.sharedID] != nil || entry.masterID == 0 || leaders[entry.masterID] != nil
        }) {
            let entry = waiting.remove(at: next)
            guard entry.sharedID != 0 || entry.masterID != 0 else { continue }
            if entry.sharedID != 0, let leader = leaders[entry.sharedID] {
                found.append(Membership(mount: entry.mntID, like: leader, isSlave: false, isShared: true))
                continue
            }
            let master = entry.masterID == 0 ? nil : leaders[entry.masterID]
            found.append(
                Membership(mount: entry.mntID, like: master, isSlave: master != nil, isShared: entry.sharedID != 0))
            if entry.sharedID != 0 { leaders[entry.sharedID] = entry.mntID }
        }
        return found
    }

    private func open(_ entry: MntEntry, in seed: Puppet) throws(Failure) -> Descriptor {
        let path = Array("/proc/\(seed.task.rawValue)/root".utf8) + Array(entry.mountpoint)
        return try attempt("open it") { () throws(SystemCallError) in try openFile(path, [.path, .directory]) }
    }
}
