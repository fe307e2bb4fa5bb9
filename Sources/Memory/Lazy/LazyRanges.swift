internal import ImageFormat
internal import Linux
internal import Pages
internal import Procfs

extension Area {
    /// Whether its pages may come after the task runs: CRIU's rule, and what has another handler of faults is not ours.
    var canBeLazy: Bool {
        status.contains(.anonymousPrivate) && isMapped && !isFile && !status.contains(.aioRing)
            && flags & (MapFlags.shared | MapFlags.locked | MapFlags.hugePages | MapFlags.droppable) == 0
            && !more.contains("um")
    }

    /// Whether shared memory may be filled after the task runs. The kernel reports no faults where nobody may write to the file;
    /// and filling a private mapping, as a restore does, takes zeros for what is not there yet.
    var canBePostponed: Bool {
        flags & (MapFlags.shared | MapFlags.locked) == MapFlags.shared && !more.contains("um") && access ?? 2 == 2
    }
}

extension VMA {
    /// The same rule on dump.
    var canBeLazy: Bool {
        inode == 0 && !isShared && !isOfKernel && !isDevice
            && ["lo", "ht", "dp", "um"].allSatisfy { !flags.all.contains($0) }
    }
}

/// The pages of an address space that come when they are needed.
struct LazyRanges {
    /// Ascending, none reaches over the end of an area.
    private(set) var ranges: [AddressRange] = []

    /// Finds them: what the page map calls lazy, in areas that can be.
    init(_ pagemap: Pagemap, _ areas: [Area]) {
        let lazy = pagemap.runs.filter(\.isLazy).map(\.range)
        var next = 0
        for area in areas where area.canBeLazy { ranges += parts(of: lazy, in: area.range, from: &next) }
    }
}
