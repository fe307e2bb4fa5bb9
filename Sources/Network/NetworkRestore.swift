public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds
internal import Linux
internal import Netlink

/// Fills the new network namespace of a tree from its images. The filling is done inside of it.
public struct NetworkRestore {
    private let settings: NetnsEntry?
    private let furtherSettings: [UInt8]
    private let loopback: NetDeviceEntry?
    /// All others.
    private let devices: DeviceRestore
    private var routing: [(image: RoutingImage, objects: [NetlinkAnswer])] = []
    private var rules: [ImageName.NetworkPart: [UInt8]] = [:]
    private var tracked: [NetlinkAnswer] = []

    /// The most bytes of a raw image.
    private static let largest = 256 << 20

    /// Reads and checks the images of a namespace before anything is created.
    ///
    /// - Parameter id: the namespace's number in the images.
    public init(_ id: UInt32, _ context: RestoreContext) throws(Failure) {
        let images = context.images
        func raw(_ part: ImageName.NetworkPart) throws(Failure) -> [UInt8]? {
            let name = ImageName.network(id, part)
            guard images.has(name) else { return nil }
            let reader = try images.open(name)
            guard reader.size <= NetworkRestore.largest else {
                throw Failure(.corruptImage, "\(name.fileName) is too large to be true")
            }
            return try reader.read(reader.size)
        }
        for part in [ImageName.NetworkPart.tracked, .expected] {
            tracked += try during(.image("\(part.rawValue)-\(id).img")) { () throws(Failure) in
                try ConnectionTracking.messages(in: raw(part) ?? [])
            }
        }
        guard !context.policy.emptiesNetwork else {
            (settings, furtherSettings, loopback) = (nil, [], nil)
            devices = try DeviceRestore([], in: id, context)
            return
        }
        settings = images.has(.network(id)) ? try images.load(.network(id), as: NetnsEntry.self) : nil
        guard settings.map({ !$0.hasExtKey }) ?? true else {
            throw Failure(
                .unsupported,
                "the tree's network namespace comes from outside (--external net), which can't be restored yet",
                advice: "Pass --join-ns net:FILE to enter an existing namespace")
        }
        furtherSettings = try raw(.settings) ?? []
        let entries = try images.loadAll(.networkDevices(id), as: NetDeviceEntry.self)
        loopback = entries.first { $0.type == .loopback }
        devices = try DeviceRestore(entries, in: id, context)
        for image in RoutingImage.all {
            guard let bytes = try raw(image.part) else { continue }
            let objects = try during(.image("\(image.part.rawValue)-\(id).img")) { () throws(Failure) in
                try image.objects(in: bytes)
            }
            routing.append((image, objects))
        }
        for part in [ImageName.NetworkPart.iptables, .ip6tables, .nftables] { rules[part] = try raw(part) }
    }

    /// Settings, devices, addresses, routes and rules: what sockets need.
    public func fill(_ context: RestoreContext) throws(Failure) {
        if let settings { try Settings.restore(settings, context) }
        if let loopback {
            try NetworkDevice.configureLoopback(mtu: loopback.mtu, flags: loopback.flags)
            try Settings.restore(loopback, of: "lo", context)
        }
        try devices.make(context)
        try during(.step("the further settings of the network namespace")) { () throws(Failure) in
            try Settings.restoreRest(furtherSettings, context)
        }
        let all = Set(try NetworkDevice.list().filter { !$0.isTun }.map(\.index))
        for (image, objects) in routing { try image.restore(objects, all) }
    }

    /// Gives back what was taken from outside.
    public func abandon(_ context: RestoreContext) { devices.abandon(context.log) }

    /// Packet filters and tracked connections, once nothing is sent any more that only the restore needs.
    public func finish(_ context: RestoreContext) throws(Failure) {
        try PacketFilter.restoreLegacy(rules[.iptables] ?? [], "ip")
        try PacketFilter.restoreLegacy(rules[.ip6tables] ?? [], "ip6")
        try PacketFilter.restoreTables(rules[.nftables] ?? [])
        ConnectionTracking.restore(tracked, context.log)
    }
}
