internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux

/// An interface of the tun driver, as the network configuration knows it.
enum TunInterface {
    /// `IFF_*` of /dev/net/tun.
    static let tun: UInt32 = 0x1, tap: UInt32 = 0x2, noInformation: UInt32 = 0x1000, header: UInt32 = 0x4000
    static let multiQueue: UInt32 = 0x100, detached: UInt32 = 0x400, persistent: UInt32 = 0x800
    static let napi: UInt32 = 0x10, fragments: UInt32 = 0x20
    /// What `TUNSETIFF` takes.
    static let settable = tun | tap | noInformation | header | multiQueue | napi | fragments

    /// Notes everything that goes away with an interface.
    static func dump(_ name: String, _ entry: inout TunfileEntry) throws(Failure) {
        let (links, addresses, routes) = try attempt("list the network interfaces") { () throws(SystemCallError) in
            let socket = try RouteSocket()
            return (try socket.list(18), try socket.list(22), try socket.list(26))
        }
        guard
            let link = links.first(where: { link in
                link.attributes(behind: 16)[3].map { $0.prefix { $0 != 0 }.elementsEqual(name.utf8) } ?? false
            }), let index = link.body.load(UInt32.self, at: 4), let flags = link.body.load(UInt32.self, at: 8)
        else { throw Failure(.vanished, "there is no network interface \(name)") }
        let attributes = link.attributes(behind: 16)
        entry.ifindex = index
        entry.linkFlags = flags & settableLinkFlags
        entry.mtu = attributes[4]?.load(UInt32.self) ?? 1500  // IFLA_MTU
        entry.queueLength = attributes[13]?.load(UInt32.self) ?? 500  // IFLA_TXQLEN
        entry.address = imageBytes(attributes[1] ?? [])  // IFLA_ADDRESS
        let information = RouteMessage.attributes(attributes[18] ?? [])  // IFLA_LINKINFO
        let data = RouteMessage.attributes(information[2] ?? [])  // IFLA_INFO_DATA
        // IFLA_TUN_OWNER, IFLA_TUN_GROUP
        entry.link.owner = data[1]?.load(Int32.self) ?? -1
        entry.link.group = data[2]?.load(Int32.self) ?? -1
        // `TUNGETIFF` gives this flag another meaning. IFLA_TUN_PI
        if let value = data[4]?.first {
            entry.link.flags = entry.link.flags & ~noInformation | (value == 0 ? noInformation : 0)
        }
        entry.addresses = addresses.filter { $0.type == 20 && $0.body.load(UInt32.self, at: 4) == index }.map {
            imageBytes($0.body)
        }
        entry.routes = routes.filter { route in
            // Not those that come with an address (RTPROT_KERNEL), or for a while (RTPROT_RA, RTM_F_CLONED).
            guard route.type == 24, let protocolNumber = route.body.load(UInt8.self, at: 5), protocolNumber != 2,
                protocolNumber != 9, let flags = route.body.load(UInt32.self, at: 8), flags & 0x200 == 0
            else { return false }
            return route.attributes(behind: 12)[4]?.load(UInt32.self) == index  // RTA_OIF
        }.map { imageBytes($0.body) }
    }

    /// IFF_UP, IFF_DEBUG, IFF_NOARP, IFF_PROMISC, IFF_ALLMULTI, IFF_MULTICAST
    private static let settableLinkFlags: UInt32 = 0x1 | 0x4 | 0x80 | 0x100 | 0x200 | 0x1000

    /// `struct ifreq` with a name, and a value behind it.
    static func request(_ name: String, _ value: some BitwiseCopyable) -> [UInt8] {
        var request = Array(name.utf8.prefix(15))
        request += [UInt8](repeating: 0, count: 16 - request.count)
        request += [UInt8](bytesOf: value)
        return request + [UInt8](repeating: 0, count: max(0, 40 - request.count))
    }

