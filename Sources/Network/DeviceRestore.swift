internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink

/// Makes the devices of a network namespace again. What is outside of it, where devices have their other ends, is where we are
/// when this is made.
final class DeviceRestore {
    /// Where a device comes from.
    private enum Origin {
        case bridge
        /// A pair, whose other end is outside, and perhaps in a bridge there.
        case pair(outside: String, bridge: String?)
        /// A pair in the namespace.
        case inner(NetDeviceEntry)
        /// The other end of such a pair.
        case end
        /// A device of ours, which goes there.
        case moved(String)
        /// Made of a device of ours.
        case macvlan(String)
    }

    /// Our namespace, and a connection that speaks to it wherever we are.
    private let home: Descriptor
    private let outside: NetlinkConnection
    private var devices: [(entry: NetDeviceEntry, origin: Origin)] = []
    /// Devices of ours that were moved, with the numbers that they have now and the names that they had.
    private var moved: [(index: UInt32, name: String)] = []

    /// `IFLA_BR_FORWARD_DELAY` to `IFLA_BR_GROUP_FWD_MASK`.
    static let bridgeSettings = UInt16(1)...9

    // IFLA_*
    private static let hardware: UInt16 = 1, name: UInt16 = 3, size: UInt16 = 4, link: UInt16 = 5, master: UInt16 = 10
    private static let about: UInt16 = 18, namespace: UInt16 = 28, newIndex: UInt16 = 49

    /// Checks what has to come from outside, before anything is created.
    ///
    /// - Parameter id: the number of the namespace in images.
    init(_ entries: [NetDeviceEntry], in id: UInt32, _ context: RestoreContext) throws(Failure) {
        home = try DeviceRestore.namespaceHere("our")
        outside = try attempt("speak to the network") { () throws(SystemCallError) in try NetlinkConnection(0) }
        let external = context.policy.external
        for entry in entries.sorted(by: { $0.ifindex < $1.ifindex }) where entry.type != .loopback {
            let text = entry.text
            let origin: Origin
            if let other = external.value("netdev[\(text)]") {
                origin = .moved(other)
            } else {
                switch entry.type {
                case .bridge: origin = .bridge
                case .veth: origin = try DeviceRestore.origin(of: entry, entries, in: id, external)
                case .macvlan:
                    guard let other = external.value("macvlan[\(text)]"), !other.isEmpty else {
                        throw DeviceRestore.missing(entry, "macvlan[\(text)]:DEVICE with a device of ours")
                    }
                    origin = .macvlan(other)
                default:
                    throw Failure(
                        .unsupported,
                        "the tree's network namespace had the device \(text) (\(entry.type)), which can't be restored yet",
                        advice:
                            "Pass --empty-ns net and bring it back by an action script, or --join-ns net:FILE to enter a "
                            + "namespace that has it")
                }
            }
            devices.append((entry, origin))
        }
    }

    private static func origin(
        of entry: NetDeviceEntry, _ entries: [NetDeviceEntry], in id: UInt32, _ external: ExternalResources
    ) throws(Failure) -> Origin {
        if let word = external.value("veth[\(entry.text)]"), !word.isEmpty {
            let parts = word.split(separator: "@", maxSplits: 1).map(String.init)
            return .pair(outside: parts[0], bridge: parts.count == 2 ? parts[1] : nil)
        }
        if entry.hasPeerNsid, entry.peerNsid == id,
            let peer = entries.first(where: { $0.ifindex == entry.peerIfindex && $0.type == .veth })
        {
            return peer.ifindex > entry.ifindex ? .inner(peer) : .end
        }
        throw missing(entry, "veth[\(entry.text)]:NAME with the name that its other end is to have here")
    }

    private static func missing(_ entry: NetDeviceEntry, _ words: String) -> Failure {
        Failure(
            .usage, "the other end of the device \(entry.text) was outside of the tree's network namespace",
            advice:
                "Pass --external \(words), or --external netdev[\(entry.text)]:DEVICE with a device of ours to go there"
        )
    }

