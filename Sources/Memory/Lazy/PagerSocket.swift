public import Diagnostics
public import Linux
internal import SystemPackage

/// The connection between a restore and its pager, as CRIU's: pids and descriptors, then a word when the tasks run.
public enum PagerSocket {
    /// Its name in the work directory.
    public static let name = "lazy-pages.socket"
    /// What a restore says, instead of a pid, to a pager of ours before it names shared memory.
    static let shared: Int32 = Int32.min
    /// The question whether it has all pages in its images, which it answers by 1 or 0.
    static let question: Int32 = Int32.min + 1
    /// What a restore says, first of all, before the `LazyScope` of private memory. Without it, those pages come that the images
    /// call lazy.
    static let scope: Int32 = Int32.min + 2
    /// What the restore says at its end.
    static let finished: UInt32 = 0x5253_5446
    /// What a pager of ours says when all pages are there.
    static let complete: UInt32 = 0x4554_4c43

    private static func address(_ path: String) -> [UInt8] {
        [UInt8](bytesOf: UInt16(1)) + Array(path.utf8.prefix(107)) + [0]
    }

    private static func make() throws(SystemCallError) -> Descriptor {
        Descriptor(owning: Int32(try systemCall(.socket, 1, 1 | 0o2000000, 0)))  // AF_UNIX, SOCK_STREAM
    }

    /// Connects to a pager that listens in the working directory; nil if none does.
    public static func connect() throws(Failure) -> Descriptor? {
        do throws(SystemCallError) {
            let socket = try make()
            let number = Int(socket.number)
            try address(name).withConstantAddress { (bytes, count) throws(SystemCallError) in
                try systemCall(.connect, number, bytes, count)
            }
            return socket
        } catch {
            if error.errno == .ENOENT || error.errno == .ECONNREFUSED { return nil }
            throw Failure(.denied, "can't connect to the lazy-pages daemon by \(name)", cause: error)
        }
    }

    /// Whether the program that listens at the other end is this one, and not CRIU.
    public static func isOurs(_ socket: borrowing Descriptor) -> Bool {
        let number = Int(socket.number)
        var credentials: (id: Int32, user: UInt32, group: UInt32) = (0, 0, 0)
        var length = UInt32(12)
        let got = try? withAddress(of: &credentials) { (credentials) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, number, 1, 17, credentials, length)  // SOL_SOCKET, SO_PEERCRED
            }
        }
        guard got != nil, let theirs = try? FileStatus.read("/proc/\(credentials.id)/exe", in: currentDirectory),
            let ours = try? FileStatus.read("/proc/self/exe", in: currentDirectory)
        else { return false }
        return theirs.inode == ours.inode && theirs.device == ours.device
    }

    /// Waits in the working directory for one restore.
    ///
    /// - Parameter ready: called when a restore can connect.
    public static func accept(ready: () throws(Failure) -> Void) throws(Failure) -> Descriptor {
        let socket = try attempt("listen on \(name)", advice: "Pass a directory that can be written by --work-dir") {
            () throws(SystemCallError) in
            let socket = try make()
            let number = Int(socket.number)
            _ = try? removeName("lazy-pages.socket")
            try address(name).withConstantAddress { (bytes, count) throws(SystemCallError) in
                try systemCall(.bind, number, bytes, count)
            }
            try systemCall(.listen, number, 1)
            return socket
        }
        defer { _ = try? removeName("lazy-pages.socket") }
        try ready()
        let number = Int(socket.number)
        return try attempt("accept a restore on \(name)") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.accept4, number, 0, 0, 0o2000000)))
        }
    }

    /// A connected pair.
    public static func pair() throws(Failure) -> (Int32, Int32) {
        var pair: (Int32, Int32) = (0, 0)
        try attempt("create a socket pair") { () throws(SystemCallError) in
            try withAddress(of: &pair) { (pair) throws(SystemCallError) in
                try systemCall(.socketpair, 1, 1 | 0o2000000, 0, pair)
            }
        }
        return pair
    }

    static func send<T: BitwiseCopyable>(_ value: T, to socket: Int32) throws(Failure) {
        var value = value
        try attempt("tell the pager", advice: "See lazy-pages.log") { () throws(SystemCallError) in
            try withAddress(of: &value) { (address) throws(SystemCallError) in
                try systemCall(.sendto, Int(socket), address, MemoryLayout<T>.size, 0x4000, 0, 0)  // MSG_NOSIGNAL
            }
        }
    }

    /// The next value, nil at the end.
    static func receive<T: BitwiseCopyable>(_ type: T.Type, from socket: Int32) throws(Failure) -> T? {
        var bytes = [UInt8](repeating: 0, count: MemoryLayout<T>.size)
        let got = try? bytes.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.recvfrom, Int(socket), address, count, 0x100, 0, 0)  // MSG_WAITALL
        }
        return got == bytes.count ? bytes.load(type) : nil
    }

    /// Sends a userfaultfd with a byte, and a pidfd of its task behind it, which CRIU neither sends nor takes.
    static func send(_ descriptors: [Int32], to socket: Int32) throws(Failure) {
        try attempt("exchange a userfaultfd with the pager") { () throws(SystemCallError) in
            try SocketMessage.send([0], descriptors, to: socket)
        }
    }

    /// What is received.
    struct Received: ~Copyable {
        let faults: Descriptor
        /// Of the task.
        let pidfd: Descriptor?
    }

    /// Receives a userfaultfd, and a pidfd if one comes along.
    static func receive(from socket: Int32) throws(Failure) -> Received {
        var numbers = try attempt("exchange a userfaultfd with the pager") { () throws(SystemCallError) in
            try SocketMessage.receive(1, from: socket).descriptors
        }[...]
        guard let first = numbers.popFirst() else { throw Failure(.vanished, "the restore sent no userfaultfd") }
        let second = numbers.popFirst()
        for number in numbers { _ = try? systemCall(.close, Int(number)) }
        return Received(faults: Descriptor(owning: first), pidfd: second.map { Descriptor(owning: $0) })
    }
}
