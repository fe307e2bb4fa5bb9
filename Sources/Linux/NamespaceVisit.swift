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
        let home = try openFile("/proc/thread-self/ns/\(name)")
        try systemCall(.setns, Int(namespace), Int(flag))
        return NamespaceVisit(Int(flag), from: home)
    }

    deinit { _ = try? systemCall(.setns, Int(home.number), flag) }

    /// Goes back now.
    public consuming func end() {}
}
