public import Diagnostics
public import Linux
internal import Synchronization

/// The pages of a file in memory, or of a task's memory, as they were at one moment, while its users write to it again.
///
/// Whoever is about to write to a page waits until `save` has put it aside, unless it was read for the last time before.
/// Several threads may read and save.
public final class HeldPages: Sendable {
    private let file: Int32
    /// Whether it is a task's memory (/proc/PID/mem), where offsets are addresses.
    private let isMemory: Bool
    private let stripes: [Stripe]
    /// Set to what went wrong: then the pages are not those of that moment.
    private let disturbance: Disturbance

    private final class Stripe: Sendable {
        let blocks = Mutex<[UInt64: Block]>([:])
    }

    /// 64 pages.
    private struct Block {
        /// Pages that nobody will read any more, a bit each.
        var finished: UInt64 = 0
        /// Pages that were put aside, by their number in the block.
        var saved: [Int: [UInt8]] = [:]
    }

    private static let blockSize = 64 * pageSize

    /// Holds a file's pages.
    ///
    /// - Parameter file: a descriptor that can be read, and stays open as long as this is used.
    public init(_ file: Int32, isMemory: Bool = false, disturbance: Disturbance) {
        (self.file, self.isMemory, self.disturbance) = (file, isMemory, disturbance)
        stripes = (0..<64).map { _ in Stripe() }
    }

    /// Calls `body` with each block that a range lies in, locked, and the range's part in it.
    private func forEachBlock<E: Error>(
        _ range: AddressRange, _ body: (inout Block, AddressRange) throws(E) -> Void
    ) throws(E) {
        var at = range.start
        while at < range.end {
            let number = at.rawValue / HeldPages.blockSize
            let end = min(range.end, Address((number + 1) * HeldPages.blockSize))
            let part = AddressRange(start: at, end: end)
            try stripes[Int(number % UInt64(stripes.count))].blocks.withLock { (blocks) throws(E) in
                try body(&blocks[number, default: Block()], part)
            }
            at = end
        }
    }

    private static func pages(_ part: AddressRange) -> Range<Int> {
        let first = Int(part.start.rawValue % blockSize / pageSize)
        return first..<(first + Int(part.length / pageSize))
    }

    private static func mask(_ pages: Range<Int>) -> UInt64 {
        (pages.count == 64 ? .max : (1 << UInt64(pages.count)) - 1) << UInt64(pages.lowerBound)
    }

    /// Reads whole pages. What lies behind the end of the file is zeros.
    ///
    /// - Parameter isLast: nobody will read them again.
    func read(_ range: AddressRange, to address: Int, isLast: Bool) throws(Failure) {
        try disturbance.check()
        try forEachBlock(range) { (block, part) throws(Failure) in
            let pages = HeldPages.pages(part)
            let into = address + Int(part.start.rawValue - range.start.rawValue)
            try readFile(part, to: into)
            if !block.saved.isEmpty {
                for (index, page) in pages.enumerated() {
                    block.saved[page]?.withConstantAddress { (saved, count) in
                        copyBytes(from: saved, to: into + index * Int(pageSize), count)
                    }
                }
            }
            if isLast { HeldPages.finish(pages, &block) }
        }
    }

    private static func finish(_ pages: Range<Int>, _ block: inout Block) {
        block.finished |= mask(pages)
        if !block.saved.isEmpty { for page in pages { block.saved[page] = nil } }
    }

    private func readFile(_ part: AddressRange, to address: Int) throws(Failure) {
        let got: Int
        do throws(SystemCallError) {
            got = try readFully(file, into: address, count: Int(part.length), at: part.start.rawValue)
        } catch {
            let failure = Failure(
                .vanished, "can't read the memory at \(part.start) as it was", advice: "Try again", cause: error)
            disturbance.note(failure)
            throw failure
        }
        guard got < Int(part.length) else { return }
        if isMemory {
            let failure = Failure(.vanished, "the memory at \(part.start) has gone", advice: "Try again")
            disturbance.note(failure)
            throw failure
        }
        zero(address + got, Int(part.length) - got)
    }

    /// Nobody will read these pages any more.
    func finish(_ range: AddressRange) {
        forEachBlock(range) { (block, part) in HeldPages.finish(HeldPages.pages(part), &block) }
    }

    /// Whether nobody will read any of these pages any more.
    public func isFinished(_ range: AddressRange) -> Bool {
        var isFinished = true
        forEachBlock(range) { (block, part) in
            let mask = HeldPages.mask(HeldPages.pages(part))
            if block.finished & mask != mask { isFinished = false }
        }
        return isFinished
    }

    /// Puts pages aside that are about to be written to. Returns how many.
    public func save(_ range: AddressRange) throws(Failure) -> Int {
        var count = 0
        try forEachBlock(range) { (block, part) throws(Failure) in
            for (index, page) in HeldPages.pages(part).enumerated()
            where block.finished >> UInt64(page) & 1 == 0 && block.saved[page] == nil {
                let start = part.start + UInt64(index) * pageSize
                var bytes = [UInt8](repeating: 0, count: Int(pageSize))
                try bytes.withAddress { (address, _) throws(Failure) in
                    try readFile(AddressRange(start: start, end: start + pageSize), to: address)
                }
                block.saved[page] = bytes
                count += 1
            }
        }
        return count
    }
}

/// Notes that something happened which held memory can't stand.
public final class Disturbance: Sendable {
    private let failure = Mutex<Failure?>(nil)
    /// Nothing so far.
    public init() {}
    /// Notes it. Only the first counts.
    public func note(_ new: Failure) { failure.withLock { if $0 == nil { $0 = new } } }
    /// Whether something was noted.
    public var isThere: Bool { failure.withLock { $0 != nil } }
    /// Throws what was noted.
    public func check() throws(Failure) { if let failure = failure.withLock({ $0 }) { throw failure } }
}
