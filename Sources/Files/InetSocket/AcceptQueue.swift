internal import Diagnostics
internal import Linux

/// Puts connections with numbers of our choice into the queue of a listener.
///
/// The kernel has no call for that. But for a listener that leaves the first half of the handshake to a BPF program
/// (`bpf_sk_assign_tcp_reqsk`, Linux 6.9), one acknowledgement makes a connection, and its numbers are the connection's. So
/// a program of ours waits for one packet on the device lo, which we send in the peer's name, and tells what the ends have
/// agreed on. Program, map and their attachment end with us.
struct AcceptQueue: ~Copyable {
    private let map: Descriptor
    private let function: Int32

    /// Commands of bpf(2).
    private enum Command: Int {
        case createMap = 0, updateElement = 2, deleteElement = 3, loadProgram = 5, createLink = 28
    }

    /// Returns the descriptor of what the command makes, if it does.
    @discardableResult
    private static func call(_ command: Command, _ words: [UInt32]) throws(SystemCallError) -> Int32 {
        var words = words + [UInt32](repeating: 0, count: 36 - words.count)
        return Int32(
            try words.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.bpf, command.rawValue, address, count)
            })
    }

    private static func halves(_ value: Int) -> [UInt32] {
        [UInt32(truncatingIfNeeded: value), UInt32(truncatingIfNeeded: value >> 32)]
    }

    /// Fails if the kernel can't do it.
    static func check() throws(Failure) { _ = try functionID() }

    /// The number of `bpf_sk_assign_tcp_reqsk` among the kernel's types (BTF).
    private static func functionID() throws(Failure) -> Int32 {
        let advice = "Use Linux 6.9 or later with CONFIG_DEBUG_INFO_BTF, or accept or leave out what waits"
        let cookies = (try? readWholeFile("/proc/sys/net/ipv4/tcp_syncookies")) ?? []
        guard cookies.first != 0x30 else {
            throw Failure(
                .denied, "connections can't be put into a listener's queue while net.ipv4.tcp_syncookies is 0",
                advice: "Set it to 1")
        }
        let types = try attempt("read the kernel's types", advice: advice) { () throws(SystemCallError) in
            try readWholeFile("/sys/kernel/btf/vmlinux")
        }
        func word(_ at: Int) -> Int { Int(types.load(UInt32.self, at: at) ?? 0) }
        // struct btf_header: hdr_len, type_off, type_len, str_off.
        let strings = word(4) + word(16)
        var (at, id) = (word(4) + word(8), Int32(1))
        let end = min(at + word(12), types.count)
        let name = Array("bpf_sk_assign_tcp_reqsk\0".utf8)
        while at + 12 <= end {
            let information = word(at + 4)
            let (kind, count) = (information >> 24 & 0x1f, information & 0xffff)
            if kind == 12 {  // BTF_KIND_FUNC
                let text = strings + word(at)
                if text + name.count <= types.count, types[text..<(text + name.count)] == name[...] { return id }
            }
            // What follows the head of each kind.
            switch kind {
            case 1, 14, 17: at += 4
            case 3: at += 12
            case 4, 5, 15, 19: at += 12 * count
            case 6, 13: at += 8 * count
            default: break
            }
            (at, id) = (at + 12, id + 1)
        }
        throw Failure(.kernelTooOld, "the kernel can't put a connection into a listener's queue", advice: advice)
    }

    /// Prepares a listener.
    init(_ listener: Int32) throws(Failure) {
        let function = try AcceptQueue.functionID()
        map = try attempt("prepare the listener's queue") { () throws(SystemCallError) in
            // BPF_MAP_TYPE_SOCKMAP with one place.
            let map = Descriptor(owning: try AcceptQueue.call(.createMap, [15, 4, 8, 1]))
            var (key, value) = (UInt32(0), UInt64(listener))
            try withAddress(of: &key) { (key) throws(SystemCallError) in
                try withAddress(of: &value) { (value) throws(SystemCallError) in
                    let place = [UInt32(bitPattern: map.number), 0] + AcceptQueue.halves(key)
                    try AcceptQueue.call(.updateElement, place + AcceptQueue.halves(value))
                }
            }
            return map
        }
        self.function = function
    }

    deinit {
        // At once: what goes with the map goes later.
        var key = UInt32(0)
        _ = try? withAddress(of: &key) { (key) throws(SystemCallError) in
            try AcceptQueue.call(.deleteElement, [UInt32(bitPattern: map.number), 0] + AcceptQueue.halves(key))
        }
    }

    /// Makes a connection that waits in the queue.
    ///
    /// - Parameters:
    ///   - connection: as the listener sees it.
    ///   - attributes: what the ends agreed on (`struct bpf_tcp_req_attrs`, 20 bytes).
    func admit(_ connection: Connection, sequence: UInt32, acknowledges: UInt32, window: UInt32, attributes: [UInt8])
        throws(Failure)
    {
        let peer = connection.plain.reversed
        let numbers = ForgedPacket.numbers(peer, sequence, acknowledges)
        let ahead = 14 + (peer.here.family == 2 ? 20 : 40)
        let code = program(numbers, at: ahead, attributes)
        let program = try attempt("load a BPF program", advice: "Run brumate with CAP_BPF and CAP_NET_ADMIN") {
            () throws(SystemCallError) in
            // Our own few instructions may be used under either licence; the kernel demands the second.
            let number = try withCString("Dual MIT/GPL") { (license) throws(SystemCallError) in
                try code.withConstantAddress { (code, count) throws(SystemCallError) in
                    // BPF_PROG_TYPE_SCHED_CLS, for BPF_TCX_INGRESS.
                    var words: [UInt32] = [3, UInt32(count / 8)] + AcceptQueue.halves(code)
                    words += AcceptQueue.halves(license) + [UInt32](repeating: 0, count: 11) + [46]
                    return try AcceptQueue.call(.loadProgram, words)
                }
            }
            return Descriptor(owning: number)
        }
        let link = try attempt("attach a BPF program to the device lo") { () throws(SystemCallError) in
            Descriptor(owning: try AcceptQueue.call(.createLink, [UInt32(bitPattern: program.number), 1, 46]))
        }
        try ForgedPacket(connection.reversed, sequence: sequence, acknowledges: acknowledges, window: window)
            .send(flags: ForgedPacket.acknowledgement)
        _ = consume link
    }

    /// One instruction: code, destination and source register, offset, operand.
    private struct Instruction {
        var code: UInt8, registers: UInt8, offset: Int16 = 0, operand: Int32 = 0
        /// Whether it goes to the end.
        var leaves = false

        init(_ code: UInt8, _ destination: UInt8 = 0, _ source: UInt8 = 0, at offset: Int16 = 0, _ operand: Int32 = 0) {
            (self.code, registers, self.offset, self.operand) = (code, destination | source << 4, offset, operand)
        }

        /// A jump to the end, taken if a register (32 bits) does not have a value, or for code 0x15 if it has.
        init(leaving code: UInt8, _ register: UInt8, _ value: Int32) {
            self.init(code, register, 0, value)
            leaves = true
        }
    }

    private func program(_ numbers: [UInt8], at place: Int, _ attributes: [UInt8]) -> [UInt64] {
        func words(_ bytes: [UInt8]) -> [Int32] {
            stride(from: 0, to: bytes.count - 3, by: 4).compactMap { bytes.load(Int32.self, at: $0) }
        }
        // Only our packet: its mark, and ports and numbers of the TCP header.
        var code: [Instruction] = [
            .init(0xbf, 6, 1), .init(0x61, 0, 6, at: 8),
            .init(leaving: 0x56, 0, Int32(NetworkLock.passingMark)),
            .init(0xbf, 1, 6), .init(0xb7, 2, 0, Int32(place)), .init(0xbf, 3, 10), .init(0x07, 3, 0, -16),
            .init(0xb7, 4, 0, 12), .init(0x85, 0, 0, 26),  // bpf_skb_load_bytes
            .init(leaving: 0x56, 0, 0),
        ]
        for (index, word) in words(numbers).enumerated() {
            code += [.init(0x61, 0, 10, at: Int16(4 * index - 16)), .init(leaving: 0x56, 0, word)]
        }
        code += [
            .init(0x62, 10, at: -4), .init(0x18, 1, 1, map.number), .init(0), .init(0xbf, 2, 10), .init(0x07, 2, 0, -4),
            .init(0x85, 0, 0, 1),  // bpf_map_lookup_elem
            .init(leaving: 0x15, 0, 0), .init(0xbf, 7),
        ]
        for (index, word) in words(attributes).enumerated() {
            code.append(.init(0x62, 10, at: Int16(4 * index - 40), word))
        }
        code += [
            .init(0xbf, 1, 6), .init(0xbf, 2, 7), .init(0xbf, 3, 10), .init(0x07, 3, 0, -40),
            .init(0xb7, 4, 0, Int32(attributes.count)), .init(0x85, 0, 2, function),
            .init(0xbf, 1, 7), .init(0x85, 0, 0, 86),  // bpf_sk_release
        ]
        let end = code.count
        // TCX_NEXT
        code += [.init(0xb4, 0, 0, -1), .init(0x95)]
        return code.enumerated().map { index, one in
            let offset = one.leaves ? Int16(end - index - 1) : one.offset
            return UInt64(one.code) | UInt64(one.registers) << 8 | UInt64(UInt16(bitPattern: offset)) << 16
                | UInt64(UInt32(bitPattern: one.operand)) << 32
        }
    }
}
