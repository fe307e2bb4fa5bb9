internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// Sizes and contents of pipes and fifos: `pipes-data.img` and `fifo-data.img`.
final class PipeContents {
    /// Contents of one pipe.
    struct Contents {
        var entry: PipeDataEntry
        var bytes: [UInt8]
    }

    /// A pipe: unnamed ones and fifos are numbered apart.
    private struct Key: Hashable {
        let id: UInt32, isFifo: Bool
    }

    private var known: [Key: Contents] = [:]
    private var order: [Key] = []
    private var lens: (reading: Int32, writing: Int32)?

    /// The largest pipe that is read from an image, twice the kernel's default limit for users.
    private static let largest = 1 << 28

    static func of(_ context: DumpContext) -> PipeContents { context.state(PipeContents.self) { PipeContents() } }
    static func of(_ context: RestoreContext) -> PipeContents { context.state(PipeContents.self) { PipeContents() } }

    deinit {
        if let lens {
            _ = try? systemCall(.close, Int(lens.reading))
            _ = try? systemCall(.close, Int(lens.writing))
        }
    }

    // MARK: dump

    /// Reads size and contents, if this is the first sight of the pipe, and leaves both as they are.
    func dump(_ id: UInt32, through file: OpenFile, isFifo: Bool) throws(Failure) {
        let key = Key(id: id, isFifo: isFifo)
        guard known[key] == nil else { return }
        let number = Int(file.handle.number)
        var entry = PipeDataEntry()
        entry.pipeID = id
        var contents: [UInt8] = []
        if file.facts.statusFlags & UInt32(OpenFlags.path.rawValue) == 0 {
            let (waiting, size) = try look(into: number)
            entry.size = UInt32(size)
            if waiting > 0 { (contents, entry.packets) = try copy(file, waiting, size) }
        }
        entry.bytes = UInt32(contents.count)
        known[key] = Contents(entry: entry, bytes: contents)
        order.append(key)
    }

    /// The bytes that wait in a pipe, and how many it can hold (`FIONREAD`, `F_GETPIPE_SZ`).
    private func look(into number: Int) throws(Failure) -> (waiting: Int, size: Int) {
        var waiting: Int32 = 0
        let size = try attempt("look into the pipe") { () throws(SystemCallError) in
            try withAddress(of: &waiting) { (address) throws(SystemCallError) in
                try systemCall(.ioctl, number, 0x541b, address)
            }
            return try systemCall(.fcntl, number, 1032)
        }
        return (Int(waiting), size)
    }

    /// Duplicates what is in the pipe into one of ours (`tee(2)`) and reads that.
    private func copy(_ file: OpenFile, _ waiting: Int, _ size: Int) throws(Failure) -> ([UInt8], [UInt32]) {
        let ours = file.handle.number
        let flags = file.facts.statusFlags
        // A writing end can't be read; another description of the same pipe can.
        let reading = try attempt("open the pipe for reading") { () throws(SystemCallError) in
            flags & 3 == 1
                ? try openFile("/proc/self/fd/\(ours)", [.nonBlocking])
                : Descriptor(owning: Int32(try systemCall(.fcntl, Int(ours), 1030, 3)))
        }
        let (bytes, packets) = try copy(reading.number, waiting, size)
        return (bytes, flags & UInt32(OpenFlags.direct.rawValue) != 0 || packets.count > 1 ? packets : [])
    }

    /// Duplicates what is in the pipe behind a descriptor for reading. Returns it, and the sizes of its pieces.
    private func copy(_ reading: Int32, _ waiting: Int, _ size: Int) throws(Failure) -> ([UInt8], [UInt32]) {
        let lens = try openLens(size)
        var bytes: [UInt8] = []
        var packets: [UInt32] = []
        try attempt("copy what is in the pipe") { () throws(SystemCallError) in
            let got = try systemCall(.tee, Int(reading), Int(lens.writing), waiting, 2)  // SPLICE_F_NONBLOCK
            var room = [UInt8](repeating: 0, count: max(got, 4096))
            while bytes.count < got {
                // Pieces of a packet pipe come one by one.
                let part = try room.withAddress { (address, count) throws(SystemCallError) in
                    try systemCall(.read, Int(lens.reading), address, count)
                }
                if part == 0 { break }
                bytes += room[..<part]
                packets.append(UInt32(part))
            }
        }
        guard bytes.count == waiting else {
            throw Failure(.unsupported, "only \(bytes.count) of \(waiting) bytes in the pipe can be copied")
        }
        return (bytes, packets)
    }

