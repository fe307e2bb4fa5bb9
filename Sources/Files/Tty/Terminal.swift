internal import Linux

/// A terminal behind one of our descriptors, which stays somebody else's.
struct Terminal {
    /// Our descriptor.
    let number: Int32

    /// Requests of ioctl(2) by the kernel's values.
    enum Request: Int {
        /// `TIOCEXCL`.
        case setExclusive = 0x540c
        /// `TIOCSCTTY`.
        case setControlling = 0x540e
        /// `TIOCGPGRP`.
        case group = 0x540f
        /// `TIOCSPGRP`.
        case setGroup = 0x5410
        /// `TIOCGWINSZ`.
        case windowSize = 0x5413
        /// `TIOCSWINSZ`.
        case setWindowSize = 0x5414
        /// `FIONREAD`.
        case waiting = 0x541b
        /// `TIOCPKT`.
        case setPacketMode = 0x5420
        /// `TIOCNOTTY`.
        case leaveControlling = 0x5422
        /// `TIOCGETD`.
        case discipline = 0x5424
        /// `TIOCGSID`.
        case session = 0x5429
        /// `TIOCGPTPEER`.
        case openSlave = 0x5441
        /// `TIOCGLCKTRMIOS`.
        case lockedSettings = 0x5456
        /// `TIOCSLCKTRMIOS`.
        case setLockedSettings = 0x5457
        /// `TIOCSPTLCK`.
        case setLock = 0x4004_5431
        /// `TCSETS2`.
        case setSettings = 0x402c_542b
        /// `TIOCGPTN`.
        case index = 0x8004_5430
        /// `TIOCGDEV`.
        case device = 0x8004_5432
        /// `TIOCGPKT`.
        case packetMode = 0x8004_5438
        /// `TIOCGPTLCK`.
        case lock = 0x8004_5439
        /// `TIOCGEXCL`.
        case exclusive = 0x8004_5440
        /// `TCGETS2`.
        case settings = 0x802c_542a
    }

    init(_ number: Int32) { self.number = number }

    @discardableResult
    func call(_ request: Request, _ argument: Int = 0) throws(SystemCallError) -> Int {
        try systemCall(.ioctl, Int(number), request.rawValue, argument)
    }

    /// Reads a word.
    func word(_ request: Request) throws(SystemCallError) -> UInt32 {
        var word: UInt32 = 0
        try withAddress(of: &word) { (address) throws(SystemCallError) in try call(request, address) }
        return word
    }

    /// Sets a word.
    func set(_ request: Request, _ word: UInt32) throws(SystemCallError) {
        var word = word
        try withAddress(of: &word) { (address) throws(SystemCallError) in try call(request, address) }
    }

    /// Reads a structure.
    func bytes(_ request: Request, count: Int) throws(SystemCallError) -> [UInt8] {
        // More room than asked for: structures of other architectures are larger.
        var bytes = [UInt8](repeating: 0, count: count + 32)
        try bytes.withAddress { (address, _) throws(SystemCallError) in try call(request, address) }
        return Array(bytes[..<count])
    }

    /// Sets a structure.
    func set(_ request: Request, _ bytes: [UInt8]) throws(SystemCallError) {
        try (bytes + [UInt8](repeating: 0, count: 32)).withConstantAddress { (address, _) throws(SystemCallError) in
            try call(request, address)
        }
    }

    /// The settings; a master shows its slave's.
    func settings() throws(SystemCallError) -> TerminalSettings {
        TerminalSettings(try bytes(.settings, count: TerminalSettings.size))
    }

    /// What poll(2) says at once: its result bits.
    func poll(_ events: Int16) throws(SystemCallError) -> Int16 {
        try Linux.poll(number, for: events)
    }

    /// `POLLIN`.
    static let readable: Int16 = 1
    /// `POLLHUP`.
    static let hungUp: Int16 = 16

    /// Calls `body` with the slave end of this master: the one that is known, or one that is open for just as long.
    func withSlave(
        _ known: Int32?, _ body: (Terminal) throws(SystemCallError) -> Void
    ) throws(SystemCallError) {
        if let known { return try body(Terminal(known)) }
        let own = try openSlave([.readWrite, .nonBlocking])
        try body(Terminal(own.number))
        try own.close()
    }

    /// A new description of the slave end of this master, by `TIOCGPTPEER`. Needs no path.
    func openSlave(_ flags: OpenFlags) throws(SystemCallError) -> Descriptor {
        let flags = flags.union([.noControllingTerminal, .largeFile])
        let made = Descriptor(owning: Int32(try call(.openSlave, Int(flags.rawValue))))
        // Unlike open(2), the request would leave O_CLOEXEC among the flags of the description.
        try systemCall(.fcntl, Int(made.number), 2, 1)
        return made
    }
}

