public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
public import Linux
internal import Logging
public import Procfs
public import Remote

/// Dumps the descriptor tables of a tree, and files on behalf of mappings and directories.
public final class FileDump: FileDumper {
    private let context: DumpContext
    /// Which type in files.img an id has.
    private var types: [UInt32: UInt32] = [:]
    /// Files that no descriptor refers to: by device, inode, mount, flags and path.
    private var unopened: [Unopened: UInt32] = [:]

    private var mapped: [Mapped: UInt32] = [:]

    private struct Mapped: Hashable {
        let device: UInt64, inode: UInt64, flags: Int32, name: [UInt8]
    }

    private struct Unopened: Hashable {
        let device: UInt64, inode: UInt64, mount: Int32, flags: Int32, target: [UInt8]
    }

    /// Begins to dump the files of a tree.
    public init(_ context: DumpContext) { self.context = context }

    /// Takes care, before the tree is stopped, that `prepare` will not have to wait.
    public static func hasten() { LockedInodes.hasten() }

    /// Reads what belongs to no process, as soon as the tree stands still.
    public func prepare() throws(Failure) { try LockedInodes.of(context).read() }

    /// Lists the descriptors of a process and asks its leader, in as few batches as possible, which close on exec.
    public func listTable(of process: DumpedProcess, _ server: borrowing Server) throws(Failure) {
        let numbers = try numbers(in: process)
        var start = 0
        while start < numbers.count {
            let end = min(start + FileDump.mostQuestions, numbers.count)
            var batch = Batch()
            var slots: [Batch.Slot] = []
            for number in numbers[start..<end] {
                // F_GETFD
                slots.append(
                    batch.add(
                        .fcntl, .value(Int(number)), .value(1), doing: "read the flags of a descriptor", mayFail: true))
            }
            let results = try server.run(batch)
            for (number, slot) in zip(numbers[start..<end], slots) {
                guard let flags = results.success(slot) else { continue }
                process.descriptors.append((number, flags & 1 == 1))
            }
            start = end
        }
    }

    /// The numbers that may be open in a process.
    private func numbers(in process: DumpedProcess) throws(Failure) -> [Int32] {
        let folder = "/proc/\(process.id.rawValue)/fd"
        // To list a directory in /proc costs more for each entry than to ask a task whether a number is open. Its size
        // is the number of open ones (Linux 6.2).
        if let slots = process.status.descriptorSlots, slots >= FileDump.manySlots,
            let size = try? FileStatus.read(path: Array(folder.utf8)).size, size > UInt64(slots / 8)
        {
            return Array(0..<Int32(clamping: slots))
        }
        return try attempt("list the descriptors", code: .vanished) { () throws(SystemCallError) in
            try listNumbers(folder)
        }
    }

    /// From how large a table on it is not listed, if it is well filled.
    private static let manySlots = 1024

    /// How many calls fit in a batch for certain.
    private static let mostQuestions = 4096

    /// Dumps the descriptor table of a process into `fdinfo-ID.img`, and each file that was not met before.
    public func dumpTable(of process: DumpedProcess) throws(Failure) {
        let table = context.images.create(.descriptors(process.ids.filesID))
        let folder = try attempt("open the list of descriptors", code: .vanished) { () throws(SystemCallError) in
            try openFile("/proc/\(process.id.rawValue)/fdinfo", [.directory])
        }
        let information = folder.number
        let numbers = process.descriptors.map(\.number)
        if Looks.isSharedWork(numbers.count) {
            Descriptor.makeRoom(for: min(numbers.count, mostKept + 2 * Looks.most) + 2 * Workers.count)
        }
        func looks(from start: Int) -> Looks {
            Looks(Array(numbers[min(start, numbers.count)..<min(start + Looks.most, numbers.count)]), of: process)
        }
        var entries: [FdinfoEntry] = []
        entries.reserveCapacity(process.descriptors.count)
        var ahead = looks(from: 0)
        for start in stride(from: 0, to: numbers.count, by: Looks.most) {
            var current = ahead
            ahead = looks(from: start + Looks.most)
            while let look = try current.take(through: { () throws(Failure) in try Lens.of(context) }) {
                let (number, closesOnExec) = process.descriptors[entries.count]
                entries.append(
                    try during(.descriptor(number)) { () throws(Failure) in
                        var entry = try dump(number, look, of: process, information)
                        entry.flags = closesOnExec ? 1 : 0
                        process.files[number] = entry.id
                        return entry
                    })
            }
        }
        try table.append(contentsOf: entries)
        try table.finish()
    }