    /// Makes all devices, in the namespace that we are in.
    func make(_ context: RestoreContext) throws(Failure) {
        for (entry, origin) in devices {
            try during(.step("the network device \(entry.text)")) { () throws(Failure) in
                try make(entry, origin)
                try configure(entry)
                try Settings.restore(entry, of: entry.text, context)
            }
        }
        for (entry, _) in devices where entry.hasMaster {
            try during(.step("the network device \(entry.text)")) { () throws(Failure) in
                try change(index: entry.ifindex, "put it into its bridge") {
                    $0.append(DeviceRestore.master, [UInt8](bytesOf: entry.master))
                }
            }
        }
        // Those that are up may have something to say at once, and members come before.
        for (entry, _) in devices {
            try during(.step("the network device \(entry.text)")) { () throws(Failure) in
                try change(index: entry.ifindex, flags: entry.flags, "set it up") { _ in }
            }
        }
    }

    private func make(_ entry: NetDeviceEntry, _ origin: Origin) throws(Failure) {
        switch origin {
        case .bridge:
            try create(entry, "bridge") { _ in }
            try configure(bridge: entry)
        case .pair(let name, let bridge):
            let home = home.number
            try create(entry, "veth") { more in
                more.nest(2) { data in
                    data.nest(1) { peer in  // VETH_INFO_PEER
                        peer.append([UInt8](repeating: 0, count: 16))
                        peer.append(DeviceRestore.name, text: name)
                        peer.append(DeviceRestore.namespace, [UInt8](bytesOf: home))
                    }
                }
            }
            let master = try bridge.map { (bridge) throws(Failure) in try find(bridge) }
            try changeOutside(index: find(name), flags: 1, "set its other end \(name) up") {
                if let master { $0.append(DeviceRestore.master, [UInt8](bytesOf: master)) }
            }
        case .inner(let other):
            try create(entry, "veth") { more in
                more.nest(2) { data in
                    data.nest(1) { peer in
                        peer.append(
                            [UInt8](repeating: 0, count: 4) + [UInt8](bytesOf: other.ifindex)
                                + [UInt8](repeating: 0, count: 8))
                        peer.append(DeviceRestore.name, text: other.text)
                    }
                }
            }
        case .end: break
        case .moved(let name):
            let there = try DeviceRestore.namespaceHere("the tree's")
            let index = try find(name)
            let number = there.number
            try changeOutside(index: index, "move the device \(name) there") {
                $0.append(DeviceRestore.namespace, [UInt8](bytesOf: number))
                $0.append(DeviceRestore.newIndex, [UInt8](bytesOf: entry.ifindex))
                $0.append(DeviceRestore.name, text: entry.text)
            }
            moved.append((entry.ifindex, name))
        case .macvlan(let name):
            let there = try DeviceRestore.namespaceHere("the tree's")
            let index = try find(name)
            var request = DeviceRestore.request(entry, "macvlan") { more in
                more.nest(2) { data in
                    data.append(1, [UInt8](bytesOf: entry.macvlan.mode))  // IFLA_MACVLAN_MODE
                    if entry.macvlan.hasFlags {
                        data.append(2, [UInt8](bytesOf: UInt16(truncatingIfNeeded: entry.macvlan.flags)))
                    }
                }
            }
            request.append(DeviceRestore.link, [UInt8](bytesOf: index))
            request.append(DeviceRestore.namespace, [UInt8](bytesOf: there.number))
            let bytes = request.bytes
            try DeviceRestore.patiently("make it of \(name)") { () throws(SystemCallError) in
                try outside.change(16, flags: 0x600, bytes)  // RTM_NEWLINK; NLM_F_CREATE | NLM_F_EXCL
            }
        }
    }

    /// Tries again while a name or an address is taken: the namespace of a tree that has ended goes with its devices a little
    /// later.
    private static func patiently(
        _ doing: String, advice: String? = nil, _ body: () throws(SystemCallError) -> Void
    ) throws(Failure) {
        let started = ContinuousClock.now
        try attempt(doing, advice: advice) { () throws(SystemCallError) in
            while true {
                do throws(SystemCallError) { return try body() } catch {
                    guard error.errno == .EEXIST || error.errno == .EADDRINUSE,
                        ContinuousClock.now - started < .seconds(5)
                    else { throw error }
                    pause(nanoseconds: 10_000_000)
                }
            }
        }
    }

