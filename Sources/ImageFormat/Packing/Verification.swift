public import Diagnostics
internal import ImageMessages
internal import Linux
internal import SystemPackage

extension ImageSet {
    /// Compares the set and its parents with the hashes that they have, before anything is made of them.
    ///
    /// - Parameter pages: also all page data. Without it what is read is compared when it is read.
    public func verify(pages: Bool) throws(Failure) {
        guard verifies else { return }
        try checkParents()
        var next: ImageSet? = self
        while let set = next {
            if let integrity = set.integrity {
                if integrity.prefix.isEmpty { try set.compare(with: integrity, pages: pages) }
                if pages, !integrity.pagesElsewhere { set.isVerified = true }
            }
            next = set.parent
        }
    }

    /// Fails if the parents are not the ones that the set refers to.
    private func checkParents() throws(Failure) {
        var next: ImageSet? = self
        var wanted: [UInt8] = []
        while let set = next {
            if set.has(.inventory) {
                let inventory = try set.load(.inventory, as: InventoryEntry.self)
                guard wanted.isEmpty || inventory.generation.elementsEqual(wanted) else {
                    throw Failure(
                        .corruptImage, "\(set.path.string) does not hold the images that those after it were made from",
                        advice: "Bring the images of the whole chain back to their places")
                }
                wanted = Array(inventory.parentGeneration)
            }
            next = set.parent
        }
    }

    /// A file that is being compared.
    private final class Subject: Sendable {
        let name: String
        let sums: FileSums
        let file: Descriptor
        let packed: PackedPages?

        init(_ listed: FileSums, _ sums: FileSums, in set: ImageSet) throws(Failure) {
            (name, self.sums) = (listed.name, sums)
            let folder = set.directory.number
            func foreign(_ what: String) -> Failure {
                Failure(
                    .corruptImage, "the image \(listed.name) in \(set.path.string) \(what)",
                    advice: ImageSet.damageAdvice)
            }
            guard let number = try? openFile(listed.name, [.noFollow, .nonBlocking], in: folder).release() else {
                throw foreign("is missing, or can't be opened")
            }
            file = Descriptor(owning: number)
            let status = try attempt("look at \(listed.name)") { () throws(SystemCallError) in
                try FileStatus.read(in: number)
            }
            guard status.kind == .regular, status.size == sums.size else {
                throw foreign("has \(status.size) bytes and not \(sums.size): it is cut short, or of other images")
            }
            packed = sums.hash == nil ? nil : try PackedPages(number, listed.name)
            guard packed?.sum == sums.hash else { throw foreign("is damaged, or belongs to other images") }
        }

        var chunks: Int { packed?.count ?? sums.chunks.count / Checksum.size }

        func check(_ chunk: Int, with coder: ChunkCoder, mayHaveHoles: Bool) throws(Failure) {
            if let packed { return try packed.check(chunk, of: file.number, with: coder) }
            try sums.check(chunk, of: file.number, into: try coder.buffer(), mayHaveHoles: mayHaveHoles)
        }
    }

    /// Chunks that a thread takes at once, and from how many on several threads are worth their start.
    static let share = 16, few = 64

    private func compare(with integrity: Integrity, pages: Bool) throws(Failure) {
        var subjects: [Subject] = []
        var jobs: [(subject: Int, chunks: Range<Int>)] = []
        for listed in integrity.all {
            let isOfPages = listed.name.split(separator: "/").last.map {
                $0.hasPrefix("pages-") || $0.hasPrefix("packed-")
            }
            guard pages || isOfPages == false else { continue }
            guard let sums = listed.isLink ? integrity[String(listed.name.split(separator: "/").last ?? "")] : listed
            else { throw Failure(.corruptImage, "the image integrity.img has no hashes of \(listed.name)") }
            if listed.isLink, isSame(listed.name, sums.name) { continue }
            let subject = try Subject(listed, sums, in: self)
            for start in stride(from: 0, to: subject.chunks, by: ImageSet.share) {
                jobs.append((subjects.count, start..<min(subject.chunks, start + ImageSet.share)))
            }
            subjects.append(subject)
        }
        // Pages that later images have anew may be gone.
        let mayHaveHoles = (try? checkComplete()) == nil
        let (all, parts, dealer) = (subjects, jobs, Dealer(jobs.count))
        try Workers.run(jobs.count < ImageSet.few ? 1 : Workers.count) { () throws(Failure) in
            let coder = ChunkCoder()
            while let index = dealer.take() {
                let (subject, chunks) = parts[index]
                for chunk in chunks { try all[subject].check(chunk, with: coder, mayHaveHoles: mayHaveHoles) }
            }
        }
    }

