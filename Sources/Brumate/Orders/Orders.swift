internal import Diagnostics
internal import Engine
internal import ImageFormat
internal import Kinds
internal import Linux
internal import Remote
internal import SystemPackage

/// The seam to the engine: each order as a function over a session.
///
/// The bodies turn options into the engine's requests; nothing above them knows the engine, nothing below the options.
enum Orders {
    /// Dumps the tree. Returns what was counted and timed, for `--display-stats`.
    static func dump(_ session: borrowing Session) throws(Failure) -> Statistics {
        try Engine.dump(try dumpRequest(session), log: session.log)
    }

    /// Writes the memory of the tree ahead of a dump.
    static func preDump(_ session: borrowing Session) throws(Failure) -> Statistics {
        try Engine.preDump(try dumpRequest(session), log: session.log)
    }

    /// Turns packed images and their parents into CRIU's format.
    static func unpack(_ session: borrowing Session) throws(Failure) {
        try Engine.unpack(
            session.imagesPath, verifies: session.options.verify, faults: session.faults, log: session.log)
    }

    /// Takes pages out of the previous images that the newest have anew.
    static func deduplicate(_ session: borrowing Session) throws(Failure) {
        try Engine.deduplicate(session.imagesPath, log: session.log)
    }

    private static func dumpRequest(_ session: borrowing Session) throws(Failure) -> DumpRequest {
        let options = session.options
        guard let tree = options.tree else { throw Failure(.usage, "which tree? The option --tree PID is missing") }
        var request = DumpRequest(root: tree, images: session.imagesPath)
        request.policy.ghostLimit = options.ghostLimit
        request.policy.linkRemap = options.linkRemap
        request.isSynced = options.sync
        request.policy.forcesPaths = options.forceIrmap
        request.policy.scanPaths = options.irmapScanPaths
        request.policy.shellJob = options.shellJob
        request.policy.fileLocks = options.fileLocks
        request.policy.external = try external(options)
        request.policy.externalUnixSockets = options.externalUnixSockets
        for inode in options.externalUnixSocketInodes { request.policy.external.add("unix[\(inode)]") }
        request.policy.recordsBuildIDs = options.fileValidation == .buildID
        request.policy.recordsCPU = options.cpuCapabilities.contains(.image)
        request.policy.tcpEstablished = options.tcpEstablished
        request.policy.tcpClose = options.tcpClose
        request.policy.skipInFlight = options.skipInFlight
        request.policy.emptiesNetwork = options.emptyNetworkNamespace
        switch options.networkLock {
        case .iptables: request.policy.networkLock = .iptables
        case .nftables: request.policy.networkLock = .nftables
        case .skip: request.policy.networkLock = .skip
        case nil: break
        }
        switch options.ending {
        case .default: request.afterwards = options.live ? .running : .killed
        case .running: request.afterwards = .running
        case .stopped: request.afterwards = .stopped
        }
        if options.timeout > .zero { request.timeout = options.timeout } else { request.timeout = .seconds(1 << 30) }
        request.scripts = Scripts(paths: options.actionScripts.map { FilePath(bytes: $0.bytes) })
        request.plugins = options.libraryDirectory
        request.isLive = options.live
        request.tracksMemory = options.trackMemory
        request.previous = options.previousImagesDirectory
        request.deduplicates = options.autoDeduplication
        request.readsPages = options.preDumpMode == .read
        request.compression = options.compression
        request.keepsSums = options.checksum ?? (options.compression != nil)
        request.faults = session.faults
        request.stream = session.place(options.streamTo)
        if options.pageServer { request.pageServer = place(options) }
        if options.lazyPages {
            request.lazySource = (
                place(options),
                { (port) throws(Failure) in
                    if options.port ?? 0 == 0 { printOutput("Listening on port \(port)\n") }
                    try Background.sayReady(options)
                }
            )
        }
        return request
    }

