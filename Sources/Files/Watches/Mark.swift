internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux
internal import Procfs

/// A line of fdinfo that tells of one watch or mark: words of the form `key:value`, hexadecimal but for the handle.
struct Mark {
    private var values: [String: ArraySlice<UInt8>] = [:]

    /// Reads a line; nil if it begins otherwise.
    init?(_ line: [UInt8], of kind: String) {
        guard line.starts(with: (kind + " ").utf8) else { return nil }
        for word in line.dropFirst(kind.utf8.count + 1).split(separator: 0x20) {
            guard let colon = word.firstIndex(of: 0x3a) else { continue }
            values[String(decoding: word[..<colon], as: UTF8.self)] = word[(colon + 1)...]
        }
    }

    /// Whether the line has a word.
    func has(_ key: String) -> Bool { values[key] != nil }

    /// A number of the line.
    func number(_ key: String) throws(Failure) -> UInt64 {
        guard let digits = values[key], let value = UInt64(String(decoding: digits, as: UTF8.self), radix: 16) else {
            throw Failure(.kernelTooOld, "the kernel does not tell the \(key) of a watch")
        }
        return value
    }

    /// The same, of 32 bits.
    func word(_ key: String) throws(Failure) -> UInt32 { UInt32(truncatingIfNeeded: try number(key)) }

    /// The watched inode.
    func inode() throws(Failure) -> WatchedInode {
        var handle: [UInt8] = []
        let digits = Array(values["f_handle"] ?? [])
        for at in stride(from: 0, to: digits.count - 1, by: 2) {
            handle.append(UInt8(String(decoding: digits[at...(at + 1)], as: UTF8.self), radix: 16) ?? 0)
        }
        return WatchedInode(
            device: try word("sdev"), number: try number("ino"),
            handleType: has("fhandle-type") ? try word("fhandle-type") : 0, handle: handle)
    }
}

/// An inode as a watch names it.
struct WatchedInode: Hashable {
    /// The device of its file system in the kernel's own encoding.
    var device: UInt32
    /// The kernel's number of it, which on some file systems is not what stat(2) tells.
    var number: UInt64
    /// Its handle for `open_by_handle_at(2)`; empty where the file system has none.
    var handleType: UInt32, handle: [UInt8]

    /// Longest handle of the kernel.
    static let longestHandle = 128

    init(device: UInt32, number: UInt64, handleType: UInt32, handle: [UInt8]) {
        self.device = device
        self.number = number
        self.handleType = handleType
        self.handle = handle
    }

    /// Reads an entry of an image.
    init(_ entry: FhEntry, device: UInt32, number: UInt64) throws(Failure) {
        guard entry.bytes <= WatchedInode.longestHandle, entry.handle.count * 8 >= Int(entry.bytes) else {
            throw Failure(.corruptImage, "the handle of a watched file makes no sense")
        }
        let bytes = entry.handle.flatMap { [UInt8](bytesOf: $0.littleEndian) }
        self.init(device: device, number: number, handleType: entry.type, handle: Array(bytes.prefix(Int(entry.bytes))))
    }

    /// The entry for an image.
    func entry(path: [UInt8]?) -> FhEntry {
        var entry = FhEntry()
        entry.bytes = UInt32(handle.count)
        entry.type = handleType
        // CRIU always writes, and expects, sixteen words.
        let padded = handle + [UInt8](repeating: 0, count: max(0, 128 - handle.count))
        entry.handle = stride(from: 0, to: 128, by: 8).map { at in
            (0..<8).reduce(0) { $0 | UInt64(padded[at + $1]) << UInt64(8 * $1) }
        }
        if let path { entry.path = imageBytes(path) }
        return entry
    }

    /// For messages.
    var name: String {
        "inode \(number) of the device \(device >> 20):\(device & 0xfffff)"
    }
}
