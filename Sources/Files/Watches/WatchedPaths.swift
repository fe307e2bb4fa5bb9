internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import SystemPackage

/// Dump: finds the paths of watched inodes.
final class WatchedPaths {
    private let context: DumpContext
    private let files: MountedFiles
    private var found: [WatchedInode: Place] = [:]
    private var searches: [UInt32: InodeSearch] = [:]
    /// Files that tasks of the tree have open, by inode number.
    private var open: [UInt64: [String]]?

    /// A path, and the mount that it leads to.
    private struct Place {
        let path: [UInt8], mount: Int32
    }

    private init(_ context: DumpContext) throws(Failure) {
        self.context = context
        let isApart = context.namespaces.apart.contains(.mnt)
        files = try MountedFiles(of: isApart ? context.processes.map(\.id) : [], context.view)
    }

    static func of(_ context: DumpContext) throws(Failure) -> WatchedPaths {
        try context.state(WatchedPaths.self) { () throws(Failure) in try WatchedPaths(context) }
    }

    /// The mounts that the tree sees.
    var mounts: [Mount] { files.mounts }

    /// Everything by which a watched inode can be found at restore.
    func entry(for inode: WatchedInode) throws(Failure) -> FhEntry {
        if let place = found[inode] { return entry(for: inode, at: place) }
        var isOpenable = false
        if let file = files.open(inode) {
            isOpenable = true
            if let place = place(of: file.number, inode) { return note(place, inode) }
        }
        // Searching is for inodes that a handle does not lead to, or if the user insists.
        if isOpenable, !context.policy.forcesPaths { return inode.entry(path: nil) }
        switch openInTree(inode) {
        case .place(let place): return note(place, inode)
        case .unlinked: return inode.entry(path: nil)
        case .nowhere: break
        }
        if let path = try search(inode) { return note(Place(path: path, mount: -1), inode) }
        throw Failure(
            .unsupported, "no path leads to the watched \(inode.name), and its file system can't open it by a handle",
            advice: "Pass --irmap-scan-path with a directory above it, or remove the watch")
    }

    private func note(_ place: Place, _ inode: WatchedInode) -> FhEntry {
        found[inode] = place
        return entry(for: inode, at: place)
    }

    private func entry(for inode: WatchedInode, at place: Place) -> FhEntry {
        var entry = inode.entry(path: place.path)
        if context.view.mounts.contains(place.mount) { entry.mntID = UInt32(bitPattern: place.mount) }
        return entry
    }

    /// The path of an open file if it leads back to the same inode.
    private func place(of file: Int32, _ inode: WatchedInode) -> Place? {
        guard let path = try? readLink("/proc/self/fd/\(file)").bytes, path.first == 0x2f,
            let mount = try? FileStatus.read(in: file).mountID
        else { return nil }
        let again = try? context.view.at(mount: mount) { () throws(Failure) in
            try attempt("open a watched file") { () throws(SystemCallError) in
                try openFile(FilePath(bytes: path), [.path, .noFollow])
            }
        }
        guard let again, files.isSame(again.number, inode) else { return nil }
        return Place(path: path, mount: mount)
    }

    private enum OpenFile {
        case place(Place), unlinked, nowhere
    }

    /// Looks among the files that the tree has open.
    private func openInTree(_ inode: WatchedInode) -> OpenFile {
        for link in openFiles()[inode.number] ?? [] {
            guard let file = try? Linux.openFile(link, [.path]), files.isSame(file.number, inode) else { continue }
            if let place = place(of: file.number, inode) { return .place(place) }
            if let status = try? FileStatus.read(in: file.number), status.links == 0 { return .unlinked }
        }
        return .nowhere
    }

    private func openFiles() -> [UInt64: [String]] {
        if let open { return open }
        var open: [UInt64: [String]] = [:]
        for process in context.processes {
            let folder = "/proc/\(process.id.rawValue)"
            let numbers = (try? listNumbers(FilePath(folder + "/fd"))) ?? []
            for link in ["cwd", "root"] + numbers.map({ "fd/\($0)" }) {
                let link = folder + "/" + link
                guard let status = try? FileStatus.read(link, in: currentDirectory) else { continue }
                open[status.inode, default: []].append(link)
            }
        }
        self.open = open
        return open
    }

    /// Walks through the places where watched files usually are, and then the whole file system, within bounds.
    private func search(_ inode: WatchedInode) throws(Failure) -> [UInt8]? {
        let started = ContinuousClock.now
        defer { context.statistics[.irmapResolve] += ContinuousClock.now - started }
        let search = searches[inode.device] ?? InodeSearch(inode.device, files, places())
        searches[inode.device] = search
        let path = search.find(inode)
        if path == nil, search.isExhausted {
            context.log.warning("gave up the search for \(inode.name) after \(InodeSearch.most) files")
        }
        return path
    }

    private func places() -> [[UInt8]] {
        var places = context.policy.scanPaths.map(\.bytes)
        for process in context.processes {
            if let link = try? readLink("/proc/\(process.id.rawValue)/cwd") { places.append(link.bytes) }
        }
        places += ["/etc", "/var/spool", "/var/log", "/usr/share/dbus-1", "/usr/share/polkit-1", "/lib/udev"].map {
            Array($0.utf8)
        }
        return places
    }
}

/// A walk through one file system in search of inodes, nearest to the starting places first. It goes on where it
/// stopped, and what it has seen is remembered.
final class InodeSearch {
    /// The most files that are looked at: some seconds of work.
    static let most = 500_000

    private let device: UInt32
    private let files: MountedFiles
    /// Directories to be listed, and which is next.
    private var folders: [(path: [UInt8], mount: Int32)] = []
    private var next = 0
    private var seen: [UInt64: [[UInt8]]] = [:]
    private var count = 0
    private var listed: Set<UInt64> = []

    init(_ device: UInt32, _ files: MountedFiles, _ places: [[UInt8]]) {
        self.device = device
        self.files = files
        for place in places + files.mounts.filter({ $0.device == device }).map(\.point) {
            guard let status = try? FileStatus.read(path: place), files.device(of: status.mountID) == device else {
                continue
            }
            note(place, status)
        }
    }

    var isExhausted: Bool { count >= InodeSearch.most }

    func find(_ inode: WatchedInode) -> [UInt8]? {
        var tried = 0
        while true {
            let candidates = seen[inode.number] ?? []
            while tried < candidates.count {
                let path = candidates[tried]
                tried += 1
                if let file = try? openFile(FilePath(bytes: path), [.path, .noFollow]), files.isSame(file.number, inode)
                {
                    return path
                }
            }
            guard next < folders.count, !isExhausted else { return nil }
            list(folders[next])
            next += 1
        }
    }

    private func note(_ path: [UInt8], _ status: FileStatus) {
        count += 1
        seen[status.inode, default: []].append(path)
        if status.kind == .directory, listed.insert(status.inode).inserted { folders.append((path, status.mountID)) }
    }

    private func list(_ folder: (path: [UInt8], mount: Int32)) {
        guard let open = try? openFile(FilePath(bytes: folder.path), [.path, .directory]),
            let names = try? listDirectory(".", in: open.number)
        else { return }
        let prefix = folder.path.last == 0x2f ? folder.path : folder.path + [0x2f]
        for name in names {
            guard let status = try? FileStatus.read(name.string, in: open.number, followsLink: false),
                status.mountID == folder.mount
            else { continue }
            note(prefix + name.bytes, status)
        }
    }
}
