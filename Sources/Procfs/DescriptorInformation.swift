public import Diagnostics
public import Linux

/// What /proc/PID/fdinfo/N says.
public struct DescriptorInformation: Sendable {
    /// Offset in the file.
    public var position: UInt64 = 0
    /// Flags of `open(2)`, including O_CLOEXEC of the descriptor.
    public var flags: Int32 = 0
    /// Mount.
    public var mountID: Int32 = -1
    /// Inode number, where the kernel tells.
    public var inode: UInt64?
    /// The remaining lines, which depend on the kind.
    public var lines: [[UInt8]] = []

    /// What was found out by other means; no lines.
    public init(position: UInt64 = 0, flags: Int32, mountID: Int32) {
        (self.position, self.flags, self.mountID) = (position, flags, mountID)
    }

    /// Reads the text.
    public init(_ text: [UInt8]) { self.init(text[...]) }

    /// Reads the text.
    public init(_ text: ArraySlice<UInt8>) {
        for line in text.split(separator: 0x0a) {
            guard let colon = line.firstIndex(of: 0x3a) else { continue }
            var fields = Fields(line[(colon + 1)...])
            let key = line[..<colon]
            if key.elementsEqual("pos".utf8) {
                position = UInt64(bitPattern: fields.signed() ?? 0)
            } else if key.elementsEqual("flags".utf8) {
                flags = Int32(truncatingIfNeeded: fields.number(8) ?? 0)
            } else if key.elementsEqual("mnt_id".utf8) {
                mountID = Int32(truncatingIfNeeded: fields.signed() ?? -1)
            } else if key.elementsEqual("ino".utf8) {
                inode = fields.number()
            } else {
                lines.append(Array(line))
            }
        }
    }

    /// A descriptor's of a task.
    public static func read(of task: TaskID, _ number: Int32) throws(Failure) -> DescriptorInformation {
        DescriptorInformation(try procText(of: task, "fdinfo/\(number)"))
    }

    /// A descriptor's, below an open /proc/PID/fdinfo: one read is enough for most kinds.
    public static func read(in directory: Int32, _ number: Int32) throws(Failure) -> DescriptorInformation {
        try attempt("read what /proc says of the descriptor", code: .vanished) { () throws(SystemCallError) in
            let file = try openFile("\(number)", in: directory)
            var bytes = [UInt8](repeating: 0, count: 1024)
            let (ours, offset) = (Int(file.number), 0)
            let got = try bytes.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.read, ours, address + offset, count)
            }
            if got == bytes.count { return DescriptorInformation(bytes + (try readToEnd(file))) }
            return DescriptorInformation(Array(bytes[..<got]))
        }
    }
}

extension DescriptorInformation {
    /// The last id in a line of pids, such as a pidfd's `Pid` and `NSpid`; -1 stands for a task that is gone.
    public func id(_ key: String) -> Int32? {
        for line in lines where line.starts(with: (key + ":").utf8) {
            guard let last = line.split(whereSeparator: { $0 == 0x3a || $0 == 0x09 || $0 == 0x20 }).last else {
                return nil
            }
            return Int32(String(decoding: last, as: UTF8.self))
        }
        return nil
    }
}

extension TaskID {
    /// What we call the task that a pidfd refers to.
    ///
    /// - Throws: `.vanished` if it is gone, or not to be seen from our PID namespace.
    public init(of pidfd: borrowing Descriptor) throws(Failure) {
        guard let id = try DescriptorInformation.read(of: .current, pidfd.number).id("Pid"), id > 0 else {
            throw Failure(.vanished, "the task of a pidfd is not to be seen from here")
        }
        self.init(id)
    }
}

/// A resource limit: soft and hard, `UInt64.max` for unlimited.
public struct ResourceLimit: Hashable, Sendable {
    /// The limit in force.
    public var soft: UInt64
    /// The most that the soft limit may be raised to.
    public var hard: UInt64

    /// All limits of a task in the kernel's order, from /proc/PID/limits.
    public static func read(of task: TaskID) throws(Failure) -> [ResourceLimit] {
        parse(try procText(of: task, "limits"))
    }

    /// Reads the text: the kernel prints the limits in their own order of numbers but for the first lines' names, so they
    /// are found by name.
    public static func parse(_ text: [UInt8]) -> [ResourceLimit] {
        let names = [
            "Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size",
            "Max resident set",
            "Max processes", "Max open files", "Max locked memory", "Max address space", "Max file locks",
            "Max pending signals", "Max msgqueue size", "Max nice priority", "Max realtime priority",
            "Max realtime timeout",
        ]
        var limits = [ResourceLimit](repeating: ResourceLimit(soft: .max, hard: .max), count: names.count)
        for line in text.split(separator: 0x0a) {
            guard let index = names.firstIndex(where: { line.starts(with: $0.utf8) }) else { continue }
            var fields = Fields(line.dropFirst(names[index].utf8.count))
            func value(_ word: ArraySlice<UInt8>) -> UInt64 {
                var digits = Fields(word)
                return digits.number() ?? .max
            }
            limits[index] = ResourceLimit(soft: value(fields.word()), hard: value(fields.word()))
        }
        return limits
    }
}

/// A POSIX timer as /proc/PID/timers shows it.
public struct PosixTimerInformation: Hashable, Sendable {
    /// The timer's id.
    public var id: Int32 = 0
    /// The signal it sends, and the value that goes with it.
    public var signal: Int32 = 0, value: UInt64 = 0
    /// `signal`, `none` or `thread`, and `pid` or `tid` with the target.
    public var notify = "", target: Int32 = 0
    /// The clock.
    public var clock: Int32 = 0

    /// All timers of a task.
    public static func read(of task: TaskID) throws(Failure) -> [PosixTimerInformation] {
        parse(try procText(of: task, "timers"))
    }

    /// Reads the text.
    public static func parse(_ text: [UInt8]) -> [PosixTimerInformation] {
        var timers: [PosixTimerInformation] = []
        for line in text.split(separator: 0x0a) {
            guard let colon = line.firstIndex(of: 0x3a) else { continue }
            var fields = Fields(line[(colon + 1)...])
            let key = String(decoding: line[..<colon], as: UTF8.self)
            if key == "ID" {
                timers.append(PosixTimerInformation())
                timers[timers.count - 1].id = Int32(truncatingIfNeeded: fields.signed() ?? 0)
                continue
            }
            guard !timers.isEmpty else { continue }
            let last = timers.count - 1
            switch key {
            case "signal":
                timers[last].signal = Int32(truncatingIfNeeded: fields.signed() ?? 0)
                fields.skip(0x2f)
                timers[last].value = fields.number(16) ?? 0
            case "notify":
                let parts = String(decoding: fields.word(), as: UTF8.self).split(separator: "/")
                timers[last].notify = parts.first.map(String.init) ?? ""
                let target = parts.last.map(String.init) ?? ""
                if let dot = target.lastIndex(of: ".") {
                    timers[last].target = Int32(target[target.index(after: dot)...]) ?? 0
                }
                if target.hasPrefix("tid") { timers[last].notify += "/tid" }
            case "ClockID": timers[last].clock = Int32(truncatingIfNeeded: fields.signed() ?? 0)
            default: break
            }
        }
        return timers
    }
}
