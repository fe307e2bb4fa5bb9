internal import Diagnostics
internal import Kinds
public import Linux
public import SystemPackage

/// The moments at which action scripts and RPC clients are told.
public enum ScriptAction: String, Sendable {
    /// Before a dump to a stream.
    case preStream = "pre-stream"
    /// Before anything is stopped.
    case preDump = "pre-dump"
    /// After the images are complete, while the tree stands still.
    case postDump = "post-dump"
    /// Before anything is restored.
    case preRestore = "pre-restore"
    /// After all tasks are restored, before they run.
    case postRestore = "post-restore"
    /// The network is to be locked.
    case networkLock = "network-lock"
    /// The network is to be unlocked.
    case networkUnlock = "network-unlock"
    /// Namespaces exist.
    case setupNamespaces = "setup-namespaces"
    /// Namespaces are filled.
    case postSetupNamespaces = "post-setup-namespaces"
    /// Tasks are about to run.
    case preResume = "pre-resume"
    /// Tasks run.
    case postResume = "post-resume"
}

/// Runs the action scripts of an order.
public struct Scripts: Sendable {
    /// Programs to run at every action, in order.
    public var paths: [FilePath]
    /// Told of every action before the scripts; a false answer fails the order.
    public var notify: (@Sendable (ScriptAction, TaskID?) -> Bool)?

    /// Scripts of an order.
    public init(paths: [FilePath] = [], notify: (@Sendable (ScriptAction, TaskID?) -> Bool)? = nil) {
        self.paths = paths
        self.notify = notify
    }

    /// Whether nobody wants to be told.
    var isEmpty: Bool { paths.isEmpty && notify == nil }

    /// Runs all scripts for an action.
    ///
    /// - Parameters:
    ///   - images: our descriptor of the image directory.
    ///   - root: the root task, once there is one.
    /// - Throws: the first script that can't be run or exits with another status than 0.
    func run(_ action: ScriptAction, images: Int32, root: TaskID?) throws(Failure) {
        if let notify, !notify(action, root) {
            throw Failure(.denied, "the client refused the action \(action.rawValue)")
        }
        for path in paths {
            var environment = [
                "CRTOOLS_SCRIPT_ACTION=\(action.rawValue)",
                "CRTOOLS_IMAGE_DIR=/proc/\(TaskID.current)/fd/\(images)",
            ]
            if let root { environment.append("CRTOOLS_INIT_PID=\(root)") }
            let status = try runProgram(path, arguments: [path.string], environment: environment)
            guard status == 0 else {
                throw Failure(
                    .denied, "the action script \(path.string) failed at \(action.rawValue) with status \(status)",
                    advice: "See the script's own output")
            }
        }
    }
}
