public import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux
public import Logging
internal import Pages
public import SystemPackage
internal import Transport

/// Where a stream of images goes, or comes from.
public enum StreamPlace: Hashable, Sendable {
    /// Standard output, or standard input.
    case standard
    /// An open descriptor.
    case descriptor(Int32)
    /// A file or a fifo.
    case path(FilePath)
    /// The standard input of a command for the shell, whose success is the answer.
    case command(String)

    /// How its directory is called in messages.
    static let name: FilePath = "the stream"

    /// Takes a descriptor of the user's for ourselves. Who else uses a standard stream does not get into our way.
    private static func take(_ number: Int32, instead other: Int32?) throws(Failure) -> Descriptor {
        try attempt("use the descriptor \(number)", code: .usage, advice: "Check --stream-to and --stream-from") {
            () throws(SystemCallError) in
            let own = Descriptor(owning: Int32(try systemCall(.fcntl, Int(number), 1030, 3)))  // F_DUPFD_CLOEXEC
            if let other {
                try systemCall(.dup3, Int(other), Int(number), 0)
            } else if number > 2 {
                try systemCall(.close, Int(number))
            } else {
                let nothing = try openFile("/dev/null", .readWrite)
                try systemCall(.dup3, Int(nothing.number), Int(number), 0)
            }
            return own
        }
    }

    private static func standardOutput() throws(Failure) -> StreamEnd {
        // What goes to standard output from now on goes to standard error.
        try StreamEnd(take(1, instead: 2), name: "standard output")
    }

    /// Opens it for reading.
    func receive() throws(Failure) -> StreamReceiver {
        switch self {
        case .standard:
            let input = try StreamEnd(StreamPlace.take(0, instead: nil), name: "standard input")
            // Over ssh the answer takes the way of the output.
            return try StreamReceiver(input) { () throws(Failure) in
                let output = try StreamPlace.standardOutput()
                return output.kind == .file ? nil : output
            }
        case .descriptor(let number):
            let file = try StreamPlace.take(number, instead: nil)
            return try StreamReceiver(StreamEnd(file, name: "descriptor \(number)"))
        case .path(let path):
            let file = try attempt("open \(path)", code: .usage, advice: "Check --stream-from") {
                () throws(SystemCallError) in try openFile(path)
            }
            return try StreamReceiver(StreamEnd(file, name: path.string))
        case .command: throw Failure(.usage, "a stream can't come from a command", advice: "Pipe its output to '-'")
        }
    }

    /// Opens it for writing.
    fileprivate func send() throws(Failure) -> (end: StreamEnd, created: FilePath?, command: TaskID?) {
        switch self {
        case .standard: return (try StreamPlace.standardOutput(), nil, nil)
        case .descriptor(let number):
            let file = try StreamPlace.take(number, instead: number == 1 ? 2 : nil)
            return (try StreamEnd(file, name: "descriptor \(number)"), nil, nil)
        case .path(let path):
            let isFifo = (try? FileStatus.read(path.string, in: currentDirectory))?.kind == .fifo
            let file = try attempt(
                "create \(path)", code: .usage, advice: "A file that is there is not written over: remove it"
            ) { () throws(SystemCallError) in
                try openFile(path, isFifo ? .writeOnly : [.writeOnly, .create, .exclusive], mode: 0o600)
            }
            return (try StreamEnd(file, name: path.string), isFifo ? nil : path, nil)
        case .command(let text):
            let (input, output) = try attempt("make a pipe") { () throws(SystemCallError) in
                var pipe: (Int32, Int32) = (0, 0)
                try withAddress(of: &pipe) { (pipe) throws(SystemCallError) in try systemCall(.pipe2, pipe, 0o2000000) }
                return pipe
            }
            let ours = Descriptor(owning: output)
            let theirs = Descriptor(owning: input)
            let command = try attempt("run '\(text)'") { () throws(SystemCallError) in
                try startProgram(
                    "/bin/sh", arguments: ["sh", "-c", text], environment: [], streams: [0: theirs.number])
            }
            return (try StreamEnd(ours, name: "the command '\(text)'"), nil, command)
        }
    }
}

/// A stream of images that we write.
final class OutgoingStream {
    /// Receives the images.
    let sender: StreamSender
    private var created: FilePath?
    private var command: TaskID?
    private let name: String

    init(to place: StreamPlace) throws(Failure) {
        let (end, created, command) = try place.send()
        name = end.name
        self.command = command
        self.created = created
        sender = try StreamSender(end)
    }

    /// Ends the stream, and waits until the other end has it, as far as it can tell.
    ///
    /// - Parameter giveUp: called when a receiver that can answer is about to go on in place of the tree.
    func finish(sync: Bool, giveUp: () throws(Failure) -> Void) throws(Failure) {
        try sender.sendEnd()
        guard let command else {
            try sender.awaitReceiver(sync: sync, giveUp: giveUp)
            if sync, let created { try syncDirectory(of: created) }
            return self.created = nil
        }
        sender.close()
        self.command = nil
        let status = try attempt("wait for \(name)") { () throws(SystemCallError) in try waitForProgram(command) }
        guard status == 0 else {
            throw Failure(.denied, "\(name) failed with status \(status ?? 1)", advice: "See its own output")
        }
    }

