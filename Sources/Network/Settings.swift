internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import SystemPackage

/// The settings of a network namespace, below /proc/sys/net.
enum Settings {
    /// Settings of a device that CRIU's images know, in the order of their numbers there.
    static let fourth = [
        "accept_local", "accept_redirects", "accept_source_route", "arp_accept", "arp_announce", "arp_filter",
        "arp_ignore", "arp_notify", "bootp_relay", "disable_policy", "disable_xfrm", "force_igmp_version", "forwarding",
        "igmpv2_unsolicited_report_interval", "igmpv3_unsolicited_report_interval", "log_martians", "medium_id",
        "promote_secondaries", "proxy_arp", "proxy_arp_pvlan", "route_localnet", "rp_filter", "secure_redirects",
        "send_redirects", "shared_media", "src_valid_mark", "tag", "ignore_routes_with_linkdown",
        "drop_gratuitous_arp", "drop_unicast_in_l2_multicast",
    ]

    /// The same for IPv6.
    static let sixth = [
        "accept_dad", "accept_ra", "accept_ra_defrtr", "accept_ra_from_local", "accept_ra_min_hop_limit",
        "accept_ra_mtu", "accept_ra_pinfo", "accept_ra_rt_info_max_plen", "accept_ra_rtr_pref", "accept_redirects",
        "accept_source_route", "autoconf", "dad_transmits", "disable_ipv6", "drop_unicast_in_l2_multicast",
        "drop_unsolicited_na", "force_mld_version", "force_tllao", "forwarding", "hop_limit",
        "ignore_routes_with_linkdown", "keep_addr_on_down", "max_addresses", "max_desync_factor",
        "mldv1_unsolicited_report_interval", "mldv2_unsolicited_report_interval", "mtu", "ndisc_notify",
        "optimistic_dad", "proxy_ndp", "regen_max_retry", "router_probe_interval", "router_solicitation_delay",
        "router_solicitation_interval", "router_solicitations", "stable_secret", "suppress_frag_ndisc",
        "temp_prefered_lft", "temp_valid_lft", "use_oif_addrs_only", "use_optimistic", "use_tempaddr",
    ]

    private static let unix = ["max_dgram_qlen"], plain = ["ping_group_range"]
    private static let texts: Set<String> = ["stable_secret", "ping_group_range"]
    private static let root = "/proc/sys/net/"

    private static func value(_ path: String) -> String? {
        guard let bytes = try? readWholeFile(FilePath(root + path)) else { return nil }
        return String(decoding: bytes.prefix { $0 != 0x0a }, as: UTF8.self)
    }

    // MARK: dump

    private static func read(_ folder: String, _ names: [String]) -> [SysctlEntry] {
        names.map { name in
            var entry = SysctlEntry()
            let value = value("\(folder)/\(name)")
            if texts.contains(name) {
                entry.type = .ctlStr
                if let value { entry.sarg = imageBytes(value.utf8) }
            } else {
                entry.type = .ctl32
                if let number = value.flatMap({ Int32($0) }) { entry.iarg = number }
            }
            return entry
        }
    }

    /// The settings of all devices, of new ones, and of none.
    static func dump() -> NetnsEntry {
        var entry = NetnsEntry()
        entry.allConf4 = read("ipv4/conf/all", fourth)
        entry.defConf4 = read("ipv4/conf/default", fourth)
        entry.allConf6 = read("ipv6/conf/all", sixth)
        entry.defConf6 = read("ipv6/conf/default", sixth)
        entry.unixConf = read("unix", unix)
        entry.ipv4Sysctl = read("ipv4", plain)
        // Nobody, as in a new namespace; which can't be written so.
        if entry.ipv4Sysctl[0].sarg.elementsEqual("1\t0".utf8) { entry.ipv4Sysctl[0].clearSarg() }
        return entry
    }

    /// The settings of a device.
    static func dump(_ device: String, _ entry: inout NetDeviceEntry) {
        entry.conf4 = read("ipv4/conf/\(device)", fourth)
        entry.conf6 = read("ipv6/conf/\(device)", sixth)
    }

    /// All further settings that can be read and written, a line for each.
    static func dumpRest() -> [UInt8] {
        var lines = ""
        forEachFurther("") { path in
            guard let value = value(path) else { return }
            lines += "\(path)\t\(value)\n"
        }
        return Array(lines.utf8)
    }

