internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux
internal import Netlink

/// A device of a network namespace.
struct NetworkDevice {
    /// Its number, and its `IFF_*`.
    var index: UInt32, flags: UInt32
    /// Its `ARPHRD_*`, and its driver.
    var type: UInt16, kind: String
    var name: String
    var mtu: UInt32
    /// Its hardware address.
    var address: [UInt8]
    /// The bridge or the like that it is in, and the device that it is the other end of, or made of; 0 for none.
    var master: UInt32, peer: UInt32
    /// Whether that other device is in another namespace.
    var isPeerOutside: Bool
    /// What its driver says of it.
    private(set) var data: [UInt16: [UInt8]]

    /// `ARPHRD_LOOPBACK`.
    var isLoopback: Bool { type == 772 }
    /// Whether its file in the tree brings it back, with its addresses and routes (`Sources/Files/Tun`).
    var isTun: Bool { kind == "tun" }

    /// Devices that a kernel with such tunnels makes in each namespace, while nobody uses them.
    private static let fallbacks: Set<String> = [
        "sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0",
    ]
    var isFallback: Bool { NetworkDevice.fallbacks.contains(name) && flags & 1 == 0 }

    /// All devices of the namespace that we are in.
    static func list() throws(Failure) -> [NetworkDevice] {
        try attempt("list the network devices") { () throws(SystemCallError) in
            try NetlinkConnection(0).list(18, [UInt8](repeating: 0, count: 16)).compactMap { NetworkDevice($0) }
        }
    }

    init?(_ link: NetlinkAnswer) {
        let more = NetlinkBytes.attributes(link.body, from: 16)
        guard link.type == 16, let type = link.body.load(UInt16.self, at: 2),
            let index = link.body.load(UInt32.self, at: 4), let flags = link.body.load(UInt32.self, at: 8),
            let name = more[3]
        else { return nil }
        (self.type, self.index, self.flags) = (type, index, flags)
        self.name = NetworkDevice.text(name)
        mtu = more[4]?.load(UInt32.self) ?? 65536  // IFLA_MTU
        // IFLA_LINKINFO, IFLA_INFO_KIND
        let about = more[18].map { NetlinkBytes.attributes($0, from: 0) } ?? [:]
        kind = about[1].map(NetworkDevice.text) ?? ""
        data = about[2].map { NetlinkBytes.attributes($0, from: 0) } ?? [:]  // IFLA_INFO_DATA
        address = more[1] ?? []
        master = more[10]?.load(UInt32.self) ?? 0
        peer = more[5]?.load(UInt32.self) ?? 0  // IFLA_LINK
        isPeerOutside = more[37] != nil  // IFLA_LINK_NETNSID
    }

    private static func text(_ bytes: [UInt8]) -> String { String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self) }

    /// The kinds that are made again, with their numbers in images.
    private static let kinds: [String: NdType] = ["veth": .veth, "bridge": .bridge, "macvlan": .macvlan]

    /// What is written of it; nil for what a file of the tree brings back, and for what the kernel makes.
    ///
    /// - Parameter id: the number of the namespace in images.
    func entry(in id: UInt32) -> NetDeviceEntry? {
        guard let type = isLoopback ? .loopback : NetworkDevice.kinds[kind] else { return nil }
        var entry = NetDeviceEntry()
        (entry.type, entry.ifindex, entry.mtu, entry.flags) = (type, index, mtu, flags)
        entry.name = imageBytes(name.utf8)
        if isLoopback { return entry }
        entry.address = imageBytes(address)
        if master != 0 { entry.master = master }
        if peer != 0 {
            entry.peerIfindex = peer
            if !isPeerOutside { entry.peerNsid = id }
        }
        if type == .macvlan {
            entry.macvlan.mode = data[1]?.load(UInt32.self) ?? 4  // IFLA_MACVLAN_MODE, bridge
            if let flags = data[2]?.load(UInt16.self) { entry.macvlan.flags = UInt32(flags) }
        }
        if type == .bridge {
            for (attribute, value) in data.sorted(by: { $0.key < $1.key })
            where DeviceRestore.bridgeSettings.contains(attribute) {
                var setting = BridgeSettingEntry()
                (setting.attribute, setting.value) = (UInt32(attribute), imageBytes(value))
                entry.bridge.append(setting)
            }
        }
        return entry
    }

    /// Refuses what can't be brought back.
    ///
    /// - Parameter tuns: those that files of the tree bring back; nil if that is not known yet.
    func check(tuns: Set<String>?) throws(Failure) {
        if isLoopback || isFallback { return }
        if isTun, tuns?.contains(name) ?? true { return }
        if NetworkDevice.kinds[kind] != nil, kind != "macvlan" || isPeerOutside { return }
        let what = kind.isEmpty ? "" : " of the kind \(kind)"
        throw Failure(
            .unsupported,
            "the tree's network namespace has the device \(name)\(what), which can't be dumped yet",
            advice: isTun
                ? "No task of the tree holds it; remove it before the dump, or pass --empty-ns net and bring it back by an "
                    + "action script"
                : "Pass --empty-ns net to the dump and the restore and bring it back by an action script "
                    + "(setup-namespaces), or remove it before the dump")
    }

    /// `IFF_UP`, `IFF_PROMISC`, `IFF_ALLMULTI`.
    static let settable: UInt32 = 0x1 | 0x100 | 0x200

    /// Gives the loopback device its flags and size.
    static func configureLoopback(mtu: UInt32, flags: UInt32) throws(Failure) {
        guard let loopback = try list().first(where: \.isLoopback) else {
            throw Failure(.bug, "a network namespace without a loopback device")
        }
        try attempt("set the device \(loopback.name) up") { () throws(SystemCallError) in
            var request = NetlinkBytes()
            request.append(
                [0, 0, 0, 0] + [UInt8](bytesOf: loopback.index) + [UInt8](bytesOf: flags & settable)
                    + [UInt8](bytesOf: settable))
            request.append(4, [UInt8](bytesOf: mtu))
            try NetlinkConnection(0).change(16, request.bytes)
        }
    }
}
