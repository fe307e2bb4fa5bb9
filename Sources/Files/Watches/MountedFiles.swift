internal import Diagnostics
internal import Kinds
internal import Linux
internal import Procfs
internal import SystemPackage

/// Opens files by the handles that the kernel gives to watched inodes, and compares files with watched inodes.
final class MountedFiles {
    /// All mounts that the tree sees.
    private(set) var mounts: [Mount] = []
    private let view: TreeView
    /// In which of the tree's mount namespaces they are.
    private var namespaces: [Int32: Int] = [:]
    /// Mount points opened so far; nil where that failed.
    private var opened: [Int32: Int32?] = [:]
    /// An inotify that shows us by which names the kernel knows a file.
    private let probe: Descriptor

    /// - Parameter tasks: those of the tree, if it has mount namespaces of its own.
    init(of tasks: [TaskID], _ view: TreeView) throws(Failure) {
        self.view = view
        if tasks.isEmpty { mounts = try Mount.all() }
        var seen: Set<Int> = []
        for task in tasks {
            guard seen.count < view.mounts.count, let index = try view.mounts.index(of: task),
                seen.insert(index).inserted
            else { continue }
            let all = try Mount.all(of: task)
            for mount in all { namespaces[mount.id] = index }
            mounts += all
        }
        probe = try attempt("create an inotify") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try systemCall(.inotify_init1, 0o2004000)))
        }
    }

    deinit { for number in opened.values { if let number { _ = try? systemCall(.close, Int(number)) } } }

    /// The device of a mount's file system.
    func device(of mount: Int32) -> UInt32? { mounts.first { $0.id == mount }?.device }

    private func root(of mount: Mount) -> Int32? {
        if let known = opened[mount.id] { return known }
        var number: Int32?
        let made = try? view.at(namespace: namespaces[mount.id] ?? 0) { () throws(Failure) in
            try attempt("open a mount") { () throws(SystemCallError) in
                try openFile(FilePath(bytes: mount.point), [.directory, .noFollow])
            }
        }
        if let root = made, let status = try? FileStatus.read(in: root.number), status.mountID == mount.id {
            number = root.release()
        }
        opened[mount.id] = .some(number)
        return number
    }

    /// Opens an inode by its handle, for its path only; nil if it is gone or its file system can't do that.
    func open(_ inode: WatchedInode) -> Descriptor? {
        guard !inode.handle.isEmpty else { return nil }
        let handle =
            [UInt8](bytesOf: UInt32(inode.handle.count)) + [UInt8](bytesOf: inode.handleType) + inode.handle
        for mount in mounts where mount.device == inode.device {
            guard let root = root(of: mount) else { continue }
            let opened = try? handle.withConstantAddress { (address, _) throws(SystemCallError) in
                try systemCall(.open_by_handle_at, Int(root), address, Int(OpenFlags.path.rawValue | 0o2000000))
            }
            if let opened { return Descriptor(owning: Int32(opened)) }
        }
        return nil
    }

    /// Whether an open file is the watched inode. Asks the kernel, because on layered file systems stat(2) shows other
    /// numbers than the kernel uses.
    func isSame(_ file: Int32, _ inode: WatchedInode) -> Bool {
        let ours = Int(probe.number)
        guard let watch = try? addWatch(probe.number, to: file, 0x2000) else { return false }  // IN_UNMOUNT
        defer { _ = try? systemCall(.inotify_rm_watch, ours, Int(watch)) }
        guard let text = try? readWholeFile("/proc/self/fdinfo/\(ours)") else { return false }
        for line in DescriptorInformation(text).lines {
            if let found = try? Mark(line, of: "inotify")?.inode() { return found == inode }
        }
        return false
    }
}

/// Adds a watch on an open file (`inotify_add_watch(2)`), which may be open for its path only. Returns its number.
func addWatch(_ inotify: Int32, to file: Int32, _ mask: UInt32) throws(SystemCallError) -> Int32 {
    try withCString("/proc/self/fd/\(file)") { (path) throws(SystemCallError) in
        Int32(try systemCall(.inotify_add_watch, Int(inotify), path, Int(mask)))
    }
}
