internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Remote

/// The System V message queues of a restore.
final class QueueRestore {
    private struct Wanted {
        let entry: IpcMsgEntry
        let messages: [QueueMessage]
    }

    private var queues: [Wanted] = []
    private var made: [UInt32] = []

    static func of(_ context: RestoreContext) -> QueueRestore { context.state(QueueRestore.self) { QueueRestore() } }

    /// Reads and checks the image.
    func load(_ context: RestoreContext) throws(Failure) {
        let name = ImageName.systemVQueues(SystemVUse.id(context))
        guard context.images.has(name) else { return }
        try during(.image(name.fileName)) { () throws(Failure) in
            let reader = try context.images.open(name)
            while var entry = try reader.next(IpcMsgEntry.self) {
                entry.desc = context.owners.ours(entry.desc)
                guard entry.desc.id <= UInt32(Int32.max) else {
                    throw Failure(.corruptImage, "the message queue \(entry.desc.id) makes no sense")
                }
                var messages: [QueueMessage] = []
                for _ in 0..<entry.qnum {
                    guard let header = try reader.next(IpcMsg.self), header.mtype > 0, header.mtype <= UInt64(Int.max)
                    else { throw Failure(.corruptImage, "a message of the queue \(entry.desc.id) makes no sense") }
                    let size = Int(header.msize)
                    let text = try reader.read((size + 7) & ~7)
                    messages.append(QueueMessage(type: header.mtype, text: Array(text.prefix(size))))
                }
                queues.append(Wanted(entry: entry, messages: messages))
            }
        }
        guard Set(queues.map(\.entry.desc.id)).count == queues.count else {
            throw Failure(.corruptImage, "\(name.fileName) has two message queues with one id")
        }
    }

    /// Finds or makes the queues, and fills them.
    func restore(_ context: RestoreContext) throws(Failure) {
        for queue in queues {
            try during(.step("System V message queue \(queue.entry.desc.id)")) { () throws(Failure) in
                if try find(queue, context) {
                    try refill(queue, context)
                } else {
                    try make(queue)
                    try fill(queue, context)
                }
            }
        }
    }

    /// Whether the queue is still there.
    private func find(_ queue: Wanted, _ context: RestoreContext) throws(Failure) -> Bool {
        let entry = queue.entry
        guard let now = try? Queues.status(entry.desc.id) else { return false }
        let identity = SystemVIdentity(context, named: [entry.sender, entry.receiver])
        guard now.permissions.matches(entry.desc),
            identity.isSame(
                changed: (now.changed, entry.hasChanged ? entry.changed : nil), named: [now.sender, now.receiver])
        else {
            throw Failure(
                .conflict, "another queue has this id, or others have used it since the dump",
                advice: "Remove it with: ipcrm -q \(entry.desc.id)")
        }
        if !now.permissions.equals(entry.desc) || now.mostBytes != UInt64(entry.qbytes) {
            try attempt("set its owner and size") { () throws(SystemCallError) in try Queues.set(entry.desc.id, entry) }
        }
        return true
    }

    private func make(_ queue: Wanted) throws(Failure) {
        let desc = queue.entry.desc
        let got = try attempt(
            "create it", code: .conflict, advice: "A queue of the same key may exist: see ipcs -q"
        ) { () throws(SystemCallError) in
            try NewObject.make("msg", desc) { () throws(SystemCallError) in
                // IPC_CREAT | IPC_EXCL
                try systemCall(.msgget, Int(Int32(bitPattern: desc.key)), Int(desc.mode & 0o777) | 0o3000)
            }
        }
        made.append(got)
        guard got == desc.id else { throw NewObject.taken(desc.id, by: got) }
        try attempt("set its owner and size", advice: "See /proc/sys/kernel/msgmnb") { () throws(SystemCallError) in
            try Queues.set(got, queue.entry)
        }
    }

    /// Gives a queue that is still there the messages of the image, unless it has them.
    private func refill(_ queue: Wanted, _ context: RestoreContext) throws(Failure) {
        let id = queue.entry.desc.id
        let isSame = try attempt("compare its messages") { () throws(SystemCallError) in
            let status = try Queues.status(id)
            if status.messages != queue.messages.count { return false }
            return try Queues.messages(id, status) == queue.messages
        }
        guard !isSame else { return }
        try attempt("take its later messages away") { () throws(SystemCallError) in try Queues.drain(id) }
        try fill(queue, context)
    }

    /// A message in passing takes a type that no other has.
    private static let passing = Int.max - 0x4252

    /// Sends all messages, so that the queue then names as last sender and receiver whom it named before.
    private func fill(_ queue: Wanted, _ context: RestoreContext) throws(Failure) {
        let (id, entry) = (queue.entry.desc.id, queue.entry)
        var rest = queue.messages
        // One that a task can't send, we send.
        let last = rest.last.map { $0.text.count <= 1 << 20 } == true ? rest.popLast() : nil
        try attempt("send its messages", advice: "See /proc/sys/kernel/msgmax and msgmnb") {
            () throws(SystemCallError) in
            for message in rest { try Queues.send(message, to: id) }
        }
        let sender = try context.living(entry.sender)
        if entry.receiver != 0, entry.qbytes > 0 {
            try pass(by: sender) { (batch, buffer) in
                batch.add(
                    .msgsnd, .value(Int(id)), .buffer(buffer), .value(0), .value(0o4000),
                    doing: "send a message in passing")
            }
            try pass(by: context.living(entry.receiver)) { (batch, buffer) in
                batch.add(
                    .msgrcv, .value(Int(id)), .buffer(buffer), .value(0), .value(QueueRestore.passing), .value(0o4000),
                    doing: "receive a message in passing")
            }
        }
        guard let last else { return }
        var batch = Batch()
        let buffer = batch.place(last.buffer)
        batch.add(
            .msgsnd, .value(Int(id)), .buffer(buffer), .value(last.text.count), .value(0o4000), doing: "send a message")
        try sender.puppet.run(batch)
    }

    private func pass(by process: RestoredProcess, _ add: (inout Batch, Batch.Buffer) -> Void) throws(Failure) {
        var batch = Batch()
        let buffer = batch.place(value: QueueRestore.passing)
        add(&batch, buffer)
        try process.puppet.run(batch)
    }

    /// Takes back what a failed restore has made.
    func abandon() {
        for id in made { Queues.remove(id) }
        made = []
    }
}
