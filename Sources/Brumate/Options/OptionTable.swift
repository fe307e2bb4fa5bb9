internal import Diagnostics
internal import ImageFormat
internal import Kinds
internal import Linux

/// The issues that bring what is still missing, as their users would call them.
private let memory = "memory at speed"
private let namespaces = "namespaces"
private let cgroups = "control groups"

/// The orders that read a running tree.
private let dumping: [Action] = [.dump, .preDump]
/// The orders that read or make a tree.
private let both: [Action] = [.dump, .preDump, .restore]

extension Option {
    /// Every option, in the order of the help text.
    static let table: [Option] =
        general + external + files + cgroupOptions + namespaceOptions + network + memoryOptions + integrityOptions
        + check + log + servers
        + configuration + other

    private static let general: [Option] = [
        .value("tree", "t", "PID", .general, "The root of the tree to dump.") { (options, word) throws(Failure) in
            options.tree = TaskID(rawValue: try word.number(1...Int32.max, called: "a pid"))
        },
        .flag("restore-detached", "d", .general, "Exit as soon as the restored tree runs.") { $0.restoreDetached = $1 },
        .flag(
            "restore-sibling", "S", .general,
            "Make the restored root a child of the caller's parent; needs --restore-detached."
        ) { $0.restoreSibling = $1 },
        .flag("leave-stopped", "s", .general, .ours, "Leave the tasks stopped after the dump or restore.") {
            $0.ending = $1 ? .stopped : $0.ending == .stopped ? .default : $0.ending
        },
        .flag("leave-running", "R", .general, .ours, "Let the tasks run on after the dump.") {
            $0.ending = $1 ? .running : $0.ending == .running ? .default : $0.ending
        },
        .flag(
            "live", nil, .general, "Dump: let the tasks run on at once, and write their memory from a copy."
        ) { $0.live = $1 },
        .value("images-dir", "D", "DIR", .general, "Where the images are; default: the working directory.") {
            $0.imagesDirectory = $1.path
        },
        .flag(
            "sync", nil, .general, .ours,
            "A dump is successful only once its images are on the disk (default); --no-sync leaves that to the system."
        ) { $0.sync = $1 },
        .value(
            "work-dir", "W", "DIR", .general, "Where logs, pidfiles and statistics go; default: the images directory."
        ) {
            $0.workDirectory = $1.path
        },
        .value("pidfile", nil, "FILE", .general, "On restore, write the root's pid here. A dump ignores it.") {
            $0.pidfile = $1.path
        },
        .flag(
            "exec-cmd", nil, .general, .ours,
            "After the restore become the command after '--', as parent of the restored root."
        ) { $0.execCommand = $1 },
        .flag("shell-job", "j", .general, "The tree may belong to a session and terminal outside of it.") {
            $0.shellJob = $1
        },
        .value("timeout", nil, "SECONDS", .general, "How long stopping the tree may take; default 10, 0: for ever.") {
            (options, word) throws(Failure) in
            options.timeout = .seconds(try word.number(0...Int64(Int32.max), called: "a number of seconds"))
        },
        .optional(
            "cpu-cap", nil, "CAP[,CAP…]", .general,
            "CPU features to write and compare: all, cpu, fpu, ins, none; ^CAP takes one away. Default: fpu,ins."
        ) { (options, word) throws(Failure) in
            if let word {
                try word.apply(to: &options.cpuCapabilities)
            } else {
                options.cpuCapabilities = [.all, .image]
            }
        },
        .value("action-script", nil, "FILE", .general, "A program to run at certain moments; may be repeated.") {
            $0.actionScripts.append($1)
        },
        .flag(
            "stream", nil, .general, "Pass images through criu-image-streamer.",
            support: .later(memory, on: both) { $0.stream }
        ) { $0.stream = $1 },
        .value(
            "stream-to", nil, "TO", .general,
            "Dump, send: images go out as one stream: to '-' (standard output), a descriptor, a new file, a fifo, or '|COMMAND'.",
            isOurs: true
        ) { $0.streamTo = $1.streamPlace },
        .value(
            "stream-from", nil, "FROM", .general,
            "Restore, receive: images come as one stream from '-' (standard input), a descriptor, a file or a fifo.",
            isOurs: true
        ) { $0.streamFrom = $1.streamPlace },
        .flag("unprivileged", nil, .general, "Accept the limits of running without root.") { $0.unprivileged = $1 },
    ]

