internal import Diagnostics
internal import Linux
internal import Logging
internal import SystemPackage

/// Something that a kernel has or lacks, and how to find out.
struct KernelFeature: Sendable {
    /// When it is needed.
    enum Need: Sendable {
        /// By every order: without it `check` says no.
        case always
        /// By some trees: `check --extra`.
        case sometimes
        /// Not yet by anything that people rely on: `check --experimental`.
        case experimental
        /// It is only asked for by name.
        case byName
    }

    /// The name for `--feature`, or a few words for what is always needed.
    let name: String
    /// When it is needed.
    let need: Need
    /// False while we can't use it, so that nobody is promised what does not work.
    let isUsed: Bool
    /// Tries it. A failed call means no.
    let probe: @Sendable () throws(SystemCallError) -> Bool

    init(
        _ name: String, _ need: Need = .sometimes, isUsed: Bool = true,
        _ probe: @escaping @Sendable () throws(SystemCallError) -> Bool
    ) {
        self.name = name
        self.need = need
        self.isUsed = isUsed
        self.probe = probe
    }

    /// Whether it is there; if not, why.
    func find() -> (isThere: Bool, reason: String) {
        guard isUsed else { return (false, "it is not used yet") }
        do { return (try probe(), "the kernel lacks it") } catch { return (false, "\(error)") }
    }

    /// The feature of a name, among those that can be asked for.
    static func named(_ name: String) -> KernelFeature? { all.first { $0.name == name } }

    /// AppArmor's namespaces and profiles are not dumped yet.
    private static let apparmorIsBuilt = false

    /// The features that `--feature` knows, by CRIU's names and in its order.
    static let all: [KernelFeature] = [
        .init("mnt_id") { () throws(SystemCallError) in try ProcProbe.hasMountIDs() },
        .init("mem_dirty_track") { () throws(SystemCallError) in
            try MemoryProbe.tracksDirtyPages()
        },
        .init("aio_remap") { () throws(SystemCallError) in try MemoryProbe.movesAIORings() },
        .init("timerfd") { () throws(SystemCallError) in try ProcProbe.setsTimerTicks() },
        .init("tun") { () throws(SystemCallError) in try SocketProbe.hasTun() },
        .init("tun_ns", .byName) { () throws(SystemCallError) in try SocketProbe.tellsTunNamespace() },
        .init("userns") { () throws(SystemCallError) in try ProcProbe.hasUserNamespaces() },
        .init("fdinfo_lock") { () throws(SystemCallError) in try ProcProbe.showsLocks() },
        .init("seccomp_suspend") { () throws(SystemCallError) in try TaskProbe.suspendsSeccomp() },
        .init("seccomp_filters") { () throws(SystemCallError) in try TaskProbe.readsSeccompFilters() },
        .init("loginuid") { () throws(SystemCallError) in try ProcProbe.setsLoginUser() },
        .init("cgroupns") { () throws(SystemCallError) in try ProcProbe.exists("/proc/self/ns/cgroup") },
        .init("autofs", .experimental) { () throws(SystemCallError) in try ProcProbe.hasFileSystem("autofs") },
        .init("tcp_half_closed") { () throws(SystemCallError) in try SocketProbe.repairsHalfClosed() },
        .init("compat_cr", .experimental) { () throws(SystemCallError) in try MemoryProbe.mapsVDSO(bits: 32) },
        .init("uffd") { () throws(SystemCallError) in try MemoryProbe.userfaultFeatures() >= 0 },
        .init("uffd-noncoop") { () throws(SystemCallError) in try MemoryProbe.tellsUserfaultEvents() },
        .init("can_map_vdso") { () throws(SystemCallError) in try MemoryProbe.mapsVDSO(bits: 64) },
        .init("sk_ns") { () throws(SystemCallError) in try SocketProbe.tellsNamespace() },
        .init("sk_unix_file", .byName) { () throws(SystemCallError) in try SocketProbe.opensUnixFiles() },
        .init("net_diag_raw") { () throws(SystemCallError) in try NetlinkProbe.listsRawSockets() },
        .init("nsid", .byName) { () throws(SystemCallError) in try NetlinkProbe.numbersNamespaces() },
        .init("link_nsid", .byName) { () throws(SystemCallError) in try NetlinkProbe.findsLinksByNamespace() },
        .init("kcmp_epoll") { () throws(SystemCallError) in try TaskProbe.comparesEpollTargets() },
        .init("timens") { () throws(SystemCallError) in try ProcProbe.exists("/proc/self/timens_offsets") },
        .init("external_net_ns", .byName) { true },
        .init("clone3_set_tid") { () throws(SystemCallError) in try TaskProbe.choosesPIDs() },
        .init("newifindex") { () throws(SystemCallError) in try NetlinkProbe.choosesInterfaceNumbers() },
        .init("nftables", .byName) { () throws(SystemCallError) in try NetlinkProbe.hasNftables() },
        .init("has_ipt_legacy", .byName) { () throws(SystemCallError) in try ProcProbe.hasProgram("iptables-legacy") },
        .init("pidfd_store") { () throws(SystemCallError) in try TaskProbe.fetchesDescriptors() },
        .init("ns_pid") { () throws(SystemCallError) in try ProcProbe.statusHas("NSpid:") },
        .init("apparmor_stacking", .byName, isUsed: apparmorIsBuilt) { () throws(SystemCallError) in
            try ProcProbe.exists("/sys/kernel/security/apparmor/features/domain/stack")
        },
        .init("network_lock_nftables") { () throws(SystemCallError) in try NetlinkProbe.hasNftables() },
        .init("sockopt_buf_lock") { () throws(SystemCallError) in try SocketProbe.locksBuffers() },
        .init("memfd_hugetlb") { () throws(SystemCallError) in try MemoryProbe.hasHugeMemoryFiles() },
        .init("move_mount_set_group") { () throws(SystemCallError) in try MountProbe.movesIntoGroups() },
        .init("openat2") { () throws(SystemCallError) in try MountProbe.hasOpenat2() },
        .init("get_rseq_conf") { () throws(SystemCallError) in try TaskProbe.readsRestartableSequences() },
        .init("ipv6_freebind") { () throws(SystemCallError) in try SocketProbe.bindsFreely() },
        .init("pagemap_scan") { () throws(SystemCallError) in try MemoryProbe.scansPagemap() },
        .init("timer_cr_ids") { () throws(SystemCallError) in try TaskProbe.choosesTimerIDs() },
        .init("overlayfs_maps") { () throws(SystemCallError) in try MountProbe.overlayMapsAreTrue() },
        .init("breakpoints", .byName) { () throws(SystemCallError) in try TaskProbe.setsBreakpoints() },
        .init("pagemap_scan_guard_pages") { () throws(SystemCallError) in try MemoryProbe.scansGuardPages() },
    ]

