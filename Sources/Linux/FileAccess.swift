public import SystemPackage

/// Reads at an offset into memory of ours until `count` bytes are there or the file ends (`pread64(2)`).
///
/// - Returns: the number of bytes read.
public func readFully(_ file: Int32, into address: Int, count: Int, at offset: UInt64) throws(SystemCallError) -> Int {
    var done = 0
    while done < count {
        let got = try systemCall(
            .pread64, Int(file), address + done, count - done, Int(bitPattern: UInt(offset)) + done)
        if got == 0 { break }
        done += got
    }
    return done
}

/// Writes `count` bytes of our memory at an offset (`pwrite64(2)`).
public func writeFully(_ file: Int32, from address: Int, count: Int, at offset: UInt64) throws(SystemCallError) {
    var done = 0
    while done < count {
        done += try systemCall(
            .pwrite64, Int(file), address + done, count - done, Int(bitPattern: UInt(offset)) + done)
    }
}

/// Sleeps for less than a second (`nanosleep(2)`).
public func pause(nanoseconds: Int) {
    var pause: (Int, Int) = (0, nanoseconds)
    _ = try? withAddress(of: &pause) { (address) throws(SystemCallError) in try systemCall(.nanosleep, address, 0) }
}

/// Removes a name (`unlinkat(2)`).
public func removeName(
    _ path: FilePath, isDirectory: Bool = false, in directory: Int32 = currentDirectory
) throws(SystemCallError) {
    try withPath(path) { (address) throws(SystemCallError) in
        try systemCall(.unlinkat, Int(directory), address, isDirectory ? 0x200 : 0)
    }
}

/// Sets the flags of an open file description that can change (`F_SETFL`): not access mode and close-on-exec.
public func setStatusFlags(_ file: Int32, _ flags: UInt32) throws(SystemCallError) {
    try systemCall(.fcntl, Int(file), 4, Int(flags & ~0o2000003))
}

/// Where a file has data (`SEEK_DATA`), as ranges of offsets up to `size`. A file that can't tell is all data.
///
/// Moves the offset of the description.
public func dataRanges(of file: Int32, size: UInt64) throws(SystemCallError) -> [AddressRange] {
    var found: [AddressRange] = []
    var at: UInt64 = 0
    while at < size {
        do throws(SystemCallError) {
            let start = try systemCall(.lseek, Int(file), Int(at), 3)
            let end = try systemCall(.lseek, Int(file), start, 4)
            found.append(AddressRange(UInt64(start), min(UInt64(end), size)))
            at = max(UInt64(end), at + 1)
        } catch {
            if error.errno == .ENXIO { break }
            if error.errno == .EINVAL { return [AddressRange(0, size)] }
            throw error
        }
    }
    return found
}

/// What kind of file system a file is on (`fstatfs(2)`).
public struct FileSystem: Hashable, Sendable {
    /// The kernel's magic number of the kind.
    public var magic: UInt64
    /// Bytes of a block; for hugetlbfs the size of its pages.
    public var blockSize: UInt64

    /// Of procfs.
    public static let proc: UInt64 = 0x9fa0
    /// Of tmpfs.
    public static let temporary: UInt64 = 0x0102_1994
    /// Of hugetlbfs.
    public static let hugePages: UInt64 = 0x9584_58f6
    /// Of overlayfs.
    public static let overlay: UInt64 = 0x794c_7630

    /// The file system of an open file.
    public static func of(_ file: Int32) throws(SystemCallError) -> FileSystem {
        var words = [UInt64](repeating: 0, count: 16)
        try words.withAddress { (address, _) throws(SystemCallError) in try systemCall(.fstatfs, Int(file), address) }
        return FileSystem(magic: words[0], blockSize: words[1])
    }

    /// The size of a page of a file in memory: more than the machine's if it is one of hugetlbfs.
    public static func pageUnit(of file: Int32) throws(SystemCallError) -> UInt64 {
        let system = try of(file)
        return system.magic == hugePages ? system.blockSize : pageSize
    }
}

