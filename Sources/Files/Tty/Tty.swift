internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux

/// A terminal: an end of a pseudoterminal pair, `/dev/tty`, a console, a serial line.
///
/// In files.img it is two entries, the path as a regular file and the terminal. What all descriptions of one end have in
/// common is in tty-info.img, and what waits to be read in tty-data.img.
enum Tty: FileKind {

    static func claims(_ facts: FileFacts) -> Bool {
        facts.status.kind == .characterDevice && facts.statusFlags & UInt32(OpenFlags.path.rawValue) == 0
            && TerminalDevice(facts.status.representedDevice) != nil
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        var whole = FileEntry(.tty, file.id)
        whole.tty = try TtyDump.of(context).dump(file, context)
        return whole
    }

    static func finish(_ context: DumpContext) throws(Failure) { try TtyDump.of(context).finish(context) }

    static func load(_ context: RestoreContext) throws(Failure) { try TtyRestore.of(context).load(context) }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.tty.rawValue) && entry.hasTty }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.tty.fown }

    /// All together: the indices of pairs are given out in their order.
    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 { 0 }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        try TtyRestore.of(context).make(members, context)
    }

    static func sessionStarted(by leader: RestoredProcess, _ context: RestoreContext) throws(Failure) {
        try TtyRestore.of(context).giveControl(to: leader, context)
    }

    static func grown(_ context: RestoreContext) throws(Failure) { try TtyRestore.of(context).finishControl(context) }

    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        try TtyRestore.of(context).close(entry, context)
    }
}
