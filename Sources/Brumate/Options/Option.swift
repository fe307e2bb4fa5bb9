internal import Diagnostics
internal import Engine
internal import Kinds

/// One option: how it is written, what it means, what it sets, and since when it works.
///
/// Command line, configuration files and help text are all made from ``Option/table``.
struct Option: Sendable {
    /// What follows the name.
    enum Argument: Hashable, Sendable {
        /// Nothing.
        case none
        /// A word, attached or the next one; how the help calls it.
        case required(String)
        /// A word attached by `=`, or to the letter.
        case optional(String)
    }

    /// Whether an order that uses the option can be carried out.
    enum Support: Sendable {
        /// It can, or the option changes nothing that we do.
        case supported
        /// It can't before an issue is done; an order is refused when it is one of these and the options say so.
        case later(String, on: [Action], when: @Sendable (Options) -> Bool)
    }

    /// Where the help lists it.
    enum Heading: String, CaseIterable, Sendable {
        case general = "Dump and restore"
        case external = "Resources outside of the tree"
        case files = "Files and other kernel objects"
        case cgroups = "Control groups"
        case namespaces = "Namespaces, mounts and security labels"
        case network = "Network"
        case memory = "Memory"
        case check = "Check"
        case log = "Log"
        case servers = "Page server and service"
        case configuration = "Configuration files"
        case other = "Other"
    }

    /// Whether `--no-NAME` exists.
    enum Negation: Sendable {
        /// It does not.
        case none
        /// CRIU has it as well.
        case common
        /// Only we have it; it never makes one of CRIU's abbreviations ambiguous.
        case ours
    }

    /// The name after the two dashes.
    let name: String
    /// The ASCII letter after one dash.
    let letter: UInt8?
    /// What follows the name.
    let argument: Argument
    /// Where the help lists it.
    let heading: Heading
    /// The help text.
    let help: String
    /// Whether `--no-NAME` exists.
    let negation: Negation
    /// Since when it works.
    let support: Support
    /// Only we have it; it never makes one of CRIU's abbreviations ambiguous.
    var isOurs = false
    /// Sets the field: the argument, if any, and whether the option is switched on.
    let apply: @Sendable (inout Options, Word?, Bool) throws(Failure) -> Void

    /// A switch that CRIU negates as well.
    static func flag(
        _ name: String, _ letter: Character? = nil, _ heading: Heading, _ help: String,
        support: Support = .supported, _ set: @escaping @Sendable (inout Options, Bool) -> Void
    ) -> Option {
        flag(name, letter, heading, .common, help, support: support, set)
    }

    /// A switch.
    static func flag(
        _ name: String, _ letter: Character? = nil, _ heading: Heading, _ negation: Negation, _ help: String,
        support: Support = .supported, _ set: @escaping @Sendable (inout Options, Bool) -> Void
    ) -> Option {
        Option(
            name: name, letter: letter?.asciiValue, argument: .none, heading: heading, help: help, negation: negation,
            support: support, apply: { (options, _, isOn) throws(Failure) in set(&options, isOn) })
    }

    /// An option with an argument.
    static func value(
        _ name: String, _ letter: Character? = nil, _ argument: String, _ heading: Heading, _ help: String,
        support: Support = .supported, isOurs: Bool = false,
        _ set: @escaping @Sendable (inout Options, Word) throws(Failure) -> Void
    ) -> Option {
        Option(
            name: name, letter: letter?.asciiValue, argument: .required(argument), heading: heading, help: help,
            negation: .none, support: support, isOurs: isOurs,
            apply: { (options, word, _) throws(Failure) in
                if let word { try set(&options, word) }
            })
    }

    /// An option that may have an argument.
    static func optional(
        _ name: String, _ letter: Character? = nil, _ argument: String, _ heading: Heading, _ help: String,
        support: Support = .supported, _ set: @escaping @Sendable (inout Options, Word?) throws(Failure) -> Void
    ) -> Option {
        Option(
            name: name, letter: letter?.asciiValue, argument: .optional(argument), heading: heading, help: help,
            negation: .none, support: support,
            apply: { (options, word, _) throws(Failure) in try set(&options, word) })
    }
}

// MARK: Reading arguments

extension Word {
    /// A whole decimal number in a range.
    func number<T: FixedWidthInteger>(_ range: ClosedRange<T>, called what: String) throws(Failure) -> T {
        guard let number = T(text), range.contains(number) else {
            throw Failure(.usage, "'\(text)' is not \(what)")
        }
        return number
    }

