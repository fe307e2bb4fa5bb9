internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote
internal import SystemPackage

/// Makes the mounts of a tree in a new mount namespace, through the tree's first task, which is the only one in there.
struct MountRestore {
    private let order: MountOrder
    /// The numbers of the namespaces in images, that of the tree's root first.
    private let ids: [UInt32]
    private let places: [Int32: TreeMounts.Place]
    private let archives: [UInt32: [UInt8]]
    private let readOnly = ReadOnlyMounts()

    /// Reads and checks the images.
    init(_ ids: [UInt32], _ context: RestoreContext) throws(Failure) {
        self.ids = ids
        let images = context.images
        var spaces: [[MntEntry]] = []
        for id in ids {
            let name = ImageName.mounts(id)
            spaces.append(
                try during(.image(name.fileName)) { () throws(Failure) in
                    try images.loadAll(name, as: MntEntry.self)
                })
        }
        places = MountOrder.places(spaces)
        order = try MountOrder(spaces)
        guard let root = order.steps.first else { throw Failure(.corruptImage, "the tree has no mounts") }
        try MountRestore.checkRoot(root.entry, context)
        var archives: [UInt32: [UInt8]] = [:]
        for step in order.steps {
            if case .external(let key) = step.origin, MountRestore.place(of: key, context) == nil {
                throw Failure(
                    .usage, "the mount \(step.entry.point) comes from outside",
                    advice: "Pass --external 'mnt[\(key)]:DIR' with the directory to bind there")
            }
            if case .found(let path) = step.origin, !context.policy.external.contains("mnt[]") {
                throw Failure(
                    .usage, "the mount \(step.entry.point) comes from outside",
                    advice: "Pass --external 'mnt[]' to bind \(String(decoding: path, as: UTF8.self)) there")
            }
            guard step.isArchived else { continue }
            let name = ImageName.mountedFiles(step.entry.rootDev)
            guard images.has(name) else { continue }
            let reader = try images.open(name)
            guard reader.size <= Archive.largest else {
                throw Failure(.corruptImage, "\(name.fileName) is too large to be true")
            }
            archives[step.entry.rootDev] = try reader.read(reader.size)
        }
        self.archives = archives
    }

    /// A tree whose root was another directory than ours must not come to ours because nobody named its own.
    private static func checkRoot(_ root: MntEntry, _ context: RestoreContext) throws(Failure) {
        guard context.policy.root == nil else { return }
        let ours = try Mount.all().last { $0.point == [0x2f] }
        guard ours?.device == root.rootDev, ours?.root == Array(root.root) else {
            throw Failure(
                .usage, "the tree's root was a directory of its own",
                advice: "Pass --root DIR with what is to be its root")
        }
    }

    private static func place(of key: String, _ context: RestoreContext) -> String? {
        context.policy.external.value("mnt[\(key)]")
    }

    /// Makes all mounts, and the first of them the root of the tree's first task.
    func make(in seed: Puppet, _ context: RestoreContext) throws(Failure) {
        // A task of each further namespace, which is only there for that. They have their descriptors in common.
        var tasks = [seed]
        for _ in ids.dropFirst() {
            tasks += try seed.clone([CloneRequest(id: nil, flags: NamespaceKind.mnt.flag | 0x400)])  // CLONE_FILES
        }
        let outcome = Result { () throws(Failure) in try make(in: tasks, context) }
        // Whatever has become of it: who is traced by us ends only when we have seen it.
        for task in tasks.dropFirst() {
            _ = try? systemCall(.kill, Int(task.task.rawValue), 9)
            while task.tracee.isAttached, (try? task.tracee.wait()) != nil {}
        }
        try outcome.get()
    }

