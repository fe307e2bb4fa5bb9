internal import Synchronization
internal import SystemPackage

/// Stays of another thread in a mount namespace, for which it needs a root and a working directory of its own.
public enum MountVisit {
    private final class Outcome<R: Sendable>: Sendable {
        let value = Mutex<Result<R, SystemCallError>?>(nil)
    }

    /// Has a thread do something in a mount namespace, with its root as root and working directory.
    ///
    /// - Parameter namespace: a descriptor of it, as /proc/PID/ns/mnt opens it.
    public static func perform<R: Sendable>(
        in namespace: Int32, _ body: @escaping @Sendable () throws(SystemCallError) -> R
    ) throws(SystemCallError) -> R {
        let outcome = Outcome<R>()
        Background {
            let result = Result { () throws(SystemCallError) in
                try systemCall(.unshare, 0x200)  // CLONE_FS
                try systemCall(.setns, Int(namespace), 0x2_0000)  // CLONE_NEWNS
                return try body()
            }
            outcome.value.withLock { $0 = result }
        }.wait()
        guard let result = outcome.value.withLock({ $0 }) else { throw SystemCallError(.setns, .EAGAIN) }
        return try result.get()
    }

    /// A mount as it is found under a path, without what is mounted on it (`open_tree(2)`).
    public static func copy(_ path: [UInt8]) throws(SystemCallError) -> Descriptor {
        Descriptor(
            owning: try withCString(path) { (path) throws(SystemCallError) in
                Int32(try systemCall(.open_tree, Int(currentDirectory), path, 1 | 0o2000000))  // OPEN_TREE_CLONE
            })
    }

    /// The same in a copy of all mounts alone: of a namespace that belongs to another user namespace, whose mounts are locked in a
    /// copy of the namespace. Mounts that can't be bound are missing there.
    public static func open(
        _ path: [UInt8], withoutLocked hidden: [[UInt8]], in namespace: Int32
    ) throws(SystemCallError) -> Descriptor {
        let number = try perform(in: namespace) { () throws(SystemCallError) in
            let tree = Descriptor(
                owning: try withCString([0x2f]) { (root) throws(SystemCallError) in
                    // OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
                    Int32(try systemCall(.open_tree, Int(currentDirectory), root, 0o2000001 | 0x8000))
                })
            let number = Int(tree.number)
            try change(tree.number, propagation: 1 << 18, isWhole: true)
            try systemCall(.unshare, 0x2_0000)
            try withCString([0x2f]) { (root) throws(SystemCallError) in
                try systemCall(.mount, 0, root, 0, 0x44000, 0)  // MS_REC | MS_PRIVATE
                try withCString([]) { (nothing) throws(SystemCallError) in
                    // MOVE_MOUNT_F_EMPTY_PATH
                    _ = try systemCall(.move_mount, number, nothing, Int(currentDirectory), root, 4)
                }
            }
            try systemCall(.fchdir, number)
            try withCString([0x2e]) { (here) throws(SystemCallError) in try systemCall(.chroot, here) }
            for path in hidden {
                try withCString(path) { (path) throws(SystemCallError) in try systemCall(.umount2, path, 2) }
            }
            return try openFile(path, [.path, .directory]).release()
        }
        return Descriptor(owning: number)
    }

    /// Changes whom a mount tells of mounts, and who tells it (`mount_setattr(2)`): `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`.
    ///
    /// - Parameter isWhole: and those of all mounts below it.
    public static func change(_ mount: Int32, propagation: UInt64, isWhole: Bool = false) throws(SystemCallError) {
        try setAttributes(of: mount, propagation: propagation, isWhole: isWhole)
    }

    /// Sets and clears `MOUNT_ATTR_*` bits (`mount_setattr(2)`).
    private static func setAttributes(
        of mount: Int32, set: UInt64 = 0, clear: UInt64 = 0, propagation: UInt64 = 0, isWhole: Bool = false
    ) throws(SystemCallError) {
        var change = (set, clear, propagation, UInt64(0))  // struct mount_attr
        let flags = isWhole ? 0x9000 : 0x1000  // AT_RECURSIVE, AT_EMPTY_PATH
        try withCString([]) { (nothing) throws(SystemCallError) in
            try withAddress(of: &change) { (change) throws(SystemCallError) in
                _ = try systemCall(.mount_setattr, Int(mount), nothing, flags, change, 32)
            }
        }
    }

    /// Has a thread open a directory in a copy of a mount namespace, without some mounts that would be in the way.
    ///
    /// - Parameter hidden: where they are mounted, those first that may hide others.
    public static func open(
        _ path: [UInt8], without hidden: [[UInt8]], in namespace: Int32
    ) throws(SystemCallError) -> Descriptor {
        let number = try perform(in: namespace) { () throws(SystemCallError) in
            try systemCall(.unshare, 0x2_0000)
            try withCString([0x2f]) { (root) throws(SystemCallError) in
                try systemCall(.mount, 0, root, 0, 0x44000, 0)  // MS_REC | MS_PRIVATE
            }
            for path in hidden {
                try withCString(path) { (path) throws(SystemCallError) in try systemCall(.umount2, path, 2) }
            }
            return try openFile(path, [.path, .directory]).release()
        }
        return Descriptor(owning: number)
    }

    /// Has a thread bind a file or directory to another place in a mount namespace, with the attributes of a mount.
    public static func bind(
        _ path: [UInt8], to point: [UInt8], set: UInt64, clear: UInt64, in namespace: Int32
    ) throws(SystemCallError) {
        try perform(in: namespace) { () throws(SystemCallError) in
            let copy = try copy(path)
            let (number, here) = (Int(copy.number), Int(currentDirectory))
            try setAttributes(of: copy.number, set: set, clear: clear)
            try withCString([]) { (nothing) throws(SystemCallError) in
                try withCString(point) { (point) throws(SystemCallError) in
                    _ = try systemCall(.move_mount, number, nothing, here, point, 4)  // MOVE_MOUNT_F_EMPTY_PATH
                }
            }
        }
    }

    /// Makes a mount read-only (`mount_setattr(2)`), which must be in the namespace that we are in.
    public static func makeReadOnly(_ mount: Int32) throws(SystemCallError) {
        try setAttributes(of: mount, set: 1)  // MOUNT_ATTR_RDONLY
    }

    /// Makes the file system read-only that is mounted somewhere (`fspick(2)`).
    public static func makeReadOnly(fileSystemOf mount: Int32) throws(SystemCallError) {
        let picked = Descriptor(
            owning: try withCString([]) { (nothing) throws(SystemCallError) in
                Int32(try systemCall(.fspick, Int(mount), nothing, 1 | 8))  // FSPICK_CLOEXEC, FSPICK_EMPTY_PATH
            })
        let number = Int(picked.number)
        try withCString(Array("ro".utf8)) { (option) throws(SystemCallError) in
            try systemCall(.fsconfig, number, 0, option, 0, 0)  // FSCONFIG_SET_FLAG
        }
        try systemCall(.fsconfig, number, 7, 0, 0, 0)  // FSCONFIG_CMD_RECONFIGURE
    }
}
