internal import Diagnostics
internal import Engine
internal import Glibc
internal import Linux
internal import Logging

/// The program: from a command line to an exit status.
public enum Command {
    /// Carries out a command line.
    ///
    /// - Parameters:
    ///   - words: without the program's name.
    ///   - environment: looks up environment variables.
    /// - Returns: 0, or 1 for any failure.
    public static func run(_ words: [Word], environment: (String) -> Word?) -> Int32 {
        let started = ContinuousClock.now
        if words == [Word(trackingHolderOrder)] { return holdTracking() }
        // Asked often and by programs: answered before anything else is set up.
        if words == ["--version"] || words == ["-V"] {
            printOutput(Help.version)
            return 0
        }
        let invocation = Invocation(words, environment: environment)
        switch invocation.request {
        case .version:
            printOutput(Help.version)
            return 0
        case .help:
            printOutput(Help.text)
            return 0
        default: break
        }
        // A peer that goes away is an error of a write, not the end.
        signal(SIGPIPE, SIG_IGN)
        for descriptor in invocation.options.close { _ = try? systemCall(.close, Int(descriptor)) }
        if let status = Background.start(invocation) { return status }
        if invocation.request == .order(.lazyPages) {
            if let status = Orders.guardPager() { return status }
            Orders.closeStrangers(invocation.options)
        }
        let missing = invocation.options.inheritedDescriptors.first { !$0.isTaken() }
        let session: Session
        do {
            session = try Session(invocation.options, environment: environment, started: started)
        } catch {
            printError(invocation.failure ?? error)
            return 1
        }
        do throws(Failure) {
            if let failure = invocation.failure { throw failure }
            if let missing {
                throw Failure(
                    .usage, "the descriptor \(missing.number), passed for \(missing.key), is not open",
                    advice: "Let it be inherited: clear its close-on-exec flag")
            }
            guard case .order(let action) = invocation.request else { throw Failure(.bug, "there is no order") }
            for remark in invocation.remarks { session.log.warning("\(remark)") }
            try prepare(action, session)
            try carryOut(action, session, invocation.operands)
            return 0
        } catch {
            session.report(error)
            return 1
        }
    }

    /// What can be refused before anything is touched.
    private static func prepare(_ action: Action, _ session: borrowing Session) throws(Failure) {
        let refusals = session.options.refusals(for: action)
        for more in refusals.dropFirst() { session.log.error("\(more).") }
        if let first = refusals.first { throw Failure(.unsupported, first) }
        switch action {
        case .dump, .preDump, .restore, .check: try Privileges.require(unprivileged: session.options.unprivileged)
        default: break
        }
        if session.options.logPID { session.log.warning("--log-pid: there is one log, its lines name the task") }
        if session.options.tree != nil, action == .restore { session.log.warning("--tree means nothing to a restore") }
    }

    private static func carryOut(
        _ action: Action, _ session: borrowing Session, _ operands: [Word]
    ) throws(Failure) {
        let options = session.options
        switch action {
        case .dump:
            let statistics = try Orders.dump(session)
            if options.displayStatistics { printOutput(statistics.dumpReport) }
        case .preDump:
            let statistics = try Orders.preDump(session)
            if options.displayStatistics { printOutput(statistics.dumpReport) }
        case .deduplicate: try Orders.deduplicate(session)
        case .unpack: try Orders.unpack(session)
        case .restore:
            let (root, statistics) = try Orders.restore(session)
            if options.displayStatistics { printOutput(statistics.restoreReport) }
            if options.execCommand {
                throw become(operands)
            } else if !options.restoreDetached {
                try Orders.wait(for: root)
            }
        case .check: try KernelCheck.run(session)
        case .pageServer: try Orders.pageServer(session)
        case .lazyPages: try Orders.lazyPages(session)
        case .send: try Orders.send(session)
        case .receive: try Orders.receive(session)
        case .cpuDump: try Orders.cpuDump(session)
        case .cpuCheck: try Orders.cpuCheck(session)
        case .exec:
            throw Failure(.unsupported, "'exec' is gone, as in CRIU")
        case .show:
            throw Failure(.unsupported, "'show' is gone, as in CRIU", advice: "Use 'crit decode -i FILE --pretty'")
        case .service, .serviceWorker:
            throw Failure(.unsupported, "'\(action.rawValue)' is not supported yet")
        }
    }

    /// Turns this process into a command found in PATH. Returns only why that failed.
    private static func become(_ words: [Word]) -> Failure {
        signal(SIGPIPE, SIG_DFL)
        var arguments: [UnsafeMutablePointer<CChar>?] = unsafe []
        // The strings live until the process image is replaced, or for the rest of a process that only reports failure.
        for word in words {
            let characters = word.bytes.map { CChar(bitPattern: $0) } + [0]
            unsafe arguments.append(unsafe strdup(characters))
        }
        unsafe arguments.append(nil)
        if let program = unsafe arguments[0] { _ = unsafe execvp(program, &arguments) }
        let cause = SystemCallError(.execve, Errno(rawValue: errno))
        return Failure(.usage, "the tree is restored, but can't run '\(words[0])'", cause: cause)
    }
}
