public import Diagnostics
public import ImageFormat
internal import Linux
public import Transport

/// Reads a set of images from a stream. Nothing in it is trusted.
public final class StreamReceiver {
    private let end: StreamEnd
    /// Where answers go.
    private var back: StreamEnd?
    private var answers = false

    /// Reads the head.
    ///
    /// - Parameter way: opens where answers go if the stream comes through a pipe.
    public init(_ end: StreamEnd, answers way: () throws(Failure) -> StreamEnd? = { () throws(Failure) in nil })
        throws(Failure)
    {
        self.end = end
        guard let head = try read(StreamFormat.Head.self), UInt64(littleEndian: head.0) == StreamFormat.magic else {
            throw damaged("it does not begin as a stream of images does", advice: "Check that --stream-to wrote it")
        }
        let (version, flags) = (UInt32(littleEndian: head.1), UInt32(littleEndian: head.2))
        guard version == StreamFormat.version, flags & ~StreamFormat.answers == 0 else {
            throw Failure(
                .unsupported, "the stream is of version \(version), flags \(flags); known is version 1",
                advice: "Use the same brumate at both ends")
        }
        // Of a stream that was saved nobody waits for an answer.
        answers = flags & StreamFormat.answers != 0 && end.kind != .file
        guard answers else { return }
        back = end.kind == .socket ? end : try way()
        guard back != nil else {
            throw Failure(
                .usage, "who sends the stream waits for an answer, and it comes through a pipe",
                advice: "Pass the socket itself, or '-' with a standard output that leads back")
        }
    }

    private func damaged(_ what: String, advice: String? = nil) -> Failure {
        Failure(.corruptImage, "the stream (\(end.name)) is damaged: \(what)", advice: advice)
    }

    private var truncated: Failure {
        Failure(
            .corruptImage, "the stream (\(end.name)) stops before its end",
            advice: "The dump failed or was interrupted: see its log; its tree runs on")
    }

    private func read<T: BitwiseCopyable>(_ type: T.Type) throws(Failure) -> T? {
        var bytes = [UInt8](repeating: 0, count: MemoryLayout<T>.size)
        let got = try bytes.withAddress { (address, count) throws(Failure) in
            try end.receive(into: address, count: count)
        }
        return got == bytes.count ? bytes.load(type) : nil
    }

    /// Receives all files up to the end of the stream. A pipe or a file ends there as well: its writer has done its work.
    public func receive(into images: ImageDirectory) throws(Failure) {
        var files = ReceivedFiles(images)
        var contents = [UInt8](repeating: 0, count: Int(StreamFormat.longest))
        while let wire = try read(StreamFormat.Record.Wire.self) {
            let record = StreamFormat.Record(wire)
            guard record.length <= StreamFormat.longest else { throw damaged("a record says that it is too long") }
            let isEnd = try contents.withAddress { (address, _) throws(Failure) in
                let length = Int(record.length)
                guard try end.receive(into: address, count: length) == length else { throw truncated }
                guard record.checksum == record.sum(with: address) else { throw damaged("a checksum is wrong") }
                if let wrong = try files.take(record, address) { throw damaged(wrong) }
                return record.kind == StreamFormat.Kind.end.rawValue
            }
            guard isEnd else { continue }
            if !answers, try read(UInt8.self) != nil { throw damaged("something follows its end") }
            return
        }
        throw truncated
    }

    /// Says that we could go on, and waits until we may.
    public func awaitGo() throws(Failure) {
        guard answers else { return }
        try back?.send(StreamFormat.Answer.ready.rawValue)
        guard try read(UInt8.self) == StreamFormat.Answer.go.rawValue else {
            throw Failure(
                .vanished, "who sent the stream (\(end.name)) is gone before it gave its tree up",
                advice: "See the log of the dump; its tree runs on")
        }
    }

    /// Says that we have gone on.
    public func sayDone() {
        // Who can't hear it knows what we did: there is nothing to take back.
        if answers { try? back?.send(StreamFormat.Answer.done.rawValue) }
    }

    /// Says why we give up.
    public func refuse(_ failure: Failure) {
        guard answers else { return }
        let text = Array("\(failure)".utf8.prefix(4096))
        try? back?.send(StreamFormat.Answer.failed.rawValue)
        var bytes = [UInt8](bytesOf: UInt16(text.count).littleEndian) + text
        _ = try? bytes.withAddress { (address, count) throws(Failure) in try back?.send(from: address, count: count) }
    }
}

/// The files of a stream that were received.
private struct ReceivedFiles: ~Copyable {
    private let images: ImageDirectory
    /// Nil stands for a second name.
    private var sizes: [UInt64?] = []
    private var names: [String] = []
    private var taken: Set<String> = []
    private var total: UInt64 = 0
    /// The file that contents come to, -1 if there is none yet.
    private var current: Int32 = -1
    private var open = UInt32.max

    init(_ images: ImageDirectory) { self.images = images }

    deinit { if current >= 0 { _ = try? systemCall(.close, Int(current)) } }

    /// Contents of a file come next.
    private mutating func use(_ file: consuming Descriptor, _ number: UInt32) {
        if current >= 0 { _ = try? systemCall(.close, Int(current)) }
        (current, open) = (file.release(), number)
    }

    /// Does what a record says. Returns what is wrong with it, if anything is.
    ///
    /// - Parameter address: of what follows the record.
    mutating func take(_ record: StreamFormat.Record, _ address: Int) throws(Failure) -> String? {
        switch StreamFormat.Kind(rawValue: record.kind) {
        case .file, .link:
            guard record.file == names.count, record.file < StreamFormat.mostFiles else { return "a file is missing" }
            let name = unsafe String(
                decoding: UnsafeRawBufferPointer(
                    start: UnsafeRawPointer(bitPattern: address), count: Int(record.length)), as: UTF8.self)
            guard ImageDirectory.isFileName(name), taken.insert(name).inserted else {
                return "a file has a name that no image has, or one that another has"
            }
            names.append(name)
            if record.kind == StreamFormat.Kind.file.rawValue {
                try use(images.receive(name, begins: true), record.file)
                sizes.append(0)
                return record.value == 0 ? nil : "a file begins in its midst"
            }
            sizes.append(nil)
            guard record.value < record.file, sizes[Int(record.value)] != nil, ImageDirectory.isShared(name),
                !ImageDirectory.isShared(names[Int(record.value)])
            else { return "a link leads nowhere" }
            try images.receive(name, linkedTo: names[Int(record.value)])
        case .data:
            guard record.file < names.count, let size = sizes[Int(record.file)], record.value == size,
                record.length > 0
            else { return "contents come out of order" }
            if open != record.file {
                try use(images.receive(names[Int(record.file)], begins: false), record.file)
            }
            try write(current, address, Int(record.length), at: size)
            sizes[Int(record.file)] = size + UInt64(record.length)
            total += UInt64(record.length)
        case .end:
            guard record.file == names.count, record.value == total, record.length == 0 else {
                return "something is missing before its end"
            }
            guard taken.contains(ImageName.inventory.fileName) else { return "it has no inventory" }
        case nil: return "a record is of an unknown kind"
        }
        return nil
    }

    private func write(_ file: Int32, _ address: Int, _ count: Int, at offset: UInt64) throws(Failure) {
        do throws(SystemCallError) { try writeFully(file, from: address, count: count, at: offset) } catch {
            throw Failure(
                .denied, "can't write \(names.last ?? "an image") in \(images.path)",
                advice: error.errno == .ENOSPC
                    ? "Make room; 'receive' saves a stream to a disk, from where it can be restored" : nil,
                cause: error)
        }
    }
}
