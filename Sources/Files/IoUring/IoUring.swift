internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// A pair of rings for requests and completions (`io_uring_setup(2)`).
///
/// The kernel counts requests and completions for itself, so a new ring is wound to the old one's position with
/// requests that do nothing.
enum IoUring: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:[io_uring]" }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        var dump = RingDump(file, context)
        var whole = FileEntry(.ioUring, file.id)
        whole.ioUring = try dump.run()
        return whole
    }

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.ioUring.rawValue) && entry.hasIoUring
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.ioUring.fown }

    static func comesAfterTasks(_ entry: FileEntry) -> Bool { true }

    static func load(_ context: RestoreContext) throws(Failure) {
        for entry in context.entries where restores(entry) {
            try during(.file("io_uring \(entry.id)")) { () throws(Failure) in try RingRestore.check(entry.ioUring) }
        }
    }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            try during(.file("io_uring \(member.id)")) { () throws(Failure) in
                try RingRestore(member.ioUring, context).make()
            }
        }
    }

    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        try during(.file("io_uring \(entry.id)")) { () throws(Failure) in
            try RingRestore(entry.ioUring, context).wire()
        }
    }
}
