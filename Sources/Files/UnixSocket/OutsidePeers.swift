/// Sockets outside of the tree that every system has under a known name, and what becomes of connections to them.
///
/// Documented in docs/sockets.md.
enum OutsidePeer {
    /// Log and notification sockets: every datagram stands for itself, so a restored task is connected again.
    private static let datagrams: Set<String> = [
        "/dev/log", "/run/systemd/journal/dev-log", "/run/systemd/journal/socket", "/run/systemd/journal/syslog",
        "/run/systemd/notify", "/run/rsyslogd/dev-log", "/run/syslog",
    ]

    /// Whether a datagram socket may be connected to it without a word from the user, and stays unconnected if it is
    /// not there.
    static func isWellKnown(_ name: [UInt8]) -> Bool {
        var text = String(decoding: name.prefix { $0 != 0 }, as: UTF8.self)
        if text.hasPrefix("/var/run/") { text.removeFirst(4) }
        return datagrams.contains(text)
    }

    /// What a name stands for, for messages.
    static func described(_ name: [UInt8]) -> String {
        guard let first = name.first else { return "which has no name" }
        if first == 0 { return "at @" + String(decoding: name.dropFirst(), as: UTF8.self) }
        return "at " + String(decoding: name.prefix { $0 != 0 }, as: UTF8.self)
    }
}
