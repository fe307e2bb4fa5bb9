import Diagnostics
import Glibc
import Linux
import Remote
import Testing

/// A child of the test that sleeps until it is killed.
final class Sleeper {
    let id: TaskID
    init() throws {
        var pid: pid_t = 0
        let words: [UnsafeMutablePointer<CChar>?] = unsafe [strdup("sleep"), strdup("1000"), nil]
        let error = unsafe posix_spawn(&pid, "/bin/sleep", nil, nil, words, environ)
        try #require(error == 0)
        id = TaskID(pid)
        // Until it sleeps in the kernel, its memory is still that of the loader.
        while (try? readWholeFile("/proc/\(pid)/syscall"))?.starts(with: Array("230 ".utf8)) != true { sched_yield() }
    }
    var maps: [UInt8] { (try? readWholeFile("/proc/\(id.rawValue)/maps")) ?? [] }
    var vdso: AddressRange? {
        for line in maps.split(separator: 0x0a) where line.suffix(6).elementsEqual(Array("[vdso]".utf8)) {
            let ends = line.prefix { $0 != 0x20 }.split(separator: 0x2d).compactMap {
                UInt64(String(decoding: $0, as: UTF8.self), radix: 16)
            }
            if ends.count == 2 { return AddressRange(ends[0], ends[1]) }
        }
        return nil
    }
    deinit {
        kill(id.rawValue, SIGKILL)
        var status: Int32 = 0
        unsafe waitpid(id.rawValue, &status, 0)
    }
}

@Suite(.serialized) struct `Remote system calls` {
    @Test func `a live task answers a batch and is cured without a trace`() throws {
        let sleeper = try Sleeper()
        let before = sleeper.maps
        let vdso = try #require(sleeper.vdso)
        let tree = try FrozenTree.freeze(sleeper.id, deadline: .now + .seconds(5))
        let leader = try #require(tree.processes.first?.threads.first)
        let memory = try TaskMemory(sleeper.id)
        let registers = try leader.registers()
        let server = try Server.start(
            in: leader, registers: registers, mask: try leader.signalMask(), memory: memory, code: [vdso],
            hole: Address(0x100_0000_0000), faults: Faults())
        var batch = Batch()
        let pid = batch.add(.getpid, doing: "ask for the pid")
        let old = batch.add(.umask, .value(0), doing: "read the mask")
        batch.add(.umask, .result(old), doing: "put the mask back")
        let again = batch.add(.umask, .result(old), doing: "read the mask")
        let bad = batch.add(.close, .value(-1), doing: "close nothing", mayFail: true)
        _ = again
        let results = try server.run(batch)
        #expect(results[pid] == Int(sleeper.id.rawValue))
        #expect(results[bad] == -9)
        try server.cure(memory: memory)
        #expect(try leader.registers() == registers)
        tree.thaw(.running)
        #expect(sleeper.maps == before)
    }

    @Test func `a seed grows children and leaves no runway`() throws {
        let tree = try NascentTree(runway: AddressRange(0x100_0000_0000, 0x100_0040_0000))
        var free = TaskID.current
        while (try? readWholeFile("/proc/\(free.rawValue)/stat")) != nil { free.rawValue += 1 }
        let root = try tree.sow(free)
        var batch = Batch()
        let pid = batch.add(.getpid, doing: "ask for the pid")
        batch.add(.munmap, .value(0x400000), .value(4096), doing: "drop the seed")
        let results = try root.run(batch)
        #expect(results[pid] == Int(free.rawValue))
        try root.leaveRunway()
        let maps = String(decoding: try readWholeFile("/proc/\(free.rawValue)/maps"), as: UTF8.self)
        #expect(!maps.contains("brumate"))
        try systemCall(.kill, Int(free.rawValue), 9)
        #expect(try root.tracee.wait() == .ended(status: 9))
    }
}