    private func make(in tasks: [Puppet], _ context: RestoreContext) throws(Failure) {
        let seed = tasks[0]
        var handles = try deliver(to: seed, context)
        for task in tasks { try MountRestore.part(task) }
        for (index, step) in order.steps.enumerated() where !step.isTerminal {
            context.log.debug("the mount \(step.entry.mntID), \(step.entry.point), comes from \(step.origin)")
            try during(.step("the mount \(step.entry.point)")) { () throws(Failure) in
                let task = tasks[step.space]
                if step.isRoot {
                    try enter(step, in: task, tasks, &handles)
                } else {
                    var known = handles
                    try aroundRemoved(step, in: task, handles) { () throws(Failure) in
                        try mount(step, in: task, tasks, &known)
                    }
                    handles = known
                }
                if let archive = archives[step.entry.rootDev], step.isArchived {
                    let place = try open(step.entry, in: task)
                    try Archive.unpack(archive, into: place, as: context.owners.isApart ? task.task : nil)
                }
                try copyOrigins(index, in: task, &handles)
            }
        }
        try finish(tasks, handles, context)
        let known = context.view.mounts
        for (id, task) in zip(ids, tasks) {
            try known.add(id, of: task.task)
            known.take(
                root: try attempt("open the root of a mount namespace") { () throws(SystemCallError) in
                    try openFile("/proc/\(task.task.rawValue)/root", [.path, .directory])
                })
        }
        known.take(mounts: places)
        let terminals = order.steps.filter(\.isTerminal)
        context.lateMounts = { [order] () throws(Failure) in
            for step in terminals {
                try during(.step("the mount \(step.entry.point)")) { () throws(Failure) in
                    try MountRestore.bind(terminal: step, order, in: known.handle(step.space))
                }
            }
        }
    }

    /// Has at hand what comes from outside: copies of our mounts.
    private func deliver(to seed: Puppet, _ context: RestoreContext) throws(Failure) -> [UInt32: Int] {
        let slaves = MountGroups.outerSlaves(order.steps)
        var ids: [UInt32] = []
        var copies: [Int32] = []
        defer { for number in copies { _ = try? systemCall(.close, Int(number)) } }
        for step in order.steps {
            let (path, what): ([UInt8], String)
            switch step.origin {
            case .root: (path, what) = ((context.policy.root ?? FilePath("/")).bytes, "the tree's root (--root)")
            case .external(let key):
                let place = Array((MountRestore.place(of: key, context) ?? "").utf8)
                // As CRIU takes it.
                path = place.first == 0x2f ? place : [0x2f] + place
                what = "what --external mnt[\(key)]:DIR names"
            case .found(let place): (path, what) = (place, String(decoding: place, as: UTF8.self))
            case .bind, .fresh: continue
            }
            // Else what the tree mounts there would be mounted here, too. It may be told what is mounted here.
            let isSlave = slaves.contains(step.entry.mntID)
            copies.append(try MountRestore.copy(path, what, propagation: isSlave ? 1 << 19 : 1 << 18).release())
            ids.append(step.entry.mntID)
        }
        var handles: [UInt32: Int] = [:]
        for (id, number) in zip(ids, try context.deliver(copies, to: seed)) { handles[id] = Int(number.number) }
        return handles
    }

    /// Sees to it that nothing that happens in a namespace is told to where it is copied from.
    private static func part(_ task: Puppet) throws(Failure) {
        var batch = Batch()
        let everything = batch.place(string: "/".utf8)
        batch.add(
            .mount, .value(0), .buffer(everything), .value(0), .value(0x44000), .value(0),
            doing: "make the new mount namespace private")  // MS_REC | MS_PRIVATE
        try task.run(batch)
    }

    /// Goes to the new root.
    private func enter(
        _ step: MountOrder.Step, in task: Puppet, _ tasks: [Puppet], _ handles: inout [UInt32: Int]
    ) throws(Failure) {
        if case .fresh = step.origin {
            // Where nothing of what is there is needed any more.
            handles[step.entry.mntID] = try mountNew(step, at: Array("/proc".utf8), in: task)
        } else if case .bind = step.origin {
            handles[step.entry.mntID] = try copy(step, tasks, handles)
        }
        guard let root = handles[step.entry.mntID] else { throw Failure(.bug, "a root of nothing") }
        var batch = Batch()
        let everything = batch.place(string: "/".utf8)
        let nothing = batch.place(string: "".utf8)
        if !step.isFresh {
            batch.add(
                .move_mount, .value(root), .buffer(nothing), .value(Int(currentDirectory)), .buffer(everything),
                .value(4), doing: "mount the root")  // MOVE_MOUNT_F_EMPTY_PATH
        }
        batch.add(.fchdir, .value(root), doing: "enter the root")
        let here = batch.place(string: ".".utf8)
        batch.add(.pivot_root, .buffer(here), .buffer(here), doing: "make it the root")
        try task.run(batch)
    }

