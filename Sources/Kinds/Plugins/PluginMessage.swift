/// A request to a plugin or its answer: a word, named values, and bytes that only the plugin understands.
///
/// On the wire: the length of the rest in 32 bits (little-endian), the word in a line, a line `name: value` for each value,
/// an empty line, the bytes. Newlines and backslashes of a value are written as in /proc, `\012` and `\134`.
public struct PluginMessage: Hashable, Sendable {
    /// What is asked, or whether it was done.
    public var word: String
    /// The values, in order; a name may occur several times.
    public private(set) var values: [Value] = []
    /// What only the plugin understands.
    public var state: [UInt8] = []

    /// A value and its name.
    public struct Value: Hashable, Sendable {
        /// The name.
        public var name: String
        /// The value, which may be a path of any bytes.
        public var bytes: [UInt8]
    }

    /// Longest message.
    static let longest = 16 << 20
    /// Longest part before the bytes.
    static let longestText = 64 << 10

    /// Begins a message.
    public init(_ word: String) { self.word = word }

    /// Adds a value.
    public mutating func add(_ name: String, _ value: String) { add(name, Array(value.utf8)) }

    /// Adds a value of any bytes.
    public mutating func add(_ name: String, _ bytes: [UInt8]) { values.append(Value(name: name, bytes: bytes)) }

    /// The values of a name as text.
    public func all(_ name: String) -> [String] {
        values.filter { $0.name == name }.map { String(decoding: $0.bytes, as: UTF8.self) }
    }

    /// The first value of a name as text.
    public func first(_ name: String) -> String? { all(name).first }

    /// The message without its length.
    public var encoded: [UInt8] {
        var out = Array(word.utf8) + [0x0a]
        for value in values {
            out += Array((value.name + ": ").utf8)
            for byte in value.bytes {
                if byte == 0x0a {
                    out += Array("\\012".utf8)
                } else if byte == 0x5c {
                    out += Array("\\134".utf8)
                } else {
                    out.append(byte)
                }
            }
            out.append(0x0a)
        }
        return out + [0x0a] + state
    }

    /// Reads a message; nil if it is none.
    public init?(decoding bytes: [UInt8]) {
        var lines: [ArraySlice<UInt8>] = []
        var at = 0
        while true {
            guard at < min(bytes.count, PluginMessage.longestText), let end = bytes[at...].firstIndex(of: 0x0a) else {
                return nil
            }
            let line = bytes[at..<end]
            at = end + 1
            if line.isEmpty { break }
            lines.append(line)
        }
        guard let first = lines.first else { return nil }
        word = String(decoding: first, as: UTF8.self)
        for line in lines.dropFirst() {
            guard let colon = line.firstIndex(of: 0x3a) else { return nil }
            let rest = line[(colon + 1)...].drop { $0 == 0x20 }
            add(String(decoding: line[..<colon], as: UTF8.self), PluginMessage.unescaped(rest))
        }
        state = Array(bytes[at...])
    }

    private static func unescaped(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        var out: [UInt8] = []
        var rest = bytes
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == 0x5c, digits.count == 3, let code = UInt8(String(decoding: digits, as: UTF8.self), radix: 8) {
                out.append(code)
                rest = rest.dropFirst(3)
            } else {
                out.append(byte)
            }
        }
        return out
    }
}
