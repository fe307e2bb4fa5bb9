public import SystemPackage

/// What the user allows and asks of a dump, as far as kinds of kernel object need to know.
public struct DumpPolicy: Sendable {
    /// Largest unlinked file, in bytes, whose contents go into the image (`--ghost-limit`).
    public var ghostLimit: UInt64 = 1 << 20
    /// Give unlinked files that have other names a temporary name on their file system (`--link-remap`).
    public var linkRemap = false
    /// The tree may belong to a session and terminal outside of it (`--shell-job`).
    public var shellJob = false
    /// Write the image of CPU features (`--cpu-cap`).
    public var recordsCPU = false
    /// Dump locks and leases on files (`--file-locks`).
    public var fileLocks = false
    /// Temporary names go away at the end (`--leave-running`).
    public var removesLinkRemaps = false
    /// Paths are noted for all watched files (`--force-irmap`).
    public var forcesPaths = false
    /// More places to look for watched files (`--irmap-scan-path`).
    public var scanPaths: [FilePath] = []
    /// Build ids of mapped programs and libraries are noted (`--file-validation buildid`).
    public var recordsBuildIDs = true
    /// The tree goes on after the dump, so nothing on disk that it needs may be moved.
    public var leaveRunning = false
    /// What can't be read without taking it away is taken when the image is complete otherwise. The tree is killed then
    /// whatever happens.
    public var takesAtEnd = true
    /// The tree goes on before its pages are written, which are read from copies of its memory (`--live`).
    public var isLive = false
    /// What can't be copied, such as shared memory, is written after that too, if its writers can be held up.
    public var holdsMemory = true
    /// Resources that stay outside, as `type[id]` or `type[id]:key` (`--external`).
    public var external = ExternalResources()
    /// Datagram sockets may be connected to named ones outside of the tree (`--ext-unix-sk`).
    public var externalUnixSockets = false
    /// Established TCP connections may be dumped (`--tcp-established`).
    public var tcpEstablished = false
    /// The state of TCP connections is not dumped, they come back closed (`--tcp-close`).
    public var tcpClose = false
    /// Connections that nobody has accepted yet may be left out (`--skip-in-flight`).
    public var skipInFlight = false
    /// Private pages stay with the tasks, which serve them from their stop (`--lazy-pages`).
    public var leavesPages = false
    /// How connections are held up (`--network-lock`); nil: whatever the machine has.
    public var networkLock: NetworkLockMethod?
    /// The network namespace of a tree that has its own is not dumped (`--empty-ns net`).
    public var emptiesNetwork = false
    /// CRIU's defaults.
    public init() {}
}

/// How connections are held up between dump and restore, by the numbers of the image format.
public enum NetworkLockMethod: UInt32, Sendable {
    /// By iptables rules.
    case iptables = 0
    /// By nftables rules.
    case nftables = 1
    /// Someone else does it.
    case skip = 2
}

/// Resources outside of the tree, as `--external` names them.
public struct ExternalResources: Hashable, Sendable {
    /// The texts before and after the colon that follows the bracket.
    private var values: [String: String] = [:]

    /// None.
    public init() {}

    /// Adds `type[id]` or `type[id]:value`.
    public mutating func add(_ text: String) {
        guard let bracket = text.firstIndex(of: "]") else { return }
        values[String(text[...bracket])] = String(text[bracket...].dropFirst(2))
    }

    /// Whether `type[id]` is named.
    public func contains(_ name: String) -> Bool { values[name] != nil }
    /// What follows `type[id]:`, which may be nothing; nil if `type[id]` is not named.
    public func value(_ name: String) -> String? { values[name] }
}

/// What the user allows and asks of a restore.
public struct RestorePolicy: Sendable {
    /// The directory that becomes the root of a tree with mounts of its own (`--root`).
    public var root: FilePath?
    /// The tree joins the session and terminal of the caller (`--shell-job`).
    public var shellJob = false
    /// Largest ghost file, in bytes, that may be created (`--ghost-limit`).
    public var ghostLimit: UInt64 = 1 << 20
    /// Compare the permission bits of files with the image (off with `--skip-file-rwx-check`).
    public var checksPermissions = true
    /// Resources that come from outside, as `type[key]:value` (`--external`).
    public var external = ExternalResources()
    /// Descriptors of ours that stand for resources of the image, by CRIU's names of those (`--inherit-fd`).
    public var inherited: [String: Int32] = [:]
    /// The CPU features to compare (`--cpu-cap`).
    public var cpuCapabilities = CPUCapabilities.default
    /// Compare build ids of mapped programs and libraries with the image (`--file-validation buildid`).
    public var checksBuildIDs = true
    /// We end when the tree runs (`--restore-detached`), which is its parent's death.
    public var isDetached = false
    /// Established TCP connections may be restored (`--tcp-established`).
    public var tcpEstablished = false
    /// TCP connections come back closed (`--tcp-close`).
    public var tcpClose = false
    /// A pager brings pages of private memory while the tasks run (`--lazy-pages`).
    public var isLazy = false
    /// Connections from outside that nobody has accepted yet may be left out (`--skip-in-flight`).
    public var skipInFlight = false
    /// The tree's network namespace is made but not filled (`--empty-ns net`).
    public var emptiesNetwork = false
    /// Settings of the network that this kernel does not take are left out (`--weak-sysctls`).
    public var weakSettings = false
    /// CRIU's defaults.
    public init() {}
}

/// Which CPU features are written and compared.
public struct CPUCapabilities: OptionSet, Hashable, Sendable {
    /// The bits, by CRIU's values.
    public var rawValue: UInt32
    /// Wraps bits.
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// The floating point unit's frame fits.
    public static let fpu = CPUCapabilities(rawValue: 1)
    /// The features are exactly the same.
    public static let cpu = CPUCapabilities(rawValue: 2)
    /// All instructions are there.
    public static let instructions = CPUCapabilities(rawValue: 4)
    /// The image of CPU features is written, or read.
    public static let image = CPUCapabilities(rawValue: 8)
    /// All three comparisons.
    public static let all: CPUCapabilities = [.fpu, .cpu, .instructions]
    /// What CRIU compares when nothing is said.
    public static let `default`: CPUCapabilities = [.fpu, .instructions]
}
