public import Diagnostics
public import FoundationEssentials
public import ImageMessages
public import Linux
public import SwiftProtobuf
internal import Synchronization
public import SystemPackage

/// An image directory under construction.
///
/// Small images stay in memory until `writeOut`, so that no file is created while a tree stands still. The inventory is
/// written last, under another name, synced and renamed: a directory without it is no image.
public final class ImageDirectory {
    /// The directory.
    public let directory: Descriptor
    /// Its path, for messages.
    public let path: FilePath
    private var written: [String] = []
    private var old: [String: FileStatus] = [:]
    private var nextPages: UInt32
    /// Where page maps and pages go instead, nil if they go here.
    public var pageReceiver: (any PageReceiver)?
    /// Where all images go instead, nil if they go here.
    public let receiver: (any ImageReceiver)?
    /// What their names begin with there.
    private let prefix: String
    /// Files here that are still to go there.
    private var unsent: [String] = []
    /// How pages are compressed; nil for not at all.
    public var compression: Compression?
    /// Whether the set gets an integrity image: the hashes of all its files.
    public var keepsSums = false
    private var sums: [String: FileSums] = [:]
    private var held: [(name: ImageName, contents: Contents)] = []
    private var heldBytes = 0
    private var shared: [(name: ImageName, pagemap: Pagemap)] = []
    private var inheriting: [(name: ImageName, runs: [PageRun])] = []
    private var sharedSet: ImageDirectory?
    /// The previous images, relative to this directory: what page maps call their parent.
    public var previous: FilePath?
    /// Hashes of shared memory are kept for the next images, and compared with those of the previous ones.
    public var tracksSharedMemory = false

    /// What waits in memory. Messages are encoded only when they are written.
    private enum Contents: Sendable {
        case bytes([UInt8])
        case pages([UInt8])
        case messages([any Message])
    }

    /// About what a message takes in memory.
    private static let messageSize = 4096

    /// Most bytes that wait in memory, of one image and of all.
    public static let largestHeld = 1 << 20, mostHeld = 16 << 20

    /// Opens a directory for a new set of images. An older inventory in it is removed first: from here on the directory
    /// holds no valid image.
    ///
    /// - Parameter firstPagesID: the number of the first pages file. Who writes pages for another uses others than that.
    public init(_ path: FilePath, firstPagesID: UInt32 = 1) throws(Failure) {
        self.path = path
        (receiver, prefix) = (nil, "")
        nextPages = firstPagesID
        directory = try attempt(
            "open the image directory \(path.string)", advice: "Create it, or pass another with --images-dir"
        ) {
            () throws(SystemCallError) in try openFile(path, [.directory])
        }
    }

    /// Begins a set in memory: the directory is in no file system that has a name, and vanishes with us.
    ///
    /// - Parameters:
    ///   - name: what it is called in messages.
    ///   - receiver: where all images go instead. They are not in the directory then.
    ///   - size: most bytes that it can hold, 0 for any number.
    public init(inMemory name: FilePath, to receiver: (any ImageReceiver)? = nil, size: UInt64 = 0)
        throws(Failure)
    {
        path = name
        (self.receiver, prefix) = (receiver, "")
        nextPages = 1
        directory = try attempt(
            "make a file system in memory for \(name)", advice: "This needs CAP_SYS_ADMIN; or use a directory of images"
        ) { () throws(SystemCallError) in try detachedFileSystem(size: size) }
    }

    /// A set within the set of another directory.
    private init(_ name: String, within other: ImageDirectory) throws(Failure) {
        path = other.path.appending(name)
        (receiver, prefix) = (other.receiver, other.prefix + name + "/")
        nextPages = 1
        let (folder, path) = (other.directory.number, path)
        directory = try attempt("create \(path)") { () throws(SystemCallError) in
            try withCString(name) { (name) throws(SystemCallError) in
                try systemCall(.mkdirat, Int(folder), name, 0o755)
            }
            return try openFile(name, [.directory], in: folder)
        }
    }

    /// Removes the inventory of an older set.
    public func invalidate() throws(Failure) {
        do throws(SystemCallError) { try remove(ImageName.inventory.fileName) } catch {
            if error.errno != .ENOENT {
                throw Failure(.denied, "can't write to the image directory \(path.string)", cause: error)
            }
        }
    }

