internal import Diagnostics
internal import ImageMessages
internal import Linux
internal import SystemPackage

/// A file system of our own where events are made to happen. Each watch has a file or directory there, named by its
/// number, and is told only what it is to tell.
final class InotifyStage {
    private static let access: UInt32 = 0x1, modify: UInt32 = 0x2, attribute: UInt32 = 0x4, closedWritten: UInt32 = 0x8
    private static let closed: UInt32 = 0x10, opened: UInt32 = 0x20, movedFrom: UInt32 = 0x40, movedTo: UInt32 = 0x80
    private static let created: UInt32 = 0x100, deleted: UInt32 = 0x200, deletedSelf: UInt32 = 0x400
    private static let movedSelf: UInt32 = 0x800, ignored: UInt32 = 0x8000, isDirectory: UInt32 = 0x4000_0000
    /// IN_UNMOUNT: nothing that happens here.
    private static let quiet: UInt32 = 0x2000

    private let events: [InotifyEventEntry]
    private let inotify: Int32
    private let root: Descriptor
    /// Watches that exist.
    private var watches: Set<Int32> = []

    /// Prepares for events; throws if one of them can't be made to happen.
    init(_ events: [InotifyEventEntry], _ inotify: Int32) throws(Failure) {
        let folders = Set(events.filter { !$0.name.isEmpty || $0.mask & InotifyStage.isDirectory != 0 }.map(\.wd))
        try InotifyStage.check(events, folders)
        self.events = events
        self.inotify = inotify
        root = try attempt("make a file system of our own") { () throws(SystemCallError) in
            let context = Descriptor(
                owning: Int32(
                    try withCString("tmpfs") { (name) throws(SystemCallError) in
                        try systemCall(.fsopen, name, 1)  // FSOPEN_CLOEXEC
                    }))
            try systemCall(.fsconfig, Int(context.number), 6, 0, 0, 0)  // FSCONFIG_CMD_CREATE
            return Descriptor(owning: Int32(try systemCall(.fsmount, Int(context.number), 1, 0)))
        }
        try attempt("prepare watches") { () throws(SystemCallError) in
            try make("aside", isFolder: true)
            for watch in Set(events.map(\.wd)).sorted() {
                try make(InotifyStage.place(watch), isFolder: folders.contains(watch))
                try Inotify.setNextWatch(watch, of: inotify)
                try tell(watch, InotifyStage.quiet)
                watches.insert(watch)
            }
        }
    }

    private static func check(_ events: [InotifyEventEntry], _ folders: Set<Int32>) throws(Failure) {
        var gone: Set<Int32> = []
        for (index, event) in events.enumerated() {
            let bit = event.mask & ~isDirectory
            let isFolder = event.mask & isDirectory != 0
            let mayBe: Bool
            switch bit {
            case created, deleted, movedFrom, movedTo: mayBe = !event.name.isEmpty
            case deletedSelf:
                mayBe =
                    event.name.isEmpty && !isFolder
                    && events[(index + 1)...].first { $0.wd == event.wd }?.mask == ignored
            case movedSelf, ignored: mayBe = event.name.isEmpty && !isFolder
            case modify, closedWritten: mayBe = !isFolder && (!event.name.isEmpty || !folders.contains(event.wd))
            case access, attribute, closed, opened:
                mayBe = !event.name.isEmpty || isFolder == folders.contains(event.wd)
            default: mayBe = false
            }
            guard mayBe, event.wd > 0, !gone.contains(event.wd), isName(Array(event.name)) else {
                throw Failure(.unsupported, "an event that can't be made to happen again")
            }
            if bit == ignored { gone.insert(event.wd) }
        }
    }

    private static func isName(_ name: [UInt8]) -> Bool {
        name.count < 256 && !name.contains(0x2f) && !name.contains(0) && name != [0x2e] && name != [0x2e, 0x2e]
    }

    // MARK: the play

    /// Makes all events happen.
    func play() throws(Failure) {
        try attempt("make events happen again") { () throws(SystemCallError) in
            var done: Set<Int> = []
            for index in events.indices where !done.contains(index) {
                if let also = try play(index) { done.insert(also) }
            }
        }
    }

