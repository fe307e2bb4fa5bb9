internal import CLinux
public import Linux

/// System calls for another task to make, in order, with the buffers they read and write.
///
/// Thinking in batches is the performance design: a call costs 10 µs alone and 0.15 µs in a long batch.
public struct Batch: ~Copyable {
    /// The place of a call's result.
    public struct Slot: Hashable, Sendable {
        let index: Int
    }

    /// A stretch of the batch's memory, which travels to the task and back.
    public struct Buffer: Hashable, Sendable {
        let offset: Int
        /// Length in bytes.
        public let count: Int
    }

    /// One argument of a call.
    public enum Argument: Sendable {
        /// A number, as it is.
        case value(Int)
        /// An unsigned number or flags.
        case bits(UInt64)
        /// An address in the task.
        case address(Address)
        /// The address of a buffer of this batch, plus a displacement in bytes.
        case buffer(Buffer, plus: Int)
        /// A descriptor number in the task.
        case descriptor(RemoteDescriptor)
        /// The result of an earlier call of this batch. One call can feed one argument.
        case result(Slot)

        /// The address of a buffer.
        public static func buffer(_ buffer: Buffer) -> Argument { .buffer(buffer, plus: 0) }
    }

    var records: [clinux_call] = []
    var relocations: [(record: Int32, argument: Int32)] = []
    var pointers: [(at: Int, target: Int)] = []
    var forwards: [(from: Int, to: Int, argument: Int)] = []
    var labels: [StaticString] = []
    var data: [UInt8] = []

    /// An empty batch.
    public init() {}

    /// Number of calls so far.
    public var count: Int { records.count }
    /// Whether nothing was added.
    public var isEmpty: Bool { records.isEmpty }
    /// Bytes of records and buffers that the batch needs in a runway.
    public var size: Int { records.count * MemoryLayout<clinux_call>.stride + data.count + 16 }

    /// Adds a call.
    ///
    /// - Parameters:
    ///   - doing: completes "can't …" if the call fails.
    ///   - mayFail: the batch goes on after an error, and the caller looks at the result.
    @discardableResult
    public mutating func add(
        _ call: SystemCall, _ arguments: Argument..., doing: StaticString, mayFail: Bool = false
    ) -> Slot {
        var record = clinux_call()
        record.number = Int64(call.rawValue)
        record.result = .min
        record.stop = mayFail ? 0 : 1
        let index = records.count
        for (position, argument) in arguments.prefix(6).enumerated() {
            let value: Int64
            switch argument {
            case .value(let number): value = Int64(number)
            case .bits(let bits): value = Int64(bitPattern: bits)
            case .address(let address): value = Int64(bitPattern: address.rawValue)
            case .descriptor(let descriptor): value = Int64(descriptor.number)
            case .buffer(let buffer, let displacement):
                value = Int64(buffer.offset + displacement)
                relocations.append((Int32(index), Int32(position)))
            case .result(let slot):
                value = 0
                forwards.append((slot.index, index, position))
            }
            switch position {
            case 0: record.argument.0 = value
            case 1: record.argument.1 = value
            case 2: record.argument.2 = value
            case 3: record.argument.3 = value
            case 4: record.argument.4 = value
            default: record.argument.5 = value
            }
        }
        records.append(record)
        labels.append(doing)
        return Slot(index: index)
    }

    /// Reserves zeroed memory for a call to write.
    public mutating func reserve(_ count: Int) -> Buffer {
        align()
        let buffer = Buffer(offset: data.count, count: count)
        data.append(contentsOf: repeatElement(0, count: count))
        return buffer
    }

    /// Reserves memory for a call that begins with a trivial value, and is zero behind it.
    public mutating func reserve<T: BitwiseCopyable>(_ count: Int, beginningWith value: T) -> Buffer {
        let bytes = [UInt8](bytesOf: value)
        return place(bytes + [UInt8](repeating: 0, count: max(0, count - bytes.count)))
    }

    /// Places bytes for a call to read.
    public mutating func place(_ bytes: some Collection<UInt8>) -> Buffer {
        align()
        let buffer = Buffer(offset: data.count, count: bytes.count)
        data.append(contentsOf: bytes)
        return buffer
    }

    /// Places a zero-terminated string.
    public mutating func place(string bytes: some Collection<UInt8>) -> Buffer {
        let buffer = place(bytes)
        data.append(0)
        return buffer
    }

    /// Places a trivial value.
    public mutating func place<T: BitwiseCopyable>(value: T) -> Buffer { place([UInt8](bytesOf: value)) }

    /// Writes the remote address of `target` into `buffer` at a displacement, for structures that hold pointers.
    public mutating func point(_ buffer: Buffer, at displacement: Int, to target: Buffer) {
        pointers.append((buffer.offset + displacement, target.offset))
    }

    private mutating func align() {
        let rest = data.count & 15
        if rest != 0 { data.append(contentsOf: repeatElement(0, count: 16 - rest)) }
    }
}

/// What the calls of a batch answered.
public struct Results: Sendable {
    let values: [Int]
    let data: [UInt8]

    /// The answer of a call: a result, or minus an error number. `Int.min` if it was never made.
    public subscript(slot: Batch.Slot) -> Int { values[slot.index] }

    /// The answer of a call that may fail, nil on an error.
    public func success(_ slot: Batch.Slot) -> Int? {
        let value = values[slot.index]
        return value < 0 && value >= -4095 || value == .min ? nil : value
    }

    /// A buffer's contents after the batch.
    public func bytes(_ buffer: Batch.Buffer) -> [UInt8] { Array(data[buffer.offset..<(buffer.offset + buffer.count)]) }

    /// A trivial value from a buffer. Traps when it lies outside.
    public func value<T: BitwiseCopyable>(_ type: T.Type, _ buffer: Batch.Buffer, at offset: Int = 0) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= buffer.count)
        guard let value = data.load(type, at: buffer.offset + offset) else { fatalError("a buffer left its batch") }
        return value
    }
}
