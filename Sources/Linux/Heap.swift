internal import CLinux

/// The C library's heap.
public enum Heap {
    /// Gets memory from the kernel now, so that the next allocations of this thread up to this size cause no page faults, and
    /// keeps what is freed.
    public static func reserve(_ bytes: Int) {
        keep(bytes)
        reserveHere(bytes)
    }

    /// Keeps what is freed, for all threads. Called while there is only one.
    ///
    /// - Parameter bytes: what will be reserved at once.
    public static func keep(_ bytes: Int) {
        mallopt(M_TRIM_THRESHOLD, Int32.max)
        mallopt(M_MMAP_THRESHOLD, Int32(clamping: 2 * bytes))
        mallopt(M_TOP_PAD, Int32(clamping: bytes / 2))
    }

    /// Gets memory for this thread, which has a heap of its own that would grow by a page at a time. `keep` comes first.
    public static func reserveHere(_ bytes: Int) {
        guard let block = unsafe malloc(bytes) else { return }
        let first = (Int(bitPattern: block) + 4095) & ~4095
        let length = (Int(bitPattern: block) + bytes - first) & ~4095
        // MADV_POPULATE_WRITE: one call costs a tenth of a fault for each page.
        _ = try? systemCall(.madvise, first, length, 23)
        unsafe free(block)
    }
}
