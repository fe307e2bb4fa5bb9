internal import CLinux
internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// A timer whose expirations are read (`timerfd_create(2)`).
enum Timerfd: FileKind {
    /// TFD_TIMER_ABSTIME.
    private static let absolute: UInt32 = 1

    /// The clock whose time a timer's clock shows: those that wake the machine (CLOCK_REALTIME_ALARM,
    /// CLOCK_BOOTTIME_ALARM) can't be read without a device.
    private static func readable(_ clock: UInt32) -> UInt32 { clock == 8 ? 0 : clock == 9 ? 7 : clock }

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:[timerfd]" }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        var entry = TimerfdEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        try read(file.facts.information, into: &entry)
        let number = file.handle.number
        // One that repeats rests from its first expiration until somebody reads or asks: only then it counts on.
        for _ in 0..<mostTries where hasExpired(entry) {
            try attempt("ask for the time left") { () throws(SystemCallError) in
                var time = clinux_itimerspec()
                try withAddress(of: &time) { (time) throws(SystemCallError) in
                    try systemCall(.timerfd_gettime, Int(number), time)
                }
            }
            try read(DescriptorInformation.read(of: .current, number), into: &entry)
        }
        if hasExpired(entry) { entry.vnsec = 1 }  // Its interval is too short to see it wait.
        if entry.settimeFlags & absolute != 0, readable(entry.clockid) == 0, isArmed(entry) {
            try read(DescriptorInformation.read(of: .current, number), into: &entry)
            let now = try time(of: entry.clockid)
            if isArmed(entry) { (entry.deadlineSec, entry.deadlineNsec) = sum(now, (entry.vsec, entry.vnsec)) }
        }
        var whole = FileEntry(.timerfd, file.id)
        whole.tfd = entry
        return whole
    }

    /// How often a timer is asked that expires faster than we can look.
    private static let mostTries = 100

    private static func isArmed(_ entry: TimerfdEntry) -> Bool { entry.vsec != 0 || entry.vnsec != 0 }

    /// Whether it repeats and has stopped at an expiration that nobody has read: a disarmed one has no ticks.
    private static func hasExpired(_ entry: TimerfdEntry) -> Bool {
        !isArmed(entry) && entry.ticks > 0 && (entry.isec != 0 || entry.insec != 0)
    }

    private static func read(_ information: DescriptorInformation, into entry: inout TimerfdEntry) throws(Failure) {
        let value = information.numbers("it_value")
        let interval = information.numbers("it_interval")
        guard let clock = information.value("clockid", base: 10), let ticks = information.value("ticks", base: 10),
            let flags = information.value("settime flags", base: 8), value.count == 2, interval.count == 2
        else { throw Failure(.kernelTooOld, "the kernel does not tell the timer's state") }
        entry.clockid = UInt32(truncatingIfNeeded: clock)
        entry.ticks = ticks
        entry.settimeFlags = UInt32(truncatingIfNeeded: flags)
        (entry.vsec, entry.vnsec, entry.isec, entry.insec) = (value[0], value[1], interval[0], interval[1])
    }

    private static func time(of clock: UInt32) throws(Failure) -> (UInt64, UInt64) {
        var now: (UInt64, UInt64) = (0, 0)
        try attempt("read the clock \(clock)") { () throws(SystemCallError) in
            try withAddress(of: &now) { (now) throws(SystemCallError) in
                try systemCall(.clock_gettime, Int(readable(clock)), now)
            }
        }
        return now
    }

    private static func sum(_ a: (UInt64, UInt64), _ b: (UInt64, UInt64)) -> (UInt64, UInt64) {
        let nanoseconds = a.1 &+ b.1
        return (a.0 &+ b.0 &+ nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
    }

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.timerfd.rawValue) && entry.hasTfd
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.tfd.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.tfd
            let made = try attempt("create a timerfd of the clock \(entry.clockid)") { () throws(SystemCallError) in
                let clock = Int(Int32(bitPattern: entry.clockid))
                let made = Descriptor(owning: Int32(try systemCall(.timerfd_create, clock, 0o2000000)))
                try setStatusFlags(made.number, entry.flags)
                return made
            }
            try context.files.add(member.id, made)
        }
    }

    /// Starts the timer. What it had left to run, it still has, but for a deadline in the time of the day.
    static func start(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let (timer, number) = (entry.tfd, try context.files.number(entry.id))
        var value = (timer.vsec, timer.vnsec)
        // CRIU writes a repeating timer that was not read in time as it stands.
        if hasExpired(timer) { value = (timer.isec, timer.insec) }
        if timer.settimeFlags & absolute != 0, value != (0, 0) {
            value =
                timer.hasDeadlineSec
                ? (timer.deadlineSec, max(timer.deadlineNsec, timer.deadlineSec == 0 ? 1 : 0))
                : sum(try time(of: timer.clockid), value)
        }
        var time = clinux_itimerspec(
            interval_seconds: Int64(bitPattern: timer.isec), interval_nanoseconds: Int64(bitPattern: timer.insec),
            value_seconds: Int64(bitPattern: value.0), value_nanoseconds: Int64(bitPattern: value.1))
        try attempt("start a timerfd") { () throws(SystemCallError) in
            try withAddress(of: &time) { (time) throws(SystemCallError) in
                try systemCall(.timerfd_settime, Int(number), Int(timer.settimeFlags), time, 0)
            }
        }
        if timer.ticks > 0 { try setTicks(number, timer.ticks) }
    }

    /// Sets the number of expirations that nobody has read.
    static func setTicks(_ number: Int32, _ ticks: UInt64) throws(Failure) {
        var ticks = ticks
        try attempt("set a timerfd's ticks", advice: "The kernel needs CONFIG_CHECKPOINT_RESTORE") {
            () throws(SystemCallError) in
            try withAddress(of: &ticks) { (ticks) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), 0x4008_5400, ticks)  // TFD_IOC_SET_TICKS
            }
        }
    }
}

extension DescriptorInformation {
    /// The decimal numbers in a line of the kind's own.
    fileprivate func numbers(_ key: String) -> [UInt64] {
        for line in lines where line.starts(with: (key + ":").utf8) {
            return line.split { !(0x30...0x39).contains($0) }.compactMap { UInt64(String(decoding: $0, as: UTF8.self)) }
        }
        return []
    }
}
