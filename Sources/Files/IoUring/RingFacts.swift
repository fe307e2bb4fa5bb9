internal import Diagnostics
internal import Kinds
internal import Linux
internal import Procfs

/// What /proc tells of a ring.
struct RingFacts {
    var requestMask: UInt32, completionMask: UInt32
    /// The kernel's own counters.
    var requestHead: UInt32, completionTail: UInt32
    /// The thread that polls for requests.
    var thread: Int32
    var fileSlots: UInt32
    var files: [(slot: UInt32, path: [UInt8])] = []
    var bufferSlots: UInt32
    var buffers: [(slot: UInt32, address: UInt64, length: UInt64)] = []
    /// Operations that wait for a file to be ready.
    var polls: [Int] = []
    /// Completions that don't fit the ring.
    var overflowing = 0

    /// Reads the text of fdinfo. Nil if the ring was locked, so that the facts are not there.
    init?(_ text: [UInt8]) {
        var values: [String: String] = [:]
        var part = ""
        for line in text.split(separator: 0x0a) {
            let words = String(decoding: line, as: UTF8.self)
            let colon = line.firstIndex(of: 0x3a)
            let rest = colon.map { line[($0 + 1)...].drop { $0 == 0x20 || $0 == 0x09 } } ?? []
            guard line.first == 0x20 else {
                part = String(words.prefix { $0 != ":" })
                values[part] = String(decoding: rest, as: UTF8.self)
                continue
            }
            let slot = colon.flatMap { UInt32(String(decoding: line[..<$0].drop { $0 == 0x20 }, as: UTF8.self)) }
            switch part {
            case "UserFiles":
                if let slot { files.append((slot, Array(rest))) }
            case "UserBufs":
                let numbers = String(decoding: rest, as: UTF8.self).split(separator: "/")
                if let slot, numbers.count == 2, let address = UInt64(numbers[0].dropFirst(2), radix: 16),
                    let length = UInt64(numbers[1])
                {
                    buffers.append((slot, address, length))
                }
            case "PollList": polls.append(Int(words.drop { $0 != "=" }.dropFirst().prefix { $0 != "," }) ?? -1)
            case "CqOverflowList": overflowing += 1
            default: break
            }
        }
        func mask(_ key: String) -> UInt32? { values[key].flatMap { UInt32($0.dropFirst(2), radix: 16) } }
        func number(_ key: String) -> UInt32? { values[key].flatMap { UInt32($0) } }
        guard let requestMask = mask("SqMask"), let completionMask = mask("CqMask"),
            let requestHead = number("CachedSqHead"), let completionTail = number("CachedCqTail")
        else { return nil }
        (self.requestMask, self.completionMask) = (requestMask, completionMask)
        (self.requestHead, self.completionTail) = (requestHead, completionTail)
        thread = values["SqThread"].flatMap { Int32($0) } ?? -1
        (fileSlots, bufferSlots) = (number("UserFiles") ?? 0, number("UserBufs") ?? 0)
    }

    /// A descriptor's of a task. A ring that is locked at the moment is looked at again.
    static func read(of task: TaskID, _ number: Int32) throws(Failure) -> RingFacts {
        for _ in 0..<1000 {
            if let facts = RingFacts(try procText(of: task, "fdinfo/\(number)")) { return facts }
            pause(nanoseconds: 1_000_000)
        }
        throw Failure(
            .unsupported, "the kernel does not tell what it does", advice: "A kernel from 6.1 on is needed")
    }

    /// The names of operations that usually wait, for messages.
    static func name(_ operation: Int) -> String {
        switch operation {
        case 1: "readv"
        case 2: "writev"
        case 6: "poll"
        case 9: "sendmsg"
        case 10: "recvmsg"
        case 13: "accept"
        case 16: "connect"
        case 22: "read"
        case 23: "write"
        case 26: "send"
        case 27: "recv"
        case 29: "epoll_ctl"
        default: "operation \(operation)"
        }
    }
}
