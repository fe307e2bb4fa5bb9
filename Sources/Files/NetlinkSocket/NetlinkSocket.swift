internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink

/// A socket to the kernel (`AF_NETLINK`).
enum NetlinkSocket: FileKind {
    private static let family: Int32 = 16, level = 270
    private static let connected: UInt32 = 1

    static func claims(_ facts: FileFacts) -> Bool { facts.family == family }

    private final class Known {
        var sockets: [UInt32: NetlinkDiagnosis]?
    }

    // MARK: dump

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let number = file.handle.number
        let known = context.state(Known.self) { Known() }
        let (kind, list) = try attempt("ask what socket it is") { () throws(SystemCallError) in
            if known.sockets == nil { known.sockets = try NetlinkDiagnosis.list() }
            return (try SocketKind(number), known.sockets ?? [:])
        }
        if SocketKind.hasData(number) {
            throw Failure(
                .unsupported, "messages of the kernel wait to be received on it, which can't be kept",
                advice: "Try again once the task has read them")
        }
        var entry = NetlinkSkEntry()
        (entry.id, entry.ino) = (file.id, UInt32(truncatingIfNeeded: file.facts.status.inode))
        (entry.protocol, entry.flags) = (UInt32(kind.code), file.facts.statusFlags)
        (entry.state, entry.portid, entry.dstPortid, entry.dstGroup) = (0, 0, 0, 0)
        entry.type = UInt32(kind.type)
        entry.nsID = file.owner.ids.netNsID
        if let facts = list[entry.ino] {
            (entry.state, entry.portid) = (UInt32(facts.state), facts.port)
            (entry.dstPortid, entry.dstGroup) = (facts.peerPort, facts.peerGroup)
            entry.groups = facts.groups
            while let last = entry.groups.last, last == 0 { entry.groups.removeLast() }
        }
        entry.fown = try FileOwner.dump(file, context)
        entry.opts = try SocketOptions.dump(file, kind, context)
        var whole = FileEntry(.netlinksk, file.id)
        whole.nlsk = entry
        return whole
    }

    // MARK: restore

    static let lateSteps = LateSteps.none

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.netlinksk.rawValue) && entry.hasNlsk
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.nlsk.fown }

    private static func address(port: UInt32, groups: UInt32) -> [UInt8] {
        [UInt8](bytesOf: UInt32(family)) + [UInt8](bytesOf: port) + [UInt8](bytesOf: groups)
    }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.nlsk
            try context.addSocket(member.id, inode: entry.ino) { () throws(Failure) in try make(entry, context) }
        }
    }

    private static func make(_ entry: NetlinkSkEntry, _ context: RestoreContext) throws(Failure) -> Descriptor {
        guard entry.protocol < 256, entry.groups.count <= 64 else {
            throw Failure(.corruptImage, "the socket is of no known kind")
        }
        let kind = SocketKind(family: family, type: entry.type == 2 ? 2 : 3, code: Int32(entry.protocol))
        let made = try attempt("create the socket") { () throws(SystemCallError) in try kind.make() }
        let number = made.number
        try SocketOptions.prepareNetwork(entry.opts, on: number, kind, context.owners)
        if entry.portid != 0 { try bind(entry, number, context) }
        if entry.state == connected {
            let group = entry.dstGroup
            let peer = address(port: entry.dstPortid, groups: group > 0 && group <= 32 ? 1 << (group - 1) : 0)
            try attempt("connect it") { () throws(SystemCallError) in
                try peer.withConstantAddress { (address, count) throws(SystemCallError) in
                    try systemCall(.connect, Int(number), address, count)
                }
            }
        }
        try SocketOptions.restore(entry.opts, on: number)
        try SocketOptions.completeNetwork(entry.opts, on: number, kind)
        try attempt("set the socket's flags") { () throws(SystemCallError) in try setStatusFlags(number, entry.flags) }
        return made
    }

    private static func bind(_ entry: NetlinkSkEntry, _ number: Int32, _ context: RestoreContext) throws(Failure) {
        func bind(_ port: UInt32) throws(SystemCallError) {
            try address(port: port, groups: 0).withConstantAddress { (address, count) throws(SystemCallError) in
                try systemCall(.bind, Int(number), address, count)
            }
        }
        do throws(SystemCallError) { try bind(entry.portid) } catch {
            guard error.errno == .EADDRINUSE else { throw Failure(.denied, "can't bind the socket", cause: error) }
            context.log.warning("socket:[\(entry.ino)] gets another address: \(entry.portid) is taken")
            try attempt("bind the socket") { () throws(SystemCallError) in try bind(0) }
        }
        for (index, word) in entry.groups.enumerated() where word != 0 {
            for bit in 0..<32 where word >> bit & 1 == 1 {
                try attempt("join a group of messages") { () throws(SystemCallError) in
                    try setSocketOption(number, level: level, 1, Int32(32 * index + bit + 1))  // NETLINK_ADD_MEMBERSHIP
                }
            }
        }
    }
}
