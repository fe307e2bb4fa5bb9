internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Remote
internal import SystemPackage

/// Restore: files whose path leads elsewhere or nowhere.
///
/// A ghost appears under its old name for as long as its descriptions are opened, and then loses the name. Everything
/// that appears is noted, so that a failed restore leaves nothing.
final class RestoredRemaps {
    private var remaps: [UInt32: RemapFilePathEntry] = [:]
    private var onlyPaths: Set<UInt32> = []
    private var ghosts: [UInt32: (path: [UInt8], mount: Int32)] = [:]
    private var linked: Set<UInt32> = []
    private var inodes: [Inode: UInt32] = [:]
    /// Names that were made, and in which of the tree's mount namespaces.
    private var names: [(path: [UInt8], isDirectory: Bool, namespace: Int)] = []
    /// Names that the dump has left, and in which of the namespaces. A restore that fails must be able to be tried again.
    private var temporary: [(path: [UInt8], namespace: Int)] = []
    private var standIns: [UInt32: Puppet] = [:]
    /// Ghosts that never had a name (O_TMPFILE), by the id of the description that made them. Only such a file can be
    /// given a name later.
    private var unnamed: [UInt32: (id: UInt32, flags: UInt32)] = [:]
    private var unnamedFiles: [UInt32: Int32] = [:]

    deinit { for number in unnamedFiles.values { _ = try? systemCall(.close, Int(number)) } }

    static func of(_ context: RestoreContext) -> RestoredRemaps {
        context.state(RestoredRemaps.self) { RestoredRemaps() }
    }

    func load(_ context: RestoreContext) throws(Failure) {
        for entry in try context.images.loadAll(.remapPaths, as: RemapFilePathEntry.self) {
            remaps[entry.origID] = entry
            if entry.remapType == .ghost, let file = context.entry(entry.origID), file.hasReg,
                file.reg.flags & RestoredRemaps.unnamedFlag != 0
            {
                unnamed[entry.remapID] = (entry.origID, file.reg.flags)
            }
        }
        for remap in remaps.values where remap.hasRemapType && remap.remapType == .ghost {
            guard let entry = try context.images.open(.ghost(remap.remapID)).next(GhostFileEntry.self), entry.hasIno
            else { continue }
            inodes[Inode(device: entry.dev, inode: entry.ino)] = remap.origID
        }
        for entry in context.entries(of: .fifo) where entry.hasFifo {
            onlyPaths.insert(entry.fifo.hasRegfID ? entry.fifo.regfID : entry.id)
        }
        for entry in context.entries(of: .tty) where entry.hasTty && entry.tty.hasRegfID {
            onlyPaths.insert(entry.tty.regfID)
        }
        for entry in remaps.values where entry.remapType == .linked || !entry.hasRemapType {
            onlyPaths.insert(entry.remapID)
        }
    }

    /// Whether an entry is only the path of another one and not a file to be opened.
    func isOnlyPath(_ id: UInt32) -> Bool { onlyPaths.contains(id) }

    /// Whether an entry is a file to be opened by its path, as it is there.
    func isByItself(_ id: UInt32) -> Bool { remaps[id] == nil && !isOnlyPath(id) }

    /// The file that is made again for an unlinked inode.
    func ghost(device: UInt32, inode: UInt64) -> UInt32? { inodes[Inode(device: device, inode: inode)] }

    private struct Inode: Hashable {
        let device: UInt32, inode: UInt64
    }

    /// Descriptions of one ghost are opened together, while it has a name.
    func group(_ id: UInt32) -> UInt64 {
        guard let remap = remaps[id] else { return UInt64(id) }
        return UInt64(remap.remapType.rawValue + 1) << 32 | UInt64(remap.remapID)
    }

    private static let unnamedFlag: UInt32 = 0o20000000  // __O_TMPFILE, which open(2) wants with O_DIRECTORY

