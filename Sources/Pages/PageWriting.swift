internal import CLinux
public import Diagnostics
public import ImageFormat
public import Linux

/// Where pages are read from.
public enum PageSource: Sendable {
    /// A stopped task's memory; a descriptor of its /proc/PID/mem for pages that can't be read by `process_vm_readv`.
    case task(TaskID, memory: Int32)
    /// The same of a task that runs on: pages that are gone by now become zeros.
    case running(TaskID, memory: Int32)
    /// A file; addresses are offsets in it.
    case file(Int32)
    /// A file that others write to meanwhile; who notes the hashes of what was read.
    case changing(Int32, NotedSums)
    /// A file as it was at one moment; addresses are offsets in it. Whether nobody will read the pages again.
    case held(HeldPages, isLast: Bool)
}

/// Stores a page map and the pages that are present in it: in the directory, or with its page server.
///
/// - Parameter stretches: the present pages, ascending.
public func storePages(
    _ pagemap: Pagemap, of owner: PageOwner, _ stretches: [PageStretch], from source: PageSource,
    to images: ImageDirectory
) throws(Failure) {
    guard let receiver = images.pageReceiver else {
        try writePages(stretches, from: source, to: images, pagemap.pagesID)
        return try pagemap.write(owner.image, to: images)
    }
    let hasParent = try receiver.begin(owner)
    guard hasParent || !pagemap.runs.contains(where: \.isInParent) else {
        throw Failure(
            .denied, "the page server has no parent of \(owner.image.fileName)",
            advice: "Pass --prev-images-dir to the page server too")
    }
    let lengths = stretches.map(\.range.length)
    let present = pagemap.runs.filter(\.isPresent).map(\.range.length)
    var chunks = (receiver.keepsRunsApart ? Chunk.cut(lengths, along: present) : Chunk.cut(lengths))[...]
    let buffer = try BounceBuffer()
    var waiting = 0, at = 0
    for run in pagemap.runs {
        try receiver.append(run)
        var left = run.isPresent ? Int(run.range.length) : 0
        while left > 0 {
            if waiting == 0 {
                guard let chunk = chunks.popFirst() else { throw Failure(.bug, "more pages than stretches") }
                try fill(buffer.address, chunk, stretches, source)
                (waiting, at) = (chunk.length, 0)
            }
            let part = min(left, waiting)
            try receiver.append(pagesFrom: buffer.address + at, count: part)
            (left, waiting, at) = (left - part, waiting - part, at + part)
        }
    }
}

/// Copies pages of a source to a pages file, in order and without gaps.
///
/// Few pages wait in memory until the directory is written out. Of many, several threads work in parallel with buffers
/// that stay in the cache: reading and writing at fixed places of a preallocated file is faster than splicing or
/// mapping (kernel-facts, section 3). They compress them, too, if the directory wants that.
///
/// - Parameters:
///   - stretches: what to copy, ascending.
///   - id: the number of the pages file.
/// - Throws: a full disk, or `vanished` if the task dies.
private func writePages(
    _ stretches: [PageStretch], from source: PageSource, to images: ImageDirectory, _ id: UInt32
) throws(Failure) {
    let total = stretches.reduce(0) { $0 + $1.range.length }
    if let receiver = images.receiver, images.compression == nil {
        return try send(stretches, from: source, to: images, id, receiver)
    }
    guard total <= UInt64(ImageDirectory.largestHeld), images.canHold(Int(total)) else {
        let pages = try images.createPages(id)
        if !pages.isPacked { try reserve(pages.number, total) }
        try copy(stretches, total, from: source, to: pages)
        return try images.finish(pages)
    }
    var bytes = [UInt8](repeating: 0, count: Int(total))
    let chunks = Chunk.cut(stretches.map(\.range.length), size: Int(total))
    try bytes.withAddress { (address, _) throws(Failure) in
        for chunk in chunks { try fill(address + Int(chunk.offset), chunk, stretches, source) }
    }
    try images.hold(pages: id, bytes)
}

/// A receiver gets the pages in order.
private func send(
    _ stretches: [PageStretch], from source: PageSource, to images: ImageDirectory, _ id: UInt32,
    _ receiver: any ImageReceiver
) throws(Failure) {
    let buffer = try BounceBuffer()
    let chunks = Chunk.cut(stretches.map(\.range.length))
    try images.send(pages: id, chunks: chunks.count, to: receiver) { (index) throws(Failure) in
        try fill(buffer.address, chunks[index], stretches, source)
        return (buffer.address, chunks[index].length)
    }
}

private func copy(
    _ stretches: [PageStretch], _ total: UInt64, from source: PageSource, to pages: PagesFileWriter
) throws(Failure) {
    let chunks = Chunk.cut(stretches.map(\.range.length))
    let dealer = Dealer(chunks.count)
    // A thread costs more than copying a few megabytes.
    let threads = total < 8 << 20 ? 1 : Workers.count
    try Workers.run(threads) { () throws(Failure) in
        let buffer = try BounceBuffer(size: min(BounceBuffer.size, Int(total)))
        let coder = ChunkCoder()
        while let index = dealer.take() {
            let chunk = chunks[index]
            try fill(buffer.address, chunk, stretches, source)
            try pages.write(chunk: index, from: buffer.address, count: chunk.length, with: coder)
        }
    }
}

