import Glibc
import Linux
import Synchronization
import Testing

/// Huge pages of 2 MiB, which tests use in turn: a machine has few.
enum HugePages {
    private static let turn = Mutex(())

    private static func number(_ name: String) -> Int {
        let text = (try? readWholeFile("/sys/kernel/mm/hugepages/hugepages-2048kB/\(name)")) ?? []
        return Int(String(decoding: text.filter { $0 != 0x0a }, as: UTF8.self)) ?? 0
    }

    /// How many can be had: at first.
    static let count = free
    private static var free: Int {
        number("free_hugepages") - number("resv_hugepages") + number("nr_overcommit_hugepages")
            - number("surplus_hugepages")
    }

    /// Runs a test that needs so many.
    static func take(_ needed: Int, _ body: () throws -> Void) throws {
        if needed == 0 { return try body() }
        try turn.withLock { (_) throws in
            // Those of the one before are given back when its tasks are gone.
            for _ in 0..<10_000 where free < needed { usleep(1000) }
            try body()
        }
    }
}

/// A Python program under test that answers questions through fifos, before and after a checkpoint.
///
/// A script sets itself up and then calls `serve(check)`, where `check` returns `ok` or what is wrong.
final class Program {
    let work: String
    var images: String { work + "/images" }
    private(set) var id: Int32 = 0
    /// Another task that is dumped in place of the program, with its tree; the program itself looks on.
    var root: Int32?
    private let isOurChild: Bool

    static let binary = unsafe getenv("BRUMATE").map { unsafe String(cString: $0) } ?? ".build/release/brumate"
    private static let patience: Int32 = 30_000

    private static let prelude = """
        import os, sys, time, signal, threading, struct, mmap, socket, ctypes
        work = sys.argv[1]
        os.closerange(3, 1000); signal.pthread_sigmask(signal.SIG_SETMASK, [])
        def answer(text):
            with open(work + '/answer', 'w') as f: f.write(text)
        def serve(check):
            questions = os.open(work + '/request', os.O_RDWR)
            answer('ready')
            while True:
                os.read(questions, 1)
                try: answer(check() or 'ok')
                except Exception as e: answer(repr(e))

        """

