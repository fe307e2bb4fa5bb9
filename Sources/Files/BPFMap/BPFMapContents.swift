internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux

/// Dump: what the maps hold, each once.
final class BPFMaps {
    private var contents: [(id: UInt32, contents: BPFMapContents)] = []
    private var known: Set<UInt32> = []
    private var users: [UInt32: UInt32]?

    static func of(_ context: DumpContext) -> BPFMaps { context.state(BPFMaps.self) { BPFMaps() } }

    /// A program that uses a map.
    func program(using map: UInt32) throws(Failure) -> UInt32? {
        if let users { return users[map] }
        var users: [UInt32: UInt32] = [:]
        for program in try BPF.programs() {
            for map in program.maps { users[map] = program.id }
        }
        self.users = users
        return users[map]
    }

    func dump(_ facts: BPFMapFacts, through file: OpenFile) throws(Failure) {
        guard known.insert(facts.id).inserted else { return }
        // The task's own descriptor may be for writing only.
        let map = try BPF.open(facts.id)
        if BPFMap.isQueue(facts.type) {
            guard try BPF.isEmpty(map.number, valueSize: facts.valueSize) else {
                throw Failure(
                    .unsupported, "a BPF queue or stack that is not empty can't be read without emptying it",
                    advice: "Empty it before the dump")
            }
            return
        }
        contents.append((facts.id, try BPF.contents(of: map.number, facts)))
    }

    func finish(_ context: DumpContext) throws(Failure) {
        guard !contents.isEmpty else { return }
        let image = context.images.create(.bpfMapData)
        for (id, contents) in contents {
            var entry = BpfmapDataEntry()
            entry.mapID = id
            entry.count = contents.count
            entry.keysBytes = UInt32(contents.keys.count)
            entry.valuesBytes = UInt32(contents.values.count)
            try image.append(entry)
            try image.append(raw: contents.keys)
            try image.append(raw: contents.values)
        }
        try image.finish()
    }
}

/// Restore: where the image has what maps hold.
final class SavedBPFMaps {
    private var entries: [UInt32: (entry: BpfmapDataEntry, offset: Int)] = [:]

    static func of(_ context: RestoreContext) -> SavedBPFMaps { context.state(SavedBPFMaps.self) { SavedBPFMaps() } }

    func load(_ context: RestoreContext) throws(Failure) {
        guard context.images.has(.bpfMapData) else { return }
        let reader = try context.images.open(.bpfMapData)
        while let entry = try reader.next(BpfmapDataEntry.self) {
            entries[entry.mapID] = (entry, reader.offset)
            try reader.skip(Int(entry.keysBytes) + Int(entry.valuesBytes))
        }
    }

    func contents(of map: UInt32, _ context: RestoreContext) throws(Failure) -> BPFMapContents? {
        guard let (entry, offset) = entries[map] else { return nil }
        let reader = try context.images.open(.bpfMapData)
        try reader.skip(offset - reader.offset)
        return BPFMapContents(
            count: entry.count, keys: try reader.read(Int(entry.keysBytes)),
            values: try reader.read(Int(entry.valuesBytes)))
    }
}