    private static let external: [Option] = [
        .value(
            "external", nil, "TYPE[ID]:VALUE", .external,
            """
            A resource that stays outside (dump) or comes from outside (restore). Types: mnt, dev, file, tty, unix, net, \
            pid, veth, macvlan, netdev.
            """
        ) { $0.external.append($1.text) },
        .value(
            "inherit-fd", nil, "fd[NUM]:RES", .external,
            "On restore, use our descriptor NUM for RES: tty[rdev:dev], pipe:[inode], socket:[inode], "
                + "file[mnt_id:inode], /memfd:name or a path."
        ) { (options, word) throws(Failure) in
            let inherited = try word.inheritedDescriptor()
            guard !options.inheritedDescriptors.contains(where: { $0.key == inherited.key }) else {
                throw Failure(.usage, "'\(inherited.key)' is given twice")
            }
            options.inheritedDescriptors.append(inherited)
        },
        .optional("ext-unix-sk", "x", "INODE[,INODE…]", .external, "UNIX sockets may have a peer outside of the tree.")
        {
            (options, word) throws(Failure) in
            options.externalUnixSockets = true
            for part in word?.text.split(separator: ",") ?? [] {
                options.externalUnixSocketInodes.append(
                    try Word(String(part)).number(0...UInt64.max, called: "an inode"))
            }
        },
        .value("ext-mount-map", "M", "KEY:VALUE", .external, "The older form of --external mnt[KEY]:VALUE, or 'auto'.")
        {
            (options, word) throws(Failure) in
            if word == "auto" {
                options.externalMountsAutomatic = true
            } else {
                options.externalMountMap.append(try word.pair(":", as: "KEY:VALUE"))
            }
        },
        .flag("enable-external-sharing", nil, .external, .ours, "External mounts may be shared.") {
            $0.externalSharing = $1
        },
        .flag("enable-external-masters", nil, .external, .ours, "External mounts may have masters.") {
            $0.externalMasters = $1
        },
    ]

    private static let files: [Option] = [
        .value("ghost-limit", nil, "SIZE", .files, "Largest unlinked file that goes into the image; default 1M.") {
            (options, word) throws(Failure) in options.ghostLimit = try word.size()
        },
        .flag("ghost-fiemap", nil, .files, "Find the holes of unlinked files by fiemap; on by default.") {
            $0.ghostFiemap = $1
        },
        .flag("link-remap", nil, .files, "Unlinked files with other names may get a temporary name.") {
            $0.linkRemap = $1
        },
        .flag("file-locks", "l", .files, "Dump and restore file locks; all their users must be in the tree.") {
            $0.fileLocks = $1
        },
        .flag("evasive-devices", nil, .files, "Open a device by any path if its own is gone.") {
            $0.evasiveDevices = $1
        },
        .flag("force-irmap", nil, .files, "Find the names of watched inodes early.") { $0.forceIrmap = $1 },
        .value("irmap-scan-path", nil, "PATH", .files, "Another place to look for watched inodes.") {
            $0.irmapScanPaths.append($1.path)
        },
        .value(
            "file-validation", nil, "METHOD", .files, "Compare files on restore by 'filesize' or 'buildid' (default)."
        ) { (options, word) throws(Failure) in
            options.fileValidation = try word.choice(Options.FileValidation.self)
        },
        .flag("skip-file-rwx-check", nil, .files, "Don't compare permission bits of files on restore.") {
            $0.skipFilePermissionCheck = $1
        },
        .flag("allow-uprobes", nil, .files, "The tree may hold uprobe areas.") { $0.allowUprobes = $1 },
        .value("libdir", "L", "DIR", .files, "Where plugins are.") { $0.libraryDirectory = $1.path },
    ]

