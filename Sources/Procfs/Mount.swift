public import Diagnostics
public import Linux

/// A mount, as /proc/PID/mountinfo shows it.
public struct Mount: Hashable, Sendable {
    /// Its number, as in fdinfo and `statx(2)`.
    public var id: Int32
    /// The mount that it is on; for the root, one that is out of sight.
    public var parent: Int32
    /// The device of its file system in the kernel's own encoding: 12 bits of major and 20 of minor number.
    public var device: UInt32
    /// Which directory or file of the file system it shows.
    public var root: [UInt8]
    /// Where it is mounted.
    public var point: [UInt8]
    /// Options of the mount, with commas.
    public var options: String
    /// Its group of peers that tell each other of mounts (`shared:N`), and the group that tells it (`master:N`); 0 for none.
    public var shared: UInt32, master: UInt32
    /// Whether it can't be bound elsewhere.
    public var isUnbindable: Bool
    /// The kind of file system.
    public var kind: [UInt8]
    /// What is mounted, as the file system calls it.
    public var source: [UInt8]
    /// Options of the file system, with commas.
    public var fileSystemOptions: String

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
            guard let id = fields.number(), let parent = fields.number(), let major = fields.number() else { continue }
            fields.skip(0x3a)
            guard let minor = fields.number() else { continue }
            let root = unescaped(fields.word())
            let point = unescaped(fields.word())
            let options = String(decoding: fields.word(), as: UTF8.self)
            var (shared, master): (UInt32, UInt32) = (0, 0)
            var isUnbindable = false
            while !fields.isAtEnd {
                let tag = String(decoding: fields.word(), as: UTF8.self)
                if tag == "-" { break }
                if tag == "unbindable" { isUnbindable = true }
                let parts = tag.split(separator: ":")
                guard parts.count == 2, let number = UInt32(parts[1]) else { continue }
                if parts[0] == "shared" { shared = number }
                if parts[0] == "master" { master = number }
            }
            mounts.append(
                Mount(
                    id: Int32(truncatingIfNeeded: id), parent: Int32(truncatingIfNeeded: parent),
                    device: UInt32(truncatingIfNeeded: major << 20) | UInt32(truncatingIfNeeded: minor & 0xfffff),
                    root: root, point: point, options: options, shared: shared, master: master,
                    isUnbindable: isUnbindable,
                    kind: Array(fields.word()), source: unescaped(fields.word()),
                    fileSystemOptions: String(decoding: unescaped(fields.word()), as: UTF8.self)))
        }
        return mounts
    }
}