    /// Forgets an older set: removes its inventory, and at `commit` all that a restore would read if it is there.
    public func begin() throws(Failure) {
        try invalidate()
        try noteOld()
        for name in ["parent", ImageSet.incompleteMark] { do throws(SystemCallError) { try remove(name) } catch {} }
        removeSharedPages()
        _ = try createFile(ImageName(".brumate-probe", 0, isService: true))
        do throws(SystemCallError) { try remove(".brumate-probe") } catch {}
    }

    /// Notes the images of an older set. They are removed only when it is known which ones are not written over: for some
    /// seconds after a removal ext4 looks at every removed inode before it gives out a new one.
    private func noteOld() throws(Failure) {
        try attempt("list the old images in \(path.string)") { () throws(SystemCallError) in
            for name in try listDirectory(".", in: directory.number) {
                if name.string.hasPrefix("working-set-") { try remove(name.string) }
                // The CPU's is an order's of its own.
                guard name.string.hasSuffix(".img"), name.string != ImageName.cpuInformation.fileName,
                    let status = try? FileStatus.read(name.string, in: directory.number)
                else { continue }
                old[name.string] = status
            }
        }
    }

    /// Removes what is left of an older set. Files of others stay: images show their magic; and so does what a page server
    /// has written here meanwhile.
    private func removeOld() throws(Failure) {
        let ours = Set(written)
        try attempt("remove the old images in \(path.string)") { () throws(SystemCallError) in
            for (name, status) in old where !ours.contains(name) {
                guard let file = try? openFile(name, [.noFollow, .nonBlocking], in: directory.number),
                    let now = try? FileStatus.read(in: file.number),
                    (now.inode, now.size) == (status.inode, status.size), now.modified == status.modified
                else { continue }
                var magic: UInt32 = 0
                let number = Int(file.number)
                let got = try? withAddress(of: &magic) { (address) throws(SystemCallError) in
                    try systemCall(.pread64, number, address, 4, 0)
                }
                // Pages show none, but a program that does not know packed ones would read the old.
                if got == 4 && UInt32(littleEndian: magic) == ImageName.commonMagic
                    || name.hasPrefix("pages-") && ours.contains("packed-" + name.dropFirst(6))
                    || ImageName.isOfNamespace(name)
                {
                    try remove(name)
                }
            }
        }
        old = [:]
    }

    private func remove(_ name: String) throws(SystemCallError) {
        try removeName(FilePath(name), in: directory.number)
    }

    /// A number for a new pages file.
    public func newPagesID() -> UInt32 {
        defer { nextPages += 1 }
        return nextPages
    }

    /// Creates a pages file. One of an older set is written over, and cut at the end: memory and disk need not be found anew.
    public func createPages(_ id: UInt32) throws(Failure) -> PagesFileWriter {
        let name = pagesName(id)
        return PagesFileWriter(name, try createFile(name, []), compression, keepsSums: keepsSums)
    }

    /// Ends a pages file.
    public func finish(_ pages: PagesFileWriter) throws(Failure) {
        note(try pages.finish())
        try sendFiles()
    }

    /// Has the receiver get a pages file that is not compressed.
    ///
    /// - Parameter fill: tells where each chunk is, which is valid until the next call.
    public func send(
        pages id: UInt32, chunks: Int, to receiver: any ImageReceiver,
        _ fill: (Int) throws(Failure) -> (address: Int, count: Int)
    ) throws(Failure) {
        let name = pagesName(id).fileName
        var sum = FileSums(name: name, size: 0)
        try receiver.append(prefix + name, from: 0, count: 0)
        for index in 0..<chunks {
            let (address, count) = try fill(index)
            try receiver.append(prefix + name, from: address, count: count)
            if keepsSums { sum.chunks += Checksum(at: address, count: count).bytes }
            sum.size += UInt64(count)
        }
        written.append(name)
        note(sum)
    }

    private func pagesName(_ id: UInt32) -> ImageName { compression == nil ? .pages(id) : .packedPages(id) }

    private func note(_ sum: FileSums) { if keepsSums { sums[sum.name] = sum } }

