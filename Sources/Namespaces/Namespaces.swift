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
        try MountDump.check(root, context)
        context.view.take(root: try MountDump.openRoot(of: root))
    }

    /// Writes the images, while the tree stands still.
    public static func dump(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        let apart = context.namespaces.apart
        if apart.contains(.pid) { try context.images.write(.pidNamespace(NamespaceKind.pid.treeID), [PidnsEntry()]) }
        if apart.contains(.uts) { try HostName.dump(NamespaceKind.uts.treeID, of: root, context) }
        if apart.contains(.time) { try ClockOffsets.dump(NamespaceKind.time.treeID, of: root, context) }
        if apart.contains(.mnt) { try MountDump.dump(NamespaceKind.mnt.treeID, of: root, context) }
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
    /// - Parameter apart: which namespaces the tree had for its own, with their numbers.
    public init(_ apart: [NamespaceKind: UInt32], _ context: RestoreContext) throws(Failure) {
        self.apart = apart
        if let id = apart[.uts] { hostName = try context.images.load(.hostName(id), as: UtsnsEntry.self) }
        if let id = apart[.time] { clocks = try context.images.load(.timeNamespace(id), as: TimensEntry.self) }
        if let id = apart[.mnt] { mounts = try MountRestore(id, context) }
    }

    /// Makes them. The task is alone in them.
    public func make(in seed: Puppet, _ context: RestoreContext) throws(Failure) {
        var batch = Batch()
        let flags = [NamespaceKind.uts, .ipc, .mnt].reduce(UInt64(0)) { apart[$1] == nil ? $0 : $0 | $1.flag }
        if flags != 0 { batch.add(.unshare, .bits(flags), doing: "make namespaces") }
        if let hostName { HostName.restore(hostName, &batch) }
        try seed.run(batch)
        if let clocks { try ClockOffsets.restore(clocks, in: seed, context) }
        if apart[.ipc] != nil { try context.view.takeIPC(of: seed.task) }
        guard let mounts else { return }
        try mounts.make(in: seed, context)
        context.view.take(
            root: try attempt("open the tree's root") { () throws(SystemCallError) in
                try openFile("/proc/\(seed.task.rawValue)/root", [.path, .directory])
            })
    }

    /// Once nothing more is written to its files.
    public func seal(_ context: RestoreContext) throws(Failure) { try mounts?.seal(context) }
}
