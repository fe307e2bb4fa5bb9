internal import Diagnostics
internal import Linux
internal import Procfs

/// The mappings of a tree as they were shortly before it was stopped.
///
/// Only smaps tells flags and page sizes of mappings, and it looks at every page for that: 40 ms for each GiB. Where a
/// mapping is the same as before in what maps tells, those are taken from here: by a pre-dump, which only wants to know what
/// kind of memory it is, and by a live dump, which then compares them with those of the copy.
struct Foresight {
    private var known: [TaskID: [VMA]] = [:]

    /// Looks at a running tree. Tasks that are not there any more don't matter.
    init(_ root: TaskID) {
        forEachProcess(of: root) { task in
            known[task] = try? VMA.read(of: task)
            return true
        }
    }

    /// The mappings of a stopped task; nil if there are new ones.
    func mappings(of task: TaskID) throws(Failure) -> [VMA]? {
        guard let known = known[task] else { return nil }
        var (found, next): ([VMA], Int) = ([], 0)
        for mapping in try VMA.readPlain(of: task) {
            while next < known.count, known[next].range.end <= mapping.range.start { next += 1 }
            guard next < known.count, let flagged = mapping.flagged(like: known[next]) else { return nil }
            found.append(flagged)
        }
        return found
    }
}
