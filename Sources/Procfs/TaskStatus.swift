public import Diagnostics
public import Linux

/// What /proc/PID/status (or task/TID/status) says.
public struct TaskStatus: Sendable {
    private var lines: [String: ArraySlice<UInt8>] = [:]
    /// `comm`, unescaped.
    public var nameBytes: [UInt8] = []
    /// `comm` as text.
    public var name: String { String(decoding: nameBytes, as: UTF8.self) }

    /// Reads the text.
    public init(_ text: [UInt8]) {
        for line in text.split(separator: 0x0a) {
            guard let colon = line.firstIndex(of: 0x3a) else { continue }
            lines[String(decoding: line[..<colon], as: UTF8.self)] = line[(colon + 1)...]
        }
        if let name = lines["Name"] { nameBytes = TaskStatus.plain(name.drop { $0 == 0x09 }) }
    }

    /// A task's, or a thread's.
    public static func read(of task: TaskID, thread: TaskID? = nil) throws(Failure) -> TaskStatus {
        TaskStatus(try procText(of: task, thread.map { "task/\($0.rawValue)/status" } ?? "status"))
    }

    /// Undoes `\n` and `\\`, the only escapes in a name here.
    private static func plain(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        var out: [UInt8] = []
        var escaped = false
        for byte in bytes {
            if escaped {
                out.append(byte == 0x6e ? 0x0a : byte)
                escaped = false
            } else if byte == 0x5c {
                escaped = true
            } else {
                out.append(byte)
            }
        }
        return out
    }

    /// The numbers of a line, empty if the kernel has no such line.
    public func numbers(_ key: String, base: UInt64 = 10) -> [UInt64] {
        guard let line = lines[key] else { return [] }
        var fields = Fields(line)
        return fields.numbers(base)
    }

    /// The text of a line.
    public func words(_ key: String) -> String? {
        lines[key].map { String(decoding: $0.drop { $0 == 0x09 || $0 == 0x20 }, as: UTF8.self) }
    }

    private func hexadecimal(_ key: String) -> UInt64 { numbers(key, base: 16).first ?? 0 }
    private func ids(_ key: String) -> [UInt32] { numbers(key).map { UInt32(truncatingIfNeeded: $0) } }

    /// Real, effective, saved and file system uid.
    public var uids: [UInt32] { ids("Uid") }
    /// Real, effective, saved and file system gid.
    public var gids: [UInt32] { ids("Gid") }
    /// Supplementary groups.
    public var groups: [UInt32] { ids("Groups") }
    /// Bytes of locked memory.
    public var lockedMemory: UInt64 { numbers("VmLck").first.map { $0 << 10 } ?? 0 }
    /// The file mode mask.
    public var umask: UInt32 { UInt32(truncatingIfNeeded: numbers("Umask", base: 8).first ?? 0o22) }
    /// State letter.
    public var state: UInt8 { lines["State"]?.first { $0 != 0x09 && $0 != 0x20 } ?? 0x3f }
    /// The process.
    public var process: TaskID { TaskID(Int32(truncatingIfNeeded: numbers("Tgid").first ?? 0)) }
    /// The parent.
    public var parent: TaskID { TaskID(Int32(truncatingIfNeeded: numbers("PPid").first ?? 0)) }
    /// Who traces it, 0 if nobody.
    public var tracer: TaskID { TaskID(Int32(truncatingIfNeeded: numbers("TracerPid").first ?? 0)) }
    /// How many descriptors its table has room for: no number is higher.
    public var descriptorSlots: Int? { numbers("FDSize").first.map { Int(clamping: $0) } }
    /// Its ids in each pid namespace, ours first.
    public var namespaceIDs: [Int32] { numbers("NSpid").map { Int32(truncatingIfNeeded: $0) } }
    /// Its process group in each pid namespace, ours first.
    public var namespaceGroups: [Int32] { numbers("NSpgid").map { Int32(truncatingIfNeeded: $0) } }
    /// Its session in each pid namespace, ours first.
    public var namespaceSessions: [Int32] { numbers("NSsid").map { Int32(truncatingIfNeeded: $0) } }
    /// The signals that wait for the thread or its process.
    public var pendingSignals: UInt64 { hexadecimal("SigPnd") | hexadecimal("ShdPnd") }
    /// The signals that have a handler.
    public var caughtSignals: UInt64 { hexadecimal("SigCgt") }
    /// Whether it has ended, or is about to: SIGKILL is on its way.
    public var isDying: Bool {
        let kill: UInt64 = 1 << 8
        return state == 0x5a || state == 0x58 || (hexadecimal("SigPnd") | hexadecimal("ShdPnd")) & kill != 0
    }
    /// Ignored signals.
    public var ignoredSignals: UInt64 { hexadecimal("SigIgn") }
    /// Capability sets.
    public var inheritableCapabilities: UInt64 { hexadecimal("CapInh") }
    /// Capability sets.
    public var permittedCapabilities: UInt64 { hexadecimal("CapPrm") }
    /// Capability sets.
    public var effectiveCapabilities: UInt64 { hexadecimal("CapEff") }
    /// Capability sets.
    public var boundingCapabilities: UInt64 { hexadecimal("CapBnd") }
    /// Capability sets.
    public var ambientCapabilities: UInt64 { hexadecimal("CapAmb") }
    /// Whether no_new_privs is set.
    public var noNewPrivileges: Bool { numbers("NoNewPrivs").first == 1 }
    /// Seccomp mode: 0 none, 1 strict, 2 filters.
    public var seccompMode: UInt64 { numbers("Seccomp").first ?? 0 }
    /// Number of seccomp filters.
    public var seccompFilters: UInt64 { numbers("Seccomp_filters").first ?? 0 }
}

