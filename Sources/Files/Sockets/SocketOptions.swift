internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux

/// The options that sockets of all families have.
enum SocketOptions {
    private static let socketLevel = 1

    /// The options of `dump` in the order of `ask`; those of the second list are of UNIX and netlink sockets only.
    private static let plain = [7, 8, 2, 12, 18, 36, 5, 11, 15, 6, 9, 10, 72], rare = [16, 34], times = [20, 21]

    /// What `ask` says of an option that the socket does not have.
    private static let missing = Int64.min

    /// Reads what all sockets have.
    static func ask(_ number: Int32) throws(SystemCallError) -> [Int64] {
        var values: [Int64] = []
        values.reserveCapacity(plain.count + rare.count + 2 * times.count)
        for option in plain { values.append(Int64(try socketOption(number, option))) }
        for option in rare { values.append((try? socketOption(number, option)).map { Int64($0) } ?? missing) }
        for option in times {
            var value: (seconds: Int64, micros: Int64, length: UInt32) = (0, 0, 16)
            try withAddress(of: &value) { (address) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(number), socketLevel, option, address, address + 16)
            }
            values += [value.seconds, value.micros]
        }
        return values
    }

    /// Most sockets of a program have the same options.
    private final class Last {
        var values: [Int64] = []
        var entry = SkOptsEntry()
    }

    /// Which network namespace a socket is of (`SO_NETNS_COOKIE`); nil if the kernel does not tell (before Linux 5.14).
    static func namespace(of number: Int32) -> UInt64? {
        var value: (cookie: UInt64, length: UInt64) = (0, 8)
        let answer = try? withAddress(of: &value) { (address) throws(SystemCallError) in
            try systemCall(.getsockopt, Int(number), socketLevel, 71, address, address + 8)
        }
        return answer.map { _ in value.cookie }
    }

    /// The network namespace of new sockets.
    private final class Home {
        let cookie: UInt64?

        init() {
            guard let number = try? systemCall(.socket, 1, 2 | 0o2000000, 0) else {
                cookie = nil
                return
            }
            let fresh = Descriptor(owning: Int32(number))
            cookie = namespace(of: fresh.number)
        }
    }

    /// A socket of another namespace would be looked for, and made, in the wrong one.
    static func checkNamespace(_ cookie: UInt64?, _ context: DumpContext) throws(Failure) {
        guard let home = context.state(Home.self, { Home() }).cookie, cookie != home else { return }
        throw Failure(
            .unsupported, "it belongs to another network namespace than the tree, which can't be dumped yet",
            advice: "Close it before the dump")
    }

    /// The entry of what `ask` has learned, which is that of the last socket if nothing differs.
    static func entry(of values: [Int64], _ context: DumpContext) -> SkOptsEntry {
        let last = context.state(Last.self) { Last() }
        if last.values != values { (last.values, last.entry) = (values, entry(of: values)) }
        return last.entry
    }

    /// The entry of what `ask` has learned.
    static func entry(of values: [Int64]) -> SkOptsEntry {
        func bits(_ option: Int) -> UInt32 {
            UInt32(truncatingIfNeeded: plain.firstIndex(of: option).map { values[$0] } ?? 0)
        }
        var entry = SkOptsEntry()
        (entry.soSndbuf, entry.soRcvbuf) = (bits(7), bits(8))
        let time = values.suffix(4).map { UInt64(bitPattern: $0) }
        (entry.soRcvTmoSec, entry.soRcvTmoUsec) = (time[0], time[1])
        (entry.soSndTmoSec, entry.soSndTmoUsec) = (time[2], time[3])
        entry.reuseaddr = bits(2) != 0
        entry.soPriority = bits(12)
        entry.soRcvlowat = bits(18)
        entry.soMark = bits(36)
        let passes = values[plain.count..<(plain.count + rare.count)]
        if let credentials = passes.first, credentials != missing { entry.soPasscred = credentials != 0 }
        if let security = passes.last, security != missing { entry.soPasssec = security != 0 }
        entry.soDontroute = bits(5) != 0
        entry.soNoCheck = bits(11) != 0
        entry.soReuseport = bits(15) != 0
        entry.soBroadcast = bits(6) != 0
        entry.soKeepalive = bits(9) != 0
        entry.soOobinline = bits(10)
        entry.soBufLock = bits(72)
        return entry
    }

    /// Asks a socket without a connection for everything: what all have, device, linger, filter, owner, and options that
    /// CRIU does not know.
    static func dump(_ file: OpenFile, _ kind: SocketKind, _ context: DumpContext) throws(Failure) -> SkOptsEntry {
        let number = file.handle.number
        try checkNamespace(namespace(of: number), context)
        var entry = entry(
            of: try attempt("read the socket's options") { () throws(SystemCallError) in try ask(number) })
        try dumpNetwork(&entry, number)
        (entry.uid, entry.gid) = context.owners.owner(of: file.facts.status)
        entry.more = more(number, SocketDefaults.of(context).values(kind), isConnected: false)
        return entry
    }

    /// Device, linger and filter. May be asked in any thread.
    static func dumpNetwork(_ entry: inout SkOptsEntry, _ number: Int32) throws(Failure) {
        var linger: (isOn: Int32, seconds: Int32) = (0, 0)
        let device = try attempt("read the socket's options") { () throws(SystemCallError) in
            var length: UInt32 = 8
            try withAddress(of: &linger) { (value) throws(SystemCallError) in
                try withAddress(of: &length) { (length) throws(SystemCallError) in
                    try systemCall(.getsockopt, Int(number), socketLevel, 13, value, length)
                }
            }
            return try boundDevice(number)
        }
        if linger.isOn != 0 { entry.soLinger = UInt32(bitPattern: linger.seconds) }
        if !device.isEmpty { entry.soBoundDev = imageBytes(device) }
        entry.soFilter = try SocketFilter.dump(number)
        if (try? socketOption(number, 44)) == 1 { entry.locksFilter = true }
    }

    /// Options that CRIU does not know, where they differ from a new socket's. May be asked in any thread.
    static func more(
        _ number: Int32, _ defaults: [SocketDefaults.Default], isConnected: Bool
    ) -> [BrumateSocketOptionEntry] {
        var found: [BrumateSocketOptionEntry] = []
        for (option, usual) in defaults where !(isConnected && option.isForUnconnected) {
            guard !option.has(usual, on: number), let value = option.value(of: number) else { continue }
            var more = BrumateSocketOptionEntry()
            (more.level, more.number, more.value) = (UInt32(option.level), UInt32(option.number), imageBytes(value))
            found.append(more)
        }
        return found
    }

    /// The device that a socket is bound to (`SO_BINDTODEVICE`), empty if there is none.
    private static func boundDevice(_ number: Int32) throws(SystemCallError) -> [UInt8] {
        var name = [UInt8](repeating: 0, count: 16)
        var length: UInt32 = 16
        try name.withAddress { (value, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(number), socketLevel, 25, value, length)
            }
        }
        return Array(name.prefix(Int(min(length, 16))).prefix { $0 != 0 })
    }

    /// What a socket has that nobody has set anything of yet.
    struct Fresh: Sendable {
        let sending: Int32, receiving: Int32, bufferLock: Int32?, priority: Int32

        init(_ number: Int32) throws(SystemCallError) {
            (sending, receiving) = (try socketOption(number, 7), try socketOption(number, 8))
            bufferLock = try? socketOption(number, 72)
            priority = try socketOption(number, 12)
        }

        /// One that is like another, but for the sizes of its buffers, which grow when it is connected.
        init(_ number: Int32, like other: Fresh) throws(SystemCallError) {
            (sending, receiving) = (try socketOption(number, 7), try socketOption(number, 8))
            (bufferLock, priority) = (other.bufferLock, other.priority)
        }
    }

    /// Sets what differs.
    ///
    /// - Parameter fresh: what the socket has, if that is known.
    static func restore(_ entry: SkOptsEntry, on number: Int32, over fresh: Fresh? = nil) throws(Failure) {
        try attempt("set the socket's options") { () throws(SystemCallError) in
            let fresh = if let fresh { fresh } else { try Fresh(number) }
            // The kernel doubles what it is given. The FORCE forms go past the system's limits.
            // Setting a buffer's size sets its lock too: SOCK_SNDBUF_LOCK 1, SOCK_RCVBUF_LOCK 2.
            var lock: Int32? = fresh.bufferLock
            if Int64(entry.soSndbuf) != Int64(fresh.sending) {
                lock = lock.map { $0 | 1 }
                try setSocketOption(number, 32, Int32(clamping: entry.soSndbuf / 2))
            }
            if Int64(entry.soRcvbuf) != Int64(fresh.receiving) {
                lock = lock.map { $0 | 2 }
                try setSocketOption(number, 33, Int32(clamping: entry.soRcvbuf / 2))
            }
            if entry.hasSoBufLock, lock.map({ Int64($0) }) != Int64(entry.soBufLock) {
                try setSocketOption(number, 72, Int32(clamping: entry.soBufLock))
            }
            for (option, seconds, micros) in [
                (20, entry.soRcvTmoSec, entry.soRcvTmoUsec), (21, entry.soSndTmoSec, entry.soSndTmoUsec),
            ] where seconds != 0 || micros != 0 {
                var value = (seconds, micros)
                try withAddress(of: &value) { (value) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(number), socketLevel, option, value, 16)
                }
            }
            for (option, value) in [
                (2, entry.reuseaddr), (16, entry.soPasscred), (34, entry.soPasssec), (5, entry.soDontroute),
                (11, entry.soNoCheck),
                (6, entry.soBroadcast), (9, entry.soKeepalive), (10, entry.soOobinline != 0),
            ] where value { try setSocketOption(number, option, 1) }
            if entry.hasSoPriority, Int64(entry.soPriority) != Int64(fresh.priority) {
                try setSocketOption(number, 12, Int32(clamping: entry.soPriority))
            }
            if entry.soMark != 0 { try setSocketOption(number, 36, Int32(bitPattern: entry.soMark)) }
            if entry.hasSoRcvlowat, entry.soRcvlowat > 1 {
                try setSocketOption(number, 18, Int32(clamping: entry.soRcvlowat))
            }
        }
    }

    /// What has to be set before the socket gets an address: device, owner, and most of what CRIU does not know.
    static func prepareNetwork(
        _ entry: SkOptsEntry, on number: Int32, _ kind: SocketKind, _ owners: TreeOwners
    ) throws(Failure) {
        if !entry.soBoundDev.isEmpty {
            let device = Array(entry.soBoundDev.prefix { $0 != 0 })
            try attempt(
                "bind it to the device \(String(decoding: device, as: UTF8.self))",
                advice: "Restore where there is such a device"
            ) { () throws(SystemCallError) in
                try device.withConstantAddress { (name, count) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(number), socketLevel, 25, name, count)
                }
            }
        }
        if entry.hasUid, !owners.isOurs(entry.uid, entry.gid) {
            try attempt("give it its owner") { () throws(SystemCallError) in
                try owners.give(number, to: entry.uid, entry.gid)
            }
        }
        try restoreMore(entry, on: number, kind, late: false)
    }

    /// What is set once the socket has its final state: filter, linger, and what depends on the state.
    static func completeNetwork(_ entry: SkOptsEntry, on number: Int32, _ kind: SocketKind) throws(Failure) {
        try restoreMore(entry, on: number, kind, late: true)
        if entry.hasSoLinger {
            var linger: (Int32, Int32) = (1, Int32(clamping: entry.soLinger))
            try attempt("set the socket's options") { () throws(SystemCallError) in
                try withAddress(of: &linger) { (value) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(number), socketLevel, 13, value, 8)
                }
            }
        }
        try SocketFilter.restore(entry.soFilter, on: number)
        if entry.locksFilter {
            try attempt("lock the socket's filter") { () throws(SystemCallError) in
                try setSocketOption(number, 44, 1)
            }
        }
    }

    private static func restoreMore(
        _ entry: SkOptsEntry, on number: Int32, _ kind: SocketKind, late: Bool
    ) throws(Failure) {
        guard !entry.more.isEmpty else { return }
        let options = SocketOption.all(kind)
        for more in entry.more {
            guard let option = options.first(where: { $0.level == Int(more.level) && $0.number == Int(more.number) })
            else {
                throw Failure(.corruptImage, "there is no socket option \(more.number) of the level \(more.level)")
            }
            guard more.value.count <= option.size else {
                throw Failure(.corruptImage, "the value of \(option.name) is too long")
            }
            guard option.isLate == late else { continue }
            try attempt(
                "set the socket's option \(option.name)", advice: "Restore on a kernel that has what the program uses"
            ) { () throws(SystemCallError) in try option.set(Array(more.value), on: number) }
        }
    }
}

