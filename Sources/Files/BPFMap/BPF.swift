internal import Diagnostics
internal import ImageMessages
internal import Linux

/// Keys and values of a map, one after another.
struct BPFMapContents {
    var count: UInt32 = 0
    var keys: [UInt8] = []
    var values: [UInt8] = []
}

/// What the kernel tells of a map (struct bpf_map_info).
struct BPFMapFacts {
    var type: UInt32, id: UInt32, keySize: UInt32, valueSize: UInt32, maxEntries: UInt32, flags: UInt32
    var name: [UInt8], interface: UInt32, usesBTF: Bool, extra: UInt64

    /// Bytes of a value as the calls take it: maps with a value for each CPU give all of them.
    func valueStride() throws(Failure) -> Int { try BPF.valueStride(type, valueSize) }
}

/// The calls of `bpf(2)` on maps.
enum BPF {
    /// Commands: BPF_MAP_CREATE and so on.
    private enum Command: Int {
        case create = 0, lookUp = 1, getFDByID = 14, getInfoByFD = 15, freeze = 22, lookUpBatch = 24, updateBatch = 26
        case getNextProgramID = 11, getProgramByID = 13
    }

    /// Calls bpf(2) with an attribute made of 32-bit words, 64-bit values being two of them.
    @discardableResult
    private static func call(_ command: Command, _ words: inout [UInt32]) throws(SystemCallError) -> Int {
        try words.withAddress { (address, count) throws(SystemCallError) in
            try systemCall(.bpf, command.rawValue, address, count)
        }
    }

    private static func halves(_ value: Int) -> [UInt32] {
        [UInt32(truncatingIfNeeded: value), UInt32(truncatingIfNeeded: value >> 32)]
    }

    // MARK: facts

    static func facts(of map: Int32) throws(Failure) -> BPFMapFacts {
        var room = [UInt8](repeating: 0, count: 128)
        try information(of: map, &room)
        func word(_ at: Int) -> UInt32 { room.load(UInt32.self, at: at) ?? 0 }
        return BPFMapFacts(
            type: word(0), id: word(4), keySize: word(8), valueSize: word(12), maxEntries: word(16), flags: word(20),
            name: Array(room[24..<40].prefix { $0 != 0 }), interface: word(40), usesBTF: word(68) | word(72) != 0,
            extra: room.load(UInt64.self, at: 80) ?? 0)
    }

    private static func information(of object: Int32, _ room: inout [UInt8]) throws(Failure) {
        try attempt("ask about a BPF object") { () throws(SystemCallError) in
            try room.withAddress { (address, count) throws(SystemCallError) in
                var words = [UInt32(bitPattern: object), UInt32(count)] + halves(address)
                try call(.getInfoByFD, &words)
            }
        }
    }

    /// Every program of the kernel with the ids of the maps that it uses.
    static func programs() throws(Failure) -> [(id: UInt32, maps: [UInt32])] {
        var found: [(id: UInt32, maps: [UInt32])] = []
        var words: [UInt32] = [0, 0, 0]
        while true {
            do throws(SystemCallError) { try call(.getNextProgramID, &words) } catch {
                if error.errno.rawValue == 2 { return found }  // ENOENT
                throw Failure(.denied, "can't list BPF programs", cause: error)
            }
            let id = words[1]
            words = [id, 0, 0]
            var by = [id, 0, 0]
            guard let number = try? call(.getProgramByID, &by) else { continue }
            let program = Descriptor(owning: Int32(number))
            found.append((id, try maps(of: program.number)))
        }
    }

