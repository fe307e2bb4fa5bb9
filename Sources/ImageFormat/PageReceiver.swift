public import Diagnostics

/// Whose pages a page map tells.
public enum PageOwner: Hashable, Sendable {
    /// A process's private memory, by its pid in the images.
    case process(Int32)
    /// A piece of shared memory, by its id.
    case shared(UInt64)

    /// The page map's image.
    public var image: ImageName {
        switch self {
        case .process(let id): .pagemap(id)
        case .shared(let id): .sharedPagemap(id)
        }
    }
}

/// Where page maps and pages go in place of an image directory: a page server.
public protocol PageReceiver: AnyObject {
    /// Whether what is sent together must be of one run, and begin at a multiple of 64 KiB in it.
    var keepsRunsApart: Bool { get }
    /// Begins a page map. Returns whether pages of it can be left to a parent image.
    func begin(_ owner: PageOwner) throws(Failure) -> Bool
    /// Adds a run of pages, in ascending order.
    func append(_ run: PageRun) throws(Failure)
    /// Adds contents of the last run, if its pages are present.
    func append(pagesFrom address: Int, count: Int) throws(Failure)
    /// Ends; returns when everything is safe at the other end.
    func finish() throws(Failure)
}
