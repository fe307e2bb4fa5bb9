internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Pages
internal import Procfs

/// `struct shmid64_ds`: what the kernel says of a System V segment.
private struct SegmentStatus: BitwiseCopyable {
    var key: Int32 = 0, uid: UInt32 = 0, gid: UInt32 = 0, creatorUID: UInt32 = 0, creatorGID: UInt32 = 0
    var mode: UInt32 = 0, sequence: UInt32 = 0, padding: UInt32 = 0, unused: (UInt64, UInt64) = (0, 0)
    var size: UInt64 = 0, attached: UInt64 = 0, detached: UInt64 = 0, changed: UInt64 = 0
    var creator: Int32 = 0, last: Int32 = 0, attachments: UInt64 = 0, unused2: (UInt64, UInt64) = (0, 0)

    static func read(_ id: UInt32) throws(SystemCallError) -> SegmentStatus {
        var status = SegmentStatus()
        try withAddress(of: &status) { (address) throws(SystemCallError) in
            try systemCall(.shmctl, Int(id), 2, address)  // IPC_STAT
        }
        return status
    }

    /// `SHM_DEST`: it vanishes with its last user. `SHM_LOCKED`: it is not swapped out.
    static let vanishes: UInt32 = 0o1000, locked: UInt32 = 0o2000
}

/// System V shared memory that the tree has attached (`shmat(2)`), in our own IPC namespace.
///
/// A segment outlives its users until it is removed. So one that is still there is attached again as it is, and one
/// that is gone is made anew with its id, key and contents.
final class SystemVSegments {
    private var dumped: [IpcShmEntry] = []
    private var known: Set<UInt64> = []

    static func of(_ context: DumpContext) -> SystemVSegments {
        context.state(SystemVSegments.self) { SystemVSegments() }
    }

    /// The number in the names of the images. CRIU has such images for namespaces of the tree only.
    private static let namespace: UInt32 = 1

    // MARK: dump

    /// Notes the segment behind a mapping, whose inode number is the segment's id.
    func dump(_ mapping: VMA, of process: DumpedProcess, _ context: DumpContext) throws(Failure) {
        guard known.insert(mapping.inode).inserted else { return }
        let id = UInt32(truncatingIfNeeded: mapping.inode)
        let status = try attempt(
            "read the status of the System V segment \(id)", advice: "Run brumate in the IPC namespace of the task"
        ) { () throws(SystemCallError) in try SegmentStatus.read(id) }
        var entry = IpcShmEntry()
        entry.desc.id = id
        // A removed segment has lost its key, but not its name.
        let named = mapping.text.dropFirst(5).prefix(8)
        entry.desc.key = UInt32(named, radix: 16) ?? UInt32(bitPattern: status.key)
        (entry.desc.uid, entry.desc.gid) = (status.uid, status.gid)
        (entry.desc.cuid, entry.desc.cgid) = (status.creatorUID, status.creatorGID)
        entry.desc.mode = status.mode
        entry.size = status.size
        entry.inPagemaps = true
        (entry.creator, entry.changed) = (UInt32(bitPattern: status.creator), status.changed)
        var granularity = pageSize
        if let huge = mapping.hugePageSize {
            granularity = huge
            entry.hugetlbFlag = 0o4000 | UInt32(huge.trailingZeroBitCount) << 26  // SHM_HUGETLB
        }
        let path = "/proc/\(process.id.rawValue)/map_files/\(mapping.range)"
        let file = try attempt("open the System V segment \(id)") { () throws(SystemCallError) in try openFile(path) }
        context.statistics.sharedPagesWritten += try SharedMemoryImage.write(
            file.number, id: mapping.inode, size: status.size, granularity: granularity, to: context.images)
        dumped.append(entry)
    }

    /// Writes `ipcns-shm-N.img`.
    func finish(_ context: DumpContext) throws(Failure) {
        guard !dumped.isEmpty else { return }
        try context.images.write(.sharedMemory(SystemVSegments.namespace), dumped)
    }

    // MARK: restore

    static func of(_ context: RestoreContext) -> SystemVSegments {
        context.state(SystemVSegments.self) { SystemVSegments() }
    }

    /// Segments of the image by id; those that we made; and those to be removed once they are attached.
    private var entries: [UInt64: IpcShmEntry] = [:]
    private var made: [UInt32] = []
    private var vanishing: [UInt32] = []

    /// Size of a segment's memory in bytes.
    func length(_ id: UInt64) -> UInt64? {
        entries[id].map { entry in
            let unit = SystemVSegments.unit(entry)
            return (entry.size + unit - 1) / unit * unit
        }
    }

    private static func unit(_ entry: IpcShmEntry) -> UInt64 {
        let logarithm = UInt64(entry.hugetlbFlag >> 26 & 0x3f)
        return entry.hugetlbFlag & 0o4000 == 0 ? pageSize : logarithm == 0 ? 2 << 20 : 1 << logarithm
    }

