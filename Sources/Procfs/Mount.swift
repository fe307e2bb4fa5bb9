public import Diagnostics
public import Linux

/// A mount, as /proc/PID/mountinfo shows it.
public struct Mount: Hashable, Sendable {
    /// Its number, as in fdinfo and `statx(2)`.
    public var id: Int32
    /// The device of its file system in the kernel's own encoding: 12 bits of major and 20 of minor number.
    public var device: UInt32
    /// Where it is mounted.
    public var point: [UInt8]
    /// The kind of file system.
    public var kind: [UInt8]

    /// The mounts that a task sees; ours if none is named.
    public static func all(of task: TaskID? = nil) throws(Failure) -> [Mount] {
        let path = "/proc/\(task.map { "\($0.rawValue)" } ?? "self")/mountinfo"
        return parse(try attempt("read \(path)") { () throws(SystemCallError) in try readWholeFile(path) })
    }

    /// Reads the text.
    public static func parse(_ text: [UInt8]) -> [Mount] {
        var mounts: [Mount] = []
        for line in text.split(separator: 0x0a) {
            var fields = Fields(line)
            guard let id = fields.number(), fields.number() != nil, let major = fields.number() else { continue }
            fields.skip(0x3a)
            guard let minor = fields.number() else { continue }
            _ = fields.word()
            let point = unescaped(fields.word())
            while !fields.isAtEnd, !fields.word().elementsEqual("-".utf8) {}
            mounts.append(
                Mount(
                    id: Int32(truncatingIfNeeded: id),
                    device: UInt32(truncatingIfNeeded: major << 20) | UInt32(truncatingIfNeeded: minor & 0xfffff),
                    point: point, kind: Array(fields.word())))
        }
        return mounts
    }
}
