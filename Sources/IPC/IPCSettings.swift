internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging

/// Limits of an IPC namespace: files below /proc/sys, which are those of the namespace that the reader is in.
enum IPCSettings {
    private static let kernel = "/proc/sys/kernel/", queues = "/proc/sys/fs/mqueue/"

    private static func words(_ path: String) -> [Substring] {
        String(decoding: (try? readWholeFile(path)) ?? [], as: UTF8.self).split { " \t\n".contains($0) }
    }

    private static func read(_ path: String) -> [UInt64] {
        words(path).compactMap { UInt64($0) ?? Int64($0).map { UInt64(bitPattern: $0) } }
    }

    /// Reads the settings of the namespace that we are in.
    static func dump(_ id: UInt32, _ context: DumpContext) throws(Failure) {
        func word(_ path: String) -> UInt32 { UInt32(truncatingIfNeeded: read(path).first ?? 0) }
        var entry = IpcVarEntry()
        entry.semCtls = read(kernel + "sem").map { UInt32(truncatingIfNeeded: $0) }
        entry.msgCtlmax = word(kernel + "msgmax")
        entry.msgCtlmnb = word(kernel + "msgmnb")
        entry.msgCtlmni = word(kernel + "msgmni")
        entry.autoMsgmni = word(kernel + "auto_msgmni")
        entry.shmCtlmax = read(kernel + "shmmax").first ?? 0
        entry.shmCtlall = read(kernel + "shmall").first ?? 0
        entry.shmCtlmni = word(kernel + "shmmni")
        entry.shmRmidForced = word(kernel + "shm_rmid_forced")
        entry.mqQueuesMax = word(queues + "queues_max")
        entry.mqMsgMax = word(queues + "msg_max")
        entry.mqMsgsizeMax = word(queues + "msgsize_max")
        entry.mqMsgDefault = word(queues + "msg_default")
        entry.mqMsgsizeDefault = word(queues + "msgsize_default")
        // -1 for none; CRIU's restore takes only numbers.
        func next(_ kind: String) -> UInt32? {
            read(kernel + kind + "_next_id").first.map { UInt32(truncatingIfNeeded: $0) }.flatMap {
                $0 == .max ? nil : $0
            }
        }
        if let id = next("msg") { entry.msgNextID = id }
        if let id = next("sem") { entry.semNextID = id }
        if let id = next("shm") { entry.shmNextID = id }
        try context.images.write(.settingsOfIPC(id), [entry])
    }

    /// Sets them in the namespace that we are in.
    static func restore(_ entry: IpcVarEntry, _ context: RestoreContext) {
        var wanted: [(String, String)] = []
        if entry.semCtls.count == 4 {
            wanted.append((kernel + "sem", entry.semCtls.map { "\($0)" }.joined(separator: " ")))
        }
        wanted += [
            (kernel + "msgmax", "\(entry.msgCtlmax)"), (kernel + "msgmnb", "\(entry.msgCtlmnb)"),
            (kernel + "msgmni", "\(entry.msgCtlmni)"), (kernel + "auto_msgmni", "\(entry.autoMsgmni)"),
            (kernel + "shmmax", "\(entry.shmCtlmax)"), (kernel + "shmall", "\(entry.shmCtlall)"),
            (kernel + "shmmni", "\(entry.shmCtlmni)"), (kernel + "shm_rmid_forced", "\(entry.shmRmidForced)"),
            (queues + "queues_max", "\(entry.mqQueuesMax)"), (queues + "msg_max", "\(entry.mqMsgMax)"),
            (queues + "msgsize_max", "\(entry.mqMsgsizeMax)"),
        ]
        if entry.hasMqMsgDefault { wanted.append((queues + "msg_default", "\(entry.mqMsgDefault)")) }
        if entry.hasMqMsgsizeDefault { wanted.append((queues + "msgsize_default", "\(entry.mqMsgsizeDefault)")) }
        set(wanted, context)
    }

    /// Sets which ids the next objects are to have, where somebody had asked for that.
    static func restoreNext(_ entry: IpcVarEntry, _ context: RestoreContext) {
        var wanted: [(String, String)] = []
        if entry.hasMsgNextID { wanted.append((kernel + "msg_next_id", "\(Int32(bitPattern: entry.msgNextID))")) }
        if entry.hasSemNextID { wanted.append((kernel + "sem_next_id", "\(Int32(bitPattern: entry.semNextID))")) }
        if entry.hasShmNextID { wanted.append((kernel + "shm_next_id", "\(Int32(bitPattern: entry.shmNextID))")) }
        set(wanted, context)
    }

    private static func set(_ wanted: [(path: String, value: String)], _ context: RestoreContext) {
        for (path, value) in wanted {
            guard words(path).joined(separator: " ") != value else { continue }
            do throws(SystemCallError) {
                let file = try openFile(path, .writeOnly)
                try writeAll(Array(value.utf8), to: file.number)
            } catch {
                context.log.warning("\(path) of the tree can't be set to \(value): \(error)")
            }
        }
    }
}