    /// What every order needs.
    static let required: [KernelFeature] = [
        .init("/proc/PID/map_files", .always) { () throws(SystemCallError) in
            try ProcProbe.exists("/proc/self/map_files")
        },
        .init("kcmp", .always) { () throws(SystemCallError) in try TaskProbe.comparesFiles() },
        .init("clone3 with set_tid", .always) { () throws(SystemCallError) in try TaskProbe.choosesPIDs() },
        .init("pidfd_open and pidfd_getfd", .always) { () throws(SystemCallError) in try TaskProbe.fetchesDescriptors()
        },
        .init("PR_SET_MM_MAP", .always) { () throws(SystemCallError) in try MemoryProbe.setsMemoryMap() },
        .init("PTRACE_SEIZE and PTRACE_PEEKSIGINFO", .always) { () throws(SystemCallError) in
            try TaskProbe.peeksSignals()
        },
        .init("a vdso that can be mapped anywhere", .always) { () throws(SystemCallError) in
            try MemoryProbe.mapsVDSO(bits: 64)
        },
    ]
}

/// The action `check`.
enum KernelCheck {
    /// Checks the features named by the options, or what is needed.
    static func run(_ session: borrowing Session) throws(Failure) {
        let options = session.options
        if !options.checkFeatures.isEmpty { return try named(options.checkFeatures, session) }
        let missing = find(KernelFeature.required, session, doing: "needed always")
        guard missing == 0 else {
            printOutput("Does not look good.\n")
            throw Failure(
                .kernelTooOld, "this kernel lacks what every order needs",
                advice: "docs/kernel-policy.md lists the kernels that have it")
        }
        var wanted: [KernelFeature.Need] = []
        if options.checkExtra { wanted.append(.sometimes) }
        if options.checkExperimental { wanted.append(.experimental) }
        let some = KernelFeature.all.filter { feature in wanted.contains { $0 == feature.need } }
        guard find(some, session, doing: "needed by some trees") == 0 else {
            printOutput(
                """
                Looks good but some kernel features are missing
                which, depending on your process tree, may cause
                dump or restore failure.

                """)
            throw Failure(.kernelTooOld, "some kernel features are missing", advice: "The log names them")
        }
        printOutput("Looks good.\n")
    }

    private static func find(_ features: [KernelFeature], _ session: borrowing Session, doing: String) -> Int {
        var missing = 0
        for feature in features {
            let (isThere, reason) = feature.find()
            if isThere {
                session.log.notice("\(feature.name): there")
            } else {
                session.log.warning("\(feature.name), \(doing), is missing: \(reason)")
                missing += 1
            }
        }
        return missing
    }

    private static func named(_ names: [String], _ session: borrowing Session) throws(Failure) {
        var missing: [String] = []
        for name in names {
            guard let feature = KernelFeature.named(name) else {
                printOutput(KernelFeature.all.map { $0.name + "\n" }.joined())
                continue
            }
            let (isThere, reason) = feature.find()
            if isThere {
                printOutput("\(name) is supported\n")
            } else {
                session.log.warning("\(name) is not supported: \(reason)")
                missing.append(name)
            }
        }
        guard missing.isEmpty else {
            throw Failure(.kernelTooOld, "not supported: \(missing.joined(separator: ", "))")
        }
    }
}
