public import Diagnostics
public import Linux

/// The file that the kernel puts behind anonymous shared memory.
public enum SharedMemoryFile {
    /// Creates one like `mmap(MAP_SHARED | MAP_ANONYMOUS)` does, which shows up as `/dev/zero (deleted)`.
    ///
    /// - Parameter hugePages: the size of its pages in bytes, if they are huge.
    public static func create(size: UInt64, hugePages: UInt64? = nil) throws(Failure) -> Descriptor {
        try attempt("create shared memory of \(size) bytes") { () throws(SystemCallError) in
            let unit = hugePages ?? pageSize
            let length = max(Int((size + unit - 1) / unit * unit), Int(unit))
            // SHARED | ANONYMOUS | NORESERVE, and HUGETLB with the logarithm of the size.
            let huge = hugePages.map { 0x40000 | $0.trailingZeroBitCount << 26 } ?? 0
            let mapping = try Mapping(length: length, protection: 3, flags: 0x1 | 0x20 | huge)
            let start = Address(UInt64(mapping.address))
            return try openFile(
                "/proc/self/map_files/\(AddressRange(start: start, end: start + UInt64(length)))", .readWrite)
        }
    }
}
