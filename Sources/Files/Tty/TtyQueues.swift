internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// What waits to be read at both ends of the pairs of a tree.
///
/// The kernel lets nobody look without taking. So the task that has the master takes everything and puts it back, in
/// one batch, which it ends even if we die in the middle: nothing can get lost. The settings under which it does so
/// change nothing and echo nothing. Where nothing waits, nothing is touched; but an unfinished line shows only when it is
/// taken.
struct TtyQueues {
    private let pairs: [UInt32: TtyDump.Pair]
    private let ids: [UInt32: (master: UInt32, slave: UInt32?)]
    private let packetMasters: Set<UInt32>
    private let locked: Set<UInt32>
    private let numbers: TaskNumbers

    /// The most that the kernel holds of finished input (`N_TTY_BUF_SIZE`), and of what comes after it.
    private static let piece = 4096, most = 18

    init(_ pairs: [UInt32: TtyDump.Pair], _ infos: [TtyInfoEntry], _ numbers: TaskNumbers) {
        var ids: [UInt32: (master: UInt32, slave: UInt32?)] = [:]
        var (packetMasters, locked): (Set<UInt32>, Set<UInt32>) = ([], [])
        for entry in infos where entry.hasPty && entry.hasTermios {
            let index = entry.pty.index
            if TerminalDevice(UInt64(entry.rdev)) == .master {
                ids[index] = (entry.id, ids[index]?.slave)
                if entry.packetMode { packetMasters.insert(index) }
                if entry.locked { locked.insert(index) }
            } else {
                ids[index] = (ids[index]?.master ?? 0, entry.id)
            }
        }
        (self.pairs, self.ids, self.packetMasters, self.locked) = (pairs, ids, packetMasters, locked)
        self.numbers = numbers
    }

    /// One pair whose queues are to be copied.
    private struct Order {
        let index: UInt32, master: OpenFile, settings: TerminalSettings
        /// Pieces to be read at each end, 0 if nothing waits there.
        var atMaster = 0, atSlave = 0
        /// Finished input that canonical mode shows, without ends of file.
        var shown = 0
        /// Whether it is known that something waits.
        var isSure: Bool { atMaster > 0 || shown > 0 || !settings.isCanonical }
    }

    func copy(_ context: DumpContext) throws(Failure) -> [TtyDataEntry] {
        var orders: [TaskID: [Order]] = [:]
        for index in pairs.keys.sorted() {
            guard let pair = pairs[index], let master = pair.master, let order = try look(index, pair, master, context)
            else { continue }
            orders[master.owner.id, default: []].append(order)
        }
        var entries: [TtyDataEntry] = []
        for process in context.processes {
            var rest = (orders[process.id] ?? [])[...]
            while !rest.isEmpty {
                // Half of the runway at a time.
                var (count, pieces) = (0, 0)
                for order in rest {
                    pieces += order.atMaster + order.atSlave
                    if count > 0, pieces > Int(Server.runwaySize) / 2 / TtyQueues.piece { break }
                    count += 1
                }
                try during(.dumping(process.id, process.name)) { () throws(Failure) in
                    entries += try copy(Array(rest.prefix(count)), process, context)
                }
                rest = rest.dropFirst(count)
            }
        }
        return entries
    }