    /// Dumps a table of ours that has one file in it.
    public func rehearse(_ process: DumpedProcess) throws(Failure) {
        let file = try attempt("open /dev/null") { () throws(SystemCallError) in try openFile("/dev/null") }
        process.descriptors = [(file.number, false)]
        LockedInodes.of(context).assumeNone()
        try dumpTable(of: process)
    }

    /// Copies of descriptors that stay open, so that others are compared with our own table, which is cheaper.
    private var kept: [OpenFile] = []

    /// Copies beyond those, which only the kinds may still hold.
    private var others: [Other] = []

    private struct Other {
        weak var file: OpenFile?
    }

    /// Lets go of all open files of the tree, which is about to run again or to end: a file that we hold is not closed
    /// when the tree closes it. A program that it has just written could not be run, the other end of a pipe would see
    /// no end, a lock would not be free. The numbers of our copies stay taken.
    public func letGo() {
        guard let nothing = try? openFile("/proc/version") else { return }
        let fresh = nothing.number
        let handles = kept.map { $0.handle.number } + others.compactMap { $0.file?.handle.number }
        // With the tree gone, each is closed by this.
        _ = Workers.map(handles.count, share: FileDump.share, threads: FileDump.threads(handles.count)) { range in
            for number in handles[range] { _ = try? systemCall(.dup3, Int(fresh), Int(number), 0o2000000) }
        }
        if let lens = try? Lens.of(context) { try? lens.look(at: fresh) }
        others = []
    }

    /// How many files a thread lets go of at once.
    private static let share = 256
    private static func threads(_ count: Int) -> Int { count < 2 * share ? 1 : Workers.count }

    /// Half of what we may have open.
    private let mostKept = Descriptor.limit() / 2

    private func dump(
        _ number: Int32, _ look: Looks.Look, of process: DumpedProcess, _ folder: Int32
    ) throws(Failure) -> FdinfoEntry {
        let handle = Descriptor(owning: look.handle)
        let (ours, status) = (look.handle, look.status)
        var information = look.information
        // Locks are shown of the task that has them only.
        if try LockedInodes.of(context).contains(status.inode) { information = try .read(in: folder, number) }
        var entry = FdinfoEntry()
        entry.fd = UInt32(number)
        let keeps = kept.count < mostKept
        let found = try context.fileIndex.id(
            of: .current, ours, like: FileDump.key(status, information),
            lasting: keeps ? nil : (process.id, number))
        entry.id = found.id
        let isLocked = information.lines.contains { $0.starts(with: "lock:".utf8) }
        if isLocked || found.isNew {
            let facts = if let known = look.facts { known } else { try facts(of: ours, status, information) }
            if isLocked { try Locks.of(context).dump(facts, found.id, handle: ours, number, of: process, context) }
            if found.isNew {
                if status.kind == .socket { context.socketInodes[found.id] = status.inode }
                let file = OpenFile(id: found.id, facts: facts, handle: handle, owner: process, number: number)
                if keeps { kept.append(file) } else { others.append(Other(file: file)) }
                types[found.id] = try during(.file(facts.text)) { () throws(Failure) in try describe(file) }
            }
        }
        guard let type = types[found.id] else { throw Failure(.bug, "a file without a type") }
        entry.type = type
        return entry
    }

