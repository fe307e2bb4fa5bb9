internal import Diagnostics
internal import ImageFormat
internal import Linux
internal import Synchronization

/// A hash of each page that a piece of shared memory held at a dump, `shared-sums-ID.img`. Whoever writes to shared memory, by a
/// mapping or a call, in the tree or not, the next dump sees from it which pages are others now.
struct SharedMemorySums {
    /// Pages in a row.
    private struct Run {
        let start: Address
        var sums: [Checksum]
        var range: AddressRange { AddressRange(start: start, end: start + UInt64(sums.count) * pageSize) }
    }

    private var runs: [Run] = []

    /// Of what a file holds.
    ///
    /// - Parameter ranges: whole pages, ascending.
    init(of file: PageSource, _ ranges: [AddressRange]) throws(Failure) {
        let chunks = Chunk.cut(ranges.map(\.length))
        let stretches = ranges.map { PageStretch($0) }
        let found = Mutex([[Checksum]](repeating: [], count: chunks.count))
        let dealer = Dealer(chunks.count)
        let total = ranges.reduce(0) { $0 + $1.length }
        try Workers.run(total < 8 << 20 ? 1 : Workers.count) { () throws(Failure) in
            let buffer = try BounceBuffer()
            while let index = dealer.take() {
                let chunk = chunks[index]
                try fill(buffer.address, chunk, stretches, file)
                let sums = stride(from: 0, to: chunk.length, by: Int(pageSize)).map {
                    Checksum(at: buffer.address + $0, count: Int(pageSize))
                }
                found.withLock { $0[index] = sums }
            }
        }
        var all = found.withLock { $0 }.joined().makeIterator()
        for range in ranges {
            var run = Run(start: range.start, sums: [])
            while run.range.length < range.length, let sum = all.next() { run.sums.append(sum) }
            runs.append(run)
        }
    }

    /// Those of earlier images; nil if they have none, or none that make sense.
    init?(_ id: UInt64, in images: ImageSet) {
        guard images.has(.sharedSums(id)), let reader = try? images.open(.sharedSums(id)),
            let bytes = try? reader.read(reader.size - reader.offset)
        else { return nil }
        var at = 0
        while at < bytes.count {
            guard let start = bytes.load(UInt64.self, at: at), let count = bytes.load(UInt64.self, at: at + 8),
                start % pageSize == 0, start < 1 << 62, count <= UInt64(bytes.count - at - 16) / 16,
                start >= runs.last?.range.end.rawValue ?? 0
            else { return nil }
            at += 16
            var run = Run(start: Address(UInt64(littleEndian: start)), sums: [])
            for _ in 0..<count {
                guard let sum = Checksum(in: bytes, at: at) else { return nil }
                run.sums.append(sum)
                at += 16
            }
            runs.append(run)
        }
    }

    /// Writes them.
    func write(_ id: UInt64, to images: ImageDirectory) throws(Failure) {
        let image = images.create(.sharedSums(id))
        for run in runs {
            var bytes = [UInt8](bytesOf: run.start.rawValue.littleEndian)
            bytes += [UInt8](bytesOf: UInt64(run.sums.count).littleEndian)
            for sum in run.sums { bytes += sum.bytes }
            try image.append(raw: bytes)
        }
        try image.finish()
    }

    /// The pages that are the same as earlier, ascending.
    func unchanged(since earlier: SharedMemorySums) -> [AddressRange] {
        var found: [AddressRange] = []
        var next = 0
        for run in runs {
            for (index, sum) in run.sums.enumerated() {
                let page = run.start + UInt64(index) * pageSize
                while next < earlier.runs.count, earlier.runs[next].range.end <= page { next += 1 }
                guard next < earlier.runs.count, earlier.runs[next].range.contains(page) else { continue }
                let other = earlier.runs[next]
                guard other.sums[Int((page.rawValue - other.start.rawValue) / pageSize)] == sum else { continue }
                if let last = found.last, last.end == page {
                    found[found.count - 1].end = page + pageSize
                } else {
                    found.append(AddressRange(start: page, end: page + pageSize))
                }
            }
        }
        return found
    }

    /// Changes that of one page, if there is one.
    fileprivate mutating func set(_ page: Address, _ sum: Checksum) {
        var (low, high) = (0, runs.count)
        while low < high {
            let middle = low + (high - low) / 2
            if runs[middle].range.end <= page { low = middle + 1 } else { high = middle }
        }
        guard low < runs.count, runs[low].range.contains(page) else { return }
        runs[low].sums[Int((page.rawValue - runs[low].start.rawValue) / pageSize)] = sum
    }
}

/// The hashes of pages that are written to while they are copied: of what was copied.
public final class NotedSums: Sendable {
    private let sums: Mutex<SharedMemorySums>

    /// Begins with hashes of all pages, which hold for those that are not copied.
    init(_ sums: SharedMemorySums) { self.sums = Mutex(sums) }

    /// Notes copied pages, which lie at an address of ours.
    func note(_ range: AddressRange, at address: Int) {
        let found = stride(from: 0, to: Int(range.length), by: Int(pageSize)).map {
            Checksum(at: address + $0, count: Int(pageSize))
        }
        sums.withLock { sums in
            for (index, sum) in found.enumerated() { sums.set(range.start + UInt64(index) * pageSize, sum) }
        }
    }

    /// All that are known by now.
    var all: SharedMemorySums { sums.withLock { $0 } }
}
