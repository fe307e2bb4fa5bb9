internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Pages
internal import Procfs

/// A file in memory (`memfd_create(2)`).
enum Memfd: FileKind {
    private static let prefix = "/memfd:"
    private static let suffix = " (deleted)"

    /// Names of anonymous shared memory, which is a file in memory too.
    private static let zero = "/dev/zero", hugePages = "/anon_hugepage"

    static func claims(_ facts: FileFacts) -> Bool {
        guard facts.status.kind == .regular else { return false }
        return facts.begins(with: prefix) || facts.text == zero + suffix || facts.text == hugePages + suffix
    }

    /// The inodes met in one dump.
    private final class Inodes {
        var entries: [MemfdInodeEntry] = []
        var known: [UInt64: UInt32] = [:]
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let inodes = context.state(Inodes.self) { Inodes() }
        // What is only mapped has no number.
        if file.number != -1 { pieces(context).noteOpen(file.facts.status.inode) }
        var entry = MemfdFileEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.pos = file.facts.information.position
        entry.fown = try FileOwner.dump(file, context)
        if let known = inodes.known[file.facts.status.inode] {
            entry.inodeID = known
        } else {
            entry.inodeID = try dumpInode(file, inodes, context)
            inodes.known[file.facts.status.inode] = entry.inodeID
        }
        var whole = FileEntry(.memfd, file.id)
        whole.memfd = entry
        return whole
    }

    private static func dumpInode(_ file: OpenFile, _ inodes: Inodes, _ context: DumpContext) throws(Failure) -> UInt32
    {
        let status = file.facts.status
        let id = UInt32(inodes.entries.count + 1)
        let shared = UInt32(truncatingIfNeeded: status.inode)
        // The descriptor may be write-only or O_PATH; another description of the same file reads it.
        let ours = file.handle.number
        try Locks.refuseWriteLease(file.facts)
        let readable = try attempt("open the memfd for reading") { () throws(SystemCallError) in
            try openFile("/proc/self/fd/\(ours)")
        }
        let number = readable.number
        var entry = MemfdInodeEntry()
        let start = file.facts.begins(with: prefix) ? prefix.utf8.count : 0
        entry.name = imageBytes(file.facts.target.dropFirst(start).dropLast(suffix.utf8.count))
        (entry.uid, entry.gid) = context.owners.owner(of: status)
        (entry.size, entry.mode) = (status.size, status.mode)
        entry.shmid = shared
        entry.inodeID = UInt64(id)
        let (seals, granularity) = try attempt("read the seals of the memfd") { () throws(SystemCallError) in
            (try systemCall(.fcntl, Int(number), 1034), try FileSystem.pageUnit(of: number))
        }
        entry.seals = UInt32(seals)
        if granularity > pageSize {
            entry.hugetlbFlag = 4 | UInt32(granularity.trailingZeroBitCount) << 26  // MFD_HUGETLB
        }
        let piece = try SharedMemoryPiece(
            readable, id: UInt64(shared), inode: status.inode, size: status.size, granularity: granularity,
            isSealed: seals & 0xa == 0xa)  // F_SEAL_WRITE | F_SEAL_SHRINK
        context.statistics.sharedPagesWritten += try pieces(context).take(
            piece, isLive: context.policy.isLive, context.images)
        inodes.entries.append(entry)
        return id
    }

    private static func pieces(_ context: DumpContext) -> SharedMemoryPieces {
        context.state(SharedMemoryPieces.self) { SharedMemoryPieces() }
    }

