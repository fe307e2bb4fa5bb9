internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux

/// A socket between a virtual machine and its host (`AF_VSOCK`): listening, bound or new.
enum VsockSocket: FileKind {
    private static let family: Int32 = 40
    /// Poll events.
    private static let readable: Int16 = 1, writable: Int16 = 4, hungUp: Int16 = 0x2000
    /// `VMADDR_CID_ANY`, `VMADDR_PORT_ANY`.
    private static let any = UInt32.max
    /// The kernel does not tell how many connections may wait to be accepted: as many as a program may ask for.
    private static let backlog = 4096

    static func claims(_ facts: FileFacts) -> Bool { facts.family == family }

    // MARK: dump

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let number = file.handle.number
        let kind = try attempt("ask what socket it is") { () throws(SystemCallError) in try SocketKind(number) }
        var entry = VsockSkEntry()
        (entry.id, entry.ino) = (file.id, UInt32(truncatingIfNeeded: file.facts.status.inode))
        (entry.type, entry.flags) = (UInt32(bitPattern: kind.type), file.facts.statusFlags)
        let isListening = try attempt("ask for the socket's state") { () throws(SystemCallError) in
            (entry.cid, entry.port) = try address(of: number)
            return try socketOption(number, 30) != 0  // SO_ACCEPTCONN
        }
        if isListening {
            entry.listens = true
            guard !SocketKind.hasData(number) else {
                throw Failure(
                    .unsupported, "a vsock connection waits to be accepted, which can't be kept",
                    advice: "Try again once the task has accepted it")
            }
        } else {
            try checkUnconnected(number)
        }
        entry.nsID = file.owner.ids.netNsID
        entry.fown = try FileOwner.dump(file, context)
        entry.opts = try SocketOptions.dump(file, kind, context)
        var whole = FileEntry(.vsocksk, file.id)
        whole.vsk = entry
        return whole
    }

    private static func address(of number: Int32) throws(SystemCallError) -> (cid: UInt32, port: UInt32) {
        // struct sockaddr_vm
        var name: (family: UInt16, reserved: UInt16, port: UInt32, cid: UInt32, rest: UInt32) = (0, 0, 0, 0, 0)
        var length: UInt32 = 16
        try withAddress(of: &name) { (name) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockname, Int(number), name, length)
            }
        }
        return (name.cid, name.port)
    }

    /// A new socket can be written to in vain; one that is being connected can't, and one whose peer is gone is at its end.
    private static func checkUnconnected(_ number: Int32) throws(Failure) {
        let events = try attempt("ask for the socket's state") { () throws(SystemCallError) in
            try poll(number, for: readable | writable | hungUp)
        }
        var name: (UInt64, UInt64) = (0, 0)
        var length: UInt32 = 16
        let peer = try? withAddress(of: &name) { (name) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getpeername, Int(number), name, length)
            }
        }
        guard peer == nil, events & (readable | writable | hungUp) == writable else {
            throw Failure(
                .unsupported, "vsock connections can't be dumped: the kernel has no way to restore them",
                advice: "Close it before the dump, and connect anew after the restore")
        }
    }

    // MARK: restore

    static let lateSteps = LateSteps.none

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.vsocksk.rawValue) && entry.hasVsk
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.vsk.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.vsk
            try context.addSocket(member.id, inode: entry.ino) { () throws(Failure) in try make(entry, context.owners) }
        }
    }

    private static func make(_ entry: VsockSkEntry, _ owners: TreeOwners) throws(Failure) -> Descriptor {
        guard [1, 2, 5].contains(entry.type) else { throw Failure(.corruptImage, "the socket is of no known type") }
        let kind = SocketKind(family: family, type: Int32(bitPattern: entry.type), code: 0)
        let made = try attempt("create the socket", advice: "Restore on a machine that has vsock") {
            () throws(SystemCallError) in try kind.make()
        }
        let number = made.number
        try SocketOptions.prepareNetwork(entry.opts, on: number, kind, owners)
        if entry.port != any {
            var name = (UInt16(family), UInt16(0), entry.port, entry.cid, UInt32(0))
            try attempt(
                "bind it to the port \(entry.port) of the context \(entry.cid == any ? "any" : "\(entry.cid)")",
                advice: "End the program that has the port, or restore where there is this context"
            ) { () throws(SystemCallError) in
                try withAddress(of: &name) { (name) throws(SystemCallError) in
                    try systemCall(.bind, Int(number), name, 16)
                }
            }
        }
        if entry.listens {
            try attempt("listen") { () throws(SystemCallError) in try systemCall(.listen, Int(number), backlog) }
        }
        try SocketOptions.restore(entry.opts, on: number)
        try SocketOptions.completeNetwork(entry.opts, on: number, kind)
        try attempt("set the socket's flags") { () throws(SystemCallError) in try setStatusFlags(number, entry.flags) }
        return made
    }
}
