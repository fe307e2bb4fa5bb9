internal import Linux
internal import Procfs

/// The userfaultfd of one address space, which notes what is written there, and where it does.
final class TrackedMemory {
    /// The process.
    let process: TaskID
    /// What tells its address space from another of the same pid.
    let mark: MemoryMark
    /// The userfaultfd.
    let descriptor: Descriptor
    /// Mappings that are registered with it in this order, ascending.
    var ranges: [AddressRange] = []
    /// Those of them that were registered all the time since the previous order.
    var watched: [AddressRange] = []

    init(_ process: TaskID, _ mark: MemoryMark, _ descriptor: consuming Descriptor) {
        (self.process, self.mark) = (process, mark)
        self.descriptor = descriptor
    }
}

/// When a process began, and where the kernel put things at its last `execve(2)`.
struct MemoryMark: Hashable, BitwiseCopyable {
    let start, code, stack, arguments, environment, heap: UInt64

    init(_ stat: TaskStat) {
        (start, code, stack) = (stat.startTime, stat.startCode, stat.startStack)
        (arguments, environment, heap) = (stat.argumentStart, stat.environmentStart, stat.startBreak)
    }
}

/// What is kept of a tree's memory from one order to the next: it waits in the queue of a socket, which the holder keeps
/// open.
struct TrackingParcel {
    /// Names the images that hold the memory as it was when tracking began.
    var generation: [UInt8]
    var memories: [TrackedMemory]

    /// What a parcel begins with: a word of ours, and the number of memories.
    private struct Head: BitwiseCopyable {
        var word: UInt64 = 0x3154_524b_4d55_5242, count: UInt64 = 0
    }
    private struct Item: BitwiseCopyable {
        var process: Int64
        var mark: MemoryMark
    }

    /// Memories in one message.
    private static let most = 128

    init(generation: [UInt8], memories: [TrackedMemory]) {
        (self.generation, self.memories) = (generation, memories)
    }

    /// Puts it into the queue of the other end of a pair.
    func post(to socket: Int32) throws(SystemCallError) {
        // SO_SNDBUFFORCE: all must fit, since nobody reads.
        _ = try? setSocketOption(socket, 32, Int32(clamping: 65536 + memories.count * 1024))
        _ = try? setSocketOption(socket, level: 1, 21, 1)
        try SocketMessage.send([UInt8](bytesOf: Head(count: UInt64(memories.count))) + generation, to: socket)
        for start in stride(from: 0, to: memories.count, by: TrackingParcel.most) {
            let part = memories[start..<min(start + TrackingParcel.most, memories.count)]
            let items = part.flatMap {
                [UInt8](bytesOf: Item(process: Int64($0.process.rawValue), mark: $0.mark))
            }
            try SocketMessage.send(items, part.map { $0.descriptor.number }, to: socket)
        }
    }

    /// Takes it out of a queue; nil if it is none of ours.
    init?(from socket: Int32) throws(SystemCallError) {
        let first = try SocketMessage.receive(256, from: socket).bytes
        let size = MemoryLayout<Head>.size
        guard let head = first.load(Head.self), head.word == Head().word, head.count <= 1 << 22 else { return nil }
        generation = Array(first.dropFirst(size))
        memories = []
        let stride = MemoryLayout<Item>.stride
        while memories.count < Int(head.count) {
            let (bytes, numbers) = try SocketMessage.receive(stride * TrackingParcel.most, from: socket)
            let owned = numbers.map { Owned(Descriptor(owning: $0)) }
            guard !owned.isEmpty, bytes.count == stride * owned.count else { return nil }
            for (index, one) in owned.enumerated() {
                guard let item = bytes.load(Item.self, at: index * stride), let descriptor = one.take() else {
                    return nil
                }
                memories.append(TrackedMemory(TaskID(Int32(truncatingIfNeeded: item.process)), item.mark, descriptor))
            }
        }
    }

    /// Closes what nobody takes.
    private final class Owned {
        private var descriptor: Descriptor?
        init(_ descriptor: consuming Descriptor) { self.descriptor = consume descriptor }
        func take() -> Descriptor? { descriptor.take() }
    }
}