/// What /proc/PID/stat says.
public struct TaskStat: Sendable {
    private var values: [Int64]
    /// State letter.
    public var state: UInt8

    /// Reads the text. The name in parentheses may hold anything, so fields are counted from its last parenthesis.
    public init(_ text: [UInt8]) throws(Failure) {
        guard let close = text.lastIndex(of: 0x29) else { throw Failure(.bug, "/proc/PID/stat makes no sense") }
        var fields = Fields(text[(close + 1)...])
        state = fields.word().first ?? 0x3f
        values = []
        while let next = fields.signed() { values.append(next) }
        guard values.count >= 49 else { throw Failure(.bug, "/proc/PID/stat is too short") }
    }

    /// A task's, or a thread's.
    public static func read(of task: TaskID, thread: TaskID? = nil) throws(Failure) -> TaskStat {
        try TaskStat(try procText(of: task, thread.map { "task/\($0.rawValue)/stat" } ?? "stat"))
    }

    /// A field by its number in proc(5), from 4 on.
    public func field(_ number: Int) -> Int64 { values.indices.contains(number - 4) ? values[number - 4] : 0 }
    private func unsigned(_ number: Int) -> UInt64 { UInt64(bitPattern: field(number)) }

    /// Whether the task has ended: a zombie, or about to be reaped.
    public var isEnded: Bool { state == 0x5a || state == 0x58 }
    /// The parent.
    public var parent: TaskID { TaskID(Int32(truncatingIfNeeded: field(4))) }
    /// The process group.
    public var group: TaskID { TaskID(Int32(truncatingIfNeeded: field(5))) }
    /// The session.
    public var session: TaskID { TaskID(Int32(truncatingIfNeeded: field(6))) }
    /// The terminal's device number, 0 if there is none.
    public var terminal: Int64 { field(7) }
    /// The terminal's foreground group.
    public var foregroundGroup: Int32 { Int32(truncatingIfNeeded: field(8)) }
    /// `PF_*` flags.
    public var flags: UInt64 { unsigned(9) }
    /// Whether it is a worker of the kernel that runs no code of the process (`PF_IO_WORKER`).
    public var isWorker: Bool { flags & 0x10 != 0 }
    /// Nice value.
    public var nice: Int32 { Int32(truncatingIfNeeded: field(19)) }
    /// Start time in clock ticks after boot.
    public var startTime: UInt64 { unsigned(22) }
    /// Memory layout.
    public var startCode: UInt64 { unsigned(26) }
    /// Memory layout.
    public var endCode: UInt64 { unsigned(27) }
    /// Memory layout.
    public var startStack: UInt64 { unsigned(28) }
    /// The signal its parent gets at its end.
    public var exitSignal: Int32 { Int32(truncatingIfNeeded: field(38)) }
    /// Memory layout.
    public var startData: UInt64 { unsigned(45) }
    /// Memory layout.
    public var endData: UInt64 { unsigned(46) }
    /// Memory layout.
    public var startBreak: UInt64 { unsigned(47) }
    /// Memory layout.
    public var argumentStart: UInt64 { unsigned(48) }
    /// Memory layout.
    public var argumentEnd: UInt64 { unsigned(49) }
    /// Memory layout.
    public var environmentStart: UInt64 { unsigned(50) }
    /// Memory layout.
    public var environmentEnd: UInt64 { unsigned(51) }
    /// Raw exit code of a zombie.
    public var exitCode: Int32 { Int32(truncatingIfNeeded: field(52)) }
}
