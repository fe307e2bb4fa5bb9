internal import Synchronization

/// A time in which the calling thread owns what it creates as another user does, such as root of another user namespace: who
/// has no number in a file system's namespace can't create anything there. It keeps all of its capabilities. Threads that it
/// starts meanwhile are the same.
public struct OwnerVisit: ~Copyable {
    private struct Owner {
        let user: Int, group: Int
    }

    private static let current = Mutex<Owner?>(nil)

    /// Takes on the user and group for file systems (`setfsuid(2)`).
    public static func begin(user: Int, group: Int) throws(SystemCallError) -> OwnerVisit {
        current.withLock { $0 = Owner(user: user, group: group) }
        let visit = OwnerVisit()
        try take(user, group)
        return visit
    }

    /// Takes them on again, after a change of our ids that has taken them away.
    public static func renew() throws(SystemCallError) {
        if let owner = current.withLock({ $0 }) { try take(owner.user, owner.group) }
    }

    private static func take(_ user: Int, _ group: Int) throws(SystemCallError) {
        try withCapabilities { () throws(SystemCallError) in
            try systemCall(.setfsgid, group)
            try systemCall(.setfsuid, user)
        }
    }

    /// Has the effective capabilities as they were, whatever a change of ids does to them.
    private static func withCapabilities(_ body: () throws(SystemCallError) -> Void) throws(SystemCallError) {
        var header: (version: UInt32, task: UInt32) = (0x2008_0522, 0)
        // Effective, permitted, inheritable: the low halves, then the high ones.
        var sets = [UInt32](repeating: 0, count: 6)
        try withAddress(of: &header) { (header) throws(SystemCallError) in
            try sets.withAddress { (sets, _) throws(SystemCallError) in try systemCall(.capget, header, sets) }
        }
        try body()
        try withAddress(of: &header) { (header) throws(SystemCallError) in
            try sets.withAddress { (sets, _) throws(SystemCallError) in try systemCall(.capset, header, sets) }
        }
    }

    deinit {
        OwnerVisit.current.withLock { $0 = nil }
        _ = try? OwnerVisit.withCapabilities { () throws(SystemCallError) in
            try systemCall(.setfsuid, 0)
            try systemCall(.setfsgid, 0)
        }
    }

    /// Ends it now.
    public consuming func end() {}
}
