public import Diagnostics
internal import ImageMessages
public import Kinds
internal import Linux
internal import Logging
internal import Pages
internal import Procfs
public import Remote

/// Memory of a live dump that is not copied, but written while the tree runs on, as it was at the stop: shared memory, which a
/// fork has in common with its process, and huge pages (hugetlb), of which there may be none for a copy.
///
/// Writes to it have to wait: it is write-protected in all tasks by userfaultfds, and whoever writes to a page first is held up
/// until the page is put aside. Shared memory that somebody has open, who could write to it by calls, is written while the tree
/// stands still, unless it is sealed, and so are System V segments, where the kernel can't hold writers up.
public final class HeldMemory {
    /// How many processes may map a piece: to protect it in one takes a tenth of the time of writing it.
    private static let mostUsers = 8
    private var spaces: [TaskID: SharedDescriptor] = [:]
    private var held: [(piece: SharedMemoryPiece, pages: HeldPages?)] = []
    /// Huge pages of processes.
    private var own: [TaskID: (mappings: [VMA], pages: HeldPages, data: [AddressRange])] = [:]
    private var faults: WriteFaults?
    private let disturbance = Disturbance()

    /// Of one dump.
    public static func of(_ context: DumpContext) -> HeldMemory { context.state(HeldMemory.self) { HeldMemory() } }

    /// Whether the dump failed because the tree did with its shared memory what this can't stand.
    public var isDisturbed: Bool { disturbance.isThere }

    // MARK: while the tree stands still

    /// Lets a stopped process that runs a server open a userfaultfd, if it has shared memory that may be held.
    public func prepare(
        _ process: DumpedProcess, _ server: borrowing Server, _ context: DumpContext
    ) throws(Failure) {
        let shared = process.mappings.reduce(0) { $0 + (HeldMemory.canHold($1) ? $1.range.length : 0) }
        let hasHugePages = process.mappings.contains { $0.hugePageSize != nil }
        guard context.policy.holdsMemory, shared >= 1 << 20 || hasHugePages,
            !context.processes.contains(where: { $0.ids.vmID == process.ids.vmID && spaces[$0.id] != nil })
        else { return }
        do throws(Failure) { spaces[process.id] = SharedDescriptor(try HeldMemory.open(process, server)) } catch {
            if error.code == .vanished { throw error }
            context.log.info("writes to shared memory of task \(process.id) can't be held up: \(error)")
        }
    }

    /// Who may not open one can by a device that we open (Linux 6.1).
    private static func open(_ process: DumpedProcess, _ server: borrowing Server) throws(Failure) -> Descriptor {
        // O_CLOEXEC | O_NONBLOCK. Also faults within system calls have to wait, so not UFFD_USER_MODE_ONLY.
        let flags = 0o2004000
        let pidfd = process.pidfd.number
        do throws(Failure) { return try server.fetch(.userfaultfd, flags, through: pidfd) } catch {
            guard error.cause?.errno == .EPERM else { throw error }
        }
        let device = try attempt("open /dev/userfaultfd") { () throws(SystemCallError) in
            Descriptor(
                owning: try RootVisit.outside { () throws(SystemCallError) in
                    try openFile("/dev/userfaultfd", .readWrite).release()
                })
        }
        return try server.fetch(from: device.number, 0xaa00, flags, through: pidfd)  // USERFAULTFD_IOC_NEW
    }

    /// Takes on huge pages of a stopped process. Returns whether it can.
    func take(_ mappings: [VMA], of process: DumpedProcess) -> Bool {
        guard spaces[process.id] != nil else { return false }
        let pages = HeldPages(process.memory.number, isMemory: true, disturbance: disturbance)
        own[process.id] = (mappings, pages, [])
        return true
    }

    /// The huge pages of a process that are held: who has them, and where they are.
    func hugePages(of process: TaskID) -> (pages: HeldPages, data: [AddressRange])? {
        own[process].map { ($0.pages, $0.data) }
    }

    /// Whether a mapping shows shared memory that is reached by mappings, and perhaps by descriptors.
    static func canHold(_ mapping: VMA) -> Bool {
        mapping.isShared && mapping.inode != 0 && !mapping.isSystemV
            && ["/memfd:", "/dev/zero (deleted)", "/anon_hugepage (deleted)", "[anon_shmem:"].contains {
                mapping.name.starts(with: $0.utf8)
            }
    }

    private static func maps(_ mapping: VMA, _ piece: SharedMemoryPiece) -> Bool {
        // Files of hugetlbfs and of shared memory may have the same numbers.
        canHold(mapping) && mapping.inode == piece.inode && (mapping.hugePageSize ?? pageSize) == piece.granularity
    }

