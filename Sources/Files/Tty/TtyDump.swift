internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs

/// The terminals met by a dump.
final class TtyDump {
    /// What descriptions of the same end have in common.
    private enum End: Hashable {
        case master(UInt32)
        case slave(UInt32, isHungUp: Bool)
        /// `/dev/tty`, with the terminal behind it.
        case current(UInt32)
        case device(UInt64)
        case outside(device: UInt64, on: UInt64)
    }

    /// A pair of which the tree has an end.
    struct Pair {
        var master: OpenFile?
        var slave: OpenFile?
        var settings = TerminalSettings()
    }

    private(set) var pairs: [UInt32: Pair] = [:]
    private var ids: [End: UInt32] = [:]
    private var usedIDs: Set<UInt32> = []
    private var infos: [TtyInfoEntry] = []
    /// Terminals that are the controlling one of some task of the tree: session and foreground group.
    private var controlled: [UInt32: (session: TaskID, group: Int32)]?

    static func of(_ context: DumpContext) -> TtyDump { context.state(TtyDump.self) { TtyDump() } }

    func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> TtyFileEntry {
        let facts = file.facts
        guard let device = TerminalDevice(facts.status.representedDevice) else { throw Failure(.bug, "no terminal") }
        var entry = TtyFileEntry()
        entry.id = file.id
        entry.flags = facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        let terminal = Terminal(file.handle.number)
        // Only a terminal that was hung up has none any more.
        let behind = try? terminal.word(.device)
        let name = TtyDump.name(facts.status.representedDevice, facts.status.device)
        let isOutside = context.policy.external.contains(name)
        let end: End
        var index: UInt32?
        switch device {
        case _ where isOutside: end = .outside(device: facts.status.representedDevice, on: facts.status.device)
        case .master:
            let number = try attempt("find out which terminal it is the master of") { () throws(SystemCallError) in
                try terminal.word(.index)
            }
            end = .master(number)
            index = number
        case .slave(let number):
            end = .slave(number, isHungUp: behind == nil)
            index = number
        case .current:
            guard let behind, session(of: behind, context) != nil else {
                throw Failure(
                    .unsupported, "the terminal behind it is the controlling one of no task in the tree any more",
                    advice: "Close it before the dump")
            }
            end = .current(behind)
        default: end = .device(facts.status.representedDevice)
        }
        if !isOutside { entry.regfID = try describePath(of: file, isHungUp: behind == nil && index != nil, context) }
        if let index, behind != nil { remember(file, index, device) }
        if let known = ids[end] {
            entry.ttyInfoID = known
        } else {
            let id = newID(end)
            ids[end] = id
            entry.ttyInfoID = id
            infos.append(try describe(end, id, index, terminal, behind, file, context))
        }
        return entry
    }

    /// The name by which `--external` and `--inherit-fd` know a terminal.
    static func name(_ represented: UInt64, _ device: UInt64) -> String {
        "tty[\(String(represented, radix: 16)):\(String(device, radix: 16))]"
    }

    private func describePath(of file: OpenFile, isHungUp: Bool, _ context: DumpContext) throws(Failure) -> UInt32 {
        let id = context.fileIndex.newID()
        var named = FileEntry(.reg, id)
        if isHungUp {
            // The path went with the master; the restored one will, too.
            var path = file.facts.target
            let deleted = Array(" (deleted)".utf8)
            if path.suffix(deleted.count).elementsEqual(deleted) { path.removeLast(deleted.count) }
            (named.reg.id, named.reg.flags, named.reg.pos) = (id, file.facts.statusFlags, 0)
            named.reg.fown = try FileOwner.dump(file, context)
            named.reg.mode = file.facts.status.mode
            named.reg.name = imageBytes(path)
        } else {
            named.reg = try RegularFile.describe(file, as: id, context)
        }
        context.files.append(named)
        return id
    }

    private func remember(_ file: OpenFile, _ index: UInt32, _ device: TerminalDevice) {
        if device == .master {
            pairs[index, default: Pair()].master = file
        } else if pairs[index]?.slave == nil {
            pairs[index, default: Pair()].slave = file
        }
    }

