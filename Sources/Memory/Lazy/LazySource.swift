public import Kinds
public import Pages

/// The pages that a dump leaves with the stopped tasks.
public final class LazySource {
    /// All pages of all processes.
    public let pages = TaskPages()

    /// The one of a dump.
    public static func of(_ context: DumpContext) -> LazySource { context.state(LazySource.self) { LazySource() } }
}
