internal import CLinux
public import SystemPackage

/// An open descriptor of this process, closed exactly once.
public struct Descriptor: ~Copyable, Sendable {
    /// The number in this process's table.
    public let number: Int32

    /// Takes ownership of an open descriptor.
    public init(owning number: Int32) { self.number = number }

    deinit { _ = clinux_syscall(SystemCall.close.rawValue, Int(number), 0, 0, 0, 0, 0) }

    /// Closes now, reporting what `close(2)` says.
    public consuming func close() throws(SystemCallError) {
        let raw = release()
        try systemCall(.close, Int(raw))
    }

    /// Gives up ownership: the caller closes the number.
    public consuming func release() -> Int32 {
        let raw = number
        discard self
        return raw
    }

    /// Makes the table large enough for so many further descriptors. Where several threads use it, the kernel waits for an RCU
    /// grace period, 6 to 16 ms, each time that it grows.
    public static func makeRoom(for count: Int) {
        guard let file = try? openFile("/dev/null") else { return }
        _ = try? file.duplicate(atLeast: file.number + Int32(clamping: min(count, 1 << 20)))
    }

    /// How many we may have open (`RLIMIT_NOFILE`), at most a million.
    public static func limit() -> Int {
        var limit: (UInt64, UInt64) = (0, 0)
        _ = try? withAddress(of: &limit) { (address) throws(SystemCallError) in
            try systemCall(.prlimit64, 0, 7, 0, address)
        }
        return Int(clamping: min(limit.0, 1 << 20))
    }

    /// A second descriptor of the same open file description, close-on-exec (`F_DUPFD_CLOEXEC`).
    public borrowing func duplicate(atLeast lowest: Int32 = 3) throws(SystemCallError) -> Descriptor {
        Descriptor(owning: Int32(try systemCall(.fcntl, Int(number), 1030, Int(lowest))))
    }
}

/// Flags of `open(2)`, by the kernel's values.
public struct OpenFlags: OptionSet, Hashable, Sendable {
    /// The bits of `O_*`.
    public var rawValue: Int32
    /// Wraps `O_*` bits.
    public init(rawValue: Int32) { self.rawValue = rawValue }
    /// `O_RDONLY`.
    public static let readOnly = OpenFlags([])
    /// `O_WRONLY`.
    public static let writeOnly = OpenFlags(rawValue: 0o1)
    /// `O_RDWR`.
    public static let readWrite = OpenFlags(rawValue: 0o2)
    /// `O_CREAT`.
    public static let create = OpenFlags(rawValue: 0o100)
    /// `O_EXCL`.
    public static let exclusive = OpenFlags(rawValue: 0o200)
    /// `O_NOCTTY`.
    public static let noControllingTerminal = OpenFlags(rawValue: 0o400)
    /// `O_TRUNC`.
    public static let truncate = OpenFlags(rawValue: 0o1000)
    /// `O_APPEND`.
    public static let append = OpenFlags(rawValue: 0o2000)
    /// `O_NONBLOCK`.
    public static let nonBlocking = OpenFlags(rawValue: 0o4000)
    /// `O_DIRECT`.
    public static let direct = OpenFlags(rawValue: 0o40000)
    /// `O_LARGEFILE`, which the kernel sets by itself on 64-bit machines.
    public static let largeFile = OpenFlags(rawValue: 0o100000)
    /// `O_DIRECTORY`.
    public static let directory = OpenFlags(rawValue: 0o200000)
    /// `O_NOFOLLOW`.
    public static let noFollow = OpenFlags(rawValue: 0o400000)
    /// `O_CLOEXEC`.
    public static let closeOnExec = OpenFlags(rawValue: 0o2000000)
    /// `O_PATH`.
    public static let path = OpenFlags(rawValue: 0o10000000)
}

/// Calls `body` with the path as the kernel wants it, a zero-terminated string at an address.
@discardableResult
public func withPath<R>(_ path: FilePath, _ body: (Int) throws(SystemCallError) -> R) throws(SystemCallError) -> R {
    // The closure-taking call of swift-system rethrows untyped errors; a Result carries the typed one across.
    let outcome: Result<R, SystemCallError> = unsafe path.withPlatformString { string in
        do throws(SystemCallError) { return .success(try body(Int(bitPattern: string))) } catch {
            return .failure(error)
        }
    }
    return try outcome.get()
}

/// The directory number that stands for the working directory (`AT_FDCWD`).
public let currentDirectory: Int32 = -100