    /// Makes a ghost that never had a name. Returns the place of the new file in /proc, or nil if the file system can't.
    private func makeUnnamed(_ ghost: UInt32, at path: [UInt8]) -> [UInt8]? {
        guard let (id, flags) = unnamed[ghost], let slash = path.lastIndex(of: 0x2f) else { return nil }
        let once: UInt32 = 0o100 | 0o200 | 0o1000
        let file = try? openFile(
            FilePath(bytes: Array(path[..<max(slash, 1)])),
            OpenFlags(rawValue: Int32(bitPattern: flags & ~once | 0o2000000)), mode: 0o600)
        guard let number = file?.release() else { return nil }
        unnamedFiles[id] = number
        return Array(ourPath("/proc/self/fd/\(number)").utf8)
    }

    /// The description that made an unnamed ghost; it is the caller's from then on.
    func unnamedFile(of entry: RegFileEntry) throws(Failure) -> Descriptor? {
        guard let number = unnamedFiles.removeValue(forKey: entry.id) else { return nil }
        let file = Descriptor(owning: number)
        try attempt("set its offset") { () throws(SystemCallError) in
            try systemCall(.lseek, Int(number), Int(bitPattern: UInt(entry.pos)), 0)
        }
        return file
    }

    /// Sees to it that a file can be opened. Returns the path to open.
    @discardableResult
    func prepare(_ entry: RegFileEntry, _ context: RestoreContext) throws(Failure) -> [UInt8] {
        let path = Array(entry.name)
        guard let remap = remaps[entry.id] else { return path }
        switch remap.remapType {
        case .ghost: return try raise(remap.remapID, for: entry, context)
        case .linked:
            guard let other = context.entry(remap.remapID), other.hasReg else {
                throw Failure(.corruptImage, "its remap \(remap.remapID) is not in files.img")
            }
            return try link(other.reg, to: entry, remap.remapID, context)
        case .procfs:
            try standIn(for: remap.remapID, context)
            return path
        }
    }

    // MARK: ghosts

    private func raise(
        _ ghost: UInt32, for file: RegFileEntry, _ context: RestoreContext
    ) throws(Failure) -> [UInt8] {
        let path = Array(file.name)
        if let known = ghosts[ghost] {
            if known.mount == file.mntID { return known.path }
            if let seen = context.view.mounts.path(known.path, on: known.mount, seenOn: file.mntID) { return seen }
            let problem = try link(known, to: (path, file.mntID), context)
            guard let problem else { return path }
            throw Failure(.conflict, "can't give the ghost file another name on another mount", cause: problem)
        }
        let reader = try context.images.open(.ghost(ghost))
        guard let entry = try reader.next(GhostFileEntry.self) else {
            throw Failure(.corruptImage, "the ghost file is empty")
        }
        try makeParents(of: path, context)
        var place = path
        if let made = makeUnnamed(ghost, at: path) {
            place = made
        } else {
            if try !create(entry, at: place) {
                // The name belongs to another file now.
                place = path + Array(".\(ghost).brumate-ghost".utf8)
                guard try create(entry, at: place) else { throw Failure(.conflict, "the name for its ghost is taken") }
            }
            names.append(
                (place, entry.mode & 0o170000 == FileStatus.Kind.directory.rawValue, context.view.namespace))
        }
        ghosts[ghost] = (place, file.mntID)
        if entry.mode & 0o170000 == FileStatus.Kind.regular.rawValue {
            try fill(place, entry, reader, context)
        }
        try finish(place, entry, context)
        return place
    }

    /// Creates a file of a ghost's type. Returns false if the name is taken.
    private func create(_ entry: GhostFileEntry, at place: [UInt8]) throws(Failure) -> Bool {
        let here = Int(currentDirectory)
        do throws(SystemCallError) {
            try withCString(place) { (path) throws(SystemCallError) in
                switch FileStatus.Kind(rawValue: entry.mode & 0o170000) {
                case .regular:
                    _ = try openFile(FilePath(bytes: place), [.writeOnly, .create, .exclusive, .noFollow])
                case .directory: try systemCall(.mkdirat, here, path, 0o700)
                case .symbolicLink:
                    try withCString(Array(entry.symlnkTarget)) { (target) throws(SystemCallError) in
                        try systemCall(.symlinkat, target, here, path)
                    }
                default: try systemCall(.mknodat, here, path, Int(entry.mode), Int(entry.rdev))
                }
            }
            return true
        } catch {
            if error.errno == .EEXIST { return false }
            throw Failure(
                .denied, "can't create the ghost file", advice: "Check that its directory can be written", cause: error)
        }
    }

