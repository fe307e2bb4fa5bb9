internal import CLinux

/// A system call of the kernel, by number. An open set: a number without a name here is still a valid value.
public struct SystemCall: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    /// The number in the table of the running architecture.
    public var rawValue: Int

    /// Names a system call by its number.
    public init(rawValue: Int) { self.rawValue = rawValue }

    init(_ number: Int32) { self.rawValue = Int(number) }

    /// The name as in `man 2 syscalls`, or `syscall N`.
    public var description: String { SystemCall.names[rawValue] ?? "syscall \(rawValue)" }
}

/// An error number of the kernel (`errno`). An open set.
public struct Errno: Error, RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    /// The positive error number.
    public var rawValue: Int32

    /// Wraps a positive error number.
    public init(rawValue: Int32) { self.rawValue = rawValue }

    init(_ number: Int) { self.rawValue = Int32(truncatingIfNeeded: number) }
}

/// A failed system call: which call, and the kernel's answer.
public struct SystemCallError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The call that failed.
    public var call: SystemCall
    /// Why.
    public var errno: Errno

    /// Pairs a call with its error.
    public init(_ call: SystemCall, _ errno: Errno) {
        self.call = call
        self.errno = errno
    }

    /// `openat: ENOENT (2)`.
    public var description: String { "\(call): \(errno)" }
}

/// Makes a raw system call; interrupted calls are made again.
///
/// - Returns: the kernel's non-negative answer.
/// - Throws: the call and the error number.
@discardableResult
public func systemCall(
    _ call: SystemCall, _ a: Int = 0, _ b: Int = 0, _ c: Int = 0, _ d: Int = 0, _ e: Int = 0, _ f: Int = 0
) throws(SystemCallError) -> Int {
    while true {
        let result = clinux_syscall(call.rawValue, a, b, c, d, e, f)
        if result >= 0 || result < -4095 { return result }
        if result == -4 { continue }  // EINTR
        throw SystemCallError(call, Errno(-result))
    }
}
