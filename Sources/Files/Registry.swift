internal import Kinds

/// All kinds of open file. The first that claims a file dumps it. Epoll is wired last: what it watches is ready then.
let fileKinds: [any FileKind.Type] = [
    Refused.self, Pipe.self, Memfd.self, Eventfd.self, Signalfd.self, Timerfd.self, Pidfd.self, Inotify.self,
    Fanotify.self, BPFMap.self, IoUring.self, MessageQueue.self, NamespaceFile.self, InetSocket.self,
    PacketSocket.self, NetlinkSocket.self, UnixSocket.self, Fifo.self, Tty.self, RegularFile.self, ExternalFile.self,
    Epoll.self,
]
