internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux

/// The receiving ring of a packet socket, seen through a mapping of ours: frames (TPACKET_V1 and V2) or blocks (V3), each
/// the kernel's or the program's to use.
///
/// Kernel and program go around the ring independently and have to agree on where they are. The kernel does not tell its
/// place, but it follows from the marks that it leaves. A new ring begins at its start, so a restore makes the kernel go on
/// by sending packets of no meaning to the socket, before it hears real ones.
struct PacketSlots: ~Copyable {
    private let memory: Mapping
    private let ring: PacketRing
    private let version: UInt32
    private let socket: Int32

    private var isBlocks: Bool { version == 2 }
    private var count: Int { Int(isBlocks ? ring.blockNr : ring.frameNr) }
    private var size: Int { Int(isBlocks ? ring.blockSize : ring.frameSize) }

    /// The largest ring that is kept.
    private static let largest = 1 << 30

    /// Maps the rings of a socket.
    init(_ socket: Int32, _ ring: PacketRing, sending: PacketRing?, version: UInt32) throws(Failure) {
        let bytes = [ring, sending ?? PacketRing()].map { Int($0.hasBlockSize ? $0.blockSize : 0) * Int($0.blockNr) }
        guard version <= 2, bytes.allSatisfy({ $0 <= PacketSlots.largest }), ring.frameSize >= 32, ring.blockSize >= 64,
            ring.blockNr > 0, ring.frameSize <= ring.blockSize, ring.frameNr > 0,
            Int(ring.frameNr) <= Int(ring.blockSize / ring.frameSize) * Int(ring.blockNr)
        else { throw Failure(.unsupported, "its ring is too large, or of no known kind") }
        memory = try attempt("map the socket's ring") { () throws(SystemCallError) in
            try Mapping(length: bytes[0] + bytes[1], flags: 1, file: socket)
        }
        (self.socket, self.ring, self.version) = (socket, ring, version)
    }

    private func offset(_ index: Int) -> Int {
        if isBlocks { return index * size }
        let each = Int(ring.blockSize / ring.frameSize)
        return index / each * Int(ring.blockSize) + index % each * size
    }

    /// The word with `TP_STATUS_USER` (1).
    private func statusOffset(_ index: Int) -> Int { offset(index) + (isBlocks ? 8 : 0) }
    private func isProgram(_ index: Int) -> Bool { memory.loadShared(at: statusOffset(index)) & 1 != 0 }

    /// When a slot was filled: a time stamp, or the number of a block. 0 if it never was.
    private func age(_ index: Int) -> UInt64 {
        let at = offset(index)
        switch version {
        case 2: return memory.load(UInt64.self, at: at + 24)
        case 1:
            return UInt64(memory.load(UInt32.self, at: at + 16)) << 32 | UInt64(memory.load(UInt32.self, at: at + 20))
        default:
            return UInt64(memory.load(UInt32.self, at: at + 20)) << 32 | UInt64(memory.load(UInt32.self, at: at + 24))
        }
    }

    private func newest() -> Int {
        var (best, bestAge) = (-1, UInt64(0))
        for index in 0..<count {
            let age = age(index)
            if age > bestAge { (best, bestAge) = (index, age) }
        }
        return best
    }

    /// How many bytes of a slot mean something.
    private func used(_ index: Int) -> Int {
        let at = offset(index)
        let length: Int
        switch version {
        case 2: length = Int(memory.load(UInt32.self, at: at + 20))
        case 1: length = Int(memory.load(UInt16.self, at: at + 12)) + Int(memory.load(UInt32.self, at: at + 8))
        default: length = Int(memory.load(UInt16.self, at: at + 16)) + Int(memory.load(UInt32.self, at: at + 12))
        }
        return min(max(length, 48), size)
    }

    // MARK: dump

    /// Notes the kernel's position, and the slots that the program has not given back.
    func dump(_ entry: inout PacketSockEntry) {
        let newest = newest()
        var position = (newest + 1) % count
        var kept = (0..<count).filter { isProgram($0) }
        if isBlocks, newest >= 0, !isProgram(newest) {
            // A block that is being filled counts as full if something is in it.
            if memory.load(UInt32.self, at: offset(newest) + 12) > 0 { kept.append(newest) } else { position = newest }
        }
        if !isBlocks, newest >= 0, !isProgram(newest) { kept.append(newest) }
        entry.position = UInt32(position)
        for index in kept {
            var slot = BrumatePacketSlotEntry()
            slot.index = UInt32(index)
            slot.contents = imageBytes(memory.bytes(at: offset(index), count: used(index)))
            entry.slots.append(slot)
        }
    }

