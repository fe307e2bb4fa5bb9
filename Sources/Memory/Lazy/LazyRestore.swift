internal import CLinux
public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
public import Linux
internal import Pages
internal import Remote

/// The restore's side of lazy memory: hands userfaultfds to the pager.
public final class LazyRestore {
    private let socket: Int32
    /// Whether the pager takes shared memory, as ours does and CRIU's does not.
    private let isOurs: Bool
    /// Which private pages come later.
    private var scope: LazyScope
    /// Whether the pager has brought everything.
    private var isComplete = false

    private init(_ socket: Int32, isOurs: Bool, _ scope: LazyScope) {
        self.socket = socket
        self.isOurs = isOurs
        self.scope = scope
    }

    deinit { _ = try? systemCall(.close, Int(socket)) }

    /// Begins with a connection to a pager, which first hears of the tasks that have nothing to wait for.
    ///
    /// - Parameters:
    ///   - isOurs: it is of this program.
    ///   - hasPages: it has all pages in its images; nil if it has to be asked.
    public static func begin(
        _ socket: consuming Descriptor, isOurs: Bool, hasPages: Bool?, zombies: [TaskID], _ context: RestoreContext
    ) throws(Failure) {
        let number = socket.release()
        var hasAll = isOurs && hasPages == true
        if isOurs, hasPages == nil {
            try PagerSocket.send(PagerSocket.question, to: number)
            hasAll = try PagerSocket.receive(UInt32.self, from: number) == 1
        }
        let lazy = context.state(LazyRestore.self) { LazyRestore(number, isOurs: isOurs, hasAll ? .all : .marked) }
        for zombie in zombies { try PagerSocket.send(-zombie.rawValue, to: lazy.socket) }
    }

    /// Which private pages come later.
    static func scope(_ context: RestoreContext) -> LazyScope { (try? known(context))?.scope ?? .marked }

    /// Decides what comes later, and tells the pager.
    public static func choose(among processes: [PlannedProcess], _ context: RestoreContext) throws(Failure) {
        let lazy = try known(context)
        if lazy.scope == .all {
            if try canSpareHugePages(processes) { lazy.scope = .allAndHuge }
            try PagerSocket.send(PagerSocket.scope, to: lazy.socket)
            try PagerSocket.send(lazy.scope.rawValue, to: lazy.socket)
        }
        try chooseShared(processes, context)
    }

    /// Whether private huge pages may come later: forked children get pages of their own then, which others must not lack.
    private static func canSpareHugePages(_ processes: [PlannedProcess]) throws(Failure) -> Bool {
        var owners = 0
        var needed: UInt64 = 0
        for process in processes {
            var own: UInt64 = 0
            for entry in process.memory?.vmas ?? [] {
                let area = try Area(entry)
                if area.lazyUnit != nil { own += area.range.length }
            }
            if own > 0 { owners += 1 }
            needed += own
        }
        guard owners == 1 else { return false }
        func number(_ name: String) -> UInt64 {
            let text = (try? readWholeFile("/sys/kernel/mm/hugepages/hugepages-2048kB/\(name)_hugepages")) ?? []
            return UInt64(String(decoding: text.filter { $0 != 0x0a }, as: UTF8.self)) ?? 0
        }
        let free = number("free") + number("nr_overcommit")
        let taken = number("resv") + number("surplus") + 2 * needed / (2 << 20)
        return free >= taken
    }

    // MARK: shared memory

    /// Whether shared memory may come later.
    static func postpones(_ context: RestoreContext) -> Bool {
        guard context.policy.isLazy, let lazy = try? known(context), lazy.isOurs else { return false }
        // A ring gives memory back without a call that could be seen.
        return context.entries(of: .ioUring).isEmpty
    }

    /// Notes which files in memory can come later: those that have no user but mappings.
    private static func chooseShared(_ processes: [PlannedProcess], _ context: RestoreContext) throws(Failure) {
        guard postpones(context) else { return }
        var mapped: Set<UInt32> = []
        var others: Set<UInt32> = []
        for process in processes {
            others.formUnion(process.descriptors.map(\.id))
            guard let memory = process.memory else { continue }
            others.insert(memory.exeFileID)
            for entry in memory.vmas {
                let area = try Area(entry)
                guard area.isFile, area.status.contains(.memfd) else { continue }
                let file = UInt32(truncatingIfNeeded: area.file)
                if area.canBePostponed { mapped.insert(file) } else { others.insert(file) }
            }
        }
        // What a task has open is a large file.
        let readWrite = UInt32(OpenFlags.readWrite.rawValue)
        let opened = context.entries(of: .memfd).filter { $0.memfd.flags != readWrite }.map(\.id)
        PostponedMemory.of(context).candidates = mapped.subtracting(others).subtracting(opened)
    }

    private static func known(_ context: RestoreContext) throws(Failure) -> LazyRestore {
        try context.state(LazyRestore.self) { () throws(Failure) in throw Failure(.bug, "no pager") }
    }

