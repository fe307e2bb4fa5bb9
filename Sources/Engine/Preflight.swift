internal import Diagnostics
internal import Files
internal import Kinds
internal import Linux
internal import Network
internal import Procfs
internal import SystemPackage

/// What can be refused before anything is stopped.
enum Preflight {
    static func check(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        try checkTree(root)
        try checkNetwork(root, context)
        try context.inNetwork { () throws(Failure) in
            try FilePreflight.check(root, context.policy, context.plugins)
        }
    }

    /// Finds the network namespace of a tree, which all its tasks must be in.
    static func checkNetwork(_ root: TaskID, _ context: DumpContext) throws(Failure) {
        let network = try TreeNetwork(of: root)
        context.network = network
        try forEachProcess(of: root) { (task) throws(Failure) in
            // Who is gone by now is in none; zombies have none.
            if let link = try? readLink("/proc/\(task.rawValue)/ns/net").string, link != network.theirs {
                throw ObjectSharing.severalNetworks(task, (try? TaskStatus.read(of: task).name) ?? "?")
            }
            return true
        }
        guard network.isApart else { return }
        try network.inside { () throws(Failure) in try NetworkDump.check(context.policy) }
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
        guard status.process == root else {
            throw Failure(
                .usage, "\(root) is a thread of task \(status.process)", advice: "Pass --tree \(status.process)")
        }
    }
}