    private func openLens(_ size: Int) throws(Failure) -> (reading: Int32, writing: Int32) {
        if lens == nil {
            var ends: (Int32, Int32) = (-1, -1)
            try attempt("create a pipe") { () throws(SystemCallError) in
                try withAddress(of: &ends) { (ends) throws(SystemCallError) in
                    try systemCall(.pipe2, ends, 0o2004000)  // CLOEXEC | NONBLOCK
                }
            }
            lens = (ends.0, ends.1)
        }
        guard let lens else { throw Failure(.bug, "no pipe") }
        try attempt("enlarge a pipe to \(size) bytes") { () throws(SystemCallError) in
            if try systemCall(.fcntl, Int(lens.writing), 1032) < size {
                try systemCall(.fcntl, Int(lens.writing), 1031, size)
            }
        }
        return lens
    }

    func finish(_ context: DumpContext) throws(Failure) {
        let pipesImage = context.images.create(.pipesData)
        let fifosImage = context.images.create(.fifoData)
        for key in order {
            guard let contents = known[key] else { continue }
            let image = key.isFifo ? fifosImage : pipesImage
            try image.append(contents.entry)
            try image.append(raw: contents.bytes)
        }
        try pipesImage.finish()
        try fifosImage.finish()
    }

    // MARK: restore

    static func load(_ context: RestoreContext) throws(Failure) {
        let contents = of(context)
        try contents.load(.pipesData, isFifo: false, context)
        try contents.load(.fifoData, isFifo: true, context)
    }

    private func load(_ name: ImageName, isFifo: Bool, _ context: RestoreContext) throws(Failure) {
        guard context.images.has(name) else { return }
        try during(.image(name.fileName)) { () throws(Failure) in
            let reader = try context.images.open(name)
            while let entry = try reader.next(PipeDataEntry.self) {
                guard entry.bytes <= PipeContents.largest else {
                    throw Failure(.corruptImage, "a pipe with \(entry.bytes) bytes makes no sense")
                }
                known[Key(id: entry.pipeID, isFifo: isFifo)] = Contents(
                    entry: entry, bytes: try reader.read(Int(entry.bytes)))
            }
        }
    }

    /// Whether a fifo still has its contents, because somebody else has it open, such as the source of a migration.
    private func holds(_ contents: Contents, _ number: Int) throws(Failure) -> Bool {
        let (waiting, size) = try look(into: number)
        guard waiting == contents.bytes.count else { return false }
        return try copy(Int32(number), waiting, size).0 == contents.bytes
    }

    /// Sets the size of a pipe and writes its contents.
    func restore(_ id: UInt32, isFifo: Bool, writing: Int32) throws(Failure) {
        guard let contents = known[Key(id: id, isFifo: isFifo)] else { return }
        let number = Int(writing)
        try attempt("set the size of the pipe to \(contents.entry.size)", advice: "Raise /proc/sys/fs/pipe-max-size") {
            () throws(SystemCallError) in
            if contents.entry.hasSize, contents.entry.size > 0,
                try systemCall(.fcntl, number, 1032) != Int(contents.entry.size)
            {
                try systemCall(.fcntl, number, 1031, Int(contents.entry.size))
            }
        }
        guard !contents.bytes.isEmpty else { return }
        if isFifo, try holds(contents, number) { return }
        var sizes = contents.entry.packets.map { Int($0) }
        let asPackets = !sizes.isEmpty
        if !asPackets { sizes = [contents.bytes.count] }
        guard sizes.allSatisfy({ $0 > 0 && $0 <= contents.bytes.count }), sizes.reduce(0, +) == contents.bytes.count
        else {
            throw Failure(.corruptImage, "the packets of a pipe don't add up")
        }
        try attempt("fill the pipe") { () throws(SystemCallError) in
            let flags = try systemCall(.fcntl, number, 3)
            // Never wait: nobody reads yet.
            try systemCall(.fcntl, number, 4, flags | 0o4000 | (asPackets ? 0o40000 : 0))
            try contents.bytes.withConstantAddress { (address, _) throws(SystemCallError) in
                var at = 0
                for size in sizes {
                    var done = 0
                    while done < size { done += try systemCall(.write, number, address + at + done, size - done) }
                    at += size
                }
            }
            try systemCall(.fcntl, number, 4, flags)
        }
    }
}
