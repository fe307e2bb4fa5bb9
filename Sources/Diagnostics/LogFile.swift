internal import Linux
public import Logging

/// A log handler that writes CRIU's line format, `(00.001234) text`, to a descriptor.
///
/// Levels follow CRIU's `-v`: 1 errors, 2 warnings, 3 notices, 4 everything. A line of level error begins with
/// `Error`, as container engines search for it.
public struct LogFile: LogHandler {
    private let output: Int32
    private let started: ContinuousClock.Instant
    /// The lowest level that is written.
    public var logLevel: Logger.Level
    /// Values added to each line.
    public var metadata: Logger.Metadata = [:]

    /// Writes to `output`, which stays the caller's and must outlive the handler.
    public init(output: Int32, level: Logger.Level, started: ContinuousClock.Instant = .now) {
        self.output = output
        self.logLevel = level
        self.started = started
    }

    /// The level that CRIU's `-v` number stands for.
    public static func level(verbosity: Int) -> Logger.Level {
        switch verbosity {
        case ...0: .critical
        case 1: .error
        case 2: .warning
        case 3: .notice
        default: .debug
        }
    }

    /// One value of the metadata.
    public subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    /// Writes a line.
    public func log(event: LogEvent) {
        let elapsed = (ContinuousClock.now - started).components
        let micros = String(elapsed.attoseconds / 1_000_000_000_000)
        let seconds = String(elapsed.seconds)
        var line = "(" + String(repeating: "0", count: max(0, 2 - seconds.count)) + seconds + "."
        line += String(repeating: "0", count: max(0, 6 - micros.count)) + micros + ") "
        if let task = metadata["task"] ?? event.metadata?["task"] { line += "\(task): " }
        switch event.level {
        case .error, .critical: line += "Error: "
        case .warning: line += "Warn: "
        default: break
        }
        line += "\(event.message)\n"
        // A log that can't be written must not stop the order.
        try? writeAll(Array(line.utf8), to: output)
    }
}
