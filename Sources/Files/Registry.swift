internal import Kinds

/// All kinds of open file. The first that claims a file dumps it.
let fileKinds: [any FileKind.Type] = [
    Refused.self, Pipe.self, Memfd.self, Eventfd.self, Inotify.self, Fanotify.self, BPFMap.self, NamespaceFile.self,
    UnixSocket.self, Fifo.self, RegularFile.self,
]
