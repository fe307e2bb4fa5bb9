internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import SystemPackage

/// The address of a UNIX socket, and how to bind to it.
struct SocketName {
    private let entry: UnixSkEntry

    init(_ entry: UnixSkEntry) { self.entry = entry }

    /// A name that no file in the image's tree has.
    init(sender name: [UInt8]) {
        var entry = UnixSkEntry()
        entry.name = imageBytes(name)
        entry.deleted = true
        self.entry = entry
    }

    private var name: [UInt8] { Array(entry.name) }
    private var isAbstract: Bool { name.first == 0 }
    private var path: [UInt8] { Array(name.prefix { $0 != 0 }) }
    private var isAbsolute: Bool { name.first == 0x2f }

    /// `struct sockaddr_un`.
    var address: [UInt8] { SocketName.address(isAbstract ? name : path + [0]) }

    /// `struct sockaddr_un` of what follows the family.
    static func address(_ name: [UInt8]) -> [UInt8] { [UInt8](bytesOf: UInt16(1)) + name }

    /// The directory that a relative name starts from.
    private var directory: [UInt8] { entry.hasNameDir ? Array(entry.nameDir) : Array("/".utf8) }

    /// Where the file is to be; nil for abstract names, and for files that are gone.
    var place: [UInt8]? {
        if isAbstract || name.isEmpty { return nil }
        if entry.hasPlace { return Array(entry.place) }
        if entry.deleted || !entry.hasFilePerms { return nil }
        return isAbsolute ? path : directory + [0x2f] + path
    }

    /// Gives a socket its name, and if it is to have one a file that only root can use until `open`.
    ///
    /// A file that is gone, or at another place than the name says, is made in a directory of our own that is seen as
    /// the root, and then removed or moved.
    func bind(_ number: Int32, aside: Bool, _ others: UnixDiagnoses) throws(Failure) {
        guard name.count <= 108, !entry.hasPlace || entry.place.count < 4096 else {
            throw Failure(.corruptImage, "its name is too long")
        }
        if isAbstract { return try bindHere(number) }
        guard !aside, let place else { return try bindAside(number, root: Array("/tmp".utf8), movingTo: nil) }
        try clear(place, others)
        try attempt("close its file to others") { () throws(SystemCallError) in
            try systemCall(.fchmod, Int(number), 0)
        }
        if entry.hasPlace {
            let parent = Array(place[..<(place.lastIndex(of: 0x2f) ?? 0)])
            try bindAside(number, root: parent, movingTo: place)
        } else if isAbsolute {
            try bindHere(number)
        } else {
            try inOtherRoot(nil, directory) { () throws(SystemCallError) in try bindRaw(number) }
        }
    }

    /// Gives the file of a bound socket its owner and mode.
    func open(_ number: Int32, _ owners: TreeOwners) throws(Failure) {
        guard place != nil, entry.hasFilePerms else { return }
        try attempt("give the socket file its owner and mode") { () throws(SystemCallError) in
            let door = try SocketName.door(number)
            let text = "/proc/self/fd/\(door.number)"
            try withCString(text) { (path) throws(SystemCallError) in
                try systemCall(
                    .fchownat, Int(currentDirectory), path, owners.ourUser(entry.filePerms.uid),
                    owners.ourGroup(entry.filePerms.gid), 0)
                try systemCall(.fchmodat, Int(currentDirectory), path, Int(entry.filePerms.mode & 0o7777))
            }
        }
    }

    /// Opens the file that a socket is bound to, wherever it is and even if it is gone (`SIOCUNIXFILE`).
    static func door(_ number: Int32) throws(SystemCallError) -> Descriptor {
        Descriptor(owning: Int32(try systemCall(.ioctl, Int(number), 0x89e0)))
    }

    /// Whether a living socket of others has the file.
    func isTaken(_ others: UnixDiagnoses) throws(Failure) -> Bool {
        guard let place, let status = try? FileStatus.read(path: place, followsLink: false), status.kind == .socket
        else { return false }
        return try others.bound(to: status) != nil
    }

    /// Removes a file that the dumped socket left. It must be nobody's by now.
    private func clear(_ place: [UInt8], _ others: UnixDiagnoses) throws(Failure) {
        guard let status = try? FileStatus.read(path: place, followsLink: false), status.kind == .socket else { return }
        // Sockets that were under way to each other end only with the kernel's next collection.
        for _ in 0..<SocketName.mostTries where try others.bound(to: status) != nil {
            pause(nanoseconds: 10_000_000)
        }
        guard try others.bound(to: status) == nil else {
            throw Failure(
                .conflict, "another program has a socket at \(String(decoding: place, as: UTF8.self))",
                advice: "End that program, or move its socket away")
        }
        try attempt("remove the old socket file") { () throws(SystemCallError) in
            try removeName(FilePath(bytes: place))
        }
    }

    private static let mostTries = 50

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

    private func bindAside(_ number: Int32, root parent: [UInt8], movingTo place: [UInt8]?) throws(Failure) {
        // Not named by our pid: another pid namespace may have the same one and the same /tmp.
        let root = parent + Array("/.brumate-\(String(UInt64.random(in: 0...(.max)), radix: 16))".utf8)
        var made: [[UInt8]] = []
        func make(_ path: [UInt8]) throws(Failure) {
            try attempt("create a directory") { () throws(SystemCallError) in
                try withCString(path) { (path) throws(SystemCallError) in
                    try systemCall(.mkdirat, Int(currentDirectory), path, 0o700)
                }
            }
            made.append(path)
        }
        defer { for path in made.reversed() { _ = try? removeName(FilePath(bytes: path), isDirectory: true) } }
        try make(root)
        // A relative name may lead upwards: it starts as far down.
        let parts = path.split(separator: 0x2f)
        var at: [[UInt8]] = []
        func enter(_ part: [UInt8]) throws(Failure) {
            at.append(part)
            let path = root + at.flatMap { [0x2f] + $0 }
            if !made.contains(path) { try make(path) }
        }
        if !isAbsolute {
            for part in parts where part.elementsEqual("..".utf8) { try enter(Array("down".utf8)) }
        }
        let start = Array("/".utf8) + at.joined(separator: [0x2f])
        for part in parts.dropLast() {
            if part.elementsEqual("..".utf8) {
                _ = at.popLast()
            } else if !part.elementsEqual(".".utf8) {
                try enter(Array(part))
            }
        }
        let file = root + at.flatMap { [0x2f] + $0 } + [0x2f] + (parts.last.map { Array($0) } ?? [])
        try inOtherRoot(root, start) { () throws(SystemCallError) in
            try bindRaw(number)
        }
        guard let place else {
            _ = try? removeName(FilePath(bytes: file))
            return
        }
        try attempt("move its file to \(String(decoding: place, as: UTF8.self))") { () throws(SystemCallError) in
            try withCString(file) { (from) throws(SystemCallError) in
                try withCString(place) { (to) throws(SystemCallError) in
                    // RENAME_NOREPLACE
                    try systemCall(.renameat2, Int(currentDirectory), from, Int(currentDirectory), to, 1)
                }
            }
        }
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