    /// Removes the pages of an older set that a reader would take for those of a pages file.
    public func removeOther(_ id: UInt32) {
        _ = try? remove((compression == nil ? ImageName.packedPages(id) : .pages(id)).fileName)
    }

    /// Creates a file for raw contents.
    func createFile(_ name: ImageName, _ more: OpenFlags = .truncate) throws(Failure) -> Descriptor {
        let file = try ImageDirectory.createFile(name, in: directory.number, path, more)
        if !name.isService {
            written.append(name.fileName)
            if receiver != nil { unsent.append(name.fileName) }
        }
        return file
    }

    /// An old file of the name is emptied: to remove it first costs a millisecond more on ext4.
    private static func createFile(
        _ name: ImageName, in folder: Int32, _ path: FilePath, _ more: OpenFlags = .truncate
    ) throws(Failure) -> Descriptor {
        try attempt("create the image \(name.fileName) in \(path.string)") { () throws(SystemCallError) in
            try openFile(name.fileName, [.readWrite, .create, more], mode: 0o644, in: folder)
        }
    }

    /// Writes an image over an old one. It is cut to its size afterwards: what was emptied first is written to the disk by
    /// ext4 when it is closed.
    private static func replace(
        _ name: ImageName, _ bytes: [UInt8], in folder: Int32, _ path: FilePath
    ) throws(Failure) {
        let file = try createFile(name, in: folder, path, [])
        try write(bytes, to: file.number, name)
        try cut(file.number, name, to: UInt64(bytes.count))
    }

    static func cut(_ file: Int32, _ name: ImageName, to size: UInt64) throws(Failure) {
        try attempt("cut the image \(name.fileName)") { () throws(SystemCallError) in
            guard try FileStatus.read(in: file).size > size else { return }
            try systemCall(.ftruncate, Int(file), Int(size))
        }
    }

    /// Begins an image with its magic. It appears in the directory at `writeOut`, or when it has become large.
    public func create(_ name: ImageName) -> ImageWriter { ImageWriter(name, in: self) }

    /// Whether so many bytes of one image may wait in memory.
    public func canHold(_ count: Int) -> Bool {
        count <= ImageDirectory.largestHeld && heldBytes + count <= ImageDirectory.mostHeld
    }

    /// Keeps the contents of an image in memory until `writeOut`.
    public func hold(_ name: ImageName, _ bytes: [UInt8]) throws(Failure) {
        try hold(name, .bytes(bytes), bytes.count)
    }

    /// Keeps pages in memory until `writeOut`.
    public func hold(pages id: UInt32, _ bytes: [UInt8]) throws(Failure) {
        try hold(pagesName(id), .pages(bytes), bytes.count)
    }

    private func hold(_ name: ImageName, _ contents: Contents, _ count: Int) throws(Failure) {
        if heldBytes + count > ImageDirectory.mostHeld { try writeHeld() }
        held.append((name, contents))
        heldBytes += count
    }

    /// From how many files on one thread more is worth its start.
    private static let fewFiles = 64

    private func writeHeld() throws(Failure) {
        let (held, folder, path) = (self.held, directory.number, path)
        self.held = []
        heldBytes = 0
        if let receiver { return try send(held, to: receiver) }
        for (name, _) in held where !name.isService { written.append(name.fileName) }
        let dealer = Dealer(held.count)
        let (compression, keepsSums) = (compression, keepsSums)
        let found = Mutex<[FileSums]>([])
        try Workers.run(held.count < ImageDirectory.fewFiles ? 1 : Workers.count) { () throws(Failure) in
            let coder = ChunkCoder()
            while let index = dealer.take() {
                let (name, contents) = held[index]
                var bytes: [UInt8]
                switch contents {
                case .bytes(let ready): bytes = ready
                case .messages(let messages):
                    bytes = ImageWriter.start(of: name)
                    for message in messages { try ImageWriter.encode(message, name, into: &bytes) }
                case .pages(let pages):
                    let file = try ImageDirectory.createFile(name, in: folder, path, [])
                    let writer = PagesFileWriter(name, file, compression, keepsSums: keepsSums)
                    try writer.write(pages, with: coder)
                    let sum = try writer.finish()
                    found.withLock { $0.append(sum) }
                    continue
                }
                try ImageDirectory.replace(name, bytes, in: folder, path)
                if keepsSums {
                    let sum = FileSums(name.fileName, bytes)
                    found.withLock { $0.append(sum) }
                }
            }
        }
        for sum in found.withLock({ $0 }) { note(sum) }
    }

