public import Diagnostics
internal import Glibc
internal import Linux

/// An address and port of TCP, as the kernel wants it.
public struct NetworkAddress: Hashable, Sendable, CustomStringConvertible {
    /// The bytes of a `sockaddr_in` or `sockaddr_in6`.
    let bytes: [UInt8]
    /// For messages.
    public let description: String

    /// `AF_INET` or `AF_INET6`.
    var family: Int { Int(bytes[0]) }

    private init(family: UInt8, _ port: UInt16, address: [UInt8], text: String) {
        let start = [family, 0, UInt8(port >> 8), UInt8(port & 0xff)]
        bytes =
            family == 2
            ? start + address + [UInt8](repeating: 0, count: 8) : start + [0, 0, 0, 0] + address + [0, 0, 0, 0]
        description = family == 2 ? "\(text):\(port)" : "[\(text)]:\(port)"
    }

    /// Any address of this machine, for listening; both families where the machine has both.
    public static func any(port: UInt16, isIPv6: Bool) -> NetworkAddress {
        NetworkAddress(
            family: isIPv6 ? 10 : 2, port, address: [UInt8](repeating: 0, count: isIPv6 ? 16 : 4),
            text: isIPv6 ? "::" : "0.0.0.0")
    }

    /// The address that a word stands for: a number, or a name in /etc/hosts. A static program has no other resolver.
    public init(_ word: String, port: UInt16) throws(Failure) {
        let numbers = [word] + NetworkAddress.hosts(named: word)
        for text in numbers {
            for (family, size) in [(2, 4), (10, 16)] as [(UInt8, Int)] {
                var address = [UInt8](repeating: 0, count: size)
                let isParsed = unsafe address.withUnsafeMutableBytes { room in
                    unsafe inet_pton(Int32(family), text, room.baseAddress) == 1
                }
                if isParsed {
                    self.init(family: family, port, address: address, text: text)
                    return
                }
            }
        }
        throw Failure(
            .usage, "the address '\(word)' is neither a number nor in /etc/hosts",
            advice: "Pass a numeric address: names of the DNS are not looked up")
    }

    private static func hosts(named word: String) -> [String] {
        let text = String(decoding: (try? readWholeFile("/etc/hosts")) ?? [], as: UTF8.self)
        return text.split(separator: "\n").compactMap { line in
            let fields = line.prefix { $0 != "#" }.split { $0 == " " || $0 == "\t" }
            return fields.dropFirst().contains { $0 == word } ? fields.first.map(String.init) : nil
        }
    }
}