    /// Has a process open a userfaultfd. In a user namespace of its own it may not, but by a device that we open.
    private static func open(_ process: RestoredProcess, _ context: RestoreContext) throws(Failure) -> RemoteDescriptor
    {
        var batch = Batch()
        guard context.owners.isApart else {
            let opened = batch.add(
                .userfaultfd, .value(0o2004000), doing: "open a userfaultfd (does this kernel have them?)")
            return RemoteDescriptor(Int32(try process.puppet.run(batch)[opened]))
        }
        let device = try attempt("open /dev/userfaultfd", advice: "Lazy restores into user namespaces need Linux 6.1") {
            () throws(SystemCallError) in
            let number = try RootVisit.outside { () throws(SystemCallError) in
                try openFile("/dev/userfaultfd", .readWrite).release()
            }
            return Descriptor(owning: number)
        }
        let arrived = try context.deliver([device.number], to: process.puppet)[0]
        let opened = batch.add(
            .ioctl, .descriptor(arrived), .value(0xaa00), .value(0o2004000), doing: "open a userfaultfd")
        batch.add(.close, .descriptor(arrived), doing: "close the device")
        return RemoteDescriptor(Int32(try process.puppet.run(batch)[opened]))
    }

    /// Has the page faults of a process go to the pager.
    ///
    /// - Parameter areas: the mappings that have missing pages.
    static func arm(_ process: RestoredProcess, _ areas: [AddressRange], _ context: RestoreContext) throws(Failure) {
        let lazy = try known(context)
        try PostponedMemory.of(context).hand { (piece) throws(Failure) in
            let number = piece.file.number
            let status = try attempt("look at shared memory") { () throws(SystemCallError) in
                try FileStatus.read(in: number)
            }
            guard status.blocks == 0 else {
                throw Failure(.bug, "the shared memory \(piece.id), which is to come later, is not empty")
            }
            try PagerSocket.send(PagerSocket.shared, to: lazy.socket)
            try PagerSocket.send(piece.id, to: lazy.socket)
            try PagerSocket.send([piece.file.number], to: lazy.socket)
        }
        guard !areas.isEmpty else { return try PagerSocket.send(-process.id.rawValue, to: lazy.socket) }
        let number = try open(process, context)
        let pidfd = try attempt("open a pidfd") { () throws(SystemCallError) in
            try process.task.openHandle()
        }
        let task = pidfd.number
        let handle = try attempt("fetch the userfaultfd") { () throws(SystemCallError) in
            try fetchDescriptor(Int(number.number), through: task)
        }
        var close = Batch()
        close.add(.close, .descriptor(number), doing: "close the userfaultfd")
        try process.puppet.run(close)
        // Only we may ask for news of forks.
        try attempt("use a userfaultfd that tells of forks and moves") { () throws(SystemCallError) in
            try Userfaultfd.agree(handle.number, features: LazyMemory.features)
        }
        for range in areas {
            try attempt("wait for missing pages in \(range)") { () throws(SystemCallError) in
                try Userfaultfd.register(handle.number, range, mode: 1)  // UFFDIO_REGISTER_MODE_MISSING
            }
        }
        try PagerSocket.send(process.id.rawValue, to: lazy.socket)
        try PagerSocket.send([handle.number, pidfd.number], to: lazy.socket)
    }

    /// Makes sure, before the tasks run, that somebody brings their pages.
    public static func check(_ context: RestoreContext) throws(Failure) {
        guard context.policy.isLazy else { return }
        let lazy = try known(context)
        guard !lazy.isComplete else { return }
        let socket = lazy.socket
        let ready = try attempt("look at the pager") { () throws(SystemCallError) in try poll(socket, for: 1) }
        guard ready == 0 else { throw Failure(.vanished, "the pager has ended", advice: "See lazy-pages.log") }
    }

    /// Tells the pager that the tasks run.
    public static func finish(_ context: RestoreContext) {
        guard context.policy.isLazy, let lazy = try? known(context), !lazy.isComplete else { return }
        _ = try? PagerSocket.send(PagerSocket.finished, to: lazy.socket)
    }

    /// Has the pager bring all pages while the tasks stand still, and waits for that. The source ends then: from here on the
    /// tree is only here.
    public static func bringAll(_ context: RestoreContext) throws(Failure) {
        let lazy = try known(context)
        try check(context)
        try PagerSocket.send(PagerSocket.finished, to: lazy.socket)
        guard try PagerSocket.receive(UInt32.self, from: lazy.socket) == PagerSocket.complete else {
            throw Failure(
                .vanished, "the pager did not bring all pages, or is CRIU's, which does not say so",
                advice: "See lazy-pages.log")
        }
        lazy.isComplete = true
    }
}

extension PostponedMemory {
    static func of(_ context: RestoreContext) -> PostponedMemory {
        context.state(PostponedMemory.self) { PostponedMemory() }
    }

    /// Whether pages of a mapping come later.
    func holds(_ area: Area) -> Bool {
        if area.isFile { return area.status.contains(.memfd) && holds(file: UInt32(truncatingIfNeeded: area.file)) }
        return area.status.contains(.anonymousShared) && !area.status.contains(.sysv) && holds(segment: area.file)
    }
}