    private func send(_ held: [(name: ImageName, contents: Contents)], to receiver: any ImageReceiver) throws(Failure) {
        for (name, contents) in held {
            var bytes: [UInt8]
            switch contents {
            case .bytes(let ready): bytes = ready
            case .messages(let messages):
                bytes = ImageWriter.start(of: name)
                for message in messages { try ImageWriter.encode(message, name, into: &bytes) }
            case .pages(let pages):
                let writer = PagesFileWriter(name, try createFile(name), compression, keepsSums: keepsSums)
                try writer.write(pages, with: ChunkCoder())
                try finish(writer)
                continue
            }
            try bytes.withAddress { (address, count) throws(Failure) in
                try receiver.append(prefix + name.fileName, from: address, count: count)
            }
            guard !name.isService else { continue }
            written.append(name.fileName)
            if keepsSums { note(FileSums(name.fileName, bytes)) }
        }
    }

    /// Sends the files that were made here to whoever receives the images.
    private func sendFiles() throws(Failure) {
        guard let receiver else { return }
        let (names, folder) = (unsent, directory.number)
        unsent = []
        for name in names {
            if keepsSums, sums[name] == nil, let sum = try FileSums(reading: name, in: folder, with: ChunkCoder()) {
                note(sum)
            }
            let file = try attempt("open \(name)") { () throws(SystemCallError) in try openFile(name, in: folder) }
            try receiver.append(prefix + name, contentsOf: file.number)
            _ = try? remove(name)
        }
    }

    fileprivate static func write(_ bytes: [UInt8], to file: Int32, _ name: ImageName) throws(Failure) {
        try attempt("write the image \(name.fileName)", advice: "Check that the disk has room") {
            () throws(SystemCallError) in
            try writeAll(bytes, to: file)
        }
    }

    /// Writes an image of some messages.
    public func write(_ name: ImageName, _ messages: [any Message]) throws(Failure) {
        try hold(name, .messages(messages), messages.count * ImageDirectory.messageSize)
    }

    /// Writes everything that waits in memory.
    public func writeOut() throws(Failure) {
        try writeHeld()
        try sendFiles()
        try linkShared()
    }

    /// Makes the set valid: the inventory appears at once, after everything else.
    ///
    /// - Parameter method: unless it is none, everything is on the disk before the inventory is, and the inventory before
    ///   this returns.
    public func commit(_ inventory: InventoryEntry, sync method: SyncMethod) throws(Failure) {
        try writeOut()
        let integrity = keepsSums ? try writeIntegrity() : nil
        let bytes = try SealedInventory.bytes(of: inventory, integrity: integrity)
        try hold(receiver == nil ? ImageDirectory.staging : .inventory, bytes)
        try writeOut()
        guard receiver == nil else { return }
        try removeOld()
        try sync(method)
        try publish(method)
    }

    /// What the inventory is called until the set is complete.
    private static let staging = ImageName("." + ImageName.inventory.fileName, ImageName.inventory.magic)

    private func publish(_ method: SyncMethod) throws(Failure) {
        let (staging, folder) = (ImageDirectory.staging, directory.number)
        try attempt("finish the image in \(path.string)") { () throws(SystemCallError) in
            try withPath(FilePath(staging.fileName)) { (from) throws(SystemCallError) in
                try withPath(FilePath(ImageName.inventory.fileName)) { (to) throws(SystemCallError) in
                    try systemCall(.renameat2, Int(folder), from, Int(folder), to, 0)
                }
            }
            if method != .none { try systemCall(.fsync, Int(folder)) }
        }
        written.append(ImageName.inventory.fileName)
    }

    /// Writes the integrity image. Returns its hash.
    private func writeIntegrity() throws(Failure) -> Checksum {
        var files = try ownSums()
        for var file in try sharedSet?.ownSums() ?? [] {
            file.name = ImageDirectory.sharedFolder + "/" + file.name
            files.append(file)
        }
        let bytes = try ImageDirectory.integrity(of: files, pagesElsewhere: pageReceiver != nil)
        try hold(.integrity, bytes)
        return Checksum(bytes)
    }

