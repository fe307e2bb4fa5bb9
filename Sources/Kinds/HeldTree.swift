public import Diagnostics
public import Linux
internal import Procfs
internal import SystemPackage

/// A tree that a dump keeps, standing still, until its pages were fetched (`dump --lazy-pages`), as a restore on the same
/// machine finds it.
public struct HeldTree: Sendable {
    /// The dump.
    public let holder: TaskID
    /// The processes that it keeps.
    public let tasks: Set<TaskID>

    /// What names this process, for an image: the boot, the PID namespace, the pid, and when it began.
    public static func ownName() throws(Failure) -> String { try name(of: .current) }

    private static func name(of task: TaskID) throws(Failure) -> String {
        let boot = try attempt("read the boot id") { () throws(SystemCallError) in
            try readWholeFile("/proc/sys/kernel/random/boot_id").prefix { $0 != 0x0a }
        }
        let namespace = try attempt("look at our pid namespace") { () throws(SystemCallError) in
            try readLink("/proc/self/ns/pid").string
        }
        let started = try TaskStat.read(of: task).startTime
        return "\(String(decoding: boot, as: UTF8.self)) \(namespace) \(task) \(started)"
    }

    /// Finds the tree that a dump keeps; nil if that is elsewhere, or over.
    ///
    /// - Parameter name: what names the dump.
    public init?(heldBy name: String) {
        let words = name.split(separator: " ")
        guard words.count == 4, let number = Int32(words[2]), (try? HeldTree.name(of: TaskID(number))) == name else {
            return nil
        }
        holder = TaskID(number)
        var tasks: Set<TaskID> = []
        for task in ((try? listNumbers("/proc")) ?? []).map({ TaskID($0) })
        where (try? TaskStatus.read(of: task))?.tracer == holder { tasks.insert(task) }
        self.tasks = tasks
    }
}
