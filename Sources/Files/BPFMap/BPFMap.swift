internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs

/// A map of keys to values in the kernel (`bpf(2)`), as long as no program of the kernel uses it.
enum BPFMap: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { facts.text == "anon_inode:bpf-map" }

    /// Names of types (BPF_MAP_TYPE_*) that hold plain data.
    private static let plain: [UInt32: String] = [
        1: "hash", 2: "array", 5: "percpu_hash", 6: "percpu_array", 9: "lru_hash", 10: "lru_percpu_hash",
        11: "lpm_trie",
    ]

    /// Types whose elements can only be taken out, not looked at.
    private static let queues: [UInt32: String] = [22: "queue", 23: "stack"]

    static var isRefusedSingly: Bool { true }

    static func refusal(_ facts: FileFacts) -> Failure? {
        guard claims(facts), let type = facts.information.value("map_type", base: 10) else { return nil }
        let number = UInt32(truncatingIfNeeded: type)
        if plain[number] != nil || queues[number] != nil { return nil }
        return Failure(
            .unsupported, "a BPF map of the type \(type) holds more than plain data, which can't be read back",
            advice: "Close it before the dump")
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        if let refusal = refusal(file.facts) { throw refusal }
        let facts = try BPF.facts(of: file.handle.number)
        let maps = BPFMaps.of(context)
        if let program = try maps.program(using: facts.id) {
            throw Failure(
                .unsupported, "the BPF program \(program) uses this map, and would not use the restored one",
                advice: "Unload the program before the dump")
        }
        if facts.usesBTF {
            context.log.warning("the BPF map \(facts.id) will be restored without its type information")
        }
        var entry = BpfmapFileEntry()
        entry.id = file.id
        entry.flags = file.facts.statusFlags
        entry.pos = file.facts.information.position
        entry.fown = try FileOwner.dump(file, context)
        (entry.mapType, entry.mapID, entry.mapFlags) = (facts.type, facts.id, facts.flags)
        (entry.keySize, entry.valueSize, entry.maxEntries) = (facts.keySize, facts.valueSize, facts.maxEntries)
        entry.memlock = file.facts.information.value("memlock", base: 10) ?? 0
        entry.frozen = file.facts.information.value("frozen", base: 10) == 1
        entry.mapName = imageBytes(facts.name)
        entry.ifindex = facts.interface
        if facts.extra != 0 { entry.mapExtra = facts.extra }
        try maps.dump(facts, through: file)
        var whole = FileEntry(.bpfmap, file.id)
        whole.bpf = entry
        return whole
    }

    static func finish(_ context: DumpContext) throws(Failure) { try BPFMaps.of(context).finish(context) }

    static func load(_ context: RestoreContext) throws(Failure) { try SavedBPFMaps.of(context).load(context) }

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.bpfmap.rawValue) && entry.hasBpf }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.bpf.fown }

    /// Descriptions of one map are made together.
    static func group(_ entry: FileEntry, _ context: RestoreContext) -> UInt64 { UInt64(entry.bpf.mapID) }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        guard let first = members.first?.bpf else { return }
        try during(.file("anon_inode:bpf-map")) { () throws(Failure) in
            guard plain[first.mapType] != nil || queues[first.mapType] != nil else {
                throw Failure(.unsupported, "BPF maps of the type \(first.mapType) can't be restored")
            }
            let map = try BPF.create(first)
            if let data = try SavedBPFMaps.of(context).contents(of: first.mapID, context), data.count > 0 {
                try BPF.update(map.number, data, first)
            }
            if first.frozen { try BPF.freeze(map.number) }
            let id = try BPF.facts(of: map.number).id
            for member in members {
                // Another description of the same map, with the rights that its flags tell.
                let made = try BPF.open(id, access: member.bpf.flags & 3)
                let number = made.number
                try attempt("set the flags of a BPF map") { () throws(SystemCallError) in
                    try setStatusFlags(number, member.bpf.flags)
                }
                try context.files.add(member.id, made)
            }
        }
    }

    /// Whether a map's elements can only be taken out.
    static func isQueue(_ type: UInt32) -> Bool { queues[type] != nil }
}