    /// The contents of an integrity image.
    static func integrity(of files: [FileSums], pagesElsewhere: Bool) throws(Failure) -> [UInt8] {
        var bytes = ImageWriter.start(of: .integrity)
        var head = IntegrityHead()
        head.pagesElsewhere = pagesElsewhere
        try ImageWriter.encode(head, .integrity, into: &bytes)
        for file in files { for entry in file.entries { try ImageWriter.encode(entry, .integrity, into: &bytes) } }
        return bytes
    }

    /// The hashes of all files that were written. Most are known; images that became too large to wait in memory are
    /// read.
    private func ownSums() throws(Failure) -> [FileSums] {
        let names = Set(written).sorted()
        let (unknown, folder) = (names.filter { sums[$0] == nil }, directory.number)
        let read = try Workers.map(unknown.count, threads: min(unknown.count, Workers.count)) {
            (range) throws(Failure) in
            let coder = ChunkCoder()
            var found: [FileSums] = []
            for index in range {
                if let sum = try FileSums(reading: unknown[index], in: folder, with: coder) { found.append(sum) }
            }
            return found
        }
        return names.compactMap { sums[$0] } + read.flatMap { $0 }
    }

    /// Brings all files of the set to the disk.
    public func sync(_ method: SyncMethod) throws(Failure) {
        let number = Int(directory.number)
        let ours = written
        try attempt("sync the image in \(path.string)", advice: "Check the disk, or pass --no-sync") {
            () throws(SystemCallError) in
            switch method {
            case .none: break
            case .wholeFileSystem: try systemCall(.syncfs, number)
            case .eachFile:
                for name in ours {
                    let file = try openFile(name, in: Int32(number))
                    try systemCall(.fsync, Int(file.number))
                }
                try systemCall(.fsync, number)
            }
        }
        if method == .eachFile { try sharedSet?.sync(method) }
    }

    /// Where pages lie that several processes share: a parent image of our own making.
    static let sharedFolder = "shared-pages"

    /// Makes a parent image that consists of page maps whose pages are in this directory, at `writeOut`.
    ///
    /// Page maps can refer to pages of their own file, or of the same process in the parent image. So a process that
    /// shares pages with a relative gets a page map there that is the relative's, and the pages file is linked.
    ///
    /// - Parameter inheriting: who refers to the previous images; from then on through the parent of our making.
    public func share(
        _ pagemaps: [(name: ImageName, pagemap: Pagemap)], inheriting: [(name: ImageName, runs: [PageRun])] = []
    ) {
        shared += pagemaps
        self.inheriting += inheriting
    }

    /// Makes the link to the parent images.
    private func linkParent(_ target: FilePath) throws(Failure) {
        let here = Int(directory.number)
        try attempt("link the parent image in \(path.string)") { () throws(SystemCallError) in
            try withPath(target) { (target) throws(SystemCallError) in
                try withCString("parent") { (name) throws(SystemCallError) in
                    _ = try systemCall(.symlinkat, target, here, name)
                }
            }
        }
    }

    private func linkShared() throws(Failure) {
        guard !shared.isEmpty else {
            if let previous { try linkParent(previous) }
            (inheriting, previous) = ([], nil)
            return
        }
        let parent = try ImageDirectory(ImageDirectory.sharedFolder, within: self)
        parent.keepsSums = keepsSums
        var linked: Set<UInt32> = []
        for (name, pagemap) in shared {
            try pagemap.write(name, to: parent)
            guard linked.insert(pagemap.pagesID).inserted else { continue }
            let name = pagesName(pagemap.pagesID).fileName
            if let receiver {
                try receiver.link(parent.prefix + name, to: prefix + name)
            } else {
                try link(name, parent)
            }
            parent.note(FileSums(name: name, size: 0, isLink: true))
            parent.written.append(name)
        }
        if let previous {
            // Page maps without pages of their own need a pages file all the same.
            let empty = newPagesID()
            _ = try parent.createFile(.pages(empty))
            for (name, runs) in inheriting { try Pagemap(pagesID: empty, runs: runs).write(name, to: parent) }
            parent.previous = previous.isAbsolute ? previous : FilePath("..").pushing(previous)
        }
        try parent.writeOut()
        if receiver == nil { try linkParent(FilePath(ImageDirectory.sharedFolder)) }
        (shared, inheriting, previous) = ([], [], nil)
        sharedSet = parent
    }

