internal import CLinux
internal import Linux
internal import Procfs
internal import SystemPackage

/// Probes of memory management.
enum MemoryProbe {
    private static let page = Int(pageSize)
    /// `MAP_PRIVATE | MAP_ANONYMOUS`.
    private static let privateMemory = 0x22

    /// An anonymous file in memory.
    static func memoryFile(_ flags: Int = 1) throws(SystemCallError) -> Descriptor {
        Descriptor(
            owning: Int32(
                try withPath("brumate-probe") { (name) throws(SystemCallError) in
                    try systemCall(.memfd_create, name, flags)
                }))
    }

    /// Whether memory files can be huge (`MFD_HUGETLB`).
    static func hasHugeMemoryFiles() throws(SystemCallError) -> Bool {
        _ = try memoryFile(1 | 4)
        return true
    }

    /// Whether all memory fields can be set at once (`PR_SET_MM_MAP_SIZE` answers with the size of the structure).
    static func setsMemoryMap() throws(SystemCallError) -> Bool {
        var size: UInt32 = 0
        try withAddress(of: &size) { (address) throws(SystemCallError) in try systemCall(.prctl, 35, 15, address) }
        return size > 0
    }

    /// Whether a vdso can be mapped: we have one, so the kernel must refuse a second, not the request.
    static func mapsVDSO(bits: Int) throws(SystemCallError) -> Bool {
        do {
            try systemCall(.arch_prctl, bits == 64 ? 0x2003 : 0x2002, 0)
            return true
        } catch {
            if error.errno == .EEXIST { return true }
            throw error
        }
    }

    /// The features of userfaultfd (`UFFDIO_API`).
    static func userfaultFeatures() throws(SystemCallError) -> UInt64 {
        let file = Descriptor(owning: Int32(try systemCall(.userfaultfd, 0o2000000)))
        let number = Int(file.number)
        var question = clinux_uffdio_api(api: 0xaa, features: 0, ioctls: 0)
        try withAddress(of: &question) { (address) throws(SystemCallError) in
            try systemCall(.ioctl, number, 0xc018_aa3f, address)
        }
        return question.features
    }

    /// Whether userfaultfd tells of fork, remap, remove and unmap.
    static func tellsUserfaultEvents() throws(SystemCallError) -> Bool {
        let events: UInt64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
        return try userfaultFeatures() & events == events
    }

    /// Whether dirty pages can be tracked: asynchronous write protection, also of untouched pages, and PAGEMAP_SCAN.
    static func tracksDirtyPages() throws(SystemCallError) -> Bool {
        let needed: UInt64 = 1 << 15 | 1 << 13
        guard try userfaultFeatures() & needed == needed else { return false }
        return try scansPagemap()
    }

    /// Whether PAGEMAP_SCAN exists.
    static func scansPagemap() throws(SystemCallError) -> Bool {
        let memory = try Mapping(length: page, flags: privateMemory)
        memory.store(UInt8(1), at: 0)
        // PAGE_IS_PRESENT.
        return try scan(memory, categories: 1 << 3)
    }

    /// Whether PAGEMAP_SCAN finds guard pages (`MADV_GUARD_INSTALL`, `PAGE_IS_GUARD`).
    static func scansGuardPages() throws(SystemCallError) -> Bool {
        let memory = try Mapping(length: page, flags: privateMemory)
        try systemCall(.madvise, memory.address, page, 102)
        return try scan(memory, categories: 1 << 8)
    }

    /// Whether a scan finds a page of these categories in a mapping of one page.
    private static func scan(_ memory: borrowing Mapping, categories: UInt64) throws(SystemCallError) -> Bool {
        let file = try openFile("/proc/self/pagemap")
        let number = Int(file.number)
        var region = clinux_page_region()
        var question = clinux_pm_scan_arg()
        question.size = UInt64(MemoryLayout<clinux_pm_scan_arg>.size)
        question.start = UInt64(memory.address)
        question.end = UInt64(memory.address + memory.length)
        question.vec_len = 1
        question.category_mask = categories
        question.return_mask = categories
        return try withAddress(of: &region) { (vector) throws(SystemCallError) in
            question.vec = UInt64(vector)
            return try withAddress(of: &question) { (address) throws(SystemCallError) in
                try systemCall(.ioctl, number, 0xc060_6610, address) == 1
            }
        }
    }

    /// Whether the ring of an AIO context can be moved, and the context with it.
    static func movesAIORings() throws(SystemCallError) -> Bool {
        var context: UInt64 = 0
        try withAddress(of: &context) { (address) throws(SystemCallError) in try systemCall(.io_setup, 16, address) }
        var current = Int(context)
        defer { _ = try? systemCall(.io_destroy, current) }
        guard let length = try lengthOfMapping(at: context) else { return false }
        let place = try Mapping(length: length, flags: privateMemory)
        // MREMAP_MAYMOVE | MREMAP_FIXED. The ring takes the place of the mapping that `place` owns; destroying the
        // context unmaps it, and the owner's own unmapping then finds nothing.
        current = try systemCall(.mremap, current, length, length, 3, place.address)
        return try systemCall(.io_getevents, current, 0, 1, 0, 0) == 0
    }

    private static func lengthOfMapping(at start: UInt64) throws(SystemCallError) -> Int? {
        let mappings = VMA.parse(try readWholeFile("/proc/self/maps"))
        return mappings.first { $0.range.start.rawValue == start }.map { Int($0.range.length) }
    }
}
