internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux

/// Gives every process the ids of the kernel objects that it shares with others (kcmp on whole tasks).
struct ObjectSharing {
    private var memory = SharingIndex(.memory)
    private var files = SharingIndex(.files)
    private var fs = SharingIndex(.fs)
    private var signals = SharingIndex(.signalHandlers)
    private let namespaces: TreeNamespaces
    private let mounts: TreeMounts

    /// The first id of each kind stands for the dumper's own objects, which the tree has none of.
    init(_ context: DumpContext) {
        (namespaces, mounts) = (context.namespaces, context.view.mounts)
        _ = (memory.newID(), files.newID(), fs.newID(), signals.newID())
    }

    /// What the inventory holds: the objects of the restorer.
    static func ownIDs(like root: TaskKobjIdsEntry) -> TaskKobjIdsEntry {
        var ids = root
        (ids.vmID, ids.filesID, ids.fsID, ids.sighandID) = (1, 1, 1, 1)
        for kind in NamespaceKind.allCases { ids[keyPath: kind.field] = kind.ownID }
        ids.clearSemUndoID()
        return ids
    }

    /// Fills in the ids of a process.
    mutating func identify(_ process: DumpedProcess) throws(Failure) {
        try namespaces.check(process.id)
        process.ids.vmID = try memory.id(of: process.id).id
        let table = try files.id(of: process.id)
        process.ids.filesID = table.id
        process.ownsFiles = table.isNew
        process.ids.fsID = try fs.id(of: process.id).id
        process.ids.sighandID = try signals.id(of: process.id).id
        namespaces.number(&process.ids)
        // A pre-dump has not looked at them.
        if mounts.count > 0 { process.ids.mntNsID = try mounts.id(of: process.id) }
    }
}
