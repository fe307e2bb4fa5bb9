/// What the user orders: the first word of the command line that is not an option.
public enum Action: String, CaseIterable, Sendable {
    /// Write a tree to images.
    case dump
    /// Write memory only, ahead of a dump.
    case preDump = "pre-dump"
    /// Bring a tree back.
    case restore
    /// Look at what this kernel can do.
    case check
    /// Receive pages over the network.
    case pageServer = "page-server"
    /// Serve pages to lazily restored tasks.
    case lazyPages = "lazy-pages"
    /// Answer RPC requests on a socket.
    case service
    /// Answer RPC requests on an inherited descriptor.
    case serviceWorker = "swrk"
    /// Drop pages from parent images that their children hold anew.
    case deduplicate = "dedup"
    /// Turn packed images into CRIU's format.
    case unpack
    /// Send a directory of images as a stream.
    case send
    /// Save a stream as a directory of images.
    case receive
    /// Write the CPU image.
    case cpuDump = "cpuinfo dump"
    /// Compare this CPU with the CPU image.
    case cpuCheck = "cpuinfo check"
    /// A command that CRIU no longer has.
    case exec
    /// A command that CRIU no longer has.
    case show

    /// The issue that brings this action, if it is not there yet.
    public var later: String? {
        switch self {
        case .dump, .preDump, .restore, .check, .deduplicate, .unpack, .cpuDump, .cpuCheck, .exec, .show, .pageServer,
            .lazyPages, .send, .receive:
            nil
        case .service, .serviceWorker: "the RPC service"
        }
    }
}