    // MARK: restore

    /// Brings the kernel to its position and the slots to their contents. The socket hears nothing else yet.
    func restore(_ entry: PacketSockEntry) throws(Failure) {
        let position = Int(entry.position)
        guard position < count, entry.slots.allSatisfy({ $0.index < UInt32(count) && $0.contents.count <= size }) else {
            throw Failure(.corruptImage, "the contents of the socket's ring are damaged")
        }
        // If the program still has the first block, the kernel must not use it, which it has begun.
        let turns = isBlocks && position == 0 && entry.slots.contains { $0.index == 0 } ? count : position
        if turns > 0 { try advance(turns) }
        let kept = Set(entry.slots.map { Int($0.index) })
        // A block at the kernel's position stays the program's throughout: the kernel's timer would begin it.
        for index in 0..<count where isProgram(index) && !kept.contains(index) {
            memory.storeShared(0, at: statusOffset(index))
        }
        for slot in entry.slots {
            var contents = Array(slot.contents)
            if isBlocks {
                guard contents.count >= 48 else {
                    throw Failure(.corruptImage, "a block of the socket's ring is cut off")
                }
                contents[8] |= 1
                // Its number must not be newer than what the kernel gives out now.
                let index = Int(slot.index)
                let number = UInt64(turns == count ? (index == count - 1 ? 1 : 0) : turns > index ? index + 1 : 0)
                for (at, byte) in [UInt8](bytesOf: number).enumerated() { contents[24 + at] = byte }
            }
            memory.store(contents, at: offset(Int(slot.index)))
        }
        _ = try? statistics()
    }

    /// Packets, drops and freezes since the last call (`PACKET_STATISTICS`), which begins anew.
    private func statistics() throws(SystemCallError) -> (packets: UInt32, drops: UInt32) {
        var value: (UInt32, UInt32, UInt32) = (0, 0, 0)
        var length: UInt32 = 12
        try withAddress(of: &value) { (value) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(socket), 263, 6, value, length)
            }
        }
        return (value.0, value.1)
    }

    /// An experimental protocol (IEEE 802, local).
    private static let protocolNumber: UInt16 = 0x88b5

    private func advance(_ turns: Int) throws(Failure) {
        // Another restore may do the same at this moment: only packets that begin with our number are heard. The filter
        // loads the first word of the packet's payload (SKF_NET_OFF), compares, and takes all or one byte.
        let word = UInt32.random(in: 0 ... .max)
        try SocketFilter.restore(
            [
                0x20 << 48 | 0xfff0_0000, 0x15 << 48 | 1 << 32 | UInt64(word), 6 << 48 | (isBlocks ? 0xffff_ffff : 1),
                6 << 48,
            ], on: socket)
        defer { _ = try? setSocketOption(socket, 27, 0) }  // SO_DETACH_FILTER; its own comes later.
        try attempt("bring the socket's ring to its position", advice: "Set the device lo up") {
            () throws(SystemCallError) in
            // AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC
            let sender = Descriptor(owning: Int32(try systemCall(.socket, 17, 2 | 0o2000000, 0)))
            let loopback: UInt32 = 1
            var address = [UInt8](bytesOf: UInt16(17)) + [UInt8](bytesOf: PacketSlots.protocolNumber.bigEndian)
            address += [UInt8](bytesOf: loopback) + [0, 0, 0, 6] + [UInt8](repeating: 0, count: 8)
            try address.withConstantAddress { (place, count) throws(SystemCallError) in
                try systemCall(.bind, Int(socket), place, count)
            }
            // With a block taken, even the one that it has begun, the kernel stops there.
            let next = turns % count
            if isBlocks { memory.storeShared(1, at: statusOffset(next)) }
            let data =
                [UInt8](bytesOf: word.bigEndian) + [UInt8](repeating: 0, count: isBlocks ? min(60000, size / 2) - 4 : 0)
            var sent = 0
            while isBlocks ? try statistics().drops == 0 : sent < turns {
                guard sent < 64 * count + (1 << 20) else { throw SystemCallError(.sendto, .ETIMEDOUT) }
                try data.withConstantAddress { (bytes, length) throws(SystemCallError) in
                    try address.withConstantAddress { (place, size) throws(SystemCallError) in
                        try systemCall(.sendto, Int(sender.number), bytes, length, 0, place, size)
                    }
                }
                sent += 1
            }
            // Each was received when its call returned, unless the processor had other work.
            for _ in 0..<1000 where !isBlocks && !isProgram(turns - 1) { pause(nanoseconds: 1_000_000) }
        }
    }
}