    private static func copy(_ path: [UInt8], _ what: String, propagation: UInt64) throws(Failure) -> Descriptor {
        try attempt("copy the mount of \(what)", advice: "Name a directory or file that exists") {
            () throws(SystemCallError) in
            let copy = try MountVisit.copy(path)
            try MountVisit.change(copy.number, propagation: propagation)
            return copy
        }
    }

    private func mount(
        _ step: MountOrder.Step, in task: Puppet, _ tasks: [Puppet], _ handles: inout [UInt32: Int]
    ) throws(Failure) {
        let entry = step.entry
        guard !step.isFresh else {
            handles[entry.mntID] = try mountNew(step, at: Array(entry.mountpoint), in: task)
            return
        }
        if handles[entry.mntID] == nil { handles[entry.mntID] = try copy(step, tasks, handles) }
        guard let number = handles[entry.mntID] else { throw Failure(.bug, "a mount of nothing") }
        var batch = Batch()
        let point = batch.place(string: Array(entry.mountpoint))
        let nothing = batch.place(string: "".utf8)
        batch.add(
            .move_mount, .value(number), .buffer(nothing), .value(Int(currentDirectory)), .buffer(point), .value(4),
            doing: "mount it")
        try task.run(batch)
    }

    /// Mounts a file system anew. Returns the number of a descriptor of it.
    private func mountNew(_ step: MountOrder.Step, at point: [UInt8], in task: Puppet) throws(Failure) -> Int {
        guard case .fresh(let kind) = step.origin else { throw Failure(.bug, "a file system of no kind") }
        var batch = Batch()
        let point = batch.place(string: point)
        let source = batch.place(string: Array(step.entry.source))
        let name = batch.place(string: kind.utf8)
        let options = batch.place(string: Array(step.entry.options))
        // A file system of one instance keeps the options that it has.
        batch.add(
            .mount, .buffer(source), .buffer(point), .buffer(name), .value(Int(step.entry.sbFlags & ~1)),
            .buffer(options), doing: "mount it")
        let handle = batch.add(
            .open, .buffer(point), .value(Int(OpenFlags.path.rawValue)), .value(0), doing: "open it")
        return try task.run(batch)[handle]
    }

    /// Copies what will be bound elsewhere and is hidden by then, while nothing is mounted there yet that would be copied instead. All
    /// else is copied when it is needed, which keeps the order of mounts.
    private func copyOrigins(
        _ index: Int, in task: Puppet, _ handles: inout [UInt32: Int]
    ) throws(Failure) {
        guard let number = handles[order.steps[index].entry.mntID] else { return }
        var batch = Batch()
        var slots: [(UInt32, Batch.Slot)] = []
        for step in order.steps
        where step.origin == .bind(index) && order.isHidden(step) && !step.entry.deleted && !step.isTerminal {
            slots.append((step.entry.mntID, addCopy(of: step, from: number, &batch, mayFail: true)))
        }
        let results = try task.run(batch)
        for (id, slot) in slots { if let number = results.success(slot) { handles[id] = number } }
    }

    private static func bind(
        terminal step: MountOrder.Step, _ order: MountOrder, in namespace: Int32
    ) throws(Failure) {
        guard case .bind(let index) = step.origin else { return }
        let path = Array(order.steps[index].entry.mountpoint) + [0x2f] + order.rest(step)
        let point = Array(step.entry.mountpoint)
        let attributes = MountOptions.attributes(step.entry.flags)
        try attempt(
            "bind the terminal \(String(decoding: path, as: UTF8.self))",
            advice: "No task of the tree has its master end: pass --external mnt[\(step.entry.point)] to the dump"
        ) { () throws(SystemCallError) in
            try MountVisit.bind(path, to: point, set: attributes, clear: MountOptions.all, in: namespace)
        }
    }

    /// Copies what is to be bound, which only a task can do that is in the same namespace.
    private func copy(_ step: MountOrder.Step, _ tasks: [Puppet], _ handles: [UInt32: Int]) throws(Failure) -> Int {
        guard case .bind(let index) = step.origin, let number = handles[order.steps[index].entry.mntID] else {
            throw Failure(.bug, "a bind of an unknown mount")
        }
        var batch = Batch()
        let made = addCopy(of: step, from: number, &batch)
        return try tasks[order.steps[index].space].run(batch)[made]
    }

