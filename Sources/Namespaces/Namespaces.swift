public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
public import Linux
public import Remote

/// Dumps the namespaces that a tree has for itself, but for its network and its IPC objects.
public enum NamespaceDump {
    /// Refuses what could not be restored, and finds the root of the tree's paths.
    public static func prepare(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        let apart = context.namespaces.apart
        if apart.contains(.ipc) { try context.view.takeIPC(of: root) }
        guard apart.contains(.mnt) else { return }
        try MountDump.prepare(root, context)
        context.view.take(context.owners)
    }

    /// Whether tasks of a user namespace may change their groups, as all may whose namespace was made by root.
    public static func allowsGroups(_ root: TaskID) throws(Failure) -> Bool {
        try attempt("read /proc/\(root)/setgroups") { () throws(SystemCallError) in
            try readWholeFile("/proc/\(root.rawValue)/setgroups").starts(with: "allow".utf8)
        }
    }

    /// Writes the images, while the tree stands still.
    public static func dump(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        let apart = context.namespaces.apart
        if apart.contains(.pid) { try context.images.write(.pidNamespace(NamespaceKind.pid.treeID), [PidnsEntry()]) }
        if apart.contains(.user) {
            try context.images.write(.userNamespace(NamespaceKind.user.treeID), [context.owners.entry])
        }
        if apart.contains(.uts) { try HostName.dump(NamespaceKind.uts.treeID, of: root, context) }
        if apart.contains(.time) { try ClockOffsets.dump(NamespaceKind.time.treeID, of: root, context) }
        if apart.contains(.mnt) { try MountDump.dump(context) }
    }
}

/// Makes the namespaces that a tree had for itself, but for its network, through its first task.
public struct NamespaceRestore {
    private let apart: [NamespaceKind: UInt32]
    private var hostName: UtsnsEntry?
    private var clocks: TimensEntry?
    private var mounts: MountRestore?

    /// Reads and checks the images.
    ///
    /// - Parameters:
    ///   - apart: which namespaces the tree had for its own, with their numbers.
    ///   - mounts: further mount namespaces that tasks of it had.
    public init(
        _ apart: [NamespaceKind: UInt32], mounts further: [UInt32], _ context: RestoreContext
    ) throws(Failure) {
        self.apart = apart
        if let id = apart[.user] {
            guard apart[.pid] != nil else {
                throw Failure(.unsupported, "the tree had a user namespace, but no PID namespace of its own")
            }
            context.owners = try TreeOwners(context.images.load(.userNamespace(id), as: UsernsEntry.self))
        }
        if let id = apart[.uts] { hostName = try context.images.load(.hostName(id), as: UtsnsEntry.self) }
        if let id = apart[.time] { clocks = try context.images.load(.timeNamespace(id), as: TimensEntry.self) }
        if let id = apart[.mnt] { mounts = try MountRestore([id] + further, context) }
    }

    /// Has a task go to a new user namespace, where it is root.
    public func enterUsers(_ carrier: Puppet, _ context: RestoreContext) throws(Failure) {
        var start = Batch()
        start.add(.unshare, .bits(NamespaceKind.user.flag), doing: "make a user namespace")
        try carrier.run(start)
        let maps = context.owners.maps
        for (name, text) in [("uid_map", maps.users), ("gid_map", maps.groups)] {
            try attempt("write the new user namespace's \(name)", advice: "This needs CAP_SETUID and CAP_SETGID") {
                () throws(SystemCallError) in
                let file = try openFile("/proc/\(carrier.task.rawValue)/\(name)", .writeOnly)
                try writeAll(Array(text.utf8), to: file.number)
            }
        }
        var batch = Batch()
        batch.add(.setgroups, .value(0), .value(0), doing: "leave all groups")
        batch.add(.setresgid, .value(0), .value(0), .value(0), doing: "become root's group")
        batch.add(.setresuid, .value(0), .value(0), .value(0), doing: "become root")
        // Else its files in /proc are nobody's there.
        batch.add(.prctl, .value(4), .value(1), .value(0), .value(0), .value(0), doing: "be dumpable")
        try carrier.run(batch)
    }

    /// Makes them. The task is alone in them.
    public func make(in seed: Puppet, _ context: RestoreContext) throws(Failure) {
        var batch = Batch()
        var flags = [NamespaceKind.uts, .ipc, .mnt].reduce(UInt64(0)) { apart[$1] == nil ? $0 : $0 | $1.flag }
        let hasNetwork = apart[.net] != nil && context.network == nil
        if hasNetwork { flags |= NamespaceKind.net.flag }
        if flags != 0 { batch.add(.unshare, .bits(flags), doing: "make namespaces") }
        if let hostName { HostName.restore(hostName, &batch) }
        try seed.run(batch)
        if hasNetwork { context.network = try TreeNetwork(of: seed.task) }
        if let clocks { try ClockOffsets.restore(clocks, in: seed, context) }
        if apart[.ipc] != nil { try context.view.takeIPC(of: seed.task) }
        guard let mounts else { return }
        try mounts.make(in: seed, context)
        context.view.take(context.owners)
    }

    /// Has a new task go to the mount namespace that it was in, if it was not born there.
    public func enterMounts(_ puppet: Puppet, _ id: UInt32, _ context: RestoreContext) throws(Failure) {
        let mounts = context.view.mounts
        guard mounts.count > 1, let index = mounts.index(of: id), try mounts.index(of: puppet.task) != index else {
            return
        }
        let arrived = try context.deliver([mounts.handle(index)], to: puppet)
        var batch = Batch()
        batch.add(
            .setns, .descriptor(arrived[0]), .bits(NamespaceKind.mnt.flag), doing: "enter its mount namespace")
        batch.add(.close, .descriptor(arrived[0]), doing: "close a namespace")
        try puppet.run(batch)
    }

    /// Once nothing more is written to its files.
    public func seal(_ context: RestoreContext) throws(Failure) { try mounts?.seal(context) }
}
