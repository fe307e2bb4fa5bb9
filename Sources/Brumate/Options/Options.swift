public import Engine
public import ImageFormat
public import Kinds
public import Linux
public import SystemPackage

/// Everything an order can be told, with CRIU's names and defaults.
///
/// A field bears the name of its option on the command line. Configuration files, command line and RPC all fill this one
/// type; whatever carries out the order receives it, or the few fields that it needs, by value.
public struct Options: Sendable, Equatable {
    /// CRIU's defaults.
    public init() {}

    // MARK: Targets and what becomes of them

    /// The root of the tree to dump (`--tree`).
    public var tree: TaskID?
    /// What becomes of the tasks after the order (`--leave-running`, `--leave-stopped`).
    public var ending: Ending = .default
    /// Let the tree go on before its pages are written, from a copy (`--live`).
    public var live = false
    /// Exit as soon as the tree runs, or go into the background (`--restore-detached`, `--daemon`).
    public var restoreDetached = false
    /// The restored root becomes a child of our parent (`--restore-sibling`).
    public var restoreSibling = false
    /// After the restore, become the command named after `--` (`--exec-cmd`).
    public var execCommand = false
    /// The tree may belong to a session and terminal outside of it (`--shell-job`).
    public var shellJob = false
    /// How long stopping the tree may take; zero: for ever (`--timeout`).
    public var timeout: Duration = .seconds(10)
    /// Where a restore writes the root's pid (`--pidfile`).
    public var pidfile: FilePath?

    // MARK: Images

    /// Where the images are; by default the working directory (`--images-dir`).
    public var imagesDirectory: FilePath?
    /// The parent of an increment, relative to the images directory (`--prev-images-dir`).
    public var previousImagesDirectory: FilePath?
    /// Where log, pidfile and statistics go and scripts run; by default the images directory (`--work-dir`).
    public var workDirectory: FilePath?
    /// A dump is successful only once it is on the disk (`--sync`).
    public var sync = true
    /// Images go through a stream program (`--stream`).
    public var stream = false
    /// Where images go as one stream (`--stream-to`).
    public var streamTo: StreamPlace?
    /// Where images come from as one stream (`--stream-from`).
    public var streamFrom: StreamPlace?
    /// Take pages away from the parent, or from the image while restoring (`--auto-dedup`).
    public var autoDeduplication = false
    /// Print the statistics at the end (`--display-stats`).
    public var displayStatistics = false
    /// Descriptors of ours to close before anything else (`--close`).
    public var close: [Int32] = []

    // MARK: Log and configuration

    /// The log; by default standard error (`--log-file`).
    public var logFile: FilePath?
    /// How much is logged: 0 nothing … 4 everything (`--verbosity`).
    public var verbosity = 2
    /// Logs by task (`--log-pid`).
    public var logPID = false
    /// An own configuration file (`--config`).
    public var configuration: FilePath?
    /// Read the configuration files of machine and user (off with `--no-default-config`).
    public var defaultConfiguration = true

    // MARK: Memory

    /// Begin to track which pages change (`--track-mem`).
    public var trackMemory = false
    /// How a pre-dump reads pages (`--pre-dump-mode`).
    public var preDumpMode = PreDumpMode.splice
    /// Send pages to a page server (`--page-server`).
    public var pageServer = false
    /// The address of the page server (`--address`).
    public var address: String?
    /// The port of the page server (`--port`).
    public var port: UInt16?
    /// A connected socket to the page server (`--ps-socket`).
    public var pageServerSocket: Int32?
    /// Leave pages where they are until they are needed (`--lazy-pages`).
    public var lazyPages = false
    /// A descriptor that gets a zero byte when a server is ready (`--status-fd`).
    public var statusDescriptor: Int32?
    /// How connections are protected.
    public var tls = TransportSecurity()

    /// How page data is compressed (`--compress`).
    public var compression: Compression?
    /// Write the hashes of all images (`--checksum`); by default where page data is compressed.
    public var checksum: Bool?
    /// Compare images with the hashes that they have (off with `--no-verify`).
    public var verify = true

    // MARK: Control groups

