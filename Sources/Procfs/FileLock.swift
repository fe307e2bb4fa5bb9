/// A lock or lease on a file, as `lock:` lines of fdinfo and /proc/locks show it.
public struct FileLock: Hashable, Sendable {
    /// Whom it belongs to and what it keeps out, by the kernel's words.
    public enum Class: String, Sendable {
        /// A process's lock on a range (`fcntl(F_SETLK)`).
        case posix = "POSIX"
        /// A description's lock on the whole file (`flock(2)`).
        case flock = "FLOCK"
        /// A description's lock on a range (`fcntl(F_OFD_SETLK)`).
        case description = "OFDLCK"
        /// A description's wish to be told of others that open the file (`fcntl(F_SETLEASE)`).
        case lease = "LEASE"
    }

    /// What it allows.
    public enum Access: String, Sendable {
        /// `F_RDLCK`.
        case read = "READ"
        /// `F_WRLCK`.
        case write = "WRITE"
        /// `F_UNLCK`: what a lease that is being broken has to become.
        case none = "UNLCK"
    }

    /// Its class.
    public var kind: Class
    /// Its access; for a lease that is being broken, what is left of it afterwards.
    public var access: Access
    /// Whether it is a lease that somebody waits for.
    public var isBreaking: Bool
    /// The process that took it, 0 if that is not visible, -1 for locks of descriptions.
    public var owner: Int32
    /// The file.
    public var major: UInt32, minor: UInt32, inode: UInt64
    /// The first byte, and the last one; nil for no end.
    public var start: Int64, end: Int64?

    /// Reads a line from its number on: `1: POSIX  ADVISORY  WRITE 123 fe:00:456 0 EOF`. Nil if it says anything new, or
    /// tells of somebody who waits.
    public init?(_ line: ArraySlice<UInt8>) {
        var fields = Fields(line)
        func word() -> String { String(decoding: fields.word(), as: UTF8.self) }
        guard fields.number() != nil else { return nil }
        fields.skip(0x3a)
        guard let kind = Class(rawValue: word()) else { return nil }
        let state = word()
        guard let access = Access(rawValue: word()), let owner = fields.signed(), let major = fields.number(16) else {
            return nil
        }
        fields.skip(0x3a)
        guard let minor = fields.number(16) else { return nil }
        fields.skip(0x3a)
        guard let inode = fields.number(), let start = fields.signed() else { return nil }
        self.kind = kind
        self.access = access
        isBreaking = state == "BREAKING"
        guard kind == .lease ? isBreaking || state == "ACTIVE" : state == "ADVISORY" else { return nil }
        self.owner = Int32(truncatingIfNeeded: owner)
        (self.major, self.minor) = (UInt32(truncatingIfNeeded: major), UInt32(truncatingIfNeeded: minor))
        self.inode = inode
        self.start = start
        end = fields.signed()
        if let end, end < start { return nil }
    }

    /// A phrase for messages.
    public var text: String {
        switch kind {
        case .posix: "POSIX lock"
        case .flock: "flock"
        case .description: "OFD lock"
        case .lease: "lease"
        }
    }
}
