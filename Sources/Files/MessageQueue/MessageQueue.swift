internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// A POSIX message queue (`mq_open(2)`).
///
/// A queue outlives its processes until it is unlinked. So one that is still there is opened again as it is, and only
/// one that is gone is made anew and filled.
enum MessageQueue: FileKind {

    /// What every queue's file has as its size (`FILENT_SIZE`).
    private static let size: UInt64 = 80

    /// The file system of queues in our IPC namespace. It is mounted nowhere, so a queue must tell.
    private static let device: UInt64? = {
        let name = Array("brumate.\((try? systemCall(.getpid)) ?? 0)".utf8)
        // O_CREAT | O_EXCL | O_RDWR
        guard let queue = try? open(name, 0o302) else { return nil }
        _ = try? unlink(name)
        return (try? FileStatus.read(in: queue.number))?.device
    }()

    private static func open(_ name: [UInt8], _ flags: Int, attributes: Int = 0) throws(SystemCallError) -> Descriptor {
        Descriptor(
            owning: Int32(
                try withCString(name) { (name) throws(SystemCallError) in
                    try systemCall(.mq_open, name, flags, 0o600, attributes)
                }))
    }

    private static func unlink(_ name: [UInt8]) throws(SystemCallError) {
        try withCString(name) { (name) throws(SystemCallError) in try systemCall(.mq_unlink, name) }
    }

    static func claims(_ facts: FileFacts) -> Bool {
        facts.status.kind == .regular && facts.status.size == size && facts.status.device < 1 << 8
            && facts.status.device == device && facts.statusFlags & UInt32(OpenFlags.path.rawValue) == 0
    }

    // MARK: dump

    /// The queues met in one dump, by inode.
    private final class Queues {
        var entries: [MessageQueueEntry] = []
        var known: [UInt64: UInt32] = [:]
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let queues = context.state(Queues.self) { Queues() }
        var entry = MessageQueueFileEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        if let known = queues.known[file.facts.status.inode] {
            entry.queue = known
        } else {
            entry.queue = UInt32(queues.entries.count + 1)
            queues.entries.append(try dumpQueue(file, entry.queue, context))
            queues.known[file.facts.status.inode] = entry.queue
        }
        var whole = FileEntry(.messageQueue, file.id)
        whole.messageQueue = entry
        return whole
    }

    private static let suffix = " (deleted)"

    private static func dumpQueue(_ file: OpenFile, _ id: UInt32, _ context: DumpContext) throws(Failure)
        -> MessageQueueEntry
    {
        let (ours, status) = (file.handle.number, file.facts.status)
        let queue = try attempt("open the queue") { () throws(SystemCallError) in
            try openFile("/proc/self/fd/\(ours)", [.readWrite, .nonBlocking])
        }
        let number = queue.number
        let attributes = try QueueAttributes.read(number)
        var entry = MessageQueueEntry()
        entry.id = id
        entry.unlinked = status.links == 0
        entry.name = imageBytes(file.facts.target.dropLast(entry.unlinked ? suffix.utf8.count : 0))
        (entry.uid, entry.gid) = context.owners.owner(of: status)
        entry.mode = status.mode & 0o7777
        entry.maxMessages = UInt32(clamping: attributes.most)
        entry.messageSize = UInt32(clamping: attributes.length)
        let text = try attempt("read what the queue says of itself") { () throws(SystemCallError) in
            try readToEnd(queue)
        }
        let words = Dictionary(
            text.split(whereSeparator: { $0 == 0x20 || $0 == 0x0a }).compactMap { word in
                let parts = String(decoding: word, as: UTF8.self).split(separator: ":")
                return parts.count == 2 ? Int(parts[1]).map { (String(parts[0]), $0) } : nil
            }, uniquingKeysWith: { first, _ in first })
        if let notified = words["NOTIFY_PID"], notified > 0,
            let process = context.processes.first(where: { $0.id.rawValue == notified })
        {
            (entry.notified, entry.notify) = (UInt32(bitPattern: process.number), UInt32(words["NOTIFY"] ?? 0))
            entry.signal = UInt32(words["SIGNO"] ?? 0)
            guard entry.notify < 2 else {
                throw Failure(
                    .unsupported, "task \(notified) is told of messages by a thread (SIGEV_THREAD)",
                    advice: "Cancel the notification with mq_notify before the dump")
            }
            guard attributes.current == 0 else {
                throw Failure(
                    .unsupported, "task \(notified) waits for a notification while messages are in the queue",
                    advice: "Receive them, or cancel the notification with mq_notify before the dump")
            }
            context.log.warning(
                "\(file.facts.text): the kernel does not tell the value of the notification, it will be 0")
        }
        entry.messages = try contents(number, attributes)
        return entry
    }