    /// Dumps a file that is under way to a process, or finds it again.
    public func dump(underWay handle: consuming Descriptor, to process: DumpedProcess) throws(Failure) -> UInt32 {
        let ours = handle.number
        let status = try attempt("look at a file that is under way") { () throws(SystemCallError) in
            try FileStatus.read(in: ours)
        }
        let folder = try attempt("look at a file that is under way") { () throws(SystemCallError) in
            try openFile("/proc/self/fdinfo", [.directory])
        }
        let information = try look(at: ours, status, folder.number, ours)
        let found = try context.fileIndex.id(of: .current, ours, like: FileDump.key(status, information))
        guard found.isNew else { return found.id }
        let facts = try facts(of: ours, status, information)
        let file = OpenFile(id: found.id, facts: facts, handle: handle, owner: process, number: OpenFile.underWay)
        kept.append(file)
        types[found.id] = try during(.file("\(facts.text), which is under way")) { () throws(Failure) in
            try describe(file)
        }
        return found.id
    }

    private func facts(
        of ours: Int32, _ status: FileStatus, _ information: DescriptorInformation
    ) throws(Failure) -> FileFacts {
        try Looks.facts(of: ours, status, information) { () throws(Failure) in try Lens.of(context) }
    }

    /// What is the same wherever a file is seen.
    private static func key(_ status: FileStatus, _ information: DescriptorInformation) -> [UInt64] {
        let key = [
            status.device, status.inode, UInt64(status.mode),
            UInt64(UInt32(bitPattern: information.flags) & ~0o2000000), information.position,
        ]
        // All eventfds have one inode, but a number of their own.
        return Eventfd.number(information).map { key + [$0] } ?? key
    }

    /// What fdinfo says. It is made up for files without lines of their own.
    private func look(
        at ours: Int32, _ status: FileStatus, _ folder: Int32, _ number: Int32
    ) throws(Failure) -> DescriptorInformation {
        if try LockedInodes.of(context).contains(status.inode) { return try .read(in: folder, number) }
        if let information = try Looks.plainInformation(ours, status) { return information }
        return try Lens.of(context).information(of: ours)
    }

    /// The kind that claimed the last file, where all that decides is equal: thousands of one kind come in a row.
    private var last: (target: [UInt8], rest: [UInt64], kind: any FileKind.Type)?
    /// The kinds of sockets by address family: nothing else decides.
    private var socketKinds: [Int32: any FileKind.Type] = [:]

    private func kind(of facts: FileFacts) -> (any FileKind.Type)? {
        if let family = facts.family {
            if let known = socketKinds[family] { return known }
            let found = fileKind(of: facts, context.policy, context.plugins)
            if let found, found != Refused.self { socketKinds[family] = found }
            return found
        }
        let status = facts.status
        let rest = [
            UInt64(status.mode), status.representedDevice, status.device, status.inode,
            UInt64(facts.statusFlags & UInt32(OpenFlags.path.rawValue)),
            UInt64(UInt32(bitPattern: facts.information.mountID)),
        ]
        if let last, last.target == facts.target, last.rest == rest { return last.kind }
        let found = fileKind(of: facts, context.policy, context.plugins)
        if let found, !found.isRefusedSingly { last = (facts.target, rest, found) }
        return found
    }

    private func describe(_ file: OpenFile) throws(Failure) -> UInt32 {
        if let kind = kind(of: file.facts) {
            let entry = try context.view.at(mount: file.facts.information.mountID) { () throws(Failure) in
                try kind.dump(file, context)
            }
            context.files.append(entry)
            return entry.type
        }
        throw Refused.unknown(file.facts)
    }

    /// Dumps the file behind a mapping, or finds it again.
    public func dump(mapped mapping: VMA, of process: DumpedProcess, flags: OpenFlags) throws(Failure) -> UInt32 {
        // The same file is mapped many times over; /proc/PID/maps names it well enough while nothing moves.
        let key = Mapped(
            device: UInt64(mapping.major) << 32 | UInt64(mapping.minor), inode: mapping.inode, flags: flags.rawValue,
            name: mapping.name)
        if let id = mapped[key] { return id }
        let id = try dump(path: "/proc/\(process.id.rawValue)/map_files/\(mapping.range)", of: process, flags: flags)
        mapped[key] = id
        return id
    }

