public import Diagnostics
internal import Linux
public import Logging
public import SystemPackage

/// The surroundings of one order: its options, directories and log.
public final class Session {
    /// What was asked for.
    public let options: Options
    /// Where we were started.
    let startPath: FilePath
    /// The absolute path of the images directory.
    public let imagesPath: FilePath
    /// The absolute path of the work directory, which is also the working directory from here on.
    public let workPath: FilePath
    /// The order's log.
    public let log: Logger
    /// When the order began; log lines count from here.
    public let started: ContinuousClock.Instant
    /// The faults that tests ask for by `BRUMATE_FAULT` or `CRIU_FAULT`.
    public let faults: Faults
    /// The descriptor of the log file; nil when the log is standard error.
    let logFile: Int32?

    /// Finds the directories, enters the work directory and opens the log.
    ///
    /// - Parameter environment: gives `BRUMATE_FAULT` and `CRIU_FAULT`.
    public init(
        _ options: Options, environment: (String) -> Word? = { _ in nil }, started: ContinuousClock.Instant = .now
    ) throws(Failure) {
        self.options = options
        self.started = started
        faults = Faults(environment: environment("BRUMATE_FAULT")?.text, criu: environment("CRIU_FAULT")?.text)
        let here = try attempt("find the working directory") { () throws(SystemCallError) in
            try readLink("/proc/self/cwd")
        }
        startPath = here
        let images = here.pushing(options.imagesDirectory ?? ".").lexicallyNormalized()
        let work = options.workDirectory.map { here.pushing($0).lexicallyNormalized() } ?? images
        imagesPath = images
        workPath = work
        try Session.enter(images, advice: "Create it, or pass another with --images-dir")
        if work != images { try Session.enter(work, advice: "Create it, or pass another with --work-dir") }
        // The log stays open until we end.
        let logFile = try options.logFile.map { (path) throws(Failure) in
            try attempt("open the log \(work.pushing(path))", advice: "Pass another with --log-file") {
                () throws(SystemCallError) in
                try openFile(path, [.writeOnly, .create, .truncate, .append]).release()
            }
        }
        self.logFile = logFile
        let output = logFile ?? 2
        let level = LogFile.level(verbosity: options.verbosity)
        log = Logger(label: "brumate") { _ in LogFile(output: output, level: level, started: started) }
    }

    private static func enter(_ path: FilePath, advice: String) throws(Failure) {
        try attempt("enter the directory \(path)", advice: advice) { () throws(SystemCallError) in
            try withPath(path) { (address) throws(SystemCallError) in try systemCall(.chdir, address) }
        }
    }

    /// Logs a failure, and prints it on standard error if the log is not already there.
    ///
    /// The line begins with `Error`, which container engines search for.
    public func report(_ failure: Failure) {
        log.error("\(failure)")
        if logFile != nil, options.verbosity > 0 { printError(failure) }
    }
}

/// Prints a failure on standard error.
func printError(_ failure: Failure) {
    // Nobody is left to tell when this fails.
    try? writeAll(Array("Error: \(failure)\n".utf8), to: 2)
}

/// Prints text on standard output.
func printOutput(_ text: String) {
    try? writeAll(Array(text.utf8), to: 1)
}
