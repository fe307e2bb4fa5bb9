internal import Diagnostics
internal import ImageMessages
internal import Linux

/// The options that sockets of all families have.
enum SocketOptions {
    private static let socketLevel = 1

    private static func time(_ number: Int32, _ option: Int) throws(SystemCallError) -> (UInt64, UInt64) {
        var value: (UInt64, UInt64) = (0, 0)
        var length: UInt32 = 16
        try withAddress(of: &value) { (value) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(number), socketLevel, option, value, length)
            }
        }
        return value
    }

    static func dump(_ number: Int32) throws(Failure) -> SkOptsEntry {
        try attempt("read the socket's options") { () throws(SystemCallError) in
            func isOn(_ option: Int) throws(SystemCallError) -> Bool { try socketOption(number, option) != 0 }
            var entry = SkOptsEntry()
            entry.soSndbuf = UInt32(bitPattern: try socketOption(number, 7))
            entry.soRcvbuf = UInt32(bitPattern: try socketOption(number, 8))
            (entry.soRcvTmoSec, entry.soRcvTmoUsec) = try time(number, 20)
            (entry.soSndTmoSec, entry.soSndTmoUsec) = try time(number, 21)
            entry.reuseaddr = try isOn(2)
            entry.soPriority = UInt32(bitPattern: try socketOption(number, 12))
            entry.soRcvlowat = UInt32(bitPattern: try socketOption(number, 18))
            entry.soMark = UInt32(bitPattern: try socketOption(number, 36))
            entry.soPasscred = try isOn(16)
            entry.soPasssec = try isOn(34)
            entry.soDontroute = try isOn(5)
            entry.soNoCheck = try isOn(11)
            entry.soReuseport = try isOn(15)
            entry.soBroadcast = try isOn(6)
            entry.soKeepalive = try isOn(9)
            entry.soOobinline = UInt32(bitPattern: try socketOption(number, 10))
            entry.soBufLock = UInt32(bitPattern: try socketOption(number, 72))
            return entry
        }
    }

    static func restore(_ entry: SkOptsEntry, on number: Int32) throws(Failure) {
        try attempt("set the socket's options") { () throws(SystemCallError) in
            // The kernel doubles what it is given. The FORCE forms go past the system's limits.
            if Int64(entry.soSndbuf) != Int64(try socketOption(number, 7)) {
                try setSocketOption(number, 32, Int32(clamping: entry.soSndbuf / 2))
            }
            if Int64(entry.soRcvbuf) != Int64(try socketOption(number, 8)) {
                try setSocketOption(number, 33, Int32(clamping: entry.soRcvbuf / 2))
            }
            if entry.hasSoBufLock, Int64(entry.soBufLock) != Int64(try socketOption(number, 72)) {
                try setSocketOption(number, 72, Int32(clamping: entry.soBufLock))
            }
            for (option, seconds, micros) in [
                (20, entry.soRcvTmoSec, entry.soRcvTmoUsec), (21, entry.soSndTmoSec, entry.soSndTmoUsec),
            ] where seconds != 0 || micros != 0 {
                var value = (seconds, micros)
                try withAddress(of: &value) { (value) throws(SystemCallError) in
                    try systemCall(.setsockopt, Int(number), socketLevel, option, value, 16)
                }
            }
            for (option, value) in [
                (2, entry.reuseaddr), (16, entry.soPasscred), (34, entry.soPasssec), (5, entry.soDontroute),
                (11, entry.soNoCheck),
                (6, entry.soBroadcast), (9, entry.soKeepalive), (10, entry.soOobinline != 0),
            ] where value { try setSocketOption(number, option, 1) }
            if entry.soPriority != 0 { try setSocketOption(number, 12, Int32(clamping: entry.soPriority)) }
            if entry.soMark != 0 { try setSocketOption(number, 36, Int32(bitPattern: entry.soMark)) }
            if entry.hasSoRcvlowat, entry.soRcvlowat > 1 {
                try setSocketOption(number, 18, Int32(clamping: entry.soRcvlowat))
            }
        }
    }
}