    private static let cgroupOptions: [Option] = [
        .optional(
            "manage-cgroups", nil, "MODE", .cgroups,
            "What becomes of them: none, props, soft (default), full, strict, ignore.",
            support: .later(cgroups, on: both) { $0.manageCgroups != .soft && $0.manageCgroups != .ignore }
        ) { (options, word) throws(Failure) in
            options.manageCgroups = try word?.choice(Options.CgroupMode.self) ?? .soft
        },
        .value(
            "cgroup-root", nil, "[CONTROLLER:]/ROOT", .cgroups, "Another root for one or all controllers.",
            support: .later(cgroups, on: both) { !$0.cgroupRoots.isEmpty }
        ) { (options, word) in
            let parts = word.text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            options.cgroupRoots.append(
                parts.count == 2 ? .init(controller: parts[0], path: parts[1]) : .init(controller: nil, path: word.text)
            )
        },
        .value(
            "cgroup-props", nil, "STRING", .cgroups, "Controllers and properties to dump, in CRIU's notation.",
            support: .later(cgroups, on: both) { $0.cgroupProperties != nil }
        ) { $0.cgroupProperties = $1.text },
        .value(
            "cgroup-props-file", nil, "FILE", .cgroups, "The same from a file.",
            support: .later(cgroups, on: both) { $0.cgroupPropertiesFile != nil }
        ) { $0.cgroupPropertiesFile = $1.path },
        .value(
            "cgroup-dump-controller", nil, "NAME", .cgroups, "Dump this controller and no other; may be repeated.",
            support: .later(cgroups, on: both) { !$0.cgroupDumpControllers.isEmpty }
        ) { $0.cgroupDumpControllers.append($1.text) },
        .value(
            "cgroup-yard", nil, "DIR", .cgroups, "A directory where the control group trees are mounted.",
            support: .later(cgroups, on: both) { $0.cgroupYard != nil }
        ) { $0.cgroupYard = $1.path },
        .value(
            "freeze-cgroup", nil, "DIR", .cgroups, "Stop the tree by the freezer of this control group.",
            support: .later(cgroups, on: dumping) { $0.freezeCgroup != nil }
        ) { $0.freezeCgroup = $1.path },
    ]

    private static let namespaceOptions: [Option] = [
        .value("root", "r", "DIR", .namespaces, "The tree's root directory, a mount point.") { $0.root = $1.path },
        .value("skip-mnt", nil, "PATH", .namespaces, "Leave out this mount point.") {
            $0.skippedMounts.append($1.text)
        },
        .value(
            "enable-fs", nil, "FS[,FS…]", .namespaces,
            "Mount these file systems again though we don't know them, or 'all'."
        ) {
            $0.enabledFileSystems += $1.text.split(separator: ",").map(String.init)
        },
        .flag("mntns-compat-mode", nil, .namespaces, "Build mount trees without MOVE_MOUNT_SET_GROUP.") {
            $0.mountCompatibilityMode = $1
        },
        .value(
            "empty-ns", nil, "net", .namespaces, "Make the network namespace but leave it to scripts to fill it."
        ) { (options, word) throws(Failure) in
            guard word == "net" else { throw Failure(.usage, "'\(word)' can't be left empty; only net can") }
            options.emptyNetworkNamespace = true
        },
        .value(
            "join-ns", "J", "NS:{PID|FILE}[,UID,GID]", .namespaces,
            "On restore, enter this namespace: ipc, net, time, user or uts.",
            support: .later(namespaces, on: [.restore]) { $0.joinNamespaces.contains { $0.kind != .net } }
        ) { (options, word) throws(Failure) in options.joinNamespaces.append(try word.joinedNamespace()) },
        .flag("weak-sysctls", nil, .namespaces, "Skip sysctls that this kernel lacks.") { $0.weakSysctls = $1 },
        .value(
            "lsm-profile", nil, "TYPE:NAME", .namespaces, "The LSM profile of restored tasks: apparmor or selinux.",
            support: .later(namespaces, on: [.restore]) { $0.lsmProfile != nil }
        ) { (options, word) throws(Failure) in
            let kind = try word.pair(":", as: "TYPE:NAME").key
            guard ["apparmor", "selinux", "none"].contains(kind) else {
                throw Failure(.usage, "'\(kind)' is neither apparmor nor selinux")
            }
            options.lsmProfile = word.text
        },
        .value("lsm-mount-context", nil, "CONTEXT", .namespaces, "The SELinux context that replaces those of mounts.") {
            $0.lsmMountContext = $1.text
        },
    ]

