internal import Diagnostics
internal import ImageMessages
internal import Linux
internal import SwiftProtobuf
internal import SystemPackage

/// What the files of a set are to hold, as `integrity.img` says.
final class Integrity: Sendable {
    private let files: [String: FileSums]
    /// Page maps and pages went to a page server.
    let pagesElsewhere: Bool
    /// What comes before the names of the folder that this is for.
    let prefix: String

    private init(_ files: [String: FileSums], pagesElsewhere: Bool, prefix: String = "") {
        self.files = files
        self.pagesElsewhere = pagesElsewhere
        self.prefix = prefix
    }

    /// The same for the folder of shared pages.
    var ofSharedPages: Integrity {
        Integrity(files, pagesElsewhere: pagesElsewhere, prefix: ImageDirectory.sharedFolder + "/")
    }

    /// All files, in the order of their names.
    var all: [FileSums] { files.values.sorted { $0.name < $1.name } }

    /// What is known of a file of the folder; nil if it belongs to none of the set's.
    subscript(_ name: String) -> FileSums? {
        guard let found = files[prefix + name] else { return nil }
        return found.isLink ? files[name] : found
    }

    /// Whether the set has an image, or may have.
    func lists(_ name: String) -> Bool {
        let isOfPages = ["pagemap-", "pages-", "packed-"].contains { name.hasPrefix($0) }
        return self[name] != nil || pagesElsewhere && isOfPages || name == ImageName.inventory.fileName
            || name == ImageName.cpuInformation.fileName
    }

    /// Reads it, and checks it and the inventory; nil if the inventory knows of none.
    init?(in folder: Int32, _ path: FilePath) throws(Failure) {
        guard let sealed = try SealedInventory(in: folder, path) else { return nil }
        let name = ImageName.integrity.fileName
        guard let bytes = ImageSet.contents(of: name, in: folder) else {
            throw Failure(.corruptImage, "the image \(name) is missing in \(path)", advice: ImageSet.damageAdvice)
        }
        guard Checksum(bytes).bytes == sealed.integrity else {
            throw Failure(
                .corruptImage, "the image \(name) in \(path) is damaged, or belongs to other images",
                advice: ImageSet.damageAdvice)
        }
        let reader = try attempt("open \(name)") { () throws(SystemCallError) in
            try openFile(name, [.noFollow], in: folder).release()
        }
        let image = try ImageReader(Descriptor(owning: reader), .integrity)
        let head = try image.next(IntegrityHead.self)
        var files: [String: FileSums] = [:]
        while let entry = try image.next(IntegrityEntry.self) {
            let name = String(decoding: entry.name, as: UTF8.self)
            let folders = name.split(separator: "/", omittingEmptySubsequences: false)
            guard folders.count == 1 || folders.count == 2 && folders[0] == ImageDirectory.sharedFolder,
                entry.chunks.count % Checksum.size == 0, !entry.hasHash || entry.hash.count == Checksum.size
            else { throw Failure(.corruptImage, "the image integrity.img lists the impossible file \(name)") }
            var file = files[name] ?? FileSums(name: name, size: entry.size)
            file.hash = Checksum(in: Array(entry.hash), at: 0)
            file.chunks += entry.chunks
            file.isLink = !entry.hasHash && !entry.hasChunks
            files[name] = file
        }
        for file in files.values where file.hash == nil && !file.isLink {
            let chunk = UInt64(PagesFileWriter.chunkSize)
            guard UInt64(file.chunks.count / Checksum.size) == file.size / chunk + (file.size % chunk > 0 ? 1 : 0)
            else { throw Failure(.corruptImage, "the image integrity.img has too few hashes of \(file.name)") }
        }
        self.files = files
        pagesElsewhere = head?.pagesElsewhere ?? false
        prefix = ""
    }
}

/// An inventory that holds a hash of itself.
struct SealedInventory {
    /// The hash of the integrity image.
    let integrity: [UInt8]
    /// Bytes of the last field: its number and length in three, and a hash.
    private static let tail = 3 + Checksum.size

    /// Reads and checks it; nil if it is none, or makes no sense at all.
    init?(in folder: Int32, _ path: FilePath) throws(Failure) {
        let name = ImageName.inventory.fileName
        guard let bytes = ImageSet.contents(of: name, in: folder), bytes.count > 8,
            let entry = try? unsafe InventoryEntry(serializedBytes: bytes.span.extracting(8...).bytes),
            entry.hasIntegrity || entry.hasOwnHash
        else { return nil }
        guard entry.hasIntegrity, bytes.count > 8 + SealedInventory.tail,
            Checksum(Array(bytes[8..<(bytes.count - SealedInventory.tail)])).bytes.elementsEqual(entry.ownHash)
        else {
            throw Failure(.corruptImage, "the image \(name) in \(path) is damaged", advice: ImageSet.damageAdvice)
        }
        integrity = Array(entry.integrity)
    }

    /// The contents of an inventory image, with both hashes if it has an integrity image.
    static func bytes(of inventory: InventoryEntry, integrity: Checksum? = nil) throws(Failure) -> [UInt8] {
        var inventory = inventory
        if let integrity { inventory.integrity = imageBytes(integrity.bytes) }
        var body: [UInt8]
        do { body = try inventory.serializedBytes() } catch {
            throw Failure(.bug, "can't encode the inventory: \(error)")
        }
        // As a message has it: field 2000, 16 bytes.
        if integrity != nil { body += [0x82, 0x7d, UInt8(Checksum.size)] + Checksum(body).bytes }
        return ImageName.inventory.header.flatMap { [UInt8](bytesOf: $0.littleEndian) }
            + [UInt8](bytesOf: UInt32(body.count).littleEndian) + body
    }
}
