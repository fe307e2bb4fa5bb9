internal import Diagnostics
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink
internal import SystemPackage

/// Holds up the packets of TCP connections, so that their peers notice nothing while nobody is there to answer.
///
/// While a tree still stands, the table is owned by our netlink socket and dies with us. Once the tree is gone, another
/// takes its place that stays: with the chains and sets that CRIU makes for `--network-lock nftables`, under the name that
/// it derives from the dump's id, so that either of us takes back the other's.
///
/// Of a tree with a network namespace of its own, everything in the namespace is held up, from the freeze on.
final class NetworkLock {
    /// What is held up.
    enum Extent {
        case connections(Set<Connection>)
        /// All packets of the network namespace that we are in.
        case namespace

        var isEmpty: Bool { if case .connections(let all) = self { all.isEmpty } else { false } }
    }

    /// Packets with this mark pass: those that restore the state of connections.
    static let passingMark: UInt32 = 0xc114

    /// The dump's id.
    let id: String
    private var owner: NetlinkConnection?
    /// What rules of iptables hold up.
    private var ruled: Extent?
    /// Whether the whole namespace is held up.
    private(set) var isWhole = false
    private var chosen: NetworkLockMethod?

    /// A lock that holds nothing yet.
    init() { id = NetworkLock.newID() }

    /// Random, in the form of a UUID of version 4.
    private static func newID() -> String {
        // Each random number is a system call.
        var bytes = [UInt8](bytesOf: (UInt64.random(in: 0 ... .max), UInt64.random(in: 0 ... .max)))
        bytes[6] = bytes[6] & 0x0f | 0x40
        bytes[8] = bytes[8] & 0x3f | 0x80
        let digits = bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
        let ends = [8, 12, 16, 20, 32], starts = [0] + ends.dropLast()
        return zip(starts, ends).map { String(digits.dropFirst($0).prefix($1 - $0)) }.joined(separator: "-")
    }

    /// The name of a dump's table. CRIU has room for 31 characters with the family `inet ` before it.
    private static func table(of id: String) -> String { "CRIU-" + id.prefix(21) }

    /// The method to use: the one that was asked for, or what the machine has.
    func method(_ policy: DumpPolicy) -> NetworkLockMethod { chosen ?? policy.networkLock ?? .nftables }

    /// Holds up packets for as long as we live and do not let go.
    func take(_ extent: Extent, _ method: NetworkLockMethod?, _ log: Logger) throws(Failure) {
        chosen = method ?? .nftables
        guard !extent.isEmpty, chosen != .skip else { return }
        if chosen == .nftables {
            do throws(SystemCallError) {
                let kernel = try NetlinkConnection(12)
                try NetworkLock.rules(extent, "brumate-" + id.prefix(21), isOwned: true).commit(kernel)
                owner = consume kernel
                if case .namespace = extent { isWhole = true }
                return
            } catch {
                guard method == nil else {
                    throw Failure(
                        .denied, "can't lock the network by nftables",
                        advice: "Pass another --network-lock, or have nf_tables in the kernel", cause: error)
                }
                log.info("can't lock the network by nftables (\(error)), trying iptables")
            }
        }
        chosen = .iptables
        try NetworkLock.rule(extent, adds: true)
        ruled = extent
        if case .namespace = extent { isWhole = true }
    }

    /// Makes the lock outlast us, until a restore takes it back.
    func stay(_ extent: Extent) throws(Failure) {
        if owner != nil {
            // An owned table can't be handed over, so another one comes before it goes.
            try attempt("keep the network locked until the restore") { () throws(SystemCallError) in
                let kernel = try NetlinkConnection(12)
                try NetworkLock.rules(extent, NetworkLock.table(of: id), isOwned: false).commit(kernel)
            }
            owner = nil
        }
        ruled = nil
    }

