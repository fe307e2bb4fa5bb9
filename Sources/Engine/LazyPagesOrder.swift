public import Diagnostics
internal import ImageFormat
public import Linux
public import Logging
internal import Memory
internal import Pages
public import SystemPackage

/// An order to bring pages to the tasks of one lazy restore.
public struct LazyPagesRequest: Sendable {
    /// The images that are restored.
    public var images: FilePath
    /// The page server that has the pages; nil if they are in the images.
    public var pageServer: PageServerPlace?
    /// A socket that a restore is connected to already; nil: one connects in the working directory.
    public var restore: Int32?
    /// Pages are compared with the hashes that the images have (off with `--no-verify`).
    public var verifies = true
    /// Starts a process that calls ``guardPager(_:)``, and returns the socket to it.
    public var startGuard: (@Sendable () throws(Failure) -> Descriptor)?

    /// An order for images.
    public init(images: FilePath) { self.images = images }
}

/// Brings the pages of one lazy restore until all are there, or the tasks are gone.
///
/// - Parameter ready: called when a restore can connect.
public func lazyPages(
    _ request: LazyPagesRequest, log: Logger, ready: () throws(Failure) -> Void
) throws(Failure) {
    let images = try ImageSet(request.images, verifies: request.verifies)
    let requester = try request.pageServer.map { (place) throws(Failure) in try PageRequester(place.connect()) }
    let restore: Descriptor
    if let number = request.restore {
        restore = Descriptor(owning: number)
        try ready()
    } else {
        restore = try PagerSocket.accept(ready: ready)
    }
    try Pager(restore, images, from: requester, log: log, startGuard: request.startGuard).run()
}

/// Kills the tasks of a pager that dies before they have all pages.
public func guardPager(_ socket: consuming Descriptor) throws(Failure) { try PagerGuard.run(socket) }

/// Connects to the pager that waits in the working directory; nil if none does.
public func connectToPager() throws(Failure) -> PagerConnection? {
    guard let socket = try PagerSocket.connect() else { return nil }
    let isOurs = PagerSocket.isOurs(socket)
    return PagerConnection(socket, isOurs: isOurs)
}

/// A restore's connection to its pager.
public struct PagerConnection: ~Copyable {
    /// The socket.
    let socket: Descriptor
    /// It is of this program. CRIU's knows private memory only.
    let isOurs: Bool
    /// It reads all pages from the images; nil if that is not known.
    let hasPages: Bool?

    /// With a connected socket.
    public init(_ socket: consuming Descriptor, isOurs: Bool, hasPages: Bool? = nil) {
        self.socket = socket
        self.isOurs = isOurs
        self.hasPages = hasPages
    }
}

/// A socket for a pager that is to be started, and the one for the restore.
public func pagerSockets() throws(Failure) -> (pager: Int32, restore: Int32) { try PagerSocket.pair() }
