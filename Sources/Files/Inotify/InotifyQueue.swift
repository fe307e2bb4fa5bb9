internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging

/// Dump: inotifies with events that wait to be read.
///
/// Reading takes them away from the task, so it is done last of all and only if the task will be killed: the image is
/// complete by then and says that there were events. If we die in between, an overflow is reported after the restore.
final class InotifyQueues {
    var files: [OpenFile] = []

    static func of(_ context: DumpContext) -> InotifyQueues { context.state(InotifyQueues.self) { InotifyQueues() } }

    func save(_ context: DumpContext) throws(Failure) {
        guard !files.isEmpty else { return }
        let image = context.images.create(.inotifyQueue)
        for file in files {
            var entry = InotifyQueueEntry()
            entry.id = file.id
            entry.event = try InotifyQueue(file.handle.number).take()
            try image.append(entry)
        }
        try image.finish()
    }
}

/// Restore: the events of `inotify-queue.img`.
final class SavedQueues {
    private(set) var events: [UInt32: [InotifyEventEntry]] = [:]

    static func of(_ context: RestoreContext) -> SavedQueues { context.state(SavedQueues.self) { SavedQueues() } }

    func load(_ context: RestoreContext) throws(Failure) {
        for entry in try context.images.loadAll(.inotifyQueue, as: InotifyQueueEntry.self) {
            events[entry.id] = entry.event
        }
    }
}

/// The events that wait in an inotify.
///
/// Events can't be put into a queue; they must happen. So we make them happen to files in a file system of our own,
/// which are watched under the numbers that the events are to have. When a watch is removed the kernel queues one more
/// event, IN_IGNORED, unless the queue is full and already tells so. That is why the queue is filled up first:
///
///     filler … filler OVERFLOW                  full
///     filler … OVERFLOW                         as many read as events come, and one more
///     filler … OVERFLOW event … event           full again: the watches can go unnoticed
///     event … event                             the rest of the filler and the overflow are read
///
/// If only the overflow is wanted, the fillers are read and it stays.
struct InotifyQueue {
    private let number: Int32

    /// The watch number of the filler; no task gets that far by counting.
    private static let fillerWatch: Int32 = 0x7fff_fff0

    init(_ number: Int32) { self.number = number }

    /// Reads all events.
    func take() throws(Failure) -> [InotifyEventEntry] {
        var events: [InotifyEventEntry] = []
        while case let waiting = try bytesWaiting(number), waiting > 0 {
            var room = [UInt8](repeating: 0, count: max(waiting, 4096))
            let got = try attempt("read the waiting events") { () throws(SystemCallError) in
                try room.withAddress { (address, count) throws(SystemCallError) in
                    try systemCall(.read, Int(number), address, count)
                }
            }
            var at = 0
            while at + 16 <= got, let watch = room.load(Int32.self, at: at),
                let mask = room.load(UInt32.self, at: at + 4),
                let cookie = room.load(UInt32.self, at: at + 8), let length = room.load(UInt32.self, at: at + 12)
            {
                var event = InotifyEventEntry()
                (event.wd, event.mask) = (watch, mask)
                if cookie != 0 { event.cookie = cookie }
                if length > 0 {
                    event.name = imageBytes(room[(at + 16)..<min(at + 16 + Int(length), got)].prefix { $0 != 0 })
                }
                events.append(event)
                at += 16 + Int(length)
            }
        }
        return events
    }

    /// Makes the queue report an overflow, and nothing else.
    func overflow() throws(Failure) {
        try fillUp()
        try discard(try bytesWaiting(number) / 16 - 1)
    }

    /// Makes events wait. Throws if that can't be done exactly; the queue is useless then.
    func fill(_ events: [InotifyEventEntry]) throws(Failure) {
        guard !events.isEmpty else { return }
        let stage = try InotifyStage(events, number)
        try fillUp()
        let full = try bytesWaiting(number) / 16
        guard events.count + 1 < full else { throw Failure(.unsupported, "more events than the queue may hold") }
        try discard(events.count + 1)
        try stage.play()
        // Full again: what the removal of the watches would tell is dropped.
        try stage.leave()
        let rest = try bytesWaiting(number) - events.reduce(0) { $0 + $1.size }
        guard rest == (full - events.count - 1) * 16 else { throw Failure(.bug, "other events happened than meant to") }
        try discard(rest / 16)
    }

    /// Fills the queue with events of our own, the overflow being the last. The file that they happen to goes with its
    /// watch, unnoticed because the queue is full.
    private func fillUp() throws(Failure) {
        try attempt("fill the queue of an inotify") { () throws(SystemCallError) in
            let memory = Descriptor(
                owning: Int32(
                    try withCString("filler") { (name) throws(SystemCallError) in
                        try systemCall(.memfd_create, name, 1)  // MFD_CLOEXEC
                    }))
            // Events happen only to files that were opened by a path.
            let file = try openFile("/proc/self/fd/\(memory.number)", [.readWrite])
            try Inotify.setNextWatch(InotifyQueue.fillerWatch, of: number)
            _ = try addWatch(number, to: file.number, 0x3)  // IN_ACCESS, IN_MODIFY
            var byte = [UInt8](repeating: 0, count: 1)
            let (ours, watched) = (Int(file.number), Int(number))
            var (before, after): (Int32, Int32) = (-1, 0)
            try byte.withAddress { (byte, _) throws(SystemCallError) in
                // An event like the last one is dropped, so they alternate.
                while after != before {
                    before = after
                    for _ in 0..<1024 {
                        try systemCall(.pwrite64, ours, byte, 1, 0)
                        try systemCall(.pread64, ours, byte, 1, 0)
                    }
                    try withAddress(of: &after) { (after) throws(SystemCallError) in
                        try systemCall(.ioctl, watched, 0x541b, after)
                    }
                }
            }
        }
    }

    /// Reads a number of nameless events from the head.
    private func discard(_ count: Int) throws(Failure) {
        var room = [UInt8](repeating: 0, count: 16 * 4096)
        var left = count
        try attempt("empty the queue of an inotify") { () throws(SystemCallError) in
            while left > 0 {
                let part = min(left, 4096) * 16
                left -= try room.withAddress { (address, _) throws(SystemCallError) in
                    try systemCall(.read, Int(number), address, part) / 16
                }
            }
        }
    }
}

extension InotifyEventEntry {
    /// Bytes of the event when it is read: names are padded to a multiple of the head, with a zero at least.
    fileprivate var size: Int { name.isEmpty ? 16 : 16 + (name.count + 16) / 16 * 16 }
}
