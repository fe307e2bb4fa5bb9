internal import Diagnostics

/// An option as it was met, with its argument.
struct Setting: Sendable {
    /// Which option.
    let option: Option
    /// False for `--no-NAME`.
    let isOn: Bool
    /// The argument, if any.
    let argument: Word?
    /// The option as it was written, for messages.
    let spelling: String

    /// Sets the option's field.
    func apply(to options: inout Options) throws(Failure) {
        try during(.step("option \(spelling)")) { () throws(Failure) in try option.apply(&options, argument, isOn) }
    }
}

/// A command line taken apart as getopt_long does: options and operands in any order, abbreviations, clusters of letters.
struct Scan: Sendable {
    /// The options, in order.
    var settings: [Setting] = []
    /// The words that are no options: action, sub-action, command.
    var operands: [Word] = []
    /// The first thing that could not be understood; the rest was scanned nevertheless, so that the log can be found.
    var failure: Failure?

    /// Takes the words after the program's name apart.
    init(_ words: [Word]) {
        var rest = words[...]
        while let word = rest.popFirst() {
            if word == "--" {
                operands += rest
                break
            }
            do throws(Failure) {
                if word.bytes.starts(with: [UInt8(ascii: "-"), UInt8(ascii: "-")]) {
                    settings.append(try Scan.long(word, &rest))
                } else if word.bytes.first == UInt8(ascii: "-"), word.bytes.count > 1 {
                    try cluster(word, &rest)
                } else {
                    operands.append(word)
                }
            } catch {
                failure = failure ?? error
            }
        }
    }

    /// Reads `--name`, `--name=argument` or `--name argument`.
    private static func long(_ word: Word, _ rest: inout ArraySlice<Word>) throws(Failure) -> Setting {
        let body = word.bytes.dropFirst(2)
        let sign = body.firstIndex(of: UInt8(ascii: "="))
        let name = String(decoding: body[..<(sign ?? body.endIndex)], as: UTF8.self)
        let attached = sign.map { Word(body[($0 + 1)...]) }
        let (option, isOn) = try find(name)
        let spelling = isOn ? "--\(option.name)" : "--no-\(option.name)"
        switch option.argument {
        case .none:
            guard attached == nil else { throw Failure(.usage, "option \(spelling) takes no argument") }
            return Setting(option: option, isOn: isOn, argument: nil, spelling: spelling)
        case .required(let what):
            guard let argument = attached ?? rest.popFirst() else {
                throw Failure(.usage, "option \(spelling) needs an argument: \(what)")
            }
            return Setting(option: option, isOn: isOn, argument: argument, spelling: spelling)
        case .optional:
            return Setting(option: option, isOn: isOn, argument: attached, spelling: spelling)
        }
    }

    /// Reads `-a`, `-abc`, `-aARGUMENT` or `-a ARGUMENT`.
    private mutating func cluster(_ word: Word, _ rest: inout ArraySlice<Word>) throws(Failure) {
        var letters = word.bytes.dropFirst()
        while let letter = letters.popFirst() {
            let spelling = "-" + String(decoding: [letter], as: UTF8.self)
            guard let option = Option.table.first(where: { $0.letter == letter }) else {
                throw Failure(.usage, "there is no option \(spelling)", advice: Scan.advice)
            }
            var argument = letters.isEmpty ? nil : Word(letters)
            switch option.argument {
            case .none:
                settings.append(Setting(option: option, isOn: true, argument: nil, spelling: spelling))
                continue
            case .required(let what):
                argument = argument ?? rest.popFirst()
                guard argument != nil else {
                    throw Failure(.usage, "option \(spelling) needs an argument: \(what)")
                }
            case .optional: break
            }
            settings.append(Setting(option: option, isOn: true, argument: argument, spelling: spelling))
            return
        }
    }

    private static let advice = "'--help' lists the options"

    /// The option of a name, of an unambiguous beginning of one, or of `no-` and either.
    static func find(_ name: String) throws(Failure) -> (option: Option, isOn: Bool) {
        var starts: [(option: Option, name: String, isOn: Bool)] = []
        var ours: [(option: Option, name: String, isOn: Bool)] = []
        for option in Option.table {
            if option.name == name { return (option, true) }
            if option.name.hasPrefix(name) {
                if option.isOurs {
                    ours.append((option, option.name, true))
                } else {
                    starts.append((option, option.name, true))
                }
            }
            guard option.negation != .none else { continue }
            let negated = "no-" + option.name
            if negated == name { return (option, false) }
            guard negated.hasPrefix(name) else { continue }
            if option.negation == .common {
                starts.append((option, negated, false))
            } else {
                ours.append((option, negated, false))
            }
        }
        if starts.isEmpty { starts = ours }
        guard let first = starts.first else {
            throw Failure(.usage, "there is no option --\(name)", advice: advice)
        }
        guard starts.count == 1 else {
            let names = starts.map { "--" + $0.name }.joined(separator: ", ")
            throw Failure(.usage, "option --\(name) could be any of \(names)", advice: "Write more of its name")
        }
        return (first.option, first.isOn)
    }
}