    /// Reads the messages. They can only be received, so they are sent back at once, in the order in which they came,
    /// which keeps it. Death in that moment would lose them; no signal but SIGKILL can cause it.
    private static func contents(_ queue: Int32, _ attributes: QueueAttributes) throws(Failure) -> [QueuedMessage] {
        guard attributes.current > 0 else { return [] }
        var room = [UInt8](repeating: 0, count: max(attributes.length, 1))
        var messages: [QueuedMessage] = []
        messages.reserveCapacity(attributes.current)
        var (all, before) = (UInt64.max, UInt64(0))
        return try attempt("read the messages of the queue") { () throws(SystemCallError) in
            try withAddress(of: &all) { (all) throws(SystemCallError) in
                try withAddress(of: &before) { (before) throws(SystemCallError) in
                    try systemCall(.rt_sigprocmask, 2, all, before, 8)
                }
            }
            let received = Result { () throws(SystemCallError) in
                while true {
                    do throws(SystemCallError) { messages.append(try receive(queue, &room)) } catch {
                        if error.errno == .EAGAIN { return }
                        throw error
                    }
                }
            }
            let sent = Result { () throws(SystemCallError) in
                for message in messages { try send(message, to: queue) }
            }
            _ = try? withAddress(of: &before) { (before) throws(SystemCallError) in
                try systemCall(.rt_sigprocmask, 2, before, 0, 8)
            }
            try received.get()
            try sent.get()
            return messages
        }
    }

