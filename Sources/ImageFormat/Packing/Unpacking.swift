public import Diagnostics
internal import ImageMessages
internal import Linux
internal import SystemPackage

extension ImageSet {
    /// Turns packed pages files into CRIU's, in this set and its parents. Returns the names of the files that were
    /// there.
    ///
    /// At any moment the set is whole and can be restored: new files get their names when they are on the disk, and the
    /// old ones go when nothing refers to them.
    ///
    /// - Parameter faults: where tests make it fail.
    public func unpack(_ faults: Faults) throws(Failure) -> [String] {
        var names: [String] = []
        var next: ImageSet? = self
        while let set = next {
            names += try set.unpackOwn(faults)
            next = set.parent
        }
        return names
    }

    private func packedNumbers(in folder: String) -> [UInt32] {
        ((try? listDirectory(FilePath(folder), in: directory.number)) ?? []).compactMap { name in
            guard name.string.hasPrefix("packed-"), name.string.hasSuffix(".img") else { return nil }
            return UInt32(name.string.dropFirst(7).dropLast(4))
        }
    }

    private func unpackOwn(_ faults: Faults) throws(Failure) -> [String] {
        let numbers = packedNumbers(in: ".").sorted()
        guard !numbers.isEmpty else { return [] }
        var sums: [FileSums] = []
        // What only a removal was missing of is not done again.
        for number in numbers where integrity?[ImageName.pages(number).fileName] == nil {
            sums.append(try unpack(number))
        }
        let (folder, shared) = (directory.number, ImageDirectory.sharedFolder)
        let links = packedNumbers(in: shared)
        try attempt("link shared pages in \(path.string)") { () throws(SystemCallError) in
            for number in links {
                let plain = ImageName.pages(number).fileName
                _ = try? removeName(FilePath(shared + "/" + plain), in: folder)
                try withCString(plain) { (from) throws(SystemCallError) in
                    try withCString(shared + "/" + plain) { (to) throws(SystemCallError) in
                        _ = try systemCall(.linkat, Int(folder), from, Int(folder), to, 0)
                    }
                }
            }
            try systemCall(.syncfs, Int(folder))
        }
        try faults.pass(.unpackWritten)
        if !sums.isEmpty { try describe(sums, faults) }
        for number in links { try remove(shared + "/" + ImageName.packedPages(number).fileName) }
        for number in numbers { try remove(ImageName.packedPages(number).fileName) }
        return numbers.map { "\(path.string)/\(ImageName.packedPages($0).fileName)" }
    }

    private func remove(_ name: String) throws(Failure) {
        try attempt("remove \(name) in \(path.string)") { () throws(SystemCallError) in
            try removeName(FilePath(name), in: directory.number)
        }
    }

    /// Writes the unpacked file beside the packed one.
    private func unpack(_ number: UInt32) throws(Failure) -> FileSums {
        let (name, plain) = (ImageName.packedPages(number).fileName, ImageName.pages(number))
        let folder = directory.number
        let source = try attempt("open \(name) in \(path.string)") { () throws(SystemCallError) in
            try openFile(name, [.noFollow], in: folder).release()
        }
        let file = Descriptor(owning: source)
        let packed = try PackedPages(source, name)
        if let integrity {
            guard let known = integrity[name]?.hash, known == packed.sum else {
                throw Failure(
                    .corruptImage, "the image \(name) in \(path.string) does not belong to the images there",
                    advice: ImageSet.damageAdvice)
            }
        }
        let staging = "." + plain.fileName
        let target = try attempt("create \(staging) in \(path.string)") { () throws(SystemCallError) in
            try openFile(staging, [.readWrite, .create, .truncate, .noFollow], mode: 0o644, in: folder).release()
        }
        let writer = PagesFileWriter(plain, Descriptor(owning: target), nil, keepsSums: true)
        let (dealer, checks) = (Dealer(packed.count), verifies)
        do throws(Failure) {
            try Workers.run(packed.count < ImageSet.few ? 1 : Workers.count) { () throws(Failure) in
                let coder = ChunkCoder()
                let memory = try attempt("get memory for pages") { () throws(SystemCallError) in
                    try Mapping(length: PagesFileWriter.chunkSize, flags: 0x22)
                }
                while let chunk = dealer.take() {
                    let count = try packed.read(chunk, of: source, to: memory.address, with: coder, checks: checks)
                    try writer.write(chunk: chunk, from: memory.address, count: count, with: coder)
                }
            }
            try rename(staging, plain.fileName, synced: target)
        } catch {
            _ = try? removeName(FilePath(staging), in: folder)
            throw error
        }
        _ = consume file
        return try writer.finish()
    }

    /// Gives a file, once it is on the disk, its name.
    private func rename(_ staging: String, _ name: String, synced file: Int32) throws(Failure) {
        let folder = Int(directory.number)
        try attempt("write \(name) in \(path.string)", advice: "Check that the disk has room") {
            () throws(SystemCallError) in
            try systemCall(.fsync, Int(file))
            try withCString(staging) { (from) throws(SystemCallError) in
                try withCString(name) { (to) throws(SystemCallError) in
                    _ = try systemCall(.renameat2, folder, from, folder, to, 0)
                }
            }
            try systemCall(.fsync, folder)
        }
    }

    private func replace(_ name: ImageName, by bytes: [UInt8]) throws(Failure) {
        let (staging, folder) = ("." + name.fileName, directory.number)
        let number = try attempt("write \(staging) in \(path.string)", advice: "Check that the disk has room") {
            () throws(SystemCallError) in
            let file = try openFile(staging, [.readWrite, .create, .truncate, .noFollow], mode: 0o644, in: folder)
            try writeAll(bytes, to: file.number)
            return file.release()
        }
        let file = Descriptor(owning: number)
        try rename(staging, name.fileName, synced: file.number)
    }

    /// Has the integrity image tell of unpacked files. Inventory and integrity image can't change at once, so the set
    /// has no hashes for a moment.
    private func describe(_ unpacked: [FileSums], _ faults: Faults) throws(Failure) {
        guard has(.inventory) else { return }
        var inventory = try load(.inventory, as: InventoryEntry.self)
        guard inventory.hasIntegrity || inventory.hasOwnHash else { return }
        inventory.clearIntegrity()
        inventory.clearOwnHash()
        try replace(.inventory, by: try SealedInventory.bytes(of: inventory))
        try faults.pass(.unpackBare)
        guard let integrity else { return try remove(ImageName.integrity.fileName) }
        let new = Dictionary(unpacked.map { ($0.name, $0) }) { $1 }
        let files = integrity.all.map { file in
            var file = file
            let parts = file.name.split(separator: "/")
            guard let last = parts.last, last.hasPrefix("packed-") else { return file }
            let name = "pages-" + last.dropFirst(7)
            if !file.isLink, let sums = new[name] { return sums }
            if file.isLink { file.name = file.name.dropLast(last.count) + name }
            return file
        }
        let bytes = try ImageDirectory.integrity(of: files, pagesElsewhere: integrity.pagesElsewhere)
        try replace(.integrity, by: bytes)
        try replace(.inventory, by: try SealedInventory.bytes(of: inventory, integrity: Checksum(bytes)))
        try faults.pass(.unpackSealed)
    }
}
