/// A process or thread id as the controller's pid namespace numbers it.
public struct TaskID: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    /// The number.
    public var rawValue: Int32
    /// Wraps a pid or tid.
    public init(rawValue: Int32) { self.rawValue = rawValue }
    /// Wraps a pid or tid.
    public init(_ number: Int32) { self.rawValue = number }
    /// The caller's own process, which never forks.
    public static let current = TaskID(Int32(clamping: (try? systemCall(.getpid)) ?? 0))
    /// Orders by number.
    public static func < (a: TaskID, b: TaskID) -> Bool { a.rawValue < b.rawValue }
    /// The number in decimal.
    public var description: String { String(rawValue) }
}

/// A descriptor number in another task's table; never usable here.
public struct RemoteDescriptor: Hashable, Comparable, Sendable {
    /// The index into that task's table.
    public var number: Int32
    /// Names a descriptor of another task.
    public init(_ number: Int32) { self.number = number }
    /// Orders by number.
    public static func < (a: RemoteDescriptor, b: RemoteDescriptor) -> Bool { a.number < b.number }
}

/// An address in some task's memory; never a pointer here.
public struct Address: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    /// The address in bytes.
    public var rawValue: UInt64
    /// Wraps an address.
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    /// Wraps an address.
    public init(_ value: UInt64) { self.rawValue = value }
    /// Orders by value.
    public static func < (a: Address, b: Address) -> Bool { a.rawValue < b.rawValue }
    /// Moves up by a number of bytes (wrapping, as the CPU does).
    public static func + (a: Address, bytes: UInt64) -> Address { Address(a.rawValue &+ bytes) }
    /// Hexadecimal, without prefix, as in /proc/PID/maps.
    public var description: String { String(rawValue, radix: 16) }
}

/// A half-open range of addresses.
public struct AddressRange: Hashable, Sendable, CustomStringConvertible {
    /// First address.
    public var start: Address
    /// One past the last.
    public var end: Address
    /// Makes a range. An `end` below `start` makes an empty one.
    public init(start: Address, end: Address) {
        self.start = start
        self.end = max(start, end)
    }
    /// Makes a range from raw addresses.
    public init(_ start: UInt64, _ end: UInt64) { self.init(start: Address(start), end: Address(end)) }
    /// Length in bytes.
    public var length: UInt64 { end.rawValue - start.rawValue }
    /// Whether the address lies inside.
    public func contains(_ address: Address) -> Bool { address >= start && address < end }
    /// Whether the two share an address.
    public func overlaps(_ other: AddressRange) -> Bool { start < other.end && other.start < end }
    /// `start-end`, as in /proc/PID/maps.
    public var description: String { "\(start)-\(end)" }
}

/// Bytes in a page on the running architecture.
public let pageSize: UInt64 = 4096
