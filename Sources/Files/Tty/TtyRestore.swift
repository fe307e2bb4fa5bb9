internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import SystemPackage

/// The terminals of a restore.
final class TtyRestore {
    /// Terminals that a session can have as its controlling one, by device number.
    struct Source {
        /// The file to take it through.
        let file: UInt32
        let info: TtyInfoEntry
        /// Whether it is the terminal of our caller.
        var isCallers = false
        /// Whether the user passed it for this purpose.
        var isPassed = false
    }

    private(set) var infos: [UInt32: TtyInfoEntry] = [:]
    private var queues: [UInt32: TtyDataEntry] = [:]
    /// The path entry of each terminal, and the info it belongs to.
    private(set) var sources: [UInt32: Source] = [:]
    /// Session leaders that have their terminal.
    var controlled: [TaskID: Source] = [:]
    /// `/dev/tty` and its like, to be opened by tasks.
    private(set) var current: [FileEntry] = []
    private var closed: Set<UInt32> = []

    /// Our standard input, which takes the place of the caller's terminal.
    private static let callers = Terminal(0)
    /// Indices are below this (`NR_UNIX98_PTY_MAX`).
    private static let mostPairs: UInt32 = 1 << 20

    static func of(_ context: RestoreContext) -> TtyRestore { context.state(TtyRestore.self) { TtyRestore() } }

    // MARK: load

    func load(_ context: RestoreContext) throws(Failure) {
        for entry in try context.images.loadAll(.ttyInformation, as: TtyInfoEntry.self) {
            guard infos.updateValue(entry, forKey: entry.id) == nil else {
                throw Failure(.corruptImage, "tty-info.img has two terminals with the id \(entry.id)")
            }
            guard entry.type != .pty || entry.hasPty && entry.pty.index < TtyRestore.mostPairs else {
                throw Failure(.corruptImage, "the terminal \(entry.id) of tty-info.img has no index")
            }
        }
        for entry in try context.images.loadAll(.ttyData, as: TtyDataEntry.self) {
            guard infos[entry.ttyID] != nil, entry.data.count <= 1 << 20, entry.other.count <= 1 << 20 else {
                throw Failure(
                    .corruptImage, "the contents of the terminal \(entry.ttyID) in tty-data.img make no sense")
            }
            queues[entry.ttyID] = entry
        }
        try checkOutside(context)
    }

    func info(_ entry: FileEntry) throws(Failure) -> TtyInfoEntry {
        guard let info = infos[entry.tty.ttyInfoID] else {
            throw Failure(.corruptImage, "the terminal \(entry.id) is not in tty-info.img")
        }
        return info
    }

    private static func name(_ info: TtyInfoEntry) -> String { TtyDump.name(UInt64(info.rdev), UInt64(info.dev)) }

    private static func isPassed(_ info: TtyInfoEntry, _ context: RestoreContext) -> Bool {
        context.policy.inherited[name(info)] != nil
    }

    private static func isMaster(_ info: TtyInfoEntry) -> Bool { TerminalDevice(UInt64(info.rdev)) == .master }

    private static func isHungUp(_ info: TtyInfoEntry) -> Bool { !info.hasTermios }

    /// What must come from outside, before anything is created.
    private func checkOutside(_ context: RestoreContext) throws(Failure) {
        var (masters, slaves): (Set<UInt32>, Set<UInt32>) = ([], [])
        for entry in context.entries(of: .tty) where Tty.restores(entry) {
            let info = try info(entry)
            if TtyRestore.isPassed(info, context) { continue }
            guard info.type != .extTty else {
                throw Failure(
                    .denied, "the terminal \(TtyRestore.name(info)) was left outside at the dump and none is passed",
                    advice: "Pass one with --inherit-fd fd[N]:\(TtyRestore.name(info))")
            }
            guard info.type == .pty, !TtyRestore.isHungUp(info) else { continue }
            if TtyRestore.isMaster(info) { masters.insert(info.pty.index) } else { slaves.insert(info.pty.index) }
        }
        let alone = slaves.subtracting(masters).sorted()
        guard let first = alone.first else { return }
        guard context.policy.shellJob else {
            throw Failure(
                .denied, "the master end of /dev/pts/\(first) was outside of the tree",
                advice: "Pass --shell-job to take your terminal instead")
        }
        guard alone.count == 1 else {
            throw Failure(
                .denied, "the master ends of \(alone.count) terminals were outside of the tree",
                advice: "--shell-job replaces one; pass the others with --inherit-fd")
        }
        do throws(SystemCallError) { _ = try TtyRestore.callers.settings() } catch {
            throw Failure(
                .denied, "standard input, which is to take the place of /dev/pts/\(first), is no terminal",
                advice: "Run the restore in a terminal", cause: error)
        }
    }

