internal import Diagnostics
internal import Linux
internal import SystemPackage

extension ImageDirectory {
    /// Where pages lie that several processes share: a parent image of our own making.
    static let sharedFolder = "shared-pages"

    /// Makes a parent image that consists of page maps whose pages are in this directory, at `writeOut`.
    ///
    /// Page maps can refer to pages of their own file, or of the same process in the parent image. So a process that
    /// shares pages with a relative gets a page map there that is the relative's, and the pages file is linked.
    ///
    /// - Parameter inheriting: who refers to the previous images; from then on through the parent of our making.
    public func share(
        _ pagemaps: [(name: ImageName, pagemap: Pagemap)], inheriting: [(name: ImageName, runs: [PageRun])] = []
    ) {
        shared += pagemaps
        self.inheriting += inheriting
    }

    /// Makes the link to the parent images.
    func linkParent(_ target: FilePath) throws(Failure) {
        let here = Int(directory.number)
        try attempt("link the parent image in \(path.string)") { () throws(SystemCallError) in
            try withPath(target) { (target) throws(SystemCallError) in
                try withCString("parent") { (name) throws(SystemCallError) in
                    _ = try systemCall(.symlinkat, target, here, name)
                }
            }
        }
    }

    func linkShared() throws(Failure) {
        guard !shared.isEmpty else {
            if let previous { try linkParent(previous) }
            (inheriting, previous) = ([], nil)
            return
        }
        let parent = try ImageDirectory(ImageDirectory.sharedFolder, within: self)
        parent.keepsSums = keepsSums
        var linked: Set<UInt32> = []
        for (name, pagemap) in shared {
            try pagemap.write(name, to: parent)
            guard linked.insert(pagemap.pagesID).inserted else { continue }
            let name = pagesName(pagemap.pagesID).fileName
            if let receiver {
                try receiver.link(parent.prefix + name, to: prefix + name)
            } else {
                try link(name, parent)
            }
            parent.note(FileSums(name: name, size: 0, isLink: true))
            parent.written.append(name)
        }
        if let previous {
            // Page maps without pages of their own need a pages file all the same.
            let empty = newPagesID()
            _ = try parent.createFile(.pages(empty))
            for (name, runs) in inheriting { try Pagemap(pagesID: empty, runs: runs).write(name, to: parent) }
            parent.previous = previous.isAbsolute ? previous : FilePath("..").pushing(previous)
        }
        try parent.writeOut()
        if receiver == nil { try linkParent(FilePath(ImageDirectory.sharedFolder)) }
        (shared, inheriting, previous) = ([], [], nil)
        sharedSet = parent
    }

    private func link(_ file: String, _ parent: ImageDirectory) throws(Failure) {
        let (here, there) = (Int(directory.number), Int(parent.directory.number))
        try attempt("link shared pages in \(path.string)") { () throws(SystemCallError) in
            try withCString(file) { (file) throws(SystemCallError) in
                try systemCall(.linkat, here, file, there, file, 0)
            }
        }
    }

    func removeSharedPages() {
        let folder = ImageDirectory.sharedFolder
        guard let old = try? listDirectory(FilePath(folder), in: directory.number) else { return }
        for name in old { _ = try? remove(folder + "/" + name.string) }
        _ = try? removeName(FilePath(folder), isDirectory: true, in: directory.number)
    }
}
