/// A stay of the calling thread in another network namespace (`setns(2)`). Threads and children that it makes meanwhile are
/// born there. It goes back when the stay ends, whatever happens.
public struct NetworkVisit: ~Copyable {
    /// `CLONE_NEWNET`.
    private static let kind = 0x4000_0000
    private let home: Descriptor

    private init(from home: consuming Descriptor) { self.home = home }

    /// Enters a namespace.
    public static func begin(in namespace: Int32) throws(SystemCallError) -> NetworkVisit {
        let home = try here()
        try systemCall(.setns, Int(namespace), kind)
        return NetworkVisit(from: home)
    }

    /// Makes a namespace and enters it (`unshare(2)`).
    public static func beginInNew() throws(SystemCallError) -> NetworkVisit {
        let home = try here()
        try systemCall(.unshare, kind)
        return NetworkVisit(from: home)
    }

    deinit { _ = try? systemCall(.setns, Int(home.number), NetworkVisit.kind) }

    /// Goes back now.
    public consuming func end() {}

    /// The namespace that the calling thread is in.
    public static func here() throws(SystemCallError) -> Descriptor { try openFile("/proc/thread-self/ns/net") }
}
