internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import SystemPackage

/// Gives every process the ids of the kernel objects that it shares with others (kcmp on whole tasks).
struct ObjectSharing {
    private var memory = SharingIndex(.memory)
    private var files = SharingIndex(.files)
    private var fs = SharingIndex(.fs)
    private var signals = SharingIndex(.signalHandlers)
    private var namespaces: [String: UInt32] = [:]

    /// Ours, by kind.
    private static let own: [String: String] = {
        let kinds = ["pid", "net", "ipc", "uts", "time", "mnt", "user", "cgroup"]
        return Dictionary(
            uniqueKeysWithValues: kinds.map { ($0, (try? readLink("/proc/self/ns/\($0)"))?.string ?? "") })
    }()

    /// The first id of each kind stands for the dumper's own objects, which the tree has none of.
    init() {
        _ = (memory.newID(), files.newID(), fs.newID(), signals.newID())
    }

    /// What the inventory holds: the objects that the root does not share with the restorer, but for its namespaces.
    static func ownIDs(like root: TaskKobjIdsEntry) -> TaskKobjIdsEntry {
        var ids = root
        (ids.vmID, ids.filesID, ids.fsID, ids.sighandID) = (1, 1, 1, 1)
        ids.clearSemUndoID()
        return ids
    }

    /// Fills in the ids of a process.
    mutating func identify(_ process: DumpedProcess) throws(Failure) {
        process.ids.vmID = try memory.id(of: process.id).id
        let table = try files.id(of: process.id)
        process.ids.filesID = table.id
        process.ownsFiles = table.isNew
        process.ids.fsID = try fs.id(of: process.id).id
        process.ids.sighandID = try signals.id(of: process.id).id
        process.ids.pidNsID = try namespace("pid", of: process)
        process.ids.netNsID = try namespace("net", of: process)
        process.ids.ipcNsID = try namespace("ipc", of: process)
        process.ids.utsNsID = try namespace("uts", of: process)
        process.ids.timeNsID = try namespace("time", of: process)
        process.ids.mntNsID = try namespace("mnt", of: process)
        process.ids.userNsID = try namespace("user", of: process)
        process.ids.cgroupNsID = try namespace("cgroup", of: process)
    }

    /// The id of a namespace. All must be ours until namespaces are dumped too.
    private mutating func namespace(_ kind: String, of process: DumpedProcess) throws(Failure) -> UInt32 {
        let theirs = try attempt("read the \(kind) namespace") { () throws(SystemCallError) in
            try readLink("/proc/\(process.id.rawValue)/ns/\(kind)").string
        }
        guard theirs == ObjectSharing.own[kind] else {
            throw Failure(
                .unsupported, "task \(process.id) (\(process.name)) is in another \(kind) namespace than we",
                advice: "Namespaces can't be dumped yet; run the order inside the namespace")
        }
        if let id = namespaces[theirs] { return id }
        let id = UInt32(namespaces.count + 1)
        namespaces[theirs] = id
        return id
    }
}
