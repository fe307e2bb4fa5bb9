public import Diagnostics
public import Kinds
public import Linux
internal import Procfs
internal import SystemPackage

/// Finds files that can't be dumped before anything is stopped.
public enum FilePreflight {
    /// Looks through the descriptors of a running tree. What changes meanwhile is found by the dump itself.
    ///
    /// Only links are read, and each text is looked into once, but for kinds where it depends on the single object. Not
    /// more than some hundreds of a task are, and some thousands of a tree, so that a large one is not looked through
    /// twice.
    public static func check(_ root: TaskID, _ policy: DumpPolicy, _ plugins: Plugins) throws(Failure) {
        var look = Look(policy, plugins)
        try forEachProcess(of: root) { (task) throws(Failure) in
            try look.check(task)
            return look.left > 0
        }
        // A socket that was not looked at may be the other end of a connection.
        if look.isWhole { return try look.checkConnections() }
        // Hardly any program has such sockets. Where one has, all are looked for.
        let signing = TCPPolicy.signing()
        guard !signing.isEmpty else { return }
        try forEachProcess(of: root) { (task) throws(Failure) in
            try look.check(task, for: signing)
            return true
        }
    }
}

private struct Look {
    private let policy: DumpPolicy
    private let plugins: Plugins
    /// How many links may still be read.
    private(set) var left = 2000
    /// Whether all links were read.
    private(set) var isWhole = true
    private static let mostOfTask = 500
    /// Sockets by inode, and who has them.
    private var sockets: [UInt32: (task: TaskID, number: Int32)] = [:]
    /// Texts that are all right.
    private var known: Set<[UInt8]> = []
    /// The one met last: most descriptors of a task with many are of one kind.
    private var last: [UInt8] = []
    private var buffer = [UInt8](repeating: 0, count: 256)

    init(_ policy: DumpPolicy, _ plugins: Plugins) { (self.policy, self.plugins) = (policy, plugins) }

    mutating func check(_ task: TaskID) throws(Failure) {
        guard let folder = try? openFile("/proc/\(task.rawValue)/fd", [.directory]),
            let numbers = try? listNumbers(".", in: folder.number, most: min(left, Look.mostOfTask))
        else { return }
        if numbers.count == min(left, Look.mostOfTask) { isWhole = false }
        for number in numbers {
            left -= 1
            guard let text = target(of: number, in: folder.number), !known.contains(text) else { continue }
            if text.starts(with: "socket:[".utf8) {
                let digits = text.dropFirst(8).dropLast()
                if let inode = UInt32(String(decoding: digits, as: UTF8.self)) { sockets[inode] = (task, number) }
                continue
            }
            try during(.dumping(task, Look.name(of: task))) { () throws(Failure) in
                try during(.descriptor(number)) { () throws(Failure) in
                    try during(.file(String(decoding: text, as: UTF8.self))) { () throws(Failure) in
                        if try isHarmless(number, of: task, text) {
                            known.insert(text)
                            last = text
                        }
                    }
                }
            }
        }
    }

    private static func name(of task: TaskID) -> String { (try? TaskStatus.read(of: task).name) ?? "?" }

    /// The text of a link, if it is of a kind that may be refused.
    private mutating func target(of number: Int32, in folder: Int32) -> [UInt8]? {
        let length = try? withCString("\(number)") { (name) throws(SystemCallError) in
            try buffer.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.readlinkat, Int(folder), name, address, count)
            }
        }
        guard let length, let first = buffer.first, length != last.count || !buffer.starts(with: last) else {
            return nil
        }
        let isInteresting =
            first == 0x61
            ? buffer.starts(with: "anon_inode:".utf8)
            : first == 0x73
                ? buffer.starts(with: "socket:[".utf8)
                : first == 0x2f && (buffer.starts(with: "/dev/".utf8) || buffer.starts(with: "/secretmem ".utf8))
        return isInteresting ? Array(buffer[..<length]) : nil
    }

    /// Looks for sockets that sign their packets.
    mutating func check(_ task: TaskID, for signing: Set<UInt32>) throws(Failure) {
        guard let folder = try? openFile("/proc/\(task.rawValue)/fd", [.directory]),
            let numbers = try? listNumbers(".", in: folder.number)
        else { return }
        for number in numbers {
            guard let text = target(of: number, in: folder.number), text.starts(with: "socket:[".utf8),
                let inode = UInt32(String(decoding: text.dropFirst(8).dropLast(), as: UTF8.self)),
                signing.contains(inode)
            else { continue }
            try during(.dumping(task, Look.name(of: task))) { () throws(Failure) in
                try during(.descriptor(number)) { () throws(Failure) in throw TCPPolicy.signingRefusal }
            }
        }
    }

    /// Looks for TCP connections that need the user's word.
    func checkConnections() throws(Failure) {
        guard !sockets.isEmpty, let found = TCPPolicy.check(Set(sockets.keys), policy),
            let holder = sockets[found.inode]
        else { return }
        try during(.dumping(holder.task, Look.name(of: holder.task))) { () throws(Failure) in
            try during(.descriptor(holder.number)) { () throws(Failure) in throw found.failure }
        }
    }

    /// Whether all files with this text can be dumped.
    private func isHarmless(_ number: Int32, of task: TaskID, _ text: [UInt8]) throws(Failure) -> Bool {
        // A file that is gone by now is no reason for anything.
        guard let status = try? FileStatus.read("/proc/\(task.rawValue)/fd/\(number)", in: currentDirectory),
            let information = try? DescriptorInformation.read(of: task, number)
        else { return false }
        let facts = FileFacts(status: status, target: text, information: information)
        guard let kind = fileKind(of: facts, policy, plugins) else { throw Refused.unknown(facts) }
        if let refusal = kind.refusal(facts) { throw refusal }
        return !kind.isRefusedSingly
    }
}
