internal import Diagnostics
internal import ImageMessages
internal import Linux
internal import SystemPackage

/// The address of a UNIX socket, and how to bind to it.
struct SocketName {
    private let entry: UnixSkEntry

    init(_ entry: UnixSkEntry) { self.entry = entry }

    private var name: [UInt8] { Array(entry.name) }
    private var isAbstract: Bool { name.first == 0 }

    /// `struct sockaddr_un`.
    var address: [UInt8] { [UInt8](bytesOf: UInt16(1)) + (isAbstract ? name : name.prefix { $0 != 0 } + [0]) }

    /// The directory that a relative name starts from.
    private var directory: [UInt8] { entry.hasNameDir ? Array(entry.nameDir) : Array("/".utf8) }

    /// Gives a socket its name.
    ///
    /// A name in a file system appears as a file, unless the socket had lost it, or shares it with the listener that it
    /// was accepted from: then it is bound inside a directory of our own, seen as the root.
    ///
    /// - Parameter others: sockets to connect to it while the name can be found.
    func bind(_ number: Int32, connecting others: [Int32] = []) throws(Failure) {
        guard name.count <= 108 else { throw Failure(.corruptImage, "its name is too long") }
        if isAbstract { return try bindHere(number) }
        if entry.deleted || (entry.state != 10 && entry.state != 7) || !entry.hasFilePerms {
            return try bindAside(number, connecting: others)
        }
        let path = name.first == 0x2f ? Array(name.prefix { $0 != 0 }) : directory + [0x2f] + name.prefix { $0 != 0 }
        if let status = try? FileStatus.read(path: path, followsLink: false), status.kind == .socket {
            try attempt("remove the old socket file") { () throws(SystemCallError) in
                try removeName(FilePath(bytes: path))
            }
        }
        if name.first == 0x2f {
            try bindHere(number)
        } else {
            try inOtherRoot(nil, directory) { () throws(SystemCallError) in try bindRaw(number) }
        }
        try attempt("give the socket file its owner and mode") { () throws(SystemCallError) in
            try withCString(path) { (path) throws(SystemCallError) in
                try systemCall(
                    .fchownat, Int(currentDirectory), path, Int(entry.filePerms.uid), Int(entry.filePerms.gid), 0x100)
                try systemCall(.fchmodat, Int(currentDirectory), path, Int(entry.filePerms.mode & 0o7777))
            }
        }
    }

    private func bindHere(_ number: Int32) throws(Failure) {
        try attempt("bind it to its name", code: .conflict, advice: "Remove what took the name") {
            () throws(SystemCallError) in
            try bindRaw(number)
        }
    }

    private func bindRaw(_ number: Int32) throws(SystemCallError) {
        try address.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.bind, Int(number), address, count)
        }
    }

    private func bindAside(_ number: Int32, connecting others: [Int32]) throws(Failure) {
        // Not named by our pid: another pid namespace may have the same one and the same /tmp.
        let root = Array("/tmp/.brumate-\(String(UInt64.random(in: 0...(.max)), radix: 16))".utf8)
        let plain = Array(name.prefix { $0 != 0 })
        let inside = plain.first == 0x2f ? plain : directory + [0x2f] + plain
        var made: [[UInt8]] = []
        func make(_ path: [UInt8]) throws(Failure) {
            try attempt("create a directory") { () throws(SystemCallError) in
                try withCString(path) { (path) throws(SystemCallError) in
                    try systemCall(.mkdirat, Int(currentDirectory), path, 0o700)
                }
            }
            made.append(path)
        }
        try make(root)
        var path = root
        for part in inside.split(separator: 0x2f).dropLast() {
            path += [0x2f] + part
            try make(path)
        }
        let outcome = Result { () throws(Failure) in
            try inOtherRoot(root, plain.first == 0x2f ? Array("/".utf8) : directory) { () throws(SystemCallError) in
                try bindRaw(number)
                for other in others {
                    try address.withConstantAddress { (address, count) throws(SystemCallError) in
                        try systemCall(.connect, Int(other), address, count)
                    }
                }
            }
        }
        _ = try? removeName(FilePath(bytes: root + inside))
        for path in made.reversed() { _ = try? removeName(FilePath(bytes: path), isDirectory: true) }
        try outcome.get()
    }

    /// Runs `body` with another root and working directory, and comes back.
    private func inOtherRoot(
        _ root: [UInt8]?, _ directory: [UInt8], _ body: @escaping () throws(SystemCallError) -> Void
    ) throws(Failure) {
        let here = try attempt("remember our directories") { () throws(SystemCallError) in try openFile(".", [.path]) }
        let top = try attempt("remember our directories") { () throws(SystemCallError) in try openFile("/", [.path]) }
        let (hereNumber, topNumber) = (Int(here.number), Int(top.number))
        let outcome = Result { () throws(SystemCallError) in
            if let root { try withCString(root) { (path) throws(SystemCallError) in try systemCall(.chroot, path) } }
            try withCString(directory) { (path) throws(SystemCallError) in try systemCall(.chdir, path) }
            try body()
        }
        try attempt("return to our directories") { () throws(SystemCallError) in
            if root != nil {
                try systemCall(.fchdir, topNumber)
                try withCString(".") { (path) throws(SystemCallError) in try systemCall(.chroot, path) }
            }
            try systemCall(.fchdir, hereNumber)
        }
        try attempt("bind it to its name") { () throws(SystemCallError) in try outcome.get() }
    }
}