/// How a terminal treats characters: the kernel's `struct termios2`.
struct TerminalSettings: Hashable {
    /// `c_iflag`, `c_oflag`, `c_cflag`, `c_lflag`.
    var input: UInt32 = 0, output: UInt32 = 0, control: UInt32 = 0, local: UInt32 = 0
    /// `c_line`.
    var discipline: UInt8 = 0
    /// `c_cc`.
    var characters = [UInt8](repeating: 0, count: 19)
    /// `c_ispeed`, `c_ospeed`.
    var inputSpeed: UInt32 = 0, outputSpeed: UInt32 = 0

    /// Bytes of the structure, and of `struct termios`, which has no speeds.
    static let size = 44, sizeWithoutSpeeds = 36
    /// Bits of `local`.
    static let canonical: UInt32 = 0x2, echo: UInt32 = 0x8, extended: UInt32 = 0x8000, external: UInt32 = 0x10000
    /// Bits of `input` and `output`.
    static let flowControl: UInt32 = 0x400, processesOutput: UInt32 = 0x1
    /// Places in `characters`.
    static let endOfFile = 4, time = 5, least = 6, start = 8, stop = 9, endOfLine = 11, otherEndOfLine = 16

    init() {}

    /// Reads the structure; speeds may be missing.
    init(_ bytes: [UInt8]) {
        func word(_ at: Int) -> UInt32 { bytes.load(UInt32.self, at: at) ?? 0 }
        (input, output, control, local) = (word(0), word(4), word(8), word(12))
        guard bytes.count >= TerminalSettings.sizeWithoutSpeeds else { return }
        discipline = bytes[16]
        characters = Array(bytes[17..<36])
        (inputSpeed, outputSpeed) = (word(36), word(40))
    }

    /// The structure.
    var bytes: [UInt8] {
        [UInt8](bytesOf: (input, output, control, local)) + [discipline] + characters
            + [UInt8](bytesOf: (inputSpeed, outputSpeed))
    }

    /// Whether input comes in lines.
    var isCanonical: Bool { local & TerminalSettings.canonical != 0 }

    /// Settings under which whatever is written to either end arrives unchanged at the other, without echo. Lines stay
    /// lines: a change of `ICANON` would make one of all that waits.
    ///
    /// - Parameter keepsFlowControl: in packet mode a change of flow control would be reported to the master.
    func transparent(keepsFlowControl: Bool = false) -> TerminalSettings {
        typealias T = TerminalSettings
        var plain = self
        plain.input = keepsFlowControl ? input & T.flowControl : 0
        plain.output &= ~T.processesOutput
        plain.local &= T.canonical | T.extended | T.external
        let kept = keepsFlowControl ? [T.time, T.least, T.start, T.stop] : [T.time, T.least]
        for index in plain.characters.indices where isCanonical && !kept.contains(index) {
            if index != T.endOfLine, index != T.otherEndOfLine { plain.characters[index] = 0 }
        }
        return plain
    }

    /// The same without lines, to read what would be an unfinished one.
    var withoutLines: TerminalSettings {
        var plain = self
        plain.local &= ~TerminalSettings.canonical
        plain.characters[TerminalSettings.time] = 0
        plain.characters[TerminalSettings.least] = 1
        return plain
    }
}

/// The kinds of terminal by their device numbers.
enum TerminalDevice: Hashable {
    /// `/dev/tty`: the controlling terminal of whoever opened it.
    case current
    /// `/dev/console`.
    case console
    /// `/dev/ptmx`: the master end of a pair.
    case master
    /// The slave end of a pair.
    case slave(index: UInt32)
    /// A virtual console.
    case virtual
    /// A serial line and the like.
    case serial

    /// - Parameter device: in the C library's encoding.
    init?(_ device: UInt64) {
        let major = UInt32(device >> 8 & 0xfff) | UInt32(truncatingIfNeeded: device >> 32) & ~0xfff
        let minor = UInt32(device & 0xff) | UInt32(truncatingIfNeeded: device >> 12) & ~0xff
        switch (major, minor) {
        case (5, 0): self = .current
        case (5, 1): self = .console
        case (5, 2): self = .master
        case (4, 0..<64): self = .virtual
        // Serial lines, their USB and on-chip relatives, consoles of hypervisors.
        case (4, _), (188, _), (204, _), (229, _): self = .serial
        case (136, _): self = .slave(index: minor)
        default: return nil
        }
    }

    /// The device number of a slave end, as /proc/PID/stat has it.
    static func slaveDevice(_ index: UInt32) -> UInt32 {
        UInt32(truncatingIfNeeded: FileStatus.device(major: 136, minor: index))
    }
}
