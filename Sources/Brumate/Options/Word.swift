internal import Linux
public import SystemPackage

/// One word of the command line or of a configuration file: bytes that need not be valid UTF-8, because paths need not be.
public struct Word: Hashable, Sendable, ExpressibleByStringLiteral, CustomStringConvertible {
    /// The bytes, without a terminating zero.
    public var bytes: [UInt8]

    /// Wraps bytes.
    public init(_ bytes: some Sequence<UInt8>) { self.bytes = Array(bytes) }

    /// Wraps text.
    public init(_ text: String) { self.bytes = Array(text.utf8) }

    /// Wraps a literal.
    public init(stringLiteral text: String) { self.init(text) }

    /// The word as text; bytes that are not UTF-8 are replaced.
    public var text: String { String(decoding: bytes, as: UTF8.self) }

    /// The word as a path, byte by byte.
    public var path: FilePath { FilePath(bytes: bytes) }

    /// The text.
    public var description: String { text }
}