    /// Dumps the file behind /proc/PID/`link`, or finds it again.
    public func dump(link: String, of process: DumpedProcess) throws(Failure) -> UInt32 {
        try during(.step("its \(link)")) { () throws(Failure) in
            try dump(path: "/proc/\(process.id.rawValue)/\(link)", of: process, flags: .readOnly)
        }
    }

    private func dump(path: String, of process: DumpedProcess, flags: OpenFlags) throws(Failure) -> UInt32 {
        let handle = try attempt("open \(path)") { () throws(SystemCallError) in try openFile(path, [.path]) }
        let ours = handle.number
        let (status, target) = try attempt("look at \(path)") { () throws(SystemCallError) in
            (try FileStatus.read(in: ours), try linkTarget(path))
        }
        let key = Unopened(
            device: status.device, inode: status.inode, mount: status.mountID, flags: flags.rawValue, target: target)
        if let id = unopened[key] { return id }
        let id = context.fileIndex.newID()
        unopened[key] = id
        let information = DescriptorInformation(flags: flags.rawValue, mountID: status.mountID)
        let facts = FileFacts(status: status, target: target, information: information)
        let file = OpenFile(id: id, facts: facts, handle: handle, owner: process, number: -1)
        _ = try during(.file(facts.text)) { () throws(Failure) in try describe(file) }
        return id
    }

    /// Dumps working directory, root and file mode mask into `fs-PID.img`.
    public func dumpDirectories(of process: DumpedProcess) throws(Failure) {
        var entry = FsEntry()
        entry.cwdID = try dump(link: "cwd", of: process)
        entry.rootID = try dump(link: "root", of: process)
        entry.umask = process.status.umask
        try context.images.write(.directories(process.number), [entry])
    }

    /// Completes what depends on other files, while the tree still stands.
    public func finish() throws(Failure) {
        for kind in fileKinds { try kind.reveal(context) }
        for kind in fileKinds { try kind.finish(context) }
        try Locks.of(context).finish(mapped.map { ($0.key.device, $0.key.inode, $0.key.flags, $0.value) }, context)
    }

    /// Writes everything that is shared between tables. The tree may run again.
    public func write() throws(Failure) {
        let files = context.images.create(.files)
        try files.append(contentsOf: context.files)
        try files.finish()
        try Remaps.of(context).finish(context)
        if context.policy.removesLinkRemaps { Remaps.of(context).removeNames(context) }
        try PipeContents.of(context).finish(context)
    }

    /// Takes from a tree that will be killed what can't be taken otherwise. The image is complete without it.
    public static func part(_ context: DumpContext) {
        for kind in fileKinds {
            do throws(Failure) { try kind.part(context) } catch { context.log.warning("\(error)") }
        }
        do throws(Failure) { try context.images.writeOut() } catch { context.log.warning("\(error)") }
    }

    /// Holds up all packets of the network namespace that we are in, until the tree is restored or runs on.
    public static func lockNetwork(_ context: DumpContext) throws(Failure) {
        try Connections.of(context).lockNamespace(context)
    }

    /// Lets packets move again.
    public static func unlockNetwork(_ context: DumpContext) { Connections.of(context).lock.drop(context.log) }

    /// Acts once a tree that was to be killed is gone.
    public static func gone(_ context: DumpContext) {
        do throws(Failure) { try Connections.of(context).leave(context) } catch { context.log.warning("\(error)") }
    }

    /// How connections are held up, for the inventory.
    public static func lock(_ context: DumpContext) -> (method: NetworkLockMethod, id: String) {
        let lock = Connections.of(context).lock
        return (lock.method(context.policy), lock.id)
    }

    /// Takes back what a failed dump left on file systems and in the network.
    public static func abandon(_ context: DumpContext) {
        Connections.of(context).abandon()
        Remaps.of(context).abandon(context)
    }
}