    // MARK: make

    func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        var live: [UInt32: [FileEntry]] = [:]
        var hungUp: [UInt32: [FileEntry]] = [:]
        for member in members {
            let info = try info(member)
            if TtyRestore.isPassed(info, context) {
                try during(.file(TtyRestore.name(info))) { () throws(Failure) in try makePassed(member, info, context) }
                continue
            }
            switch info.type {
            case .pty where TtyRestore.isHungUp(info): hungUp[info.pty.index, default: []].append(member)
            case .pty: live[info.pty.index, default: []].append(member)
            case .ctty: current.append(member)
            default:
                let path = try path(member, context)
                try during(.file(String(decoding: path.name, as: UTF8.self))) { () throws(Failure) in
                    try makeDevice(member, info, path, context)
                }
            }
        }
        // First those that are gone: a living one may have their index.
        try makeHungUp(hungUp, context)
        try makePairs(live, context)
    }

    /// The path entry of a terminal.
    private func path(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) -> RegFileEntry {
        guard let other = context.entry(entry.tty.hasRegfID ? entry.tty.regfID : entry.id), other.hasReg,
            other.reg.name.first == 0x2f, !other.reg.name.contains(0)
        else { throw Failure(.corruptImage, "the terminal \(entry.id) has no path") }
        return other.reg
    }

    private func add(_ source: Source, _ device: UInt32) { if sources[device] == nil { sources[device] = source } }

    private func makePassed(_ member: FileEntry, _ info: TtyInfoEntry, _ context: RestoreContext) throws(Failure) {
        guard let number = context.policy.inherited[TtyRestore.name(info)] else { return }
        let made = try reopen(number, member.tty.flags)
        try setState(Terminal(made.number), info, context)
        try context.files.add(member.id, made)
        add(Source(file: member.id, info: info, isPassed: true), info.rdev)
    }

    /// A new description of a terminal that we have, or ours if it can't be opened again.
    private func reopen(_ number: Int32, _ flags: UInt32) throws(Failure) -> Descriptor {
        try attempt("open the terminal that is our descriptor \(number)") { () throws(SystemCallError) in
            let mode = OpenFlags(rawValue: Int32(flags & 3)).union([.nonBlocking, .noControllingTerminal])
            guard let made = try? openFile("/proc/self/fd/\(number)", mode) else {
                return Descriptor(owning: Int32(try systemCall(.fcntl, Int(number), 1030, 3)))
            }
            try setStatusFlags(made.number, flags)
            return made
        }
    }

    private func makeDevice(
        _ member: FileEntry, _ info: TtyInfoEntry, _ path: RegFileEntry, _ context: RestoreContext
    ) throws(Failure) {
        let made = try context.view.at(mount: path.mntID) { () throws(Failure) in
            let place = try RestoredRemaps.of(context).prepare(path, context)
            return try attempt("open the terminal", code: .conflict) { () throws(SystemCallError) in
                let mode = OpenFlags(rawValue: Int32(member.tty.flags & 3))
                let made = try openFile(FilePath(bytes: place), mode.union([.nonBlocking, .noControllingTerminal]))
                try setStatusFlags(made.number, member.tty.flags)
                return made
            }
        }
        try RegularFile.check(path, made.number, context.policy)
        let number = made.number
        let status = try attempt("look at the terminal") { () throws(SystemCallError) in
            try FileStatus.read(in: number)
        }
        guard UInt32(truncatingIfNeeded: status.representedDevice) == info.rdev else {
            throw Failure(.conflict, "the path leads to another device than at the dump")
        }
        try setState(Terminal(number), info, context)
        try context.files.add(member.id, made)
        add(Source(file: member.id, info: info), info.hasTerminal ? info.terminal : info.rdev)
    }

    /// Sets what differs: a terminal in use is better left alone.
    private func setState(_ terminal: Terminal, _ info: TtyInfoEntry, _ context: RestoreContext) throws(Failure) {
        try attempt("set the terminal") { () throws(SystemCallError) in
            try withoutStops { () throws(SystemCallError) in
                if info.hasWinsize {
                    let size = TtyRestore.windowSize(info)
                    if try terminal.bytes(.windowSize, count: 8) != size { try terminal.set(.setWindowSize, size) }
                }
                if info.hasTermios { try TtyRestore.set(info.termios.settings, on: terminal) }
                if info.hasTermiosLocked {
                    let locked = info.termiosLocked.settings.bytes.prefix(TerminalSettings.sizeWithoutSpeeds)
                    if try terminal.bytes(.lockedSettings, count: locked.count) != Array(locked) {
                        try terminal.set(.setLockedSettings, Array(locked))
                    }
                }
            }
        }
    }

    private static func set(_ settings: TerminalSettings, on terminal: Terminal) throws(SystemCallError) {
        var now = try terminal.settings()
        // Images of CRIU know no speeds: they are then as the control flags say.
        if settings.outputSpeed == 0 { (now.inputSpeed, now.outputSpeed) = (0, 0) }
        if now != settings { try terminal.set(.setSettings, settings.bytes) }
    }

    private static func windowSize(_ info: TtyInfoEntry) -> [UInt8] {
        [info.winsize.wsRow, info.winsize.wsCol, info.winsize.wsXpixel, info.winsize.wsYpixel].flatMap {
            [UInt8](bytesOf: UInt16(truncatingIfNeeded: $0))
        }
    }

    /// Lets us set our own terminal from the background: blocks SIGTTOU meanwhile.
    private func withoutStops(_ body: () throws(SystemCallError) -> Void) throws(SystemCallError) {
        var (blocked, before): (UInt64, UInt64) = (1 << 21, 0)
        try withAddress(of: &blocked) { (blocked) throws(SystemCallError) in
            try withAddress(of: &before) { (before) throws(SystemCallError) in
                try systemCall(.rt_sigprocmask, 0, blocked, before, 8)
            }
        }
        let outcome = Result { () throws(SystemCallError) in try body() }
        try withAddress(of: &before) { (before) throws(SystemCallError) in
            try systemCall(.rt_sigprocmask, 2, before, 0, 8)
        }
        try outcome.get()
    }

    // MARK: pairs

    /// Slave ends whose master was closed: they get one that is closed again.
    private func makeHungUp(_ members: [UInt32: [FileEntry]], _ context: RestoreContext) throws(Failure) {
        guard !members.isEmpty else { return }
        let masters = PairMasters()
        try masters.open(members.mapValues { _ in PairMasters.Wish() }, mayDiffer: true)
        for (index, members) in members {
            try during(.file("/dev/pts/\(index)")) { () throws(Failure) in
                let master = Terminal(try masters.number(index))
                try attempt("open the slave end") { () throws(SystemCallError) in try master.set(.setLock, 0) }
                for member in members {
                    let made = try openSlave(member, of: master, index, context)
                    try context.files.add(member.id, made)
                }
            }
        }
    }

    private func makePairs(_ members: [UInt32: [FileEntry]], _ context: RestoreContext) throws(Failure) {
        var wishes: [UInt32: PairMasters.Wish] = [:]
        for (index, members) in members {
            for member in members where TtyRestore.isMaster(try info(member)) {
                guard wishes[index] == nil else {
                    throw Failure(.corruptImage, "the terminal \(index) has two master ends")
                }
                wishes[index] = PairMasters.Wish(
                    path: Array(try path(member, context).name), mode: Int32(member.tty.flags & 3))
            }
        }
        let masters = PairMasters()
        try masters.open(wishes, mayDiffer: false)
        try context.mountTerminals()
        for index in members.keys.sorted() {
            let members = members[index] ?? []
            try during(.file("/dev/pts/\(index)")) { () throws(Failure) in
                if wishes[index] == nil {
                    for member in members { try makeCallers(member, context) }
                } else {
                    try makePair(index, try masters.take(index), members, context)
                }
            }
        }
    }

    private func makePair(
        _ index: UInt32, _ master: consuming Descriptor, _ members: [FileEntry], _ context: RestoreContext
    ) throws(Failure) {
        let terminal = Terminal(master.number)
        try attempt("unlock the slave end") { () throws(SystemCallError) in try terminal.set(.setLock, 0) }
        var masterEntry: FileEntry?
        var first: (entry: FileEntry, number: Int32)?
        for member in members {
            if TtyRestore.isMaster(try info(member)) {
                masterEntry = member
                continue
            }
            let made = try openSlave(member, of: terminal, index, context)
            if first == nil { first = (member, made.number) }
            try context.files.add(member.id, made)
        }
        guard let masterEntry else { throw Failure(.bug, "no master") }
        let info = try info(masterEntry)
        try setSize(terminal, info)
        try fill(index, terminal, first, info)
        try setState(terminal, info, context)
        try setOwner(index, first, info, context)
        try attempt("set the flags of the master end") { () throws(SystemCallError) in
            try setStatusFlags(terminal.number, masterEntry.tty.flags)
        }
        try context.files.add(masterEntry.id, master)
        add(Source(file: masterEntry.id, info: info), TerminalDevice.slaveDevice(index))
    }

    private func setSize(_ terminal: Terminal, _ info: TtyInfoEntry) throws(Failure) {
        guard info.hasWinsize else { return }
        try attempt("set the window size") { () throws(SystemCallError) in
            try terminal.set(.setWindowSize, TtyRestore.windowSize(info))
        }
    }

    private func openSlave(
        _ member: FileEntry, of master: Terminal, _ index: UInt32, _ context: RestoreContext
    ) throws(Failure) -> Descriptor {
        let name = Array(try path(member, context).name)
        return try attempt("open the slave end") { () throws(SystemCallError) in
            let mode = OpenFlags(rawValue: Int32(member.tty.flags & 3)).union([.nonBlocking, .noControllingTerminal])
            let bound = openBound(name, mode, index)
            let slave = if let bound { Descriptor(owning: bound) } else { try master.openSlave(mode) }
            try setStatusFlags(slave.number, member.tty.flags)
            return slave
        }
    }

    /// A slave end by another name that it is bound to. Our descriptor, or nil.
    private func openBound(_ name: [UInt8], _ mode: OpenFlags, _ index: UInt32) -> Int32? {
        guard !name.starts(with: "/dev/pts/".utf8), let made = try? openFile(FilePath(bytes: name), mode),
            let status = try? FileStatus.read(in: made.number),
            UInt32(truncatingIfNeeded: status.representedDevice) == TerminalDevice.slaveDevice(index)
        else { return nil }
        return made.release()
    }

    /// The caller's terminal takes the place of one whose master end was outside.
    private func makeCallers(_ member: FileEntry, _ context: RestoreContext) throws(Failure) {
        let info = try info(member)
        let made = try reopen(TtyRestore.callers.number, member.tty.flags)
        try setState(Terminal(made.number), info, context)
        try context.files.add(member.id, made)
        add(Source(file: member.id, info: info, isCallers: true), TerminalDevice.slaveDevice(info.pty.index))
    }

    private func setOwner(
        _ index: UInt32, _ slave: (entry: FileEntry, number: Int32)?, _ info: TtyInfoEntry, _ context: RestoreContext
    ) throws(Failure) {
        var (uid, gid, mode) = (info.slaveUid, info.slaveGid, info.slaveMode)
        if let slave {
            let own = try self.info(slave.entry)
            if own.hasUid { (uid, gid) = (own.uid, own.gid) }
            let path = try path(slave.entry, context)
            mode = path.hasMode ? path.mode & 0o7777 : 0o600
        } else if !info.hasSlaveMode {
            return
        }
        let owner = (context.owners.ourUser(uid), context.owners.ourGroup(gid))
        try attempt("set owner and mode of the slave end") { () throws(SystemCallError) in
            guard let number = slave?.number else {
                let path = try openFile("/dev/pts/\(index)", [.path])
                return try set(path.number, owner, mode, index)
            }
            try set(number, owner, mode, index)
        }
    }

    private func set(
        _ number: Int32, _ owner: (user: Int, group: Int), _ mode: UInt32, _ index: UInt32
    ) throws(SystemCallError) {
        let now = try FileStatus.read(in: number)
        guard UInt32(truncatingIfNeeded: now.representedDevice) == TerminalDevice.slaveDevice(index) else { return }
        if Int(now.uid) != owner.user || Int(now.gid) != owner.group {
            try withCString("") { (empty) throws(SystemCallError) in
                try systemCall(.fchownat, Int(number), empty, owner.user, owner.group, 0x1000)  // AT_EMPTY_PATH
            }
        }
        if now.mode & 0o7777 != mode {
            try withCString("/proc/self/fd/\(number)") { (path) throws(SystemCallError) in
                try systemCall(.fchmodat, Int(currentDirectory), path, Int(mode))
            }
        }
    }

    // MARK: contents

    /// Puts back what waited at both ends.
    private func fill(
        _ index: UInt32, _ master: Terminal, _ slave: (entry: FileEntry, number: Int32)?, _ info: TtyInfoEntry
    ) throws(Failure) {
        let atMaster = queues[info.id]
        let lines: Lines
        if let slave {
            let data = queues[slave.entry.tty.ttyInfoID]
            lines = Lines(bytes: data.map { Array($0.data) } ?? [], endsOfFile: data?.endsOfFile ?? [])
        } else {
            lines = Lines(
                bytes: atMaster.map { Array($0.other) } ?? [], endsOfFile: atMaster?.otherEndsOfFile ?? [])
        }
        let output = atMaster.map { Array($0.data) } ?? []
        guard slave != nil || info.slaveClosed || !lines.isEmpty || !output.isEmpty else { return }
        try attempt("put back what waited in the terminal") { () throws(SystemCallError) in
            // An end that was closed is opened and closed here; what waits stays.
            try master.withSlave(slave?.number) { (end) throws(SystemCallError) in
                guard !lines.isEmpty || !output.isEmpty else { return }
                var plain = info.termios.settings.transparent()
                let (input, mark) = lines.marked()
                if mark != 0 { plain.characters[TerminalSettings.endOfFile] = mark }
                plain.local |= TerminalSettings.echo
                if !input.isEmpty {
                    try master.set(.setSettings, plain.bytes)
                    try TtyRestore.type(input, without: mark, at: master)
                    plain.local &= ~TerminalSettings.echo
                }
                guard !output.isEmpty else { return }
                try master.set(.setSettings, plain.bytes)
                let writing = try openFile(
                    "/proc/self/fd/\(end.number)", [.writeOnly, .nonBlocking, .noControllingTerminal])
                try TtyRestore.put(output, to: writing.number)
            }
        }
    }

    /// What the kernel holds of input at most, less one (`N_TTY_BUF_SIZE`).
    private static let bufferSize = 4095

    /// Writes input to a master. The kernel processes it later, under the settings that hold then; each piece is
    /// echoed when it is done, so we wait for the echo.
    private static func type(_ input: [UInt8], without mark: UInt8, at master: Terminal) throws(SystemCallError) {
        var at = 0
        while at < input.count {
            let end = min(at + 512, input.count)
            try put(Array(input[at..<end]), to: master.number)
            // What does not fit waits unprocessed until somebody reads.
            if end <= bufferSize {
                let echoed = input[at..<end].count { mark == 0 || $0 != mark }
                try swallow(echoed, at: master)
            }
            at = end
        }
    }

    private static func swallow(_ count: Int, at master: Terminal) throws(SystemCallError) {
        var left = count
        var room = [UInt8](repeating: 0, count: 512)
        while left > 0 {
            guard try poll(master.number, for: Terminal.readable, milliseconds: 1000) != 0 else { return }
            left -= try room.withAddress { (address, _) throws(SystemCallError) in
                try systemCall(.read, Int(master.number), address, min(left, 512))
            }
        }
    }

    /// Writes as much as fits: nobody reads yet.
    private static func put(_ bytes: [UInt8], to number: Int32) throws(SystemCallError) {
        try bytes.withConstantAddress { (address, _) throws(SystemCallError) in
            var done = 0
            while done < bytes.count {
                do throws(SystemCallError) {
                    let count = try systemCall(.write, Int(number), address + done, bytes.count - done)
                    if count == 0 { return }
                    done += count
                } catch {
                    if error.errno == .EAGAIN { return }
                    throw error
                }
            }
        }
    }

    // MARK: last

    /// What would be in the way until all descriptions are made.
    func close(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let info = try info(entry)
        guard !TtyRestore.isHungUp(info), closed.insert(info.id).inserted else { return }
        let terminal = Terminal(try context.files.number(entry.id))
        try attempt("set the modes of the terminal") { () throws(SystemCallError) in
            if info.type == .pty, TtyRestore.isMaster(info) {
                if info.packetMode { try terminal.set(.setPacketMode, 1) }
                if info.locked { try terminal.set(.setLock, 1) }
            }
            if info.exclusive { try terminal.call(.setExclusive) }
        }
    }
}

