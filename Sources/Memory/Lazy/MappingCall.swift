internal import Linux
internal import Procfs

/// A thread that waits in a call which changes mappings, until somebody has read the event of a userfaultfd that tells of it.
///
/// The event has neither the thread nor what it wants: MADV_DONTNEED, which is nothing to shared memory, and MADV_REMOVE,
/// which takes pages out of it, look alike. While the event waits to be read, so does the thread, and /proc tells its call.
struct MappingCall {
    private let number: SystemCall
    private let range: AddressRange
    private let advice: UInt64

    /// Whether it takes pages of a range out of shared memory.
    func removes(_ other: AddressRange) -> Bool {
        number == .madvise && advice == 9 && range.overlaps(other)  // MADV_REMOVE
    }

    private static let numbers: [SystemCall] = [
        .madvise, .process_madvise, .munmap, .mremap, .mmap, .brk, .clone, .clone3, .fork, .shmdt, .shmat,
        .io_setup, .io_destroy,
    ]

    /// How often it is looked again for a thread that has yet to fall asleep, and when everywhere.
    private static let mostLooks = 100, wideLook = 20

    /// Those that wait, of an event that waits to be read.
    ///
    /// - Parameters:
    ///   - task: the process, if it is known.
    ///   - roots: ancestors of others.
    ///   - segments: memory that still others may have mapped.
    static func waiting(_ task: TaskID?, roots: [TaskID], segments: [LazySegment]) -> [MappingCall] {
        for look in 0..<mostLooks {
            var found = task.map(calls) ?? []
            if !found.isEmpty { return found }
            forEachProcess(of: roots) { (process) -> Bool in
                if process != task { found += calls(process) }
                return true
            }
            // Who has left the tree.
            if found.isEmpty, look == wideLook { found = LazySegment.users(of: segments).flatMap { calls($0.id) } }
            if !found.isEmpty { return found }
            pause(nanoseconds: 50_000)
        }
        return []
    }

    private static func calls(_ process: TaskID) -> [MappingCall] {
        ((try? listNumbers("/proc/\(process.rawValue)/task")) ?? []).compactMap { thread in
            guard let text = try? readWholeFile("/proc/\(process.rawValue)/task/\(thread)/syscall") else { return nil }
            let words = text.split(separator: 0x20).prefix(4).map { word in
                let word = String(decoding: word, as: UTF8.self)
                return word.hasPrefix("0x") ? UInt64(word.dropFirst(2), radix: 16) : UInt64(word)
            }
            guard words.count == 4, let number = words[0], let start = words[1], let length = words[2],
                let call = numbers.first(where: { $0.rawValue == Int(number) })
            else { return nil }
            // Who waits for a child to let the memory go is no news.
            if call == .clone, start & 0x100 != 0 { return nil }
            let end = start &+ ((length &+ pageSize &- 1) & ~(pageSize - 1))
            return MappingCall(number: call, range: AddressRange(start, max(start, end)), advice: words[3] ?? 0)
        }
    }
}