    /// Finds out what waits, as far as one can without taking it.
    private func look(
        _ index: UInt32, _ pair: TtyDump.Pair, _ file: OpenFile, _ context: DumpContext
    ) throws(Failure) -> Order? {
        try during(.file("/dev/pts/\(index)")) { () throws(Failure) in
            var order = Order(index: index, master: file, settings: pair.settings)
            let master = Terminal(file.handle.number)
            let isLocked = locked.contains(index)
            try attempt("look at what waits in the terminal") { () throws(SystemCallError) in
                // A poll also lets the kernel finish what is under way.
                let state = try master.poll(Terminal.readable)
                order.atMaster = pieces(try master.word(.waiting))
                let wasClosed = state & Terminal.hungUp != 0
                guard pair.slave != nil || wasClosed && !isLocked else {
                    // An end that was never opened must stay so: the master would see that it was closed again.
                    if order.atMaster > 0 {
                        context.log.warning(
                            "what waits in the terminal \(index), whose slave end is not open, is not saved")
                    }
                    order.atMaster = 0
                    return
                }
                try master.withSlave(pair.slave?.handle.number) { (slave) throws(SystemCallError) in
                    let hasInput = try slave.poll(Terminal.readable) & Terminal.readable != 0
                    let waiting = try slave.word(.waiting)
                    order.shown = Int(waiting)
                    if hasInput || waiting > 0 || pair.settings.isCanonical { order.atSlave = max(pieces(waiting), 1) }
                }
            }
            return order.atMaster > 0 || order.atSlave > 0 ? order : nil
        }
    }

    private func pieces(_ waiting: UInt32) -> Int {
        waiting == 0 ? 0 : waiting < TtyQueues.piece - 2 ? 1 : TtyQueues.most
    }

    private struct Copy {
        var atMaster: [(Batch.Slot, Batch.Buffer)] = []
        var atSlave: [(Batch.Slot, Batch.Buffer)] = []

        static func bytes(_ reads: [(Batch.Slot, Batch.Buffer)], _ results: Results) -> [UInt8] {
            var bytes: [UInt8] = []
            for (slot, buffer) in reads {
                if let count = results.success(slot) { bytes += results.bytes(buffer).prefix(count) }
            }
            return bytes
        }
    }

    private func copy(_ orders: [Order], _ process: DumpedProcess, _ context: DumpContext) throws(Failure)
        -> [TtyDataEntry]
    {
        var taken = process.descriptors.map(\.number)
        // Another process of the same table has the list.
        if taken.isEmpty {
            taken = try attempt("list the descriptors", code: .vanished) { () throws(SystemCallError) in
                try listNumbers("/proc/\(process.id.rawValue)/fd")
            }
        }
        // The kernel gives a new descriptor the lowest number that is free; each order closes it again.
        let free = Int32(zip(taken, 0...).first { $0 != $1 }.map { $1 } ?? taken.count)
        var copies: [Copy] = []
        var batch = Batch()
        for order in orders { copies.append(add(order, slave: RemoteDescriptor(free), instead: nil, to: &batch)) }
        let results: Results
        do throws(Failure) { results = try context.run(batch, in: process) } catch {
            if orders.contains(where: \.isSure) { throw error }
            context.log.warning("unfinished lines in terminals of task \(process.id) are not saved: \(error)")
            return []
        }
        var entries: [TtyDataEntry] = []
        for (order, copy) in zip(orders, copies) {
            let lines = Lines(Copy.bytes(copy.atSlave, results), order.settings, shown: order.shown)
            if !lines.endsOfFile.isEmpty {
                // Taken as bytes, ends of file became zeros; this gives them back.
                var repair = Batch()
                let (bytes, mark) = lines.marked()
                _ = add(order, slave: RemoteDescriptor(free), instead: (bytes, mark), to: &repair)
                _ = try context.run(repair, in: process)
            }
            entries += describe(order.index, Copy.bytes(copy.atMaster, results), lines)
        }
        return entries
    }

    private func describe(_ index: UInt32, _ atMaster: [UInt8], _ lines: Lines) -> [TtyDataEntry] {
        guard let id = ids[index] else { return [] }
        var entries: [TtyDataEntry] = []
        var master = TtyDataEntry()
        (master.ttyID, master.data) = (id.master, imageBytes(atMaster))
        if let slave = id.slave {
            var entry = TtyDataEntry()
            (entry.ttyID, entry.data, entry.endsOfFile) = (slave, imageBytes(lines.bytes), lines.endsOfFile)
            if !lines.isEmpty { entries.append(entry) }
        } else if !lines.isEmpty {
            (master.other, master.otherEndsOfFile) = (imageBytes(lines.bytes), lines.endsOfFile)
        }
        if !atMaster.isEmpty || master.hasOther { entries.append(master) }
        return entries
    }

