import Diagnostics
import Glibc
import ImageMessages
import Linux
import SystemPackage
import Testing

@testable import ImageFormat

/// Pages files whose pages are compressed.
@Suite struct `Packed pages` {
    private static let forms = [Compression(.lz4), Compression(.zstd), Compression(.zstd, level: 19)]

    private func directory() throws -> String {
        var name = Array("/tmp/brumate-images.XXXXXX".utf8CString)
        let made = unsafe name.withUnsafeMutableBufferPointer {
            unsafe $0.baseAddress.flatMap { unsafe mkdtemp($0) } != nil
        }
        try #require(made)
        return String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// Pages of which some shrink and some don't.
    private func contents(pages: Int) -> [UInt8] {
        var state: UInt64 = 88172645463325252
        return (0..<pages).flatMap { page in
            (0..<512).flatMap { word in
                state ^= state << 13
                state ^= state >> 7
                state ^= state << 17
                return [UInt8](bytesOf: page / 100 % 2 == 0 ? state : UInt64(word / 7 + page))
            }
        }
    }

    private func put(_ bytes: [UInt8], _ path: String) throws {
        let file = try openFile(path, [.writeOnly, .create, .truncate])
        try writeAll(bytes, to: file.number)
    }

    /// The pages of a packed file, by whole chunks.
    private func unpack(_ path: String) throws -> [UInt8] {
        let file = try openFile(path)
        let packed = try PackedPages(file.number, "packed-1.img")
        var (bytes, room) = ([UInt8](), [UInt8](repeating: 0, count: PagesFileWriter.chunkSize))
        let coder = ChunkCoder()
        for chunk in 0..<packed.count {
            let count = try room.withAddress { (address, _) throws(Failure) in
                try packed.read(chunk, of: file.number, to: address, with: coder, checks: true)
            }
            bytes += room[..<count]
        }
        return bytes
    }

    @Test(arguments: forms, [0, 1, 63, 64, 65, 300])
    func `give back what was packed`(form: Compression, pages: Int) throws {
        let path = try directory()
        let images = try ImageDirectory(FilePath(path))
        images.compression = form
        let bytes = contents(pages: pages)
        try images.hold(pages: 1, bytes)
        try images.writeOut()
        #expect(try unpack(path + "/packed-1.img") == bytes)
        let size = try FileStatus.read(path + "/packed-1.img", in: currentDirectory).size
        #expect(size <= 64 + UInt64(bytes.count) + 32 * UInt64(pages + 63) / 64)
    }

    @Test func `notice every changed byte and every cut`() throws {
        let path = try directory()
        let images = try ImageDirectory(FilePath(path))
        images.compression = Compression(.lz4)
        let bytes = [UInt8](repeating: 7, count: 70 << 12)
        try images.hold(pages: 1, bytes)
        try images.writeOut()
        let name = path + "/packed-1.img"
        let good = try readWholeFile(name)
        for index in good.indices {
            for bit in [0, 7] {
                var bad = good
                bad[index] ^= 1 << bit
                try put(bad, name)
                #expect(throws: Failure.self, "byte \(index)") { try unpack(name) }
            }
            try put(Array(good[..<index]), name)
            #expect(throws: Failure.self, "cut at \(index)") { try unpack(name) }
        }
    }

    /// A file whose hashes are right, whatever else it says.
    private func file(
        total: UInt64, algorithm: UInt32 = 1, index: UInt64? = nil, chunks: [PackedChunk], data: [UInt8]
    ) -> [UInt8] {
        let records = chunks.flatMap(\.bytes)
        var header = PackedHeader(
            .lz4, total: total, index: index ?? UInt64(PackedHeader.size + data.count), indexSum: Checksum(records))
        header.algorithm = algorithm
        return header.bytes + data + records
    }

    @Test func `of an enemy with right hashes are errors, and take no more memory than they are large`() throws {
        let path = try directory() + "/packed-1.img"
        let data = [UInt8](repeating: 0x1f, count: 100)
        func chunk(_ offset: UInt64 = 64, _ count: UInt32 = 100, compressed: Bool = true) -> PackedChunk {
            PackedChunk(offset: offset, count: count, isCompressed: compressed, sum: Checksum(data))
        }
        let files = [
            file(total: 1 << 62, chunks: [chunk()], data: data),
            file(total: .max - 4095, chunks: [chunk()], data: data),
            file(total: 4097, chunks: [chunk()], data: data),
            file(total: 4096, algorithm: 0, chunks: [chunk()], data: data),
            file(total: 4096, algorithm: 3, chunks: [chunk()], data: data),
            file(total: 4096, index: .max, chunks: [chunk()], data: data),
            file(total: 4096, index: 0, chunks: [chunk()], data: data),
            file(total: 4096, chunks: [chunk(.max)], data: data),
            file(total: 4096, chunks: [chunk(0)], data: data),
            file(total: 4096, chunks: [chunk(65)], data: data),
            file(total: 4096, chunks: [chunk(64, .max)], data: data),
            file(total: 4096, chunks: [chunk(64, 0)], data: data),
            file(total: 4096, chunks: [chunk(64, 4096)], data: data),
            file(total: 4096, chunks: [chunk(compressed: false)], data: data),
            file(total: 4096, chunks: [chunk(), chunk()], data: data),
            file(total: 8 << 20, chunks: [chunk()], data: data),
            file(total: 4096, chunks: [], data: data),
            // It is in a possible place, but not what LZ4 or Zstandard write.
            file(total: 4096, chunks: [chunk()], data: data),
            file(total: 4096, algorithm: 2, chunks: [chunk()], data: data),
        ]
        for (number, bytes) in files.enumerated() {
            try put(bytes, path)
            #expect(throws: Failure.self, "\(number)") { try unpack(path) }
        }
    }

    @Test func `make an integrity image that notices every changed byte of a set`() throws {
        let path = try directory()
        let images = try ImageDirectory(FilePath(path))
        (images.compression, images.keepsSums) = (Compression(.zstd), true)
        try images.begin()
        try images.write(.seccomp, [SeccompEntry()])
        try images.hold(pages: 1, contents(pages: 2))
        try images.hold(.ghost(1), [UInt8](repeating: 3, count: 300))
        images.share([(.pagemap(7), Pagemap(pagesID: 1, runs: [PageRun(address: Address(0x1000), pages: 1)]))])
        var inventory = InventoryEntry()
        inventory.imgVersion = 2
        try images.commit(inventory, sync: .none)
        try ImageSet(FilePath(path), verifies: true).verify(pages: true)
        let names = try listDirectory(FilePath(path)).map(\.string).filter { $0.hasSuffix(".img") }
        #expect(names.count == 5)
        for name in names + ["shared-pages/pagemap-7.img"] {
            let good = try readWholeFile(path + "/" + name)
            for index in good.indices {
                var bad = good
                bad[index] ^= 0x10
                try put(bad, path + "/" + name)
                #expect(throws: Failure.self, "\(name), byte \(index)") {
                    let set = try ImageSet(FilePath(path), verifies: true)
                    try set.verify(pages: true)
                    _ = try set.load(.inventory, as: InventoryEntry.self)
                }
            }
            try put(good, path + "/" + name)
        }
        try ImageSet(FilePath(path), verifies: true).verify(pages: true)
        // What CRIU has is read without.
        try put([UInt8](try readWholeFile(path + "/seccomp.img") + [0]), path + "/seccomp.img")
        try ImageSet(FilePath(path)).verify(pages: true)
    }
}
