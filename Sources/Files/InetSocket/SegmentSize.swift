internal import Diagnostics
internal import ImageMessages
internal import Linux

/// How much of a connection's data goes into one packet.
///
/// A socket that is connected in repair mode takes the least that every peer takes (536 bytes of IPv4), and what the peers
/// agreed on, set afterwards, changes that only when the path's MTU does. So small segments slow a connection down, and on
/// Linux 6.17 and later a pair of full connections can end in silence: a peer that shrank its window drops what lies beyond
/// it, also acknowledgements that tell of the other direction's window. The kernel computes the size anew when IP options
/// or extension headers are set.
enum SegmentSize {
    private static let internet = 0, sixth = 41

    /// Makes the kernel compute the size from what the peers agreed on and the largest window so far.
    ///
    /// - Parameter hasHeaders: IP options or extension headers are set on the socket, and have to be again.
    static func recompute(_ connection: Connection, _ socket: Int32, hasHeaders: Bool) throws(Failure) {
        try attempt("set how large the connection's segments are") { () throws(SystemCallError) in
            guard connection.there.plain.family == 10 else {
                let set = hasHeaders ? SegmentSize.value(socket, internet, 4) : []  // IP_OPTIONS
                return try SegmentSize.set(socket, internet, 4, set)
            }
            // IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_RTHDR, IPV6_DSTOPTS
            for option in hasHeaders ? [54, 55, 57, 59] : [] {
                let set = SegmentSize.value(socket, sixth, option)
                if !set.isEmpty { return try SegmentSize.set(socket, sixth, option, set) }
            }
            // IPV6_2292PKTOPTIONS: a list of nothing, and no list again.
            try SegmentSize.set(socket, sixth, 6, [0])
            try SegmentSize.set(socket, sixth, 6, [])
        }
    }

    /// Whether an image has options for a socket's headers.
    static func hasHeaders(_ options: SkOptsEntry) -> Bool {
        options.more.contains {
            ($0.level == internet && $0.number == 4) || ($0.level == sixth && 54...59 ~= $0.number)
        }
    }

    private static func set(_ socket: Int32, _ level: Int, _ option: Int, _ value: [UInt8]) throws(SystemCallError) {
        try value.withConstantAddress { (value, count) throws(SystemCallError) in
            try systemCall(.setsockopt, Int(socket), level, option, value, count)
        }
    }

    private static func value(_ socket: Int32, _ level: Int, _ option: Int) -> [UInt8] {
        var room = [UInt8](repeating: 0, count: 2048)
        var length: UInt32 = 2048
        let answer: Void? = try? room.withAddress { (value, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(socket), level, option, value, length)
            }
        }
        return answer == nil ? [] : Array(room.prefix(Int(min(length, 2048))))
    }
}