/// Classic filters of packets (`SO_ATTACH_FILTER`).
enum SocketFilter {
    /// The instructions, in the format's encoding.
    static func dump(_ number: Int32) throws(Failure) -> [UInt64] {
        var count: UInt32 = 0
        do throws(SystemCallError) {
            try withAddress(of: &count) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(number), 1, 26, 0, length)
            }
        } catch {
            throw Failure(
                .unsupported, "an eBPF program is attached to it, which the kernel does not give out",
                advice: "Detach it before the dump (SO_DETACH_BPF)", cause: error)
        }
        guard count > 0 else { return [] }
        var code = [UInt64](repeating: 0, count: Int(count))
        try attempt("read the socket's filter") { () throws(SystemCallError) in
            try code.withAddress { (value, _) throws(SystemCallError) in
                try withAddress(of: &count) { (length) throws(SystemCallError) in
                    try systemCall(.getsockopt, Int(number), 1, 26, value, length)
                }
            }
        }
        return code.prefix(Int(count)).map(encode)
    }

    /// In memory: code (16 bits), two jumps (8 each), operand (32). In images: the same from the top down.
    private static func encode(_ word: UInt64) -> UInt64 {
        (word & 0xffff) << 48 | (word >> 16 & 0xff) << 40 | (word >> 24 & 0xff) << 32 | word >> 32
    }

    private static func decode(_ word: UInt64) -> UInt64 {
        word >> 48 | (word >> 40 & 0xff) << 16 | (word >> 32 & 0xff) << 24 | (word & 0xffff_ffff) << 32
    }

    static func restore(_ image: [UInt64], on number: Int32) throws(Failure) {
        guard !image.isEmpty else { return }
        guard image.count <= 4096 else { throw Failure(.corruptImage, "the socket's filter is too long") }
        try attempt("attach the socket's filter") { () throws(SystemCallError) in
            try image.map(decode).withConstantAddress { (code, _) throws(SystemCallError) in
                var program: (UInt64, UInt64) = (UInt64(image.count), UInt64(code))
                try withAddress(of: &program) { (program) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(number), 1, 26, program, 16)
                }
            }
        }
    }
}
