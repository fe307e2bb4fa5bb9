internal import Diagnostics
internal import ImageFormat
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink

/// What the kernel knows of the connections that pass a namespace (`nf_conntrack`): images hold its messages.
enum ConnectionTracking {
    /// `NFNL_SUBSYS_CTNETLINK`, `NFNL_SUBSYS_CTNETLINK_EXP`.
    private static let subsystems: [(part: ImageName.NetworkPart, type: UInt16)] = [
        (.tracked, 1 << 8), (.expected, 2 << 8),
    ]

    /// CRIU sends the messages of an image as they are, and waits for answers with this number.
    private static let sequence: UInt32 = 24680

    /// The messages, by image.
    static func dump() -> [(part: ImageName.NetworkPart, image: [UInt8])] {
        subsystems.map { (part, type) in
            // Of all families; a kernel may do without it.
            let known = (try? NetlinkConnection(12).list(type | 1, [0, 0, 0, 0])) ?? []
            return (part, known.flatMap { NetlinkBytes.message(type: $0.type, flags: 2, sequence: sequence, $0.body) })
        }
    }

    /// Reads an image.
    static func messages(in image: [UInt8]) throws(Failure) -> [NetlinkAnswer] {
        guard let messages = NetlinkAnswer.all(in: image),
            messages.allSatisfy({ message in subsystems.contains { $0.type == message.type } && message.body.count >= 4
            })
        else { throw Failure(.corruptImage, "it is not what connection tracking tells") }
        return messages
    }

    /// Tells the kernel what it knew. That it could not is no reason to fail: it learns from packets, too.
    static func restore(_ messages: [NetlinkAnswer], _ log: Logger) {
        guard !messages.isEmpty else { return }
        do throws(SystemCallError) {
            let kernel = try NetlinkConnection(12)
            for message in messages {
                do throws(SystemCallError) {
                    try kernel.change(message.type, flags: 0x400, liberal(message.body))  // NLM_F_CREATE
                } catch { log.warning("a tracked connection is not known any more: \(error)") }
            }
        } catch { log.warning("tracked connections are not known any more: \(error)") }
    }

    /// Has the kernel not judge the numbers of a TCP connection, of which it tells nothing.
    private static func liberal(_ body: [UInt8]) -> [UInt8] {
        // CTA_PROTOINFO, CTA_PROTOINFO_TCP
        guard let outer = place(of: 4, in: body, 4..<body.count), let tcp = place(of: 1, in: body, outer) else {
            return body
        }
        var body = body
        // CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, _REPLY: flags and which of them are meant.
        for direction: UInt16 in [4, 5] {
            guard let flags = place(of: direction, in: body, tcp), flags.count >= 2 else { continue }
            body[flags.lowerBound] |= 8  // IP_CT_TCP_FLAG_BE_LIBERAL
            body[flags.lowerBound + 1] |= 8
        }
        return body
    }

    /// Where the value of an attribute is.
    private static func place(of wanted: UInt16, in bytes: [UInt8], _ range: Range<Int>) -> Range<Int>? {
        var at = range.lowerBound
        while let length = bytes.load(UInt16.self, at: at).map({ Int($0) }), length >= 4,
            at + length <= range.upperBound,
            let kind = bytes.load(UInt16.self, at: at + 2)
        {
            if kind & 0x3fff == wanted { return (at + 4)..<(at + length) }
            at += (length + 3) & ~3
        }
        return nil
    }
}
