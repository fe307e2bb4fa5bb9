internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Pages
internal import Procfs
internal import Remote

/// How a process gets a vdso that works with the code that was running when it was dumped.
///
/// If the image's vdso is this kernel's, byte for byte, the kernel's own mappings move to where the image had them. If
/// not, the image's vdso stays at its place as ordinary memory, since libraries know the addresses of its functions.
/// Each of them begins with a jump to the kernel's function of the same name. The kernel's mappings lie in a hole.
///
/// A thread that was stopped within a function of the old vdso goes on there. So does a function that this kernel does
/// not have. Their data, the old [vvar], is mapped as zeros, which mean to them: no clock source, no random numbers;
/// they make the system call. Only a coarse clock has no such way out: it reads as zero, once, if the thread was
/// stopped right before reading it.
struct VdsoPlan {
    /// Where the kernel's mappings go.
    enum Place {
        /// Nowhere: the process has none.
        case none
        /// To where the image has them.
        case image(variables: AddressRange?, code: AddressRange?)
        /// To any hole.
        case hole
    }
    /// Where the kernel's mappings go.
    private(set) var place = Place.none
    /// Jumps to write, each to a function by its offset in the kernel's vdso.
    private(set) var jumps: [(at: Address, to: Int)] = []

    /// Decides for the processes of one address space. An old vdso that stays becomes an ordinary area in `areas`.
    init(
        _ areas: inout [Area], _ pieces: [PagePiece], threads: () -> [CoreEntry], _ context: RestoreContext
    ) throws(Failure) {
        let variables = areas.indices.filter { areas[$0].status.contains(.vvar) }
        let codes = areas.indices.filter { areas[$0].status.contains(.vdso) }
        guard variables.count <= 1, codes.count <= 1 else {
            throw Failure(
                .unsupported, "the image has \(codes.count) vdsos and \(variables.count) mappings of their data")
        }
        let data = variables.first.map { areas[$0].range }
        guard let index = codes.first else {
            if let data { place = .image(variables: data, code: nil) }
            return
        }
        guard let own = OwnVdso.image else {
            throw Failure(.unsupported, "this kernel has no vdso, and the image has one", advice: "Boot without vdso=0")
        }
        let code = areas[index].range
        let contents = try VdsoPlan.contents(of: code, pieces)
        if !context.faults.lacks(.foreignVdso), contents.starts(with: own), VdsoPlan.isLaidOutAlike(data, code) {
            place = .image(variables: data, code: code)
            return
        }
        place = .hole
        context.log.info("the image's vdso at \(code) is not this kernel's: its functions jump there")
        let functions = try VdsoFunctions(own).offsets
        let threads = threads()
        let isReplaced = try redirectEarlier(into: code, areas, pieces, to: functions)
        // Nothing knows the way into this one but the jumps, which now lead elsewhere, and what is being executed.
        if isReplaced, try !VdsoPlan.mayUse(code, threads, areas, pieces) { return }
        jumps += try VdsoPlan.jumps(from: code, contents, to: functions)
        try VdsoPlan.check(threads, in: code, jumps, context)
        for index in variables + codes { areas[index].becomeOrdinary() }
    }

    /// The bytes of a mapping, all of whose pages must be in the image.
    private static func contents(of range: AddressRange, _ pieces: [PagePiece]) throws(Failure) -> [UInt8] {
        guard range.length <= VdsoFunctions.mostBytes else {
            throw Failure(.corruptImage, "the vdso at \(range) is too large")
        }
        var bytes: [UInt8] = []
        for piece in pieces where piece.range.overlaps(range) {
            let part = piece.part(in: range)
            guard part.range.start == range.start + UInt64(bytes.count) else { break }
            bytes += try part.bytes()
        }
        guard bytes.count == range.length else {
            throw Failure(.corruptImage, "the image lacks pages of the vdso at \(range)")
        }
        return bytes
    }

    /// Whether the kernel's mappings fit the places of the image's: the code finds its data by distance.
    private static func isLaidOutAlike(_ data: AddressRange?, _ code: AddressRange) -> Bool {
        guard let own = OwnVdso.code, own.length == code.length else { return false }
        let ownData = OwnVdso.mappings.map(\.range).filter { $0 != own }
        guard let data, let start = ownData.first?.start else { return data == nil }
        return data.length == ownData.reduce(0) { $0 + $1.length }
            && code.start.rawValue &- data.start.rawValue == own.start.rawValue &- start.rawValue
    }

