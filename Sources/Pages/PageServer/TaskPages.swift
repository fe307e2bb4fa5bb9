public import Diagnostics
internal import ImageFormat
public import Linux

/// Pages of stopped tasks, for those who ask.
public final class TaskPages: PageProvider {
    private var known: [Int32: (stretches: [PageStretch], source: PageSource)] = [:]

    /// None yet.
    public init() {}

    /// Adds a process with its pages, ascending.
    public func add(_ process: Int32, _ stretches: [PageStretch], from source: PageSource) {
        known[process] = (stretches, source)
    }

    /// The pages of a process that lie in a range from its start on, without a gap.
    private func together(_ process: Int32, _ range: AddressRange) -> [PageStretch] {
        let stretches = known[process]?.stretches ?? []
        var (low, high) = (0, stretches.count)
        while low < high {
            let middle = (low + high) / 2
            if stretches[middle].range.end <= range.start { low = middle + 1 } else { high = middle }
        }
        var found: [PageStretch] = []
        var at = range.start
        while at < range.end, low < stretches.count, stretches[low].range.contains(at) {
            var part = stretches[low]
            part.range = AddressRange(start: at, end: min(range.end, part.range.end))
            found.append(part)
            at = part.range.end
            low += 1
        }
        return found
    }

    /// How many bytes there are from the start of a range on.
    public func available(_ process: Int32, _ range: AddressRange) throws(Failure) -> UInt64 {
        together(process, range).reduce(0) { $0 + $1.range.length }
    }

    /// Reads pages that are available.
    public func read(_ process: Int32, _ range: AddressRange, into address: Int) throws(Failure) {
        guard let source = known[process]?.source else { throw Failure(.bug, "pages of an unknown process") }
        let stretches = together(process, range)
        var at = address
        for chunk in Chunk.cut(stretches.map(\.range.length)) {
            try fill(at, chunk, stretches, source)
            at += chunk.length
        }
    }
}
