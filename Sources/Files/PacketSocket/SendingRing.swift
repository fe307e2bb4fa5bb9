internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux

/// The sending ring of a packet socket, seen through a mapping of ours.
///
/// The kernel takes frames in turn and does not tell which is next. But a frame that can't be sent, as it claims to be too
/// long, makes it stop there and say so; so a dump marks all idle frames in this way, asks the kernel to send, and puts them
/// back. Nothing is sent by that. With `PACKET_LOSS` the kernel passes over such frames.
struct SendingRing: ~Copyable {
    private let memory: Mapping
    private let ring: PacketRing
    private let version: UInt32
    private let socket: Int32
    private let base: Int
    private let loses: Bool, hasHeader: Bool

    /// `TP_STATUS_SEND_REQUEST`, `TP_STATUS_SENDING`, `TP_STATUS_WRONG_FORMAT`.
    private static let request: UInt32 = 1, sending: UInt32 = 2, wrong: UInt32 = 4
    private static let largest = 1 << 28
    private static let tooLong: UInt32 = 0x7fff_ffff

    /// Maps the rings of a socket.
    init(_ socket: Int32, _ entry: PacketSockEntry) throws(Failure) {
        let ring = entry.txRing
        base = entry.hasRxRing ? Int(entry.rxRing.blockSize) * Int(entry.rxRing.blockNr) : 0
        let size = Int(ring.blockSize) * Int(ring.blockNr)
        guard entry.version <= 2, base <= SendingRing.largest * 4, size <= SendingRing.largest, ring.frameSize >= 128,
            ring.frameSize <= ring.blockSize, ring.frameNr > 0,
            Int(ring.frameNr) <= Int(ring.blockSize / ring.frameSize) * Int(ring.blockNr)
        else { throw Failure(.unsupported, "its sending ring is too large, or of no known kind") }
        memory = try attempt("map the socket's rings") { [base] () throws(SystemCallError) in
            try Mapping(length: base + size, flags: 1, file: socket)
        }
        (self.socket, self.ring, version) = (socket, ring, entry.version)
        (loses, hasHeader) = (entry.loss, entry.vnetHdr)
    }

    private var count: Int { Int(ring.frameNr) }

    private func offset(_ index: Int) -> Int {
        let each = Int(ring.blockSize / ring.frameSize)
        return base + index / each * Int(ring.blockSize) + index % each * Int(ring.frameSize)
    }

    private func status(_ index: Int) -> UInt32 { memory.loadShared(at: offset(index) + (version == 2 ? 20 : 0)) }
    private func set(_ status: UInt32, _ index: Int) {
        memory.storeShared(status, at: offset(index) + (version == 2 ? 20 : 0))
    }
    private func lengthOffset(_ index: Int) -> Int { offset(index) + [8, 4, 16][Int(version)] }

    /// Lets the kernel send what is asked for, over the device lo by an experimental protocol.
    private func send(waits: Bool) {
        let loopback: UInt32 = 1
        var address = [UInt8](bytesOf: UInt16(17)) + [0x88, 0xb5]
        address += [UInt8](bytesOf: loopback) + [0, 0, 0, 6] + [UInt8](repeating: 0, count: 8)
        _ = try? address.withConstantAddress { (place, size) throws(SystemCallError) in
            try systemCall(.sendto, Int(socket), 0, 0, waits ? 0 : 0x40, place, size)
        }
    }

    private func mark(_ index: Int) {
        memory.store(SendingRing.tooLong, at: lengthOffset(index))
        set(SendingRing.request, index)
    }

    // MARK: dump

    /// Notes the kernel's place, and what is in the frames.
    func dump(_ entry: inout PacketSockEntry) {
        for _ in 0..<100 where (0..<count).contains(where: { status($0) == SendingRing.sending }) {
            pause(nanoseconds: 1_000_000)
        }
        let all = (0..<count).map { status($0) }
        if let place = place(all) { entry.sendPosition = UInt32(place) }
        for index in 0..<count {
            var contents = memory.bytes(at: offset(index), count: Int(ring.frameSize))
            while contents.last == 0 { contents.removeLast() }
            guard !contents.isEmpty else { continue }
            var slot = BrumatePacketSlotEntry()
            (slot.index, slot.contents) = (UInt32(index), imageBytes(contents))
            entry.sendSlots.append(slot)
        }
    }

    private func place(_ all: [UInt32]) -> Int? {
        if let wrong = all.firstIndex(where: { $0 & SendingRing.wrong != 0 }) { return wrong }
        func asks(_ index: Int) -> Bool { all[index] & SendingRing.request != 0 }
        if let first = (0..<count).first(where: { asks($0) && !asks(($0 + count - 1) % count) }) { return first }
        // All full, or some on their way: there is nothing to look at.
        guard all.allSatisfy({ $0 == 0 }) else { return nil }
        let lengths = (0..<count).map { memory.load(UInt32.self, at: lengthOffset($0)) }
        defer {
            for index in 0..<count {
                set(0, index)
                memory.store(lengths[index], at: lengthOffset(index))
            }
        }
        guard loses else {
            for index in 0..<count { mark(index) }
            send(waits: false)
            return (0..<count).first { status($0) == SendingRing.wrong }
        }
        for index in 0..<count {
            mark(index)
            send(waits: false)
            guard status(index) == SendingRing.request else {
                // It has gone one on: around to where it was.
                for other in 0..<count where other != index { mark(other) }
                send(waits: false)
                return index
            }
            set(0, index)
        }
        return nil
    }

    // MARK: restore

    /// Brings the kernel to its place and the frames to their contents.
    func restore(_ entry: PacketSockEntry) throws(Failure) {
        let place = Int(entry.sendPosition)
        guard place < count,
            entry.sendSlots.allSatisfy({ $0.index < UInt32(count) && $0.contents.count <= Int(ring.frameSize) })
        else { throw Failure(.corruptImage, "the contents of the socket's sending ring are damaged") }
        if place > 0 {
            for index in 0..<place { if loses { mark(index) } else { fill(index) } }
            send(waits: true)
            for _ in 0..<1000 where (0..<place).contains(where: { status($0) != 0 }) { pause(nanoseconds: 1_000_000) }
            guard (0..<place).allSatisfy({ status($0) == 0 }) else {
                throw Failure(
                    .conflict, "can't bring the socket's sending ring to its place", advice: "Set the device lo up")
            }
            for index in 0..<place {
                memory.store([UInt8](repeating: 0, count: 128), at: offset(index))
            }
        }
        for slot in entry.sendSlots {
            memory.store(Array(slot.contents), at: offset(Int(slot.index)))
            if status(Int(slot.index)) & SendingRing.sending != 0 { set(0, Int(slot.index)) }
        }
    }

    /// A frame of no meaning.
    private func fill(_ index: Int) {
        let header = hasHeader ? 10 : 0
        // Addresses, protocol, and a byte.
        let packet = [UInt8](repeating: 0, count: header + 12) + [0x88, 0xb5, 0]
        memory.store(packet, at: offset(index) + (version == 2 ? 48 : 32))
        memory.store(UInt32(packet.count), at: lengthOffset(index))
        set(SendingRing.request, index)
    }
}
