import Diagnostics
import Glibc
import ImageFormat
import ImageMessages
import Linux
import SystemPackage
import Testing

/// Image files of an enemy: every damage is an error, none a trap, a hang or a huge allocation.
@Suite struct `Hostile images` {
    private func directory() throws -> String {
        var name = Array("/tmp/brumate-images.XXXXXX".utf8CString)
        let made = unsafe name.withUnsafeMutableBufferPointer {
            unsafe $0.baseAddress.flatMap { unsafe mkdtemp($0) } != nil
        }
        try #require(made)
        return String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private func write(_ bytes: [UInt8], _ path: String) throws {
        let file = try openFile(path, [.writeOnly, .create, .truncate])
        try writeAll(bytes, to: file.number)
    }

    @Test func `every truncation and every changed byte of a pagemap`() throws {
        let path = try directory()
        let images = try ImageDirectory(FilePath(path))
        let runs = (0..<8).map { PageRun(address: Address(0x1000 + UInt64($0) * 0x10000), pages: UInt64($0 + 1)) }
        try Pagemap(pagesID: 1, runs: runs).write(.pagemap(1), to: images)
        try images.writeOut()
        let name = path + "/pagemap-1.img"
        let good = try readWholeFile(name)
        let set = try ImageSet(FilePath(path))
        #expect(try Pagemap.read(.pagemap(1), from: set).runs == runs)
        for length in 0..<good.count {
            try write(Array(good[..<length]), name)
            _ = try? Pagemap.read(.pagemap(1), from: set)
        }
        for index in good.indices {
            for bit in 0..<8 {
                var bad = good
                bad[index] ^= 1 << UInt8(bit)
                try write(bad, name)
                guard let map = try? Pagemap.read(.pagemap(1), from: set) else { continue }
                for (one, two) in zip(map.runs, map.runs.dropFirst()) { #expect(one.range.end <= two.address) }
            }
        }
    }

    @Test func `a message that says it is four gigabytes long`() throws {
        let path = try directory()
        try write([0x19, 0x43, 0x56, 0x54, 0x30, 0x30, 0x27, 0x50, 0xff, 0xff, 0xff, 0xff, 1], path + "/pstree.img")
        let set = try ImageSet(FilePath(path))
        #expect(throws: Failure.self) { try set.loadAll(.processTree, as: PstreeEntry.self) }
    }

    @Test func `an endless chain of parents`() throws {
        let path = try directory()
        try #require(symlink(".", path + "/parent") == 0)
        #expect(throws: Failure.self) { try ImageSet(FilePath(path)) }
    }
}