    /// Starts a script as the leader of its own session and waits until it serves.
    init(_ script: String, newSession: Bool = true) throws {
        var name = Array("/tmp/brumate-test.XXXXXX".utf8CString)
        let made = unsafe name.withUnsafeMutableBufferPointer {
            unsafe $0.baseAddress.flatMap { unsafe mkdtemp($0) } != nil
        }
        try #require(made)
        work = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        isOurChild = true
        try #require(mkdir(work + "/images", 0o700) == 0)
        for fifo in ["request", "answer"] { try #require(mkfifo("\(work)/\(fifo)", 0o600) == 0) }
        id = try Program.spawn(
            ["/usr/bin/env", "python3", "-c", Program.prelude + script, work], flags: newSession ? 0x80 : 0,
            log: work + "/log")
        let first = read()
        try #require(first == "ready", "the program did not start: \(first) \(text("log"))")
    }

    static func spawn(_ words: [String], flags: Int16, log: String) throws -> pid_t {
        var pid: pid_t = 0
        var attributes = unsafe posix_spawnattr_t()
        unsafe posix_spawnattr_init(&attributes)
        unsafe posix_spawnattr_setflags(&attributes, flags)
        var actions = unsafe posix_spawn_file_actions_t()
        unsafe posix_spawn_file_actions_init(&actions)
        unsafe posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        unsafe posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        unsafe posix_spawn_file_actions_adddup2(&actions, 1, 2)
        var arguments: [UnsafeMutablePointer<CChar>?] = unsafe words.map { unsafe strdup($0) }
        unsafe arguments.append(nil)
        let error = unsafe posix_spawn(&pid, words[0], &actions, &attributes, arguments, environ)
        unsafe posix_spawn_file_actions_destroy(&actions)
        unsafe posix_spawnattr_destroy(&attributes)
        unsafe arguments.forEach { unsafe free($0) }
        try #require(error == 0, "can't run \(words[0])")
        return pid
    }

    private func read() -> String {
        let file = open(work + "/answer", O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        defer { close(file) }
        var bytes: [UInt8] = []
        while true {
            var waiting = pollfd(fd: file, events: Int16(POLLIN), revents: 0)
            guard unsafe poll(&waiting, 1, Program.patience) == 1 else { return "no answer" }
            var room = [UInt8](repeating: 0, count: 65536)
            let got = unsafe Glibc.read(file, &room, room.count)
            if got > 0 { bytes += room[..<got] } else if got == 0 { return String(decoding: bytes, as: UTF8.self) }
        }
    }

    /// Asks the program for its state.
    func ask() -> String {
        let file = open(work + "/request", O_WRONLY | O_NONBLOCK | O_CLOEXEC)
        guard file >= 0 else { return "nobody serves" }
        var byte: UInt8 = 0x3f
        unsafe write(file, &byte, 1)
        close(file)
        return read()
    }

    /// A file of the work directory.
    func text(_ name: String) -> String {
        String(decoding: (try? readWholeFile("\(work)/\(name)")) ?? [], as: UTF8.self)
    }

    /// Runs brumate. Returns its exit status.
    @discardableResult
    func brumate(_ words: [String], fault: String? = nil) throws -> Int32 {
        try run((fault.map { ["BRUMATE_FAULT=\($0)"] } ?? []) + [Program.binary] + words)
    }

    /// Runs a program with its output in brumate.log. Returns its exit status.
    func run(_ words: [String]) throws -> Int32 {
        let pid = try Program.spawn(["/usr/bin/env"] + words, flags: 0, log: work + "/brumate.log")
        var status: Int32 = 0
        unsafe waitpid(pid, &status, 0)
        return status & 0x7f == 0 ? status >> 8 & 0xff : 128 + status & 0x7f
    }

    /// Runs the fuzzer over the program's images.
    func fuzz(seconds: Int, seed: Int) throws -> Int32 {
        let pid = try Program.spawn(
            [".build/debug/ImageFuzzer", images, "\(seconds)", "\(seed)"], flags: 0, log: work + "/log")
        var status: Int32 = 0
        unsafe waitpid(pid, &status, 0)
        return status
    }

    @discardableResult
    func dump(_ more: [String] = [], fault: String? = nil) throws -> Int32 {
        let status = try brumate(
            ["dump", "-t", "\(root ?? id)", "-D", images, "-v4", "-o", "dump.log"] + more, fault: fault)
        if status == 0, root == nil, !["-R", "-s", "--live"].contains(where: more.contains) { reap() }
        return status
    }

    @discardableResult
    func restore(_ more: [String] = [], fault: String? = nil) throws -> Int32 {
        try brumate(["restore", "-D", images, "-v4", "-o", "restore.log", "-d"] + more, fault: fault)
    }

    /// Waits for the end of the process that we started.
    func reap() {
        var status: Int32 = 0
        unsafe waitpid(id, &status, 0)
    }

    /// Kills the program, here or restored, and waits until its pid is free.
    func finish() {
        kill(id, SIGKILL)
        while kill(id, 0) == 0 {
            unsafe waitpid(id, nil, WNOHANG)
            sched_yield()
        }
    }

    /// Dumps, restores, and asks. The fault is the restore's.
    func cycle(_ more: [String] = [], fault: String? = nil) throws -> String {
        guard try dump(more) == 0 else { return "dump: " + lastLine("dump.log") }
        guard try restore(fault: fault) == 0 else { return "restore: " + lastLine("restore.log") }
        return ask()
    }

    func lastLine(_ log: String) -> String {
        let lines = text("images/" + log).split(separator: "\n")
        return lines.last.map(String.init) ?? text("brumate.log")
    }

    /// Whether a process exists and has not ended.
    var isAlive: Bool {
        guard let stat = try? readWholeFile("/proc/\(id)/stat"), let close = stat.lastIndex(of: 0x29) else {
            return false
        }
        return stat[close + 2] != 0x5a
    }

    /// Whether the process ends soon: tasks that are killed take a moment.
    var isGone: Bool {
        for _ in 0..<100_000 {
            if !isAlive { return true }
            sched_yield()
        }
        return false
    }

    deinit {
        // The whole session: children that the program left, too.
        for number in (try? listNumbers("/proc")) ?? [] {
            guard let stat = try? readWholeFile("/proc/\(number)/stat"), let close = stat.lastIndex(of: 0x29) else {
                continue
            }
            let fields = String(decoding: stat[(close + 2)...], as: UTF8.self).split(separator: " ")
            if fields.count > 3, fields[3] == "\(id)" || fields[3] == "\(root ?? id)" { kill(number, SIGKILL) }
        }
        for task in [root, id].compactMap({ $0 }) { kill(task, SIGKILL) }
        var status: Int32 = 0
        unsafe waitpid(id, &status, Int32(WNOHANG))
        let remove = (try? Program.spawn(["/bin/rm", "-rf", work], flags: 0, log: "/dev/null")) ?? 0
        if remove > 0 { unsafe waitpid(remove, &status, 0) }
    }
}