    /// A number of bytes: digits, and K, M or G.
    func size() throws(Failure) -> UInt64 {
        var digits = text[...]
        var unit: UInt64 = 1
        switch digits.last {
        case "K", "k": unit = 1 << 10
        case "M", "m": unit = 1 << 20
        case "G", "g": unit = 1 << 30
        default: break
        }
        if unit > 1 { digits.removeLast() }
        guard let count = UInt64(digits) else {
            throw Failure(.usage, "'\(text)' is not a size such as 512K, 8M or 1G")
        }
        let (bytes, overflow) = count.multipliedReportingOverflow(by: unit)
        guard !overflow else { throw Failure(.usage, "'\(text)' is too large") }
        return bytes
    }

    /// One of the names of a choice.
    func choice<T: RawRepresentable & CaseIterable>(_ type: T.Type) throws(Failure) -> T where T.RawValue == String {
        guard let value = T(rawValue: text) else {
            let names = T.allCases.map(\.rawValue).joined(separator: ", ")
            throw Failure(.usage, "'\(text)' is none of \(names)")
        }
        return value
    }

    /// Two words around the first separator.
    func pair(_ separator: Character, as form: String) throws(Failure) -> Options.KeyedValue {
        let parts = text.split(separator: separator, maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2 else { throw Failure(.usage, "'\(text)' is not of the form \(form)") }
        return .init(key: String(parts[0]), value: String(parts[1]))
    }

    /// CRIU's reading of `-v`'s argument: more `v`s count up, anything else is a number, or 0.
    func verbosity(after current: Int) -> Int {
        if bytes.first == UInt8(ascii: "v") { return current + bytes.count + 1 }
        return Int(text.prefix { $0.isASCII && $0.isNumber }) ?? 0
    }

    /// `-`, a descriptor, `|COMMAND`, or a path.
    var streamPlace: StreamPlace {
        if self == "-" { return .standard }
        if let number = Int32(text), number >= 0 { return .descriptor(number) }
        return bytes.first == UInt8(ascii: "|") ? .command(String(text.dropFirst())) : .path(path)
    }

    /// `fd[N]:KEY`.
    func inheritedDescriptor() throws(Failure) -> Options.InheritedDescriptor {
        let form = "fd[NUMBER]:RESOURCE"
        guard let close = text.firstIndex(of: "]"), text.hasPrefix("fd[") else {
            throw Failure(.usage, "'\(text)' is not of the form \(form)")
        }
        let rest = text[text.index(after: close)...]
        guard let number = Int32(text[..<close].dropFirst(3)), number >= 0, rest.hasPrefix(":"), rest.count > 1 else {
            throw Failure(.usage, "'\(text)' is not of the form \(form)")
        }
        return .init(key: String(rest.dropFirst()), number: number)
    }

    /// `NS:TARGET[,EXTRA]`.
    func joinedNamespace() throws(Failure) -> Options.JoinedNamespace {
        let form = "NAMESPACE:PID or NAMESPACE:FILE"
        let pair = try pair(":", as: form)
        let kind: Options.JoinedNamespace.Kind = try Word(pair.key).choice(Options.JoinedNamespace.Kind.self)
        let parts = pair.value.split(separator: ",", maxSplits: 1, omittingEmptySubsequences: false)
        guard let target = parts.first, !target.isEmpty else {
            throw Failure(.usage, "'\(text)' is not of the form \(form)")
        }
        return .init(kind: kind, target: String(target), extra: parts.count > 1 ? String(parts[1]) : nil)
    }

    /// Adds and takes away CPU features as `CAP,^CAP` says.
    func apply(to capabilities: inout Options.CPUCapabilities) throws(Failure) {
        for part in text.split(separator: ",") {
            let name = part.drop { $0 == "^" }
            let isOn = (part.count - name.count).isMultiple(of: 2)
            let set: Options.CPUCapabilities
            switch name {
            case "fpu": set = .fpu
            case "cpu": set = .cpu
            case "ins": set = .instructions
            case "all": set = .all
            case "none":
                capabilities = isOn ? [] : .all
                continue
            default: throw Failure(.usage, "'\(name)' is none of all, cpu, fpu, ins, none")
            }
            if isOn { capabilities.formUnion(set) } else { capabilities.subtract(set) }
        }
        if !capabilities.isEmpty { capabilities.insert(.image) }
    }
}