/// Opens a path (`openat(2)`), close-on-exec.
///
/// - Parameters:
///   - path: relative ones start at `directory`.
///   - mode: permission bits of a file that is created.
public func openFile(
    _ path: FilePath, _ flags: OpenFlags = .readOnly, mode: UInt32 = 0o600, in directory: Int32 = currentDirectory
) throws(SystemCallError) -> Descriptor {
    Descriptor(
        owning: try withPath(path) { (address) throws(SystemCallError) in
            try openFile(at: address, flags, mode, directory)
        })
}

/// Opens a path of raw bytes.
public func openFile(
    _ path: [UInt8], _ flags: OpenFlags = .readOnly, mode: UInt32 = 0o600, in directory: Int32 = currentDirectory
) throws(SystemCallError) -> Descriptor {
    Descriptor(
        owning: try withCString(path) { (address) throws(SystemCallError) in
            try openFile(at: address, flags, mode, directory)
        })
}

private func openFile(
    at address: Int, _ flags: OpenFlags, _ mode: UInt32, _ directory: Int32
) throws(SystemCallError) -> Int32 {
    Int32(
        try systemCall(
            .openat, Int(directory), address, Int(flags.union([.closeOnExec, .largeFile]).rawValue), Int(mode)))
}

/// Opens a path that is known to be text, such as one in /proc.
public func openFile(
    _ path: String, _ flags: OpenFlags = .readOnly, mode: UInt32 = 0o600, in directory: Int32 = currentDirectory
) throws(SystemCallError) -> Descriptor {
    Descriptor(
        owning: try withCString(path) { (address) throws(SystemCallError) in
            try openFile(at: address, flags, mode, directory)
        })
}

/// Reads a whole file whose path is known to be text.
public func readWholeFile(_ path: String, in directory: Int32 = currentDirectory) throws(SystemCallError) -> [UInt8] {
    try readWholeFile(FilePath(ourPath(path)), in: directory)
}

/// The numbers among the names in a directory whose path is known to be text.
public func listNumbers(
    _ path: String, in directory: Int32 = currentDirectory, most: Int = .max
) throws(SystemCallError) -> [Int32] {
    try listNumbers(FilePath(ourPath(path)), in: directory, most: most)
}

/// The target of a link whose path is known to be text.
public func readLink(_ path: String, in directory: Int32 = currentDirectory) throws(SystemCallError) -> FilePath {
    try readLink(FilePath(ourPath(path)), in: directory)
}

/// The target of a symbolic link, or of a magic link in /proc (`readlinkat(2)`).
public func readLink(_ path: FilePath, in directory: Int32 = currentDirectory) throws(SystemCallError) -> FilePath {
    FilePath(
        bytes: try withPath(path) { (address) throws(SystemCallError) in try linkTarget(at: address, directory) })
}

/// The target of a link as raw bytes.
public func linkTarget(_ path: String, in directory: Int32 = currentDirectory) throws(SystemCallError) -> [UInt8] {
    try withCString(path) { (address) throws(SystemCallError) in try linkTarget(at: address, directory) }
}

private func linkTarget(at address: Int, _ directory: Int32) throws(SystemCallError) -> [UInt8] {
    var room = 512
    while true {
        var bytes = [UInt8](repeating: 0, count: room)
        let length = try bytes.withAddress { (buffer, count) throws(SystemCallError) in
            try systemCall(.readlinkat, Int(directory), address, buffer, count)
        }
        if length < room {
            bytes.removeLast(room - length)
            return bytes
        }
        room *= 4
    }
}

extension FilePath {
    /// A path of these bytes, up to the first zero.
    public init(bytes: some Collection<UInt8>) {
        var characters = bytes.prefix { $0 != 0 }.map { CChar(bitPattern: $0) }
        characters.append(0)
        self.init(platformString: characters)
    }

    /// The bytes without the terminating zero.
    public var bytes: [UInt8] {
        unsafe withPlatformString { string in
            var out: [UInt8] = []
            var next = unsafe string
            while unsafe next.pointee != 0 {
                unsafe out.append(UInt8(bitPattern: next.pointee))
                unsafe next += 1
            }
            return out
        }
    }
}

extension Array {
    /// Calls `body` with the address and the size in bytes of the elements, for a system call to write or read.
    @discardableResult
    public mutating func withAddress<R, E: Error>(_ body: (Int, Int) throws(E) -> R) throws(E) -> R
    where Element: BitwiseCopyable {
        let outcome: Result<R, E> = unsafe withUnsafeMutableBytes { buffer in
            do throws(E) {
                return .success(try body(Int(bitPattern: buffer.baseAddress), buffer.count))
            } catch {
                return .failure(error)
            }
        }
        return try outcome.get()
    }

