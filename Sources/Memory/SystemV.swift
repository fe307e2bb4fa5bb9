internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Pages
internal import Procfs
internal import Remote

/// `struct shmid64_ds`: what the kernel says of a System V segment.
private struct SegmentStatus: BitwiseCopyable {
    var permissions = SystemVPermissions()
    var size: UInt64 = 0, attached: UInt64 = 0, detached: UInt64 = 0, changed: UInt64 = 0
    var creator: Int32 = 0, last: Int32 = 0, attachments: UInt64 = 0, unused2: (UInt64, UInt64) = (0, 0)

    private static func read(_ place: Int, _ command: Int) throws(SystemCallError) -> (
        id: UInt32, status: SegmentStatus
    ) {
        var status = SegmentStatus()
        let id = try withAddress(of: &status) { (address) throws(SystemCallError) in
            try systemCall(.shmctl, place, command, address)
        }
        return (id: UInt32(truncatingIfNeeded: id), status: status)
    }

    static func read(_ id: UInt32) throws(SystemCallError) -> SegmentStatus {
        try read(Int(id), 2).status  // IPC_STAT
    }

    /// All segments, whoever may read them.
    static func all() -> [(id: UInt32, status: SegmentStatus)] {
        var information = [UInt64](repeating: 0, count: 6)  // struct shm_info
        let last = try? information.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.shmctl, 0, 14, address)  // SHM_INFO
        }
        guard let last, information[0] & 0xffff_ffff > 0 else { return [] }
        return (0...last).compactMap { (try? read($0, 15)) ?? (try? read($0, 13)) }  // SHM_STAT_ANY, SHM_STAT
    }

    /// `SHM_DEST`: it vanishes with its last user. `SHM_LOCKED`: it is not swapped out.
    static let vanishes: UInt32 = 0o1000, locked: UInt32 = 0o2000
}

/// System V shared memory in our own IPC namespace: what the tree has attached (`shmat(2)`), and what nobody has but is
/// the tree's (see `SystemVUse`).
///
/// A segment outlives its users until it is removed. So one that is still there is attached again, and one that is gone
/// is made anew with its id, key and contents. Where nobody but the tree had it since the dump, it gets back the contents
/// of the dump.
final class SystemVSegments {
    private var dumped: [IpcShmEntry] = []
    private var known: Set<UInt64> = []

    static func of(_ context: DumpContext) -> SystemVSegments {
        context.state(SystemVSegments.self) { SystemVSegments() }
    }

    // MARK: dump

    /// Notes the segment behind a mapping, whose inode number is the segment's id.
    func dump(_ mapping: VMA, of process: DumpedProcess, _ context: DumpContext) throws(Failure) {
        guard known.insert(mapping.inode).inserted else { return }
        let id = UInt32(truncatingIfNeeded: mapping.inode)
        let status = try attempt(
            "read the status of the System V segment \(id)", advice: "Run brumate in the IPC namespace of the task"
        ) { () throws(SystemCallError) in try SegmentStatus.read(id) }
        var entry = SystemVSegments.entry(id, status, context)
        // A removed segment has lost its key, but not its name.
        let named = mapping.text.dropFirst(5).prefix(8)
        if let key = UInt32(named, radix: 16) { entry.desc.key = key }
        var granularity = pageSize
        if let huge = mapping.hugePageSize {
            granularity = huge
            entry.hugetlbFlag = 0o4000 | UInt32(huge.trailingZeroBitCount) << 26  // SHM_HUGETLB
        }
        let path = "/proc/\(process.id.rawValue)/map_files/\(mapping.range)"
        let file = try attempt("open the System V segment \(id)") { () throws(SystemCallError) in try openFile(path) }
        let piece = try SharedMemoryPiece(
            file, id: mapping.inode, inode: mapping.inode, size: status.size, granularity: granularity)
        // The kernel can't hold up writes to it.
        context.statistics.sharedPagesWritten += try SharedMemoryImage.write(piece, to: context.images)
        dumped.append(entry)
    }

    private static func entry(_ id: UInt32, _ status: SegmentStatus, _ context: DumpContext) -> IpcShmEntry {
        var entry = IpcShmEntry()
        entry.desc = status.permissions.entry(id: id, context.owners)
        entry.size = status.size
        entry.inPagemaps = true
        (entry.creator, entry.changed) = (UInt32(bitPattern: status.creator), status.changed)
        return entry
    }

