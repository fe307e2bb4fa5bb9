public import Diagnostics
public import Linux
public import SystemPackage

/// The network namespace of a tree. Whoever looks at sockets, makes them, or talks to the kernel's network does so inside of
/// it; scripts, page servers, plugins and whatever else is not the tree's belong outside.
public final class TreeNetwork {
    /// How the kernel names the tree's namespace.
    public let theirs: String
    private let ours: String
    private let namespace: Descriptor

    /// Whether the tree is in another namespace than we are.
    public var isApart: Bool { theirs != ours }

    private init(_ namespace: consuming Descriptor) throws(Failure) {
        let number = namespace.number
        (ours, theirs) = try attempt("look at a network namespace") { () throws(SystemCallError) in
            let home = try NamespaceVisit.here(NamespaceKind.net.rawValue)
            return (
                try readLink("/proc/self/fd/\(home.number)").string, try readLink("/proc/self/fd/\(number)").string
            )
        }
        self.namespace = namespace
    }

    /// The one of a running task.
    public convenience init(of task: TaskID) throws(Failure) {
        try self.init(NamespaceKind.net.open(of: task))
    }

    /// One that has a path, such as /run/netns/NAME.
    public convenience init(at path: FilePath) throws(Failure) {
        let advice = "Name a task, or a file as `ip netns add` makes it"
        try self.init(
            attempt("open the network namespace \(path)", code: .usage, advice: advice) { () throws(SystemCallError) in
                let namespace = try openFile(path)
                // NS_GET_NSTYPE
                guard try systemCall(.ioctl, Int(namespace.number), 0xb703) == 0x4000_0000 else {
                    throw SystemCallError(.ioctl, .EINVAL)
                }
                return namespace
            })
    }

    /// A new one, which nobody else is in.
    public static func make() throws(Failure) -> TreeNetwork {
        try TreeNetwork(
            attempt("make a network namespace") { () throws(SystemCallError) in
                let kind = NamespaceKind.net
                let visit = try NamespaceVisit.beginInNew(kind.rawValue, kind.flag)
                let outcome = Result { () throws(SystemCallError) in
                    try NamespaceVisit.here(kind.rawValue).release()
                }
                visit.end()
                return Descriptor(owning: try outcome.get())
            })
    }

    /// Does something inside. Whatever becomes of it, our thread is back afterwards.
    @discardableResult
    public func inside<R>(_ body: () throws(Failure) -> R) throws(Failure) -> R {
        guard isApart else { return try body() }
        return try NamespaceKind.net.inside(namespace.number, body)
    }
}
