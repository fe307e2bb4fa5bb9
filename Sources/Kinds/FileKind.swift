public import Diagnostics
public import ImageMessages
public import Linux
public import Procfs

/// What can be told of an open file without knowing its kind.
public struct FileFacts: Sendable {
    /// `st_mode`, with the type bits.
    public var mode: UInt32
    /// The device that holds the inode, and the device that the inode stands for.
    public var device: UInt64, representedDevice: UInt64
    /// The inode number, its number of names and its size.
    public var inode: UInt64, links: UInt64, size: UInt64
    /// The text of the /proc link: a path, or `pipe:[N]`, `anon_inode:[eventfd]` and the like.
    public var target: [UInt8]
    /// Offset, flags, mount id and the kind's own lines.
    public var information: DescriptorInformation

    /// Gathers the facts.
    public init(
        mode: UInt32, device: UInt64, representedDevice: UInt64, inode: UInt64, links: UInt64, size: UInt64,
        target: [UInt8], information: DescriptorInformation
    ) {
        self.mode = mode
        self.device = device
        self.representedDevice = representedDevice
        self.inode = inode
        self.links = links
        self.size = size
        self.target = target
        self.information = information
    }
}

/// An open file description under dump, seen through a copy of one of its descriptors.
public final class OpenFile {
    /// Its id in files.img.
    public let id: UInt32
    /// What it looks like.
    public let facts: FileFacts
    /// Our copy of the descriptor (`pidfd_getfd`), which shares offset and flags with the task's.
    public let handle: Descriptor
    /// A task that has it, and its number there.
    public let owner: DumpedProcess, number: Int32

    /// Describes an open file.
    public init(id: UInt32, facts: FileFacts, handle: consuming Descriptor, owner: DumpedProcess, number: Int32) {
        self.id = id
        self.facts = facts
        self.handle = handle
        self.owner = owner
        self.number = number
    }
}

/// A kind of open file: dump and restore side by side.
public protocol FileKind: SendableMetatype {
    /// The kind in words, for messages.
    static var name: String { get }
    /// Whether a file under dump is of this kind.
    static func claims(_ facts: FileFacts) -> Bool
    /// Dumps it.
    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry
    /// Whether an entry of files.img is of this kind.
    static func restores(_ entry: FileEntry) -> Bool
    /// Entries with the same key are made together: the two ends of a pipe.
    static func group(_ entry: FileEntry) -> UInt64
    /// Makes the descriptions of a group and puts them into `context.files`. May depend on no other file.
    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure)
    /// Joins it to other objects once all files are made and all descriptor tables are filled.
    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure)
    /// Cleans up what only the restore needed, after everything else: unlinks a ghost file.
    static func settle(_ entry: FileEntry, _ context: RestoreContext) throws(Failure)
}

extension FileKind {
    /// By itself.
    public static func group(_ entry: FileEntry) -> UInt64 { UInt64(entry.id) }
    /// Nothing.
    public static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {}
    /// Nothing.
    public static func settle(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {}
}