    /// CRIU's numbers: twice the index, odd for masters; its indices of other terminals begin at 1002.
    private func newID(_ end: End) -> UInt32 {
        let usual: UInt32
        switch end {
        case .master(let index): usual = index <= 1000 ? index << 1 | 1 : 1 << 22 | index << 1 | 1
        case .slave(let index, isHungUp: false): usual = index <= 1000 ? index << 1 : 1 << 22 | index << 1
        case .slave: usual = 1 << 21
        case .current: usual = 2012
        case .device(let device):
            switch TerminalDevice(device) {
            case .console: usual = 2004
            case .virtual: usual = 2008
            default: usual = 2020
            }
        case .outside: usual = 2026
        }
        var id = usual
        // CRIU takes no ids above 2176 of terminals that have settings.
        if usedIDs.contains(id), usual < 1 << 21 { id = 2028 }
        while usedIDs.contains(id) { id += 2 }
        usedIDs.insert(id)
        return id
    }

    private func session(of terminal: UInt32, _ context: DumpContext) -> (session: TaskID, group: Int32)? {
        if controlled == nil {
            var found: [UInt32: (session: TaskID, group: Int32)] = [:]
            for process in context.processes where process.stat.terminal != 0 {
                found[UInt32(truncatingIfNeeded: process.stat.terminal)] = (
                    process.stat.session, max(process.stat.foregroundGroup, 0)
                )
            }
            controlled = found
        }
        return controlled?[terminal]
    }

    private func describe(
        _ end: End, _ id: UInt32, _ index: UInt32?, _ terminal: Terminal, _ behind: UInt32?, _ file: OpenFile,
        _ context: DumpContext
    ) throws(Failure) -> TtyInfoEntry {
        let status = file.facts.status
        var entry = TtyInfoEntry()
        entry.id = id
        entry.rdev = UInt32(truncatingIfNeeded: status.representedDevice)
        entry.dev = UInt32(truncatingIfNeeded: status.device)
        (entry.uid, entry.gid) = context.owners.owner(of: status)
        (entry.locked, entry.exclusive, entry.packetMode) = (false, false, false)
        (entry.sid, entry.pgrp) = (0, 0)
        switch end {
        case .master, .slave: entry.type = .pty
        case .current: entry.type = .ctty
        case .outside: entry.type = .extTty
        case .device(let device):
            switch TerminalDevice(device) {
            case .console: entry.type = .console
            case .virtual: entry.type = .vt
            default: entry.type = .serial
            }
        }
        if let index { entry.pty.index = index }
        guard let behind else { return entry }
        if let (session, group) = session(of: behind, context) {
            let (session, group) = (context.numbers[session], context.numbers[TaskID(group)])
            (entry.sid, entry.pgrp) = (UInt32(bitPattern: session), UInt32(bitPattern: group))
        }
        try attempt("look at the terminal") { () throws(SystemCallError) in
            try readState(of: terminal, into: &entry)
        }
        switch end {
        case .master(let index): try describeMaster(index, terminal, &entry, context)
        case .current, .device: entry.terminal = behind
        default: break
        }
        if let index { pairs[index]?.settings = try settings(of: terminal) }
        return entry
    }

    private func settings(of terminal: Terminal) throws(Failure) -> TerminalSettings {
        let discipline = try attempt("read the line discipline") { () throws(SystemCallError) in
            try terminal.word(.discipline)
        }
        guard discipline == 0 else {
            throw Failure(
                .unsupported, "the terminal has the line discipline \(discipline), which can't be dumped",
                advice: "Set it back to N_TTY before the dump")
        }
        return try attempt("read the settings") { () throws(SystemCallError) in try terminal.settings() }
    }

    private func readState(of terminal: Terminal, into entry: inout TtyInfoEntry) throws(SystemCallError) {
        entry.exclusive = try terminal.word(.exclusive) != 0
        entry.termios = TermiosEntry(try terminal.settings())
        entry.termiosLocked = TermiosEntry(
            TerminalSettings(try terminal.bytes(.lockedSettings, count: TerminalSettings.sizeWithoutSpeeds)))
        let size = try terminal.bytes(.windowSize, count: 8)
        func part(_ index: Int) -> UInt32 { UInt32(size.load(UInt16.self, at: 2 * index) ?? 0) }
        (entry.winsize.wsRow, entry.winsize.wsCol) = (part(0), part(1))
        (entry.winsize.wsXpixel, entry.winsize.wsYpixel) = (part(2), part(3))
    }