    /// Adds the calls that take and put back what waits in a pair. Once something is taken no failure may stop them.
    ///
    /// - Parameter instead: what the slave end gets in place of what was there, with the character that ends a file.
    private func add(
        _ order: Order, slave: RemoteDescriptor, instead: (bytes: [UInt8], mark: UInt8)?, to batch: inout Batch
    ) -> Copy {
        typealias Request = Terminal.Request
        let master = RemoteDescriptor(order.master.number)
        let flags = Int(order.master.facts.statusFlags)
        let isPacket = packetMasters.contains(order.index)
        let zero = batch.place(value: (UInt32(0), UInt32(0)))
        let one = batch.place(value: (UInt32(1), UInt32(0)))
        let original = batch.place(order.settings.bytes)
        var plain = order.settings.transparent(keepsFlowControl: isPacket)
        if let instead { plain.characters[TerminalSettings.endOfFile] = instead.mark }
        let transparent = batch.place(plain.bytes)
        let seen = batch.reserve(TerminalSettings.size)
        func set(_ settings: Batch.Buffer) {
            batch.add(
                .ioctl, .descriptor(slave), .value(Request.setSettings.rawValue), .buffer(settings),
                doing: "set a terminal", mayFail: true)
        }
        func read(_ count: Int, from end: RemoteDescriptor) -> [(Batch.Slot, Batch.Buffer)] {
            (0..<count).map { _ in
                let room = batch.reserve(TtyQueues.piece)
                let slot = batch.add(
                    .read, .descriptor(end), .buffer(room), .value(room.count), doing: "read a terminal", mayFail: true)
                return (slot, room)
            }
        }
        func write(_ pieces: [(Batch.Slot, Batch.Buffer)], to end: RemoteDescriptor) {
            for (slot, room) in pieces {
                // After an error the length makes no sense, and nothing is written.
                batch.add(
                    .write, .descriptor(end), .buffer(room), .result(slot), doing: "write to a terminal", mayFail: true)
            }
        }
        var copy = Copy()
        if locked.contains(order.index) {
            batch.add(
                .ioctl, .descriptor(master), .value(Request.setLock.rawValue), .buffer(zero), doing: "unlock a terminal"
            )
        }
        // A background process may not read its own terminal.
        let owner = order.master.owner.stat
        let (group, foreground) = (owner.group.rawValue, owner.foregroundGroup)
        let isBehind =
            UInt32(truncatingIfNeeded: owner.terminal) == TerminalDevice.slaveDevice(order.index) && foreground > 0
            && foreground != group
        // As the task calls them.
        let own = batch.place(value: (numbers[owner.group], Int32(0)))
        let before = batch.place(value: (numbers[TaskID(foreground)], Int32(0)))
        let open = OpenFlags([.readWrite, .nonBlocking, .noControllingTerminal, .closeOnExec])
        batch.add(
            .ioctl, .descriptor(master), .value(Request.openSlave.rawValue), .value(Int(open.rawValue)),
            doing: "open the slave end of a terminal")
        batch.add(
            .ioctl, .descriptor(slave), .value(Request.settings.rawValue), .buffer(seen), doing: "look at a terminal")
        if isBehind {
            batch.add(
                .ioctl, .descriptor(slave), .value(Request.setGroup.rawValue), .buffer(own),
                doing: "bring a task to the foreground")
        }
        // Whoever may not read takes nothing.
        batch.add(.read, .descriptor(slave), .buffer(seen), .value(0), doing: "read a terminal")
        if order.atSlave > 0 {
            let reading = order.settings.isCanonical ? batch.place(order.settings.withoutLines.bytes) : original
            if order.settings.isCanonical { set(reading) }
            copy.atSlave = read(order.atSlave, from: slave)
            set(transparent)
            if let instead {
                let bytes = batch.place(instead.bytes)
                batch.add(
                    .write, .descriptor(master), .buffer(bytes), .value(bytes.count), doing: "write to a terminal",
                    mayFail: true)
            } else {
                write(copy.atSlave, to: master)
            }
            // Lets the kernel process what was written while the settings hold.
            let request = batch.place(value: (slave.number, Terminal.readable, Int16(0)))
            for _ in 0..<2 {
                batch.add(
                    .poll, .buffer(request), .value(1), .value(0), doing: "wait for a terminal", mayFail: true)
            }
        }
        if order.atMaster > 0, instead == nil {
            let nonBlocking = flags | Int(OpenFlags.nonBlocking.rawValue)
            batch.add(
                .fcntl, .descriptor(master), .value(4), .value(nonBlocking), doing: "set a terminal", mayFail: true)
            if isPacket {
                batch.add(
                    .ioctl, .descriptor(master), .value(Request.setPacketMode.rawValue), .buffer(zero),
                    doing: "set a terminal", mayFail: true)
            }
            copy.atMaster = read(order.atMaster, from: master)
            set(transparent)
            write(copy.atMaster, to: slave)
            if isPacket {
                batch.add(
                    .ioctl, .descriptor(master), .value(Request.setPacketMode.rawValue), .buffer(one),
                    doing: "set a terminal", mayFail: true)
            }
            batch.add(.fcntl, .descriptor(master), .value(4), .value(flags), doing: "set a terminal", mayFail: true)
        }
        set(original)
        if isBehind {
            batch.add(
                .ioctl, .descriptor(slave), .value(Request.setGroup.rawValue), .buffer(before),
                doing: "send a task to the background", mayFail: true)
        }
        batch.add(.close, .descriptor(slave), doing: "close a terminal", mayFail: true)
        if locked.contains(order.index) {
            batch.add(
                .ioctl, .descriptor(master), .value(Request.setLock.rawValue), .buffer(one), doing: "lock a terminal",
                mayFail: true)
        }
        return copy
    }
}

