public import Diagnostics
public import ImageFormat
public import Linux
public import Logging
public import Transport

/// What a page server does with a connection.
public enum PageServer {
    /// Receives page maps and pages into an image directory, until the sender says that it was all.
    ///
    /// - Parameter sync: how everything is brought to the disk before the sender is told.
    /// - Throws: also if the connection ends early. The directory is left as it is then: discard it.
    public static func receive(
        _ connection: Connection, into images: ImageDirectory, sync: @Sendable () -> SyncMethod, log: Logger
    ) throws(Failure) {
        var session = try ReceivingSession(connection, images, log)
        try session.run(sync)
        connection.finish(waitsForPeer: true)
    }

    /// Gives pages to a client that fetches them when they are needed, until it says that it needs no more.
    ///
    /// - Parameter finished: called when the client says so, before it is told that it was heard.
    public static func serve(
        _ connection: Connection, from provider: any PageProvider, log: Logger, finished: () throws(Failure) -> Void
    ) throws(Failure) {
        let buffer = try BounceBuffer()
        var served: UInt64 = 0
        while let wire = try connection.receive(PageMessage.Wire.self) {
            let message = PageMessage(wire)
            switch PageMessage.Command(rawValue: message.command) {
            case .get:
                guard let run = message.run, let process = Int32(exactly: message.owner) else {
                    throw Failure(.denied, "the client asks for pages that make no sense")
                }
                try give(run, of: process, provider, connection, buffer)
                served += run.pages
            case .close, .forcedClose:
                try finished()
                try connection.send(Int32(0))
                log.info("the client has all that it needs, \(served) pages were asked for")
                connection.finish(waitsForPeer: false)
                return
            default: throw Failure(.denied, "the client sends the unknown command \(message.command)")
            }
        }
        throw Failure(.vanished, "the client at the other end is gone before it had all pages")
    }

    private static func give(
        _ run: PageRun, of process: Int32, _ provider: any PageProvider, _ connection: Connection,
        _ buffer: borrowing BounceBuffer
    ) throws(Failure) {
        var found = run
        found.pages = try provider.available(process, run.range) / pageSize
        (found.isPresent, found.isLazy, found.isInParent) = (found.pages > 0, false, false)
        try connection.send(PageMessage(.add, found, owner: UInt64(process)).wire)
        var at = found.address
        while at < found.range.end {
            let part = min(found.range.end.rawValue - at.rawValue, UInt64(BounceBuffer.size))
            try provider.read(process, AddressRange(start: at, end: at + part), into: buffer.address)
            try connection.send(from: buffer.address, count: Int(part))
            at = at + part
        }
    }
}

/// Where a page server that is asked for pages has them.
public protocol PageProvider: AnyObject {
    /// How many bytes there are from the start of a range on, without a gap.
    func available(_ process: Int32, _ range: AddressRange) throws(Failure) -> UInt64
    /// Reads pages that are available.
    func read(_ process: Int32, _ range: AddressRange, into address: Int) throws(Failure)
}

/// One connection of a server that stores pages.
private struct ReceivingSession: ~Copyable {
    private let connection: Connection
    private let images: ImageDirectory
    private let log: Logger
    private let buffer: BounceBuffer
    private var current: Store?
    private var isBegun = false

    /// The page map that is being written.
    private final class Store {
        let owner: PageOwner
        let pagemap: ImageWriter
        let pages: PagesFileWriter
        private let coder = ChunkCoder()
        /// Bytes of the chunk that comes, and how many chunks are written.
        private(set) var filled = 0, written = 0
        var end = Address(0)
        /// What the parent has, in ascending order; nil without a parent.
        let parent: [AddressRange]?
        var next = 0

        init(_ owner: PageOwner, _ images: ImageDirectory) throws(Failure) {
            self.owner = owner
            parent = try Store.parent(of: owner, images)
            let id = images.newPagesID()
            pagemap = try Pagemap.begin(owner.image, pagesID: id, in: images)
            images.removeOther(id)
            pages = try images.createPages(id)
        }

        /// What the parent of the images has of a page map.
        static func parent(of owner: PageOwner, _ images: ImageDirectory) throws(Failure) -> [AddressRange]? {
            guard let set = try ImageSet(images.path).parent, set.has(owner.image) else { return nil }
            return try Pagemap.read(owner.image, from: set).runs.filter { $0.isPresent || $0.isInParent }.map(\.range)
        }

        /// Notes a run.
        func add(_ run: PageRun) throws(Failure) {
            guard run.address >= end else {
                throw Failure(.denied, "the pages at \(run.address) of \(owner.image.fileName) come out of order")
            }
            end = run.range.end
            if run.isInParent { try check(run.range) }
            try pagemap.append(run.entry)
        }

        /// Notes that bytes came, which follow those in the buffer.
        func take(_ count: Int, in buffer: borrowing BounceBuffer) throws(Failure) {
            filled += count
            if filled == BounceBuffer.size { try write(buffer) }
        }

        private func write(_ buffer: borrowing BounceBuffer) throws(Failure) {
            try pages.write(chunk: written, from: buffer.address, count: filled, with: coder)
            (filled, written) = (0, written + 1)
        }

        func finish(_ images: ImageDirectory, _ buffer: borrowing BounceBuffer) throws(Failure) {
            if filled > 0 { try write(buffer) }
            try images.finish(pages)
            try pagemap.finish()
        }

