internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink
internal import Remote

/// A socket to network devices (`AF_PACKET`).
enum PacketSocket: FileKind {
    private static let family: Int32 = 17, level = 263
    /// `SOCK_PACKET`, which is obsolete.
    private static let old: UInt32 = 10
    private static let receiveRing = 5, sendRing = 13

    static func claims(_ facts: FileFacts) -> Bool { facts.family == family }

    private final class Known {
        var sockets: [UInt32: PacketDiagnosis]?
    }

    // MARK: dump

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let number = file.handle.number
        let known = context.state(Known.self) { Known() }
        let (kind, list) = try attempt("ask what socket it is") { () throws(SystemCallError) in
            if known.sockets == nil { known.sockets = try PacketDiagnosis.list() }
            return (try SocketKind(number), known.sockets ?? [:])
        }
        guard let facts = list[UInt32(truncatingIfNeeded: file.facts.status.inode)] else {
            throw Failure(.unsupported, "the kernel does not know the socket: it is of another network namespace")
        }
        var entry = PacketSockEntry()
        (entry.id, entry.type, entry.flags) = (file.id, UInt32(kind.type), file.facts.statusFlags)
        (entry.protocol, entry.ifindex) = (UInt32(facts.code.bigEndian), facts.device)
        entry.nsID = file.owner.ids.netNsID
        (entry.version, entry.reserve) = (facts.version, facts.reserve)
        (entry.timestamp, entry.copyThresh) = (facts.timestamp, facts.copyThreshold)
        (entry.auxData, entry.origDev) = (facts.flags & 2 != 0, facts.flags & 4 != 0)
        (entry.vnetHdr, entry.loss) = (facts.flags & 8 != 0, facts.flags & 16 != 0)
        for membership in facts.memberships {
            var one = PacketMclist()
            (one.index, one.type) = (membership.device, UInt32(membership.kind))
            one.addr = imageBytes(membership.address)
            for _ in 0..<min(membership.count, 1000) { entry.mclist.append(one) }
        }
        if let fanout = facts.fanout { entry.fanout = fanout }
        if let ring = facts.receiving { entry.rxRing = PacketSocket.ring(ring) }
        if let ring = facts.sending { entry.txRing = PacketSocket.ring(ring) }
        if entry.hasRxRing {
            let slots = try PacketSlots(
                number, entry.rxRing, sending: entry.hasTxRing ? entry.txRing : nil, version: entry.version)
            slots.dump(&entry)
        }
        if entry.hasTxRing {
            let frames = try SendingRing(number, entry)
            frames.dump(&entry)
        }
        if !entry.hasRxRing, SocketKind.hasData(number) {
            context.log.warning("packets that wait to be received on a packet socket are lost")
        }
        SocketMappings.of(context).ids[file.facts.status.inode] = file.id
        entry.fown = try FileOwner.dump(file, context)
        entry.opts = try SocketOptions.dump(file, kind, context)
        var whole = FileEntry(.packetsk, file.id)
        whole.psk = entry
        return whole
    }

    private static func ring(_ words: [UInt32]) -> PacketRing {
        var ring = PacketRing()
        (ring.blockSize, ring.blockNr, ring.frameSize, ring.frameNr) = (words[0], words[1], words[2], words[3])
        (ring.retireTmo, ring.sizeofPriv, ring.features) = (words[4], words[5], words[6])
        return ring
    }

    // MARK: restore

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.packetsk.rawValue) && entry.hasPsk
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.psk.fown }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            try during(.file("packet socket \(member.id)")) { () throws(Failure) in
                try context.files.add(member.id, try make(member.psk, context.owners))
            }
        }
    }

    private static func make(_ entry: PacketSockEntry, _ owners: TreeOwners) throws(Failure) -> Descriptor {
        guard [2, 3, old].contains(entry.type), entry.protocol <= 0xffff, entry.mclist.count <= 1 << 16 else {
            throw Failure(.corruptImage, "the socket is of no known kind")
        }
        // Without a protocol nothing is received before all is in place. An old socket gets its own only here.
        let kind = SocketKind(
            family: family, type: Int32(entry.type), code: entry.type == old ? Int32(entry.protocol) : 0)
        let made = try attempt("create the socket") { () throws(SystemCallError) in try kind.make() }
        let number = made.number
        try SocketOptions.prepareNetwork(entry.opts, on: number, kind, owners)
        guard entry.type == old || entry.version <= 2 else {
            throw Failure(.corruptImage, "the socket's ring is of no known version")
        }
        if entry.type != old { try setOptions(entry, number) }
        try SocketOptions.restore(entry.opts, on: number)
        try SocketOptions.completeNetwork(entry.opts, on: number, kind)
        try bind(entry, number)
        if entry.hasFanout {
            try attempt("join the group that packets are distributed over") { () throws(SystemCallError) in
                try setSocketOption(number, level: level, 18, Int32(bitPattern: entry.fanout))
            }
        }
        try attempt("set the socket's flags") { () throws(SystemCallError) in try setStatusFlags(number, entry.flags) }
        return made
    }

    private static func setOptions(_ entry: PacketSockEntry, _ number: Int32) throws(Failure) {
        try attempt("set the socket's options") { () throws(SystemCallError) in
            // PACKET_VERSION, RESERVE, TIMESTAMP, COPY_THRESH, AUXDATA, ORIGDEV, VNET_HDR, LOSS
            for (option, value) in [
                (10, entry.version), (12, entry.reserve), (17, entry.timestamp), (7, entry.copyThresh),
                (8, entry.auxData ? 1 : 0), (9, entry.origDev ? 1 : 0), (15, entry.vnetHdr ? 1 : 0),
                (14, entry.loss ? 1 : 0),
            ] where value != 0 {
                try setSocketOption(number, level: level, option, Int32(bitPattern: value))
            }
        }
        for one in entry.mclist {
            guard one.addr.count <= 32, one.type <= 0xffff else {
                throw Failure(.corruptImage, "the socket's memberships are damaged")
            }
            // packet_mreq with room for a long address: device, kind, length, address.
            let request =
                [UInt8](bytesOf: one.index) + [UInt8](bytesOf: UInt16(one.type))
                + [UInt8](bytesOf: UInt16(one.addr.count))
                + Array(one.addr) + [UInt8](repeating: 0, count: 32 - one.addr.count)
            try attempt(
                "receive the packets of an address", advice: "Restore where there is the network device \(one.index)"
            ) {
                () throws(SystemCallError) in
                try request.withConstantAddress { (value, count) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(number), level, 1, value, count)
                }
            }
        }
        if entry.hasRxRing { try setRing(entry.rxRing, receiveRing, entry.version, number) }
        if entry.hasTxRing { try setRing(entry.txRing, sendRing, entry.version, number) }
        if entry.hasRxRing, entry.position != 0 || !entry.slots.isEmpty {
            let slots = try PacketSlots(
                number, entry.rxRing, sending: entry.hasTxRing ? entry.txRing : nil, version: entry.version)
            try slots.restore(entry)
        }
        if entry.hasTxRing, entry.sendPosition != 0 || !entry.sendSlots.isEmpty {
            let frames = try SendingRing(number, entry)
            try frames.restore(entry)
        }
    }

    private static func setRing(
        _ ring: PacketRing, _ option: Int, _ version: UInt32, _ number: Int32
    ) throws(Failure) {
        let words = [
            ring.blockSize, ring.blockNr, ring.frameSize, ring.frameNr, ring.retireTmo, ring.sizeofPriv, ring.features,
        ]
        try attempt("make the socket's ring") { () throws(SystemCallError) in
            try words.withConstantAddress { (value, count) throws(SystemCallError) in
                // tpacket_req3 of TPACKET_V3 (2) has seven words, tpacket_req four.
                try systemCall(.setsockopt, Int(number), level, option, value, version == 2 ? count : 16)
            }
        }
    }

    private static func bind(_ entry: PacketSockEntry, _ number: Int32) throws(Failure) {
        guard entry.protocol != 0 || entry.ifindex != 0 else { return }
        var address = [UInt8](bytesOf: UInt16(family))
        if entry.type == old {
            guard entry.ifindex != 0 else { return }
            // An old socket is bound by name.
            let name = try attempt(
                "find the network device \(entry.ifindex)", advice: "Restore where there is such a device"
            ) { () throws(SystemCallError) in try NetworkDevice.name(entry.ifindex, number) }
            address += name.prefix(13) + [UInt8](repeating: 0, count: 14 - min(name.count, 13))
        } else {
            address += [UInt8](bytesOf: UInt16(entry.protocol)) + [UInt8](bytesOf: entry.ifindex)
            address += [UInt8](repeating: 0, count: 12)
        }
        try attempt(
            "bind it to the network device \(entry.ifindex)", advice: "Restore where there is such a device"
        ) { () throws(SystemCallError) in
            try address.withConstantAddress { (address, count) throws(SystemCallError) in
                try systemCall(.bind, Int(number), address, count)
            }
        }
    }

    /// Maps the rings where tasks had them mapped.
    static func wire(_ entry: FileEntry, _ context: RestoreContext) throws(Failure) {
        var seen: Set<UInt32> = []
        for process in context.processes where !process.plan.isZombie {
            let mappings = SocketMappings.all(of: entry.id, in: process.plan)
            guard !mappings.isEmpty, !process.plan.ids.hasVmID || seen.insert(process.plan.ids.vmID).inserted else {
                continue
            }
            try during(.restoring(process.id, process.name)) { () throws(Failure) in
                let file = try context.deliver([try context.files.number(entry.id)], to: process.puppet)[0]
                var batch = Batch()
                for mapping in mappings {
                    // Shared or private makes no difference to rings. FIXED_NOREPLACE.
                    batch.add(
                        .mmap, .bits(mapping.start), .bits(mapping.end &- mapping.start),
                        .value(Int(mapping.prot & 7)),
                        .value(Int(mapping.flags & 3) | 0x10_0000), .descriptor(file), .bits(mapping.pgoff),
                        doing: "map the rings of a packet socket")
                }
                batch.add(.close, .descriptor(file), doing: "close the packet socket")
                try process.puppet.run(batch)
            }
        }
    }
}
