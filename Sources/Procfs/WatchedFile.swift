/// A file that an epoll watches, a line of its fdinfo.
public struct WatchedFile: Hashable, Sendable {
    /// The number that it was watched under.
    public var number: UInt32
    /// What is waited for, and how.
    public var events: UInt32
    /// What the program gets with an event.
    public var data: UInt64
    /// Offset, inode number, and device in the kernel's own encoding.
    public var position: UInt64, inode: UInt64, device: UInt32

    /// Reads a line; nil if it is about something else.
    public init?(_ line: [UInt8]) {
        guard line.starts(with: "tfd:".utf8) else { return nil }
        var fields = Fields(line[4...])
        func value(_ name: String, _ base: UInt64) -> UInt64? {
            fields.skipBlanks()
            guard fields.rest.starts(with: name.utf8) else { return nil }
            for _ in name.utf8 { fields.skip(fields.rest.first ?? 0) }
            return base == 10 ? fields.signed().map { UInt64(bitPattern: $0) } : fields.number(base)
        }
        guard let number = fields.number(), let events = value("events:", 16), let data = value("data:", 16),
            let position = value("pos:", 10), let inode = value("ino:", 16), let device = value("sdev:", 16)
        else { return nil }
        self.number = UInt32(truncatingIfNeeded: number)
        self.events = UInt32(truncatingIfNeeded: events)
        self.data = data
        (self.position, self.inode, self.device) = (position, inode, UInt32(truncatingIfNeeded: device))
    }
}