    private static let network: [Option] = [
        .flag("tcp-established", nil, .network, "Dump and restore established TCP connections.") {
            $0.tcpEstablished = $1
        },
        .flag("skip-in-flight", nil, .network, "Leave out TCP connections that are still being made.") {
            $0.skipInFlight = $1
        },
        .flag("tcp-close", nil, .network, "Restore TCP connections closed, and don't dump their state.") {
            $0.tcpClose = $1
        },
        .value(
            "network-lock", nil, "METHOD", .network,
            "Hold up traffic by 'nftables' (default where there is), 'iptables' or 'skip'."
        ) {
            (options, word) throws(Failure) in
            options.networkLock = word == "none" ? .skip : try word.choice(Options.NetworkLock.self)
        },
        .value(
            "veth-pair", nil, "IN=OUT", .network, "The older form of --external veth[IN]:OUT."
        ) { (options, word) throws(Failure) in options.vethPairs.append(try word.pair("=", as: "IN=OUT")) },
    ]

    private static let memoryOptions: [Option] = [
        .flag(
            "track-mem", nil, .memory, "Track which pages change from now on."
        ) { $0.trackMemory = $1 },
        .value(
            "prev-images-dir", nil, "DIR", .memory, "The parent images, relative to the images directory."
        ) { $0.previousImagesDirectory = $1.path },
        .flag(
            "page-server", nil, .memory, "Dump: send pages to a page server. lazy-pages: fetch them from one."
        ) { $0.pageServer = $1 },
        .flag(
            "auto-dedup", nil, .memory, "Dump, page-server: drop old pages of the parent. Restore: has no effect."
        ) { $0.autoDeduplication = $1 },
        .value("pre-dump-mode", nil, "MODE", .memory, "How a pre-dump reads pages: splice (default) or read.") {
            (options, word) throws(Failure) in options.preDumpMode = try word.choice(Options.PreDumpMode.self)
        },
        .flag(
            "lazy-pages", nil, .memory, .ours,
            "Restore: pages come while the tasks run. Dump, page-server: give pages to the restore's pager."
        ) { $0.lazyPages = $1 },
    ]

    private static let integrityOptions: [Option] = [
        .optional(
            "compress", nil, "ALGORITHM", .memory,
            "Dump, page-server: compress pages by lz4 (default), zstd or zstd:LEVEL. Only brumate reads them; see unpack."
        ) { (options, word) throws(Failure) in
            guard let compression = Compression(word?.text ?? "lz4") else {
                throw Failure(.usage, "'\(word?.text ?? "")' is none of lz4, zstd, zstd:1 … zstd:19")
            }
            options.compression = compression
        },
        .flag(
            "checksum", nil, .memory, .ours,
            "Dump: write the hashes of all images (default with --compress)."
        ) { $0.checksum = $1 },
        .flag(
            "verify", nil, .memory, .ours,
            "Compare the images with the hashes that they have, if they do (default)."
        ) { $0.verify = $1 },
    ]

    private static let check: [Option] = [
        .flag("extra", nil, .check, "Also check what only some trees need.") { $0.checkExtra = $1 },
        .flag("experimental", nil, .check, "Also check what is experimental.") { $0.checkExperimental = $1 },
        .flag("all", nil, .check, .none, "The same as --extra --experimental.") {
            $0.checkExtra = $1
            $0.checkExperimental = $1
        },
        .value("feature", nil, "NAME[,NAME…]", .check, "Check only these; 'list' prints all names.") {
            (options, word) throws(Failure) in
            for name in word.text.split(separator: ",").map(String.init) {
                guard name == "list" || KernelFeature.named(name) != nil else {
                    throw Failure(
                        .usage, "there is no kernel feature '\(name)'",
                        advice: "'check --feature list' prints the names")
                }
                options.checkFeatures.append(name)
            }
        },
    ]

