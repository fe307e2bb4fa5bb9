internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// A set of watched files (`epoll_create1(2)`).
enum Epoll: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:[eventpoll]" }

    /// The epolls of a dump. What they watch may be found only once all files are known.
    private final class Met {
        var files: [UInt32: OpenFile] = [:]
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        context.state(Met.self) { Met() }.files[file.id] = file
        var entry = EventpollFileEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.fown = try FileOwner.dump(file, context)
        // struct epoll_params: microseconds, budget, preference. Kernels without busy polling have none.
        var parameters: (UInt32, UInt16, UInt8, UInt8) = (0, 0, 0, 0)
        let number = Int(file.handle.number)
        let known = try? withAddress(of: &parameters) { (address) throws(SystemCallError) in
            try systemCall(.ioctl, number, 0x8008_8a02, address)  // EPIOCGPARAMS
        }
        if known != nil, parameters.0 != 0 || parameters.1 != 0 || parameters.2 != 0 {
            entry.busyPollUsecs = parameters.0
            entry.busyPollBudget = UInt32(parameters.1)
            entry.preferBusyPoll = parameters.2 != 0
        }
        var whole = FileEntry(.eventpoll, file.id)
        whole.epfd = entry
        return whole
    }

    static func finish(_ context: DumpContext) throws(Failure) {
        let files = context.state(Met.self) { Met() }.files
        guard !files.isEmpty else { return }
        // A signalfd shows everyone his own signals, so we can't look through an epoll that may lead to one.
        let opaque = Set(context.files.lazy.filter { $0.hasSgfd || $0.hasEpfd }.map(\.id))
        for index in context.files.indices {
            guard context.files[index].hasEpfd, let file = files[context.files[index].id] else { continue }
            let owner = file.owner
            try during(.dumping(owner.id, owner.name)) { () throws(Failure) in
                try during(.descriptor(file.number)) { () throws(Failure) in
                    let entries = try watched(by: file, context)
                    context.files[index].epfd.tfd = entries
                    // After the files' contents were dumped: what comes later is not in the image.
                    if entries.contains(where: isEdgeTriggered),
                        !entries.contains(where: { opaque.contains($0.fileID) }),
                        try !isReady(file.handle.number)
                    {
                        context.files[index].epfd.idle = true
                    }
                }
            }
        }
    }

    /// Whether events are told as they come (EPOLLET) and more than once (not EPOLLONESHOT).
    static func isEdgeTriggered(_ entry: EventpollTfdEntry) -> Bool { entry.events >> 30 & 3 == 2 }

    /// Everything that can be waited for: IN, PRI, OUT, ERR, HUP, RDNORM, RDBAND, WRNORM, WRBAND, MSG, RDHUP.
    static let anything: UInt32 = 0x27df

    /// Whether a file of ours is ready for anything.
    static func isReady(_ number: Int32) throws(Failure) -> Bool {
        var poll: (Int32, UInt16, UInt16) = (number, UInt16(anything), 0)  // struct pollfd
        var now: (Int, Int) = (0, 0)
        let count = try attempt("look whether a file is ready") { () throws(SystemCallError) in
            try withAddress(of: &poll) { (poll) throws(SystemCallError) in
                try withAddress(of: &now) { (now) throws(SystemCallError) in
                    try systemCall(.ppoll, poll, 1, now, 0, 0)
                }
            }
        }
        return count > 0
    }

    private static func watched(by file: OpenFile, _ context: DumpContext) throws(Failure) -> [EventpollTfdEntry] {
        var entries: [EventpollTfdEntry] = []
        var seen: [UInt32: UInt32] = [:]
        for line in file.facts.information.lines {
            guard let watched = WatchedFile(line) else { continue }
            let index = seen[watched.number, default: 0]
            seen[watched.number] = index + 1
            let number = Int32(bitPattern: watched.number)
            let place = WatchedPlace(epoll: file.handle.number, number: number, index: index)
            var entry = EventpollTfdEntry()
            (entry.id, entry.tfd) = (file.id, watched.number)
            (entry.events, entry.data) = (watched.events, watched.data)
            (entry.dev, entry.inode, entry.pos) = (watched.device, watched.inode, watched.position)
            // Mostly the number still means what was watched. Else the file lives on under another one. To compare them costs
            // the kernel a walk through all that is watched, and is not needed of sockets.
            let likely = file.owner.files[number]
            let isSocket = likely.map { context.socketInodes[$0] == watched.inode } ?? false
            if let id = likely, try isSocket ? true : SharingIndex.isWatched(file.owner.id, number, by: place) {
                entry.fileID = id
            } else if let id = try context.fileIndex.id(of: place, inode: watched.inode) {
                entry.fileID = id
                entry.number = watched.number
                let others = file.owner.files.filter { $0.value == id }.keys
                entry.tfd = others.min().map { UInt32(bitPattern: $0) } ?? watched.number
            } else {
                throw Failure(
                    .unsupported,
                    "it watches a file, once the descriptor \(watched.number), that no task of the tree has open",
                    advice: "Remove it from the epoll before it is closed")
            }
            entries.append(entry)
        }
        return entries
    }

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.eventpoll.rawValue) && entry.hasEpfd
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.epfd.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.epfd
            let made = try attempt("create an epoll") { () throws(SystemCallError) in
                let made = Descriptor(owning: Int32(try systemCall(.epoll_create1, 0o2000000)))
                let number = Int(made.number)
                try setStatusFlags(made.number, entry.flags)
                if entry.hasBusyPollUsecs {
                    var parameters = (
                        entry.busyPollUsecs, UInt16(truncatingIfNeeded: entry.busyPollBudget),
                        UInt8(entry.preferBusyPoll ? 1 : 0), UInt8(0)
                    )
                    try withAddress(of: &parameters) { (address) throws(SystemCallError) in
                        try systemCall(.ioctl, number, 0x4008_8a01, address)  // EPIOCSPARAMS
                    }
                }
                return made
            }
            try context.files.add(member.id, made)
        }
    }

    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        guard !entry.epfd.tfd.isEmpty else { return }
        try during(.file("epoll \(entry.id)")) { () throws(Failure) in
            try EpollWiring(entry, context).run()
        }
    }
}
