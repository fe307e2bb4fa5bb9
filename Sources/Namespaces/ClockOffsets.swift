internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Remote

/// The clocks of a time namespace: how far its monotonic and its boot clock are ahead of the host's.
struct ClockOffsets {
    /// Nanoseconds.
    private var monotonic: Int, boot: Int
    private static let second = 1_000_000_000

    /// Those that children of a task are born with, which are its own as far as we deal with it.
    private init(of task: String) throws(Failure) {
        let text = try attempt("read the clocks' offsets of \(task)") { () throws(SystemCallError) in
            String(decoding: try readWholeFile("/proc/\(task)/timens_offsets"), as: UTF8.self)
        }
        func offset(_ name: String) -> Int {
            for line in text.split(separator: "\n") {
                let words = line.split(separator: " ")
                guard words.count == 3, words[0] == name, let seconds = Int(words[1]), let rest = Int(words[2]) else {
                    continue
                }
                return seconds &* ClockOffsets.second &+ rest
            }
            return 0
        }
        (monotonic, boot) = (offset("monotonic"), offset("boottime"))
    }

    /// What one of our clocks shows, in nanoseconds.
    private static func now(_ clock: Int) throws(Failure) -> Int {
        var now: (Int, Int) = (0, 0)
        try attempt("read a clock") { () throws(SystemCallError) in
            try withAddress(of: &now) { (address) throws(SystemCallError) in
                try systemCall(.clock_gettime, clock, address)
            }
        }
        return now.0 * second + now.1
    }

    /// Writes what the tree's clocks show.
    static func dump(_ id: UInt32, of root: TaskID, _ context: DumpContext) throws(Failure) {
        let (ours, theirs) = (try ClockOffsets(of: "self"), try ClockOffsets(of: "\(root.rawValue)"))
        var entry = TimensEntry()
        entry.monotonic = try spec(now(1) - ours.monotonic + theirs.monotonic)
        entry.boottime = try spec(now(7) - ours.boot + theirs.boot)
        try context.images.write(.timeNamespace(id), [entry])
    }

    private static func spec(_ time: Int) -> Timespec {
        var spec = Timespec()
        (spec.tvSec, spec.tvNsec) = (UInt64(max(0, time) / second), UInt64(max(0, time) % second))
        return spec
    }

    private static func time(_ spec: Timespec) -> Int {
        Int(clamping: min(spec.tvSec, 1 << 33)) * second + Int(clamping: min(spec.tvNsec, UInt64(second)))
    }

    /// Has the tree's first task go to a new time namespace, whose clocks go on as they were.
    static func restore(_ entry: TimensEntry, in seed: Puppet, _ context: RestoreContext) throws(Failure) {
        var start = Batch()
        start.add(.unshare, .bits(NamespaceKind.time.flag), doing: "make a time namespace")
        try seed.run(start)
        let ours = try ClockOffsets(of: "self")
        func words(_ name: String, _ offset: Int) -> String {
            var (seconds, rest) = offset.quotientAndRemainder(dividingBy: second)
            if rest < 0 { (seconds, rest) = (seconds - 1, rest + second) }
            return "\(name) \(seconds) \(rest)\n"
        }
        let monotonic = time(entry.monotonic) - (try now(1)) + ours.monotonic
        let boot = time(entry.boottime) - (try now(7)) + ours.boot
        let text = words("monotonic", monotonic) + words("boottime", boot)
        let place = "/proc/\(seed.task.rawValue)"
        let namespace = try attempt("set the clocks", advice: "This needs CAP_SYS_TIME") { () throws(SystemCallError) in
            let file = try openFile(place + "/timens_offsets", .writeOnly)
            try writeAll(Array(text.utf8), to: file.number)
            return try openFile(place + "/ns/time_for_children")
        }
        let arrived = try context.deliver([namespace.number], to: seed)[0]
        var batch = Batch()
        batch.add(.setns, .descriptor(arrived), .bits(NamespaceKind.time.flag), doing: "enter the time namespace")
        batch.add(.close, .descriptor(arrived), doing: "close the time namespace")
        try seed.run(batch)
    }
}
