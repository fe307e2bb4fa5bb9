internal import Diagnostics
internal import ImageFormat
internal import Kinds
internal import Linux
internal import Logging
internal import Netlink
internal import SystemPackage

/// The rules for packets, as text that only their own programs can write and read. These run only where there are rules.
enum PacketFilter {
    /// Beginnings of the names of tables that hold up packets for a dump or restore; such are no part of the tree.
    private static let locks = ["CRIU-", "brumate-"]
    /// The chain that does so by iptables.
    private static let lockChain = "CRIU"

    /// What a program writes to its standard output; nil if there is no such program.
    private static func output(_ words: [String]) throws(Failure) -> [UInt8]? {
        let (status, text) = try run(words, input: nil)
        if status == 127 { return nil }
        guard status == 0 else {
            throw Failure(.denied, "\(words.joined(separator: " ")) ended with the status \(status)")
        }
        return text
    }

    /// Runs a program with a file as its input. Returns its status, 127 if there is none, and what it wrote.
    private static func run(_ words: [String], input: [UInt8]?) throws(Failure) -> (status: Int32, output: [UInt8]) {
        try attempt("run \(words[0])") { () throws(SystemCallError) in
            let input = try memoryFile("rules", holding: input ?? [])
            let output = try memoryFile("rules")
            // Who may call us without the folders of such programs.
            let script = #"PATH="$PATH:/usr/sbin:/sbin" exec "$@""#
            let program = try startProgram(
                "/bin/sh", arguments: ["sh", "-c", script, "sh"] + words, environment: [],
                streams: [0: input.number, 1: output.number])
            let status = try waitForProgram(program) ?? 0
            try systemCall(.lseek, Int(output.number), 0, 0)
            return (status, try readToEnd(output))
        }
    }

    // MARK: nftables

    private static let families: [UInt8: String] = [1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"]

    /// The tables of the namespace that we are in, by family and name.
    private static func tables(_ log: Logger) -> [(family: String, name: String)] {
        guard let kernel = try? NetlinkConnection(12), let tables = try? kernel.list(10 << 8 | 1, [0, 0, 0, 0]) else {
            // A kernel without nf_tables.
            return []
        }
        return tables.compactMap { table in
            let more = NetlinkBytes.attributes(table.body, from: 4)
            guard let family = table.body.first.flatMap({ families[$0] }), let bytes = more[1] else { return nil }
            let name = String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            if locks.contains(where: name.hasPrefix) { return nil }
            // NFT_TABLE_F_OWNER
            if (more[2]?.load(UInt32.self).map { UInt32(bigEndian: $0) } ?? 0) & 2 != 0 {
                log.warning("the table \(family) \(name) of nftables belongs to a socket, and is left out")
                return nil
            }
            return (family, name)
        }
    }

    /// All tables as `nft` lists them.
    static func dumpTables(_ log: Logger) throws(Failure) -> [UInt8] {
        var all: [UInt8] = []
        for (family, name) in tables(log) {
            guard let text = try output(["nft", "list", "table", family, name]) else {
                throw Failure(
                    .unsupported, "the tree's network namespace has rules of nftables, and there is no program nft",
                    advice: "Install nftables, or pass --empty-ns net and bring the rules back by an action script")
            }
            let lines = String(decoding: text, as: UTF8.self)
            guard !lines.contains("xt target"), !lines.contains("xt match") else {
                throw Failure(
                    .unsupported,
                    "the table \(family) \(name) of nftables has rules that only iptables-nft understands",
                    advice: "Write them by nft or iptables-legacy, or pass --empty-ns net and bring them back by an "
                        + "action script")
            }
            all += text
        }
        return all
    }

    /// Makes the tables of an image.
    static func restoreTables(_ image: [UInt8]) throws(Failure) {
        // CRIU's images hold its lock.
        var isLock = false
        let lines = String(decoding: image, as: UTF8.self).split(separator: "\n").filter { line in
            if line.hasPrefix("table ") {
                isLock = line.split(separator: " ").contains { word in locks.contains(where: word.hasPrefix) }
            }
            return !isLock
        }
        guard !lines.isEmpty else { return }
        let (status, _) = try run(
            ["nft", "-f", "/dev/stdin"], input: Array(lines.joined(separator: "\n").utf8) + [0x0a])
        guard status == 0 else {
            throw Failure(
                .conflict, "nft does not take the tree's rules: it ended with the status \(status)",
                advice: status == 127 ? "Install nftables" : "See its own output")
        }
    }

    // MARK: iptables

    /// The legacy tables of a family: `ip` or `ip6`.
    static func dumpLegacy(_ family: String) throws(Failure) -> [UInt8] {
        let names = (try? readWholeFile("/proc/thread-self/net/\(family)_tables_names")) ?? []
        guard !names.isEmpty else { return [] }
        for program in ["\(family)tables-legacy-save", "\(family)tables-save"] {
            guard let text = try output([program, "-c"]) else { continue }
            let lines = String(decoding: text, as: UTF8.self)
            // Another program under the name, which knows nothing of these.
            guard !lines.contains("nf_tables") else { continue }
            guard !lines.contains("--match-set"), !lines.contains("-j SET ") else {
                throw Failure(
                    .unsupported,
                    "the tree's network namespace has rules of iptables with sets of ipset, which are not dumped",
                    advice: "Pass --empty-ns net and bring the rules and sets back by an action script")
            }
            return Array(withoutLock(lines).utf8)
        }
        throw Failure(
            .unsupported,
            "the tree's network namespace has rules of iptables, and there is no program \(family)tables-legacy-save",
            advice: "Install iptables, or pass --empty-ns net and bring the rules back by an action script")
    }

    private static func withoutLock(_ text: String) -> String {
        text.split(separator: "\n").filter { line in
            // `:CRIU - [0:0]`, `[0:0] -A CRIU …`, `-A INPUT -j CRIU`.
            let words = line.split(separator: " ")
            return words.first.map(String.init) != ":" + lockChain
                && !zip(words, words.dropFirst()).contains { pair in
                    (pair.0 == "-A" || pair.0 == "-j") && pair.1 == lockChain
                }
        }.map { $0 + "\n" }.joined()
    }

    /// Adds the rules of an image.
    static func restoreLegacy(_ image: [UInt8], _ family: String) throws(Failure) {
        let text = withoutLock(String(decoding: image, as: UTF8.self))
        guard text.contains("*") else { return }
        for program in ["\(family)tables-legacy-restore", "\(family)tables-restore"] {
            // Not --wait last: it takes what follows for a number of seconds.
            let (status, _) = try run([program, "--wait", "--counters", "--noflush"], input: Array(text.utf8))
            if status == 127 { continue }
            if status == 0 { return }
            throw Failure(
                .conflict, "\(program) does not take the tree's rules: it ended with the status \(status)",
                advice: "See its own output")
        }
        throw Failure(
            .unsupported, "the tree has rules of iptables, and there is no program \(family)tables-legacy-restore",
            advice: "Install iptables")
    }
}