    private func isSame(_ one: String, _ other: String) -> Bool {
        guard let a = try? FileStatus.read(one, in: directory.number, followsLink: false),
            let b = try? FileStatus.read(other, in: directory.number, followsLink: false)
        else { return false }
        return (a.inode, a.device) == (b.inode, b.device)
    }
}

extension FileSums {
    /// Reads a chunk of an unpacked file to `address`, and fails if it is not as it was written. Returns its bytes.
    @discardableResult
    func check(_ chunk: Int, of file: Int32, into address: Int, mayHaveHoles: Bool) throws(Failure) -> Int {
        let start = UInt64(chunk) * UInt64(PagesFileWriter.chunkSize)
        let length = start < size ? Int(min(UInt64(PagesFileWriter.chunkSize), size - start)) : 0
        let got = try attempt("read \(name)") { () throws(SystemCallError) in
            try readFully(file, into: address, count: length, at: start)
        }
        if got == length, Checksum(at: address, count: got) == Checksum(in: chunks, at: chunk * Checksum.size) {
            return got
        }
        let hole = mayHaveHoles ? (try? systemCall(.lseek, Int(file), Int(start), 4)) ?? .max : .max  // SEEK_HOLE
        guard got == length, hole < Int(start) + length else {
            throw Failure(
                .corruptImage,
                "the image \(name) is damaged: the \(length) bytes from byte \(start) on are not as they were written",
                advice: ImageSet.damageAdvice)
        }
        return got
    }
}

/// The hashes of a pages file that is not packed, for those who read a part of it.
public struct PagesSums: Sendable {
    fileprivate let sums: FileSums
    fileprivate let mayHaveHoles: Bool

    /// Reads a chunk to `address`, where there is room for 256 KiB, and fails if it is not as it was written. Returns
    /// how many bytes it has.
    public func read(_ chunk: Int, of file: Int32, to address: Int) throws(Failure) -> Int {
        try sums.check(chunk, of: file, into: address, mayHaveHoles: mayHaveHoles)
    }
}

/// How the pages in a pages file are to be read.
public enum PagesLayout: Sendable {
    /// As they are.
    case plain
    /// By whole chunks, to compare them with their hashes.
    case summed(PagesSums)
    /// By whole chunks, which are compressed; whether they are to be compared with their hashes.
    case packed(PackedPages, checks: Bool)
}

extension ImageSet {
    /// The name of the pages file of a number: that of the packed one, if there is one.
    public func pagesName(_ id: UInt32) -> ImageName {
        let (plain, packed) = (ImageName.pages(id), ImageName.packedPages(id))
        // While a set is unpacked it may have both.
        return integrity?[plain.fileName] != nil || !has(packed) ? plain : packed
    }

    /// How an open pages file is to be read.
    public func layout(of file: Int32, _ name: ImageName) throws(Failure) -> PagesLayout {
        let packed = name.magic == 0 ? nil : try PackedPages(file, name.fileName)
        let checks = verifies && !isVerified
        if checks, let integrity, !integrity.pagesElsewhere {
            guard let sums = integrity[name.fileName], sums.hash == packed?.sum else {
                throw Failure(
                    .corruptImage, "the image \(name.fileName) in \(path.string) does not belong to the images there",
                    advice: ImageSet.damageAdvice)
            }
            if packed == nil { return .summed(PagesSums(sums: sums, mayHaveHoles: (try? checkComplete()) == nil)) }
        }
        return packed.map { .packed($0, checks: checks) } ?? .plain
    }
}
