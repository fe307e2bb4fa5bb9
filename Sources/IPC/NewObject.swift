internal import Diagnostics
internal import ImageMessages
internal import Linux

/// Makes System V objects with an id and a creator of our choice.
enum NewObject {
    /// Makes one. The name of the kind is that of the file that takes the next id: `sem`, `msg`.
    ///
    /// - Parameter create: the call that makes it.
    /// - Returns: its id, which is another than asked for if that is taken.
    static func make(_ kind: String, _ entry: IpcDescEntry, _ create: () throws(SystemCallError) -> Int)
        throws(SystemCallError) -> UInt32
    {
        // It takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the user namespace of the IPC namespace.
        let next = try openFile("/proc/sys/kernel/\(kind)_next_id", .writeOnly)
        try writeAll(Array("\(entry.id)".utf8), to: next.number)
        return UInt32(truncatingIfNeeded: try asCreator(entry, create))
    }

    /// The creator is who makes it. The raw calls change this thread alone.
    private static func asCreator(_ entry: IpcDescEntry, _ create: () throws(SystemCallError) -> Int)
        throws(SystemCallError) -> Int
    {
        let (uid, gid) = (Int(try systemCall(.geteuid)), Int(try systemCall(.getegid)))
        if entry.cgid != UInt32(gid) { _ = try? systemCall(.setresgid, -1, Int(entry.cgid), -1) }
        if entry.cuid != UInt32(uid) { _ = try? systemCall(.setresuid, -1, Int(entry.cuid), -1) }
        let made = Result { () throws(SystemCallError) in try create() }
        if entry.cuid != UInt32(uid) { try systemCall(.setresuid, -1, uid, -1) }
        if entry.cgid != UInt32(gid) { try systemCall(.setresgid, -1, gid, -1) }
        try OwnerVisit.renew()
        return try made.get()
    }

    /// The kernel gave another id.
    static func taken(_ id: UInt32, by other: UInt32) -> Failure {
        Failure(
            .conflict, "the id \(id) is taken: the kernel gives \(other)", advice: "See ipcs, and remove what has it")
    }
}
