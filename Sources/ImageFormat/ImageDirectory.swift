public import Diagnostics
public import FoundationEssentials
public import ImageMessages
public import Linux
public import SwiftProtobuf
public import SystemPackage

/// An image directory under construction.
///
/// The inventory is written last, under another name, synced and renamed: a directory without it is no image.
public final class ImageDirectory {
    /// The directory.
    public let directory: Descriptor
    /// Its path, for messages.
    public let path: FilePath
    private var written: [String] = []
    private var nextPages: UInt32 = 1

    /// Opens a directory for a new set of images. An older inventory in it is removed first: from here on the directory
    /// holds no valid image.
    public init(_ path: FilePath) throws(Failure) {
        self.path = path
        directory = try attempt(
            "open the image directory \(path.string)", advice: "Create it, or pass another with --images-dir"
        ) {
            () throws(SystemCallError) in try openFile(path, [.directory])
        }
    }

    /// Forgets an older set: removes its inventory.
    public func begin() throws(Failure) {
        do throws(SystemCallError) { try remove(ImageName.inventory.fileName) } catch {
            if error.errno != .ENOENT {
                throw Failure(.denied, "can't write to the image directory \(path.string)", cause: error)
            }
        }
        do throws(SystemCallError) { try remove("parent") } catch {}
        removeSharedPages()
        let probe = try create(ImageName(".brumate-probe", 0))
        try probe.finish()
        do throws(SystemCallError) { try remove(".brumate-probe") } catch {}
    }

    private func remove(_ name: String) throws(SystemCallError) {
        try removeName(FilePath(name), in: directory.number)
    }

    /// A number for a new pages file.
    public func newPagesID() -> UInt32 {
        defer { nextPages += 1 }
        return nextPages
    }

    /// Creates an image and writes its magic.
    public func create(_ name: ImageName) throws(Failure) -> ImageWriter {
        let folder = directory.number
        let file = try attempt("create the image \(name.fileName) in \(path.string)") { () throws(SystemCallError) in
            try openFile(name.fileName, [.readWrite, .create, .truncate], mode: 0o644, in: folder)
        }
        if !name.isService { written.append(name.fileName) }
        return ImageWriter(file, name)
    }

    /// Writes an image of some messages.
    public func write(_ name: ImageName, _ messages: [any Message]) throws(Failure) {
        let writer = try create(name)
        for message in messages { try writer.append(message) }
        try writer.finish()
    }

    /// Makes the set valid: everything is synced, then the inventory appears at once.
    public func commit(_ inventory: InventoryEntry) throws(Failure) {
        let staging = ImageName("." + ImageName.inventory.fileName, ImageName.inventory.magic)
        let writer = try create(staging)
        try writer.append(inventory)
        try writer.finish()
        let folder = directory.number
        try attempt("finish the image in \(path.string)") { () throws(SystemCallError) in
            try withPath(FilePath(staging.fileName)) { (from) throws(SystemCallError) in
                try withPath(FilePath(ImageName.inventory.fileName)) { (to) throws(SystemCallError) in
                    try systemCall(.renameat2, Int(folder), from, Int(folder), to, 0)
                }
            }
        }
    }

    /// Where pages lie that several processes share: a parent image of our own making.
    private static let shared = "shared-pages"

    /// Makes a parent image that consists of page maps whose pages are in this directory.
    ///
    /// Page maps can refer to pages of their own file, or of the same process in the parent image. So a process that
    /// shares pages with a relative gets a page map there that is the relative's, and the pages file is linked.
    public func share(_ pagemaps: [(name: ImageName, pagemap: Pagemap)]) throws(Failure) {
        guard !pagemaps.isEmpty else { return }
        let here = Int(directory.number)
        try attempt("create \(ImageDirectory.shared) in \(path.string)") { () throws(SystemCallError) in
            try withCString(ImageDirectory.shared) { (name) throws(SystemCallError) in
                try systemCall(.mkdirat, here, name, 0o755)
            }
        }
        let parent = try ImageDirectory(path.appending(ImageDirectory.shared))
        let there = Int(parent.directory.number)
        var linked: Set<UInt32> = []
        for (name, pagemap) in pagemaps {
            try pagemap.write(name, to: parent)
            guard linked.insert(pagemap.pagesID).inserted else { continue }
            try attempt("link shared pages in \(path.string)") { () throws(SystemCallError) in
                try withCString(ImageName.pages(pagemap.pagesID).fileName) { (file) throws(SystemCallError) in
                    try systemCall(.linkat, here, file, there, file, 0)
                }
            }
        }
        try attempt("link the parent image in \(path.string)") { () throws(SystemCallError) in
            try withCString(ImageDirectory.shared) { (target) throws(SystemCallError) in
                try withCString("parent") { (name) throws(SystemCallError) in
                    try systemCall(.symlinkat, target, here, name)
                }
            }
        }
    }

    private func removeSharedPages() {
        guard let old = try? listDirectory(FilePath(ImageDirectory.shared), in: directory.number) else { return }
        for name in old { _ = try? remove(ImageDirectory.shared + "/" + name.string) }
        _ = try? removeName(FilePath(ImageDirectory.shared), isDirectory: true, in: directory.number)
    }

    /// Removes what was written: the dump failed.
    public func discard() {
        do throws(SystemCallError) { try remove("parent") } catch {}
        removeSharedPages()
        for name in written { do throws(SystemCallError) { try remove(name) } catch {} }
    }
}

/// Writes one image file through a buffer.
public final class ImageWriter {
    private let file: Descriptor
    private let name: ImageName
    private var buffer: [UInt8] = []
    private var isOpen = true

    init(_ file: consuming Descriptor, _ name: ImageName) {
        self.file = file
        self.name = name
        for word in name.header { buffer += [UInt8](bytesOf: word.littleEndian) }
    }

    /// The descriptor, for raw contents. `flush` first.
    public var number: Int32 { file.number }

    /// Appends a message with its length.
    public func append(_ message: any Message) throws(Failure) {
        let bytes: [UInt8]
        do { bytes = try message.serializedBytes() } catch {
            throw Failure(.bug, "can't encode a message of \(name.fileName): \(error)")
        }
        buffer += [UInt8](bytesOf: UInt32(bytes.count).littleEndian)
        buffer += bytes
        if buffer.count > 1 << 16 { try flush() }
    }

    /// Appends raw bytes.
    public func append(raw bytes: [UInt8]) throws(Failure) {
        buffer += bytes
        if buffer.count > 1 << 16 { try flush() }
    }

    /// Writes out what is buffered.
    public func flush() throws(Failure) {
        guard !buffer.isEmpty else { return }
        let (bytes, number) = (buffer, file.number)
        try attempt("write the image \(name.fileName)", advice: "Check that the disk has room") {
            () throws(SystemCallError) in
            try writeAll(bytes, to: number)
        }
        buffer.removeAll(keepingCapacity: true)
    }

    /// Writes out everything.
    public func finish() throws(Failure) {
        try flush()
        isOpen = false
    }
}

/// Bytes as a field of a message wants them.
public func imageBytes(_ bytes: some Sequence<UInt8>) -> Data { Data(bytes) }