/// What waits at a slave end, with the ends of file among it.
struct Lines {
    /// Without ends of file.
    var bytes: [UInt8]
    /// Where they stand, as offsets into `bytes`.
    var endsOfFile: [UInt32] = []

    var isEmpty: Bool { bytes.isEmpty && endsOfFile.isEmpty }

    /// What an image holds. Offsets that make no sense are left out.
    init(bytes: [UInt8], endsOfFile: [UInt32]) {
        self.bytes = bytes
        self.endsOfFile = endsOfFile.filter { $0 <= bytes.count }.sorted()
    }

    /// - Parameter shown: how much canonical mode showed: all finished lines without ends of file, which the buffer holds
    ///   as zeros. So zeros are ends of file if just they are missing.
    init(_ raw: [UInt8], _ settings: TerminalSettings, shown: Int) {
        bytes = raw
        guard settings.isCanonical, raw.contains(0) else { return }
        let delimiters: Set<UInt8> = [0, 0x0a]
        let finished = (raw.lastIndex { delimiters.contains($0) } ?? -1) + 1
        guard finished - raw.count(where: { $0 == 0 }) == shown else { return }
        bytes = []
        for byte in raw {
            if byte == 0 { endsOfFile.append(UInt32(bytes.count)) } else { bytes.append(byte) }
        }
    }

    /// The bytes with a character that stands for an end of file, one that does not occur otherwise. Without such a
    /// character (0) the ends of file are left out.
    func marked() -> (bytes: [UInt8], mark: UInt8) {
        guard !endsOfFile.isEmpty else { return (bytes, 0) }
        let used = Set(bytes + [0x0a])
        guard let mark = (UInt8(1)...255).first(where: { !used.contains($0) }) else { return (bytes, 0) }
        var marked: [UInt8] = []
        var next = endsOfFile.makeIterator()
        var end = next.next()
        for (offset, byte) in bytes.enumerated() {
            while let at = end, at <= offset {
                marked.append(mark)
                end = next.next()
            }
            marked.append(byte)
        }
        while end != nil {
            marked.append(mark)
            end = next.next()
        }
        return (marked, mark)
    }
}
