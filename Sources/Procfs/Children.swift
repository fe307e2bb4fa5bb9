public import Linux

/// Calls `body` with each process of a tree that runs, its root first, until it returns false. What changes meanwhile may be
/// missed.
public func forEachProcess<E: Error>(of root: TaskID, _ body: (TaskID) throws(E) -> Bool) throws(E) {
    var queue = [root]
    var seen: Set<TaskID> = [root]
    while let process = queue.popLast() {
        guard try body(process) else { return }
        let threads = ((try? listNumbers("/proc/\(process.rawValue)/task")) ?? []).map { TaskID($0) }
        for child in listChildren(of: process, threads: threads) where seen.insert(child).inserted {
            queue.append(child)
        }
    }
}

/// The children of a process's threads, from /proc/PID/task/TID/children. A thread that is gone has none.
public func listChildren(of process: TaskID, threads: [TaskID]) -> [TaskID] {
    var children: [TaskID] = []
    for thread in threads {
        guard let text = try? readWholeFile("/proc/\(process.rawValue)/task/\(thread.rawValue)/children") else {
            continue
        }
        for word in text.split(separator: 0x20) {
            if let number = Int32(String(decoding: word, as: UTF8.self)) { children.append(TaskID(number)) }
        }
    }
    return children
}
