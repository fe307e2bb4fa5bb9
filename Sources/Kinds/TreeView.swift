public import Diagnostics
public import Linux

/// What a tree sees, where that is not what we see: its network, its System V objects and message queues, its files.
/// Whoever looks at such objects of the tree, or makes them, does so inside; scripts, page servers, plugins and whatever else
/// is not the tree's belong outside.
public final class TreeView {
    /// Where the tree's sockets are; nil for our own namespace.
    public var network: TreeNetwork?
    /// The mounts of its namespace, if that is not ours.
    public var mounts: Set<Int32> = []
    /// Its IPC namespace, if that is not ours.
    private var ipc: Descriptor?
    /// The root of its mount namespace, if that is not ours.
    private var root: Descriptor?

    /// Root of its user namespace, in our numbers, if that is not ours.
    private var owner: (user: Int, group: Int)?

    init() {}

    /// From now on the System V objects are those of a task.
    public func takeIPC(of task: TaskID) throws(Failure) {
        ipc = .some(try NamespaceKind.ipc.open(of: task))
    }

    /// From now on what is created belongs to the tree's root.
    public func take(_ owners: TreeOwners) { if owners.isApart { owner = (owners.ourUser(0), owners.ourGroup(0)) } }

    /// From now on paths begin at a directory.
    public func take(root: consuming Descriptor) { self.root = .some(root) }

    /// Does something inside. Whatever becomes of it, our thread is back afterwards.
    public func inside<R>(_ body: () throws(Failure) -> R) throws(Failure) -> R {
        try inNetwork { () throws(Failure) in
            try inIPC { () throws(Failure) in
                try asOwner { () throws(Failure) in try inRoot(body) }
            }
        }
    }

    private func inNetwork<R>(_ body: () throws(Failure) -> R) throws(Failure) -> R {
        guard let network else { return try body() }
        return try network.inside(body)
    }

    private func inIPC<R>(_ body: () throws(Failure) -> R) throws(Failure) -> R {
        guard let number = ipc?.number else { return try body() }
        return try NamespaceKind.ipc.inside(number, body)
    }

    private func asOwner<R>(_ body: () throws(Failure) -> R) throws(Failure) -> R {
        guard let owner, !RootVisit.isAway else { return try body() }
        let visit = try attempt("become the owner of the tree's new files") { () throws(SystemCallError) in
            try OwnerVisit.begin(user: owner.user, group: owner.group)
        }
        let outcome = Result { () throws(Failure) in try body() }
        visit.end()
        return try outcome.get()
    }

    private func inRoot<R>(_ body: () throws(Failure) -> R) throws(Failure) -> R {
        guard let number = root?.number, !RootVisit.isAway else { return try body() }
        let visit = try attempt("change to the tree's root directory", advice: "This needs CAP_SYS_CHROOT") {
            () throws(SystemCallError) in try RootVisit.begin(in: number)
        }
        let outcome = Result { () throws(Failure) in try body() }
        visit.end()
        return try outcome.get()
    }
}
