internal import Kinds

/// All kinds of open file. The first that claims a file dumps it. Epoll is wired last: what it watches is ready then.
let fileKinds: [any FileKind.Type] = [
    Refused.self, Pipe.self, Memfd.self, Eventfd.self, Signalfd.self, Timerfd.self, Pidfd.self, Inotify.self,
    Fanotify.self, BPFMap.self, IoUring.self, MessageQueue.self, NamespaceFile.self, InetSocket.self,
    PacketSocket.self, NetlinkSocket.self, VsockSocket.self, UnixSocket.self, Fifo.self, Tty.self, Tun.self,
    Userfault.self,
    RegularFile.self, PluginFile.self, ExternalFile.self, Epoll.self,
]

/// The kind of a file under dump, nil if none claims it. What the user leaves outside comes first, then plugins, where we
/// know no better than to open a path again.
func fileKind(of facts: FileFacts, _ policy: DumpPolicy, _ plugins: Plugins) -> (any FileKind.Type)? {
    let kind = fileKinds.first { $0.claims(facts) }
    if let kind, kind != Refused.self, kind != RegularFile.self { return kind }
    let external = ExternalFile.kind(of: facts, policy)
    if external == nil, PluginFile.plugin(for: facts, plugins) != nil { return PluginFile.self }
    return kind ?? external
}

/// The kind that all sockets of an address family are of, where sockets have much to be asked for.
func socketKind(_ family: Int32) -> (any FileKind.Type)? {
    switch family {
    case 1: UnixSocket.self
    case 2, 10: InetSocket.self
    default: nil
    }
}
