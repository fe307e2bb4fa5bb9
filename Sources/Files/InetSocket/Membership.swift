internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux

/// Multicast groups that sockets are members of. The kernel lists no socket's groups, but answers for each group whether a
/// socket is a member (`MCAST_MSFILTER`); which groups there are at all is in /proc/net/igmp and igmp6.
final class Memberships {
    private struct Group {
        var family: Int32, address: [UInt8], device: UInt32
    }

    private let groups: [Group]
    /// The most sources of a group that are kept.
    private static let mostSources = 1024

    init() { groups = Memberships.fourth() + Memberships.sixth() }

    private static func fields(_ line: some Sequence<UInt8>) -> [String] {
        String(decoding: Array(line), as: UTF8.self).split(whereSeparator: { $0 == " " || $0 == "\t" }).map(String.init)
    }

    /// `INDEX DEVICE : …` and, indented, `GROUP USERS …`, a number in memory order.
    private static func fourth() -> [Group] {
        var found: [Group] = []
        var device: UInt32?
        for line in ((try? readWholeFile("/proc/self/net/igmp")) ?? []).split(separator: 0x0a).dropFirst() {
            let words = fields(line)
            if line.first != 0x09 {
                device = words.first.flatMap { UInt32($0) }
            } else if let device, let word = words.first.flatMap({ UInt32($0, radix: 16) }) {
                // Everyone is in 224.0.0.1, by no socket's wish; so a socket that asked for it is found by asking.
                found.append(Group(family: 2, address: [UInt8](bytesOf: word), device: device))
            }
        }
        return found
    }

    /// `INDEX DEVICE GROUP USERS …`.
    private static func sixth() -> [Group] {
        ((try? readWholeFile("/proc/self/net/igmp6")) ?? []).split(separator: 0x0a).compactMap { line in
            let words = fields(line)
            guard words.count > 2, let device = UInt32(words[0]), words[2].count == 32 else { return nil }
            let digits = Array(words[2])
            let address = stride(from: 0, to: 32, by: 2).compactMap { UInt8(String(digits[$0...($0 + 1)]), radix: 16) }
            return address.count == 16 ? Group(family: 10, address: address, device: device) : nil
        }
    }

    /// What a socket is a member of.
    func dump(_ socket: Int32, family: Int32) -> [BrumateMembershipEntry] {
        var found: [BrumateMembershipEntry] = []
        for group in groups where group.family == family || family == 10 {
            let head =
                [UInt8](bytesOf: group.device) + [UInt8](repeating: 0, count: 4)
                + Memberships.storage(group.family, group.address)
            guard let answer = Memberships.ask(socket, group.family, head),
                let mode = answer.load(UInt32.self, at: 136), let count = answer.load(UInt32.self, at: 140),
                let device = try? NetworkDevice.name(group.device, socket)
            else { continue }
            var entry = BrumateMembershipEntry()
            (entry.family, entry.mode) = (UInt32(group.family), mode)
            (entry.group, entry.device) = (imageBytes(group.address), imageBytes(device))
            for index in 0..<min(Int(count), Memberships.mostSources) {
                let at = 144 + 128 * index
                entry.sources.append(
                    imageBytes(group.family == 2 ? answer[(at + 4)..<(at + 8)] : answer[(at + 8)..<(at + 24)]))
            }
            found.append(entry)
        }
        return found
    }

    /// A group's `group_filter`: device, group, mode, number of sources, 128 bytes for each. nil if the socket is no member.
    private static func ask(_ socket: Int32, _ family: Int32, _ head: [UInt8]) -> [UInt8]? {
        var most = 0
        while true {
            var room = head + [UInt8](bytesOf: UInt32(0)) + [UInt8](bytesOf: UInt32(most))
            room += [UInt8](repeating: 0, count: 128 * most)
            var length = UInt32(room.count)
            let level = family == 2 ? 0 : 41
            let answers: Void? = try? room.withAddress { (value, _) throws(SystemCallError) in
                try withAddress(of: &length) { (length) throws(SystemCallError) in
                    try systemCall(.getsockopt, Int(socket), level, 48, value, length)
                }
            }
            guard answers != nil, let count = room.load(UInt32.self, at: 140) else { return nil }
            if count <= most || most == mostSources { return room }
            most = min(Int(count), mostSources)
        }
    }

    /// A `sockaddr_storage` of an address.
    private static func storage(_ family: Int32, _ address: [UInt8]) -> [UInt8] {
        let start = [UInt8](bytesOf: UInt16(family)) + [UInt8](repeating: 0, count: family == 2 ? 2 : 6) + address
        return start + [UInt8](repeating: 0, count: 128 - start.count)
    }

    /// Joins the groups again.
    static func restore(_ entries: [BrumateMembershipEntry], on socket: Int32) throws(Failure) {
        guard entries.count <= 4096 else { throw Failure(.corruptImage, "the socket is in too many groups") }
        for entry in entries {
            let size = entry.family == 2 ? 4 : 16
            guard entry.family == 2 || entry.family == 10, entry.group.count == size, entry.mode <= 1,
                entry.sources.count <= mostSources, entry.sources.allSatisfy({ $0.count == size })
            else { throw Failure(.corruptImage, "the socket's multicast groups are damaged") }
            let (family, level) = (Int32(entry.family), entry.family == 2 ? 0 : 41)
            let device = try NetworkDevice.index(entry.device, socket)
            let head =
                [UInt8](bytesOf: device) + [UInt8](repeating: 0, count: 4) + storage(family, Array(entry.group))
            try attempt("join a multicast group") { () throws(SystemCallError) in
                try head.withConstantAddress { (value, count) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(socket), level, 42, value, count)  // MCAST_JOIN_GROUP
                }
                guard entry.mode == 1 || !entry.sources.isEmpty else { return }
                var filter = head + [UInt8](bytesOf: entry.mode) + [UInt8](bytesOf: UInt32(entry.sources.count))
                for source in entry.sources { filter += storage(family, Array(source)) }
                try filter.withConstantAddress { (value, count) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(socket), level, 48, value, count)  // MCAST_MSFILTER
                }
            }
        }
    }
}
