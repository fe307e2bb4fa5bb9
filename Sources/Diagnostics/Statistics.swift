/// Times and counts of one order, for the stats images and `--display-stats`.
public struct Statistics: Sendable {
    /// Named stretches of time, as CRIU's stats images name them.
    public enum Stretch: Int, CaseIterable, Sendable {
        /// Stopping the tree.
        case freezing
        /// From the first stop to the last thaw.
        case frozen
        /// Finding and reading pages.
        case memoryDump
        /// Writing pages.
        case memoryWrite
        /// Finding link remaps by inode.
        case irmapResolve
        /// Creating the tasks on restore.
        case forking
        /// The whole restore.
        case restoring
    }

    private var times: [Duration] = .init(repeating: .zero, count: Stretch.allCases.count)
    /// Pages looked at.
    public var pagesScanned: UInt64 = 0
    /// Pages left to a parent image.
    public var pagesSkippedParent: UInt64 = 0
    /// Pages written to `pages-*.img` of private memory.
    public var pagesWritten: UInt64 = 0
    /// Pages left for lazy reading.
    public var pagesLazy: UInt64 = 0
    /// Page pipes used; always 0, kept for the format.
    public var pagePipes: UInt64 = 0
    /// Shared memory pages looked at.
    public var sharedPagesScanned: UInt64 = 0
    /// Shared memory pages left to a parent image.
    public var sharedPagesSkippedParent: UInt64 = 0
    /// Shared memory pages written.
    public var sharedPagesWritten: UInt64 = 0
    /// Pages compared with the parent's for copy-on-write on restore.
    public var pagesCompared: UInt64 = 0
    /// Of these, left shared.
    public var pagesSkippedCopyOnWrite: UInt64 = 0
    /// Pages restored.
    public var pagesRestored: UInt64 = 0

    /// All zero.
    public init() {}

    /// The time of one stretch so far.
    public subscript(stretch: Stretch) -> Duration {
        get { times[stretch.rawValue] }
        set { times[stretch.rawValue] = newValue }
    }

    /// The time of one stretch in microseconds, as the image wants it.
    public func microseconds(_ stretch: Stretch) -> UInt32 {
        let (seconds, attoseconds) = self[stretch].components
        return UInt32(clamping: seconds * 1_000_000 + attoseconds / 1_000_000_000_000)
    }
}
