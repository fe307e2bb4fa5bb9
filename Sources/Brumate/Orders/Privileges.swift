internal import Diagnostics
internal import Linux
internal import Procfs

/// The rights that every order needs.
enum Privileges {
    private static let systemAdministrator: UInt64 = 1 << 21
    private static let checkpointRestore: UInt64 = 1 << 40

    /// Fails without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and for users other than root who have not said that they
    /// know what that means.
    static func require(unprivileged: Bool) throws(Failure) {
        guard try TaskStatus.read(of: .current).effectiveCapabilities & (systemAdministrator | checkpointRestore) != 0
        else {
            throw Failure(
                .denied, "neither CAP_SYS_ADMIN nor CAP_CHECKPOINT_RESTORE is ours",
                advice: "Run as root, or give the program one: setcap cap_checkpoint_restore+eip FILE")
        }
        let user = try attempt("find out who we are") { () throws(SystemCallError) in try systemCall(.geteuid) }
        guard user == 0 || unprivileged else {
            throw Failure(
                .denied, "this is not root", advice: "Pass --unprivileged to accept the limits that this has")
        }
        if user != 0 {
            // PR_SET_DUMPABLE: a program with file capabilities finds its own /proc entries owned by root otherwise.
            try attempt("make ourselves visible in /proc") { () throws(SystemCallError) in try systemCall(.prctl, 4, 1)
            }
        }
    }
}
