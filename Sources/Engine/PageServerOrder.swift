public import Diagnostics
public import ImageFormat
internal import Linux
public import Logging
internal import Pages
public import SystemPackage
public import Transport

/// Where a page server is, or is to be.
public struct PageServerPlace: Sendable {
    /// Its address; nil for any of this machine's.
    public var address: String?
    /// Its port; a server may have 0, for any that is free.
    public var port: UInt16 = 0
    /// A connected socket in place of address and port (`--ps-socket`).
    public var socket: Int32?
    /// How the connection is protected, nil for not at all.
    public var security: TransportSecurity?

    /// No place yet.
    public init() {}

    /// Connects to the server.
    func connect() throws(Failure) -> Connection {
        if let socket { return try passed(socket, isServer: false) }
        guard port != 0 else { throw Failure(.usage, "the port of the page server is missing: pass --port") }
        return try Connection(to: address ?? "127.0.0.1", port: port, security: security)
    }

    /// Waits for a client.
    ///
    /// - Parameter ready: called with the port when a client can connect.
    func accept(ready: (UInt16) throws(Failure) -> Void) throws(Failure) -> Connection {
        if let socket {
            try ready(0)
            return try passed(socket, isServer: true)
        }
        let listener = try Listener(address, port: port)
        try ready(listener.port)
        return try listener.accept(security: security)
    }

    private func passed(_ socket: Int32, isServer: Bool) throws(Failure) -> Connection {
        let own = try attempt(
            "use the descriptor \(socket) as a connection", code: .usage, advice: "Check --ps-socket"
        ) { () throws(SystemCallError) in
            _ = try socketOption(socket, 3)  // SO_TYPE
            return Descriptor(owning: Int32(try systemCall(.fcntl, Int(socket), 1030, 3)))  // F_DUPFD_CLOEXEC
        }
        _ = try? systemCall(.close, Int(socket))
        return try Connection(
            own, peer: "descriptor \(socket)", security: security, name: address, isServer: isServer)
    }
}

extension ImageDirectory {
    /// Has pages go to a server instead of the directory.
    func connect(to place: PageServerPlace?) throws(Failure) {
        guard let place else { return }
        pageReceiver = try PageSender(place.connect(), isPassed: place.socket != nil)
    }
}

/// An order to be a page server for one client.
public struct PageServerRequest: Sendable {
    /// Where pages go, or come from.
    public var images: FilePath
    /// Where clients connect.
    public var place = PageServerPlace()
    /// The parent of what is received, relative to the images (`--prev-images-dir`).
    public var previousImages: FilePath?
    /// Pages are given and not received (`--lazy-pages`).
    public var givesPages = false
    /// What is received is on the disk before the sender is told (off with `--no-sync`).
    public var isSynced = true
    /// Once everything is received, pages that came anew are taken out of the parents (`--auto-dedup`).
    public var deduplicates = false
    /// How pages that are received are compressed (`--compress`).
    public var compression: Compression?
    /// Pages that are given are compared with the hashes that the images have (off with `--no-verify`).
    public var verifies = true

    /// An order with CRIU's defaults.
    public init(images: FilePath) { self.images = images }
}

/// Serves one client.
///
/// If it throws, nothing that was received is left.
///
/// - Parameter ready: called with the port when a client can connect.
public func pageServer(
    _ request: PageServerRequest, log: Logger, ready: (UInt16) throws(Failure) -> Void
) throws(Failure) {
    if request.givesPages {
        let images = try ImageSet(request.images, verifies: request.verifies)
        if images.has(.inventory) { try images.verify(pages: false) }
        let pages = ImagePages(images)
        let connection = try request.place.accept(ready: ready)
        return try PageServer.serve(connection, from: pages, log: log, finished: { () throws(Failure) in })
    }
    // Beside a dump into the same directory, whose pages files are numbered from 1.
    let images = try ImageDirectory(request.images, firstPagesID: 1 << 16)
    images.compression = request.compression
    if let previous = request.previousImages { try link(previous, in: images) }
    do throws(Failure) {
        let connection = try request.place.accept(ready: ready)
        let isSynced = request.isSynced
        try PageServer.receive(connection, into: images, sync: { isSynced ? .best() : .none }, log: log)
    } catch {
        images.discard()
        throw error
    }
    if request.deduplicates { try deduplicate(request.images, log: log) }
}

/// Names the parent of the images that come.
private func link(_ parent: FilePath, in images: ImageDirectory) throws(Failure) {
    let folder = Int(images.directory.number)
    try attempt("name the parent of the images in \(images.path.string)") { () throws(SystemCallError) in
        _ = try openFile(parent, [.directory], in: Int32(folder))
        _ = try? removeName("parent", in: Int32(folder))
        try withPath(parent) { (target) throws(SystemCallError) in
            try withCString("parent") { (name) throws(SystemCallError) in
                try systemCall(.symlinkat, target, folder, name)
            }
        }
    }
}