    private func fill(_ place: [UInt8], _ entry: GhostFileEntry, _ reader: ImageReader, _ context: RestoreContext)
        throws(Failure)
    {
        let file = try attempt("open the ghost file") { () throws(SystemCallError) in
            try openFile(FilePath(bytes: place), place.starts(with: own) ? .writeOnly : [.writeOnly, .noFollow])
        }
        let number = Int(file.number)
        func put(_ bytes: [UInt8], _ offset: UInt64) throws(Failure) {
            try attempt("write the ghost file", advice: "Check that the disk has room") { () throws(SystemCallError) in
                try bytes.withConstantAddress { (address, count) throws(SystemCallError) in
                    try writeFully(Int32(number), from: address, count: count, at: offset)
                }
            }
        }
        if entry.chunks {
            while let chunk = try reader.next(GhostChunkEntry.self) {
                let (end, over) = chunk.off.addingReportingOverflow(chunk.len)
                guard !over, end <= 1 << 62, chunk.len <= UInt64(reader.size) else {
                    throw Failure(.corruptImage, "a piece of the ghost file makes no sense")
                }
                var at = chunk.off
                while at < end {
                    let part = min(1 << 20, end - at)
                    try put(try reader.read(Int(part)), at)
                    at += part
                }
            }
        } else {
            var at: UInt64 = 0
            while reader.offset < reader.size {
                let bytes = try reader.read(min(1 << 20, reader.size - reader.offset))
                try put(bytes, at)
                at += UInt64(bytes.count)
            }
        }
        if entry.hasSize {
            try attempt("set the size of the ghost file") { () throws(SystemCallError) in
                try systemCall(.ftruncate, number, Int(bitPattern: UInt(entry.size)))
            }
        }
    }

    /// Where an unnamed file of ours is found.
    private var own: String.UTF8View { ourPath("/proc/self/fd/").utf8 }

    private func finish(_ place: [UInt8], _ entry: GhostFileEntry, _ context: RestoreContext) throws(Failure) {
        let here = Int(currentDirectory)
        let noFollow = place.starts(with: own) ? 0 : 0x100  // AT_SYMLINK_NOFOLLOW
        try attempt("give the ghost file its owner and mode") { () throws(SystemCallError) in
            try withCString(place) { (path) throws(SystemCallError) in
                try systemCall(
                    .fchownat, here, path, context.owners.ourUser(entry.uid), context.owners.ourGroup(entry.gid),
                    noFollow)
                if entry.mode & 0o170000 != FileStatus.Kind.symbolicLink.rawValue {
                    try systemCall(.fchmodat, here, path, Int(entry.mode & 0o7777))
                }
            }
        }
        for attribute in entry.attributes {
            do throws(SystemCallError) { try ExtendedAttributes.set(attribute, at: place) } catch {
                let (file, name) = (
                    String(decoding: place, as: UTF8.self), String(decoding: attribute.name, as: UTF8.self)
                )
                context.log.warning("the unlinked file \(file) loses its attribute \(name): \(error)")
            }
        }
        try attempt("give the ghost file its times") { () throws(SystemCallError) in
            try withCString(place) { (path) throws(SystemCallError) in
                if entry.hasAtim, entry.hasMtim {
                    var times = [
                        entry.atim.tvSec, entry.atim.tvUsec &* 1000, entry.mtim.tvSec, entry.mtim.tvUsec &* 1000,
                    ]
                    try times.withAddress { (times, _) throws(SystemCallError) in
                        try systemCall(.utimensat, here, path, times, noFollow)
                    }
                }
            }
        }
    }

    /// Makes directories that are gone by now; they go again with the ghosts.
    private func makeParents(of path: [UInt8], _ context: RestoreContext) throws(Failure) {
        var missing: [[UInt8]] = []
        var parent = path
        while let slash = parent.lastIndex(of: 0x2f), slash > 0 {
            parent = Array(parent[..<slash])
            if (try? FileStatus.read(path: parent)) != nil { break }
            missing.append(parent)
        }
        for directory in missing.reversed() {
            try attempt("create its directory again") { () throws(SystemCallError) in
                try withCString(directory) { (address) throws(SystemCallError) in
                    try systemCall(.mkdirat, Int(currentDirectory), address, 0o755)
                }
            }
            names.append((directory, true, context.view.namespace))
        }
    }