    /// Settings that a new bridge does not have anyway, which a kernel need not know.
    private func configure(bridge entry: NetDeviceEntry) throws(Failure) {
        guard let fresh = try NetworkDevice.list().first(where: { $0.index == entry.ifindex }) else { return }
        for setting in entry.bridge {
            let attribute = UInt16(truncatingIfNeeded: setting.attribute)
            guard fresh.data[attribute] != Array(setting.value) else { continue }
            try change(index: entry.ifindex, "set the bridge's attribute \(attribute)") { request in
                request.nest(DeviceRestore.about) {
                    $0.append(1, text: "bridge")
                    $0.nest(2) { data in data.append(attribute, Array(setting.value)) }
                }
            }
        }
    }

    private static func request(
        _ entry: NetDeviceEntry, _ kind: String, _ more: (inout NetlinkBytes) -> Void
    ) -> NetlinkBytes {
        var request = NetlinkBytes()
        request.append(
            [0, 0, 0, 0] + [UInt8](bytesOf: entry.ifindex) + [UInt8](repeating: 0, count: 8))
        request.append(name, text: entry.text)
        if !entry.address.isEmpty { request.append(hardware, Array(entry.address)) }
        request.nest(about) {
            $0.append(1, text: kind)  // IFLA_INFO_KIND
            more(&$0)
        }
        return request
    }

    private func create(
        _ entry: NetDeviceEntry, _ kind: String, _ more: (inout NetlinkBytes) -> Void
    ) throws(Failure) {
        let bytes = DeviceRestore.request(entry, kind, more).bytes
        try DeviceRestore.patiently("make it", advice: "Give its other end a name that is free here") {
            () throws(SystemCallError) in
            try NetlinkConnection(0).change(16, flags: 0x600, bytes)
        }
    }

    private func configure(_ entry: NetDeviceEntry) throws(Failure) {
        try change(index: entry.ifindex, "set its size and address") {
            $0.append(DeviceRestore.size, [UInt8](bytesOf: entry.mtu))
            if !entry.address.isEmpty { $0.append(DeviceRestore.hardware, Array(entry.address)) }
        }
    }

    private static func change(
        index: UInt32, flags: UInt32? = nil, _ more: (inout NetlinkBytes) -> Void
    ) -> [UInt8] {
        var request = NetlinkBytes()
        let settable = NetworkDevice.settable
        request.append(
            [0, 0, 0, 0] + [UInt8](bytesOf: index) + [UInt8](bytesOf: flags.map { $0 & settable } ?? 0)
                + [UInt8](bytesOf: flags == nil ? 0 : settable))
        more(&request)
        return request.bytes
    }

    private func change(
        index: UInt32, flags: UInt32? = nil, _ doing: String, _ more: (inout NetlinkBytes) -> Void
    ) throws(Failure) {
        let bytes = DeviceRestore.change(index: index, flags: flags, more)
        try DeviceRestore.patiently(doing) { () throws(SystemCallError) in try NetlinkConnection(0).change(16, bytes) }
    }

    private func changeOutside(
        index: UInt32, flags: UInt32? = nil, _ doing: String, _ more: (inout NetlinkBytes) -> Void
    ) throws(Failure) {
        let bytes = DeviceRestore.change(index: index, flags: flags, more)
        try attempt(doing) { () throws(SystemCallError) in try outside.change(16, bytes) }
    }

    /// The network namespace that this thread is in.
    private static func namespaceHere(_ whose: String) throws(Failure) -> Descriptor {
        try attempt("look at \(whose) network namespace") { () throws(SystemCallError) in
            try NamespaceVisit.here(NamespaceKind.net.rawValue)
        }
    }

    /// The number of a device of ours.
    private func find(_ name: String) throws(Failure) -> UInt32 {
        let all = try attempt("list our network devices") { () throws(SystemCallError) in
            try outside.list(18, [UInt8](repeating: 0, count: 16))
        }
        guard let found = all.compactMap({ NetworkDevice($0) }).first(where: { $0.name == name }) else {
            throw Failure(.conflict, "there is no network device \(name) here", advice: "Make it first")
        }
        return found.index
    }

    /// Gives back what was moved, from inside of the namespace.
    func abandon(_ log: Logger) {
        for (index, name) in moved.reversed() {
            do throws(Failure) {
                let home = home.number
                try change(index: index, "give the network device \(name) back") {
                    $0.append(DeviceRestore.namespace, [UInt8](bytesOf: home))
                    $0.append(DeviceRestore.name, text: name)
                }
            } catch { log.warning("\(error)") }
        }
        moved = []
    }
}

extension NetDeviceEntry {
    /// Its name.
    var text: String { String(decoding: name, as: UTF8.self) }
}