    /// Writes memfd.img.
    static func finish(_ context: DumpContext) throws(Failure) {
        let inodes = context.state(Inodes.self) { Inodes() }
        if !inodes.entries.isEmpty { try context.images.write(.memfd, inodes.entries) }
    }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.memfd.rawValue) && entry.hasMemfd }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.memfd.fown }

    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 { UInt64(entry.memfd.inodeID) }

    /// The inodes of the image.
    private final class RestoredInodes {
        private var entries: [UInt64: MemfdInodeEntry]?

        func entry(_ id: UInt64, _ context: RestoreContext) throws(Failure) -> MemfdInodeEntry? {
            if let entries { return entries[id] }
            var read: [UInt64: MemfdInodeEntry] = [:]
            for entry in try context.images.loadAll(.memfd, as: MemfdInodeEntry.self) { read[entry.inodeID] = entry }
            entries = read
            return read[id]
        }
    }

    private static let futureWrite: UInt32 = 0x10

    /// Files that are to be sealed once they are mapped.
    private final class LateSeals {
        var files: [(number: Int32, seals: Int)] = []
        deinit { for file in files { _ = try? systemCall(.close, Int(file.number)) } }
    }

    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        let late = context.state(LateSeals.self) { LateSeals() }
        while let file = late.files.last {
            try attempt("seal a memfd") { () throws(SystemCallError) in
                try systemCall(.fcntl, Int(file.number), 1033, file.seals)
            }
            late.files.removeLast()
            _ = try? systemCall(.close, Int(file.number))
        }
    }

    private static func anonymous(_ inode: MemfdInodeEntry) throws(Failure) -> Descriptor {
        let logarithm = UInt64(inode.hugetlbFlag >> 26 & 0x3f)
        let huge: UInt64? = inode.hugetlbFlag & 4 == 0 ? nil : logarithm == 0 ? 2 << 20 : 1 << logarithm
        guard inode.size <= 1 << 47 else { throw Failure(.corruptImage, "its size of \(inode.size) makes no sense") }
        return try SharedMemoryFile.create(size: inode.size, hugePages: huge)
    }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        guard let first = members.first else { return }
        let known = context.state(RestoredInodes.self) { RestoredInodes() }
        guard let inode = try known.entry(UInt64(first.memfd.inodeID), context) else {
            throw Failure(.corruptImage, "memfd.img has no inode \(first.memfd.inodeID)")
        }
        let text = String(decoding: inode.name, as: UTF8.self)
        try during(.file("memfd \(text)")) { () throws(Failure) in
            let key = prefix + text
            if context.inherits(key) {
                for member in members {
                    guard let made = try context.inherited(key) else { return }
                    try context.files.add(member.id, made)
                }
                return
            }
            let name = Array(inode.name)
            var flags = Int(inode.hugetlbFlag)
            if inode.seals != 1 { flags |= 2 }  // MFD_ALLOW_SEALING; F_SEAL_SEAL alone is how others are born
            let file =
                text == zero || text == hugePages
                ? try anonymous(inode)
                : try attempt("create it") { () throws(SystemCallError) in
                    let raw = try withCString(name) { (name) throws(SystemCallError) in
                        try systemCall(.memfd_create, name, flags | 1)
                    }
                    let file = Descriptor(owning: Int32(raw))
                    try systemCall(.ftruncate, raw, Int(bitPattern: UInt(inode.size)))
                    if inode.hasMode { try systemCall(.fchmod, raw, Int(inode.mode & 0o7777)) }
                    try context.owners.give(file.number, to: inode.uid, inode.gid)
                    return file
                }
            let number = file.number
            // What is sealed against writing can't be written to later.
            try context.state(PostponedMemory.self) { PostponedMemory() }.fill(
                UInt64(inode.shmid), files: members.map(\.id), number, size: inode.size,
                canWait: inode.seals & 0x18 == 0, from: context.images)
            // It was filled in whole pages.
            if inode.size % pageSize != 0 {
                try attempt("set its size") { () throws(SystemCallError) in
                    try systemCall(.ftruncate, Int(number), Int(bitPattern: UInt(inode.size)))
                }
            }
            // The description that memfd_create made does not keep the file from being executed, as one that is opened
            // for writing does. Which was the first can't be told; mappings, whose entries have no O_LARGEFILE, share it.
            var isTaken = false
            for member in members {
                let wanted = member.memfd
                let isMapping = wanted.flags == UInt32(OpenFlags.readWrite.rawValue)
                let isFirst = wanted.flags & 3 == 2 && !isMapping && !isTaken
                if isFirst { isTaken = true }
                let made = try attempt("open it") { () throws(SystemCallError) in
                    let made: Descriptor
                    if isFirst || isMapping {
                        made = Descriptor(owning: Int32(try systemCall(.fcntl, Int(number), 1030, 3)))
                        if isFirst { try setStatusFlags(number, wanted.flags) }
                    } else {
                        made = try openFile(
                            "/proc/self/fd/\(number)", OpenFlags(rawValue: Int32(bitPattern: wanted.flags & ~0o300)))
                    }
                    if wanted.pos != 0 {
                        try systemCall(.lseek, Int(made.number), Int(bitPattern: UInt(wanted.pos)), 0)
                    }
                    return made
                }
                try context.files.add(member.id, made)
            }
            if flags & 2 != 0, inode.seals != 0 {
                // Who mapped it before F_SEAL_FUTURE_WRITE goes on writing.
                let late = inode.seals & futureWrite == 0 ? 0 : inode.seals & (futureWrite | 1)
                try attempt("seal it") { () throws(SystemCallError) in
                    try systemCall(.fcntl, Int(number), 1033, Int(inode.seals & ~late))
                }
                if late != 0 {
                    let kept = try attempt("keep it") { () throws(SystemCallError) in
                        try openFile("/proc/self/fd/\(number)", .readWrite).release()
                    }
                    context.state(LateSeals.self) { LateSeals() }.files.append((kept, Int(late)))
                }
            }
        }
    }
}
