internal import CLinux
internal import Diagnostics
internal import Linux

/// Where a batch lies in a runway while it runs.
struct LoadedBatch: ~Copyable {
    let first: Address
    let end: Address
    private let records: Int
    private let count: Int
    private let data: Int
    private let dataCount: Int
    private let labels: [StaticString]

    /// Writes a batch into a part of `memory`. `base` is where the task sees the first byte of `memory`.
    init(
        _ batch: consuming Batch, into memory: borrowing Mapping, at place: Range<Int>, base: Address
    ) throws(Failure) {
        let stride = MemoryLayout<clinux_call>.stride
        let offset = place.lowerBound
        guard batch.size <= place.count, place.upperBound <= memory.length else {
            throw Failure(.bug, "a batch of \(batch.size) bytes does not fit the runway")
        }
        records = offset
        count = batch.records.count
        data = (offset + count * stride + 15) & ~15
        dataCount = batch.data.count
        first = base + UInt64(records)
        end = base + UInt64(records + count * stride)
        let remoteData = Int64(bitPattern: base.rawValue) + Int64(data)
        for relocation in batch.relocations {
            let index = Int(relocation.record)
            switch relocation.argument {
            case 0: batch.records[index].argument.0 += remoteData
            case 1: batch.records[index].argument.1 += remoteData
            case 2: batch.records[index].argument.2 += remoteData
            case 3: batch.records[index].argument.3 += remoteData
            case 4: batch.records[index].argument.4 += remoteData
            default: batch.records[index].argument.5 += remoteData
            }
        }
        for forward in batch.forwards {
            batch.records[forward.from].forward =
                first.rawValue + UInt64(forward.to * stride + 8 + forward.argument * 8)
        }
        unsafe batch.records.withUnsafeBytes { source in
            guard let start = source.baseAddress else { return }
            unsafe (memory.pointer + offset).copyMemory(from: start, byteCount: source.count)
        }
        memory.store(batch.data, at: data)
        for pointer in batch.pointers {
            memory.store(UInt64(bitPattern: remoteData) + UInt64(pointer.target), at: data + pointer.at)
        }
        labels = batch.labels
    }

    /// What a call has answered by now, `.min` if it has not.
    func value(_ slot: Batch.Slot, _ memory: borrowing Mapping) -> Int {
        memory.load(Int.self, at: records + slot.index * MemoryLayout<clinux_call>.stride + 56)
    }

    /// What the calls answered. A call that may not fail and did becomes a failure with its label.
    func results(_ memory: borrowing Mapping, of task: TaskID) throws(Failure) -> Results {
        let stride = MemoryLayout<clinux_call>.stride
        var values: [Int] = []
        values.reserveCapacity(count)
        for index in 0..<count {
            let at = records + index * stride
            let value = memory.load(Int.self, at: at + 56)
            let stops = memory.load(UInt64.self, at: at + 72) & 1 == 1
            if stops && value < 0 && value >= -4095 {
                let call = SystemCall(rawValue: memory.load(Int.self, at: at))
                let errno = Errno(rawValue: Int32(-value))
                throw Failure(.denied, "can't \(labels[index])", cause: SystemCallError(call, errno))
            }
            if stops && value == .min { throw Failure(.bug, "task \(task) never came to \"\(labels[index])\"") }
            values.append(value)
        }
        return Results(values: values, data: memory.bytes(at: data, count: dataCount))
    }
}
