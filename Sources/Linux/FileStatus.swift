/// What stat(2) says of a file, by `statx(2)`.
public struct FileStatus: Hashable, Sendable {
    /// Type and permission bits.
    public var mode: UInt32 = 0
    /// Number of names.
    public var links: UInt32 = 0
    /// Owner.
    public var uid: UInt32 = 0, gid: UInt32 = 0
    /// Inode number, size in bytes, and blocks of 512 bytes in use.
    public var inode: UInt64 = 0, size: UInt64 = 0, blocks: UInt64 = 0
    /// The device that holds the inode, in the C library's encoding.
    public var device: UInt64 = 0
    /// The device that the inode stands for, in the C library's encoding.
    public var representedDevice: UInt64 = 0
    /// Seconds and nanoseconds of the last access and the last change of contents.
    public var accessed: (seconds: Int64, nanoseconds: UInt32) { (accessSeconds, accessNanoseconds) }
    /// Seconds and nanoseconds of the last change of contents.
    public var modified: (seconds: Int64, nanoseconds: UInt32) { (modifySeconds, modifyNanoseconds) }
    private var accessSeconds: Int64 = 0, accessNanoseconds: UInt32 = 0
    private var modifySeconds: Int64 = 0, modifyNanoseconds: UInt32 = 0
    /// The mount, as in mountinfo.
    public var mountID: Int32 = -1

    /// The type bits of `mode`.
    public enum Kind: UInt32, Sendable {
        /// A fifo or pipe.
        case fifo = 0o010000
        /// A character device.
        case characterDevice = 0o020000
        /// A directory.
        case directory = 0o040000
        /// A block device.
        case blockDevice = 0o060000
        /// A regular file.
        case regular = 0o100000
        /// A symbolic link.
        case symbolicLink = 0o120000
        /// A socket.
        case socket = 0o140000
    }
    /// The file's type; nil for anonymous inodes, which have none.
    public var kind: Kind? { Kind(rawValue: mode & 0o170000) }
    /// Major number of `representedDevice`.
    public var representedMajor: UInt32 { FileStatus.major(representedDevice) }
    /// Minor number of `representedDevice`.
    public var representedMinor: UInt32 { FileStatus.minor(representedDevice) }

    private static func major(_ device: UInt64) -> UInt32 {
        UInt32(device >> 8 & 0xfff) | UInt32(device >> 32) & ~0xfff
    }
    private static func minor(_ device: UInt64) -> UInt32 {
        UInt32(device & 0xff) | UInt32(truncatingIfNeeded: device >> 12) & ~0xff
    }

    /// `device` in the kernel's own encoding: 12 bits of major and 20 of minor number.
    public var kernelDevice: UInt32 {
        FileStatus.major(device) << 20 | FileStatus.minor(device) & 0xfffff
    }

    /// Encodes a device number as the C library does.
    public static func device(major: UInt32, minor: UInt32) -> UInt64 {
        UInt64(minor & 0xff) | UInt64(major & 0xfff) << 8 | UInt64(minor & ~0xff) << 12 | UInt64(major & ~0xfff) << 32
    }

    /// The status of a path, or of an open descriptor with an empty path.
    ///
    /// - Parameter followsLink: what a symbolic link at the end names, instead of the link.
    public static func read(
        _ path: String = "", in directory: Int32, followsLink: Bool = true
    ) throws(SystemCallError) -> FileStatus {
        var room = [32 of UInt64](repeating: 0)
        let flags = path.isEmpty ? 0x1000 : followsLink ? 0 : 0x100  // AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW
        try withCString(path) { (path) throws(SystemCallError) in
            try withAddress(of: &room) { (address) throws(SystemCallError) in
                try systemCall(.statx, Int(directory), path, flags, 0x17ff, address)
            }
        }
        return FileStatus(words: room)
    }

    /// What is known of a device without looking at it.
    public init(mode: UInt32, representedDevice: UInt64) {
        (self.mode, self.representedDevice) = (mode, representedDevice)
    }

    private init(words w: [32 of UInt64]) {
        links = UInt32(truncatingIfNeeded: w[2])
        uid = UInt32(truncatingIfNeeded: w[2] >> 32)
        gid = UInt32(truncatingIfNeeded: w[3])
        mode = UInt32(w[3] >> 32 & 0xffff)
        inode = w[4]
        size = w[5]
        blocks = w[6]
        accessSeconds = Int64(bitPattern: w[8])
        accessNanoseconds = UInt32(truncatingIfNeeded: w[9])
        modifySeconds = Int64(bitPattern: w[14])
        modifyNanoseconds = UInt32(truncatingIfNeeded: w[15])
        representedDevice = FileStatus.device(
            major: UInt32(truncatingIfNeeded: w[16]), minor: UInt32(truncatingIfNeeded: w[16] >> 32))
        device = FileStatus.device(
            major: UInt32(truncatingIfNeeded: w[17]), minor: UInt32(truncatingIfNeeded: w[17] >> 32))
        mountID = Int32(truncatingIfNeeded: w[18])
    }
}

/// Calls `body` with the address of a zero-terminated string.
@discardableResult
public func withCString<R>(_ text: String, _ body: (Int) throws(SystemCallError) -> R) throws(SystemCallError) -> R {
    let outcome: Result<R, SystemCallError> = unsafe ourPath(text).withCString { string in
        do throws(SystemCallError) { return .success(try body(Int(bitPattern: string))) } catch {
            return .failure(error)
        }
    }
    return try outcome.get()
}

/// Calls `body` with the address of a zero-terminated copy of some bytes, as paths are.
@discardableResult
public func withCString<R>(_ bytes: [UInt8], _ body: (Int) throws(SystemCallError) -> R) throws(SystemCallError) -> R {
    let terminated = bytes + [0]
    return try terminated.withConstantAddress { (address, _) throws(SystemCallError) in try body(address) }
}
