internal import ImageFormat
internal import Linux
internal import Pages
internal import Procfs

extension Area {
    /// Whether its pages may come after the task runs: CRIU's rule, and what has another handler of faults is not ours.
    var canBeLazy: Bool { canBeLazyOrHuge && flags & MapFlags.hugePages == 0 }

    private var canBeLazyOrHuge: Bool {
        status.contains(.anonymousPrivate) && isMapped && !isFile && !status.contains(.aioRing)
            && flags & (MapFlags.shared | MapFlags.locked | MapFlags.droppable) == 0 && !more.contains("um")
    }

    /// The size of the pages that come together in it, if they are huge and can come later.
    var lazyUnit: UInt64? {
        guard canBeLazyOrHuge, flags & MapFlags.hugePages != 0, !mayLackHugePages else { return nil }
        let logarithm = flags >> MapFlags.hugeShift & 0x3f
        // Larger ones would hold everybody up.
        return logarithm == 0 || logarithm == 21 ? 2 << 20 : nil
    }

    /// Whether huge pages may run out when they are to come: nobody has promised them.
    private var mayLackHugePages: Bool { flags & MapFlags.hugePages != 0 && flags & MapFlags.noReserve != 0 }

    /// Whether shared memory may be filled after the task runs. The kernel reports no faults where nobody may write to the file;
    /// and filling a private mapping, as a restore does, takes zeros for what is not there yet.
    var canBePostponed: Bool {
        flags & (MapFlags.shared | MapFlags.locked) == MapFlags.shared && !more.contains("um") && access ?? 2 == 2
            && !mayLackHugePages
    }
}

extension VMA {
    /// The same rule on dump.
    var canBeLazy: Bool {
        inode == 0 && !isShared && !isOfKernel && !isDevice
            && ["lo", "ht", "dp", "um"].allSatisfy { !flags.all.contains($0) }
    }
}

/// Which private pages come later.
enum LazyScope: Int32 {
    /// Those that the images call lazy.
    case marked
    /// All that can, as all are at hand: those in parents, too.
    case all
    /// Huge ones besides.
    case allAndHuge
}

/// The pages of an address space that come when they are needed.
struct LazyRanges {
    /// Ascending, none reaches over the end of an area.
    private(set) var extents: [Extents.Extent] = []
    /// The areas of huge pages, with their sizes.
    private(set) var huge: [Extents.Extent] = []

    var ranges: [AddressRange] { extents.map(\.range) }

    /// Finds them in areas that can be lazy.
    init(_ pagemap: Pagemap, _ areas: [Area], _ scope: LazyScope) {
        let lazy = pagemap.runs.filter { $0.isLazy || (scope != .marked && ($0.isPresent || $0.isInParent)) }
            .map(\.range).joined()
        var next = 0
        for area in areas {
            let unit = scope == .allAndHuge ? area.lazyUnit : nil
            guard area.canBeLazy || unit != nil else { continue }
            let found = parts(of: lazy, in: area.range, from: &next)
            if let unit {
                // A part of a huge page can't come alone.
                let ends = [area.range] + found
                guard ends.allSatisfy({ $0.start.rawValue % unit == 0 && $0.length % unit == 0 }) else { continue }
                huge.append(Extents.Extent(range: area.range, image: area.range.start, unit: unit))
            }
            extents += found.map { Extents.Extent(range: $0, image: $0.start, unit: unit ?? pageSize) }
        }
    }
}

extension [AddressRange] {
    /// Ascending ranges, of which those that follow each other are one.
    fileprivate func joined() -> [AddressRange] {
        reduce(into: []) { all, range in
            if let last = all.last, last.end == range.start {
                all[all.count - 1] = AddressRange(start: last.start, end: range.end)
            } else {
                all.append(range)
            }
        }
    }
}
