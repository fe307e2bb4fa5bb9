public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
internal import Linux

/// Dumps the network namespace of a tree that has its own. Everything here is done inside of it.
public enum NetworkDump {
    /// Refuses, before anything is stopped, what can't be brought back.
    public static func check(_ policy: DumpPolicy) throws(Failure) {
        guard !policy.emptiesNetwork else { return }
        for device in try NetworkDevice.list() { try device.check(tuns: nil) }
    }

    /// Writes packet filters. The tree stands still, but no packet is held up by filters yet.
    public static func dumpFilters(_ id: UInt32, _ context: DumpContext) throws(Failure) {
        guard !context.policy.emptiesNetwork else { return }
        try hold(.iptables, id, PacketFilter.dumpLegacy("ip"), context)
        try hold(.ip6tables, id, PacketFilter.dumpLegacy("ip6"), context)
        try hold(.nftables, id, PacketFilter.dumpTables(context.log), context)
    }

    /// Writes what is known of connections, settings, devices, addresses, routes and rules. All files are dumped, and no
    /// packet moves any more.
    public static func dump(_ id: UInt32, _ context: DumpContext) throws(Failure) {
        let images = context.images
        for (part, image) in ConnectionTracking.dump() { try hold(part, id, image, context) }
        guard !context.policy.emptiesNetwork else { return }
        let tuns = Set(context.files.filter(\.hasTunf).map { String(decoding: $0.tunf.netdev, as: UTF8.self) })
        var entries: [NetDeviceEntry] = []
        for device in try NetworkDevice.list() {
            try device.check(tuns: tuns)
            guard !device.isFallback, var entry = device.entry(in: id) else { continue }
            Settings.dump(device.name, &entry)
            entries.append(entry)
        }
        try images.write(.networkDevices(id), entries)
        try images.write(.network(id), [Settings.dump()])
        try hold(.settings, id, Settings.dumpRest(), context)
        for routing in RoutingImage.all {
            try hold(routing.part, id, routing.image(of: try routing.list(Set(entries.map(\.ifindex)))), context)
        }
    }

    private static func hold(
        _ part: ImageName.NetworkPart, _ id: UInt32, _ bytes: [UInt8], _ context: DumpContext
    ) throws(Failure) {
        guard !bytes.isEmpty else { return }
        let image = context.images.create(.network(id, part))
        try image.append(raw: bytes)
        try image.finish()
    }
}
