internal import Diagnostics
internal import Linux

/// The functions of a vdso, by its dynamic symbol table. The bytes may come from an image, so nothing in them is
/// trusted.
struct VdsoFunctions {
    /// How many bytes behind the vdso's first one each function begins.
    private(set) var offsets: [String: Int] = [:]
    private let bytes: [UInt8]

    /// Largest vdso that is looked at, and the longest name of a function in it.
    static let mostBytes = 1 << 18, longestName = 128

    /// Parses the memory of a vdso: an ELF file as the kernel maps it.
    init(_ bytes: [UInt8]) throws(Failure) {
        self.bytes = bytes
        guard bytes.count <= VdsoFunctions.mostBytes else { throw VdsoFunctions.damaged("is too large") }
        // EI_MAG, ELFCLASS64, ELFDATA2LSB, EV_CURRENT
        guard bytes.starts(with: [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]), number(UInt16.self, 18) == Jump.machine,
            let headers = place(number(UInt64.self, 32)), number(UInt16.self, 54) == 56,
            let count = number(UInt16.self, 56)
        else { throw VdsoFunctions.damaged("is no ELF file of this architecture") }
        // Where it would like to be; addresses in it count from there.
        var base: UInt64?
        var dynamic: (start: Int, length: UInt64)?
        for index in 0..<Int(count) {
            let header = headers + index * 56
            guard let type = number(UInt32.self, header), let offset = number(UInt64.self, header + 8),
                let address = number(UInt64.self, header + 16), let length = number(UInt64.self, header + 32)
            else { throw VdsoFunctions.damaged("is truncated") }
            if type == 1, base == nil { base = address &- offset }  // PT_LOAD
            if type == 2, let start = place(offset) { dynamic = (start, length) }  // PT_DYNAMIC
        }
        guard let base, let dynamic else { throw VdsoFunctions.damaged("has no dynamic section") }
        let tags = tags(dynamic.start, dynamic.length)
        // DT_SYMTAB, DT_STRTAB, DT_STRSZ, DT_SYMENT
        guard let table = place(tags[6].map { $0 &- base }), let names = place(tags[5].map { $0 &- base }),
            let namesLength = place(tags[10]), namesLength <= bytes.count - names, tags[11] ?? 24 == 24
        else { throw VdsoFunctions.damaged("has no symbol table") }
        // DT_HASH, DT_GNU_HASH
        guard
            let symbols = place(tags[4].map { $0 &- base }).flatMap({ number(UInt32.self, $0 + 4).map(Int.init) })
                ?? place(tags[0x6fff_fef5].map { $0 &- base }).flatMap({ symbolCount(hash: $0) }),
            symbols <= (bytes.count - table) / 24
        else { throw VdsoFunctions.damaged("does not tell how many symbols it has") }
        for index in 0..<symbols {
            let symbol = table + index * 24
            // STT_FUNC, defined in a section
            guard bytes[symbol + 4] & 0xf == 2, number(UInt16.self, symbol + 6) != 0,
                let offset = place(number(UInt64.self, symbol + 8).map { $0 &- base }),
                let start = number(UInt32.self, symbol).map(Int.init), start < namesLength
            else { continue }
            let name = bytes[(names + start)..<(names + namesLength)].prefix(VdsoFunctions.longestName + 1)
            guard let end = name.firstIndex(of: 0), end > name.startIndex else { continue }
            offsets[String(decoding: name[..<end], as: UTF8.self)] = offset
        }
    }

    private static func damaged(_ how: String) -> Failure { Failure(.corruptImage, "the vdso \(how)") }

    private func number<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type, _ offset: Int) -> T? {
        bytes.load(type, at: offset)
    }

    /// An offset that lies in the file.
    private func place(_ offset: UInt64?) -> Int? {
        guard let offset, offset < UInt64(bytes.count) else { return nil }
        return Int(offset)
    }

    /// The first value of each tag of the dynamic section.
    private func tags(_ start: Int, _ length: UInt64) -> [UInt64: UInt64] {
        var tags: [UInt64: UInt64] = [:]
        for index in 0..<(Int(min(length, UInt64(bytes.count - start))) / 16) {
            guard let tag = number(UInt64.self, start + index * 16), tag != 0,  // DT_NULL
                let value = number(UInt64.self, start + index * 16 + 8)
            else { break }
            if tags[tag] == nil { tags[tag] = value }
        }
        return tags
    }

    /// How many symbols a GNU hash table covers: its chains are walked from the highest bucket to their end.
    private func symbolCount(hash: Int) -> Int? {
        guard let buckets = number(UInt32.self, hash), let first = number(UInt32.self, hash + 4),
            let filter = number(UInt32.self, hash + 8)
        else { return nil }
        let start = UInt64(hash) + 16 + UInt64(filter) * 8
        var last: UInt64 = 0
        for index in 0..<UInt64(buckets) {
            guard let place = place(start + index * 4), let symbol = number(UInt32.self, place) else { return nil }
            last = max(last, UInt64(symbol))
        }
        if last < first { return Int(first) }
        let chain = start + UInt64(buckets) * 4
        while true {
            guard let place = place(chain + (last - UInt64(first)) * 4), let link = number(UInt32.self, place) else {
                return nil
            }
            last += 1
            if link & 1 == 1 { return Int(last) }
        }
    }
}
