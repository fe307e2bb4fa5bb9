internal import Diagnostics
internal import Files
internal import Kinds
internal import Linux
internal import Procfs

/// What can be refused before anything is stopped.
enum Preflight {
    static func check(_ root: TaskID, _ policy: DumpPolicy, _ plugins: Plugins) throws(Failure) {
        try checkTree(root)
        try FilePreflight.check(root, policy, plugins)
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
