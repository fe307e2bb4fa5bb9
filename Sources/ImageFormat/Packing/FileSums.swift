internal import Diagnostics
internal import ImageMessages
internal import Linux

/// What the integrity image says of a file.
struct FileSums: Sendable {
    var name: String
    var size: UInt64
    /// Of a packed file, whose header and index have the hashes of all the rest.
    var hash: Checksum?
    /// Of any other: the hash of each 256 KiB.
    var chunks: [UInt8] = []
    /// It is another name of the file of the same name in the set's own directory.
    var isLink = false

    /// Bytes of hashes in one message, which is far below what a reader accepts.
    private static let most = Checksum.size << 20

    /// As it is stored: the hashes of large files come in several messages.
    var entries: [IntegrityEntry] {
        var entry = IntegrityEntry()
        (entry.name, entry.size) = (imageBytes(name.utf8), size)
        if isLink { return [entry] }
        if let hash {
            entry.hash = imageBytes(hash.bytes)
            return [entry]
        }
        return stride(from: 0, through: chunks.count, by: FileSums.most).map { start in
            entry.chunks = imageBytes(chunks[start..<min(chunks.count, start + FileSums.most)])
            return entry
        }
    }
}

extension FileSums {
    /// Of bytes that are being written.
    init(_ name: String, _ bytes: [UInt8]) {
        self.init(name: name, size: UInt64(bytes.count))
        bytes.withConstantAddress { (address, count) in
            for start in stride(from: 0, to: count, by: PagesFileWriter.chunkSize) {
                let length = min(PagesFileWriter.chunkSize, count - start)
                chunks += Checksum(at: address + start, count: length).bytes
            }
        }
    }

    /// Of a file that was written in pieces; nil if there is no such file.
    init?(reading name: String, in folder: Int32, with coder: ChunkCoder) throws(Failure) {
        guard let file = try? openFile(name, [.noFollow], in: folder) else { return nil }
        self.init(name: name, size: 0)
        let (number, buffer) = (file.number, try coder.buffer())
        while true {
            let at = size
            let got = try attempt("read \(name)") { () throws(SystemCallError) in
                try readFully(number, into: buffer, count: PagesFileWriter.chunkSize, at: at)
            }
            if got > 0 { chunks += Checksum(at: buffer, count: got).bytes }
            size += UInt64(got)
            if got < PagesFileWriter.chunkSize { return }
        }
    }
}
