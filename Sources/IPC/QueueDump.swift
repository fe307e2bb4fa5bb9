internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging

/// The System V message queues of a dump.
enum QueueDump {
    /// Writes `ipcns-msg-N.img`: an entry, then each message with its text in whole words.
    static func dump(_ context: DumpContext) throws(Failure) {
        var written: ImageWriter?
        for (id, status) in Queues.all() {
            let verdict = SystemVUse.of(context).verdict(
                id, named: [status.sender, status.receiver], calls: [.msgsnd, .msgrcv])
            switch verdict {
            case .others: continue
            case .shared(let other): SystemVUse.warn("the message queue \(id)", other, context)
            case .tree:
                let writer = written ?? context.images.create(.systemVQueues(SystemVUse.id(context)))
                written = writer
                try during(.step("System V message queue \(id)")) { () throws(Failure) in
                    try dump(id, status, writer, context)
                }
            }
        }
        try written?.finish()
    }

    private static func dump(
        _ id: UInt32, _ status: QueueStatus, _ writer: ImageWriter, _ context: DumpContext
    ) throws(Failure) {
        let messages = try attempt(
            "copy its messages", advice: "The kernel needs CONFIG_CHECKPOINT_RESTORE for that"
        ) { () throws(SystemCallError) in try Queues.messages(id, status) }
        var entry = IpcMsgEntry()
        entry.desc = status.permissions.entry(id: id, context.owners)
        entry.qbytes = UInt32(clamping: status.mostBytes)
        entry.qnum = UInt32(messages.count)
        entry.changed = status.changed
        (entry.sender, entry.receiver) = (
            context.numbers.number(UInt32(bitPattern: status.sender)),
            context.numbers.number(UInt32(bitPattern: status.receiver))
        )
        try writer.append(entry)
        for message in messages {
            var header = IpcMsg()
            (header.mtype, header.msize) = (message.type, UInt32(message.text.count))
            try writer.append(header)
            try writer.append(raw: message.text + [UInt8](repeating: 0, count: -message.text.count & 7))
        }
    }
}
