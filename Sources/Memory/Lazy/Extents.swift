internal import Linux

/// Pages that still have to come: where they belong now, and where they were when the image was made.
struct Extents {
    /// Neighbours in the image that are neighbours now.
    struct Extent: Hashable {
        var range: AddressRange
        /// The address in the image of the first byte.
        var image: Address
        /// How many bytes come together at least: the size of its pages. Both addresses are multiples of it.
        var unit: UInt64 = pageSize

        /// The address in the image of one of its bytes.
        func image(of address: Address) -> Address { image + (address.rawValue - range.start.rawValue) }

        /// Where the part belongs that the image has in a range which overlaps it.
        func range(ofImage other: AddressRange) -> AddressRange {
            let (start, end) = (max(image, other.start), min(imageRange.end, other.end))
            let from = range.start + (start.rawValue - image.rawValue)
            return AddressRange(start: from, end: from + (end.rawValue - start.rawValue))
        }

        /// The addresses in the image.
        var imageRange: AddressRange { AddressRange(start: image, end: image + range.length) }

        /// The part that lies in a range which overlaps it.
        func part(in other: AddressRange) -> Extent {
            let start = max(range.start, other.start)
            return Extent(
                range: AddressRange(start: start, end: min(range.end, other.end)),
                image: image + (start.rawValue - range.start.rawValue), unit: unit)
        }

        /// The same, with what comes together with it.
        func whole(in other: AddressRange) -> Extent {
            guard unit > pageSize else { return part(in: other) }
            return part(
                in: AddressRange(
                    other.start.rawValue & ~(unit - 1), (other.end.rawValue + unit - 1) & ~(unit - 1)))
        }
    }

    /// Ascending by where they belong.
    private var list: ArraySlice<Extent> = []

    /// None.
    init() {}

    /// Ascending ones that don't overlap.
    init(_ extents: [Extent]) { list = extents[...] }

    var isEmpty: Bool { list.isEmpty }

    /// All, ascending.
    var all: [Extent] { Array(list) }

    /// Number of bytes.
    var length: UInt64 { list.reduce(0) { $0 + $1.range.length } }

    /// The first that ends after an address.
    private func index(endingAfter address: Address) -> Int {
        var (low, high) = (list.startIndex, list.endIndex)
        while low < high {
            let middle = low + (high - low) / 2
            if list[middle].range.end <= address { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// The one that an address lies in.
    func find(_ address: Address) -> Extent? {
        let index = index(endingAfter: address)
        return index < list.endIndex && list[index].range.contains(address) ? list[index] : nil
    }

    /// The parts that lie in a range.
    func parts(in range: AddressRange) -> [Extent] {
        list[index(endingAfter: range.start)...].prefix { $0.range.start < range.end }.map { $0.part(in: range) }
    }

    /// The parts that the image has in a range of its own addresses.
    func parts(image: AddressRange) -> [Extent] {
        list.filter { $0.imageRange.overlaps(image) }.map { $0.part(in: $0.range(ofImage: image)) }
    }

    /// Adds one. What is in its place already goes.
    mutating func insert(_ extent: Extent) {
        guard extent.range.start < extent.range.end else { return }
        remove(extent.range)
        list.insert(extent, at: index(endingAfter: extent.range.start))
    }

    /// Removes what lies in a range, and returns it in ascending order.
    @discardableResult
    mutating func remove(_ range: AddressRange) -> [Extent] {
        let first = index(endingAfter: range.start)
        var end = first
        var removed: [Extent] = []
        var rest: [Extent] = []
        while end < list.endIndex, list[end].range.start < range.end {
            let whole = list[end]
            removed.append(whole.part(in: range))
            if whole.range.start < range.start {
                rest.append(whole.part(in: AddressRange(start: whole.range.start, end: range.start)))
            }
            if whole.range.end > range.end {
                rest.append(whole.part(in: AddressRange(start: range.end, end: whole.range.end)))
            }
            end += 1
        }
        if end > first { list.replaceSubrange(first..<end, with: rest) }
        return removed
    }

    /// Removes the first part that lies in a range.
    mutating func removeFirst(in range: AddressRange) -> Extent? {
        let index = index(endingAfter: range.start)
        guard index < list.endIndex, list[index].range.overlaps(range) else { return nil }
        return remove(list[index].whole(in: range).range).first
    }

    /// Removes the first part that the image has in a range of its own addresses.
    mutating func removeFirst(image: AddressRange) -> Extent? {
        list.first { $0.imageRange.overlaps(image) }.flatMap {
            remove($0.whole(in: $0.range(ofImage: image)).range).first
        }
    }

    /// Removes what the image has in a range of its own addresses.
    mutating func remove(image: AddressRange) -> [Extent] {
        let ranges = list.filter { $0.imageRange.overlaps(image) }.map { $0.range(ofImage: image) }
        return ranges.flatMap { remove($0) }
    }

    /// Removes the first so many bytes, or what lies together of them.
    mutating func removeFirst(most: UInt64) -> Extent? {
        guard let first = list.first else { return nil }
        let part = first.whole(in: AddressRange(start: first.range.start, end: first.range.start + most))
        if part.range == first.range {
            list.removeFirst()
        } else {
            list[list.startIndex] = first.part(in: AddressRange(start: part.range.end, end: first.range.end))
        }
        return part
    }

    /// Moves what lies in a range elsewhere.
    mutating func move(_ range: AddressRange, to address: Address) {
        for var extent in remove(range) {
            let length = extent.range.length
            let start = address + (extent.range.start.rawValue - range.start.rawValue)
            extent.range = AddressRange(start: start, end: start + length)
            insert(extent)
        }
    }
}
