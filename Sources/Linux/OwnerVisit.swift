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
        try withCapabilities { (_) throws(SystemCallError) in
            try systemCall(.setfsgid, group)
            try systemCall(.setfsuid, user)
        }
    }

    /// CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: for files of users that the owner is above of in its namespace.
    private static let access: UInt32 = 1 << 1 | 1 << 2

    /// Opens a file for who we stand for: as that user without capabilities of ours, or if it has to be, with those that give
    /// access, or all. The kernel remembers who opened a file, with capabilities, and asks that at some later times. Without a stay it is
    /// just done.
    public static func open(
        _ body: () throws(SystemCallError) -> Descriptor
    ) throws(SystemCallError) -> Descriptor {
        guard current.withLock({ $0 }) != nil else { return try body() }
        var opened: Int32 = -1
        try withCapabilities { (sets) throws(SystemCallError) in
            for effective in [0, access] {
                var fewer = sets
                (fewer[0], fewer[3]) = (effective, 0)
                try setCapabilities(fewer)
                do throws(SystemCallError) {
                    opened = try body().release()
                    return
                } catch { if error.errno != .EACCES && error.errno != .EPERM { throw error } }
            }
            // Some of /proc asks for more.
            try setCapabilities(sets)
            opened = try body().release()
        }
        return Descriptor(owning: opened)
    }

    /// Has the effective capabilities as they were afterwards, whatever becomes of them.
    private static func withCapabilities(
        _ body: (_ sets: [UInt32]) throws(SystemCallError) -> Void
    ) throws(SystemCallError) {
        var header: (version: UInt32, task: UInt32) = (0x2008_0522, 0)
        // Effective, permitted, inheritable: the low halves, then the high ones.
        var sets = [UInt32](repeating: 0, count: 6)
        try withAddress(of: &header) { (header) throws(SystemCallError) in
            try sets.withAddress { (sets, _) throws(SystemCallError) in try systemCall(.capget, header, sets) }
        }
        let known = sets
        let outcome = Result { () throws(SystemCallError) in try body(known) }
        try setCapabilities(known)
        try outcome.get()
    }

    private static func setCapabilities(_ sets: [UInt32]) throws(SystemCallError) {
        var (header, sets) = ((UInt32(0x2008_0522), UInt32(0)), sets)
        try withAddress(of: &header) { (header) throws(SystemCallError) in
            try sets.withAddress { (sets, _) throws(SystemCallError) in try systemCall(.capset, header, sets) }
        }
    }

    deinit {
        OwnerVisit.current.withLock { $0 = nil }
        try? OwnerVisit.withCapabilities { (_) throws(SystemCallError) in
            try systemCall(.setfsuid, 0)
            try systemCall(.setfsgid, 0)
        }
    }

    /// Ends it now.
    public consuming func end() {}
}