    private func link(_ file: String, _ parent: ImageDirectory) throws(Failure) {
        let (here, there) = (Int(directory.number), Int(parent.directory.number))
        try attempt("link shared pages in \(path.string)") { () throws(SystemCallError) in
            try withCString(file) { (file) throws(SystemCallError) in
                try systemCall(.linkat, here, file, there, file, 0)
            }
        }
    }

    private func removeSharedPages() {
        let folder = ImageDirectory.sharedFolder
        guard let old = try? listDirectory(FilePath(folder), in: directory.number) else { return }
        for name in old { _ = try? remove(folder + "/" + name.string) }
        _ = try? removeName(FilePath(folder), isDirectory: true, in: directory.number)
    }

    // MARK: images that come from elsewhere

    /// Whether a file is of the parent of our making.
    public static func isShared(_ name: String) -> Bool { name.hasPrefix(sharedFolder + "/") }

    /// Whether a file of a set may be called so: `NAME.img` or `stats-dump`, in `shared-pages` too.
    public static func isFileName(_ name: String) -> Bool {
        let inner = isShared(name) ? name.dropFirst(sharedFolder.count + 1) : name[...]
        guard let first = inner.utf8.first, first != 0x2e, inner.utf8.count <= 200,
            inner.utf8.allSatisfy({ byte in
                (0x30...0x39).contains(byte) || byte < 0x80 && (0x41...0x5a).contains(byte & 0xdf) || byte == 0x2d
                    || byte == 0x2e || byte == 0x5f
            })
        else { return false }
        return inner.hasSuffix(".img") || inner == ImageName.dumpStatistics.fileName
    }

    /// Opens a file of a set that comes from elsewhere for writing. Its inventory is not called so before `complete`.
    ///
    /// - Parameter begins: it is created.
    public func receive(_ name: String, begins: Bool) throws(Failure) -> Descriptor {
        let name = name == ImageName.inventory.fileName ? ImageDirectory.staging.fileName : name
        let folder = directory.number
        if begins, ImageDirectory.isShared(name) { try makeSharedFolder() }
        let file = try attempt("create the image \(name) in \(path.string)", advice: "Check that there is room") {
            () throws(SystemCallError) in
            try openFile(
                name, begins ? [.writeOnly, .create, .truncate, .noFollow] : [.writeOnly, .noFollow], mode: 0o644,
                in: folder)
        }
        if begins { written.append(name) }
        return file
    }

    private func makeSharedFolder() throws(Failure) {
        let folder = directory.number
        try attempt("create \(ImageDirectory.sharedFolder) in \(path.string)") { () throws(SystemCallError) in
            try withCString(ImageDirectory.sharedFolder) { (name) throws(SystemCallError) in
                do throws(SystemCallError) { try systemCall(.mkdirat, Int(folder), name, 0o755) } catch {
                    if error.errno != .EEXIST { throw error }
                }
            }
        }
        previous = FilePath(ImageDirectory.sharedFolder)
    }

    /// Makes a second name of a file of a set that comes from elsewhere.
    public func receive(_ name: String, linkedTo other: String) throws(Failure) {
        let folder = Int(directory.number)
        if ImageDirectory.isShared(name) { try makeSharedFolder() }
        try attempt("link \(name) in \(path.string)") { () throws(SystemCallError) in
            try withCString(other) { (other) throws(SystemCallError) in
                try withCString(name) { (name) throws(SystemCallError) in
                    try systemCall(.linkat, folder, other, folder, name, 0)
                }
            }
        }
        written.append(name)
    }

    /// Makes a set that came from elsewhere valid.
    ///
    /// - Parameter ready: called when nothing but the name of the inventory is missing.
    public func complete(sync method: SyncMethod, ready: () throws(Failure) -> Void) throws(Failure) {
        if let previous { try linkParent(previous) }
        previous = nil
        try removeOld()
        try sync(method)
        try ready()
        try publish(method)
    }

