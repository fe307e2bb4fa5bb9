public import Diagnostics
public import ImageMessages
public import Linux
public import Procfs

/// What can be told of an open file without knowing its kind.
public struct FileFacts: Sendable {
    /// What stat(2) says.
    public var status: FileStatus
    /// The text of the /proc link: a path, or `pipe:[N]`, `anon_inode:[eventfd]` and the like.
    public var target: [UInt8]
    /// Offset, flags, mount id and the kind's own lines.
    public var information: DescriptorInformation
    /// The address family of a socket (`SO_DOMAIN`), where it was asked for.
    public var family: Int32?
    /// What its kind learned from a copy of the descriptor already (`FileKind.ask`).
    public var answers: (any Sendable)?
    /// Who gets signals for it (`F_GETOWN_EX`, `F_GETSIG`), where that was asked already.
    public var owner: FileOwnership?

    /// Gathers the facts.
    public init(
        status: FileStatus, target: [UInt8], information: DescriptorInformation, family: Int32? = nil
    ) {
        self.status = status
        self.target = target
        self.information = information
        self.family = family
    }

    /// The link's text, for messages.
    public var text: String { String(decoding: target, as: UTF8.self) }
    /// Whether the text begins with some others.
    public func begins(with text: String) -> Bool { target.starts(with: text.utf8) }
    /// The flags of the description: those of the descriptor without close-on-exec.
    public var statusFlags: UInt32 { UInt32(bitPattern: information.flags) & ~0o2000000 }
}

/// Who gets signals for a file, and which.
public struct FileOwnership: Sendable {
    /// `F_OWNER_TID` 0, `F_OWNER_PID` 1, `F_OWNER_PGRP` 2; 0 as the id is nobody.
    public var type: Int32 = 0, id: Int32 = 0
    /// 0 for SIGIO.
    public var signal: UInt32 = 0

    /// Nobody.
    public init() {}
}

/// An open file description under dump, seen through a copy of one of its descriptors.
public final class OpenFile {
    /// Its id in files.img.
    public let id: UInt32
    /// What it looks like.
    public let facts: FileFacts
    /// Our copy of the descriptor (`pidfd_getfd`), which shares offset and flags with the task's.
    public let handle: Descriptor
    /// A task that has it, and its number there; `underWay` if it is only sent to the task.
    public let owner: DumpedProcess, number: Int32

    /// The number of a file that no task has, but that a socket of a task holds for it.
    public static let underWay = Int32.max

    /// Describes an open file.
    public init(id: UInt32, facts: FileFacts, handle: consuming Descriptor, owner: DumpedProcess, number: Int32) {
        self.id = id
        self.facts = facts
        self.handle = handle
        self.owner = owner
        self.number = number
    }
}

/// How often `FileKind.wire`, `settle` and `start` are called for files of a kind.
public enum LateSteps: Sendable {
    /// Not at all.
    case none
    /// Once, with any of them, for all of them.
    case together
    /// For each.
    case each
}

/// A kind of open file: dump and restore side by side.
public protocol FileKind: SendableMetatype {
    /// Whether a file under dump is of this kind.
    static func claims(_ facts: FileFacts) -> Bool
    /// Whether some files of the kind can be dumped and others not, so that `refusal` has to see each.
    static var isRefusedSingly: Bool { get }
    /// Why a file can't be dumped, if that is known before the task is stopped.
    static func refusal(_ facts: FileFacts) -> Failure?
    /// Learns from a copy of a descriptor what depends on nothing else, for `FileFacts.answers`. Any thread may do that,
    /// also where the file turns out to be known or to be none that can be dumped. What fails is asked again by `dump`.
    static func ask(_ number: Int32) -> (any Sendable)?
    /// Dumps it.
    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry
    /// Dumps the files that only its files refer to: descriptors under way in a socket. All descriptor tables are dumped,
    /// nothing is finished.
    static func reveal(_ context: DumpContext) throws(Failure)
    /// Completes the kind's entries in `context.files` and writes what its files have in common, once all files are
    /// dumped and before files.img is written.
    static func finish(_ context: DumpContext) throws(Failure)
    /// Takes from the tree what is taken away by taking it, once the image is complete and the tree will be killed.
    static func part(_ context: DumpContext) throws(Failure)
    /// Reads and checks the kind's own images, before anything is created.
    static func load(_ context: RestoreContext) throws(Failure)
    /// What is to do for its files after `make`.
    static var lateSteps: LateSteps { get }
    /// Whether an entry of files.img is of this kind.
    static func restores(_ entry: FileEntry) -> Bool
    /// Entries with the same key are made together: the two ends of a pipe.
    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64
    /// Whether it can be made only once the tasks exist: what lies in /proc.
    static func comesAfterTasks(_ entry: FileEntry) -> Bool
    /// Makes some of hundreds of descriptions before all others, by several threads, and tells which: such as depend on
    /// nothing.
    static func makeApart(_ entries: [FileEntry], _ context: RestoreContext) throws(Failure) -> Set<UInt32>
    /// Makes the descriptions of a group and puts them into `context.files`. May depend on no other file.
    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure)
    /// Who gets signals for the file, if the kind's entries say.
    static func owner(_ entry: FileEntry) -> FownEntry?
    /// A session leader has just started its session. What it gets here, the children that it will have inherit.
    static func sessionStarted(by leader: RestoredProcess, _ context: RestoreContext) throws(Failure)
    /// All tasks exist, without descriptors yet. What only a task can make is made here.
    static func grown(_ context: RestoreContext) throws(Failure)
    /// Joins it to other objects once all files are made and all descriptor tables are filled. Kinds are wired in the
    /// order of the registry.
    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure)
    /// Cleans up what only the restore needed, after everything else: unlinks a ghost file.
    static func settle(_ entry: FileEntry, _ context: RestoreContext) throws(Failure)
    /// Starts what runs by the clock or watches files, as the last act before the tasks are let go.
    static func start(_ entry: FileEntry, _ context: RestoreContext) throws(Failure)
}

extension FileKind {
    /// No.
    public static var isRefusedSingly: Bool { false }
    /// Nothing is known.
    public static func refusal(_ facts: FileFacts) -> Failure? { nil }
    /// Nothing.
    public static func ask(_ number: Int32) -> (any Sendable)? { nil }
    /// Nothing.
    public static func reveal(_ context: DumpContext) throws(Failure) {}
    /// Nothing.
    public static func finish(_ context: DumpContext) throws(Failure) {}
    /// Nothing.
    public static func part(_ context: DumpContext) throws(Failure) {}
    /// Nothing.
    public static func load(_ context: RestoreContext) throws(Failure) {}
    /// None.
    public static func makeApart(_ entries: [FileEntry], _ context: RestoreContext) throws(Failure) -> Set<UInt32> {
        []
    }
    /// Nobody.
    public static func owner(_ entry: FileEntry) -> FownEntry? { nil }
    /// `wire`, `settle` and `start` for each.
    public static var lateSteps: LateSteps { .each }
    /// By itself.
    public static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 { UInt64(entry.id) }
    /// No.
    public static func comesAfterTasks(_ entry: FileEntry) -> Bool { false }
    /// Nothing.
    public static func sessionStarted(by leader: RestoredProcess, _ context: RestoreContext) throws(Failure) {}
    /// Nothing.
    public static func grown(_ context: RestoreContext) throws(Failure) {}
    /// Nothing.
    public static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {}
    /// Nothing.
    public static func settle(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {}
    /// Nothing.
    public static func start(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {}
}
