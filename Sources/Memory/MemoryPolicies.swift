internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// NUMA policies of single mappings. Only the process itself can ask for them.
struct MemoryPolicies {
    /// Answers by the start of a mapping: mode, and behind it the nodes.
    private var asked: [Address: (slot: Batch.Slot, place: Batch.Buffer)] = [:]

    /// From this many mappings on those that have a policy are looked for first, which costs a walk through all pages.
    private static let many = 1024
    private static let ofAddress = 2  // MPOL_F_ADDR

    /// Bytes of a mask of all nodes that this kernel could have.
    private static let maskSize: Int = {
        let text = (try? readWholeFile("/sys/devices/system/node/possible")) ?? []
        let last = text.split { $0 < 0x30 || $0 > 0x39 }.last.flatMap { Int(String(decoding: $0, as: UTF8.self)) }
        return ((last ?? 1023) / 64 + 1) * 8
    }()

    init(_ process: DumpedProcess, _ batch: inout Batch) throws(Failure) {
        var mappings = process.mappings.filter { !$0.isOfKernel }
        if mappings.count > MemoryPolicies.many {
            let starts = try MemoryPolicies.starts(of: process.id)
            mappings = Array(mappings.filter { starts.contains($0.range.start) }.prefix(MemoryPolicies.many))
        }
        for mapping in mappings {
            let place = batch.reserve(8 + MemoryPolicies.maskSize)
            let slot = batch.add(
                .get_mempolicy, .buffer(place), .buffer(place, plus: 8), .value(MemoryPolicies.maskSize * 8),
                .address(mapping.range.start), .value(MemoryPolicies.ofAddress),
                doing: "read the memory policy of a mapping", mayFail: true)
            asked[mapping.range.start] = (slot, place)
        }
    }

    /// Where mappings with a policy of their own begin.
    private static func starts(of task: TaskID) throws(Failure) -> Set<Address> {
        guard let text = try? procText(of: task, "numa_maps") else { return [] }
        var starts: Set<Address> = []
        for line in text.split(separator: 0x0a) {
            let words = line.split(separator: 0x20, maxSplits: 2)
            guard words.count > 1, !words[1].elementsEqual("default".utf8),
                let start = UInt64(String(decoding: words[0], as: UTF8.self), radix: 16)
            else { continue }
            starts.insert(Address(start))
        }
        return starts
    }

    /// Puts the policy of a mapping into its message, if it has one.
    func describe(_ mapping: VMA, _ results: Results, _ entry: inout VmaEntry) {
        guard let (slot, place) = asked[mapping.range.start], results.success(slot) != nil else { return }
        let mode = results.value(UInt32.self, place)
        guard mode != 0 else { return }
        entry.mempolicyMode = mode
        entry.mempolicyNodes = imageBytes(results.bytes(place).dropFirst(8))
    }
}
