public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
public import Linux
internal import Logging
public import Procfs

/// Dumps the descriptor tables of a tree, and files on behalf of mappings and directories.
public final class FileDump: FileDumper {
    private let context: DumpContext
    /// Which type in files.img an id has.
    private var types: [UInt32: UInt32] = [:]
    /// Files that no descriptor refers to: by device, inode, flags and path.
    private var unopened: [Unopened: UInt32] = [:]

    private var mapped: [Mapped: UInt32] = [:]

    private struct Mapped: Hashable {
        let device: UInt64, inode: UInt64, flags: Int32, name: [UInt8]
    }

    private struct Unopened: Hashable {
        let device: UInt64, inode: UInt64, flags: Int32, target: [UInt8]
    }

    /// Begins to dump the files of a tree.
    public init(_ context: DumpContext) { self.context = context }

    /// Dumps the descriptor table of a process into `fdinfo-ID.img`, and each file that was not met before.
    public func dumpTable(of process: DumpedProcess) throws(Failure) {
        let numbers = try attempt("list the descriptors", code: .vanished) { () throws(SystemCallError) in
            try listNumbers("/proc/\(process.id.rawValue)/fd")
        }
        let table = try context.images.create(.descriptors(process.ids.filesID))
        let folder = try attempt("open the list of descriptors", code: .vanished) { () throws(SystemCallError) in
            try openFile("/proc/\(process.id.rawValue)/fdinfo", [.directory])
        }
        let information = folder.number
        for number in numbers {
            try during(.descriptor(number)) { () throws(Failure) in
                try table.append(try dump(number, of: process, information))
            }
        }
        try table.finish()
    }

    private func dump(_ number: Int32, of process: DumpedProcess, _ information: Int32) throws(Failure) -> FdinfoEntry {
        let pidfd = Int(process.pidfd.number)
        let handle = try attempt("copy the descriptor") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.pidfd_getfd, pidfd, Int(number), 0)))
        }
        let ours = handle.number
        let (status, target) = try attempt("look at the file") { () throws(SystemCallError) in
            (try FileStatus.read(in: ours), try readLink("/proc/self/fd/\(ours)").bytes)
        }
        let facts = FileFacts(status: status, target: target, information: try .read(in: information, number))
        guard !facts.information.lines.contains(where: { $0.starts(with: "lock:".utf8) }) else {
            throw Failure(
                .unsupported, "\(facts.text) has a file lock or lease, which can't be dumped yet",
                advice: "Release it before the dump")
        }
        var entry = FdinfoEntry()
        entry.fd = UInt32(number)
        entry.flags = facts.information.flags & 0o2000000 != 0 ? 1 : 0
        let found = try context.fileIndex.id(
            of: process.id, number, like: [status.device, status.inode, UInt64(status.mode), UInt64(facts.statusFlags)])
        entry.id = found.id
        if found.isNew {
            let file = OpenFile(id: found.id, facts: facts, handle: handle, owner: process, number: number)
            types[found.id] = try during(.file(facts.text)) { () throws(Failure) in try describe(file) }
        }
        guard let type = types[found.id] else { throw Failure(.bug, "a file without a type") }
        entry.type = type
        return entry
    }

    private func describe(_ file: OpenFile) throws(Failure) -> UInt32 {
        for kind in fileKinds where kind.claims(file.facts) {
            let entry = try kind.dump(file, context)
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
            (try FileStatus.read(in: ours), try readLink(path).bytes)
        }
        let key = Unopened(device: status.device, inode: status.inode, flags: flags.rawValue, target: target)
        if let id = unopened[key] { return id }
        let id = context.fileIndex.newID()
        unopened[key] = id
        var information = DescriptorInformation([])
        information.flags = flags.rawValue
        information.mountID = status.mountID
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
        try context.images.write(.directories(process.id.rawValue), [entry])
    }

    /// Writes everything that is shared between tables.
    public func finish() throws(Failure) {
        let files = try context.images.create(.files)
        for entry in context.files { try files.append(entry) }
        try files.finish()
        try Remaps.of(context).finish(context)
        if context.policy.removesLinkRemaps { Remaps.of(context).removeNames(context) }
        try PipeContents.of(context).finish(context)
        for kind in fileKinds { try kind.finish(context) }
    }

    /// Takes from a tree that will be killed what can't be taken otherwise. The image is complete without it.
    public static func part(_ context: DumpContext) {
        for kind in fileKinds {
            do throws(Failure) { try kind.part(context) } catch { context.log.warning("\(error)") }
        }
    }

    /// Takes back what a failed dump left on file systems.
    public static func abandon(_ context: DumpContext) { Remaps.of(context).abandon() }
}