    /// Lets the connections go.
    func drop(_ log: Logger) {
        owner = nil
        isWhole = false
        guard let ruled else { return }
        do throws(Failure) { try NetworkLock.rule(ruled, adds: false) } catch { log.warning("\(error)") }
        self.ruled = nil
    }

    /// Whether the lock that a dump left is here.
    static func isHere(_ method: NetworkLockMethod, id: String) -> Bool {
        method == .nftables && NftablesTransaction.has(table: table(of: id))
    }

    /// Takes back the lock that a dump left.
    static func release(_ extent: Extent, _ method: NetworkLockMethod, id: String, _ log: Logger) {
        switch method {
        case .skip: break
        case .iptables:
            do throws(Failure) { try rule(extent, adds: false) } catch { log.warning("\(error)") }
        case .nftables:
            do throws(SystemCallError) {
                var transaction = NftablesTransaction(table: table(of: id))
                transaction.delete()
                try transaction.commit(try NetlinkConnection(12))
            } catch {
                // A restore on another machine, or after a reboot, finds no lock.
                if error.errno != .ENOENT { log.warning("the network lock of the dump is not removed: \(error)") }
            }
        }
    }

    // MARK: nftables

    private static func rules(_ extent: Extent, _ table: String, isOwned: Bool) -> NftablesTransaction {
        var transaction = NftablesTransaction(table: table)
        transaction.create(isOwned: isOwned)
        switch extent {
        case .connections(let connections): add(connections, to: &transaction)
        case .namespace:
            for (chain, hook) in hooks {
                transaction.add(chain: chain, hook: hook, policy: 0)
                transaction.add(pass, to: chain)
            }
        }
        return transaction
    }

    private static let hooks: [(chain: String, hook: UInt32)] = [("output", 3), ("input", 1)]

    /// Lets packets pass that have the mark.
    private static var pass: NftablesTransaction.Rule {
        var pass = NftablesTransaction.Rule()
        pass.load(meta: 3, into: 8)
        pass.require(8, [UInt8](bytesOf: passingMark))
        pass.end(1)
        return pass
    }

    private static func add(_ connections: Set<Connection>, to transaction: inout NftablesTransaction) {
        // Types of the nft program: ipv4_addr 7, ipv6_addr 8, inet_service 13, six bits for each part of a key.
        let families: [(name: String, id: UInt32, type: UInt32, size: UInt32, offset: UInt32, code: UInt8)] = [
            ("conns4", 1, 7, 4, 12, 2), ("conns6", 2, 8, 16, 8, 10),
        ]
        for set in families {
            let type = set.type << 18 | 13 << 12 | set.type << 6 | 13
            transaction.add(set: set.name, id: set.id, keyLength: 2 * set.size + 8, type: type)
        }
        for (chain, hook) in hooks {
            transaction.add(chain: chain, hook: hook)
            transaction.add(pass, to: chain)
            for set in families {
                var rule = NftablesTransaction.Rule()
                rule.load(meta: 15, into: 8)
                rule.require(8, [set.code])
                rule.load(meta: 16, into: 8)
                rule.require(8, [6])
                // Registers of 32 bits from 8 on: address, port, address, port.
                let words = set.size / 4
                rule.load(header: 1, offset: set.offset, length: set.size, into: 8)
                rule.load(header: 2, offset: 0, length: 2, into: 8 + words)
                rule.load(header: 1, offset: set.offset + set.size, length: set.size, into: 9 + words)
                rule.load(header: 2, offset: 2, length: 2, into: 9 + 2 * words)
                rule.require(8, in: set.name, id: set.id)
                rule.end(0)
                transaction.add(rule, to: chain)
            }
        }
        for set in families {
            var keys: [UInt8] = []
            for connection in connections where connection.there.plain.family == Int32(set.code) {
                append(connection, to: &keys)
                // Of a connection within the tree both ends may be here.
                if !connections.contains(connection.reversed) { append(connection.reversed, to: &keys) }
            }
            transaction.add(keys, of: Int(2 * set.size + 8), to: set.name, id: set.id)
        }
    }

