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
    private let network: TreeNetwork?

    /// Kinds of namespaces; ours have the ids from 1 on in this order.
    private static let kinds = ["pid", "net", "ipc", "uts", "time", "mnt", "user", "cgroup"]
    /// The id of a network namespace of the tree's own, and of ours.
    static let networkID = UInt32(kinds.count + 1), ourNetworkID: UInt32 = 2

    /// Our namespaces, by kind.
    private static let own: [String: String] = {
        Dictionary(uniqueKeysWithValues: kinds.map { ($0, (try? readLink("/proc/self/ns/\($0)"))?.string ?? "") })
    }()

    /// The first id of each kind stands for the dumper's own objects, which the tree has none of.
    ///
    /// - Parameter network: where the tree's sockets are.
    init(_ network: TreeNetwork?) {
        self.network = network
        _ = (memory.newID(), files.newID(), fs.newID(), signals.newID())
    }

    /// What the inventory holds: the objects that the root does not share with the restorer, but for its namespaces.
    static func ownIDs(like root: TaskKobjIdsEntry) -> TaskKobjIdsEntry {
        var ids = root
        (ids.vmID, ids.filesID, ids.fsID, ids.sighandID) = (1, 1, 1, 1)
        ids.netNsID = ourNetworkID
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

    /// The id of a namespace. All but the network's must be ours until others are dumped too.
    private func namespace(_ kind: String, of process: DumpedProcess) throws(Failure) -> UInt32 {
        let theirs = try attempt("read the \(kind) namespace") { () throws(SystemCallError) in
            try readLink("/proc/\(process.id.rawValue)/ns/\(kind)").string
        }
        if kind == "net", let network {
            guard theirs == network.theirs else {
                throw ObjectSharing.severalNetworks(process.id, process.name)
            }
            return network.isApart ? ObjectSharing.networkID : ObjectSharing.ourNetworkID
        }
        guard theirs == ObjectSharing.own[kind], let place = ObjectSharing.kinds.firstIndex(of: kind) else {
            throw Failure(
                .unsupported, "task \(process.id) (\(process.name)) is in another \(kind) namespace than we",
                advice: "Namespaces can't be dumped yet; run the order inside the namespace")
        }
        return UInt32(place + 1)
    }

    /// The refusal of a task that is in another network namespace than the root.
    static func severalNetworks(_ task: TaskID, _ name: String) -> Failure {
        Failure(
            .unsupported, "task \(task) (\(name)) is in another network namespace than the root of the tree",
            advice: "All tasks must be in the same one; more than one can't be dumped yet")
    }
}
