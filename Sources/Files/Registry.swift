internal import Kinds

/// All kinds of open file. The first that claims a file dumps it.
let fileKinds: [any FileKind.Type] = [
    Pipe.self, Memfd.self, Eventfd.self, IoUring.self, MessageQueue.self, NamespaceFile.self, UnixSocket.self,
    Fifo.self,
    RegularFile.self,
]