/// Preallocates on disk file systems; on tmpfs that would zero every page first.
private func reserve(_ file: Int32, _ total: UInt64) throws(Failure) {
    if total >= 1 << 20, (try? FileSystem.of(file))?.magic != FileSystem.temporary {
        do throws(SystemCallError) { try systemCall(.fallocate, Int(file), 0, 0, Int(total)) } catch {
            guard error.errno == .EOPNOTSUPP || error.errno == .ENOSYS || error.errno == .EINVAL else {
                throw Failure(
                    .denied, "can't get \(total) bytes of disk for pages",
                    advice: "Make room on the disk of --images-dir",
                    cause: error)
            }
        }
    }
}

/// Reads one chunk into memory at `address`.
func fill(_ address: Int, _ chunk: Chunk, _ stretches: [PageStretch], _ source: PageSource) throws(Failure) {
    switch source {
    case .file(let number):
        try fill(address, chunk, stretches, number) { _, _ in }
    case .changing(let number, let sums):
        try fill(address, chunk, stretches, number) { (range, address) in sums.note(range, at: address) }
    case .held(let pages, let isLast):
        try chunk.forEachPart({ stretches[$0].range.length }) { (index, skip, length, at) throws(Failure) in
            let start = stretches[index].range.start + skip
            try pages.read(
                AddressRange(start: start, end: start + UInt64(length)), to: address + at, isLast: isLast)
        }
    case .task(let task, let memory): try fill(address, chunk, stretches, task, memory, mayVanish: false)
    case .running(let task, let memory): try fill(address, chunk, stretches, task, memory, mayVanish: true)
    }
}

/// Reads one chunk of a file. `body` is called with each part.
private func fill(
    _ address: Int, _ chunk: Chunk, _ stretches: [PageStretch], _ file: Int32, _ body: (AddressRange, Int) -> Void
) throws(Failure) {
    try chunk.forEachPart({ stretches[$0].range.length }) { (index, skip, length, at) throws(Failure) in
        let start = stretches[index].range.start + skip
        let got = try read(file, address + at, length, start.rawValue, what: "shared memory")
        // Past the end of a file that ends within a page there is nothing but zeros.
        if got < length { zero(address + at + got, length - got) }
        body(AddressRange(start: start, end: start + UInt64(length)), address + at)
    }
}

/// Reads one chunk of a task's memory.
private func fill(
    _ address: Int, _ chunk: Chunk, _ stretches: [PageStretch], _ task: TaskID, _ memory: Int32, mayVanish: Bool
) throws(Failure) {
    var vectors: [clinux_iovec] = []
    var into = 0
    func read(_ local: Int, _ length: Int, _ remote: UInt64) throws(Failure) {
        if let got = try? readFully(memory, into: local, count: length, at: remote), got == length { return }
        guard mayVanish else {
            throw Failure(.vanished, "the memory of task \(task) at \(Address(remote)) can't be read")
        }
        for page in stride(from: 0, to: length, by: Int(pageSize)) {
            let got = try? readFully(memory, into: local + page, count: Int(pageSize), at: remote + UInt64(page))
            if got != Int(pageSize) { zero(local + page, Int(pageSize)) }
        }
    }
    func flush() throws(Failure) {
        let wanted = vectors.reduce(0) { $0 + Int($1.length) }
        guard wanted > 0 else { return }
        let got = vectors.count
        let filled: Int
        do throws(SystemCallError) {
            filled = try withAddress(ofLocal: address + into, wanted) { (local) throws(SystemCallError) in
                try vectors.withConstantAddress { (remote, _) throws(SystemCallError) in
                    try systemCall(.process_vm_readv, Int(task.rawValue), local, 1, remote, got, 0)
                }
            }
        } catch {
            guard mayVanish else { throw Failure(.vanished, "can't read the memory of task \(task)", cause: error) }
            filled = 0
        }
        if filled < wanted {
            // A page that went away or is no longer readable by the task itself: through /proc, in pieces.
            var at = into
            for vector in vectors {
                try read(address + at, Int(vector.length), vector.base)
                at += Int(vector.length)
            }
        }
        into += wanted
        vectors.removeAll(keepingCapacity: true)
    }
    try chunk.forEachPart({ stretches[$0].range.length }) { (index, skip, length, at) throws(Failure) in
        let from = stretches[index].range.start.rawValue + skip
        if let contents = stretches[index].contents {
            try flush()
            contents.withConstantAddress { (start, _) in copyBytes(from: start + Int(skip), to: address + at, length) }
            into += length
        } else if let held = stretches[index].held {
            try flush()
            let start = Address(from)
            try held.read(
                AddressRange(start: start, end: start + UInt64(length)), to: address + at, isLast: true)
            into += length
        } else if stretches[index].isReadable {
            vectors.append(clinux_iovec(base: from, length: UInt64(length)))
        } else {
            try flush()
            try read(address + at, length, from)
            into += length
        }
    }
    try flush()
}

private func withAddress<R>(
    ofLocal address: Int, _ length: Int, _ body: (Int) throws(SystemCallError) -> R
) throws(SystemCallError) -> R {
    var vector = clinux_iovec(base: UInt64(address), length: UInt64(length))
    return try withAddress(of: &vector, body)
}

private func read(_ file: Int32, _ address: Int, _ length: Int, _ offset: UInt64, what: String) throws(Failure) -> Int {
    try attempt("read \(what)") { () throws(SystemCallError) in
        try readFully(file, into: address, count: length, at: offset)
    }
}

func zero(_ address: Int, _ count: Int) {
    guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: address) else { return }
    unsafe pointer.initializeMemory(as: UInt8.self, repeating: 0, count: count)
}
