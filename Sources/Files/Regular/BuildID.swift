internal import Diagnostics
internal import Linux

/// The build id of a program or library: the note `NT_GNU_BUILD_ID` of an ELF file. It tells whether a file is the one
/// that it was, where sizes and times don't.
struct BuildID: Hashable {
    /// As the linker wrote it.
    let bytes: [UInt8]

    /// Most bytes of an id, of program headers, and of a note segment that are looked at.
    private static let longest = 64, mostHeaders = 64, longestNotes = 1 << 16
    private static let headerSize = 4096

    /// Reads the id of an open file, which may be an O_PATH descriptor. Nil if the file has none.
    init?(of file: Int32) {
        guard let file = try? openFile("/proc/self/fd/\(file)") else { return nil }
        func read(_ count: Int, at offset: UInt64) -> [UInt8]? {
            guard offset < 1 << 62 else { return nil }
            var room = [UInt8](repeating: 0, count: count)
            let number = file.number
            let got = try? room.withAddress { (address, count) throws(SystemCallError) in
                try readFully(number, into: address, count: count, at: offset)
            }
            guard let got else { return nil }
            return Array(room[..<got])
        }
        guard let head = read(BuildID.headerSize, at: 0) else { return nil }
        // Most files have all that is needed in their first page.
        func part(_ count: Int, at offset: UInt64) -> [UInt8]? {
            if offset <= UInt64(head.count), UInt64(count) <= UInt64(head.count) - offset {
                return Array(head[Int(offset)..<(Int(offset) + count)])
            }
            return read(count, at: offset).flatMap { $0.count == count ? $0 : nil }
        }
        guard head.count > 64, head.starts(with: [0x7f, 0x45, 0x4c, 0x46]), head[5] == 1 else { return nil }
        let isLong = head[4] == 2
        let offset =
            isLong ? head.load(UInt64.self, at: 32) : head.load(UInt32.self, at: 28).map { UInt64($0) }
        let stride = head.load(UInt16.self, at: isLong ? 54 : 42)
        let count = head.load(UInt16.self, at: isLong ? 56 : 44)
        guard let offset, let stride, let count, stride >= (isLong ? 56 : 32), stride <= 256 else { return nil }
        for index in 0..<min(Int(count), BuildID.mostHeaders) {
            let (place, over) = offset.addingReportingOverflow(UInt64(index) * UInt64(stride))
            guard !over, let header = part(Int(stride), at: place) else { return nil }
            guard header.load(UInt32.self, at: 0) == 4 else { continue }  // PT_NOTE
            let start = isLong ? header.load(UInt64.self, at: 8) : header.load(UInt32.self, at: 4).map { UInt64($0) }
            let length = isLong ? header.load(UInt64.self, at: 32) : header.load(UInt32.self, at: 16).map { UInt64($0) }
            let alignment = isLong ? header.load(UInt64.self, at: 48) : 4
            guard let start, let length, length <= BuildID.longestNotes, let notes = part(Int(length), at: start),
                let found = BuildID.find(in: notes, alignment: alignment == 8 ? 8 : 4)
            else { continue }
            bytes = found
            return
        }
        return nil
    }

    private static func find(in notes: [UInt8], alignment: Int) -> [UInt8]? {
        var at = 0
        func aligned(_ count: Int) -> Int { (count + alignment - 1) & ~(alignment - 1) }
        while let nameSize = notes.load(UInt32.self, at: at), let size = notes.load(UInt32.self, at: at + 4),
            let type = notes.load(UInt32.self, at: at + 8)
        {
            let name = at + 12
            let contents = at + aligned(12 + Int(nameSize))
            let end = contents + Int(size)
            guard end <= notes.count else { return nil }
            if type == 3, nameSize == 4, notes[name..<(name + 4)].elementsEqual("GNU\0".utf8) {
                return size > 0 && size <= longest ? Array(notes[contents..<end]) : nil
            }
            at = contents + aligned(Int(size))
        }
        return nil
    }

    /// As the image holds it: words, the last one filled up with zeros.
    var words: [UInt32] {
        let padded = bytes + [UInt8](repeating: 0, count: (4 - bytes.count % 4) % 4)
        return stride(from: 0, to: padded.count, by: 4).map { padded.load(UInt32.self, at: $0) ?? 0 }
    }

    /// In hexadecimal, as tools print it.
    static func text(_ words: [UInt32]) -> String {
        words.flatMap { [UInt8](bytesOf: $0) }.map { $0 < 16 ? "0" + String($0, radix: 16) : String($0, radix: 16) }
            .joined()
    }
}
