internal import Diagnostics
internal import ImageMessages
internal import Linux

/// The options of IP, IPv6 and TCP that CRIU's images have fields for.
enum InternetOptions {
    private static let internet = 0, sixth = 41, tcp = 6

    // MARK: dump

    static func dump(_ number: Int32, _ kind: SocketKind, _ entry: inout InetSkEntry) throws(Failure) {
        try attempt("read the socket's options") { () throws(SystemCallError) in
            entry.ipOpts = try internetOptions(number, kind)
            guard kind.code == InetSocket.tcp, kind.type == InetSocket.stream else { return }
            var options = TcpOptsEntry()
            func value(_ option: Int) throws(SystemCallError) -> UInt32 {
                UInt32(bitPattern: try socketOption(number, level: tcp, option))
            }
            if try value(1) != 0 { options.nodelay = true }
            if try value(3) != 0 { options.cork = true }
            options.keepidle = try value(4)
            options.keepintvl = try value(5)
            options.keepcnt = try value(6)
            entry.tcpOpts = options
        }
    }

    private static func internetOptions(_ number: Int32, _ kind: SocketKind) throws(SystemCallError) -> IpOptsEntry {
        var entry = IpOptsEntry()
        func number6(_ option: Int) throws(SystemCallError) -> Int32 {
            try socketOption(number, level: sixth, option)
        }
        // Multipath sockets have next to none of these.
        let isMultipath = kind.code == InetSocket.multipath && kind.type == InetSocket.stream
        if kind.family == 10 {
            if try number6(78) != 0 { entry.freebind = true }
            if !isMultipath, try number6(49) != 0 { entry.pktinfo = true }
        } else {
            if try socketOption(number, level: internet, 15) != 0 { entry.freebind = true }
            if !isMultipath {
                if try socketOption(number, level: internet, 8) != 0 { entry.pktinfo = true }
                let service = try socketOption(number, level: internet, 1)
                if service != 0 { entry.tos = UInt32(bitPattern: service) }
                let hops = try socketOption(number, level: internet, 2)
                if hops != 0 { entry.ttl = UInt32(bitPattern: hops) }
            }
        }
        if kind.type == InetSocket.raw { entry.raw = try rawOptions(number, kind) }
        return entry
    }

    private static func rawOptions(_ number: Int32, _ kind: SocketKind) throws(SystemCallError) -> IpOptsRawEntry {
        var entry = IpOptsRawEntry()
        if kind.family == 10 {
            if try socketOption(number, level: sixth, 36) != 0 { entry.hdrincl = true }
            if kind.code == InetSocket.icmp6 { entry.icmpvFilter = try filter(number, 58, words: 8) }
        } else {
            if try socketOption(number, level: internet, 3) != 0 { entry.hdrincl = true }
            if try socketOption(number, level: internet, 22) != 0 { entry.nodefrag = true }
            if kind.code == InetSocket.icmp { entry.icmpvFilter = try filter(number, 255, words: 1) }
        }
        return entry
    }

