public import Diagnostics
public import Linux

/// What a tree sees, where that is not what we see: its network, its System V objects and message queues, its files.
/// Whoever looks at such objects of the tree, or makes them, does so inside; scripts, page servers, plugins and whatever else
/// is not the tree's belong outside.
public final class TreeView {
    /// Where the tree's sockets are; nil for our own namespace.
    public var network: TreeNetwork?
    /// Its mounts, if they are in namespaces of its own.
    public let mounts = TreeMounts()
    /// Where we are among the mount namespaces.
    public private(set) var namespace = 0
    /// Its IPC namespace, if that is not ours.
    private var ipc: Descriptor?
    /// Root of its user namespace, in our numbers, if that is not ours.
    private var owner: (user: Int, group: Int)?

    init() {}

    /// From now on the System V objects are those of a task.
    public func takeIPC(of task: TaskID) throws(Failure) {
        ipc = .some(try NamespaceKind.ipc.open(of: task))
    }

    /// From now on what is created belongs to the tree's root.
    public func take(_ owners: TreeOwners) { if owners.isApart { owner = (owners.ourUser(0), owners.ourGroup(0)) } }

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
        guard let number = mounts.root(0), !RootVisit.isAway else { return try body() }
        let visit = try attempt("change to the tree's root directory", advice: "This needs CAP_SYS_CHROOT") {
            () throws(SystemCallError) in try RootVisit.begin(in: number)
        }
        let outcome = Result { () throws(Failure) in try body() }
        visit.end()
        return try outcome.get()
    }

    /// Whether paths on a mount begin where ours do now.
    public func isHere(_ mount: Int32) -> Bool { mounts.namespace(of: mount) == namespace }

    /// Does something, from inside, where the paths of a mount's namespace begin.
    public func at<R: ~Copyable>(mount: Int32, _ body: () throws(Failure) -> R) throws(Failure) -> R {
        try at(namespace: mounts.namespace(of: mount), body)
    }

    /// Does something, from inside, where the paths of a mount namespace begin.
    public func at<R: ~Copyable>(namespace: Int, _ body: () throws(Failure) -> R) throws(Failure) -> R {
        guard namespace != self.namespace, let root = mounts.root(namespace) else { return try body() }
        let before = self.namespace
        let doing = "change to the root directory of another mount namespace of the tree"
        let back = try attempt(doing) { () throws(SystemCallError) in try RootVisit.move(to: root) }
        self.namespace = namespace
        let outcome = Result { () throws(Failure) in try body() }
        try attempt(doing) { () throws(SystemCallError) in _ = try RootVisit.move(to: back) }
        self.namespace = before
        return try outcome.get()
    }
}