    private static let log: [Option] = [
        .value("log-file", "o", "FILE", .log, "Log here, relative to the work directory; default: standard error.") {
            $0.logFile = $1.path
        },
        .flag("log-pid", nil, .log, "One log by task. Ours is one, with the pid in each line.") { $0.logPID = $1 },
        .optional(
            "verbosity", "v", "NUM", .log,
            "0 nothing, 1 errors, 2 warnings too (default), 3 notices, 4 everything; each further v adds one."
        ) { $0.verbosity = $1?.verbosity(after: $0.verbosity) ?? $0.verbosity + 1 },
        .flag("display-stats", nil, .log, "Print the statistics at the end.") { $0.displayStatistics = $1 },
    ]

    private static let servers: [Option] = [
        .value("address", nil, "ADDRESS", .servers, "Address of the page server or service.") { $0.address = $1.text },
        .value("port", nil, "NUM", .servers, "Port of the page server; 0: any that is free, which it prints.") {
            (options, word) throws(Failure) in
            options.port = try word.number(0...UInt16.max, called: "a port")
        },
        .value(
            "ps-socket", nil, "FD", .servers, "A connected socket to the page server, or to its client."
        ) { (options, word) throws(Failure) in
            options.pageServerSocket = try word.number(0...Int32.max, called: "a descriptor")
        },
        .flag("daemon", nil, .servers, "Go into the background.") { $0.restoreDetached = $1 },
        .value("status-fd", nil, "FD", .servers, "Write a zero byte to this descriptor when ready.") {
            (options, word) throws(Failure) in
            options.statusDescriptor = try word.number(0...Int32.max, called: "a descriptor")
        },
        .flag("tls", nil, .servers, "Protect connections by TLS.") { $0.tls.enabled = $1 },
        .flag("tls-no-cn-verify", nil, .servers, .none, "Don't compare the peer's name with its certificate.") {
            $0.tls.verifiesName = !$1
        },
        .value("tls-cacert", nil, "FILE", .servers, "The only authority to trust.") { $0.tls.authority = $1.path },
        .value("tls-cacrl", nil, "FILE", .servers, "Certificates not to trust any more.") {
            $0.tls.revocations = $1.path
        },
        .value("tls-cert", nil, "FILE", .servers, "Our certificate.") { $0.tls.certificate = $1.path },
        .value("tls-key", nil, "FILE", .servers, "The key of our certificate.") { $0.tls.key = $1.path },
    ]

    private static let configuration: [Option] = [
        .value("config", nil, "FILE", .configuration, "Read this instead of the default configuration files.") {
            $0.configuration = $1.path
        },
        .flag("no-default-config", nil, .configuration, .none, "Don't read the default configuration files.") {
            $0.defaultConfiguration = !$1
        },
    ]

    private static let other: [Option] = [
        .value("close", nil, "FD", .other, "Close this descriptor before anything else.") {
            (options, word) throws(Failure) in
            options.close.append(try word.number(0...Int32.max, called: "a descriptor"))
        },
        .flag("deprecated", nil, .other, "Allow what is deprecated.") { $0.deprecated = $1 },
        .flag("ms", nil, .other, .none, "Gone: see the options of check.") { _, _ in },
        .flag("help", "h", .other, .none, "Print this text.") { _, _ in },
        .flag("version", "V", .other, .none, "Print the version.") { _, _ in },
    ]
}

extension Options {
    /// What keeps this order from being carried out today, found before anything is touched: one sentence an option.
    public func refusals(for action: Action) -> [String] {
        var out: [String] = []
        if let issue = action.later {
            out.append("'\(action.rawValue)' is not supported yet: it comes with \(issue)")
        }
        for option in Option.table {
            guard case .later(let issue, let actions, let when) = option.support else { continue }
            if actions.contains(action), when(self) {
                out.append("--\(option.name) is not supported yet: it comes with \(issue)")
            }
        }
        return out
    }
}
