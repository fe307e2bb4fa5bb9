import Glibc
import Linux
import Testing

/// Memory that a live dump can't copy, and writes while its users are at work.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Memory of busy writers in a live dump` {
    private static let source = #filePath.replacing("ScenarioTests/HeldMemoryTests.swift", with: "Programs/writers.c")

    /// Starts writers as user `user`.
    private func writers(_ words: String, user: Int = 0) throws -> Program {
        try Program(
            """
            import subprocess
            subprocess.run(['cc', '-O1', '-o', work + '/writers', '\(Self.source)'], check=True)
            for path in (work, work + '/request', work + '/answer'): os.chown(path, \(user), \(user))
            os.chmod(work, 0o755); os.setgroups([]); os.setgid(\(user)); os.setuid(\(user))
            os.execv(work + '/writers', ['writers', work] + '\(words)'.split())
            """)
    }

    /// Whether writers go on, and have done nothing but what they wanted to.
    private func verdict(_ program: Program) -> String {
        close(open(program.work + "/stop", O_CREAT | O_WRONLY, 0o600))
        return program.ask()
    }

    /// Dumps writers, and once more where they did not yet do, while that went on, what the log is to tell of.
    private func snapshot(_ program: Program, _ log: String) throws {
        for _ in 1...20 {
            try #require(try program.dump(["--live", "--no-sync"]) == 0, "\(program.lastLine("dump.log"))")
            if log.isEmpty || program.text("images/dump.log").contains(log) { return }
        }
        Issue.record("no \(log) in \(program.text("images/dump.log"))")
    }

    /// Ends the writers, and waits until their pids are free.
    private func end(_ program: Program) {
        program.finish()
        while kill(-program.id, 0) == 0 { sched_yield() }
    }

    private static let aside = "aside before they were written to", still = "is written while the tree stands still"

    @Test(
        arguments: [
            ("anonymous 32 2 read fork", aside), ("anonymous 32 1 remap", aside), ("memfd 16 2", aside),
            ("sealed 16 2", aside), ("open 16 2", still), ("anonymous 4 9", "tasks map it"), ("sysv 16 2", ""),
            ("anonymous 16 2 drop", "begins anew"),
        ], [0, 65534])
    func `is what it was at the stop`(_ kind: (words: String, log: String), user: Int) throws {
        let program = try writers(kind.words, user: user)
        try snapshot(program, kind.log)
        #expect(verdict(program) == "ok", "\(program.text("log"))")
        end(program)
        try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok", "\(program.text("log"))")
    }

    @Test(
        .enabled(if: HugePages.count >= 16, "this machine has no 16 huge pages (vm.nr_hugepages)"),
        arguments: [
            ("huge 16 2 read fork", aside), ("private-huge 8 2 read", aside),
            ("private-huge 16 1 remap", "begins anew"),
        ])
    func `and so are huge pages`(_ kind: (words: String, log: String)) throws {
        try HugePages.take(16) {
            let program = try writers(kind.words)
            try snapshot(program, kind.log)
            #expect(verdict(program) == "ok", "\(program.text("log"))")
            end(program)
            try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
            #expect(program.ask() == "ok", "\(program.text("log"))")
        }
    }

    /// Each holds what was written since the last one. What a pre-dump finds is written to while it copies it.
    @Test(arguments: [["dump", "--live", "--track-mem"], ["pre-dump"]], [[], ["--compress"]])
    func `in a chain, too`(order: [String], more: [String]) throws {
        let program = try writers("anonymous 16 2")
        let isLive = order.contains("--live")
        for (folder, after) in [("a", nil), ("b", "a"), ("c", "b")] {
            try #require(mkdir("\(program.work)/\(folder)", 0o700) == 0)
            let previous = after.map { ["--prev-images-dir", "../" + $0] } ?? []
            let words = folder == "c" && !isLive ? ["dump", "-R", "--track-mem"] : order
            let status = try program.brumate(
                words + ["--no-sync", "-t", "\(program.id)", "-D", "\(program.work)/\(folder)", "-v4", "-o", "log"]
                    + previous + more)
            try #require(status == 0, "\(program.text(folder + "/log"))")
            #expect(!isLive || program.text(folder + "/log").contains(Self.aside))
        }
        #expect(verdict(program) == "ok", "\(program.text("log"))")
        end(program)
        let status = try program.brumate(["restore", "-d", "-D", program.work + "/c", "-v4", "-o", "restore.log"])
        try #require(status == 0, "\(program.text("c/restore.log"))")
        #expect(program.ask() == "ok", "\(program.text("log"))")
    }

    @Test(
        arguments: HugePages.count >= 16 ? ["anonymous 16 2", "private-huge 8 1"] : ["anonymous 16 2"],
        [("dump-held", "kill"), ("dump-held", "fail"), ("dump-pages", "kill"), ("dump-pages", "fail")])
    func `and a dump that ends early leaves them at work`(words: String, at fault: (point: String, how: String)) throws
    {
        try HugePages.take(words.contains("huge") ? 16 : 0) {
            let program = try writers(words)
            #expect(try program.dump(["--live", "--no-sync"], fault: "\(fault.point):\(fault.how)") != 0)
            #expect(verdict(program) == "ok", "\(program.text("log"))")
        }
    }
}