    /// The maps of a program: nr_map_ids and map_ids of struct bpf_prog_info.
    private static func maps(of program: Int32) throws(Failure) -> [UInt32] {
        var room = [UInt8](repeating: 0, count: 104)
        try information(of: program, &room)
        let count = Int(room.load(UInt32.self, at: 52) ?? 0)
        guard count > 0 else { return [] }
        var ids = [UInt32](repeating: 0, count: count)
        var again = [UInt8](repeating: 0, count: 104)
        again.replaceSubrange(52..<56, with: [UInt8](bytesOf: UInt32(count)))
        let outcome = Result { () throws(SystemCallError) in
            try ids.withAddress { (address, _) throws(SystemCallError) in
                again.replaceSubrange(56..<64, with: [UInt8](bytesOf: UInt64(address)))
                try again.withAddress { (room, size) throws(SystemCallError) in
                    var words = [UInt32(bitPattern: program), UInt32(size)] + halves(room)
                    try call(.getInfoByFD, &words)
                }
            }
        }
        try attempt("ask about a BPF program") { () throws(SystemCallError) in _ = try outcome.get() }
        return ids
    }

    /// Bytes of a value as the calls take it.
    static func valueStride(_ type: UInt32, _ size: UInt32) throws(Failure) -> Int {
        guard [5, 6, 10].contains(type) else { return Int(size) }  // percpu_hash, percpu_array, lru_percpu_hash
        return (Int(size) + 7) / 8 * 8 * (try possibleProcessors())
    }

    /// How many CPUs the machine might have.
    private static func possibleProcessors() throws(Failure) -> Int {
        let text = try attempt("count the CPUs") { () throws(SystemCallError) in
            try readWholeFile("/sys/devices/system/cpu/possible")
        }
        let line = String(decoding: text, as: UTF8.self).filter { !$0.isWhitespace }
        let last = line.split(separator: ",").last?.split(separator: "-").last
        guard let last, let highest = Int(last), highest < 1 << 16 else {
            throw Failure(.kernelTooOld, "the kernel does not tell how many CPUs there may be")
        }
        return highest + 1
    }

    // MARK: making