    // MARK: link remaps

    private func link(
        _ entry: RegFileEntry, to file: RegFileEntry, _ id: UInt32, _ context: RestoreContext
    ) throws(Failure) -> [UInt8] {
        let (path, other) = (Array(file.name), Array(entry.name))
        let view = context.view
        try makeParents(of: path, context)
        // CRIU's images don't say which mount the temporary name is on.
        let isKnown = view.mounts.contains(entry.mntID)
        let mounts = isKnown ? [entry.mntID] : [file.mntID, view.mounts.mount(of: other)].compactMap { $0 }
        var problem: SystemCallError?
        for mount in mounts {
            problem = try link((other, mount), to: (path, file.mntID), context)
            // Where the old name is taken, the temporary one serves.
            let seen = problem?.errno == .EEXIST ? view.mounts.path(other, on: mount, seenOn: file.mntID) : nil
            guard problem == nil || seen != nil else { continue }
            if linked.insert(id).inserted {
                try view.at(mount: mount) { () throws(Failure) in temporary.append((other, view.namespace)) }
            }
            return seen ?? path
        }
        throw Failure(
            .conflict, "can't link the unlinked file again",
            advice: "The dump left it as \(String(decoding: other, as: UTF8.self))", cause: problem)
    }

    /// Gives a file a second name for the time of the restore, through a mount that shows both. Returns why it has none.
    private func link(
        _ old: (path: [UInt8], mount: Int32), to new: (path: [UInt8], mount: Int32), _ context: RestoreContext
    ) throws(Failure) -> SystemCallError? {
        let view = context.view
        var problem = SystemCallError(.linkat, .EXDEV)
        for mount in [new.mount] + view.mounts.others(like: new.mount) {
            guard let from = view.mounts.path(old.path, on: old.mount, seenOn: mount),
                let to = view.mounts.path(new.path, on: new.mount, seenOn: mount)
            else { continue }
            let failed = try view.at(mount: mount) { () throws(Failure) in
                let failed = link(from, to)
                if failed == nil { names.append((to, false, view.namespace)) }
                return failed
            }
            guard let failed else { return nil }
            problem = failed
            if failed.errno == .EEXIST { break }
        }
        return problem
    }

    /// Gives a file a second name. Returns why it has none.
    private func link(_ old: [UInt8], _ new: [UInt8]) -> SystemCallError? {
        let here = Int(currentDirectory)
        do throws(SystemCallError) {
            try withCString(old) { (old) throws(SystemCallError) in
                try withCString(new) { (new) throws(SystemCallError) in
                    _ = try systemCall(.linkat, here, old, here, new, 0)
                }
            }
            return nil
        } catch { return error }
    }

    // MARK: dead tasks in /proc

    private func standIn(for pid: UInt32, _ context: RestoreContext) throws(Failure) {
        guard standIns[pid] == nil, let root = context.processes.first else { return }
        for made in try root.puppet.clone([CloneRequest(id: TaskID(Int32(bitPattern: pid)))]) { standIns[pid] = made }
    }

    /// Removes all names that were only for the restore, the latest first.
    func removeNames(_ context: RestoreContext) {
        for (path, isDirectory, namespace) in names.reversed() {
            try? context.view.at(namespace: namespace) { () throws(Failure) in
                _ = try? removeName(FilePath(bytes: path), isDirectory: isDirectory)
            }
        }
        names = []
    }

    /// Removes the names that the dump has left, which nobody needs any more.
    func removeTemporary(_ context: RestoreContext) {
        for (path, namespace) in temporary {
            try? context.view.at(namespace: namespace) { () throws(Failure) in
                _ = try? removeName(FilePath(bytes: path))
            }
        }
        temporary = []
    }

    /// Ends the tasks that stood in for dead ones.
    func dismissStandIns() {
        for puppet in standIns.values {
            _ = try? systemCall(.kill, Int(puppet.task.rawValue), 9)
            while puppet.tracee.isAttached, (try? puppet.tracee.wait()) != nil {}
        }
        standIns = [:]
    }
}
