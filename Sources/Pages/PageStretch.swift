public import Linux

/// Pages of one task or file that are copied the same way.
public struct PageStretch: Sendable {
    /// The addresses, or the offsets in a file.
    public var range: AddressRange
    /// Whether they are read by `process_vm_readv`; else through `/proc/PID/mem`, which also reads what the task itself
    /// may not, and, unlike the other, leaves pages shared that other tasks share copy-on-write.
    public var isReadable: Bool
    /// What they hold, if it is no longer where the others are.
    public var contents: [UInt8]?
    /// Who has them as they were, if their task may have written to them since.
    public var held: HeldPages?

    /// Describes pages.
    public init(_ range: AddressRange, isReadable: Bool = true) {
        self.range = range
        self.isReadable = isReadable
    }
}

/// The parts of ascending ranges that lie in a range. `from` is where to look first, and moves on with the range.
public func parts(of ranges: [AddressRange], in range: AddressRange, from index: inout Int) -> [AddressRange] {
    while index < ranges.count, ranges[index].end <= range.start { index += 1 }
    var found: [AddressRange] = []
    var next = index
    while next < ranges.count, ranges[next].start < range.end {
        found.append(AddressRange(start: max(ranges[next].start, range.start), end: min(ranges[next].end, range.end)))
        next += 1
    }
    return found
}

/// Several stretches that are read together into one bounce buffer, and lie together in a pages file.
struct Chunk: Sendable {
    /// The stretch that the chunk begins in, and the byte in it.
    var first: Int, skip: UInt64
    /// Bytes of the chunk, and their offset in the pages file.
    var length: Int, offset: UInt64

    /// Most stretches in a chunk (`IOV_MAX`); a bounce buffer holds fewer pages, so that each chunk but the last is
    /// full.
    static let mostStretches = 1024

    /// Cuts stretches into chunks that fit a bounce buffer.
    static func cut(_ lengths: [UInt64], size: Int = BounceBuffer.size) -> [Chunk] {
        var chunks: [Chunk] = []
        var offset: UInt64 = 0
        var current = Chunk(first: 0, skip: 0, length: 0, offset: 0)
        var members = 0
        for (index, length) in lengths.enumerated() {
            var done: UInt64 = 0
            while done < length {
                if current.length == size || members == mostStretches {
                    chunks.append(current)
                    current = Chunk(first: index, skip: done, length: 0, offset: offset)
                    members = 0
                }
                let part = min(length - done, UInt64(size - current.length))
                if current.length == 0 {
                    current.first = index
                    current.skip = done
                }
                current.length += Int(part)
                members += 1
                done += part
                offset += part
            }
        }
        if current.length > 0 { chunks.append(current) }
        return chunks
    }

    /// Cuts stretches into chunks that don't reach from one run into the next. The runs hold the same bytes in order.
    static func cut(_ lengths: [UInt64], along runs: [UInt64]) -> [Chunk] {
        var chunks: [Chunk] = []
        var (index, skip, offset): (Int, UInt64, UInt64) = (0, 0, 0)
        for run in runs {
            var left = run
            while left > 0, index < lengths.count {
                var room = min(left, UInt64(BounceBuffer.size))
                chunks.append(Chunk(first: index, skip: skip, length: Int(room), offset: offset))
                left -= room
                offset += room
                while room > 0, index < lengths.count {
                    let step = min(room, lengths[index] - skip)
                    room -= step
                    skip += step
                    if skip == lengths[index] { (index, skip) = (index + 1, 0) }
                }
            }
        }
        return chunks
    }

    /// Calls `body` with each part: index of the stretch, first byte in it, number of bytes, byte in the chunk.
    func forEachPart<E: Error>(
        _ length: (Int) -> UInt64, _ body: (Int, UInt64, Int, Int) throws(E) -> Void
    ) throws(E) {
        var index = first
        var start = skip
        var done = 0
        while done < self.length {
            let part = min(Int(length(index) - start), self.length - done)
            try body(index, start, part, done)
            done += part
            index += 1
            start = 0
        }
    }
}