    /// Dumps segments that nobody has attached.
    private func dumpDetached(_ context: DumpContext) throws(Failure) {
        for (id, status) in SegmentStatus.all() where !known.contains(UInt64(id)) {
            let verdict = SystemVUse.of(context).verdict(
                id, named: [status.creator, status.last], calls: [.shmat], hasOthers: status.attachments > 0)
            switch verdict {
            case .others: continue
            case .shared(let other): SystemVUse.warn("the System V segment \(id)", other, context)
            case .tree:
                try during(.step("System V segment \(id)")) { () throws(Failure) in
                    try dumpDetached(id, status, context)
                }
            }
        }
    }

    private func dumpDetached(_ id: UInt32, _ status: SegmentStatus, _ context: DumpContext) throws(Failure) {
        var entry = SystemVSegments.entry(id, status, context)
        let size = try write(id, status, context)
        if size != pageSize { entry.hugetlbFlag = 0o4000 | UInt32(size.trailingZeroBitCount) << 26 }
        // Where the kernel named a task of the tree, it names us now.
        if let last = context.processes.first(where: { $0.id.rawValue == status.last }) {
            var batch = Batch()
            let address = batch.add(
                .shmat, .value(Int(id)), .value(0), .value(0o10000), doing: "attach it", mayFail: true)
            batch.add(.shmdt, .result(address), doing: "detach it", mayFail: true)
            _ = try context.run(batch, in: last)
        }
        let now = try attempt("look at it") { () throws(SystemCallError) in try SegmentStatus.read(id) }
        entry.detachedBy = UInt32(bitPattern: now.last)
        dumped.append(entry)
    }

    /// Writes the contents of a segment. Returns its page size.
    private func write(_ id: UInt32, _ status: SegmentStatus, _ context: DumpContext) throws(Failure) -> UInt64 {
        let address = try attempt("attach it") { () throws(SystemCallError) in
            try systemCall(.shmat, Int(id), 0, 0o10000)  // SHM_RDONLY
        }
        defer { _ = try? systemCall(.shmdt, address) }
        let mapping = try SystemVSegments.mapping(at: address)
        let size = mapping.hugePageSize ?? pageSize
        let file = try attempt("open it") { () throws(SystemCallError) in
            try openFile("/proc/self/map_files/\(mapping.range)")
        }
        let piece = try SharedMemoryPiece(
            file, id: UInt64(id), inode: UInt64(id), size: status.size, granularity: size)
        context.statistics.sharedPagesWritten += try SharedMemoryImage.write(piece, to: context.images)
        return size
    }

    /// The mapping of a segment that we have attached.
    private static func mapping(at address: Int) throws(Failure) -> VMA {
        let start = Address(UInt64(address))
        guard let mapping = try VMA.read(of: .current).first(where: { $0.range.start == start }) else {
            throw Failure(.bug, "it is not where it was attached")
        }
        return mapping
    }

