internal import Linux
internal import Pages

/// Where a restore lets the kernel use transparent huge pages: what it would do as well if the process wrote its memory anew.
enum HugeRuns {
    /// Bytes of a huge page.
    static let size: UInt64 = 2 << 20

    /// When the kernel uses huge pages: where a process asks for them, or everywhere, or never.
    private static let policy: String = {
        let text = (try? readWholeFile("/sys/kernel/mm/transparent_hugepage/enabled")) ?? []
        let chosen = text.split(separator: 0x5b).dropFirst().first?.split(separator: 0x5d).first ?? []
        return String(decoding: chosen, as: UTF8.self)
    }()

    /// Whether the memory has to be given the advice first.
    static var needsAdvice: Bool { policy == "madvise" }

    /// Cuts the pages of an area into runs of whole huge pages, and the rest: a huge page for less than it holds would take
    /// memory that the process had not.
    static func cut(_ pieces: [PagePiece], in area: Area) -> (huge: [PagePiece], rest: [PagePiece]) {
        guard area.range.length >= size, policy == "always" || area.wantsHugePages,
            policy == "always" || policy == "madvise", !area.refusesHugePages
        else { return ([], pieces) }
        var (huge, rest): ([PagePiece], [PagePiece]) = ([], [])
        for piece in pieces {
            let start = Address((piece.range.start.rawValue + size - 1) / size * size)
            let end = Address(piece.range.end.rawValue / size * size)
            guard start < end else {
                rest.append(piece)
                continue
            }
            if piece.range.start < start {
                rest.append(piece.part(in: AddressRange(start: piece.range.start, end: start)))
            }
            huge.append(piece.part(in: AddressRange(start: start, end: end)))
            if end < piece.range.end { rest.append(piece.part(in: AddressRange(start: end, end: piece.range.end))) }
        }
        return (huge, rest)
    }
}

extension Area {
    /// Whether the process asked for huge pages there (MADV_HUGEPAGE), or for none (MADV_NOHUGEPAGE).
    var wantsHugePages: Bool { advice >> 14 & 1 == 1 }
    var refusesHugePages: Bool { advice >> 15 & 1 == 1 }
}