    /// Calls `body` with the address and the size in bytes of the elements, for a system call to read.
    @discardableResult
    public func withConstantAddress<R, E: Error>(_ body: (Int, Int) throws(E) -> R) throws(E) -> R
    where Element: BitwiseCopyable {
        let outcome: Result<R, E> = unsafe withUnsafeBytes { buffer in
            do throws(E) {
                return .success(try body(Int(bitPattern: buffer.baseAddress), buffer.count))
            } catch {
                return .failure(error)
            }
        }
        return try outcome.get()
    }
}

/// Calls `body` with the address of a value, for a system call to fill or read.
@discardableResult
public func withAddress<T: BitwiseCopyable, R>(
    of value: inout T, _ body: (Int) throws(SystemCallError) -> R
) throws(SystemCallError) -> R {
    try unsafe withUnsafeMutablePointer(to: &value) { (pointer) throws(SystemCallError) in
        try body(Int(bitPattern: pointer))
    }
}

/// An open descriptor that several have, closed when the last of them gives it up.
public final class SharedDescriptor: Sendable {
    private let owned: Descriptor
    /// The number in this process's table.
    public var number: Int32 { owned.number }
    /// Takes ownership of an open descriptor.
    public init(_ owned: consuming Descriptor) { self.owned = owned }
}

/// Reads a whole file whose size is not known beforehand, as those of /proc.
public func readWholeFile(_ path: FilePath, in directory: Int32 = currentDirectory) throws(SystemCallError) -> [UInt8] {
    let file = try openFile(path, in: directory)
    return try readToEnd(file)
}

/// Reads from the current offset to the end.
public func readToEnd(_ file: borrowing Descriptor) throws(SystemCallError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 4096)
    var length = 0
    while true {
        if length == bytes.count { bytes.append(contentsOf: [UInt8](repeating: 0, count: bytes.count)) }
        let number = Int(file.number)
        let offset = length
        let got = try bytes.withAddress { (buffer, count) throws(SystemCallError) in
            try systemCall(.read, number, buffer + offset, count - offset)
        }
        if got == 0 { break }
        length += got
    }
    bytes.removeLast(bytes.count - length)
    return bytes
}

/// Writes all bytes at the current offset.
public func writeAll(_ bytes: [UInt8], to file: Int32) throws(SystemCallError) {
    try bytes.withConstantAddress { (buffer, count) throws(SystemCallError) in
        var done = 0
        while done < count { done += try systemCall(.write, Int(file), buffer + done, count - done) }
    }
}

/// The names in a directory without `.` and `..` (`getdents64(2)`).
public func listDirectory(_ path: FilePath, in directory: Int32 = currentDirectory) throws(SystemCallError)
    -> [FilePath]
{
    var names: [FilePath] = []
    try forEachName(path, in: directory) { name in
        if !name.elementsEqual([0x2e]) && !name.elementsEqual([0x2e, 0x2e]) { names.append(FilePath(bytes: name)) }
        return true
    }
    return names
}

/// Calls `body` with each name in a directory until it returns false.
private func forEachName(
    _ path: FilePath, in directory: Int32, _ body: (ArraySlice<UInt8>) -> Bool
) throws(SystemCallError) {
    let folder = try openFile(path, [.directory], in: directory)
    var buffer = [UInt8](repeating: 0, count: 32768)
    while true {
        let number = Int(folder.number)
        let length = try buffer.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.getdents64, number, address, count)
        }
        if length == 0 { return }
        var at = 0
        while at + 19 <= length {
            let record = Int(buffer[at + 16]) | Int(buffer[at + 17]) << 8
            guard record >= 20, at + record <= length else { break }
            if !body(buffer[(at + 19)..<(at + record)].prefix { $0 != 0 }) { return }
            at += record
        }
    }
}

/// The numbers among the names in a directory, ascending: the tasks in /proc, the descriptors in /proc/PID/fd.
///
/// - Parameter most: how many are enough; which ones the directory's order says.
public func listNumbers(
    _ path: FilePath, in directory: Int32 = currentDirectory, most: Int = .max
) throws(SystemCallError) -> [Int32] {
    var numbers: [Int32] = []
    try forEachName(path, in: directory) { name in
        var number: Int32 = 0
        for digit in name {
            let (product, overflows) = number.multipliedReportingOverflow(by: 10)
            guard digit >= 0x30, digit <= 0x39, !overflows else { return true }
            let (sum, overflowsToo) = product.addingReportingOverflow(Int32(digit - 0x30))
            guard !overflowsToo else { return true }
            number = sum
        }
        if !name.isEmpty { numbers.append(number) }
        return numbers.count < most
    }
    return numbers.sorted()
}