        /// Fails unless the parent has all pages of a range.
        private func check(_ range: AddressRange) throws(Failure) {
            var at = range.start
            guard let parent else {
                throw Failure(.denied, "\(owner.image.fileName) has no parent here", advice: "Check --prev-images-dir")
            }
            while at < range.end {
                while next < parent.count, parent[next].end <= at { next += 1 }
                guard next < parent.count, parent[next].contains(at) else {
                    throw Failure(
                        .denied, "the parent of \(owner.image.fileName) does not have the page at \(at)",
                        advice: "Pass the images of the dump before by --prev-images-dir")
                }
                at = parent[next].end
            }
        }
    }

    init(_ connection: Connection, _ images: ImageDirectory, _ log: Logger) throws(Failure) {
        self.connection = connection
        self.images = images
        self.log = log
        buffer = try BounceBuffer()
    }

    mutating func run(_ sync: () -> SyncMethod) throws(Failure) {
        while let wire = try connection.receive(PageMessage.Wire.self) {
            let message = PageMessage(wire)
            switch PageMessage.Command(rawValue: message.command) {
            case .open, .openUnanswered:
                let store = try open(message)
                if message.command == PageMessage.Command.open.rawValue {
                    try connection.send(UInt8(store.parent == nil ? 0 : 1))
                }
            case .parent:
                let owner = try owner(message)
                try connection.send(Int32(try Store.parent(of: owner, images) == nil ? 0 : 1))
            case .add: try add(message)
            case .addPresent, .addParent:
                var older = message
                older.flags = message.command == PageMessage.Command.addPresent.rawValue ? 4 : 1
                try add(older)
            case .close, .forcedClose:
                try finishStore()
                try images.writeOut()
                try images.sync(sync())
                try connection.send(Int32(0))
                log.info("the sender is done, all pages are stored")
                return
            default: throw Failure(.denied, "the sender sends the unknown command \(message.command)")
            }
        }
        throw Failure(
            .vanished, "the sender closed the connection before it said that it was done",
            advice: "The dump failed; see its log")
    }

    private func owner(_ message: PageMessage) throws(Failure) -> PageOwner {
        guard let owner = PageOwner(wire: message.owner) else {
            throw Failure(.denied, "the sender has pages of an unknown kind (\(message.owner & 0xff))")
        }
        return owner
    }

    private mutating func open(_ message: PageMessage) throws(Failure) -> Store {
        try finishStore()
        if !isBegun { try images.invalidate() }
        isBegun = true
        let owner = try owner(message)
        let store = try Store(owner, images)
        log.debug("begin \(owner.image.fileName)")
        current = store
        return store
    }

    private mutating func finishStore() throws(Failure) {
        try current?.finish(images, buffer)
        current = nil
    }

    private mutating func add(_ message: PageMessage) throws(Failure) {
        guard let run = message.run else { throw Failure(.denied, "the sender has pages that make no sense") }
        let store = if let current, try owner(message) == current.owner { current } else { try open(message) }
        try store.add(run)
        guard run.isPresent else { return }
        var left = run.range.length
        while left > 0 {
            let part = Int(min(left, UInt64(BounceBuffer.size - store.filled)))
            guard try connection.receive(into: buffer.address + store.filled, count: part) == part else {
                throw Failure(
                    .vanished, "the connection ended in the midst of the pages of \(store.owner.image.fileName)")
            }
            try store.take(part, in: buffer)
            left -= UInt64(part)
        }
    }
}

/// Pages of an image set, for those who ask.
public final class ImagePages: PageProvider {
    private let images: ImageSet
    private var located: [Int32: [PagePiece]] = [:]
    private let loader = PageLoader()

    /// Serves the pages of an image set.
    public init(_ images: ImageSet) { self.images = images }

    private func pieces(_ process: Int32) throws(Failure) -> [PagePiece] {
        if let known = located[process] { return known }
        let pagemap = try Pagemap.read(.pagemap(process), from: images)
        let pieces = try PageLocator(images, process: process, pagemap).pieces
        located[process] = pieces
        return pieces
    }

    /// How many bytes there are from the start of a range on.
    public func available(_ process: Int32, _ range: AddressRange) throws(Failure) -> UInt64 {
        let pieces = try pieces(process)
        var at = range.start
        var next = pieces.firstIndex(endingAfter: at)
        while at < range.end, next < pieces.count, pieces[next].range.contains(at) {
            at = min(range.end, pieces[next].range.end)
            next += 1
        }
        return at.rawValue - range.start.rawValue
    }

    /// Reads pages that are available.
    public func read(_ process: Int32, _ range: AddressRange, into address: Int) throws(Failure) {
        let pieces = try pieces(process)
        var at = range.start
        var next = pieces.firstIndex(endingAfter: at)
        while at < range.end, next < pieces.count, pieces[next].range.contains(at) {
            let part = pieces[next].part(in: AddressRange(start: at, end: range.end))
            try loader.read(part, into: address + Int(at.rawValue - range.start.rawValue))
            at = part.range.end
            next += 1
        }
        guard at >= range.end else { throw Failure(.bug, "pages that are not there") }
    }
}

extension Array where Element == PagePiece {
    /// The first piece that ends after an address; pieces are ascending.
    public func firstIndex(endingAfter address: Address) -> Int {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if self[middle].range.end <= address { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
