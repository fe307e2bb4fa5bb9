/// A stay of the calling thread in another namespace (`setns(2)`): of the network, of IPC or of the host's name. Threads and
/// children that it makes meanwhile are born there. It goes back when the stay ends, whatever happens.
public struct NamespaceVisit: ~Copyable {
    private let flag: Int
    private let home: Descriptor

    private init(_ flag: Int, from home: consuming Descriptor) {
        self.flag = flag
        self.home = home
    }

    /// Enters a namespace.
    ///
    /// - Parameters:
    ///   - name: the kind, as in /proc/PID/ns.
    ///   - flag: `CLONE_NEW…`.
    public static func begin(
        in namespace: Int32, _ name: String, _ flag: UInt64
    ) throws(SystemCallError) -> NamespaceVisit {
        let home = try here(name)
        try systemCall(.setns, Int(namespace), Int(flag))
        return NamespaceVisit(Int(flag), from: home)
    }

    /// Makes a namespace and enters it (`unshare(2)`).
    public static func beginInNew(_ name: String, _ flag: UInt64) throws(SystemCallError) -> NamespaceVisit {
        let home = try here(name)
        try systemCall(.unshare, Int(flag))
        return NamespaceVisit(Int(flag), from: home)
    }

    /// The namespace of a kind that the calling thread is in.
    public static func here(_ name: String) throws(SystemCallError) -> Descriptor {
        try openFile("/proc/thread-self/ns/\(name)")
    }

    deinit { _ = try? systemCall(.setns, Int(home.number), flag) }

    /// Goes back now.
    public consuming func end() {}
}