    /// Finds or makes all segments that areas name.
    func create(for areas: [Area], _ context: RestoreContext) throws(Failure) {
        let wanted = Set(areas.filter { $0.status.contains(.sysv) }.map(\.file))
        guard !wanted.isEmpty else { return }
        let name = ImageName.sharedMemory(SystemVSegments.namespace)
        for entry in try context.images.loadAll(name, as: IpcShmEntry.self) {
            guard entry.size > 0, entry.size <= 1 << 47, entry.desc.id <= UInt32(Int32.max),
                (12..<48).contains(SystemVSegments.unit(entry).trailingZeroBitCount)
            else { throw Failure(.corruptImage, "the System V segment \(entry.desc.id) makes no sense") }
            entries[UInt64(entry.desc.id)] = entry
        }
        for id in wanted.sorted() {
            guard let entry = entries[id] else {
                throw Failure(.corruptImage, "the System V segment \(id) is not in \(name.fileName)")
            }
            try during(.step("System V segment \(id)")) { () throws(Failure) in
                if try !find(entry) { try make(entry, context) }
            }
        }
    }

    /// Whether the segment is still there.
    private func find(_ entry: IpcShmEntry) throws(Failure) -> Bool {
        guard let now = try? SegmentStatus.read(entry.desc.id) else { return false }
        guard now.size == entry.size, !entry.hasCreator || UInt32(bitPattern: now.creator) == entry.creator,
            !entry.hasChanged || now.changed == entry.changed
        else {
            throw Failure(
                .conflict, "another segment has this id", advice: "Remove it with: ipcrm -m \(entry.desc.id)")
        }
        return true
    }

    private func make(_ entry: IpcShmEntry, _ context: RestoreContext) throws(Failure) {
        let (id, desc) = (entry.desc.id, entry.desc)
        let vanishes = desc.mode & SegmentStatus.vanishes != 0
        let flags = Int(desc.mode & 0o777) | 0o3000 | Int(entry.hugetlbFlag)  // IPC_CREAT | IPC_EXCL
        let size = Int(entry.size)
        func create(_ key: UInt32) throws(SystemCallError) -> Int {
            let next = try openFile("/proc/sys/kernel/shm_next_id", .writeOnly)
            try writeAll(Array("\(id)".utf8), to: next.number)
            return try systemCall(.shmget, Int(Int32(bitPattern: key)), size, flags)
        }
        let got = try attempt(
            "create it", code: .conflict, advice: "A segment of the same key may exist: see ipcs -m"
        ) { () throws(SystemCallError) in
            // A removed segment had given up its key, so another one may have that.
            do throws(SystemCallError) { return try create(desc.key) } catch {
                guard vanishes, error.errno == .EEXIST else { throw error }
                return try create(0)
            }
        }
        made.append(UInt32(got))
        guard got == Int(id) else { throw Failure(.conflict, "the kernel gives it the id \(got)") }
        if vanishes { vanishing.append(id) }
        try attempt("set its owner and mode") { () throws(SystemCallError) in
            var status = try SegmentStatus.read(id)
            (status.uid, status.gid, status.mode) = (desc.uid, desc.gid, desc.mode & 0o777)
            try withAddress(of: &status) { (address) throws(SystemCallError) in
                try systemCall(.shmctl, Int(id), 1, address)  // IPC_SET
            }
            if desc.mode & SegmentStatus.locked != 0 { try systemCall(.shmctl, Int(id), 11, 0) }  // SHM_LOCK
        }
        try fill(entry, context)
    }

    private func fill(_ entry: IpcShmEntry, _ context: RestoreContext) throws(Failure) {
        let id = UInt64(entry.desc.id)
        let address = try attempt("attach it") { () throws(SystemCallError) in
            try systemCall(.shmat, Int(id), 0, 0)
        }
        defer { _ = try? systemCall(.shmdt, address) }
        let start = Address(UInt64(address))
        let range = AddressRange(start: start, end: start + (length(id) ?? 0))
        let file = try attempt("open it") { () throws(SystemCallError) in
            try openFile("/proc/self/map_files/\(range)", .readWrite)
        }
        try SharedMemoryImage.read(id: id, into: file.number, size: entry.size, from: context.images)
    }

    /// Once all tasks have attached them: removes those that were removed, and keeps the others.
    func settle() throws(Failure) {
        for id in vanishing {
            try attempt("remove the System V segment \(id)") { () throws(SystemCallError) in
                try systemCall(.shmctl, Int(id), 0, 0)  // IPC_RMID
            }
        }
        made = []
    }

    /// Takes back what a failed restore has made.
    func abandon() {
        for id in made { _ = try? systemCall(.shmctl, Int(id), 0, 0) }
        made = []
    }
}

extension VMA {
    /// Whether it is System V shared memory.
    var isSystemV: Bool { isShared && name.starts(with: "/SYSV".utf8) }
}