    /// `ICMP_FILTER` of the level SOL_RAW, `ICMPV6_FILTER` of the level SOL_ICMPV6, which are both 1.
    private static func filter(_ number: Int32, _ level: Int, words: Int) throws(SystemCallError) -> [UInt32] {
        var value = [UInt32](repeating: 0, count: words)
        var length = UInt32(4 * words)
        try value.withAddress { (value, _) throws(SystemCallError) in
            try withAddress(of: &length) { (length) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(number), level, 1, value, length)
            }
        }
        return value
    }

    // MARK: restore

    /// What new sockets of a kind have.
    struct Defaults: Sendable {
        let general: SocketOptions.Fresh
        /// `IP_TTL` of IPv4; `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT` of streams.
        let hops: Int32?, idle: Int32?, interval: Int32?, count: Int32?

        init(_ kind: SocketKind) throws(SystemCallError) {
            let made = try kind.make()
            let number = made.number
            general = try SocketOptions.Fresh(number)
            hops = kind.family == 2 ? try socketOption(number, level: internet, 2) : nil
            let isStream = kind.code == InetSocket.tcp
            idle = isStream ? try socketOption(number, level: tcp, 4) : nil
            interval = isStream ? try socketOption(number, level: tcp, 5) : nil
            count = isStream ? try socketOption(number, level: tcp, 6) : nil
        }
    }

    /// What has to be set before the socket gets its address.
    static func prepare(_ entry: InetSkEntry, _ kind: SocketKind, _ number: Int32) throws(Failure) {
        guard entry.ipOpts.freebind else { return }
        try attempt("let the socket have an address that is not here") { () throws(SystemCallError) in
            if kind.family == 10 {
                try setSocketOption(number, level: sixth, 78, 1)
            } else {
                try setSocketOption(number, level: internet, 15, 1)
            }
        }
    }

    /// Binds a socket. An IPv6 address may not have been confirmed yet by the network (duplicate detection), which must not
    /// matter here.
    static func bind(
        _ address: InetAddress, _ entry: InetSkEntry, _ kind: SocketKind, _ number: Int32
    ) throws(Failure) {
        let isFree = kind.family == 10 && kind.type != InetSocket.raw && !entry.ipOpts.freebind
        if isFree { _ = try? setSocketOption(number, level: sixth, 78, 1) }
        try attempt(
            "bind it to \(address.text)",
            advice: "End the program that uses the address, or restore where this address is"
        ) { () throws(SystemCallError) in try address.give(to: number, by: .bind) }
        if isFree { _ = try? setSocketOption(number, level: sixth, 78, 0) }
    }

    /// What is set once the socket has its state.
    ///
    /// - Parameter defaults: what it has, where that is known.
    static func complete(
        _ entry: InetSkEntry, _ kind: SocketKind, _ number: Int32, over defaults: Defaults?
    ) throws(Failure) {
        let options = entry.ipOpts
        try attempt("set the socket's options") { () throws(SystemCallError) in
            if kind.family == 10 {
                if options.pktinfo { try setSocketOption(number, level: sixth, 49, 1) }
            } else {
                if options.pktinfo { try setSocketOption(number, level: internet, 8, 1) }
                if options.hasTos { try setSocketOption(number, level: internet, 1, Int32(bitPattern: options.tos)) }
                if options.hasTtl {
                    let known = defaults?.hops
                    let hops = if let known { known } else { try socketOption(number, level: internet, 2) }
                    if Int64(options.ttl) != Int64(hops) {
                        try setSocketOption(number, level: internet, 2, Int32(bitPattern: options.ttl))
                    }
                }
            }
            if options.hasRaw { try restoreRaw(options.raw, kind, number) }
            guard kind.type == InetSocket.stream else { return }
            let stream = entry.tcpOpts, old = entry.opts
            for (option, isOn) in [(1, stream.nodelay), (3, stream.cork)] where isOn {
                try setSocketOption(number, level: tcp, option, 1)
            }
            // In images of older versions these are among the general options.
            for (option, value, known) in [
                (4, stream.hasKeepidle ? stream.keepidle : old.tcpKeepidle, defaults?.idle),
                (5, stream.hasKeepintvl ? stream.keepintvl : old.tcpKeepintvl, defaults?.interval),
                (6, stream.hasKeepcnt ? stream.keepcnt : old.tcpKeepcnt, defaults?.count),
            ] where value != 0 {
                let now = if let known { known } else { try socketOption(number, level: tcp, option) }
                if Int64(now) != Int64(value) {
                    try setSocketOption(number, level: tcp, option, Int32(bitPattern: value))
                }
            }
        }
    }

    private static func restoreRaw(
        _ options: IpOptsRawEntry, _ kind: SocketKind, _ number: Int32
    ) throws(SystemCallError) {
        let isSixth = kind.family == 10
        if !options.icmpvFilter.isEmpty, kind.code == InetSocket.icmp || kind.code == InetSocket.icmp6 {
            try options.icmpvFilter.withConstantAddress { (value, count) throws(SystemCallError) in
                try systemCall(.setsockopt, Int(number), isSixth ? 58 : 255, 1, value, min(count, isSixth ? 32 : 4))
            }
        }
        if options.nodefrag { try setSocketOption(number, level: internet, 22, 1) }
        if options.hasHdrincl {
            try setSocketOption(
                number, level: isSixth ? sixth : internet, isSixth ? 36 : 3, options.hdrincl ? 1 : 0)
        }
    }
}
