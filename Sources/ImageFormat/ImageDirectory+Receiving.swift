public import Diagnostics
public import Linux
internal import SystemPackage

/// Images that come from elsewhere.
extension ImageDirectory {
    /// Whether a file is of the parent of our making.
    public static func isShared(_ name: String) -> Bool { name.hasPrefix(sharedFolder + "/") }

    /// Whether a file of a set may be called so: `NAME.img` or `stats-dump`, in `shared-pages` too.
    public static func isFileName(_ name: String) -> Bool {
        let inner = isShared(name) ? name.dropFirst(sharedFolder.count + 1) : name[...]
        guard let first = inner.utf8.first, first != 0x2e, inner.utf8.count <= 200,
            inner.utf8.allSatisfy({ byte in
                (0x30...0x39).contains(byte) || byte < 0x80 && (0x41...0x5a).contains(byte & 0xdf) || byte == 0x2d
                    || byte == 0x2e || byte == 0x5f
            })
        else { return false }
        return inner.hasSuffix(".img") || inner == ImageName.dumpStatistics.fileName
    }

    /// Opens a file of a set that comes from elsewhere for writing. Its inventory is not called so before `complete`.
    ///
    /// - Parameter begins: it is created.
    public func receive(_ name: String, begins: Bool) throws(Failure) -> Descriptor {
        let name = name == ImageName.inventory.fileName ? ImageDirectory.staging.fileName : name
        let folder = directory.number
        if begins, ImageDirectory.isShared(name) { try makeSharedFolder() }
        let file = try attempt("create the image \(name) in \(path.string)", advice: "Check that there is room") {
            () throws(SystemCallError) in
            try openFile(
                name, begins ? [.writeOnly, .create, .truncate, .noFollow] : [.writeOnly, .noFollow], mode: 0o644,
                in: folder)
        }
        if begins { written.append(name) }
        return file
    }

    private func makeSharedFolder() throws(Failure) {
        let folder = directory.number
        try attempt("create \(ImageDirectory.sharedFolder) in \(path.string)") { () throws(SystemCallError) in
            try withCString(ImageDirectory.sharedFolder) { (name) throws(SystemCallError) in
                do throws(SystemCallError) { try systemCall(.mkdirat, Int(folder), name, 0o755) } catch {
                    if error.errno != .EEXIST { throw error }
                }
            }
        }
        previous = FilePath(ImageDirectory.sharedFolder)
    }

    /// Makes a second name of a file of a set that comes from elsewhere.
    public func receive(_ name: String, linkedTo other: String) throws(Failure) {
        let folder = Int(directory.number)
        if ImageDirectory.isShared(name) { try makeSharedFolder() }
        try attempt("link \(name) in \(path.string)") { () throws(SystemCallError) in
            try withCString(other) { (other) throws(SystemCallError) in
                try withCString(name) { (name) throws(SystemCallError) in
                    try systemCall(.linkat, folder, other, folder, name, 0)
                }
            }
        }
        written.append(name)
    }

    /// Makes a set that came from elsewhere valid.
    ///
    /// - Parameter ready: called when nothing but the name of the inventory is missing.
    public func complete(sync method: SyncMethod, ready: () throws(Failure) -> Void) throws(Failure) {
        if let previous { try linkParent(previous) }
        previous = nil
        try removeOld()
        try sync(method)
        try ready()
        try publish(method)
    }
}
