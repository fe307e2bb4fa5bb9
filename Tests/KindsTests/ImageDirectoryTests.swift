import Diagnostics
import Glibc
import ImageFormat
import ImageMessages
import Linux
import SystemPackage
import Testing

/// A directory is an image when it is complete, and not before.
@Suite struct `An image directory` {
    private func directory() throws -> String {
        var name = Array("/tmp/brumate-images.XXXXXX".utf8CString)
        let made = unsafe name.withUnsafeMutableBufferPointer {
            unsafe $0.baseAddress.flatMap { unsafe mkdtemp($0) } != nil
        }
        try #require(made)
        return String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private func names(_ path: String) throws -> Set<String> {
        Set(try listDirectory(FilePath(path)).map(\.string))
    }

    private var inventory: InventoryEntry {
        var entry = InventoryEntry()
        entry.imgVersion = 2
        return entry
    }

    @Test(arguments: [SyncMethod.none, .wholeFileSystem, .eachFile])
    func `holds small images back until it is written out, and is valid after the commit`(_ method: SyncMethod) throws {
        let path = try directory()
        let images = try ImageDirectory(FilePath(path))
        try images.begin()
        try images.write(.seccomp, [SeccompEntry()])
        try images.hold(pages: 1, [UInt8](repeating: 5, count: 4096))
        let shared = Pagemap(pagesID: 1, runs: [PageRun(address: Address(0x1000), pages: 1)])
        images.share([(.pagemap(7), shared)])
        #expect(try names(path).isEmpty)
        try images.commit(inventory, sync: method)
        #expect(
            try names(path) == ["seccomp.img", "pages-1.img", "inventory.img", "shared-pages", "parent"])
        let set = try ImageSet(FilePath(path))
        #expect(try set.load(.inventory, as: InventoryEntry.self).imgVersion == 2)
        #expect(try Pagemap.read(.pagemap(7), from: try #require(set.parent)).runs == shared.runs)
    }

    @Test func `what an older set had and the new one has not is gone, and files of others stay`() throws {
        let path = try directory()
        let old = try ImageDirectory(FilePath(path))
        try old.begin()
        try old.write(.socketQueues, [SeccompEntry()])
        try old.write(.pagemap(7), [SeccompEntry()])
        try old.commit(inventory, sync: .none)
        #expect(try ImageSet(FilePath(path)).has(.socketQueues))
        for (name, text) in [("disk.img", "no image of ours"), ("empty.img", "")] {
            let file = try openFile(path + "/" + name, [.writeOnly, .create])
            try writeAll(Array(text.utf8), to: file.number)
        }
        let new = try ImageDirectory(FilePath(path))
        try new.begin()
        try new.commit(inventory, sync: .none)
        #expect(try names(path) == ["disk.img", "empty.img", "inventory.img"])
    }

    @Test func `is empty again when it is discarded, also after the commit`() throws {
        let path = try directory()
        let images = try ImageDirectory(FilePath(path))
        try images.begin()
        try images.write(.seccomp, [SeccompEntry()])
        images.share([(.pagemap(7), Pagemap(pagesID: 1, runs: []))])
        try images.hold(pages: 1, [])
        try images.commit(inventory, sync: .none)
        images.discard()
        #expect(try names(path).isEmpty)
    }

    @Test func `spills a large image into its file`() throws {
        let path = try directory()
        let images = try ImageDirectory(FilePath(path))
        let writer = images.create(.ghost(1))
        for _ in 0..<40 { try writer.append(raw: [UInt8](repeating: 1, count: 100_000)) }
        try writer.finish()
        #expect(try FileStatus.read(path + "/ghost-file-1.img", in: currentDirectory).size == 8 + 4_000_000)
    }
}