    private static func append(_ connection: Connection, to keys: inout [UInt8]) {
        for end in [connection.here.plain, connection.there.plain] {
            keys += end.bytes
            keys += [UInt8(end.port >> 8), UInt8(end.port & 0xff), 0, 0]
        }
    }

    // MARK: iptables

    /// Adds or removes the rules that CRIU makes.
    private static func rule(_ extent: Extent, adds: Bool) throws(Failure) {
        switch extent {
        case .connections(let connections): try rule(connections, adds: adds)
        case .namespace: try ruleNamespace(adds: adds)
        }
    }

    /// A chain of its own, in both families.
    private static func ruleNamespace(adds: Bool) throws(Failure) {
        let mark = "0x\(String(passingMark, radix: 16))"
        // A chain can go once nobody jumps to it any more.
        let steps =
            adds
            ? [
                [
                    "-I INPUT -j CRIU", "-I OUTPUT -j CRIU", "-A CRIU -m mark --mark \(mark) -j ACCEPT",
                    "-A CRIU -j DROP",
                ]
            ] : [["-D INPUT -j CRIU", "-D OUTPUT -j CRIU"], ["-X CRIU"]]
        let hasSixth = (try? FileStatus.read("/proc/sys/net/ipv6", in: currentDirectory)) != nil
        for program in hasSixth ? ["iptables-restore", "ip6tables-restore"] : ["iptables-restore"] {
            for step in steps {
                let text = (["*filter", ":CRIU - [0:0]"] + step + ["COMMIT", ""]).joined(separator: "\n")
                let status = try restoreTables(program, text)
                guard status != 0 else { continue }
                guard !adds else {
                    // What is locked by now is let go.
                    _ = try? ruleNamespace(adds: false)
                    throw lockFailure(program, status)
                }
                throw Failure(.denied, "the network may be locked still: \(program) ended with the status \(status)")
            }
        }
    }

    private static func lockFailure(_ program: String, _ status: Int32) -> Failure {
        Failure(
            .denied, "can't lock the network: \(program) ended with the status \(status)",
            advice: "Install iptables, or pass --network-lock nftables")
    }

    /// One call of the program for each family. Only if that fails, as one of the rules to remove is gone, there is a call
    /// for each rule.
    private static func rule(_ connections: Set<Connection>, adds: Bool) throws(Failure) {
        for (family, prefix) in [(Int32(2), ""), (10, "6")] {
            var lines: [String] = []
            for connection in connections where connection.there.plain.family == family {
                let (here, there) = (connection.here.plain, connection.there.plain)
                for (chain, from, to) in [("INPUT", there, here), ("OUTPUT", here, there)] {
                    lines.append(
                        "\(adds ? "-I" : "-D") \(chain) --protocol tcp -m mark ! --mark \(passingMark) --source \(from.host) "
                            + "--sport \(from.port) --destination \(to.host) --dport \(to.port) -j DROP")
                }
            }
            guard !lines.isEmpty else { continue }
            let text = "*filter\n" + lines.joined(separator: "\n") + "\nCOMMIT\n"
            let status = try restoreTables("ip\(prefix)tables-restore", text)
            guard status != 0 else { continue }
            guard !adds else { throw lockFailure("ip\(prefix)tables-restore", status) }
            for line in lines { _ = try? restoreTables("ip\(prefix)tables-restore", "*filter\n\(line)\nCOMMIT\n") }
        }
    }

    private static func restoreTables(_ program: String, _ text: String) throws(Failure) -> Int32 {
        let file = try attempt("pass rules to \(program)") { () throws(SystemCallError) in
            try memoryFile("rules", holding: Array(text.utf8))
        }
        // Not --wait last: it takes what follows for a number of seconds.
        let words = [
            "env", program, "--wait", "--noflush", "/proc/\(TaskID.current)/fd/\(file.number)",
        ]
        return try runProgram("/usr/bin/env", arguments: words, environment: [])
    }
}
