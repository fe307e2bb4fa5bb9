internal import CLinux
public import Diagnostics
public import Linux

/// Finds the pages of a task that only the task's memory holds (`PAGEMAP_SCAN`).
public struct PagemapScan: ~Copyable {
    private let file: Descriptor
    private let task: TaskID
    private var room = [UInt64](repeating: 0, count: 3 * 1024)
    /// `PAGE_IS_GUARD`, 0 where the kernel does not know it.
    private var guardBit: UInt64 = 1 << 8
    private var hasScan = true
    /// Categories that are to be told of each page.
    private var noticeBits: UInt64 = 0
    /// Categories of which a page has one: `PAGE_IS_PRESENT`, `PAGE_IS_SWAPPED`.
    private let pageBits: UInt64 = 1 << 3 | 1 << 4

    /// What a scan found, ascending.
    public struct Findings: Sendable {
        /// Pages in memory or swap that are neither a file's nor the zero page.
        public var pages: [AddressRange] = []
        /// Guard regions (`MADV_GUARD_INSTALL`).
        public var guards: [AddressRange] = []
        /// Of the pages, those whose writing would have been noted by a userfaultfd, and that were not written. Where a file is
        /// mapped, none that are in swap.
        public var unwritten: [AddressRange] = []
    }

    /// Opens a task's pagemap.
    public init(_ task: TaskID) throws(Failure) {
        self.task = task
        file = try attempt("open the pagemap of task \(task)") { () throws(SystemCallError) in
            try openFile("/proc/\(task.rawValue)/pagemap")
        }
    }

    /// Memory to be scanned.
    public struct Region: Sendable {
        /// Where it is.
        public var range: AddressRange
        /// Whether no file is mapped there, which spares the kernel a look at each page's own description.
        public var isAnonymous: Bool
        /// Some memory.
        public init(_ range: AddressRange, isAnonymous: Bool) {
            self.range = range
            self.isAnonymous = isAnonymous
        }
    }

    /// Scans regions, which ascend. What lies between them may be in the findings too.
    ///
    /// - Parameter findsUnwritten: tell what was not written; whose userfaultfd notes it is for the caller to know.
    public mutating func scan(_ regions: [Region], findsUnwritten: Bool = false) throws(Failure) -> Findings {
        var findings = Findings()
        noticeBits = findsUnwritten ? 3 : 0  // PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN
        var next = 0
        while next < regions.count, hasScan {
            var whole = regions[next]
            while next < regions.count, regions[next].isAnonymous == whole.isAnonymous {
                whole.range.end = regions[next].range.end
                next += 1
            }
            while whole.range.length > 0, let walked = try step(whole, &findings) {
                whole.range.start = Address(walked)
            }
        }
        if !hasScan { for region in regions { try read(region.range, &findings) } }
        return findings
    }

    /// `PAGE_IS_FILE`, `PAGE_IS_PFNZERO`: categories of pages that are not the task's own.
    private static func notOurs(isAnonymous: Bool) -> UInt64 { isAnonymous ? 1 << 5 : 1 << 2 | 1 << 5 }

    /// Asks the kernel (`PAGEMAP_SCAN`), with room for answers. Returns how many there are.
    private mutating func ask(_ request: inout clinux_pm_scan_arg) throws(SystemCallError) -> Int {
        request.size = UInt64(MemoryLayout<clinux_pm_scan_arg>.size)
        request.vec_len = UInt64(room.count / 3)
        let number = Int(file.number)
        return try room.withAddress { (address, _) throws(SystemCallError) in
            request.vec = UInt64(address)
            return try withAddress(of: &request) { (request) throws(SystemCallError) in
                try systemCall(.ioctl, number, 0xc060_6610, request)
            }
        }
    }

