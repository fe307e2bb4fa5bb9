public import Diagnostics
internal import Linux
public import SystemPackage

/// What a command line says, together with the configuration files that it names or that are always read.
public struct Invocation: Sendable {
    /// What the user wants.
    public enum Request: Sendable, Equatable {
        /// The help text.
        case help
        /// The version.
        case version
        /// Something done.
        case order(Action)
    }

    /// What the user wants; nil if that could not be found out.
    public var request: Request?
    /// How it is to be done.
    public var options = Options()
    /// The words after the action: the command of `--exec-cmd`, the descriptor of `swrk`.
    public var operands: [Word] = []
    /// What was wrong with the words or a file. The options are filled as far as they could be understood, so that the
    /// failure can be logged where the user asked for it.
    public var failure: Failure?
    /// What to mention in the log.
    public var remarks: [String] = []

    /// Reads a command line.
    ///
    /// - Parameters:
    ///   - words: without the program's name.
    ///   - environment: gives `HOME`, `CRIU_CONFIG_FILE` and `CRIU_DEPRECATED`.
    ///   - machine: the configuration file of this machine.
    public init(
        _ words: [Word], environment: (String) -> Word? = { _ in nil }, machine: FilePath = "/etc/criu/default.conf"
    ) {
        let scan = Scan(words)
        failure = scan.failure
        if scan.settings.contains(where: { $0.option.name == "help" }) {
            request = .help
            failure = nil
            return
        }
        if scan.settings.contains(where: { $0.option.name == "version" }) {
            request = .version
            failure = nil
            return
        }
        if environment("CRIU_DEPRECATED") != nil { options.deprecated = true }
        for setting in configured(scan, environment, machine) + scan.settings {
            note(
                Invocation.problem { () throws(Failure) in
                    if setting.option.name == "ms" {
                        throw Failure(.usage, "option --ms is gone", advice: "See the options of 'check'")
                    }
                    try setting.apply(to: &options)
                })
        }
        note(Invocation.problem { () throws(Failure) in try readOperands(scan.operands) })
        if case .order(let action) = request {
            note(Invocation.problem { () throws(Failure) in try settle(action) })
        }
    }

    /// The settings of the configuration files, in CRIU's order.
    private mutating func configured(
        _ scan: Scan, _ environment: (String) -> Word?, _ machine: FilePath
    ) -> [Setting] {
        // A file of the user's own replaces the default ones.
        let own = scan.settings.last { $0.option.name == "config" }?.argument?.path
        let defaults = own == nil && !scan.settings.contains { $0.option.name == "no-default-config" }
        var paths: [(path: FilePath, isNamed: Bool)] = []
        if defaults {
            paths.append((machine, false))
            if let home = environment("HOME") {
                paths.append((home.path.appending(".criu/default.conf"), false))
            }
        }
        if let named = environment("CRIU_CONFIG_FILE") { paths.append((named.path, true)) }
        if let own { paths.append((own, true)) }
        var out: [Setting] = []
        for (path, isNamed) in paths {
            note(
                Invocation.problem { () throws(Failure) in
                    if let settings = try ConfigurationFile.settings(of: path) {
                        out += settings
                    } else if isNamed {
                        remarks.append("there is no configuration file \(path)")
                    }
                })
        }
        return out
    }

    /// Finds the action and what follows it.
    private mutating func readOperands(_ words: [Word]) throws(Failure) {
        guard let first = words.first else {
            throw Failure(.usage, "a command is missing", advice: "'--help' lists the commands")
        }
        var rest = words.dropFirst()
        var name = first.text
        if name == "cpuinfo" {
            guard let second = rest.popFirst() else {
                throw Failure(.usage, "cpuinfo needs 'dump' or 'check' after it")
            }
            name += " " + second.text
        }
        guard let action = Action(rawValue: name) else {
            throw Failure(.usage, "there is no command '\(name)'", advice: "'--help' lists the commands")
        }
        request = .order(action)
        operands = Array(rest)
    }

    /// Checks options against each other.
    private func settle(_ action: Action) throws(Failure) {
        if options.execCommand {
            guard action == .restore else { throw Failure(.usage, "--exec-cmd works with 'restore' only") }
            guard !operands.isEmpty else {
                throw Failure(.usage, "--exec-cmd needs a command", advice: "Write it after '--'")
            }
            guard !options.restoreDetached else {
                throw Failure(.usage, "--exec-cmd and --restore-detached exclude each other")
            }
        } else if action == .serviceWorker {
            guard operands.count == 1 else { throw Failure(.usage, "swrk needs a descriptor, and nothing else") }
        } else if let word = operands.first {
            throw Failure(.usage, "'\(word)' after '\(action.rawValue)' means nothing")
        }
        if options.restoreSibling, !options.restoreDetached, action == .restore {
            throw Failure(.usage, "--restore-sibling needs --restore-detached")
        }
        if options.lazyPages, options.pageServer, action == .dump {
            throw Failure(.usage, "a dump can't both leave its pages with the tree and send them to a page server")
        }
        if options.mountCompatibilityMode, action == .dump || action == .preDump {
            throw Failure(.usage, "--mntns-compat-mode works with 'restore' only")
        }
        if options.live {
            guard action == .dump else { throw Failure(.usage, "--live works with 'dump' only") }
            guard options.ending != .stopped else {
                throw Failure(.usage, "--live and --leave-stopped exclude each other")
            }
        }
        try settleStreams(action)
        if !options.inheritedDescriptors.isEmpty, action != .restore {
            throw Failure(.usage, "--inherit-fd works with 'restore' only")
        }
        if action == .dump || action == .preDump, options.tree == nil {
            throw Failure(.usage, "which tree? The option --tree PID is missing")
        }
    }

    private func settleStreams(_ action: Action) throws(Failure) {
        for (name, place, actions) in [
            ("--stream-to", options.streamTo, [Action.dump, .send]),
            ("--stream-from", options.streamFrom, [.restore, .receive]),
        ] {
            if place == nil {
                guard !actions.dropFirst().contains(action) else {
                    throw Failure(.usage, "'\(action.rawValue)' needs \(name)")
                }
                continue
            }
            guard actions.contains(action) else {
                let works = actions.map { "'\($0.rawValue)'" }.joined(separator: " and ")
                throw Failure(.usage, "\(name) works with \(works) only")
            }
            for (other, isGiven) in [
                ("--prev-images-dir", options.previousImagesDirectory != nil), ("--page-server", options.pageServer),
                ("--lazy-pages", options.lazyPages), ("--auto-dedup", options.autoDeduplication && action == .dump),
            ] where isGiven {
                throw Failure(.usage, "\(name) and \(other) exclude each other", advice: "A stream is whole by itself")
            }
        }
    }

    /// What went wrong in `body`.
    private static func problem(_ body: () throws(Failure) -> Void) -> Failure? {
        do { try body() } catch { return error }
        return nil
    }

    /// Keeps the first failure.
    private mutating func note(_ problem: Failure?) { failure = failure ?? problem }
}