    private static func receive(_ queue: Int32, _ room: inout [UInt8]) throws(SystemCallError) -> QueuedMessage {
        var priority: UInt32 = 0
        let got = try withAddress(of: &priority) { (priority) throws(SystemCallError) in
            try room.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.mq_timedreceive, Int(queue), address, count, priority, 0)
            }
        }
        var message = QueuedMessage()
        message.priority = priority
        message.text = imageBytes(room[..<got])
        return message
    }

    private static func send(_ message: QueuedMessage, to queue: Int32) throws(SystemCallError) {
        let bytes = Array(message.text)
        try bytes.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.mq_timedsend, Int(queue), address, count, Int(message.priority), 0)
        }
    }

    static func finish(_ context: DumpContext) throws(Failure) {
        let queues = context.state(Queues.self) { Queues() }
        if !queues.entries.isEmpty { try context.images.write(.messageQueues, queues.entries) }
    }

    // MARK: restore

    /// The queues of the image.
    private final class RestoredQueues {
        var entries: [UInt32: MessageQueueEntry] = [:]
        static func of(_ context: RestoreContext) -> RestoredQueues {
            context.state(RestoredQueues.self) { RestoredQueues() }
        }
    }

    static func load(_ context: RestoreContext) throws(Failure) {
        let queues = RestoredQueues.of(context)
        for entry in try context.images.loadAll(.messageQueues, as: MessageQueueEntry.self) {
            guard !name(entry).isEmpty, entry.messages.count <= Int(entry.maxMessages),
                entry.messages.allSatisfy({ $0.text.count <= Int(entry.messageSize) && $0.priority < 32768 })
            else { throw Failure(.corruptImage, "the queue \(entry.id) of mqueues.img makes no sense") }
            queues.entries[entry.id] = entry
        }
    }

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.messageQueue.rawValue) && entry.hasMessageQueue
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.messageQueue.fown }

    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 { UInt64(entry.messageQueue.queue) }

    /// The name that mq_open takes: the last part of the path.
    private static func name(_ entry: MessageQueueEntry) -> [UInt8] {
        Array(Array(entry.name).split(separator: 0x2f).last ?? [])
    }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        guard let first = members.first else { return }
        guard let entry = RestoredQueues.of(context).entries[first.messageQueue.queue] else {
            throw Failure(.corruptImage, "mqueues.img has no queue \(first.messageQueue.queue)")
        }
        let text = String(decoding: entry.name, as: UTF8.self)
        try during(.file("the message queue \(text)")) { () throws(Failure) in
            let queue = try open(entry, context.owners)
            let number = queue.number
            for member in members {
                let flags = member.messageQueue.flags
                let made = try attempt("open it") { () throws(SystemCallError) in
                    try openFile("/proc/self/fd/\(number)", OpenFlags(rawValue: Int32(bitPattern: flags & ~0o300)))
                }
                try context.files.add(member.id, made)
            }
        }
    }

    /// Finds the queue, or makes it.
    private static func open(_ entry: MessageQueueEntry, _ owners: TreeOwners) throws(Failure) -> Descriptor {
        let name = name(entry)
        if !entry.unlinked {
            let found: Descriptor
            do throws(SystemCallError) { found = try open(name, 0o4002) } catch {
                guard error.errno == .ENOENT else { throw Failure(.denied, "can't open it", cause: error) }
                return try create(name, entry, owners)
            }
            return try checked(found, entry, owners)
        }
        return try create(name, entry, owners)
    }

    private static func create(
        _ name: [UInt8], _ entry: MessageQueueEntry, _ owners: TreeOwners
    ) throws(Failure) -> Descriptor {
        raiseLimit()
        var attributes = QueueAttributes()
        (attributes.most, attributes.length) = (Int(entry.maxMessages), Int(entry.messageSize))
        let made = try attempt(
            "create it", code: .conflict, advice: "Remove a queue of the same name, and see /proc/sys/fs/mqueue"
        ) { () throws(SystemCallError) in
            // O_CREAT | O_EXCL | O_RDWR | O_NONBLOCK
            let number = try withAddress(of: &attributes) { (attributes) throws(SystemCallError) in
                try open(name, 0o4302, attributes: attributes).release()
            }
            let made = Descriptor(owning: number)
            if entry.unlinked { try unlink(name) }
            return made
        }
        let number = made.number
        try attempt("set its owner and fill it") { () throws(SystemCallError) in
            try owners.give(number, to: entry.uid, entry.gid)
            try systemCall(.fchmod, Int(number), Int(entry.mode & 0o7777))
            for message in entry.messages { try send(message, to: number) }
        }
        return made
    }

    /// Whether a queue that is still there is the one of the image, as far as that can be told.
    private static func checked(
        _ queue: consuming Descriptor, _ entry: MessageQueueEntry, _ owners: TreeOwners
    ) throws(Failure) -> Descriptor {
        let number = queue.number
        let status = try attempt("look at it") { () throws(SystemCallError) in try FileStatus.read(in: number) }
        let attributes = try QueueAttributes.read(number)
        guard attributes.most == Int(entry.maxMessages), attributes.length == Int(entry.messageSize),
            owners.owner(of: status) == (entry.uid, entry.gid), status.mode & 0o7777 == entry.mode
        else {
            throw Failure(
                .conflict, "a queue of this name exists, which is another one", advice: "Remove it, or rename it")
        }
        return queue
    }

    /// The bytes of all queues of a user are limited (`RLIMIT_MSGQUEUE`), for us too.
    private static func raiseLimit() {
        var limit = (UInt64.max, UInt64.max)
        _ = try? withAddress(of: &limit) { (limit) throws(SystemCallError) in
            try systemCall(.prlimit64, 0, 12, limit, 0)
        }
    }

    /// Registers who is to be told of the next message.
    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let queues = RestoredQueues.of(context)
        guard let queue = queues.entries[entry.messageQueue.queue], queue.hasNotified else { return }
        let id = TaskID(Int32(bitPattern: queue.notified))
        guard let process = context.processes.first(where: { $0.id == id && !$0.plan.isZombie }),
            let number = process.plan.descriptors.first(where: { $0.id == entry.id })?.fd
        else { return }
        try during(.restoring(process.id, process.name)) { () throws(Failure) in
            var batch = Batch()
            // struct sigevent
            let event = batch.place(
                [UInt8](bytesOf: (queue.value, queue.signal, queue.notify)) + [UInt8](repeating: 0, count: 48))
            batch.add(
                .mq_notify, .value(Int(number)), .buffer(event), doing: "register for a message queue")
            try process.puppet.run(batch)
        }
        queues.entries[entry.messageQueue.queue]?.clearNotified()
    }
}

/// `struct mq_attr`.
private struct QueueAttributes: BitwiseCopyable {
    var flags = 0, most = 0, length = 0, current = 0
    var reserved = (0, 0, 0, 0)

    static func read(_ queue: Int32) throws(Failure) -> QueueAttributes {
        var attributes = QueueAttributes()
        try attempt("read the attributes of the queue") { () throws(SystemCallError) in
            try withAddress(of: &attributes) { (address) throws(SystemCallError) in
                try systemCall(.mq_getsetattr, Int(queue), 0, address)
            }
        }
        return attributes
    }
}
