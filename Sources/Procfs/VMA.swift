public import Diagnostics
public import Linux

/// The two-letter flags of a mapping (VmFlags in smaps), unknown ones included.
public struct VMFlags: Hashable, Sendable {
    private var codes: [UInt16] = []

    /// No flags.
    public init() {}

    init(_ line: ArraySlice<UInt8>) {
        var fields = Fields(line)
        while true {
            let word = fields.word()
            guard word.count == 2, let first = word.first, let second = word.last else { return }
            codes.append(UInt16(first) << 8 | UInt16(second))
        }
    }

    /// Whether a flag such as `gd` is set.
    public func contains(_ code: StaticString) -> Bool {
        VMFlags.number(code).map { codes.contains($0) } ?? false
    }

    /// These flags, but some of them as others have them.
    public func taking(_ names: [StaticString], from other: VMFlags) -> VMFlags {
        var mixed = self
        let taken = names.compactMap { VMFlags.number($0) }
        mixed.codes = codes.filter { !taken.contains($0) } + other.codes.filter { taken.contains($0) }
        return mixed
    }

    private static func number(_ code: StaticString) -> UInt16? {
        guard code.utf8CodeUnitCount == 2 else { return nil }
        return unsafe UInt16(code.utf8Start[0]) << 8 | UInt16(code.utf8Start[1])
    }

    /// All flags, two letters each.
    public var all: [String] {
        codes.map { String(decoding: [UInt8($0 >> 8), UInt8($0 & 0xff)], as: UTF8.self) }
    }
}

/// A mapping of a task.
public struct VMA: Hashable, Sendable {
    /// Its addresses.
    public var range: AddressRange
    /// `PROT_*` bits.
    public var protection: Int
    /// `MAP_SHARED` instead of `MAP_PRIVATE`.
    public var isShared: Bool
    /// Offset in the file, in bytes.
    public var offset: UInt64
    /// Device of the file, as `major << 8 | minor` in the kernel's `MKDEV` sense: see `major` and `minor`.
    public var major: UInt32, minor: UInt32
    /// Inode of the file, 0 if there is none.
    public var inode: UInt64
    /// The path, or a name in brackets, or nothing.
    public var name: [UInt8]
    /// Flags, if they were read from smaps.
    public var flags = VMFlags()
    /// Size of its pages in bytes, if it was read from smaps.
    public var kernelPageSize: UInt64?
    /// Whether some of its pages are mapped elsewhere too; true if it was not read from smaps.
    public var hasSharedPages = true
    /// Its protection key, if it was read from smaps.
    public var protectionKey: UInt32 = 0

    /// The name as text, for messages.
    public var text: String { String(decoding: name, as: UTF8.self) }
    /// Whether the name is exactly this.
    public func isNamed(_ text: String) -> Bool { name.elementsEqual(text.utf8) }

    /// Whether it is made by the kernel for every task.
    public var isOfKernel: Bool { isNamed("[vdso]") || isNamed("[vvar]") || isNamed("[vvar_vclock]") }

    /// The same with what only smaps tells of it, if that was read of this mapping or of one that grew to it, shrank to it or
    /// was cut into it; else nil.
    public func flagged(like other: VMA) -> VMA? {
        guard range.overlaps(other.range), isShared == other.isShared, name == other.name,
            inode == other.inode, major == other.major, minor == other.minor
        else { return nil }
        var mapping = other
        (mapping.range, mapping.protection, mapping.offset) = (range, protection, offset)
        return mapping
    }

    /// A header line of maps or smaps, nil if it is no such line.
    init?(_ line: ArraySlice<UInt8>) {
        var fields = Fields(line)
        guard let start = fields.number(16), fields.rest.first == 0x2d else { return nil }
        fields.skip(0x2d)
        guard let end = fields.number(16), end >= start, fields.rest.first == 0x20 else { return nil }
        let mode = Array(fields.word())
        guard mode.count >= 4, let offset = fields.number(16), let major = fields.number(16) else { return nil }
        fields.skip(0x3a)
        guard let minor = fields.number(16), let inode = fields.number() else { return nil }
        fields.skipBlanks()
        range = AddressRange(start, end)
        protection = (mode[0] == 0x72 ? 1 : 0) | (mode[1] == 0x77 ? 2 : 0) | (mode[2] == 0x78 ? 4 : 0)
        isShared = mode[3] == 0x73
        self.offset = offset
        self.major = UInt32(truncatingIfNeeded: major)
        self.minor = UInt32(truncatingIfNeeded: minor)
        self.inode = inode
        // Only newlines are escaped in this file.
        name = unescaped(fields.rest)
    }

    /// Reads the text of maps or smaps. [vsyscall] is left out.
    public static func parse(_ text: [UInt8]) -> [VMA] {
        var all: [VMA] = []
        var start = 0
        let flagLine = Array("VmFlags:".utf8)
        let pageSizeLine = Array("KernelPageSize:".utf8)
        let sharedLine = Array("Shared_".utf8)
        let keyLine = Array("ProtectionKey:".utf8)
        while start < text.count {
            let end = text[start...].firstIndex(of: 0x0a) ?? text.count
            let line = text[start..<end]
            start = end + 1
            guard let first = line.first else { continue }
            if first == 0x53, line.starts(with: sharedLine) {
                // Shared_Clean, then Shared_Dirty; only the first resets.
                guard !all.isEmpty, let colon = line.firstIndex(of: 0x3a) else { continue }
                var fields = Fields(line[(colon + 1)...])
                let isFirst = line[line.startIndex + sharedLine.count] == 0x43
                let hasSome = fields.number() != 0
                all[all.count - 1].hasSharedPages = hasSome || (!isFirst && all[all.count - 1].hasSharedPages)
            } else if first == 0x56, line.starts(with: flagLine) {
                if !all.isEmpty { all[all.count - 1].flags = VMFlags(line.dropFirst(flagLine.count)) }
            } else if first == 0x4b, line.starts(with: pageSizeLine) {
                var fields = Fields(line.dropFirst(pageSizeLine.count))
                if !all.isEmpty { all[all.count - 1].kernelPageSize = fields.number().map { $0 << 10 } }
            } else if first == 0x50, line.count < 32, line.starts(with: keyLine) {
                var fields = Fields(line.dropFirst(keyLine.count))
                if !all.isEmpty { all[all.count - 1].protectionKey = UInt32(clamping: fields.number() ?? 0) }
            } else if Fields.digit(first) != nil, first < 0x41 || first >= 0x61, let mapping = VMA(line) {
                all.append(mapping)
            }
        }
        all.removeAll { $0.isNamed("[vsyscall]") }
        return all
    }

    /// The mappings of a task with their flags.
    public static func read(of task: TaskID) throws(Failure) -> [VMA] { parse(try procText(of: task, "smaps")) }
    /// The mappings of a task without flags, which is much faster.
    public static func readPlain(of task: TaskID) throws(Failure) -> [VMA] { parse(try procText(of: task, "maps")) }
}

/// Reads a file of a task's /proc directory.
public func procText(of task: TaskID, _ name: String) throws(Failure) -> [UInt8] {
    do throws(SystemCallError) { return try readWholeFile("/proc/\(task.rawValue)/\(name)") } catch {
        if error.errno == .ENOENT || error.errno == .ESRCH {
            throw Failure(.vanished, "task \(task) has exited", cause: error)
        }
        throw Failure(.denied, "can't read /proc/\(task)/\(name)", cause: error)
    }
}