    /// What becomes of control groups (`--manage-cgroups`).
    public var manageCgroups = CgroupMode.soft
    /// Other roots of the control group trees (`--cgroup-root`).
    public var cgroupRoots: [CgroupRoot] = []
    /// Which properties to keep, in CRIU's notation (`--cgroup-props`).
    public var cgroupProperties: String?
    /// The same in a file (`--cgroup-props-file`).
    public var cgroupPropertiesFile: FilePath?
    /// The only controllers to dump (`--cgroup-dump-controller`).
    public var cgroupDumpControllers: [String] = []
    /// A directory with the control group trees mounted (`--cgroup-yard`).
    public var cgroupYard: FilePath?
    /// The control group to freeze instead of stopping task by task (`--freeze-cgroup`).
    public var freezeCgroup: FilePath?

    // MARK: Network

    /// Established TCP connections may be dumped and restored (`--tcp-established`).
    public var tcpEstablished = false
    /// TCP connections come back closed (`--tcp-close`).
    public var tcpClose = false
    /// TCP connections that are still being made may be left out (`--skip-in-flight`).
    public var skipInFlight = false
    /// How traffic is held up between dump and restore (`--network-lock`); by default as the machine can.
    public var networkLock: NetworkLock?
    /// Make the network namespace but leave it empty (`--empty-ns net`).
    public var emptyNetworkNamespace = false
    /// Names for the outer ends of veth devices (`--veth-pair`).
    public var vethPairs: [KeyedValue] = []
    /// Namespaces to join (`--join-ns`).
    public var joinNamespaces: [JoinedNamespace] = []
    /// Unknown sysctls are skipped (`--weak-sysctls`).
    public var weakSysctls = false

    // MARK: What lies outside

    /// Resources that stay outside on dump, or come from outside on restore, as `type[id]:value` (`--external`).
    public var external: [String] = []
    /// Descriptors of ours that stand for resources of the image (`--inherit-fd`).
    public var inheritedDescriptors: [InheritedDescriptor] = []
    /// External mounts (`--ext-mount-map`).
    public var externalMountMap: [KeyedValue] = []
    /// Find external mounts by ourselves (`--ext-mount-map auto`).
    public var externalMountsAutomatic = false
    /// External mounts may be shared (`--enable-external-sharing`).
    public var externalSharing = false
    /// External mounts may have masters (`--enable-external-masters`).
    public var externalMasters = false
    /// UNIX sockets may have a peer outside (`--ext-unix-sk`).
    public var externalUnixSockets = false
    /// The inodes of these sockets, when named (`--ext-unix-sk=INODE,…`).
    public var externalUnixSocketInodes: [UInt64] = []

    // MARK: Files

    /// Unlinked files that have other names may get a temporary one (`--link-remap`).
    public var linkRemap = false
    /// Largest unlinked file, in bytes, that goes into the image (`--ghost-limit`).
    public var ghostLimit: UInt64 = 1 << 20
    /// Find the holes of unlinked files by fiemap (`--ghost-fiemap`).
    public var ghostFiemap = true
    /// File locks may be dumped and restored (`--file-locks`).
    public var fileLocks = false
    /// Devices may be opened by any of their paths (`--evasive-devices`).
    public var evasiveDevices = false
    /// Find the names of watched inodes before they are needed (`--force-irmap`).
    public var forceIrmap = false
    /// More places to look for watched inodes (`--irmap-scan-path`).
    public var irmapScanPaths: [FilePath] = []
    /// How restored files are compared with those of the dump (`--file-validation`).
    public var fileValidation = FileValidation.buildID
    /// Don't compare permission bits on restore (`--skip-file-rwx-check`).
    public var skipFilePermissionCheck = false

    // MARK: Mounts

    /// The tree's root directory, a mount point (`--root`).
    public var root: FilePath?
    /// Mount points that are left out (`--skip-mnt`).
    public var skippedMounts: [String] = []
    /// File systems to mount again though we don't know them, or `all` (`--enable-fs`).
    public var enabledFileSystems: [String] = []
    /// Build mount trees the old way (`--mntns-compat-mode`).
    public var mountCompatibilityMode = false
    /// The SELinux context that replaces those of mounts (`--lsm-mount-context`).
    public var lsmMountContext: String?

    // MARK: Other

    /// The CPU features to write or compare (`--cpu-cap`).
    public var cpuCapabilities = CPUCapabilities.default
    /// The LSM profile of restored tasks, as `type:name` (`--lsm-profile`).
    public var lsmProfile: String?
    /// Where plugins are (`--libdir`).
    public var libraryDirectory: FilePath?
    /// Programs to run at certain moments (`--action-script`).
    public var actionScripts: [Word] = []
    /// Accept the limits of running without root (`--unprivileged`).
    public var unprivileged = false
    /// Uprobe areas may be present (`--allow-uprobes`).
    public var allowUprobes = false
    /// Deprecated uses are allowed (`--deprecated`).
    public var deprecated = false

