internal import Diagnostics
internal import ImageFormat
internal import Kinds
internal import Linux
internal import Netlink

/// Objects of the kernel's routing that are listed, made and removed by the same messages: addresses, routes, rules. Their
/// images hold the messages of the list, as `ip … save` writes them.
struct RoutingImage {
    let part: ImageName.NetworkPart
    /// What an image begins with.
    let magic: UInt32
    /// The type of a new object; the next removes one, the one after that asks for the list.
    let type: UInt16
    let family: UInt8
    /// Bytes before the attributes.
    let header: Int

    static let all: [RoutingImage] = [
        .init(part: .addresses, magic: 0x4736_1222, type: 20, family: 0, header: 8),
        .init(part: .routes, magic: 0x4531_1224, type: 24, family: 2, header: 12),
        .init(part: .routes6, magic: 0x4531_1224, type: 24, family: 10, header: 12),
        .init(part: .rules, magic: 0x7170_6986, type: 32, family: 2, header: 12),
        .init(part: .rules6, magic: 0x7170_6986, type: 32, family: 10, header: 12),
    ]

    /// What is there now and is not the kernel's own affair.
    ///
    /// - Parameter devices: those whose objects are told; tun and tap devices bring theirs along.
    func list(_ devices: Set<UInt32>) throws(Failure) -> [NetlinkAnswer] {
        try attempt("list the network's \(part.rawValue)") { () throws(SystemCallError) in
            var request = [UInt8](repeating: 0, count: header)
            request[0] = family
            do throws(SystemCallError) {
                return try NetlinkConnection(0).list(type + 2, request).filter { isKept($0, devices) }
            } catch {
                // A kernel without IPv6.
                if family == 10, [.EAFNOSUPPORT, .EOPNOTSUPP].contains(error.errno) { return [] }
                throw error
            }
        }
    }

    private func isKept(_ object: NetlinkAnswer, _ devices: Set<UInt32>) -> Bool {
        let body = object.body
        guard object.type == type, body.count >= header, family == 0 || body[0] == family else { return false }
        switch type {
        case 20: return body.load(UInt32.self, at: 4).map { devices.contains($0) } ?? false
        case 24:
            let more = NetlinkBytes.attributes(body, from: 12)
            let table = more[15]?.load(UInt32.self) ?? UInt32(body[4])  // RTA_TABLE
            // RTM_F_CLONED; RTPROT_RA; the kernel's own (RTPROT_KERNEL) in the table `local`, or in none.
            guard (body.load(UInt32.self, at: 8) ?? 0) & 0x200 == 0, body[5] != 9 else { return false }
            guard table != 0, table != 255 || body[5] != 2 else { return false }
            return more[4].flatMap { $0.load(UInt32.self) }.map { devices.contains($0) } ?? true  // RTA_OIF
        default: return true
        }
    }

    /// What makes two objects the same.
    private func identity(_ object: NetlinkAnswer) -> [[UInt8]] {
        var head = Array(object.body.prefix(header))
        let more = NetlinkBytes.attributes(object.body, from: header)
        switch type {
        case 20:
            // Family, length of the prefix; IFA_ADDRESS, IFA_LOCAL, IFA_LABEL.
            return [Array(head.prefix(2))] + (1...3).map { more[$0] ?? [] }
        case 24:
            // Not the flags, whose lowest tell of the moment; nor the age (RTA_CACHEINFO).
            head.replaceSubrange(8..<12, with: [0, 0, 0, 0])
        default:
            // Not FIB_RULE_IIF_DETACHED, FIB_RULE_OIF_DETACHED.
            head[8] &= ~0x18
        }
        return [head] + more.sorted { $0.key < $1.key }.filter { type != 24 || $0.key != 12 }.map { $0.value }
    }

    func image(of objects: [NetlinkAnswer]) -> [UInt8] {
        // NLM_F_MULTI
        [UInt8](bytesOf: magic)
            + objects.flatMap { NetlinkBytes.message(type: $0.type, flags: 2, sequence: 1, $0.body) }
    }

    /// The objects of an image.
    func objects(in image: [UInt8]) throws(Failure) -> [NetlinkAnswer] {
        if image.isEmpty { return [] }
        guard image.load(UInt32.self) == magic, let objects = NetlinkAnswer.all(in: image, from: 4),
            objects.allSatisfy({ $0.type == type && $0.body.count >= header })
        else { throw Failure(.corruptImage, "it is not what `ip` saves") }
        return objects
    }

    /// Removes what is there and not in the image, and makes what is missing.
    func restore(_ wanted: [NetlinkAnswer], _ devices: Set<UInt32>) throws(Failure) {
        let wanted = wanted.filter { isKept($0, devices) }
        let there = try list(devices)
        let (names, known) = (Set(wanted.map(identity)), Set(there.map(identity)))
        var missing = wanted.filter { !known.contains(identity($0)) }
        try attempt("restore the network's \(part.rawValue)") { () throws(SystemCallError) in
            let kernel = try NetlinkConnection(0)
            for object in there where !names.contains(identity(object)) {
                do throws(SystemCallError) { try kernel.change(type + 1, object.body) } catch {
                    // Some go with others.
                    guard [.ESRCH, .ENOENT, .EADDRNOTAVAIL].contains(error.errno) else { throw error }
                }
            }
            // A route by another comes after that.
            while !missing.isEmpty {
                var (left, failure): ([NetlinkAnswer], SystemCallError?) = ([], nil)
                for object in missing {
                    do throws(SystemCallError) {
                        // NLM_F_CREATE, and NLM_F_APPEND for routes.
                        try kernel.change(type, flags: type == 24 ? 0xc00 : 0x400, made(object))
                    } catch {
                        guard error.errno != .EEXIST else { continue }
                        left.append(object)
                        failure = error
                    }
                }
                if let failure, left.count == missing.count { throw failure }
                missing = left
            }
        }
    }

    /// An object as the kernel takes it.
    private func made(_ object: NetlinkAnswer) -> [UInt8] {
        guard type == 24 else { return object.body }
        // RTNH_F_DEAD, RTNH_F_LINKDOWN
        return object.body[..<8] + [object.body[8] & ~0x11] + object.body[9...]
    }
}