    private static func control(
        _ socket: Int32, _ command: Int, _ name: String, _ value: some BitwiseCopyable
    ) throws(SystemCallError) {
        var request = request(name, value)
        try request.withAddress { (address, _) throws(SystemCallError) in
            try systemCall(.ioctl, Int(socket), command, address)
        }
    }

    /// Whether there is an interface of this name in our network namespace.
    static func exists(_ name: String) throws(SystemCallError) -> Bool {
        let socket = Descriptor(owning: Int32(try systemCall(.socket, 2, 2 | 0o2000000, 0)))
        do throws(SystemCallError) {
            try control(socket.number, 0x8933, name, 0)  // SIOCGIFINDEX
            return true
        } catch {
            if error.errno == .ENODEV { return false }
            throw error
        }
    }

    /// Gives an interface that was just made all that it had.
    static func configure(_ name: String, _ entry: TunfileEntry) throws(Failure) {
        try attempt("configure the network interface \(name)") { () throws(SystemCallError) in
            let socket = Descriptor(owning: Int32(try systemCall(.socket, 2, 2 | 0o2000000, 0)))
            if entry.link.flags & tap != 0, entry.address.count == 6 {
                // struct sockaddr: ARPHRD_ETHER and the address.
                let address = Array(entry.address)
                try control(
                    socket.number, 0x8924, name,
                    (UInt16(1), address[0], address[1], address[2], address[3], address[4], address[5]))
            }
            try control(socket.number, 0x8922, name, entry.mtu)
            try control(socket.number, 0x8943, name, entry.queueLength)
            try control(socket.number, 0x8914, name, UInt16(truncatingIfNeeded: entry.linkFlags & settableLinkFlags))
            var request = request(name, UInt32(0))
            try request.withAddress { (address, _) throws(SystemCallError) in
                try systemCall(.ioctl, Int(socket.number), 0x8933, address)
            }
            let index = request.load(UInt32.self, at: 16) ?? 0
            let routing = try RouteSocket()
            // What IPv6 has given it by itself is of no use; it had its own.
            let kept = Set(entry.addresses.map { place(of: Array($0)) })
            for own in try routing.list(22)
            where own.type == 20 && own.body.load(UInt32.self, at: 4) == index && !kept.contains(place(of: own.body)) {
                try routing.change(RouteMessage(type: 21, body: own.body))  // RTM_DELADDR
            }
            for address in entry.addresses where address.count >= 8 {
                try routing.change(RouteMessage(type: 20, body: patched(Array(address), at: 4, index)))
            }
            // A route by another comes after that; those without a gateway go first.
            let routes = entry.routes.map { RouteMessage(type: 24, body: Array($0)) }.filter { $0.body.count >= 12 }
            let isFar = routes.map { $0.attributes(behind: 12)[5] != nil }  // RTA_GATEWAY
            for far in [false, true] {
                for (route, isFar) in zip(routes, isFar) where isFar == far {
                    guard let place = placeOfInterface(in: route.body) else { continue }
                    try routing.change(RouteMessage(type: 24, body: patched(route.body, at: place, index)))
                }
            }
        }
    }

    private static func patched(_ body: [UInt8], at place: Int, _ index: UInt32) -> [UInt8] {
        body[..<place] + [UInt8](bytesOf: index) + body[(place + 4)...]
    }

    /// Family and address of an address.
    private static func place(of address: [UInt8]) -> [UInt8] {
        let attributes = RouteMessage(type: 20, body: address).attributes(behind: 8)
        // IFA_LOCAL, IFA_ADDRESS
        return address.prefix(1) + (attributes[2] ?? attributes[1] ?? [])
    }

    /// Where a route names its interface (RTA_OIF).
    private static func placeOfInterface(in body: [UInt8]) -> Int? {
        var at = 12
        while let length = body.load(UInt16.self, at: at).map({ Int($0) }), length >= 4, length <= body.count - at,
            let type = body.load(UInt16.self, at: at + 2)
        {
            if type == 4, length == 8 { return at + 4 }
            at += (length + 3) & ~3
        }
        return nil
    }
}
