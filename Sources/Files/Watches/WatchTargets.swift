internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import SystemPackage

/// Restore: opens what is to be watched.
final class WatchTargets {
    private let context: RestoreContext
    private let files: MountedFiles

    private init(_ context: RestoreContext) throws(Failure) {
        self.context = context
        let tasks = context.processes.filter { !$0.plan.isZombie }.map(\.task)
        files = try MountedFiles(of: context.ownNamespaces[.mnt] == nil ? [] : tasks, context.view)
    }

    static func of(_ context: RestoreContext) throws(Failure) -> WatchTargets {
        try context.state(WatchTargets.self) { () throws(Failure) in try WatchTargets(context) }
    }

    /// Opens a watched file, for its path only.
    ///
    /// An unlinked file is one that the restore has made again. Otherwise a handle that still works finds the very inode,
    /// whatever its name is by now; the path serves where inodes are not the same any more.
    func open(_ entry: FhEntry, device: UInt32, number: UInt64) throws(Failure) -> Descriptor {
        if let id = RestoredRemaps.of(context).ghost(device: device, inode: number), context.files.contains(id) {
            let ours = try context.files.number(id)
            return try attempt("open a watched file") { () throws(SystemCallError) in
                try openFile("/proc/self/fd/\(ours)", [.path])
            }
        }
        let inode = try WatchedInode(entry, device: device, number: number)
        if let file = files.open(inode) { return file }
        let path = Array(entry.path)
        guard path.first == 0x2f, !path.contains(0) else {
            throw Failure(
                .conflict, "the watched \(inode.name) is gone, and the image has no path of it",
                advice: "Dump with --force-irmap to note the paths of watched files")
        }
        let text = String(decoding: path, as: UTF8.self)
        let mount = entry.hasMntID ? Int32(bitPattern: entry.mntID) : -1
        return try context.view.at(mount: mount) { () throws(Failure) in
            try attempt("open the watched file \(text)", code: .conflict, advice: "Put it back as it was") {
                () throws(SystemCallError) in
                let file = try openFile(FilePath(bytes: path), [.path, .noFollow])
                context.log.debug("\(text) is watched by its name")
                return file
            }
        }
    }

    /// Opens the mount point of a mount, for its path only.
    func open(mount entry: FanotifyMountMarkEntry, as what: String) throws(Failure) -> Descriptor {
        try context.view.at(mount: Int32(bitPattern: entry.mntID)) { () throws(Failure) in
            try open(mount: Array(entry.path), as: what)
        }
    }

    private func open(mount path: [UInt8], as what: String) throws(Failure) -> Descriptor {
        guard path.first == 0x2f, !path.contains(0) else {
            throw Failure(.corruptImage, "the path of a marked \(what) makes no sense")
        }
        let text = String(decoding: path, as: UTF8.self)
        let file = try attempt("open the mount point \(text)", code: .conflict, advice: "Mount it as it was") {
            () throws(SystemCallError) in try openFile(FilePath(bytes: path), [.path, .noFollow])
        }
        let ours = file.number
        let status = try attempt("look at \(text)") { () throws(SystemCallError) in try FileStatus.read(in: ours) }
        guard files.mounts.contains(where: { $0.id == status.mountID && $0.point == path }) else {
            throw Failure(
                .conflict, "\(text) is no mount point, but a \(what) there is to be watched",
                advice: "Mount it as it was")
        }
        return file
    }
}
