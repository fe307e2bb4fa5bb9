public import SystemPackage

/// What the user allows and asks of a dump, as far as kinds of kernel object need to know.
public struct DumpPolicy: Sendable {
    /// Largest unlinked file, in bytes, whose contents go into the image (`--ghost-limit`).
    public var ghostLimit: UInt64 = 1 << 20
    /// Give unlinked files that have other names a temporary name on their file system (`--link-remap`).
    public var linkRemap = false
    /// File locks may be dumped (`--file-locks`).
    public var fileLocks = false
    /// Devices may be reopened by another path (`--evasive-devices`).
    public var evasiveDevices = false
    /// The tree may belong to a session and terminal outside of it (`--shell-job`).
    public var shellJob = false
    /// Record build ids besides sizes (`--file-validation buildid`, the default).
    public var recordsBuildID = true
    /// The CPU features to record (`--cpu-cap`).
    public var cpuCapabilities: [String] = []
    /// Resources that stay outside (`--external`).
    public var external: [String] = []
    /// The tree's root directory (`--root`).
    public var root: FilePath?
    /// Temporary names go away at the end (`--leave-running`).
    public var removesLinkRemaps = false
    /// The tree goes on after the dump, so nothing on disk that it needs may be moved.
    public var leaveRunning = false
    /// CRIU's defaults.
    public init() {}
}

/// What the user allows and asks of a restore.
public struct RestorePolicy: Sendable {
    /// The tree joins the session and terminal of the caller (`--shell-job`).
    public var shellJob = false
    /// Largest ghost file, in bytes, that may be created (`--ghost-limit`).
    public var ghostLimit: UInt64 = 1 << 20
    /// Compare build ids besides sizes (`--file-validation`).
    public var checksBuildID = true
    /// Compare the permission bits of files with the image (off with `--skip-file-rwx-check`).
    public var checksPermissions = true
    /// The CPU features to compare (`--cpu-cap`).
    public var cpuCapabilities: [String] = []
    /// Resources that come from outside (`--external`).
    public var external: [String] = []
    /// Descriptors to use instead of those in the image: key and our number (`--inherit-fd`).
    public var inheritedDescriptors: [(key: String, number: Int32)] = []
    /// The tree's root directory (`--root`).
    public var root: FilePath?
    /// Devices may be opened by another path (`--evasive-devices`).
    public var evasiveDevices = false
    /// CRIU's defaults.
    public init() {}
}