/// Master ends of pairs with given indices.
///
/// The kernel gives out the lowest index that is free, so those that nobody wants are held until all others are there.
private final class PairMasters {
    /// How a master is to be opened.
    struct Wish {
        var path = Array("/dev/ptmx".utf8)
        var mode = OpenFlags.readWrite.rawValue
    }

    private var found: [UInt32: Int32] = [:]
    private var spare: [Int32] = []

    deinit { for number in spare + Array(found.values) { _ = try? systemCall(.close, Int(number)) } }

    /// - Parameter mayDiffer: an index that is taken may be replaced by another.
    func open(_ wishes: [UInt32: Wish], mayDiffer: Bool) throws(Failure) {
        var missing = wishes.keys.sorted()[...]
        while let next = missing.first {
            let (number, index) = try open(Wish())
            if index < next {
                spare.append(number)
                continue
            }
            guard index == next else {
                guard mayDiffer else {
                    spare.append(number)
                    throw Failure(
                        .conflict, "the terminal /dev/pts/\(next) is in use by others",
                        advice: "Close it, or restore into a new mount namespace with its own devpts")
                }
                found[next] = number
                missing.removeFirst()
                continue
            }
            missing.removeFirst()
            found[index] = number
            if let wish = wishes[index], wish.path != Wish().path || wish.mode != Wish().mode {
                try replace(index, wish)
            }
        }
        for number in spare { _ = try? systemCall(.close, Int(number)) }
        spare = []
    }