/// A file system in memory that is mounted nowhere and ends with the last descriptor in it (`fsmount(2)` of a tmpfs).
///
/// - Parameter size: most bytes that it can hold, 0 for any number.
/// - Returns: its root directory.
public func detachedFileSystem(size: UInt64) throws(SystemCallError) -> Descriptor {
    let context = Descriptor(
        owning: try withCString("tmpfs") { (name) throws(SystemCallError) in
            Int32(try systemCall(.fsopen, name, 1))  // FSOPEN_CLOEXEC
        })
    let number = Int(context.number)
    for (key, value) in [("size", "\(size)"), ("mode", "700")] {
        try withCString(key) { (key) throws(SystemCallError) in
            try withCString(value) { (value) throws(SystemCallError) in
                try systemCall(.fsconfig, number, 1, key, value, 0)  // FSCONFIG_SET_STRING
            }
        }
    }
    try systemCall(.fsconfig, number, 6, 0, 0, 0)  // FSCONFIG_CMD_CREATE
    return Descriptor(owning: Int32(try systemCall(.fsmount, number, 1, 0)))  // FSMOUNT_CLOEXEC
}

/// An option of a socket that is a number (`getsockopt(2)`).
public func socketOption(_ socket: Int32, level: Int = 1, _ option: Int) throws(SystemCallError) -> Int32 {
    var value: (Int32, UInt32) = (0, 4)
    try withAddress(of: &value) { (address) throws(SystemCallError) in
        try systemCall(.getsockopt, Int(socket), level, option, address, address + 4)
    }
    return value.0
}

/// What is true of a descriptor, of `events` (`POLL*`) and of what is always told: errors and hang-ups (`poll(2)`).
///
/// - Parameter milliseconds: how long to wait until something is, -1 for ever. 0, the default, only looks.
public func poll(_ number: Int32, for events: Int16, milliseconds: Int = 0) throws(SystemCallError) -> Int16 {
    var question: (number: Int32, events: Int16, found: Int16) = (number, events, 0)  // struct pollfd
    try withAddress(of: &question) { (question) throws(SystemCallError) in
        try systemCall(.poll, question, 1, milliseconds)
    }
    return question.found
}

/// Bytes of the system's memory that lines of /proc/meminfo tell, in all; 0 where it can't be read.
///
/// - Parameter lines: their names, with the colon.
public func systemMemory(_ lines: String...) -> UInt64 {
    ((try? readWholeFile("/proc/meminfo")) ?? []).split(separator: 0x0a)
        .filter { line in lines.contains { line.starts(with: $0.utf8) } }
        .reduce(0) { sum, line in
            let digits = line.filter { $0 >= 0x30 && $0 <= 0x39 }
            return sum + (UInt64(String(decoding: digits, as: UTF8.self)) ?? 0) << 10
        }
}

/// Waits until one of several descriptors can be read, or reports an error or a hang-up (`poll(2)`).
///
/// - Parameters:
///   - numbers: descriptors; negative ones are left out.
///   - milliseconds: how long to wait, -1 for ever.
/// - Returns: for each, what is true of it (`POLL*`).
public func pollForInput(_ numbers: [Int32], milliseconds: Int) throws(SystemCallError) -> [Int16] {
    // struct pollfd: a number, and two halves with POLLIN and what is found
    var entries = numbers.map { UInt64(UInt32(bitPattern: $0)) | 1 << 32 }
    try entries.withAddress { (address, size) throws(SystemCallError) in
        _ = try systemCall(.poll, address, size / 8, milliseconds)
    }
    return entries.map { Int16(truncatingIfNeeded: $0 >> 48) }
}

/// Sets an option of a socket that is a number (`setsockopt(2)`).
public func setSocketOption(_ socket: Int32, level: Int = 1, _ option: Int, _ value: Int32) throws(SystemCallError) {
    var value = value
    try withAddress(of: &value) { (address) throws(SystemCallError) in
        try systemCall(.setsockopt, Int(socket), level, option, address, 4)
    }
}

/// A file in memory that holds some bytes, at its beginning (`memfd_create(2)`, close-on-exec).
public func memoryFile(_ name: String, holding bytes: [UInt8] = []) throws(SystemCallError) -> Descriptor {
    let file = Descriptor(
        owning: Int32(
            try withCString(name) { (name) throws(SystemCallError) in
                try systemCall(.memfd_create, name, 1)
            }))
    try writeAll(bytes, to: file.number)
    try systemCall(.lseek, Int(file.number), 0, 0)
    return file
}