    // MARK: Check

    /// Also check what only some trees need (`--extra`).
    public var checkExtra = false
    /// Also check what is experimental (`--experimental`).
    public var checkExperimental = false
    /// Check these kernel features only (`--feature`).
    public var checkFeatures: [String] = []
}

extension Options {
    /// What becomes of the tasks after the order.
    public enum Ending: Sendable {
        /// Dump: killed. Restore: running.
        case `default`
        /// They run on.
        case running
        /// They are left stopped.
        case stopped
    }

    /// How a pre-dump reads pages.
    public enum PreDumpMode: String, CaseIterable, Sendable {
        /// From inside the task.
        case splice
        /// From outside.
        case read
    }

    /// What becomes of control groups.
    public enum CgroupMode: String, CaseIterable, Sendable {
        /// Restore membership, not properties; the groups must exist.
        case none
        /// Restore properties; the groups must exist.
        case props
        /// Restore properties of groups that we create.
        case soft
        /// Restore all groups and properties.
        case full
        /// The same, and none of the groups may exist.
        case strict
        /// Pretend that there are none.
        case ignore
    }

    /// How traffic is held up between dump and restore.
    public enum NetworkLock: String, CaseIterable, Sendable {
        /// By iptables rules.
        case iptables
        /// By nftables rules.
        case nftables
        /// Someone else does it.
        case skip
    }

    /// How restored files are compared with those of the dump.
    public enum FileValidation: String, CaseIterable, Sendable {
        /// By size.
        case fileSize = "filesize"
        /// By build id, where there is one.
        case buildID = "buildid"
    }

    /// How connections are protected.
    public struct TransportSecurity: Sendable, Equatable {
        /// Use TLS (`--tls`).
        public var enabled = false
        /// The authority to trust (`--tls-cacert`).
        public var authority: FilePath?
        /// Certificates not to trust any more (`--tls-cacrl`).
        public var revocations: FilePath?
        /// Our certificate (`--tls-cert`).
        public var certificate: FilePath?
        /// Its key (`--tls-key`).
        public var key: FilePath?
        /// Compare the peer's name with its certificate (off with `--tls-no-cn-verify`).
        public var verifiesName = true

        /// No TLS.
        public init() {}
    }

    /// Which CPU features are written and compared.
    public typealias CPUCapabilities = Kinds.CPUCapabilities

    /// Two words that belong together.
    public struct KeyedValue: Hashable, Sendable {
        /// The word before the separator.
        public var key: String
        /// The word after it.
        public var value: String

        /// Pairs two words.
        public init(key: String, value: String) {
            self.key = key
            self.value = value
        }
    }

    /// Another root of a control group tree.
    public struct CgroupRoot: Hashable, Sendable {
        /// The controller, or nil for all that are not named.
        public var controller: String?
        /// The root.
        public var path: String

        /// Pairs controller and path.
        public init(controller: String?, path: String) {
            self.controller = controller
            self.path = path
        }
    }

    /// A namespace to join.
    public struct JoinedNamespace: Hashable, Sendable {
        /// A kind of namespace.
        public enum Kind: String, CaseIterable, Sendable {
            /// System V IPC and message queues.
            case ipc
            /// Network.
            case net
            /// Clocks.
            case time
            /// Users.
            case user
            /// Host name.
            case uts
        }
        /// The kind of namespace.
        public var kind: Kind
        /// A pid or the path of a namespace file.
        public var target: String
        /// `UID,GID` in a user namespace.
        public var extra: String?

        /// Names a namespace.
        public init(kind: Kind, target: String, extra: String? = nil) {
            self.kind = kind
            self.target = target
            self.extra = extra
        }
    }

    /// A descriptor of ours that stands for a resource of the image.
    public struct InheritedDescriptor: Hashable, Sendable {
        /// The resource, such as `pipe:[17]` or a path.
        public var key: String
        /// Our descriptor.
        public var number: Int32

        /// Pairs resource and descriptor.
        public init(key: String, number: Int32) {
            self.key = key
            self.number = number
        }

        /// Keeps it from programs that we run. Returns false if it is not open, which can be told only before we open
        /// files of our own.
        func isTaken() -> Bool {
            let command = number > 2 ? 2 : 1  // F_SETFD, F_GETFD; standard streams are for scripts too
            return (try? systemCall(.fcntl, Int(number), command, 1)) != nil
        }
    }
}