    /// Folders with a folder for each device, of which these are kept.
    private static let devices: Set<String> = ["all", "default", "lo"]

    private static func forEachFurther(_ folder: String, _ body: (String) -> Void) {
        let isOfDevices = folder.hasSuffix("/conf/") || folder.hasSuffix("/neigh/")
        let known = Set(folder.hasPrefix("ipv4/conf/") ? fourth : folder.hasPrefix("ipv6/conf/") ? sixth : [])
        for name in ((try? listDirectory(FilePath(root + folder))) ?? []).map(\.string).sorted() {
            guard !known.contains(name), !isOfDevices || devices.contains(name),
                let status = try? FileStatus.read(root + folder + name, in: currentDirectory)
            else { continue }
            if status.kind == .directory {
                forEachFurther(folder + name + "/", body)
            } else if status.mode & 0o600 == 0o600 {
                body(folder + name)
            }
        }
    }

    // MARK: restore

    /// Sets what differs.
    private static func set(_ path: String, _ value: String) throws(SystemCallError) {
        guard self.value(path) != value else { return }
        let file = try openFile(FilePath(root + path), .writeOnly)
        try writeAll(Array("\(value)\n".utf8), to: file.number)
    }

    private static func restore(
        _ folder: String, _ names: [String], _ entries: [SysctlEntry], _ context: RestoreContext
    ) throws(Failure) {
        if entries.count > names.count {
            context.log.warning("the image holds settings in net/\(folder) that are not known, and are left out")
        }
        // To forward packets changes whether redirects are accepted.
        let late = "accept_redirects"
        let pairs = Array(zip(names, entries))
        for (name, entry) in pairs.filter({ $0.0 != late }) + pairs.filter({ $0.0 == late }) {
            let value: String
            switch entry.type {
            case .ctl32:
                guard entry.hasIarg else { continue }
                value = "\(entry.iarg)"
            case .ctlStr:
                guard entry.hasSarg else { continue }
                value = String(decoding: entry.sarg.prefix { $0 != 0 && $0 != 0x0a }, as: UTF8.self)
            }
            do throws(SystemCallError) { try set("\(folder)/\(name)", value) } catch {
                guard context.policy.weakSettings else {
                    throw Failure(
                        .conflict, "can't set net/\(folder)/\(name) to \(value)",
                        advice: "Pass --weak-sysctls to do without settings that this kernel does not take",
                        cause: error)
                }
                context.log.warning("net/\(folder)/\(name) stays as it is, not \(value): \(error)")
            }
        }
    }

    static func restore(_ entry: NetnsEntry, _ context: RestoreContext) throws(Failure) {
        try restore("ipv4/conf/all", fourth, entry.allConf4, context)
        try restore("ipv4/conf/default", fourth, entry.defConf4, context)
        try restore("ipv6/conf/all", sixth, entry.allConf6, context)
        try restore("ipv6/conf/default", sixth, entry.defConf6, context)
        try restore("unix", unix, entry.unixConf, context)
        try restore("ipv4", plain, entry.ipv4Sysctl, context)
    }

    static func restore(_ device: NetDeviceEntry, of name: String, _ context: RestoreContext) throws(Failure) {
        // A name of an image must not lead elsewhere.
        guard !name.contains("/"), name != ".." else {
            throw Failure(.corruptImage, "the name of a device makes no sense")
        }
        try restore("ipv4/conf/\(name)", fourth, device.conf4, context)
        try restore("ipv6/conf/\(name)", sixth, device.conf6, context)
    }

    /// Sets the further settings of an image, as far as this kernel has and takes them.
    static func restoreRest(_ image: [UInt8], _ context: RestoreContext) throws(Failure) {
        for line in image.split(separator: 0x0a) {
            let parts = line.split(separator: 0x09, maxSplits: 1, omittingEmptySubsequences: false)
            guard parts.count == 2 else { throw Failure(.corruptImage, "a line is not a path and a value") }
            let (path, value) = (String(decoding: parts[0], as: UTF8.self), String(decoding: parts[1], as: UTF8.self))
            guard !path.hasPrefix("/"), !path.split(separator: "/").contains("..") else {
                throw Failure(.corruptImage, "a path leads out of /proc/sys/net")
            }
            do throws(SystemCallError) { try set(path, value) } catch {
                context.log.warning("net/\(path) stays as it is, not \(value): \(error)")
            }
        }
    }
}