    /// One call: the address up to which the kernel came, nil if it has no such call.
    private mutating func step(_ region: Region, _ findings: inout Findings) throws(Failure) -> UInt64? {
        let range = region.range
        let notOurs = PagemapScan.notOurs(isAnonymous: region.isAnonymous)
        var request = clinux_pm_scan_arg()
        request.start = range.start.rawValue
        request.end = range.end.rawValue
        request.category_inverted = notOurs
        request.category_mask = notOurs
        request.category_anyof_mask = pageBits | guardBit
        let presentBit: UInt64 = region.isAnonymous ? 0 : 1 << 3
        request.return_mask = guardBit | noticeBits | presentBit
        let count: Int
        do throws(SystemCallError) { count = try ask(&request) } catch {
            if error.errno == .EINVAL, guardBit != 0 {
                guardBit = 0
                return try step(region, &findings)
            }
            if error.errno == .ENOTTY {
                hasScan = false
                findings = Findings()
                return nil
            }
            throw Failure(.denied, "can't find the pages of task \(task)", cause: error)
        }
        for index in 0..<count {
            let found = AddressRange(room[index * 3], room[index * 3 + 1])
            let category = room[index * 3 + 2]
            if category & guardBit != 0 {
                Findings.append(found, to: &findings.guards)
            } else if category & presentBit == presentBit {
                Findings.append(found, to: &findings.pages)
                if category & 3 == 1 { Findings.append(found, to: &findings.unwritten) }
            } else {
                for page in try swapped(found) { Findings.append(page, to: &findings.pages) }
            }
        }
        guard request.walk_end > range.start.rawValue else {
            throw Failure(.bug, "the scan of task \(task)'s pages does not move on at \(range.start)")
        }
        return request.walk_end
    }

    /// The pages of a range that are in swap. Where a file is mapped, a private copy that was dropped while a userfaultfd noted
    /// writes leaves a marker, which looks like one.
    private borrowing func swapped(_ range: AddressRange) throws(Failure) -> [AddressRange] {
        // SWP_PTE_MARKER is the last of 32 kinds of swap; PTE_MARKER_UFFD_WP.
        let marker: UInt64 = 31 | 1 << 5 | 1 << 62
        var found: [AddressRange] = []
        for (index, frame) in try frames(range).enumerated() where frame != marker {
            let page = range.start + UInt64(index) * pageSize
            Findings.append(AddressRange(start: page, end: page + pageSize), to: &found)
        }
        return found
    }

    /// Whether a userfaultfd notes writes to the mapping of a page, and lets them pass (`PAGE_IS_WPALLOWED`).
    public mutating func isWatched(_ page: Address) -> Bool {
        var request = clinux_pm_scan_arg()
        (request.start, request.end) = (page.rawValue, page.rawValue + pageSize)
        (request.category_mask, request.return_mask) = (1, 1)
        return (try? ask(&request)) == 1
    }

    /// Lets a userfaultfd note the next write to each page of its memory (`PM_SCAN_WP_MATCHING`). Pages that are not there
    /// need no preparation: one that appears counts as written.
    public mutating func protect(_ region: Region) throws(Failure) {
        let (range, notOurs) = (region.range, PagemapScan.notOurs(isAnonymous: region.isAnonymous))
        var at = range.start.rawValue
        while at < range.end.rawValue {
            var request = clinux_pm_scan_arg()
            (request.flags, request.start, request.end) = (3, at, range.end.rawValue)  // and PM_SCAN_CHECK_WPASYNC
            request.category_inverted = notOurs
            request.category_mask = notOurs | 2  // PAGE_IS_WRITTEN
            request.category_anyof_mask = 1 << 3 | 1 << 4  // PAGE_IS_PRESENT, PAGE_IS_SWAPPED
            // Without room for answers the kernel would protect everything, and make page tables for it.
            request.return_mask = 2
            try attempt("protect the pages of task \(task)") { () throws(SystemCallError) in _ = try ask(&request) }
            guard request.walk_end > at else {
                throw Failure(.bug, "the protection of task \(task)'s pages does not move on at \(Address(at))")
            }
            at = request.walk_end
        }
    }