    /// Removes the watches that are left.
    func leave() throws(Failure) {
        try attempt("remove watches") { () throws(SystemCallError) in
            for watch in watches { try systemCall(.inotify_rm_watch, Int(inotify), Int(watch)) }
        }
    }

    /// Makes an event happen. Returns the index of another one that happened with it.
    private func play(_ index: Int) throws(SystemCallError) -> Int? {
        let event = events[index]
        let bit = event.mask & ~InotifyStage.isDirectory
        let place = InotifyStage.place(event.wd) + (event.name.isEmpty ? [] : [0x2f] + Array(event.name))
        let isFolder = event.mask & InotifyStage.isDirectory != 0
        switch bit {
        case InotifyStage.ignored:
            watches.remove(event.wd)
            try systemCall(.inotify_rm_watch, Int(inotify), Int(event.wd))
        case InotifyStage.deletedSelf:
            watches.remove(event.wd)
            try tell(event.wd, bit)
            try clear(place)
            return events[(index + 1)...].firstIndex { $0.wd == event.wd }
        case InotifyStage.movedSelf:
            try tell(event.wd, bit)
            try rename(place, "aside/moved")
            try tell("aside/moved", InotifyStage.quiet)
            try rename(Array("aside/moved".utf8), place)
        case InotifyStage.created:
            try clear(place)
            try telling(event) { () throws(SystemCallError) in try make(place, isFolder: isFolder) }
        case InotifyStage.deleted:
            try remake(place, isFolder: isFolder)
            try telling(event) { () throws(SystemCallError) in try remove(place, isFolder: isFolder) }
        case InotifyStage.movedFrom:
            try remake(place, isFolder: isFolder)
            let other = events[(index + 1)...].firstIndex {
                $0.cookie == event.cookie && $0.mask == event.mask ^ bit | InotifyStage.movedTo
            }
            if let other, event.cookie != 0 {
                try move(event, place, to: events[other])
                return other
            }
            try telling(event) { () throws(SystemCallError) in try rename(place, "aside/moved") }
            try clear(Array("aside/moved".utf8))
        case InotifyStage.movedTo:
            try clear(place)
            try make("aside/moved", isFolder: isFolder)
            try telling(event) { () throws(SystemCallError) in try rename(Array("aside/moved".utf8), place) }
        default:
            if !event.name.isEmpty { try remake(place, isFolder: isFolder) }
            try use(event, place, isFolder: isFolder)
        }
        return nil
    }

    /// What happens to a file that is there and stays.
    private func use(_ event: InotifyEventEntry, _ place: [UInt8], isFolder: Bool) throws(SystemCallError) {
        var byte = [UInt8](repeating: 0, count: 512)
        switch event.mask & ~InotifyStage.isDirectory {
        case InotifyStage.attribute:
            try telling(event) { () throws(SystemCallError) in
                try at(place) { (folder, path) throws(SystemCallError) in
                    try systemCall(.fchmodat, folder, path, 0o700)
                }
            }
        case InotifyStage.opened:
            let number = try telling(event) { () throws(SystemCallError) in try open(place, []).release() }
            try systemCall(.close, Int(number))
        case InotifyStage.closed, InotifyStage.closedWritten:
            let isWritten = event.mask & InotifyStage.closedWritten != 0
            let number = try open(place, isWritten ? [.writeOnly] : []).release()
            try telling(event) { () throws(SystemCallError) in _ = try systemCall(.close, Int(number)) }
        default:
            let file = try open(place, isFolder ? [.directory] : [.readWrite])
            let ours = Int(file.number)
            let isAccess = event.mask & InotifyStage.access != 0
            try byte.withAddress { (address, count) throws(SystemCallError) in
                if !isFolder, isAccess { try systemCall(.pwrite64, ours, address, 1, 0) }
                try telling(event) { () throws(SystemCallError) in
                    if isFolder {
                        try systemCall(.getdents64, ours, address, count)
                    } else {
                        try systemCall(isAccess ? .pread64 : .pwrite64, ours, address, 1, 0)
                    }
                }
            }
        }
    }

