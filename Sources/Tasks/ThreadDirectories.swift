internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// Working and root directory and umask of a thread that has its own (`unshare(CLONE_FS)`, as servers of files do).
enum ThreadDirectories: TaskPart {
    private static let own = 0x200  // CLONE_FS

    static func dump(_ question: Void, _ results: Results, _ thread: DumpedThread, _ context: DumpContext)
        throws(Failure)
    {
        guard !thread.isLeader else { return }
        guard try isShared(.files, thread) else {
            throw Failure(
                .unsupported, "the thread has a descriptor table of its own (unshare(CLONE_FILES))",
                advice: "End it before the dump")
        }
        guard try !isShared(.fs, thread) else { return }
        guard let files = context.fileDumper else { throw Failure(.bug, "nobody dumps files") }
        let folder = "task/\(thread.tracee.id.rawValue)"
        var more = thread.core.threadCore.brumate
        more.cwdID = try files.dump(link: folder + "/cwd", of: thread.process)
        more.rootID = try files.dump(link: folder + "/root", of: thread.process)
        more.umask = thread.status.umask
        thread.core.threadCore.brumate = more
    }

    private static func isShared(_ object: SharingIndex.Object, _ thread: DumpedThread) throws(Failure) -> Bool {
        let (one, other) = (Int(thread.process.id.rawValue), Int(thread.tracee.id.rawValue))
        return try attempt("compare the thread with its leader") { () throws(SystemCallError) in
            try systemCall(.kcmp, one, other, object.rawValue, 0, 0) == 0
        }
    }

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        let more = thread.core.threadCore.brumate
        guard stage == .thread, more.hasCwdID else { return }
        // Its descriptors are the tree's already, so it goes by ours.
        func place(_ id: UInt32) throws(Failure) -> Batch.Buffer {
            batch.place(string: "/proc/\(TaskID.current)/fd/\(try context.files.number(id))".utf8)
        }
        batch.add(.unshare, .value(own), doing: "get directories of its own")
        let (directory, root) = (try place(more.cwdID), try place(more.rootID))
        batch.add(.chdir, .buffer(directory), doing: "enter the working directory")
        let isChanged = context.entry(more.rootID).map { !Array($0.reg.name).elementsEqual("/".utf8) } ?? false
        if isChanged { batch.add(.chroot, .buffer(root), doing: "set the root directory") }
        batch.add(.umask, .value(Int(more.umask)), doing: "set the umask")
    }
}
