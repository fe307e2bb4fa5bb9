internal import Diagnostics
internal import ImageMessages

/// The message of `stats-dump`.
func statisticsEntry(dump figures: Statistics) -> StatsEntry {
    var dump = DumpStatsEntry()
    dump.freezingTime = figures.microseconds(.freezing)
    dump.frozenTime = figures.microseconds(.frozen)
    dump.memdumpTime = figures.microseconds(.memoryDump)
    dump.memwriteTime = figures.microseconds(.memoryWrite)
    dump.pagesScanned = figures.pagesScanned
    dump.pagesSkippedParent = figures.pagesSkippedParent
    dump.pagesWritten = figures.pagesWritten
    dump.irmapResolve = figures.microseconds(.irmapResolve)
    dump.pagesLazy = figures.pagesLazy
    dump.pagePipes = figures.pagePipes
    dump.pagePipeBufs = 0
    dump.shpagesScanned = figures.sharedPagesScanned
    dump.shpagesSkippedParent = figures.sharedPagesSkippedParent
    dump.shpagesWritten = figures.sharedPagesWritten
    var entry = StatsEntry()
    entry.dump = dump
    return entry
}

/// The message of `stats-restore`.
func statisticsEntry(restore figures: Statistics) -> StatsEntry {
    var restore = RestoreStatsEntry()
    restore.pagesCompared = figures.pagesCompared
    restore.pagesSkippedCow = figures.pagesSkippedCopyOnWrite
    restore.forkingTime = figures.microseconds(.forking)
    restore.restoreTime = figures.microseconds(.restoring)
    restore.pagesRestored = figures.pagesRestored
    var entry = StatsEntry()
    entry.restore = restore
    return entry
}
