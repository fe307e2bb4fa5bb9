internal import Diagnostics

extension Statistics {
    /// What `--display-stats` prints after a dump, line by line as CRIU does.
    var dumpReport: String {
        """
        Displaying dump stats:
        Freezing time: \(microseconds(.freezing)) us
        Frozen time: \(microseconds(.frozen)) us
        Memory dump time: \(microseconds(.memoryDump)) us
        Memory write time: \(microseconds(.memoryWrite)) us
        IRMAP resolve time: \(microseconds(.irmapResolve)) us
        Memory pages scanned: \(both(pagesScanned))
        Memory pages skipped from parent: \(both(pagesSkippedParent))
        Memory pages written: \(both(pagesWritten))
        Lazy memory pages: \(both(pagesLazy))

        """
    }

    /// What `--display-stats` prints after a restore, line by line as CRIU does.
    var restoreReport: String {
        """
        Displaying restore stats:
        Pages compared: \(both(pagesCompared))
        Pages skipped COW: \(both(pagesSkippedCopyOnWrite))
        Pages restored: \(both(pagesRestored))
        Restore time: \(microseconds(.restoring)) us
        Forking time: \(microseconds(.forking)) us

        """
    }

    private func both(_ count: UInt64) -> String { "\(count) (0x\(String(count, radix: 16)))" }
}
