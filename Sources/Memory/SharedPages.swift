internal import Diagnostics
internal import ImageFormat
internal import Kinds
internal import Linux
internal import Pages
internal import Remote

/// Pages that processes of a tree share copy-on-write, so that they are written once.
///
/// A process that shares nothing with those before it is a *base*: all its pages are written. A descendant of a base
/// refers to the pages that both still have in the same frame.
final class SharedPages {
    /// A process whose pages are all written.
    private final class Base {
        let pagemap: Pagemap
        let frames: [[UInt64]]

        init(_ pagemap: Pagemap, _ frames: [[UInt64]]) {
            self.pagemap = pagemap
            self.frames = frames
        }
    }

    private var bases: [TaskID: Base] = [:]
    private var baseOf: [TaskID: TaskID] = [:]
    private var referring: [(name: ImageName, pagemap: Pagemap)] = []
    /// Those who refer to the previous images.
    private var inheriting: [(name: ImageName, runs: [PageRun])] = []

    /// Fewer shared pages than this are written again.
    private static let fewest: UInt64 = 16

    static func of(_ context: DumpContext) -> SharedPages { context.state(SharedPages.self) { SharedPages() } }

    /// Divides the pages of a process into those to be written and those that its base has.
    ///
    /// - Parameter id: the pages file that its own pages go to.
    func divide(_ runs: [PageRun], of process: DumpedProcess, pagesID id: UInt32, _ scan: borrowing PagemapScan)
        throws(Failure) -> [PageRun]
    {
        // A page map can't refer to both a base and the same process in the previous images. Who has something there is a
        // base, with the pages that it has here.
        let inherited = runs.filter(\.isInParent)
        if !inherited.isEmpty { inheriting.append((.pagemap(process.number), inherited)) }
        let present = runs.filter(\.isPresent)
        var frames: [[UInt64]] = []
        for run in present { frames.append(try scan.frames(run.range)) }
        if !inherited.isEmpty {
            bases[process.id] = Base(Pagemap(pagesID: id, runs: present), frames)
            return runs
        }
        let parent = process.frozen.parent
        guard let origin = bases[parent] != nil ? parent : baseOf[parent], let base = bases[origin] else {
            bases[process.id] = Base(Pagemap(pagesID: id, runs: runs), frames)
            return runs
        }
        let divided = compare(runs, frames, with: base)
        let shared = divided.reduce(0) { $0 + ($1.isInParent ? $1.pages : 0) }
        guard shared >= SharedPages.fewest else {
            bases[process.id] = Base(Pagemap(pagesID: id, runs: runs), frames)
            return runs
        }
        baseOf[process.id] = origin
        referring.append((.pagemap(process.number), base.pagemap))
        return divided
    }

    private func compare(_ runs: [PageRun], _ frames: [[UInt64]], with base: Base) -> [PageRun] {
        var divided: [PageRun] = []
        var next = 0
        for (index, run) in runs.enumerated() {
            for page in 0..<Int(run.pages) {
                let address = run.address + UInt64(page) * pageSize
                while next < base.pagemap.runs.count, base.pagemap.runs[next].range.end <= address { next += 1 }
                var isShared = false
                if next < base.pagemap.runs.count, base.pagemap.runs[next].range.contains(address) {
                    let there = Int((address.rawValue - base.pagemap.runs[next].address.rawValue) / pageSize)
                    let frame = frames[index][page]
                    isShared = frame != 0 && frame == base.frames[next][there]
                }
                if let last = divided.last, last.range.end == address, last.isInParent == isShared,
                    last.isLazy == run.isLazy, page > 0
                {
                    divided[divided.count - 1].pages += 1
                } else {
                    divided.append(
                        PageRun(
                            address: address, pages: 1, isPresent: !isShared, isInParent: isShared, isLazy: run.isLazy))
                }
            }
        }
        return divided
    }

    /// Writes the page maps of those who refer to a base.
    func finish(_ context: DumpContext) {
        context.images.share(referring, inheriting: inheriting)
        (referring, inheriting) = ([], [])
    }
}
