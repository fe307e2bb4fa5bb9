internal import Diagnostics
internal import Linux
internal import SystemPackage

/// The events that wait in a fanotify group.
struct FanotifyQueue {
    private let number: Int32

    init(_ number: Int32) { self.number = number }

    /// FAN_OPEN | FAN_EVENT_ON_CHILD.
    private static let mask = 0x0800_0020

    /// Makes the queue report an overflow, and nothing else: files of our own are opened until it does, and what told of
    /// them is read.
    func overflow() throws(Failure) {
        let context = Descriptor(
            owning: Int32(
                try attempt("make a file system of our own") { () throws(SystemCallError) in
                    try withCString("tmpfs") { (name) throws(SystemCallError) in
                        try systemCall(.fsopen, name, 1)  // FSOPEN_CLOEXEC
                    }
                }))
        try attempt("fill the queue of a fanotify group") { () throws(SystemCallError) in
            try systemCall(.fsconfig, Int(context.number), 6, 0, 0, 0)  // FSCONFIG_CMD_CREATE
            let root = Descriptor(owning: Int32(try systemCall(.fsmount, Int(context.number), 1, 0)))
            try mark(1, root.number)  // FAN_MARK_ADD
            let size = try fillUp(root.number)
            try mark(2, root.number)  // FAN_MARK_REMOVE
            try discard(size)
        }
    }

    private func mark(_ flag: Int, _ root: Int32) throws(SystemCallError) {
        try withCString("/proc/self/fd/\(root)") { (path) throws(SystemCallError) in
            try systemCall(
                .fanotify_mark, Int(number), flag, FanotifyQueue.mask, Int(currentDirectory), path)
        }
    }

    private func waiting() throws(SystemCallError) -> Int {
        var count: Int32 = 0
        try withAddress(of: &count) { (address) throws(SystemCallError) in
            try systemCall(.ioctl, Int(number), 0x541b, address)  // FIONREAD
        }
        return Int(count)
    }

    /// Opens new files until the queue grows no more. Returns the bytes that wait then.
    private func fillUp(_ root: Int32) throws(SystemCallError) -> Int {
        var (before, after, file) = (-1, 0, 100_000)
        while after != before {
            before = after
            for _ in 0..<1024 {
                // Another file each time: events of the same file are merged. Names of one length make equal events.
                _ = try openFile("\(file)", [.writeOnly, .create], in: root)
                file += 1
            }
            after = try waiting()
        }
        return after
    }

    /// Reads all events but the last, which is the overflow. FIONREAD counts the heads of events only.
    private func discard(_ waiting: Int) throws(SystemCallError) {
        var room = [UInt8](repeating: 0, count: 1 << 16)
        let head = 24  // struct fanotify_event_metadata
        let length = try read(&room, head)
        var left = waiting / head - 2
        while left > 0 { left -= try read(&room, min(left, 128) * length) / length }
    }

    /// Reads whole events, and closes what comes with them. Returns the bytes read; one event's if the room is too small.
    private func read(_ room: inout [UInt8], _ count: Int) throws(SystemCallError) -> Int {
        var count = count
        while true {
            do throws(SystemCallError) {
                let got = try room.withAddress { (address, _) throws(SystemCallError) in
                    try systemCall(.read, Int(number), address, count)
                }
                closeDescriptors(Array(room[..<got]))
                return got
            } catch {
                guard error.errno == .EINVAL, count < 4096 else { throw error }
                count += 4
            }
        }
    }

    private func closeDescriptors(_ events: [UInt8]) {
        var at = 0
        while let length = events.load(UInt32.self, at: at), length >= 24 {
            var numbers = [events.load(Int32.self, at: at + 16) ?? -1]
            var record = at + 24
            while record + 8 <= at + Int(length), let size = events.load(UInt16.self, at: record + 2), size >= 4 {
                // FAN_EVENT_INFO_TYPE_PIDFD
                if events[record] == 4 { numbers.append(events.load(Int32.self, at: record + 4) ?? -1) }
                record += Int(size)
            }
            for number in numbers where number >= 0 { _ = try? systemCall(.close, Int(number)) }
            at += Int(length)
        }
    }
}
