public import Linux

/// Calls `body` with each process of a tree that runs, its root first, until it returns false. What changes meanwhile may be
/// missed.
public func forEachProcess<E: Error>(of root: TaskID, _ body: (TaskID) throws(E) -> Bool) throws(E) {
    try forEachProcess(of: [root], body)
}

/// The same for several trees, which may be parts of each other.
public func forEachProcess<E: Error>(of roots: [TaskID], _ body: (TaskID) throws(E) -> Bool) throws(E) {
    var queue = roots
    var seen = Set(roots)
    while let process = queue.popLast() {
        guard try body(process) else { return }
        let threads = ((try? listNumbers("/proc/\(process.rawValue)/task")) ?? []).map { TaskID($0) }
        for child in listChildren(of: process, threads: threads) where seen.insert(child).inserted {
            queue.append(child)
        }
    }
}

/// How many threads are worth a worker.
private let fewThreads = 32

/// The children of a process's threads, from /proc/PID/task/TID/children. A thread that is gone has none.
public func listChildren(of process: TaskID, threads: [TaskID]) -> [TaskID] {
    let found = Workers.map(
        threads.count, share: fewThreads, threads: min(Workers.count, threads.count / fewThreads)
    ) { (range) -> [TaskID] in
        threads[range].flatMap { (thread) -> [TaskID] in
            let text = try? readWholeFile("/proc/\(process.rawValue)/task/\(thread.rawValue)/children")
            return (text ?? []).split(separator: 0x20).compactMap {
                Int32(String(decoding: $0, as: UTF8.self)).map { TaskID($0) }
            }
        }
    }
    return Array(found.joined())
}