    /// Writes `ipcns-shm-N.img`.
    func finish(_ context: DumpContext) throws(Failure) {
        try dumpDetached(context)
        guard !dumped.isEmpty else { return }
        for place in dumped.indices {
            dumped[place].creator = context.numbers.number(dumped[place].creator)
            if dumped[place].hasDetachedBy {
                dumped[place].detachedBy = context.numbers.number(dumped[place].detachedBy)
            }
        }
        try context.images.write(.sharedMemory(SystemVUse.id(context)), dumped)
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
        let name = ImageName.sharedMemory(SystemVUse.id(context))
        for var entry in try context.images.loadAll(name, as: IpcShmEntry.self) {
            entry.desc = context.owners.ours(entry.desc)
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
                if try find(entry, context) { return }
                try make(entry, context) { (create) throws(SystemCallError) in
                    try systemCall(.shmget, create.key, create.size, create.flags)
                }
                try fill(entry, context, isNew: true)
            }
        }
    }

    /// Finds or makes the segments that nobody has attached. A task makes them: the kernel names it as the creator.
    private func createDetached(_ context: RestoreContext) throws(Failure) {
        let living = context.processes.filter { !$0.plan.isZombie }
        for (id, entry) in entries.sorted(by: { $0.key < $1.key }) where entry.hasDetachedBy {
            guard let root = living.first else { throw Failure(.corruptImage, "no task is alive") }
            func task(_ id: UInt32) -> RestoredProcess? {
                living.first { UInt32(bitPattern: $0.id.rawValue) == id }
            }
            try during(.step("System V segment \(id)")) { () throws(Failure) in
                if try !find(entry, context) {
                    let maker = task(entry.creator) ?? root
                    try make(entry, context) { (create) throws(SystemCallError) in
                        var batch = Batch()
                        let slot = batch.add(
                            .shmget, .value(create.key), .value(create.size), .value(create.flags), doing: "create it",
                            mayFail: true)
                        let got = (try? maker.puppet.run(batch)[slot]) ?? -5  // EIO
                        if got < 0 { throw SystemCallError(.shmget, Errno(rawValue: Int32(clamping: -got))) }
                        return got
                    }
                    try fill(entry, context, isNew: true)
                }
                guard let last = task(entry.detachedBy) else { return }
                var batch = Batch()
                let address = batch.add(.shmat, .value(Int(id)), .value(0), .value(0), doing: "attach it")
                batch.add(.shmdt, .result(address), doing: "detach it")
                try last.puppet.run(batch)
            }
        }
    }

    /// Whether the segment is still there. If nobody but the tree has had it since, it gets the contents of the dump.
    private func find(_ entry: IpcShmEntry, _ context: RestoreContext) throws(Failure) -> Bool {
        guard let now = try? SegmentStatus.read(entry.desc.id) else { return false }
        guard now.size == entry.size, !entry.hasCreator || UInt32(bitPattern: now.creator) == entry.creator,
            !entry.hasChanged || now.changed == entry.changed
        else {
            throw Failure(
                .conflict, "another segment has this id", advice: "Remove it with: ipcrm -m \(entry.desc.id)")
        }
        let identity = SystemVIdentity(context, named: [entry.creator, entry.detachedBy])
        let isOurs = identity.isSame(changed: (now.changed, nil), named: [now.last]) && now.attachments == 0
        if isOurs { try fill(entry, context, isNew: false) }
        guard isOurs || !entry.hasDetachedBy else {
            throw Failure(
                .conflict, "others have used it since the dump",
                advice: "Remove it with: ipcrm -m \(entry.desc.id)")
        }
        return true
    }

    /// The arguments of `shmget(2)`.
    private struct Creation {
        let key: Int, size: Int, flags: Int
    }

    private func make(
        _ entry: IpcShmEntry, _ context: RestoreContext, by shmget: (Creation) throws(SystemCallError) -> Int
    ) throws(Failure) {
        let (id, desc) = (entry.desc.id, entry.desc)
        let vanishes = desc.mode & SegmentStatus.vanishes != 0
        let flags = Int(desc.mode & 0o777) | 0o3000 | Int(entry.hugetlbFlag)  // IPC_CREAT | IPC_EXCL
        let size = Int(entry.size)
        func create(_ key: UInt32) throws(SystemCallError) -> Int {
            let next = try openFile("/proc/sys/kernel/shm_next_id", .writeOnly)
            try writeAll(Array("\(id)".utf8), to: next.number)
            return try shmget(Creation(key: Int(Int32(bitPattern: key)), size: size, flags: flags))
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
            status.permissions.take(desc)
            try withAddress(of: &status) { (address) throws(SystemCallError) in
                try systemCall(.shmctl, Int(id), 1, address)  // IPC_SET
            }
            if desc.mode & SegmentStatus.locked != 0 { try systemCall(.shmctl, Int(id), 11, 0) }  // SHM_LOCK
        }
    }

    private func fill(_ entry: IpcShmEntry, _ context: RestoreContext, isNew: Bool) throws(Failure) {
        let id = entry.desc.id
        let address = try attempt("attach it") { () throws(SystemCallError) in
            try systemCall(.shmat, Int(id), 0, 0)
        }
        defer { _ = try? systemCall(.shmdt, address) }
        let mapping = try SystemVSegments.mapping(at: address)
        let file = try attempt("open it") { () throws(SystemCallError) in
            try openFile("/proc/self/map_files/\(mapping.range)", .readWrite)
        }
        let number = file.number
        if !isNew {
            let size = mapping.hugePageSize ?? pageSize
            let length = Int((entry.size + size - 1) / size * size)
            try attempt("empty it") { () throws(SystemCallError) in
                // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
                try systemCall(.fallocate, Int(number), 3, 0, length)
            }
        }
        try SharedMemoryImage.read(id: UInt64(id), into: number, size: entry.size, from: context.images)
    }

    /// Once all tasks have attached them: removes those that were removed, and keeps the others.
    func settle(_ context: RestoreContext) throws(Failure) {
        try createDetached(context)
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