    /// The jumps that turn an old vdso into a door to the kernel's.
    private static func jumps(
        from range: AddressRange, _ contents: [UInt8], to functions: [String: Int]
    ) throws(Failure) -> [(at: Address, to: Int)] {
        let old = try during(.mapping(range)) { () throws(Failure) in try VdsoFunctions(contents).offsets }
        var targets: [Int: Int] = [:]
        for (name, offset) in old { if let target = functions[name] { targets[offset] = target } }
        guard !targets.isEmpty else {
            throw Failure(.unsupported, "the image's vdso has no function that this kernel's has, too")
        }
        let starts = Set(old.values).sorted()
        for (start, next) in zip(starts, starts.dropFirst() + [contents.count])
        where targets[start] != nil && next - start < Jump.length {
            throw Failure(.unsupported, "a function of the image's vdso is too short for a jump: \(next - start) bytes")
        }
        return targets.map { (range.start + UInt64($0.key), $0.value) }
    }

    /// Leads the jumps of an earlier restore, which went into the vdso at `code`, to the kernel's. Returns whether
    /// there were any.
    private mutating func redirectEarlier(
        into code: AddressRange, _ areas: [Area], _ pieces: [PagePiece], to functions: [String: Int]
    ) throws(Failure) -> Bool {
        for area in areas where area.isPrivate && !area.isFile && area.protection & 5 == 5 {
            guard let contents = try? VdsoPlan.contents(of: area.range, pieces),
                let old = try? VdsoFunctions(contents).offsets
            else { continue }
            for (name, offset) in old {
                guard let target = Jump.target(in: contents, at: offset), code.contains(target) else { continue }
                if let to = functions[name] { jumps.append((area.range.start + UInt64(offset), to)) }
            }
        }
        return !jumps.isEmpty
    }

    /// How far a stack is searched for the registers that a signal handler will give back.
    private static let searchedStack: UInt64 = 1 << 20

    /// Whether a thread may be executing code of a mapping: stopped in it, or in a handler of a signal that came there.
    private static func mayUse(
        _ code: AddressRange, _ threads: [CoreEntry], _ areas: [Area], _ pieces: [PagePiece]
    ) throws(Failure) -> Bool {
        for thread in threads {
            if thread.registers.contains(where: { code.contains(Address($0)) }) { return true }
            let pointer = Address(thread.stackPointer.rawValue & ~7)
            guard let stack = areas.first(where: { $0.range.contains(pointer) })?.range else { continue }
            let end = pointer + min(stack.end.rawValue - pointer.rawValue, searchedStack)
            let searched = AddressRange(start: pointer, end: end)
            for piece in pieces where piece.range.overlaps(searched) {
                let bytes = try piece.part(in: searched).bytes()
                for at in stride(from: 0, to: bytes.count, by: 8) {
                    if let word = bytes.load(UInt64.self, at: at), code.contains(Address(word)) { return true }
                }
            }
        }
        return false
    }

    /// What happens to threads that were stopped within an old vdso.
    private static func check(
        _ threads: [CoreEntry], in code: AddressRange, _ jumps: [(at: Address, to: Int)], _ context: RestoreContext
    ) throws(Failure) {
        for thread in threads where code.contains(thread.instruction) {
            let at = thread.instruction
            if jumps.contains(where: { $0.at == at }) { continue }
            guard !jumps.contains(where: { AddressRange(start: $0.at, end: $0.at + UInt64(Jump.length)).contains(at) })
            else {
                throw Failure(
                    .unsupported,
                    "a thread was stopped at \(at), in the first instructions of a function of the vdso, which this "
                        + "kernel's must replace",
                    advice: "Restore on the kernel version that the image was made on, or dump again")
            }
            context.log.warning("a thread was stopped at \(at), within the old vdso, and goes on there")
        }
    }
}

extension Area {
    /// Turns what the kernel made into memory that holds what the image says.
    fileprivate mutating func becomeOrdinary() {
        status = [.regular, .anonymousPrivate]
        flags = MapFlags.private | MapFlags.anonymous
        advice = 0
    }
}
