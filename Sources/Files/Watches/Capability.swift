internal import Diagnostics
internal import Linux

/// Rights of our own (`capabilities(7)`).
enum Capability {
    /// CAP_SYS_ADMIN.
    static let systemAdministration: UInt64 = 21

    /// Does something without a right.
    static func without<R>(_ capability: UInt64, _ body: () throws(Failure) -> R) throws(Failure) -> R {
        var sets: (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0, 0, 0)
        let doing = "drop a capability"
        try attempt(doing) { () throws(SystemCallError) in try transfer(.capget, &sets) }
        var less = sets
        // Words of 32 bits: effective, permitted, inheritable, low and high.
        if capability < 32 { less.0 &= ~(1 << UInt32(capability)) } else { less.3 &= ~(1 << UInt32(capability - 32)) }
        try attempt(doing) { () throws(SystemCallError) in try transfer(.capset, &less) }
        let outcome = Result(catching: { () throws(Failure) in try body() })
        try attempt("take a capability back") { () throws(SystemCallError) in try transfer(.capset, &sets) }
        return try outcome.get()
    }

    private static func transfer(
        _ call: SystemCall, _ sets: inout (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32)
    ) throws(SystemCallError) {
        var head: (UInt32, Int32) = (0x2008_0522, 0)  // _LINUX_CAPABILITY_VERSION_3
        try withAddress(of: &head) { (head) throws(SystemCallError) in
            try withAddress(of: &sets) { (sets) throws(SystemCallError) in try systemCall(call, head, sets) }
        }
    }
}
