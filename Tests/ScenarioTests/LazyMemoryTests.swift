import Glibc
import Linux
import Testing

/// Shared memory, huge pages, and pages of earlier images, that come when the tasks run already.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Memory of other kinds comes while the tasks run` {
    /// Calls with addresses, and memory whose every page can be told from the others.
    private static let calls = """
        libc = ctypes.CDLL(None, use_errno=True); A, S = ctypes.c_void_p, ctypes.c_size_t
        libc.mmap.restype = libc.mremap.restype = A
        libc.mmap.argtypes = [A, S, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        libc.mremap.argtypes = [A, S, S, ctypes.c_int, A]
        libc.madvise.argtypes = [A, S, ctypes.c_int]; libc.munmap.argtypes = [A, S]
        P, M = 4096, 1 << 20
        def new(size, flags=0x21, file=-1):
            a = libc.mmap(None, size, 3, flags, file, 0)
            for i in range(0, size, P): ctypes.memset(a + i, value(i), P)
            return a
        def value(at): return 1 + at // P % 251
        def right(a, at, first=0, what=None):
            return ctypes.string_at(a + at, P) == bytes([value(first + at) if what is None else what]) * P
        def whole(a, size, first=0):
            for i in range(0, size, P):
                if not right(a, i, first): return 'page %d of %x is wrong' % (i // P, a)
            return 'ok'

        """

    private func restore(_ program: Program) throws {
        try #require(try program.restore(["--lazy-pages"]) == 0, "\(program.lastLine("restore.log"))")
    }

    /// How many pieces of shared memory came so.
    private func pieces(_ program: Program) -> Int {
        program.text("images/lazy-pages.log").split(separator: "\n")
            .count { $0.contains("shared memory ") && $0.hasSuffix("are to come") }
    }

    private func waitForAll(_ program: Program) {
        while !program.text("images/lazy-pages.log").contains("all pages are there:") {
            guard program.isAlive else { return }
            usleep(1000)
        }
    }

    @Test(arguments: [[], ["--compress"]])
    func `anonymous, and files in memory that nobody has open`(more: [String]) throws {
        let program = try Program(
            Self.calls + """
                anonymous = new(8 * M); f = os.memfd_create('closed'); os.ftruncate(f, 5 * M + 100)
                closed = new(5 * M, 1, f); os.close(f)
                f = os.memfd_create('private'); os.ftruncate(f, 5 * M)
                viewed = new(5 * M, 1, f); private = libc.mmap(None, 5 * M, 3, 2, f, 0); os.close(f)
                ctypes.memset(private + 7 * P, 99, P)
                opened = os.memfd_create('open'); os.ftruncate(opened, 2 * M); seen = new(2 * M, 1, opened)
                small = new(16 * P)
                hole = libc.mmap(None, 4 * M, 3, 0x21, -1, 0); ctypes.memset(hole + M, 5, P)
                ours, theirs = socket.socketpair()
                def look():
                    for text in (whole(anonymous, 8 * M), whole(closed, 5 * M), whole(viewed, 5 * M), whole(seen, 2 * M), whole(small, 16 * P)):
                        if text != 'ok': return text
                    for i in range(0, 5 * M, P):
                        if not right(private, i, what=99 if i == 7 * P else None): return 'the private view'
                    if os.pread(opened, P, 9 * P) != bytes([value(9 * P)]) * P: return 'the open file'
                    if not right(hole, M, what=5) or not right(hole, 0, what=0) or not right(hole, 2 * M, what=0): return 'a hole'
                    return 'ok'
                if os.fork() == 0:
                    while theirs.recv(1):
                        mine = look(); ctypes.memset(anonymous + 3 * P, 0x77, P); theirs.send(mine.encode())
                    os._exit(0)
                def check():
                    ours.send(b'?'); child = ours.recv(999).decode()
                    if child != 'ok' or not right(anonymous, 3 * P, what=0x77): return 'the child: ' + child
                    ctypes.memset(anonymous + 3 * P, value(3 * P), P); return look()
                serve(check)
                """)
        for round in 1...2 {
            try #require(try program.dump(more) == 0, "\(program.lastLine("dump.log"))")
            program.reap()
            try restore(program)
            #expect(program.ask() == "ok", "\(round)")
            waitForAll(program)
            #expect(program.ask() == "ok", "\(round)")
            #expect(pieces(program) == 3, "\(program.text("images/lazy-pages.log"))")
        }
    }

    /// Restores a program that has one piece of shared memory and is at work at once.
    private func goOn(_ program: Program) throws {
        try #require(try program.dump() == 0, "\(program.lastLine("dump.log"))")
        close(open(program.work + "/go", O_CREAT | O_WRONLY, 0o600))
        try restore(program)
        #expect(program.ask() == "ok")
        waitForAll(program)
        #expect(program.ask() == "ok")
        #expect(pieces(program) == 1)
    }

    /// Two tasks and a new child, each at another part, when most of it is still to come.
    @Test func `wherever the mappings go, and what is taken out stays out`() throws {
        let program = try Program(
            Self.calls + """
                N = 128 * M; a = new(N); ours, theirs = socket.socketpair()
                def given_back():
                    t = N - 16 * M
                    for k in range(100):
                        # MADV_REMOVE takes a page out, MADV_DONTNEED is nothing to shared memory.
                        if libc.madvise(a + t + k * 4 * P, P, 9) or libc.madvise(a + t + (k * 4 + 1) * P, P, 4): return 'madvise'
                        if not right(a, t + k * 4 * P, what=0): return 'what was removed is back'
                        for more in (1, 2):
                            if not right(a, t + (k * 4 + more) * P): return 'page %d is lost' % (k * 4 + more)
                    return 'ok'
                def moved():
                    t = N - 32 * M
                    doubled = libc.mremap(a + t, 0, M, 1, None)
                    if whole(doubled, M, t) != 'ok': return 'doubled: ' + whole(doubled, M, t)
                    libc.munmap(a + t - 4 * M, 4 * M)
                    if libc.mremap(a + t - 8 * M, 4 * M, 8 * M, 0, None) != a + t - 8 * M: return 'it did not grow'
                    if whole(a + t - 8 * M, 8 * M, t - 8 * M) != 'ok': return 'cut and grown'
                    c = libc.mremap(a + t + 6 * M, M, M, 3, doubled - 1024 * M)
                    if whole(c, M, t + 6 * M) != 'ok': return 'moved'
                    if os.fork() == 0:
                        d = libc.mremap(a + t + 8 * M, M, M, 3, doubled - 2048 * M)
                        os._exit(0 if whole(d, M, t + 8 * M) == 'ok' else 1)
                    return 'ok' if os.wait()[1] == 0 else 'moved in a new child'
                def go(what):
                    while not os.path.exists(work + '/go'): pass
                    return what()
                if os.fork() == 0:
                    theirs.send(go(given_back).encode()); os._exit(0)
                questions = os.open(work + '/request', os.O_RDWR)
                answer('ready'); mine = go(moved); child = ours.recv(999).decode()
                while os.read(questions, 1):
                    answer(mine if mine != 'ok' else child if child != 'ok' else whole(a, N - 48 * M))
                """)
        try goOn(program)
        // What threads waited for comes first the next time.
        let names = try listDirectory(.init(program.images)).map(\.string)
        #expect(names.contains { $0.hasPrefix("working-set-shmem-") })
    }

    @Test func `but not where it is locked or sealed`() throws {
        let program = try Program(
            Self.calls + """
                locked = new(2 * M); libc.mlock(A(locked), S(2 * M))
                f = os.memfd_create('sealed', 2); os.ftruncate(f, 2 * M); sealed = new(2 * M, 1, f)
                import fcntl; fcntl.fcntl(f, 1033, 0x10); os.close(f)
                def check():
                    for text in (whole(locked, 2 * M), whole(sealed, 2 * M)):
                        if text != 'ok': return text
                serve(check)
                """)
        try #require(try program.dump() == 0, "\(program.lastLine("dump.log"))")
        try restore(program)
        #expect(program.ask() == "ok")
        #expect(pieces(program) == 0)
    }

    @Test(
        .enabled(if: HugePages.count >= 14, "this machine has no 14 huge pages (vm.nr_hugepages)"),
        arguments: [[], ["--compress"]])
    func `huge pages`(more: [String]) throws {
        try HugePages.take(14) {
            let program = try Program(
                Self.calls + """
                    H = 2 * M; huge = libc.mmap(None, 6 * H, 3, 0x40022, -1, 0); first = True
                    for page in (0, 1, 3, 5):
                        for i in range(page * H, page * H + H, P): ctypes.memset(huge + i, value(i), P)
                    def page(a, number, what=None):
                        return all(right(a, i, number * H, what) for i in range(0, H, P))
                    def check():
                        global first
                        if first:
                            first = False
                            # At once, when it is still to come: given back, read where nothing was, seen by a child.
                            if libc.madvise(huge + H, H, 4) or not page(huge + H, 1, what=0): return 'what was given back is there'
                            if not page(huge + 2 * H, 2, what=0): return 'there was nothing'
                            if os.fork() == 0: os._exit(0 if page(huge + 3 * H, 3) and page(huge + 5 * H, 5) else 1)
                            if os.wait()[1]: return 'the child'
                        if not page(huge, 0) or not page(huge + 3 * H, 3) or not page(huge + 5 * H, 5): return 'wrong'
                    serve(check)
                    """)
            try #require(try program.dump(more) == 0, "\(program.lastLine("dump.log"))")
            try restore(program)
            #expect(program.ask() == "ok")
            waitForAll(program)
            #expect(program.ask() == "ok")
            // All four, besides what Python has.
            #expect(try pagesToCome(program) >= 2048, "\(program.text("images/lazy-pages.log"))")
        }
    }

    /// The pages that a log says are to come, in all memories.
    private func pagesToCome(_ program: Program) throws -> Int {
        program.text("images/lazy-pages.log").split(separator: "\n").filter { $0.contains(" pages are to come") }
            .compactMap { line in line.split(separator: " ").compactMap { Int($0) }.first }.reduce(0, +)
    }

    @Test func `pages that are in the images of earlier dumps`() throws {
        let program = try Program(
            Self.calls + """
                memory = new(16 * M, 0x22); serve(lambda: whole(memory, 16 * M))
                """)
        try #require(mkdir(program.work + "/a", 0o700) == 0)
        let words = ["--track-mem", "-t", "\(program.id)", "-o", "dump.log"]
        #expect(try program.brumate(["dump", "-R", "-D", program.work + "/a"] + words) == 0)
        #expect(program.ask() == "ok")
        try #require(try program.dump(["--track-mem", "--prev-images-dir", "../a"]) == 0)
        try restore(program)
        #expect(program.ask() == "ok")
        waitForAll(program)
        #expect(try pagesToCome(program) >= 4096, "\(program.text("images/lazy-pages.log"))")
        #expect(program.ask() == "ok")
    }

    private static let source = #filePath.replacing(
        "ScenarioTests/LazyMemoryTests.swift", with: "Programs/remapper.c")

    /// Each begins with its calls when nearly everything is still to come.
    @Test(arguments: ["64 3 4000"] + (HugePages.count >= 16 ? ["8 2 300"] : []), 1...3)
    func `whatever is done with the mappings`(sizes: String, seed: Int) throws {
        let isHuge = sizes.hasPrefix("8")
        try HugePages.take(isHuge ? 16 : 0) {
            let program = try Program(
                """
                import subprocess
                subprocess.run(['cc', '-O1', '-o', work + '/remapper', '\(Self.source)'], check=True)
                words = '\(sizes) \(seed)\(isHuge ? " huge" : "")'.split()
                os.execv(work + '/remapper', ['remapper', work] + words)
                """)
            try goOn(program)
        }
    }
}