    private func move(_ event: InotifyEventEntry, _ place: [UInt8], to other: InotifyEventEntry) throws(SystemCallError)
    {
        let there = InotifyStage.place(other.wd) + [0x2f] + Array(other.name)
        try clear(there)
        let bits = InotifyStage.movedFrom | InotifyStage.movedTo
        try tell(event.wd, event.wd == other.wd ? bits : InotifyStage.movedFrom)
        if event.wd != other.wd { try tell(other.wd, InotifyStage.movedTo) }
        try rename(place, there)
        try tell(event.wd, InotifyStage.quiet)
        if event.wd != other.wd { try tell(other.wd, InotifyStage.quiet) }
    }

    /// Does something while the event's watch tells of it.
    @discardableResult
    private func telling<R>(
        _ event: InotifyEventEntry, _ body: () throws(SystemCallError) -> R
    ) throws(SystemCallError) -> R {
        try tell(event.wd, event.mask & 0xfff)
        let result = try body()
        try tell(event.wd, InotifyStage.quiet)
        return result
    }

    // MARK: files

    private static func place(_ watch: Int32) -> [UInt8] { Array("\(watch)".utf8) }

    private func tell(_ watch: Int32, _ mask: UInt32) throws(SystemCallError) { try tell("\(watch)", mask) }

    private func tell(_ place: String, _ mask: UInt32) throws(SystemCallError) {
        try withCString("/proc/self/fd/\(root.number)/\(place)") { (path) throws(SystemCallError) in
            try systemCall(.inotify_add_watch, Int(inotify), path, Int(mask))
        }
    }

    private func at(_ place: [UInt8], _ body: (Int, Int) throws(SystemCallError) -> Int) throws(SystemCallError) {
        try withCString(place) { (path) throws(SystemCallError) in try body(Int(root.number), path) }
    }

    private func open(_ place: [UInt8], _ flags: OpenFlags) throws(SystemCallError) -> Descriptor {
        let raw = flags.union(.closeOnExec).rawValue
        return Descriptor(
            owning: Int32(
                try withCString(place) { (path) throws(SystemCallError) in
                    try systemCall(.openat, Int(root.number), path, Int(raw))
                }))
    }

    private func make(_ place: String, isFolder: Bool) throws(SystemCallError) {
        try make(Array(place.utf8), isFolder: isFolder)
    }

    private func make(_ place: [UInt8], isFolder: Bool) throws(SystemCallError) {
        try at(place) { (folder, path) throws(SystemCallError) in
            if isFolder { return try systemCall(.mkdirat, folder, path, 0o700) }
            return try systemCall(.mknodat, folder, path, 0o100700, 0)
        }
    }

    private func remake(_ place: [UInt8], isFolder: Bool) throws(SystemCallError) {
        try clear(place)
        try make(place, isFolder: isFolder)
    }

    private func remove(_ place: [UInt8], isFolder: Bool) throws(SystemCallError) {
        try at(place) { (folder, path) throws(SystemCallError) in
            try systemCall(.unlinkat, folder, path, isFolder ? 0x200 : 0)  // AT_REMOVEDIR
        }
    }

    private func rename(_ place: [UInt8], _ other: String) throws(SystemCallError) {
        try rename(place, Array(other.utf8))
    }

    private func rename(_ place: [UInt8], _ other: [UInt8]) throws(SystemCallError) {
        try at(place) { (folder, from) throws(SystemCallError) in
            try withCString(other) { (to) throws(SystemCallError) in
                try systemCall(.renameat2, folder, from, folder, to, 0)
            }
        }
    }

    /// Removes what is there, if anything.
    private func clear(_ place: [UInt8]) throws(SystemCallError) {
        do throws(SystemCallError) { try remove(place, isFolder: false) } catch {
            if error.errno == .ENOENT { return }
            guard error.errno == .EISDIR else { throw error }
            let folder = try open(place, [.directory])
            for name in try listDirectory(".", in: folder.number) { try clear(place + [0x2f] + name.bytes) }
            try remove(place, isFolder: true)
        }
    }
}
