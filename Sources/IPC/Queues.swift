internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux

/// `struct msqid64_ds`: what the kernel says of a System V message queue.
struct QueueStatus: BitwiseCopyable {
    var permissions = SystemVPermissions()
    var sent: UInt64 = 0, received: UInt64 = 0, changed: UInt64 = 0
    var bytes: UInt64 = 0, messages: UInt64 = 0, mostBytes: UInt64 = 0
    var sender: Int32 = 0, receiver: Int32 = 0
    var unused1: UInt64 = 0, unused2: UInt64 = 0
}

/// A message with its type.
struct QueueMessage: Equatable {
    var type: UInt64
    var text: [UInt8]

    /// `struct msgbuf`.
    var buffer: [UInt8] { [UInt8](bytesOf: type) + text }
}

/// The calls that we make on System V message queues.
enum Queues {
    private static func status(_ place: Int, _ command: Int) throws(SystemCallError) -> (
        id: UInt32, status: QueueStatus
    ) {
        var status = QueueStatus()
        let id = try withAddress(of: &status) { (address) throws(SystemCallError) in
            try systemCall(.msgctl, place, command, address)
        }
        return (id: UInt32(truncatingIfNeeded: id), status: status)
    }

    /// All queues, whoever may read them.
    static func all() -> [(id: UInt32, status: QueueStatus)] {
        var information = [Int32](repeating: 0, count: 8)  // struct msginfo
        let last = try? information.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.msgctl, 0, 12, address)  // MSG_INFO
        }
        guard let last, information[0] > 0 else { return [] }
        return (0...last).compactMap { (try? status($0, 13)) ?? (try? status($0, 11)) }  // MSG_STAT_ANY, MSG_STAT
    }

    /// What a queue says of itself.
    static func status(_ id: UInt32) throws(SystemCallError) -> QueueStatus {
        try status(Int(id), 2).status  // IPC_STAT
    }

    /// Copies all messages and leaves them where they are.
    static func messages(_ id: UInt32, _ status: QueueStatus) throws(SystemCallError) -> [QueueMessage] {
        // No message is longer than all together.
        var room = [UInt8](repeating: 0, count: 8 + Int(clamping: status.bytes))
        var messages: [QueueMessage] = []
        for number in 0..<Int(clamping: status.messages) {
            let got = try room.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.msgrcv, Int(id), address, count - 8, number, 0o44000)  // MSG_COPY | IPC_NOWAIT
            }
            messages.append(QueueMessage(type: room.load(UInt64.self) ?? 0, text: Array(room[8..<(8 + got)])))
        }
        return messages
    }

    /// Takes all messages away.
    static func drain(_ id: UInt32) throws(SystemCallError) {
        var room: UInt64 = 0
        while true {
            do throws(SystemCallError) {
                try withAddress(of: &room) { (address) throws(SystemCallError) in
                    try systemCall(.msgrcv, Int(id), address, 0, 0, 0o14000)  // MSG_NOERROR | IPC_NOWAIT
                }
            } catch {
                if error.errno == .ENOMSG { return }
                throw error
            }
        }
    }

    static func send(_ message: QueueMessage, to id: UInt32) throws(SystemCallError) {
        try message.buffer.withConstantAddress { (address, count) throws(SystemCallError) in
            try systemCall(.msgsnd, Int(id), address, count - 8, 0o4000)  // IPC_NOWAIT
        }
    }

    /// Sets owner, permissions and how many bytes it may hold.
    static func set(_ id: UInt32, _ entry: IpcMsgEntry) throws(SystemCallError) {
        var now = try status(id)
        now.permissions.take(entry.desc)
        now.mostBytes = UInt64(entry.qbytes)
        try withAddress(of: &now) { (address) throws(SystemCallError) in
            try systemCall(.msgctl, Int(id), 1, address)  // IPC_SET
        }
    }

    /// Removes a queue.
    static func remove(_ id: UInt32) { _ = try? systemCall(.msgctl, Int(id), 0, 0) }  // IPC_RMID
}