    /// All pages of a range that are there, also zero pages.
    public borrowing func present(_ range: AddressRange) throws(Failure) -> [AddressRange] {
        var words = [UInt64](repeating: 0, count: 8192)
        var found: [AddressRange] = []
        var at = range.start.rawValue
        while at < range.end.rawValue {
            let wanted = Int(min(UInt64(words.count), (range.end.rawValue - at) / pageSize))
            let (number, offset) = (file.number, at / pageSize * 8)
            let got = try attempt("read the pagemap of task \(task)") { () throws(SystemCallError) in
                try words.withAddress { (address, _) throws(SystemCallError) in
                    try readFully(number, into: address, count: wanted * 8, at: offset)
                }
            }
            guard got == wanted * 8 else { throw Failure(.vanished, "the pagemap of task \(task) ends early") }
            for index in 0..<wanted where words[index] >> 62 != 0 && words[index] >> 58 & 1 == 0 {
                let page = at + UInt64(index) * pageSize
                Findings.append(AddressRange(page, page + pageSize), to: &found)
            }
            at += UInt64(wanted) * pageSize
        }
        return found
    }

    /// Which page frame or swap slot holds each page of a range; 0 where the kernel does not say.
    public borrowing func frames(_ range: AddressRange) throws(Failure) -> [UInt64] {
        var words = [UInt64](repeating: 0, count: Int(range.length / pageSize))
        let (number, offset) = (file.number, range.start.rawValue / pageSize * 8)
        let got = try attempt("read the pagemap of task \(task)") { () throws(SystemCallError) in
            try words.withAddress { (address, count) throws(SystemCallError) in
                try readFully(number, into: address, count: count, at: offset)
            }
        }
        // Frame or slot in 55 bits, swapped and present; the others may differ between those who share a page.
        let meaning: UInt64 = (1 << 55) - 1 | 1 << 62 | 1 << 63
        for index in 0..<words.count {
            let word = words[index] & meaning
            words[index] = index * 8 < got && word & ((1 << 55) - 1) != 0 ? word : 0
        }
        return words
    }

    /// The same by reading the pagemap, for kernels before 6.7. Zero pages count as pages.
    private borrowing func read(_ range: AddressRange, _ findings: inout Findings) throws(Failure) {
        var words = [UInt64](repeating: 0, count: 8192)
        var at = range.start.rawValue
        let number = Int(file.number)
        while at < range.end.rawValue {
            let wanted = min(UInt64(words.count), (range.end.rawValue - at) / pageSize)
            let offset = Int(at / pageSize * 8)
            let got = try attempt("read the pagemap of task \(task)") { () throws(SystemCallError) in
                try words.withAddress { (address, _) throws(SystemCallError) in
                    try systemCall(.pread64, number, address, Int(wanted) * 8, offset)
                }
            }
            guard got >= 8 else { return }
            for index in 0..<(got / 8) {
                let page = at + UInt64(index) * pageSize
                let word = words[index]
                let isOwn = word >> 62 != 0 && word >> 61 & 1 == 0  // present or swapped, not a file's
                let isGuard = word >> 58 & 1 == 1
                if isGuard {
                    Findings.append(AddressRange(page, page + pageSize), to: &findings.guards)
                } else if isOwn {
                    Findings.append(AddressRange(page, page + pageSize), to: &findings.pages)
                }
            }
            at += UInt64(got / 8) * pageSize
        }
    }
}

extension PagemapScan.Findings {
    /// Adds a range, joined to the last one if they touch.
    static func append(_ range: AddressRange, to ranges: inout [AddressRange]) {
        guard range.start < range.end else { return }
        if let last = ranges.last, last.end >= range.start {
            ranges[ranges.count - 1].end = max(last.end, range.end)
        } else {
            ranges.append(range)
        }
    }
}