    private func describeMaster(
        _ index: UInt32, _ terminal: Terminal, _ entry: inout TtyInfoEntry, _ context: DumpContext
    ) throws(Failure) {
        try attempt("look at the master end") { () throws(SystemCallError) in
            entry.locked = try terminal.word(.lock) != 0
            entry.packetMode = try terminal.word(.packetMode) != 0
            entry.slaveClosed = try terminal.poll(Terminal.readable) & Terminal.hungUp != 0
        }
        if entry.sid == 0, let session = try? terminal.word(.session) {
            // A session outside of the tree.
            (entry.sid, entry.pgrp) = (
                context.numbers.number(session), context.numbers.number((try? terminal.word(.group)) ?? 0)
            )
        }
        // The slave end of another instance of devpts has no path here.
        if let slave = try? FileStatus.read("/dev/pts/\(index)", in: currentDirectory),
            UInt32(truncatingIfNeeded: slave.representedDevice) == TerminalDevice.slaveDevice(index)
        {
            (entry.slaveUid, entry.slaveGid) = context.owners.owner(of: slave)
            entry.slaveMode = slave.mode & 0o7777
        }
    }

    // MARK: finish

    func finish(_ context: DumpContext) throws(Failure) {
        try checkOutside(context)
        let queues = try TtyQueues(pairs, infos, context.numbers).copy(context)
        try context.images.write(.ttyInformation, infos)
        let data = context.images.create(.ttyData)
        for entry in queues { try data.append(entry) }
        try data.finish()
    }

    /// Terminals whose other end or session is outside of the tree.
    private func checkOutside(_ context: DumpContext) throws(Failure) {
        guard !context.policy.shellJob || pairs.values.count(where: { $0.master == nil }) > 1 else { return }
        let living = Set(context.processes.map { UInt32(bitPattern: $0.number) })
        for index in pairs.keys.sorted() {
            guard let pair = pairs[index] else { continue }
            guard pair.master == nil, let slave = pair.slave else { continue }
            let status = slave.facts.status
            let name = TtyDump.name(status.representedDevice, status.device)
            try during(.dumping(slave.owner.id, slave.owner.name)) { () throws(Failure) in
                try during(.descriptor(slave.number)) { () throws(Failure) in
                    throw Failure(
                        .denied,
                        context.policy.shellJob
                            ? "\(slave.facts.text) is one of several terminals whose master end is outside of the tree"
                            : "\(slave.facts.text) is a terminal whose master end is outside of the tree",
                        advice: context.policy.shellJob
                            ? "--shell-job replaces one; pass --external \(name) for the others"
                            : "Pass --shell-job to exchange it for the terminal of the restore, "
                                + "or --external \(name) to pass one with --inherit-fd")
                }
            }
        }
        for entry in infos where entry.sid != 0 && entry.type != .extTty {
            guard !living.contains(entry.sid) else { continue }
            let text = entry.hasPty ? "/dev/pts/\(entry.pty.index)" : "A terminal (device \(entry.rdev))"
            throw Failure(
                .denied,
                "\(text) is the controlling terminal of the session \(entry.sid), which is outside of the tree",
                advice: "Pass --shell-job to let the tree join the session of your shell")
        }
    }
}

extension TermiosEntry {
    /// CRIU writes 19 words, of which the first hold the characters, packed.
    init(_ settings: TerminalSettings) {
        self.init()
        (cIflag, cOflag, cCflag, cLflag) = (settings.input, settings.output, settings.control, settings.local)
        cLine = UInt32(settings.discipline)
        (cIspeed, cOspeed) = (settings.inputSpeed, settings.outputSpeed)
        let packed = settings.characters + [UInt8](repeating: 0, count: 19 * 4 - settings.characters.count)
        cCc = (0..<19).map { packed.load(UInt32.self, at: 4 * $0) ?? 0 }
    }

    /// The settings.
    var settings: TerminalSettings {
        var settings = TerminalSettings()
        (settings.input, settings.output, settings.control, settings.local) = (cIflag, cOflag, cCflag, cLflag)
        settings.discipline = UInt8(truncatingIfNeeded: cLine)
        (settings.inputSpeed, settings.outputSpeed) = (cIspeed, cOspeed)
        let packed = cCc.prefix(5).flatMap { [UInt8](bytesOf: $0) }
        if packed.count == 20 { settings.characters = Array(packed.prefix(19)) }
        return settings
    }
}
