internal import Synchronization

/// A stay of this process in another root directory, that of a tree in a mount namespace of its own: paths of bytes lead to the
/// tree's files meanwhile. Paths that are text are ours, and lead into our /proc all the same, which is the working directory
/// for that time. The process goes back when the stay ends, whatever happens.
public struct RootVisit: ~Copyable {
    private struct Places {
        let home: Int32, place: Int32, procfs: Int32
        var root: Int32
    }

    private static let current = Mutex<Places?>(nil)
    private static let away = Atomic<Bool>(false)

    /// Whether our root directory is another's.
    public static var isAway: Bool { away.load(ordering: .relaxed) }

    /// Changes the root directory (`chroot(2)`). All threads have the same.
    ///
    /// - Parameter root: a descriptor of it, open for the time of the stay.
    /// - Throws: `EBUSY` if the process is away already.
    public static func begin(in root: Int32) throws(SystemCallError) -> RootVisit {
        guard !isAway else { throw SystemCallError(.chroot, .EBUSY) }
        let home = try openFile("/", [.path, .directory])
        let place = try openFile(".", [.path, .directory])
        let procfs = try openFile("/proc", [.path, .directory])
        let places = Places(home: home.release(), place: place.release(), procfs: procfs.release(), root: root)
        current.withLock { $0 = places }
        let visit = RootVisit()
        try go(to: root, procfs: places.procfs)
        return visit
    }

    /// Comes home for something that has nothing to do with the tree, such as to start a program.
    public static func outside<R, E: Error>(_ body: () throws(E) -> R) throws(E) -> R {
        guard isAway, let places = current.withLock({ $0 }) else { return try body() }
        comeHome(places)
        let outcome = Result { () throws(E) in try body() }
        _ = try? go(to: places.root, procfs: places.procfs)
        return try outcome.get()
    }

    /// Goes on to another root within a stay.
    ///
    /// - Returns: the descriptor of the one before.
    /// - Throws: `EINVAL` if the process is at home.
    public static func move(to root: Int32) throws(SystemCallError) -> Int32 {
        guard isAway, var places = current.withLock({ $0 }) else { throw SystemCallError(.chroot, .EINVAL) }
        let before = places.root
        try go(to: root, procfs: places.procfs)
        places.root = root
        current.withLock { $0 = places }
        return before
    }

    private static func go(to root: Int32, procfs: Int32) throws(SystemCallError) {
        try change(to: root)
        away.store(true, ordering: .relaxed)
        try systemCall(.fchdir, Int(procfs))
    }

    private static func comeHome(_ places: Places) {
        _ = try? change(to: places.home)
        _ = try? systemCall(.fchdir, Int(places.place))
        away.store(false, ordering: .relaxed)
    }

    private static func change(to root: Int32) throws(SystemCallError) {
        try systemCall(.fchdir, Int(root))
        try withCString([0x2e]) { (here) throws(SystemCallError) in try systemCall(.chroot, here) }
    }

    deinit {
        guard let places = RootVisit.current.withLock({ $0 }) else { return }
        RootVisit.comeHome(places)
        RootVisit.current.withLock { $0 = nil }
        for number in [places.home, places.place, places.procfs] { _ = try? systemCall(.close, Int(number)) }
    }

    /// Goes back now.
    public consuming func end() {}
}

/// A path that is known to be text, such as one in our /proc: how it is found from where we are now.
public func ourPath(_ text: String) -> String {
    guard RootVisit.isAway, text.hasPrefix("/proc/") else { return text }
    return String(text.dropFirst("/proc/".count))
}
