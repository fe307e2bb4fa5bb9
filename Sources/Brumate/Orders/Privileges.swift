internal import Diagnostics
internal import Linux

/// The rights that every order needs.
enum Privileges {
    private static let systemAdministrator: UInt64 = 1 << 21
    private static let checkpointRestore: UInt64 = 1 << 40

    /// Fails without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and for users other than root who have not said that they
    /// know what that means.
    static func require(unprivileged: Bool) throws(Failure) {
        let status = try attempt("read /proc/self/status") { () throws(SystemCallError) in
            String(decoding: try readWholeFile("/proc/self/status"), as: UTF8.self)
        }
        var capabilities: UInt64 = 0
        for line in status.split(separator: "\n") where line.hasPrefix("CapEff:") {
            capabilities = line.split(separator: "\t").last.flatMap { UInt64($0, radix: 16) } ?? 0
        }
        guard capabilities & (systemAdministrator | checkpointRestore) != 0 else {
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
