internal import CLinux

/// Memory mapped into this process, unmapped exactly once.
public struct Mapping: ~Copyable, Sendable {
    /// The first byte's address in this process.
    public let address: Int
    /// Length in bytes.
    public let length: Int

    /// Maps `length` bytes (`mmap(2)`).
    ///
    /// - Parameters:
    ///   - protection: `PROT_*` bits.
    ///   - flags: `MAP_*` bits.
    ///   - file: a descriptor, or -1.
    public init(length: Int, protection: Int = 3, flags: Int, file: Int32 = -1, offset: Int = 0) throws(SystemCallError)
    {
        self.address = try systemCall(.mmap, 0, length, protection, flags, Int(file), offset)
        self.length = length
    }

    deinit { _ = clinux_syscall(SystemCall.munmap.rawValue, address, length, 0, 0, 0, 0) }

    /// The first byte.
    @unsafe public var pointer: UnsafeMutableRawPointer {
        guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: address) else { fatalError("mapping at zero") }
        return unsafe pointer
    }

    /// A value at a byte offset. Traps when it lies outside.
    public func load<T: BitwiseCopyable>(_ type: T.Type, at offset: Int) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= length)
        return unsafe pointer.loadUnaligned(fromByteOffset: offset, as: type)
    }

    /// Sets a value at a byte offset. Traps when it lies outside.
    public func store<T: BitwiseCopyable>(_ value: T, at offset: Int) {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= length)
        unsafe pointer.storeBytes(of: value, toByteOffset: offset, as: T.self)
    }

    /// Reads a word that other tasks write, with acquire order.
    public func loadShared(at offset: Int) -> UInt32 {
        precondition(offset >= 0 && offset + 4 <= length && offset & 3 == 0)
        return unsafe clinux_load32(pointer + offset)
    }

    /// Writes a word that other tasks read, in sequential order.
    public func storeShared(_ value: UInt32, at offset: Int) {
        precondition(offset >= 0 && offset + 4 <= length && offset & 3 == 0)
        unsafe clinux_store32(pointer + offset, value)
    }

    /// Copies bytes out. Traps when they lie outside.
    public func bytes(at offset: Int, count: Int) -> [UInt8] {
        precondition(offset >= 0 && count >= 0 && offset + count <= length)
        return unsafe [UInt8](UnsafeRawBufferPointer(start: pointer + offset, count: count))
    }

    /// Copies bytes in. Traps when they don't fit.
    public func store(_ bytes: [UInt8], at offset: Int) {
        precondition(offset >= 0 && offset + bytes.count <= length)
        unsafe bytes.withUnsafeBytes { source in
            guard let base = source.baseAddress else { return }
            unsafe (pointer + offset).copyMemory(from: base, byteCount: source.count)
        }
    }
}

extension Array where Element == UInt8 {
    /// The bytes of a trivial value.
    public init<T: BitwiseCopyable>(bytesOf value: T) {
        self = unsafe Swift.withUnsafeBytes(of: value) { unsafe [UInt8]($0) }
    }

    /// A trivial value at a byte offset, or nil if the array is too short.
    public func load<T: BitwiseCopyable>(_ type: T.Type, at offset: Int = 0) -> T? {
        guard offset >= 0, offset + MemoryLayout<T>.size <= count else { return nil }
        return unsafe withUnsafeBytes { unsafe $0.loadUnaligned(fromByteOffset: offset, as: type) }
    }
}