    private func syncDirectory(of path: FilePath) throws(Failure) {
        try attempt("sync the directory of \(path)", advice: "Check the disk, or pass --no-sync") {
            () throws(SystemCallError) in
            let folder = try openFile(path.removingLastComponent(), [.directory])
            try systemCall(.fsync, Int(folder.number))
        }
    }

    /// Closes it. What is not whole by now never will be.
    func close() {
        sender.close()
        if let created { _ = try? removeName(created) }
        created = nil
        if let command { _ = try? waitForProgram(command) }
        command = nil
    }
}

extension ImageDirectory {
    /// Where a dump writes.
    static func open(_ path: FilePath, _ stream: OutgoingStream?) throws(Failure) -> ImageDirectory {
        guard let stream else { return try ImageDirectory(path) }
        return try ImageDirectory(inMemory: StreamPlace.name, to: stream.sender)
    }

    /// Images that are never written, as a rehearsal of a dump makes them.
    func rehearsal() throws(Failure) -> ImageDirectory {
        try receiver == nil ? ImageDirectory(path) : ImageDirectory(inMemory: path)
    }
}

extension StreamReceiver {
    /// Receives all images into memory.
    func images(verifies: Bool) throws(Failure) -> ImageSet {
        let images = try ImageDirectory(inMemory: StreamPlace.name, size: StreamReceiver.availableMemory())
        try receive(into: images)
        try images.complete(sync: .none) { () throws(Failure) in }
        return try ImageSet(images, verifies: verifies)
    }

    /// How many bytes of memory and swap can be had.
    private static func availableMemory() -> UInt64 {
        max(systemMemory("MemAvailable:", "SwapFree:"), 64 << 20)
    }
}

/// Saves a stream as a directory of images, which is valid only if the stream was whole.
///
/// - Parameter isSynced: the images are on the disk before the sender is told.
public func receiveStream(
    from place: StreamPlace, into path: FilePath, isSynced: Bool, log: Logger
) throws(Failure) {
    let receiver = try place.receive()
    do throws(Failure) {
        let images = try ImageDirectory(path)
        do throws(Failure) {
            try images.begin()
            try receiver.receive(into: images)
            try images.complete(sync: isSynced ? .best() : .none) { () throws(Failure) in try receiver.awaitGo() }
        } catch {
            images.discard()
            throw error
        }
    } catch {
        receiver.refuse(error)
        throw error
    }
    receiver.sayDone()
    log.info("the images are in \(path)")
}

/// Sends a directory of images as a stream.
public func sendStream(_ path: FilePath, to place: StreamPlace, isSynced: Bool, log: Logger) throws(Failure) {
    let set = try ImageSet(path)
    try set.checkComplete()
    _ = try set.load(.inventory, as: InventoryEntry.self)
    var folders = [""]
    if let parent = set.parent {
        guard (try? readLink("parent", in: set.directory.number)) == "shared-pages", parent.parent == nil else {
            throw Failure(
                .unsupported, "the images in \(path) need previous ones, and a stream has to be whole",
                advice: "Restore them where the previous ones are, or dump without --prev-images-dir")
        }
        folders.append("shared-pages/")
    }
    let stream = try OutgoingStream(to: place)
    defer { stream.close() }
    let inventory = ImageName.inventory.fileName
    var sent: [UInt64: String] = [:]
    for folder in folders {
        let names = try attempt("list \(path)") { () throws(SystemCallError) in
            try listDirectory(FilePath(folder.isEmpty ? "." : folder), in: set.directory.number)
        }
        for name in names.map({ folder + $0.string }).sorted()
        where ImageDirectory.isFileName(name) && name != inventory {
            let file = try open(name, in: set)
            let inode = try attempt("look at \(name)") { () throws(SystemCallError) in
                try FileStatus.read(in: file.number).inode
            }
            if !folder.isEmpty, let other = sent[inode] {
                try stream.sender.link(name, to: other)
            } else {
                try stream.sender.append(name, contentsOf: file.number)
                sent[inode] = name
            }
        }
    }
    let last = try open(inventory, in: set)
    try stream.sender.append(inventory, contentsOf: last.number)
    try stream.finish(sync: isSynced) { () throws(Failure) in }
    log.info("the images of \(path) are sent")
}

private func open(_ name: String, in set: ImageSet) throws(Failure) -> Descriptor {
    let folder = set.directory.number
    return try attempt("open \(name) in \(set.path)") { () throws(SystemCallError) in
        try openFile(name, [.noFollow], in: folder)
    }
}