    /// Holds up writes to the shared memory that was met, and writes what can't be held. Memory was copied before.
    public func hold(_ context: DumpContext) throws(Failure) {
        let pieces = context.state(SharedMemoryPieces.self) { SharedMemoryPieces() }
        let waiting = pieces.takeWaiting()
        guard !waiting.isEmpty || !own.isEmpty else { return }
        for process in context.processes {
            guard let mappings = own[process.id]?.mappings else { continue }
            var scan = try PagemapScan(process.id)
            let found = try scan.scan(mappings.map(\.scanned)).pages
            var next = 0
            own[process.id]?.data = mappings.flatMap { parts(of: found, in: $0.range, from: &next) }
        }
        var (guarded, others): ([SharedMemoryPiece], [SharedMemoryPiece]) = ([], [])
        for piece in waiting {
            if piece.isSealed {
                held.append((piece, nil))
            } else if let reason = reason(against: piece, pieces, context) {
                context.log.info("shared memory \(piece.id) is written while the tree stands still: \(reason)")
                others.append(piece)
            } else {
                guarded.append(piece)
            }
        }
        if !guarded.isEmpty || !own.isEmpty {
            do throws(Failure) {
                // It may write to huge pages that were registered with it, past all protection.
                if !own.isEmpty, HeldMemory.hasIoUring(context) {
                    throw Failure(.unsupported, "an io_uring may write to huge pages")
                }
                try protect(guarded, context)
            } catch {
                guard own.isEmpty else {
                    // The copies don't have these pages.
                    disturbance.note(error)
                    throw error
                }
                context.log.info("shared memory is written while the tree stands still: \(error)")
                end()
                held.removeAll { $0.pages != nil }
                others += guarded
            }
        }
        for piece in others {
            context.statistics.sharedPagesWritten += try SharedMemoryImage.write(piece, to: context.images)
        }
        try context.faults.pass(.dumpHeld)
    }

    private static func hasIoUring(_ context: DumpContext) -> Bool { context.files.contains(where: \.hasIoUring) }

    /// Why somebody could write to a piece unnoticed.
    private func reason(
        against piece: SharedMemoryPiece, _ pieces: SharedMemoryPieces, _ context: DumpContext
    ) -> String? {
        guard context.policy.holdsMemory else { return "it was disturbed when it was held" }
        if pieces.isOpen(piece) { return "somebody has it open" }
        if HeldMemory.hasIoUring(context) { return "an io_uring writes to memory" }
        let users = context.processes.filter { $0.mappings.contains { HeldMemory.maps($0, piece) } }
        if users.count > HeldMemory.mostUsers { return "\(users.count) tasks map it" }
        for process in users {
            guard context.processes.contains(where: { $0.ids.vmID == process.ids.vmID && spaces[$0.id] != nil }) else {
                return "task \(process.id) has no userfaultfd"
            }
        }
        return nil
    }

    private func protect(_ guarded: [SharedMemoryPiece], _ context: DumpContext) throws(Failure) {
        var list: [WriteFaults.Space] = []
        let pieces = guarded.map { ($0, HeldPages($0.file.number, disturbance: disturbance)) }
        for process in context.processes {
            guard let faults = spaces[process.id] else { continue }
            var ranges: [WriteFaults.Guarded] = []
            for mapping in process.mappings {
                guard let (piece, pages) = pieces.first(where: { HeldMemory.maps(mapping, $0.0) }) else { continue }
                ranges.append(
                    WriteFaults.Guarded(
                        range: mapping.range, offset: mapping.offset, pages: pages,
                        unit: max(piece.granularity, WriteFaults.unit), data: piece.data, pageSize: piece.granularity))
            }
            if let own = own[process.id] {
                for mapping in own.mappings {
                    let size = mapping.hugePageSize ?? pageSize
                    ranges.append(
                        WriteFaults.Guarded(
                            range: mapping.range, offset: mapping.range.start.rawValue, pages: own.pages, unit: size,
                            data: own.data, pageSize: size, isOwn: true))
                }
            }
            if !ranges.isEmpty { list.append(WriteFaults.Space(name: "task \(process.id)", faults, ranges)) }
        }
        spaces = [:]
        held += pieces.map { ($0, $1) }
        faults = try WriteFaults(list, disturbance)
        try faults?.protect()
    }

    // MARK: when the tree runs again

    /// Writes the shared memory that is held.
    func write(_ context: DumpContext) throws(Failure) {
        let started = ContinuousClock.now
        for (piece, pages) in held {
            context.statistics.sharedPagesWritten += try SharedMemoryImage.write(piece, held: pages, to: context.images)
        }
        context.statistics[.memoryWrite] += ContinuousClock.now - started
    }

    /// Lets all writers go on, now that everything is written, and makes sure that it was as it was.
    func finish(_ context: DumpContext) throws(Failure) {
        guard let faults else { return }
        self.faults = nil
        context.log.debug("put \(faults.end()) pages aside before they were written to")
        try disturbance.check()
    }

    /// Lets all writers go on. What is not written by then is lost.
    public func end() {
        _ = faults?.end()
        faults = nil
        spaces = [:]
    }
}