    private func open(_ wish: Wish) throws(Failure) -> (number: Int32, index: UInt32) {
        try attempt("create a pair of terminal ends", advice: "Raise kernel.pty.max") { () throws(SystemCallError) in
            let mode = OpenFlags(rawValue: wish.mode).union([.nonBlocking, .noControllingTerminal])
            let made = try openFile(FilePath(bytes: wish.path), mode)
            let index = try Terminal(made.number).word(.index)
            return (made.release(), index)
        }
    }

    /// Opens a master again by another path or for another use; its index is free for a moment.
    private func replace(_ index: UInt32, _ wish: Wish) throws(Failure) {
        if let old = found.removeValue(forKey: index) { _ = try? systemCall(.close, Int(old)) }
        let (number, got) = try open(wish)
        guard got == index else {
            spare.append(number)
            throw Failure(.conflict, "the terminal /dev/pts/\(index) is in use by others", advice: "Try again")
        }
        found[index] = number
    }

    func number(_ index: UInt32) throws(Failure) -> Int32 {
        guard let number = found[index] else { throw Failure(.bug, "no master end \(index)") }
        return number
    }

    func take(_ index: UInt32) throws(Failure) -> Descriptor {
        guard let number = found.removeValue(forKey: index) else { throw Failure(.bug, "no master end \(index)") }
        return Descriptor(owning: number)
    }
}