    static func create(_ entry: BpfmapFileEntry) throws(Failure) -> Descriptor {
        // map_type … map_flags, inner_map_fd, numa_node, map_name[16], map_ifindex, btf_*, map_extra
        var name = Array(entry.mapName.prefix(15))
        name += [UInt8](repeating: 0, count: 16 - name.count)
        var words: [UInt32] = [
            entry.mapType, entry.keySize, entry.valueSize, entry.maxEntries, entry.mapFlags, 0, 0,
        ]
        words += (0..<4).map { name.load(UInt32.self, at: 4 * $0) ?? 0 }
        words += [entry.ifindex, 0, 0, 0, 0] + halves(Int(bitPattern: UInt(entry.mapExtra)))
        return try attempt("create a BPF map") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try call(.create, &words)))
        }
    }

    /// Another description of a map, for reading and writing (0 to 2, as in `open(2)`).
    static func open(_ id: UInt32, access: UInt32 = 2) throws(Failure) -> Descriptor {
        // BPF_F_RDONLY, BPF_F_WRONLY
        var words = [id, 0, access == 0 ? 0x8 : access == 1 ? 0x10 : 0]
        return try attempt("open a BPF map") { () throws(SystemCallError) in
            Descriptor(owning: Int32(try call(.getFDByID, &words)))
        }
    }

    static func freeze(_ map: Int32) throws(Failure) {
        var words = [UInt32(bitPattern: map)]
        try attempt("freeze a BPF map") { () throws(SystemCallError) in try call(.freeze, &words) }
    }

    // MARK: contents

    /// Whether a queue or stack holds nothing.
    static func isEmpty(_ map: Int32, valueSize: UInt32) throws(Failure) -> Bool {
        var value = [UInt8](repeating: 0, count: Int(valueSize))
        do throws(SystemCallError) {
            try value.withAddress { (value, _) throws(SystemCallError) in
                var words = [UInt32(bitPattern: map), 0, 0, 0] + halves(value) + [0, 0]
                try call(.lookUp, &words)
            }
            return false
        } catch {
            if error.errno.rawValue == 2 { return true }  // ENOENT
            throw Failure(.denied, "can't look into a BPF queue", cause: error)
        }
    }

    /// Reads all keys and values.
    static func contents(of map: Int32, _ facts: BPFMapFacts) throws(Failure) -> BPFMapContents {
        let stride = try facts.valueStride()
        let keySize = Int(facts.keySize)
        var contents = BPFMapContents()
        // Where the kernel goes on: a key, or the number of a bucket.
        var cursor = [UInt8](repeating: 0, count: max(keySize, 8))
        var isFirst = true
        var part = min(Int(facts.maxEntries), max(1, (4 << 20) / max(keySize + stride, 1)))
        while true {
            var keys = [UInt8](repeating: 0, count: part * keySize)
            var values = [UInt8](repeating: 0, count: part * stride)
            let from = cursor
            let answer = batch(map, isFirst ? nil : from, &cursor, &keys, &values, part)
            if let error = answer.error, error.errno.rawValue == 28, part < Int(facts.maxEntries) {
                // ENOSPC: a bucket has more.
                part = min(Int(facts.maxEntries), part * 4)
                cursor = from
                continue
            }
            contents.count += UInt32(answer.count)
            contents.keys += keys[..<(answer.count * keySize)]
            contents.values += values[..<(answer.count * stride)]
            guard contents.keys.count < 1 << 32, contents.values.count < 1 << 32 else {
                throw Failure(.unsupported, "a BPF map of more than 4 GiB does not fit the format")
            }
            if let error = answer.error {
                if error.errno.rawValue == 2 { return contents }  // ENOENT: that was all
                throw Failure(.denied, "can't read a BPF map", cause: error)
            }
            isFirst = false
        }
    }

    private static func batch(
        _ map: Int32, _ from: [UInt8]?, _ cursor: inout [UInt8], _ keys: inout [UInt8], _ values: inout [UInt8],
        _ count: Int
    ) -> (count: Int, error: SystemCallError?) {
        var got = 0
        do throws(SystemCallError) {
            try cursor.withAddress { (cursor, _) throws(SystemCallError) in
                try keys.withAddress { (keys, _) throws(SystemCallError) in
                    try values.withAddress { (values, _) throws(SystemCallError) in
                        // in_batch, out_batch, keys, values, count, map_fd, elem_flags, flags. The kernel reads where
                        // it goes on before it writes where it stopped.
                        var words = halves(from == nil ? 0 : cursor) + halves(cursor) + halves(keys) + halves(values)
                        words += [UInt32(count), UInt32(bitPattern: map), 0, 0, 0, 0]
                        defer { got = min(Int(words[8]), count) }
                        try call(.lookUpBatch, &words)
                    }
                }
            }
            return (got, nil)
        } catch {
            // Only at the end are there elements besides an error.
            return (error.errno.rawValue == 2 ? got : 0, error)
        }
    }

    /// Writes keys and values into a new map.
    static func update(_ map: Int32, _ contents: BPFMapContents, _ entry: BpfmapFileEntry) throws(Failure) {
        let stride = try valueStride(entry.mapType, entry.valueSize)
        guard contents.keys.count == Int(contents.count) * Int(entry.keySize) else {
            throw Failure(.corruptImage, "the keys of a BPF map make no sense")
        }
        guard contents.values.count == Int(contents.count) * stride else {
            throw Failure(
                .conflict, "the values of a BPF map have another size than on this machine",
                advice: "Restore on a machine with as many possible CPUs")
        }
        try attempt("fill a BPF map") { () throws(SystemCallError) in
            try contents.keys.withConstantAddress { (keys, _) throws(SystemCallError) in
                try contents.values.withConstantAddress { (values, _) throws(SystemCallError) in
                    var words: [UInt32] = [0, 0, 0, 0] + halves(keys) + halves(values)
                    words += [contents.count, UInt32(bitPattern: map), 0, 0, 0, 0]
                    try call(.updateBatch, &words)
                }
            }
        }
    }
}
