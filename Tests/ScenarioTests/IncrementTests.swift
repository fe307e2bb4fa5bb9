import Glibc
import Linux
import Testing

/// Dumps that hold only what was written since the ones before.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Increments` {
    /// Memory whose every page is known, in the program and in children that it forks; each question checks all of it and
    /// then changes some.
    private static let model = """
        import random
        libc = ctypes.CDLL(None, use_errno=True)
        for f in (libc.mmap, libc.mremap): f.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        P, dice, place = 4096, random.Random(7), [0x1000_0000_0000]
        areas = {}
        def word(at): return ctypes.c_uint64.from_address(at)
        def put(start, page, value=None):
            areas[start][page] = dice.randrange(1, 1 << 60) if value is None else value
            word(start + page * P + 8 * (page % 512)).value = areas[start][page]
        def new(pages, filled=True, flags=0x22, file=-1):
            place[0] += 1 << 30
            start = libc.mmap(place[0], pages * P, 3, flags, file, 0); areas[start] = [0] * pages
            if filled:
                for page in range(pages): put(start, page)
            return start
        def wrong():
            return [(hex(start), page) for start, pages in areas.items() for page in range(len(pages))
                    if word(start + page * P + 8 * (page % 512)).value != pages[page]]
        def scribble(count):
            for _ in range(count):
                start = dice.choice(list(areas)); put(start, dice.randrange(len(areas[start])))
        def move(start, pages):
            kept = areas.pop(start)
            place[0] += 1 << 30
            there = libc.mremap(start, len(kept) * P, pages * P, 3, place[0])
            areas[there] = (kept + [0] * pages)[:pages]; return there
        children = []
        def fork():
            ours, theirs = socket.socketpair()
            if os.fork() == 0:
                ours.close(); children.clear()
                while theirs.recv(1):
                    bad = wrong(); scribble(5); theirs.send(b'bad' if bad else b'ok')
                os._exit(0)
            theirs.close(); children.append(ours)
        def check():
            bad = ['%d wrong pages %s' % (len(wrong()), wrong()[:3])] if wrong() else []
            for index, child in enumerate(children):
                child.send(b'c'); said = child.recv(10)
                if said != b'ok': bad.append('child %d: %s' % (index, said))
            step(); return ', '.join(bad) or 'ok'
        round = 0

        """

    private func order(_ program: Program, _ words: [String], into folder: String, after: String?) throws -> Int32 {
        let path = program.work + "/" + folder
        try #require(mkdir(path, 0o700) == 0)
        let previous = after.map { ["--prev-images-dir", "../" + $0] } ?? []
        return try program.brumate(
            words + ["-t", "\(program.root ?? program.id)", "-D", path, "-v4", "-o", "log", "--no-sync"] + previous)
    }

    /// Bytes of the pages files of a folder.
    private func size(_ program: Program, _ folder: String) throws -> Int {
        try listDirectory(.init(program.work + "/" + folder)).filter {
            $0.string.hasPrefix("pages-") || $0.string.hasPrefix("packed-")
        }.reduce(0) {
            var status = stat()
            guard unsafe stat("\(program.work)/\(folder)/\($1)", &status) == 0 else { return $0 }
            return $0 + Int(status.st_size)
        }
    }

    private func restore(_ program: Program, from folder: String) throws -> Int32 {
        // A copy that was killed early was of the program's group: the pid is free when init has reaped it.
        while isGroup(program.id) { usleep(1000) }
        return try program.brumate(["restore", "-d", "-D", program.work + "/" + folder, "-v4", "-o", "restore.log"])
    }

    private func isGroup(_ id: Int32) -> Bool { kill(-id, 0) == 0 }

    private static let live = ["dump", "--live", "--track-mem"]
    private static let snap = ["dump", "-R", "--track-mem"]

    @Test(arguments: [["pre-dump"], snap, live])
    func `ten in a chain restore exactly, whatever happens between them`(words: [String]) throws {
        let program = try Program(
            Self.model + """
                new(512); new(64, filled=False); new(64)
                open(work + '/mapped', 'wb').write(bytes(64 * P)); f = os.open(work + '/mapped', os.O_RDWR)
                areas[new(64, False, 2, f)][0] = 0
                def step():
                    global round
                    round += 1; scribble(16)
                    firsts = list(areas)
                    if round == 2: new(32)
                    if round == 3: move(firsts[2], 128)
                    if round == 4: fork()
                    if round == 5: libc.munmap(firsts[1] + 32 * P, 32 * P); areas[firsts[1]] = areas[firsts[1]][:32]
                    if round == 6:
                        libc.madvise(firsts[0] + 8 * P, 8 * P, 4)
                        for page in range(8, 16): areas[firsts[0]][page] = 0
                    if round == 7: put(move(move(new(8), 16), 40), 39)
                    if round == 8: fork()
                    if round == 9:
                        libc.madvise(firsts[0] + 100 * P, 2 * P, 102)
                        libc.madvise(firsts[0] + 100 * P, 2 * P, 103)
                        for page in (100, 101): areas[firsts[0]][page] = 0
                serve(check)
                """)
        for round in 0..<10 {
            #expect(try order(program, words, into: "\(round)", after: round > 0 ? "\(round - 1)" : nil) == 0)
            #expect(program.ask() == "ok")
        }
        #expect(try order(program, ["dump", "--track-mem"], into: "last", after: "9") == 0)
        program.reap()
        #expect(!program.text("last/log").contains("Warn"), "\(program.text("last/log"))")
        // The first holds everything, the second what was written between, among it the interpreter's own.
        #expect(try size(program, "1") < size(program, "0") / 2)
        #expect(try restore(program, from: "last") == 0)
        #expect(program.ask() == "ok")
    }

    /// The protection of a private copy of a file's page stays when the copy is dropped, and made it look unwritten.
    @Test(
        arguments: [["pre-dump"], snap, live],
        ["libc.madvise(mapped, 32 * P, 4)", "os.ftruncate(f, 0); os.ftruncate(f, 64 * P)"])
    func `bring no private copy of a mapped file back that was dropped between them`(
        words: [String], drop: String
    ) throws {
        let program = try Program(
            Self.model + """
                open(work + '/mapped', 'wb').write(bytes(64 * P)); f = os.open(work + '/mapped', os.O_RDWR)
                mapped = new(64, False, 2, f)
                for page in range(32): put(mapped, page)
                def step():
                    global round
                    round += 1
                    if round == 1: \(drop); areas[mapped] = [0] * 64
                    # Seen only where the file is mapped, and no copy of it.
                    if round == 2: os.pwrite(f, struct.pack('Q', 7), 0); areas[mapped][0] = 7
                serve(check)
                """)
        #expect(try order(program, words, into: "a", after: nil) == 0)
        #expect(program.ask() == "ok")
        #expect(try order(program, ["dump", "--track-mem"], into: "b", after: "a") == 0)
        program.reap()
        #expect(try restore(program, from: "b") == 0)
        #expect(program.ask() == "ok")
        #expect(program.ask() == "ok")
    }

    /// Shared memory, by mappings or calls, and with relatives who share private pages: what refers to the previous images does
    /// so through the parent of our making.
    @Test(arguments: [snap, live, ["pre-dump"]], [[], ["--compress"]])
    func `write shared memory that has changed`(words: [String], more: [String]) throws {
        let program = try Program(
            """
            import hashlib, mmap
            libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p
            P, N = 4096, 1024
            anonymous = mmap.mmap(-1, N * P); memfd = os.memfd_create('shared'); os.ftruncate(memfd, N * P)
            segment = libc.shmget(0, N * P, 0o1600); attached = libc.shmat(segment, None, 0); libc.shmctl(segment, 0, None)
            view = mmap.mmap(memfd, N * P)
            anonymous[:] = os.urandom(N * P); os.pwrite(memfd, os.urandom(N * P), 0); ctypes.memmove(attached, os.urandom(N * P), N * P)
            private = bytearray(os.urandom(256 * P))
            child = os.fork()
            if child == 0:
                while True: signal.pause()
            round = 0
            def check():
                global round
                # No copies, which would be private memory that has changed.
                held = [anonymous, view, (ctypes.c_char * (N * P)).from_address(attached), private]
                out = '%d ' % round + ' '.join(hashlib.sha256(h).hexdigest() for h in held)
                return out
            def step():
                global round
                round += 1
                anonymous[round * P] ^= 1; os.pwrite(memfd, b'written %d' % round, 7 * P); ctypes.memset(attached + 5 * P, round, 3 * P)
                private[round * P] ^= 1
            def served():
                if os.path.exists(work + '/step'): os.unlink(work + '/step'); step()
                return check()
            serve(served)
            """)
        func step() throws -> String {
            close(open(program.work + "/step", O_CREAT | O_WRONLY, 0o600))
            return program.ask()
        }
        for (folder, after) in [("a", nil), ("b", "a"), ("c", "b")] {
            try #require(try order(program, words + more, into: folder, after: after) == 0)
            if folder != "a" { #expect(try size(program, folder) < size(program, "a") / 8) }
            _ = try step()
        }
        let before = program.ask()
        try #require(try order(program, ["dump", "--track-mem"], into: "last", after: "c") == 0)
        program.reap()
        #expect(try size(program, "last") < 3 << 20)
        #expect(try restore(program, from: "last") == 0)
        #expect(program.ask() == before)
    }

    /// Linux forgets the userfaultfd of mappings that a moved one is joined with, but not what it had noted of their pages.
    @Test(arguments: [["pre-dump"], ["dump", "-R", "--track-mem"]])
    func `write what was written beside a mapping that came back`(words: [String]) throws {
        let program = try Program(
            """
            libc = ctypes.CDLL(None, use_errno=True); A, S = ctypes.c_void_p, ctypes.c_size_t
            libc.mmap.restype = libc.mremap.restype = A
            libc.mmap.argtypes = [A, S, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
            libc.mremap.argtypes = [A, S, S, ctypes.c_int, A]
            P = 4096; all = libc.mmap(None, 48 * P, 3, 0x22, -1, 0); away = libc.mmap(None, 16 * P, 0, 0x22, -1, 0)
            for page in range(48): ctypes.memset(all + page * P, page + 1, P)
            middle = all + 16 * P; want = [page + 1 for page in range(48)]
            def move(to_, from_):
                if libc.mremap(from_, 16 * P, 16 * P, 3, to_) != to_: raise OSError(ctypes.get_errno(), 'mremap')
            move(away, middle)
            def check():
                if os.path.exists(work + '/step'):
                    os.unlink(work + '/step'); move(middle, away)
                    for page in (3, 20, 40): want[page] = 200 + page; ctypes.memset(all + page * P, want[page], P)
                for page in range(48):
                    at = away + (page - 16) * P if 16 <= page < 32 and want[20] < 200 else all + page * P
                    if ctypes.string_at(at, P) != bytes([want[page]]) * P: return 'page %d' % page
            serve(check)
            """)
        #expect(try order(program, words, into: "a", after: nil) == 0)
        close(open(program.work + "/step", O_CREAT | O_WRONLY, 0o600))
        #expect(program.ask() == "ok")
        #expect(try order(program, ["dump", "--track-mem"], into: "b", after: "a") == 0)
        program.reap()
        #expect(try restore(program, from: "b") == 0)
        #expect(program.ask() == "ok")
    }

    @Test func `rely on nothing but the images before them`() throws {
        let program = try Program(Self.model + "new(512)\ndef step(): scribble(4)\nserve(check)\n")
        for (index, (folder, after)) in [("a", nil), ("b", "a"), ("c", "a"), ("d", "none"), ("e", "d")].enumerated() {
            #expect(try order(program, Self.snap, into: folder, after: after) == 0)
            let full = try size(program, "a")
            switch index {
            case 1, 4: #expect(try size(program, folder) < full / 2)
            // Older ones than the last, or none at all: everything is written.
            case 2, 3:
                #expect(try size(program, folder) > full * 9 / 10)
                #expect(program.text(folder + "/log").contains("everything is written"))
            default: break
            }
            #expect(program.ask() == "ok")
        }
        // One without tracking ends it.
        #expect(try order(program, ["dump", "-R"], into: "f", after: nil) == 0)
        #expect(holders(of: program).isEmpty)
        #expect(try order(program, ["dump"], into: "g", after: "e") == 0)
        program.reap()
        #expect(try size(program, "g") > size(program, "a") * 9 / 10)
        #expect(try restore(program, from: "g") == 0)
        #expect(program.ask() == "ok")
    }

    /// Our holders of a tree's tracking: they listen under its name.
    private func holders(of program: Program) -> [Int32] {
        ((try? listNumbers("/proc")) ?? []).filter { number in
            guard let words = try? readWholeFile("/proc/\(number)/cmdline"),
                words.split(separator: 0).last?.elementsEqual("hold-tracking".utf8) ?? false,
                let text = try? readWholeFile("/proc/\(number)/fdinfo/5")
            else { return false }
            return String(decoding: text, as: UTF8.self).contains("\nPid:\t\(program.id)\n")
        }
    }

    @Test func `are whole when nobody kept the tracking, which the program never sees`() throws {
        let program = try Program(
            Self.model + """
                new(256)
                def step(): scribble(4)
                before = os.listdir('/proc/self/fd')
                def all():
                    now = os.listdir('/proc/self/fd')
                    children = open('/proc/self/task/%d/children' % os.getpid()).read()
                    try: os.waitpid(-1, 0x40000000 | os.WNOHANG); return 'a child'
                    except ChildProcessError: pass
                    return check() if len(now) == len(before) + 1 and not children else repr((now, children))
                serve(all)
                """)
        for (folder, words) in [("a", ["pre-dump"]), ("b", Self.live)] {
            #expect(try order(program, words, into: folder, after: nil) == 0)
            #expect(program.ask() == "ok")
        }
        let holder = try #require(holders(of: program).first)
        kill(holder, SIGKILL)
        while holders(of: program).contains(holder) { sched_yield() }
        #expect(try order(program, ["dump", "--track-mem"], into: "c", after: "b") == 0)
        program.reap()
        #expect(try size(program, "c") > size(program, "a") * 9 / 10)
        #expect(try restore(program, from: "c") == 0)
        #expect(program.ask() == "ok")
        // A holder ends with the task.
        #expect(try order(program, ["pre-dump"], into: "d", after: nil) == 0)
        let last = try #require(holders(of: program).first)
        kill(program.id, SIGKILL)
        while (try? readWholeFile("/proc/\(last)/cmdline"))?.isEmpty == false { sched_yield() }
    }

    @Test(arguments: ["dump-connected", "dump-copied", "dump-pages", "dump-commit"])
    func `that are killed harm neither the tree nor the next`(point: String) throws {
        let program = try Program(
            Self.model + """
                new(256); libc.madvise(list(areas)[0], 64 * P, 10)
                def step(): scribble(4)
                def all():
                    maps = [line for line in open('/proc/self/smaps') if line.startswith('VmFlags') and ' dc' in line]
                    return check() if maps else 'the advice is gone'
                serve(all)
                """)
        #expect(try order(program, ["pre-dump"], into: "a", after: nil) == 0)
        #expect(program.ask() == "ok")
        for (folder, words) in [("b", Self.live), ("c", ["pre-dump"])] {
            try #require(mkdir(program.work + "/" + folder, 0o700) == 0)
            let status = try program.brumate(
                words + ["-t", "\(program.id)", "-D", program.work + "/" + folder, "--prev-images-dir", "../a"],
                fault: point + ":kill")
            // A pre-dump does not come to all points.
            #expect(status == 128 + SIGKILL || words == ["pre-dump"])
            #expect(program.ask() == "ok")
            #expect(copies(of: program).isEmpty)
        }
        #expect(try order(program, ["dump", "--track-mem"], into: "d", after: "c") == 0)
        program.reap()
        #expect(try restore(program, from: "d") == 0)
        #expect(program.ask() == "ok")
    }

    /// Tasks that run the program's executable, but are not it.
    private func copies(of program: Program) -> [Int32] {
        let words = try? readWholeFile("/proc/\(program.id)/cmdline")
        for _ in 0..<2000 {
            let found = ((try? listNumbers("/proc")) ?? []).filter {
                $0 != program.id && words != nil && (try? readWholeFile("/proc/\($0)/cmdline")) == words
            }
            if found.isEmpty { return [] }
            sched_yield()
        }
        return [-1]
    }

    @Test(arguments: [["--auto-dedup"], []])
    func `give pages back that later ones have anew`(words: [String]) throws {
        let program = try Program(
            Self.model + """
                new(1024); fork()
                def step():
                    for page in range(512): put(list(areas)[0], page)
                serve(check)
                """)
        for (folder, after) in [("a", nil), ("b", "a"), ("c", "b")] as [(String, String?)] {
            #expect(try order(program, Self.snap + words, into: folder, after: after) == 0)
            #expect(program.ask() == "ok")
            if words.isEmpty {
                #expect(try program.brumate(["dedup", "-D", program.work + "/" + folder, "-o", "dedup.log"]) == 0)
            }
        }
        var status = stat()
        for folder in ["a", "b"] {
            let pages = try size(program, folder)
            var blocks = 0
            for name in try listDirectory(.init(program.work + "/" + folder)) where name.string.hasPrefix("pages-") {
                unsafe stat("\(program.work)/\(folder)/\(name)", &status)
                blocks += Int(status.st_blocks) * 512
            }
            // The child still has the first contents of the parent's pages: those of the first folder stay.
            #expect(blocks < pages - (folder == "b" ? 1 << 20 : 0), "\(folder): \(blocks) of \(pages)")
        }
        #expect(try order(program, ["dump"], into: "last", after: nil) == 0)
        program.reap()
        // What lacks pages by itself says so.
        #expect(try restore(program, from: "b") != 0)
        #expect(program.text("b/restore.log").contains("later images have them anew"))
        #expect(try restore(program, from: "c") == 0)
        #expect(program.ask() == "ok")
    }
}
