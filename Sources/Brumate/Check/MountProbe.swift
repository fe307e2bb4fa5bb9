internal import Linux

/// Probes of mounts.
enum MountProbe {
    /// `MOVE_MOUNT_SET_GROUP`, since 5.15.
    static func movesIntoGroups() throws(SystemCallError) -> Bool { try KernelVersion.isAtLeast(5, 15) }

    /// openat2(2): a structure of no size is refused with another error than a missing call.
    static func hasOpenat2() throws(SystemCallError) -> Bool {
        do { try systemCall(.openat2, -100, 0, 0, 0) } catch { return error.errno != .ENOSYS }
        return true
    }

    /// Whether maps shows the file that overlayfs opened for the user, since 6.8.
    static func overlayMapsAreTrue() throws(SystemCallError) -> Bool { try KernelVersion.isAtLeast(6, 8) }
}

/// The version of the running kernel, for what can't be tried without changing something.
enum KernelVersion {
    /// Whether it is at least this one.
    static func isAtLeast(_ major: Int, _ minor: Int) throws(SystemCallError) -> Bool {
        let text = String(decoding: try readWholeFile("/proc/sys/kernel/osrelease"), as: UTF8.self)
        let numbers = text.split(whereSeparator: { !$0.isNumber }).prefix(2).compactMap { Int($0) }
        guard numbers.count == 2 else { return false }
        return (numbers[0], numbers[1]) >= (major, minor)
    }
}
