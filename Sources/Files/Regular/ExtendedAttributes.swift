internal import ImageFormat
internal import ImageMessages
internal import Linux

/// Extended attributes of unlinked files, access control lists among them.
enum ExtendedAttributes {
    /// Most bytes of all names, and of a value, that the kernel takes.
    private static let largest = 1 << 16

    /// Reads those of an open file. A file system without them has none.
    static func read(of file: Int32) -> [BrumateAttributeEntry] {
        let path = "/proc/self/fd/\(file)"
        var names = [UInt8](repeating: 0, count: largest)
        let length = try? names.withAddress { (address, count) throws(SystemCallError) in
            try withCString(path) { (path) throws(SystemCallError) in try systemCall(.listxattr, path, address, count) }
        }
        var found: [BrumateAttributeEntry] = []
        var value = [UInt8](repeating: 0, count: length ?? 0 > 0 ? largest : 0)
        for name in names[..<(length ?? 0)].split(separator: 0) {
            let got = try? value.withAddress { (address, count) throws(SystemCallError) in
                try withCString(path) { (path) throws(SystemCallError) in
                    try withCString(Array(name)) { (name) throws(SystemCallError) in
                        try systemCall(.getxattr, path, name, address, count)
                    }
                }
            }
            guard let got else { continue }
            var entry = BrumateAttributeEntry()
            (entry.name, entry.value) = (imageBytes(name), imageBytes(value[..<got]))
            found.append(entry)
        }
        return found
    }

    /// Sets one on the file at a path, which may be a link in /proc.
    static func set(_ entry: BrumateAttributeEntry, at path: [UInt8]) throws(SystemCallError) {
        let value = Array(entry.value)
        try withCString(path) { (path) throws(SystemCallError) in
            try withCString(Array(entry.name)) { (name) throws(SystemCallError) in
                try value.withConstantAddress { (address, count) throws(SystemCallError) in
                    try systemCall(.setxattr, path, name, address, count, 0)
                }
            }
        }
    }
}
