internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs

/// Watches on files (`inotify(7)`), with their numbers.
enum Inotify: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:inotify" }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        var entry = InotifyFileEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        if try bytesWaiting(file.handle.number) > 0 {
            entry.hasEvents_p = true
            InotifyQueues.of(context).files.append(file)
            if !context.policy.takesAtEnd {
                context.log.info("events wait in an inotify: the restored task will be told of an overflow")
            }
        }
        let paths = try WatchedPaths.of(context)
        for line in file.facts.information.lines {
            guard let mark = Mark(line, of: "inotify") else { continue }
            let inode = try mark.inode()
            var watch = InotifyWdEntry()
            watch.id = file.id
            watch.iIno = inode.number
            watch.sDev = inode.device
            watch.mask = try mark.word("mask")
            watch.ignoredMask = try mark.word("ignored_mask")
            watch.wd = try mark.word("wd")
            watch.fHandle = try during(.step("watch \(watch.wd)")) { () throws(Failure) in try paths.entry(for: inode) }
            entry.wd.append(watch)
        }
        var whole = FileEntry(.inotify, file.id)
        whole.ify = entry
        return whole
    }

    static func part(_ context: DumpContext) throws(Failure) { try InotifyQueues.of(context).save(context) }

    static func load(_ context: RestoreContext) throws(Failure) { try SavedQueues.of(context).load(context) }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.inotify.rawValue) && entry.hasIfy }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.ify.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.ify
            try context.files.add(member.id, try make(entry, SavedQueues.of(context).events[member.id], context))
        }
    }

    private static func make(
        _ entry: InotifyFileEntry, _ events: [InotifyEventEntry]?, _ context: RestoreContext
    ) throws(Failure) -> Descriptor {
        if let events {
            do throws(Failure) {
                let made = try create(entry.flags)
                try InotifyQueue(made.number).fill(events)
                return made
            } catch { context.log.info("events of an inotify can't be kept, an overflow is reported: \(error)") }
        }
        let made = try create(entry.flags)
        if entry.hasEvents_p || events != nil { try InotifyQueue(made.number).overflow() }
        return made
    }

    private static func create(_ flags: UInt32) throws(Failure) -> Descriptor {
        try attempt("create an inotify", advice: "Raise /proc/sys/fs/inotify/max_user_instances") {
            () throws(SystemCallError) in
            let made = Descriptor(owning: Int32(try systemCall(.inotify_init1, 0o2000000)))
            try setStatusFlags(made.number, flags)
            return made
        }
    }

    /// Watches are added oldest first, which fdinfo lists last; the number after the newest one's is the next.
    static func start(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let number = try context.files.number(entry.id)
        let targets = try WatchTargets.of(context)
        for watch in entry.ify.wd.reversed() {
            try during(.step("watch \(watch.wd)")) { () throws(Failure) in
                let target = try targets.open(watch.fHandle, device: watch.sDev, number: watch.iIno)
                try add(watch, to: number, target.number)
            }
        }
    }

    /// Bits that the kernel shows: IN_ALL_EVENTS, IN_EXCL_UNLINK, IN_ONESHOT.
    private static let lastingMask: UInt32 = 0xfff | 0x0400_0000 | 0x8000_0000

    private static func add(_ watch: InotifyWdEntry, to number: Int32, _ target: Int32) throws(Failure) {
        let wanted = Int32(bitPattern: watch.wd)
        guard wanted > 0 else { throw Failure(.corruptImage, "its number makes no sense") }
        let got = try attempt("add the watch", advice: "Raise /proc/sys/fs/inotify/max_user_watches") {
            () throws(SystemCallError) in
            try setNextWatch(wanted, of: number)
            // IN_UNMOUNT is reported always; a mask must not be empty.
            return try addWatch(number, to: target, watch.mask & lastingMask | 0x2000)
        }
        guard got == wanted else {
            throw Failure(
                .conflict, "the file is also watched as number \(got): two watched files became the same one")
        }
    }

    /// INOTIFY_IOC_SETNEXTWD.
    static func setNextWatch(_ watch: Int32, of number: Int32) throws(SystemCallError) {
        try systemCall(.ioctl, Int(number), 0x4004_4900, Int(watch))
    }
}

/// How many bytes can be read at once (FIONREAD).
func bytesWaiting(_ file: Int32) throws(Failure) -> Int {
    var count: Int32 = 0
    try attempt("ask how many events wait") { () throws(SystemCallError) in
        try withAddress(of: &count) { (address) throws(SystemCallError) in
            try systemCall(.ioctl, Int(file), 0x541b, address)
        }
    }
    return Int(count)
}
