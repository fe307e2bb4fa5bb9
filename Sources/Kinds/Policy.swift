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
    /// Temporary names go away at the end (`--leave-running`).
    public var removesLinkRemaps = false
    /// Build ids of mapped programs and libraries are noted (`--file-validation buildid`).
    public var recordsBuildIDs = true
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
    /// Compare the permission bits of files with the image (off with `--skip-file-rwx-check`).
    public var checksPermissions = true
    /// The CPU features to compare (`--cpu-cap`).
    public var cpuCapabilities = CPUCapabilities.default
    /// Compare build ids of mapped programs and libraries with the image (`--file-validation buildid`).
    public var checksBuildIDs = true
    /// We end when the tree runs (`--restore-detached`), which is its parent's death.
    public var isDetached = false
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
