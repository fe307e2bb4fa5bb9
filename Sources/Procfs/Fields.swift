internal import Linux

/// Reading numbers and words out of the text of /proc without making strings.
struct Fields {
    private let bytes: ArraySlice<UInt8>
    private(set) var at: Int

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        at = bytes.startIndex
    }

    var isAtEnd: Bool { at >= bytes.endIndex }
    var rest: ArraySlice<UInt8> { bytes[min(at, bytes.endIndex)...] }

    mutating func skipBlanks() {
        while at < bytes.endIndex, bytes[at] == 0x20 || bytes[at] == 0x09 { at += 1 }
    }

    mutating func skip(_ byte: UInt8) {
        if at < bytes.endIndex, bytes[at] == byte { at += 1 }
    }

    /// The next word, up to a blank or the end.
    mutating func word() -> ArraySlice<UInt8> {
        skipBlanks()
        let start = at
        while at < bytes.endIndex, bytes[at] != 0x20, bytes[at] != 0x09 { at += 1 }
        return bytes[start..<at]
    }

    /// A number in a base up to 16; nil if there is no digit.
    mutating func number(_ base: UInt64 = 10) -> UInt64? {
        skipBlanks()
        var value: UInt64 = 0
        let start = at
        while at < bytes.endIndex, let digit = Fields.digit(bytes[at]), digit < base {
            value = value &* base &+ digit
            at += 1
        }
        return at > start ? value : nil
    }

    mutating func signed() -> Int64? {
        skipBlanks()
        let negative = at < bytes.endIndex && bytes[at] == 0x2d
        if negative { at += 1 }
        return number().map { negative ? 0 &- Int64(bitPattern: $0) : Int64(bitPattern: $0) }
    }

    static func digit(_ byte: UInt8) -> UInt64? {
        switch byte {
        case 0x30...0x39: UInt64(byte - 0x30)
        case 0x61...0x66: UInt64(byte - 0x61 + 10)
        case 0x41...0x46: UInt64(byte - 0x41 + 10)
        default: nil
        }
    }

    /// All numbers up to the end.
    mutating func numbers(_ base: UInt64 = 10) -> [UInt64] {
        var all: [UInt64] = []
        while let next = number(base) { all.append(next) }
        return all
    }
}

/// Undoes the octal escapes (`\012`) that the kernel writes for blanks and control characters.
func unescaped(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
    guard bytes.contains(0x5c) else { return Array(bytes) }
    var out: [UInt8] = []
    var index = bytes.startIndex
    while index < bytes.endIndex {
        if bytes[index] == 0x5c, index + 3 < bytes.endIndex,
            let a = Fields.digit(bytes[index + 1]), let b = Fields.digit(bytes[index + 2]),
            let c = Fields.digit(bytes[index + 3]),
            a < 4, b < 8, c < 8
        {
            out.append(UInt8(a * 64 + b * 8 + c))
            index += 4
        } else {
            out.append(bytes[index])
            index += 1
        }
    }
    return out
}