    /// Copies what is to be bound (`open_tree(2)` with OPEN_TREE_CLONE and AT_EMPTY_PATH).
    private func addCopy(
        of step: MountOrder.Step, from number: Int, _ batch: inout Batch, mayFail: Bool = false
    ) -> Batch.Slot {
        let rest = batch.place(string: order.rest(step))
        return batch.add(
            .open_tree, .value(number), .buffer(rest), .value(0o2000001 | 0x1000), doing: "open what is bound",
            mayFail: mayFail)
    }

    /// Makes what was bound and then removed, binds it with a body, and removes it again.
    private func aroundRemoved(
        _ step: MountOrder.Step, in task: Puppet, _ handles: [UInt32: Int], _ body: () throws(Failure) -> Void
    ) throws(Failure) {
        guard step.entry.deleted, case .bind(let index) = step.origin,
            let number = handles[order.steps[index].entry.mntID]
        else { return try body() }
        let isFile = try attempt("look at the mount point") { () throws(SystemCallError) in
            let file = try openFile(step.entry.place(through: task.task), [.path])
            return try FileStatus.read(in: file.number).kind != .directory
        }
        var batch = Batch()
        let rest = batch.place(string: order.rest(step))
        let doing: StaticString = "make what was bound and then removed"
        if isFile {
            batch.add(.mknodat, .value(number), .buffer(rest), .value(0o100600), .value(0), doing: doing)
        } else {
            batch.add(.mkdirat, .value(number), .buffer(rest), .value(0o700), doing: doing)
        }
        try task.run(batch)
        try body()
        var end = Batch()
        let gone = end.place(string: order.rest(step))
        end.add(
            .unlinkat, .value(number), .buffer(gone), .value(isFile ? 0 : 0x200), doing: "remove what is bound again")
        try task.run(end)
    }

    /// Options and propagation, once everything is there, and leaves the old roots.
    private func finish(
        _ tasks: [Puppet], _ handles: [UInt32: Int], _ context: RestoreContext
    ) throws(Failure) {
        let slaves = MountGroups.outerSlaves(order.steps)
        for (space, task) in tasks.enumerated() {
            var batch = Batch()
            for step in order.steps where step.space == space {
                guard let mount = handles[step.entry.mntID] else { continue }
                if slaves.contains(step.entry.mntID), step.entry.masterID == 0 {
                    MountRestore.change(mount, propagation: 1 << 18, &batch, doing: "make a mount private")
                }
                let attributes = MountOptions.attributes(step.entry.flags)
                MountRestore.change(
                    mount, set: attributes & ~MountOptions.readOnly, clear: MountOptions.all, &batch,
                    doing: "set the options of a mount")
                if step.entry.flags & MountOptions.unbindable != 0 {
                    MountRestore.change(
                        mount, propagation: UInt64(MountOptions.unbindable), &batch, doing: "make a mount unbindable")
                }
                let isWhole = step.isFresh && step.entry.sbFlags & 1 != 0
                let isItself = attributes & MountOptions.readOnly != 0
                if isWhole || isItself {
                    try readOnly.add(mount, of: task, space, isWhole: isWhole, isItself: isItself)
                }
            }
            try task.run(batch)
        }
        try joinGroups(tasks, handles, context)
        for (space, task) in tasks.enumerated() {
            var batch = Batch()
            if space == 0 {
                for (_, mount) in handles.sorted(by: { $0.value < $1.value }) {
                    batch.add(.close, .value(mount), doing: "close a mount")
                }
            }
            let here = batch.place(string: ".".utf8)
            batch.add(.umount2, .buffer(here), .value(2), doing: "leave the old root")  // MNT_DETACH
            try task.run(batch)
        }
    }

    private func joinGroups(
        _ tasks: [Puppet], _ handles: [UInt32: Int], _ context: RestoreContext
    ) throws(Failure) {
        var batch = Batch()
        let spaces = Dictionary(uniqueKeysWithValues: order.steps.map { ($0.entry.mntID, $0.space) })
        var last = 0
        for group in try MountGroups(order.steps, context.log).members {
            guard let mount = handles[group.mount], let space = spaces[group.mount] else { continue }
            // A mount is changed from where it is.
            if space != last {
                try tasks[last].run(batch)
                batch = Batch()
                last = space
            }
            let nothing = batch.place(string: "".utf8)
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
        try tasks[last].run(batch)
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

    private func open(_ entry: MntEntry, in task: Puppet) throws(Failure) -> Descriptor {
        try attempt("open it") { () throws(SystemCallError) in
            try openFile(entry.place(through: task.task), [.path, .directory])
        }
    }
}