    /// Removes what was written: the dump failed. The inventory goes first.
    public func discard() {
        (held, heldBytes, shared, inheriting, sharedSet, previous, sums) = ([], 0, [], [], nil, nil, [:])
        for name in written.reversed() { do throws(SystemCallError) { try remove(name) } catch {} }
        do throws(SystemCallError) { try remove("parent") } catch {}
        removeSharedPages()
    }
}

/// How a set of images is brought to the disk.
public enum SyncMethod: Hashable, Sendable {
    /// Not at all: the system writes it when it likes.
    case none
    /// By one `syncfs(2)`, which costs a fraction of an `fsync(2)` for each file.
    case wholeFileSystem
    /// By an `fsync(2)` for each file, which is better where others have much to write.
    case eachFile

    /// The cheaper way on this machine at this moment.
    public static func best() -> SyncMethod {
        var unwritten: UInt64 = 0
        for line in ((try? readWholeFile("/proc/meminfo")) ?? []).split(separator: 0x0a)
        where line.starts(with: "Dirty:".utf8) || line.starts(with: "Writeback:".utf8) {
            let digits = line.filter { $0 >= 0x30 && $0 <= 0x39 }
            unwritten += (UInt64(String(decoding: digits, as: UTF8.self)) ?? 0) << 10
        }
        return unwritten > 256 << 20 ? .eachFile : .wholeFileSystem
    }
}

/// Writes one image file through a buffer.
public final class ImageWriter {
    private let folder: ImageDirectory
    private let name: ImageName
    private var file: Int32?
    private var buffer: [UInt8] = []

    init(_ name: ImageName, in folder: ImageDirectory) {
        self.folder = folder
        self.name = name
        buffer = ImageWriter.start(of: name)
    }

    deinit { if let file { _ = try? systemCall(.close, Int(file)) } }

    /// The bytes that an image begins with.
    fileprivate static func start(of name: ImageName) -> [UInt8] {
        name.header.flatMap { [UInt8](bytesOf: $0.littleEndian) }
    }

    /// Appends a message with its length to some bytes. Any thread may do that for an image.
    public static func encode(
        _ message: some Message, _ name: ImageName, into buffer: inout [UInt8]
    ) throws(Failure) {
        let bytes: [UInt8]
        do { bytes = try message.serializedBytes() } catch {
            throw Failure(.bug, "can't encode a message of \(name.fileName): \(error)")
        }
        buffer += [UInt8](bytesOf: UInt32(bytes.count).littleEndian)
        buffer += bytes
    }

    /// Appends a message with its length.
    public func append(_ message: some Message) throws(Failure) {
        try ImageWriter.encode(message, name, into: &buffer)
        try spill()
    }

    /// From how many messages on one thread more is worth its start.
    private static let fewMessages = 1024

    /// Appends many messages, encoded by several threads.
    public func append(contentsOf messages: [some Message & Sendable]) throws(Failure) {
        let (name, size) = (name, ImageWriter.fewMessages / 2)
        guard messages.count >= ImageWriter.fewMessages else {
            for message in messages { try append(message) }
            return
        }
        let encoded = try Workers.map(messages.count, share: size) { (range) throws(Failure) in
            var bytes: [UInt8] = []
            for message in messages[range] { try ImageWriter.encode(message, name, into: &bytes) }
            return bytes
        }
        for bytes in encoded { try append(raw: bytes) }
    }

    /// Appends raw bytes.
    public func append(raw bytes: [UInt8]) throws(Failure) {
        buffer += bytes
        try spill()
    }

    private func spill() throws(Failure) {
        if buffer.count > ImageDirectory.largestHeld { try flush() }
    }

    private func flush() throws(Failure) {
        if file == nil { file = try folder.createFile(name).release() }
        if let file { try ImageDirectory.write(buffer, to: file, name) }
        buffer.removeAll(keepingCapacity: true)
    }

    /// Hands the image over: to the file if it has one, else to the directory, which writes it later.
    public func finish() throws(Failure) {
        if file == nil { try folder.hold(name, buffer) } else { try flush() }
        buffer = []
    }
}

/// Bytes as a field of a message wants them.
public func imageBytes(_ bytes: some Sequence<UInt8>) -> Data { Data(bytes) }
