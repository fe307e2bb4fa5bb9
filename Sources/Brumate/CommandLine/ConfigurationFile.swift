internal import Diagnostics
internal import Linux
internal import SystemPackage

/// Reads configuration files: an option a line, without its dashes.
///
/// `name`, `name value`, `name "value with \" and blanks"`, `name=value`; `#` outside of quotes begins a comment. In
/// contrast to the command line, an optional argument may follow after a blank, as CRIU's manual shows it.
enum ConfigurationFile {
    /// The settings in the text of a file, in order.
    static func settings(in text: [UInt8]) throws(Failure) -> [Setting] {
        var out: [Setting] = []
        var number = 0
        for line in text.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
            number += 1
            try during(.step("line \(number)")) { () throws(Failure) in
                if let setting = try setting(in: line) { out.append(setting) }
            }
        }
        return out
    }

    /// The settings in a file; none if there is no such file.
    static func settings(of path: FilePath) throws(Failure) -> [Setting]? {
        let text: [UInt8]
        do { text = try readWholeFile(path) } catch {
            if error.errno == .ENOENT || error.errno == .ENOTDIR { return nil }
            throw Failure(.usage, "can't read configuration file \(path)", cause: error)
        }
        return try during(.step("configuration file \(path)")) { () throws(Failure) in try settings(in: text) }
    }

    /// The setting in one line, if any.
    private static func setting(in line: ArraySlice<UInt8>) throws(Failure) -> Setting? {
        let words = try split(line)
        guard let first = words.first else { return nil }
        let sign = first.bytes.firstIndex(of: UInt8(ascii: "="))
        let name = String(decoding: first.bytes[..<(sign ?? first.bytes.endIndex)], as: UTF8.self)
        var values = words.dropFirst()
        if let sign { values.insert(Word(first.bytes[(sign + 1)...]), at: values.startIndex) }
        guard values.count <= 1 else {
            throw Failure(.usage, "'\(name)' has more than one value", advice: "Put quotes around a value with blanks")
        }
        let (option, isOn) = try Scan.find(name)
        switch option.argument {
        case .none:
            if let value = values.first { throw Failure(.usage, "'\(name)' takes no value, but '\(value)' follows") }
        case .required(let what):
            if values.isEmpty { throw Failure(.usage, "'\(name)' needs a value: \(what)") }
        case .optional: break
        }
        return Setting(option: option, isOn: isOn, argument: values.first, spelling: name)
    }

    /// The words of a line, without comment, quotes and escapes.
    private static func split(_ line: ArraySlice<UInt8>) throws(Failure) -> [Word] {
        var words: [Word] = []
        var current: [UInt8]?
        var rest = line
        while let byte = rest.popFirst() {
            switch byte {
            case UInt8(ascii: "#"):
                rest = []
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\r"), 0x0b, 0x0c:
                if let word = current { words.append(Word(word)) }
                current = nil
            case UInt8(ascii: "\"") where current == nil || current?.last == UInt8(ascii: "="):
                words.append(Word((current ?? []) + (try quoted(&rest))))
                current = nil
            default:
                current = (current ?? []) + [byte]
            }
        }
        if let word = current { words.append(Word(word)) }
        return words
    }

    /// The text up to the closing quote. A backslash means something before a quote only.
    private static func quoted(_ rest: inout ArraySlice<UInt8>) throws(Failure) -> [UInt8] {
        var out: [UInt8] = []
        while let byte = rest.popFirst() {
            if byte == UInt8(ascii: "\"") { return out }
            if byte == UInt8(ascii: "\\"), rest.first == UInt8(ascii: "\"") {
                rest.removeFirst()
                out.append(UInt8(ascii: "\""))
            } else {
                out.append(byte)
            }
        }
        throw Failure(.usage, "a quote is not closed")
    }
}
