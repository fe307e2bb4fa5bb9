public import Linux

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