    /// Restores the tree and lets it go. Returns the root's pid and the figures.
    static func restore(_ session: borrowing Session) throws(Failure) -> (root: TaskID, statistics: Statistics) {
        let options = session.options
        var request = RestoreRequest(images: session.imagesPath)
        request.policy.external = try external(options)
        for inherited in options.inheritedDescriptors { request.policy.inherited[inherited.key] = inherited.number }
        request.policy.shellJob = options.shellJob
        request.policy.ghostLimit = options.ghostLimit
        request.policy.checksPermissions = !options.skipFilePermissionCheck
        request.policy.cpuCapabilities = options.cpuCapabilities
        request.policy.checksBuildIDs = options.fileValidation == .buildID
        request.policy.isDetached = options.restoreDetached && !options.restoreSibling
        request.policy.tcpEstablished = options.tcpEstablished
        request.policy.tcpClose = options.tcpClose
        request.policy.skipInFlight = options.skipInFlight
        request.policy.emptiesNetwork = options.emptyNetworkNamespace
        request.policy.weakSettings = options.weakSysctls
        request.policy.root = options.root
        request.joinedNetwork = try joinedNetwork(options)
        request.asSibling = options.restoreSibling
        request.leaveStopped = options.ending == .stopped
        request.pidFile = options.pidfile
        request.scripts = Scripts(paths: options.actionScripts.map { FilePath(bytes: $0.bytes) })
        request.plugins = options.libraryDirectory
        request.verifies = options.verify
        request.faults = session.faults
        request.stream = session.place(options.streamFrom)
        if options.lazyPages { request.pager = pager(session) }
        let outcome = try Engine.restore(request, log: session.log)
        // The tasks have their own by now; ours would keep pipes from ending for as long as we wait.
        for inherited in options.inheritedDescriptors where inherited.number > 2 {
            _ = try? systemCall(.close, Int(inherited.number))
        }
        return (outcome.root, outcome.statistics)
    }

    /// Resources that come from, or stay, outside of the tree. What would be wrong to pass over in silence is refused.
    private static func external(_ options: Options) throws(Failure) -> ExternalResources {
        var resources = ExternalResources()
        for text in options.external {
            let types = ["file[", "dev[", "unix[", "tty[", "mnt[", "veth[", "macvlan[", "netdev["]
            guard types.contains(where: text.hasPrefix), text.contains("]") else {
                throw Failure(
                    .unsupported, "--external \(text) is not supported yet",
                    advice: "The types file, dev, mnt, unix, tty, veth, macvlan and netdev are")
            }
            resources.add(text)
        }
        for pair in options.externalMountMap { resources.add("mnt[\(pair.key)]:\(pair.value)") }
        if options.externalMountsAutomatic { resources.add("mnt[]") }
        for pair in options.vethPairs { resources.add("veth[\(pair.key)]:\(pair.value)") }
        return resources
    }

    /// The network namespace to join: that of a task, or one that has a path.
    private static func joinedNetwork(_ options: Options) throws(Failure) -> FilePath? {
        let joined = options.joinNamespaces.filter { $0.kind == .net }
        guard joined.count < 2 else { throw Failure(.usage, "--join-ns net is given twice") }
        guard let target = joined.first?.target else { return nil }
        return Int32(target).map { FilePath("/proc/\($0)/ns/net") } ?? FilePath(target)
    }

    /// Waits until the restored root ends, as a restore without `--restore-detached` does.
    static func wait(for root: TaskID) throws(Failure) {
        while true {
            do {
                if try systemCall(.wait4, Int(root.rawValue), 0, 0, 0) == Int(root.rawValue) { return }
            } catch {
                if error.errno == .ECHILD { return }
                throw Failure(.bug, "can't wait for task \(root)", cause: error)
            }
        }
    }

    /// Writes the image of this machine's CPU features.
    static func cpuDump(_ session: borrowing Session) throws(Failure) {
        try CPUOrders.dump(to: session.imagesPath)
    }

    /// Compares this machine's CPU features with the image.
    static func cpuCheck(_ session: borrowing Session) throws(Failure) {
        try CPUOrders.check(session.imagesPath, session.options.cpuCapabilities)
    }
}
