public import Diagnostics
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
    var written: [String] = []
    private var old: [String: FileStatus] = [:]
    private var nextPages: UInt32
    /// Where page maps and pages go instead, nil if they go here.
    public var pageReceiver: (any PageReceiver)?
    /// Where all images go instead, nil if they go here.
    public let receiver: (any ImageReceiver)?
    /// What their names begin with there.
    let prefix: String
    /// Files here that are still to go there.
    private var unsent: [String] = []
    /// How pages are compressed; nil for not at all.
    public var compression: Compression?
    /// Whether the set gets an integrity image: the hashes of all its files.
    public var keepsSums = false
    private var sums: [String: FileSums] = [:]
    private var held: [(name: ImageName, contents: Contents)] = []
    private var heldBytes = 0
    var shared: [(name: ImageName, pagemap: Pagemap)] = []
    var inheriting: [(name: ImageName, runs: [PageRun])] = []
    var sharedSet: ImageDirectory?
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
    init(_ name: String, within other: ImageDirectory) throws(Failure) {
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
    func removeOld() throws(Failure) {
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

    func remove(_ name: String) throws(SystemCallError) {
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

    func pagesName(_ id: UInt32) -> ImageName { compression == nil ? .pages(id) : .packedPages(id) }

    func note(_ sum: FileSums) { if keepsSums { sums[sum.name] = sum } }

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

    static func write(_ bytes: [UInt8], to file: Int32, _ name: ImageName) throws(Failure) {
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
    static let staging = ImageName("." + ImageName.inventory.fileName, ImageName.inventory.magic)

    func publish(_ method: SyncMethod) throws(Failure) {
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

    /// Removes what was written: the dump failed. The inventory goes first.
    public func discard() {
        (held, heldBytes, shared, inheriting, sharedSet, previous, sums) = ([], 0, [], [], nil, nil, [:])
        for name in written.reversed() { do throws(SystemCallError) { try remove(name) } catch {} }
        do throws(SystemCallError) { try remove("parent") } catch {}
        removeSharedPages()
    }
}
