internal import Diagnostics
internal import Files
internal import Kinds
internal import Linux
internal import Namespaces
internal import Network
internal import Procfs
internal import SystemPackage

/// What can be refused before anything is stopped.
enum Preflight {
    static func check(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        try checkTree(root)
        try checkNamespaces(root, context)
        try context.view.inside { () throws(Failure) in
            try FilePreflight.check(root, context.policy, context.plugins)
        }
    }

    /// Finds the namespaces of a tree, which all its tasks must be in.
    static func checkNamespaces(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        try findNamespaces(root, context)
        try context.namespaces.checkRestorable(root)
        try forEachProcess(of: root) { (task) throws(Failure) in
            try context.namespaces.check(task)
            try context.namespaces.checkThreads(of: task)
            return true
        }
        try NamespaceDump.prepare(root, context)
        guard let network = context.network, network.isApart else { return }
        try network.inside { () throws(Failure) in try NetworkDump.check(context.policy) }
    }

    /// Notes what namespaces a tree has for itself.
    static func findNamespaces(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        context.namespaces = try TreeNamespaces(of: root)
        context.network = try TreeNetwork(of: root)
        let apart = context.namespaces.apart
        if apart.contains(.user) {
            context.owners = try TreeOwners(of: root)
            guard apart.contains(.pid) else {
                throw Failure(
                    .unsupported, "task \(root) is in another user namespace, but in our PID namespace",
                    advice: "Only trees that have both can be dumped yet; run brumate inside of the user namespace")
            }
            guard try NamespaceDump.allowsGroups(root) else {
                throw Failure(
                    .unsupported, "the user namespace of task \(root) was made by somebody who may not change groups",
                    advice: "Let newgidmap, or root, write its gid_map")
            }
        }
        guard apart.contains(.pid) else { return }
        context.numbers.part()
        let number = try TaskStatus.read(of: root).namespaceIDs.last
        guard number == 1 else {
            throw Failure(
                .unsupported, "task \(root) is not the first task of its PID namespace",
                advice: "Name the first one, or run brumate inside of the namespace")
        }
    }

    /// Checks that a task can be the root of a tree.
    static func checkTree(_ root: TaskID) throws(Failure) {
        guard root.rawValue > 0 else { throw Failure(.usage, "no task to dump was named", advice: "Pass --tree PID") }
        var ancestor = TaskID.current
        while ancestor.rawValue > 1 {
            if ancestor == root {
                throw Failure(
                    .denied, "task \(root) is brumate itself or one of its ancestors",
                    advice: "Run brumate outside of the tree")
            }
            guard let stat = try? TaskStat.read(of: ancestor) else { break }
            ancestor = stat.parent
        }
        let status: TaskStatus
        do throws(Failure) { status = try TaskStatus.read(of: root) } catch {
            throw Failure(
                .vanished, "there is no task \(root)", advice: "Check the pid given with --tree", cause: error.cause)
        }
        guard status.state != 0x5a else {
            throw Failure(
                .vanished,
                "task \(root) (\(status.name)) has ended, and waits for its parent \(status.parent) to notice",
                advice: "Check the pid given with --tree")
        }
        guard status.process == root else {
            throw Failure(
                .usage, "\(root) is a thread of task \(status.process)", advice: "Pass --tree \(status.process)")
        }
    }
}
