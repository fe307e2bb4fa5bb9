import Glibc
import Linux
import Testing

/// Whole sets of images that go through a pipe, a socket or a file.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Images travel in one stream` {
    /// Memory of all sorts, children that share some of it copy-on-write, unlinked files, pipes with contents.
    private static let script = """
        import hashlib
        N = 3 << 20
        private, shared = mmap.mmap(-1, N, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), mmap.mmap(-1, N)
        private.write(os.urandom(N)); shared.write(os.urandom(N // 2))
        def digest(): return hashlib.sha256(private[:] + shared[:]).hexdigest()
        gone = open(work + '/gone', 'w+b', 0); os.unlink(work + '/gone'); gone.write(b'ghost' * 50000)
        kept = open(work + '/kept', 'w+b', 0); kept.write(b'kept')
        memory = os.memfd_create('m'); os.write(memory, b'memfd' * 1000)
        full = os.pipe(); os.write(full[1], b'p' * 60000)
        before = digest()
        def whole():
            if digest() != before: return 'memory'
            if os.pread(gone.fileno(), 1 << 20, 0) != b'ghost' * 50000: return 'the unlinked file'
            if os.pread(kept.fileno(), 9, 0) != b'kept' or kept.tell() != 4: return 'the file'
            if os.pread(memory, 9, 4995) != b'memfd': return 'the memfd'
            waiting = os.read(full[0], 1 << 16); os.write(full[1], waiting)
            if waiting != b'p' * 60000: return 'the pipe'
            return 'ok'
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            while theirs.recv(1): theirs.send(whole().encode())
            os._exit(0)
        def check():
            mine = whole(); ours.send(b'?'); child = ours.recv(99).decode()
            return mine if mine != 'ok' else child
        serve(check)
        """

    /// Other kinds of programs: what each has besides memory.
    private static let others = [
        """
        ticks = [0]
        def tick():
            while True: ticks[0] += 1; time.sleep(0.001)
        for _ in range(8): threading.Thread(target=tick, daemon=True).start()
        def check():
            last = ticks[0]; limit = time.monotonic() + 10
            while ticks[0] == last:
                if time.monotonic() > limit: return 'threads stand still'
        serve(check)
        """,
        """
        f = [open(work + '/f%d' % i, 'w+') for i in range(300)]; s = socket.socketpair()
        l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(); c = socket.create_connection(l.getsockname()); d, _ = l.accept()
        s[0].send(b'unix'); c.send(b'inet')
        def check():
            if s[1].recv(9) != b'unix' or d.recv(9) != b'inet': return 'a socket'
            s[0].send(b'unix'); c.send(b'inet')
        serve(check)
        """,
        """
        def up(n):
            r, w = os.pipe()
            if os.fork() == 0:
                os.close(w); signal.signal(signal.SIGTERM, signal.SIG_DFL)
                if n: up(n - 1)
                os.read(r, 1); os._exit(n)
            os.close(r); tops.append(w)
        tops = []; big = bytearray(os.urandom(8 << 20)); copy = bytes(big)
        for _ in range(6): up(2)
        def check(): return 'ok' if big == copy else 'memory'
        serve(check)
        """,
    ]

    /// A program that is nobody's child but init's: whoever waits for its end need not be us.
    private func start(_ script: String = Self.script) throws -> Program {
        let program = try Program(script)
        #expect(try program.cycle() == "ok")
        return program
    }

    /// Runs a script for the shell. `D` dumps the program, `R` restores and `V` receives; `W` is the work directory.
    private func shell(_ program: Program, _ script: String) throws -> Int32 {
        let work = program.work
        let words = """
            set -o pipefail; export W=\(work); cd $W; mkdir -p store
            D() { \(Program.binary) dump -t \(program.id) -W $W -v4 -o dump.log "$@"; }
            R() { \(Program.binary) restore -d -W $W -v4 -o restore.log "$@"; }
            V() { \(Program.binary) receive -D $W/store -W $W -v4 -o receive.log "$@"; }
            S() { \(Program.binary) send -D $W/store -W $W -v4 -o send.log "$@"; }
            """
        return try program.run(["bash", "-c", words + "\n" + script])
    }

    // MARK: pipes

    @Test func `from pipe to pipe, without a file`() throws {
        let program = try start()
        for _ in 0..<3 {
            #expect(try shell(program, "D --stream-to - | R --stream-from -") == 0, "\(program.text("dump.log"))")
            #expect(program.ask() == "ok")
        }
        #expect(try shell(program, "ls *.img store/* stats-* inventory.img") != 0)
    }

    @Test(arguments: others) func `programs of other kinds`(script: String) throws {
        let program = try start(script)
        for _ in 0..<3 {
            #expect(try shell(program, "D --stream-to - | R --stream-from -") == 0, "\(program.text("restore.log"))")
            #expect(program.ask() == "ok")
        }
        #expect(try shell(program, "D --live --stream-to '|cat >$W/saved'") == 0)
        #expect(program.ask() == "ok")
    }

    @Test func `to a reader that is slow`() throws {
        let program = try start()
        let slow = """
            python3 -c 'import os, time
            while b := os.read(0, 20000): os.write(1, b); time.sleep(0.0005)'
            """
        #expect(try shell(program, "D --stream-to - | \(slow) | R --stream-from -") == 0)
        #expect(program.ask() == "ok")
    }

    @Test func `to a reader that stops anywhere: the program goes on`() throws {
        let program = try start()
        #expect(try shell(program, "D -R --stream-to saved") == 0)
        for place in ["0", "1", "100", "70000", "2000000", "$(($(stat -c %s saved) - 3000))"] {
            // The reader never reads what is left: it ends.
            let reader =
                "python3 -c 'import os, sys; n = int(sys.argv[1])\nwhile n: n -= len(os.read(0, n)) or n' \(place)"
            #expect(try shell(program, "D --stream-to - | \(reader); exit ${PIPESTATUS[0]}") == 1, "\(place)")
            #expect(program.text("dump.log").contains("is gone before its end"))
            #expect(program.ask() == "ok")
        }
    }

    @Test func `to a command, whose failure is the dump's`() throws {
        let program = try start()
        #expect(try shell(program, "D --stream-to '|cat >$W/saved; exit 3'") == 1)
        #expect(program.text("dump.log").contains("failed with status 3"))
        #expect(try shell(program, "D --stream-to '|\(Program.binary) restore -d --stream-from -'") == 1)
        #expect(program.text("brumate.log").contains("is taken by another task"))
        #expect(program.ask() == "ok")
        #expect(try shell(program, "D --stream-to '|cat >$W/saved'") == 0)
        #expect(program.isGone)
        #expect(try shell(program, "R --stream-from saved") == 0)
        #expect(program.ask() == "ok")
    }

    // MARK: directories

    @Test func `a directory that is sent and received is the same`() throws {
        let program = try start()
        #expect(try program.dump(["-R"]) == 0)
        let send = "\(Program.binary) send -D images -W $W --stream-to"
        #expect(
            try shell(
                program, "\(send) - | V --stream-from - && rm images/*.log images/stats-restore && diff -r images store"
            ) == 0)
        // Pages that relatives share are in one file, too.
        #expect(
            try shell(program, "cd store/shared-pages && for p in pages-*; do [ $p -ef ../$p ] || exit 1; done") == 0
        )
        #expect(try shell(program, "\(send) saved && cat saved | S --stream-to - >/dev/null; \(send) saved") == 1)
        #expect(program.text("brumate.log").contains("A file that is there is not written over"))
    }

    @Test func `what is received is what a dump into a directory has`() throws {
        // The kernel notes in a thread's memory which CPU it runs on (rseq), so that is always the same one.
        let program = try Program("os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n" + Self.script)
        #expect(program.ask() == "ok")
        let wait =
            "for p in \(program.id) $(pgrep -P \(program.id)); do until grep -q ') S ' /proc/$p/stat; do :; done; done"
        #expect(try shell(program, wait) == 0)
        #expect(try program.dump(["-R"]) == 0)
        #expect(try shell(program, wait + "; D -R --stream-to - | V --stream-from -") == 0)
        // Only what tells times differs from one dump to the next one, of the unlinked file, too.
        let compare = """
            rm -f images/*.log; list() { (cd $1; find . -printf '%p %l %n\\n' | sort); }; diff <(list images) <(list store) &&
            for f in $(cd images; find . -type f); do cmp -s images/$f store/$f || echo $f; done > different &&
            ! grep -Ev '/(core-|timens|stats-dump|inventory|ghost-file)' different
            """
        #expect(try shell(program, compare) == 0, "\(program.text("brumate.log"))")
        #expect(try shell(program, "D --stream-to - >saved && V --stream-from saved") == 0)
        program.reap()
        #expect(try shell(program, "R -D store") == 0)
        #expect(program.ask() == "ok")
    }

    @Test(arguments: ["--compress", "--compress=zstd --no-checksum", "--checksum"])
    func `with compressed pages and hashes`(options: String) throws {
        let program = try start()
        let store = "D -R \(options) --stream-to - | V --stream-from - && ls store/*-1.img"
        #expect(try shell(program, store) == 0, "\(program.text("brumate.log"))")
        #expect(try shell(program, "D \(options) --stream-to - | R --stream-from -") == 0)
        #expect(program.ask() == "ok")
        #expect(
            try shell(program, "D \(options) --stream-to '|cat >$W/saved' && V --stream-from saved && R -D store") == 0)
        #expect(program.ask() == "ok", "\(program.text("restore.log"))")
    }

    // MARK: damage

    @Test func `a stream that was cut anywhere leaves nothing`() throws {
        let program = try start("serve(lambda: None)")
        let script = """
            import os, random, struct, subprocess, sys
            binary, work = sys.argv[1:]
            whole = open(work + '/saved', 'rb').read()
            places, at = [0, 8, 16], 16
            while at < len(whole):
                length = struct.unpack_from('<I', whole, at + 16)[0]
                places += [at + 12, at + 24 + length]; at += 24 + length
            assert at == len(whole) and len(places) > 30
            random.seed(5)
            places = sorted(set(random.sample(places, 30) + [random.randrange(at) for _ in range(30)] + [at - 1]) - {at})
            def feed(data, *words):
                p = subprocess.run([binary, *words, '--stream-from', '-'], input=data, capture_output=True, cwd=work)
                return p.returncode, p.stderr.decode()
            for place in places:
                for words in ['receive', '-D', work + '/store'], ['restore', '-d']:
                    code, text = feed(whole[:place], *words)
                    if code != 1 or 'stops before its end' not in text and 'does not begin' not in text: sys.exit(str((place, words, text)))
                if os.listdir(work + '/store'): sys.exit('left something of %d' % place)
            for _ in range(60):
                place = random.randrange(16, at); bad = bytearray(whole); bad[place] ^= 1 << random.randrange(8)
                code, text = feed(bytes(bad), 'receive', '-D', work + '/store')
                if code != 1 or 'damaged' not in text and 'stops before' not in text: sys.exit(str((place, text)))
            code, text = feed(whole + b'x', 'receive', '-D', work + '/store')
            if code != 1 or 'follows its end' not in text: sys.exit(text)
            if os.listdir(work + '/store'): sys.exit('left something')
            """
        #expect(try shell(program, "D -R --stream-to saved") == 0)
        #expect(
            try program.run(["python3", "-c", script, Program.binary, program.work]) == 0,
            "\(program.text("brumate.log"))")
        #expect(program.ask() == "ok")
    }

    @Test func `a stream of an enemy`() throws {
        let program = try Program("serve(lambda: None)")
        let script = #"""
            import os, struct, subprocess, sys
            binary, work = sys.argv[1:]
            table = []
            for n in range(256):
                for _ in range(8): n = n >> 1 ^ (0x82f63b78 if n & 1 else 0)
                table.append(n)
            def crc(data):
                c = 0xffffffff
                for b in data: c = c >> 8 ^ table[(c ^ b) & 255]
                return c ^ 0xffffffff
            def record(kind, file, value, data=b'', length=None):
                head = struct.pack('<IIQI', kind, file, value, len(data) if length is None else length)
                return head + struct.pack('<I', crc(head + data)) + data
            def named(name, file=0, value=0): return record(1, file, value, name)
            head, I = b'BRUMIMGS' + struct.pack('<II', 1, 0), b'inventory.img'
            def end(files, total=0): return record(4, files, total)
            good = head + named(I) + record(2, 0, 0, b'abc') + end(1, 3)
            bad = {
                'magic': b'BRUMIMGT' + good[8:], 'version': head[:8] + struct.pack('<II', 2, 0) + good[16:],
                'flags': head[:12] + struct.pack('<I', 2) + good[16:],
                'answer through a pipe': head[:12] + struct.pack('<I', 1) + good[16:],
                'dots': head + named(b'../x.img') + named(I, 1) + end(2), 'hidden': head + named(b'.x.img') + named(I, 1) + end(2),
                'slash': head + named(b'/tmp/x.img') + named(I, 1) + end(2), 'folder': head + named(b'a/x.img') + named(I, 1) + end(2),
                'deep': head + named(b'shared-pages/../../x.img') + named(I, 1) + end(2),
                'zero': head + named(b'x\0.img') + named(I, 1) + end(2), 'empty': head + named(b'') + named(I, 1) + end(2),
                'no image': head + named(b'passwd') + named(I, 1) + end(2), 'long': head + named(b'x' * 300 + b'.img') + named(I, 1) + end(2),
                'bytes': head + named(b'\xff.img') + named(I, 1) + end(2), 'parent': head + named(b'parent') + named(I, 1) + end(2),
                'twice': head + named(I) + named(I, 1) + end(2), 'number': head + named(I, 1) + end(1),
                'number huge': head + named(I, 0xffffffff) + end(1),
                'gap': head + named(I) + record(2, 0, 1, b'abc') + end(1, 3),
                'offset huge': head + named(I) + record(2, 0, 1 << 63, b'abc') + end(1, 3),
                'no such file': head + named(I) + record(2, 1, 0, b'abc') + end(1, 3),
                'too long': head + named(I) + record(2, 0, 0, b'abc', 0xffffffff) + end(1, 3),
                'nothing': head + named(I) + record(2, 0, 0) + end(1), 'kind': head + named(I) + record(5, 0, 0) + end(1),
                'kind huge': head + named(I) + record(0xffffffff, 0, 0) + end(1),
                'link to itself': head + named(I) + record(3, 1, 1, b'shared-pages/a.img') + end(2),
                'link to a link': head + named(I) + named(b'a.img', 1) + record(3, 2, 1, b'shared-pages/a.img') + record(3, 3, 2, b'shared-pages/b.img') + end(4),
                'link out': head + named(I) + record(3, 1, 0, b'a.img') + end(2),
                'link for the inventory': head + named(b'a.img') + record(3, 1, 0, I) + end(2),
                'data of a link': head + named(b'a.img') + record(3, 1, 0, b'shared-pages/a.img') + record(2, 1, 0, b'x') + named(I, 2) + end(3, 1),
                'no inventory': head + named(b'a.img') + end(1), 'count': head + named(I) + end(2), 'total': head + named(I) + end(1, 1),
                'nothing at all': head + end(0), 'end with data': head + named(I) + record(4, 1, 0, b'x'),
            }
            def feed(data, *words):
                words = ['prlimit', '--as=400000000', binary, *words, '--stream-from', '-']
                p = subprocess.run(words, input=data, capture_output=True, cwd=work, stdin=None)
                return p.returncode, p.stderr.decode()
            store = work + '/store'; os.mkdir(store)
            for name, data in bad.items():
                for words in ['receive', '-D', store], ['restore', '-d']:
                    code, text = feed(data, *words)
                    if code != 1 or 'Error' not in text: sys.exit(str((name, words, code, text)))
                    if os.listdir(store) or os.path.exists(work + '/x.img'): sys.exit('left: ' + name)
            code, text = feed(good, 'receive', '-D', store)
            if code or open(store + '/inventory.img').read() != 'abc': sys.exit('the good one: ' + text)
            """#
        #expect(
            try program.run(["python3", "-c", script, Program.binary, program.work]) == 0,
            "\(program.text("brumate.log"))")
    }

    // MARK: sockets

    /// Sends a program through a socket to a restore in a pid namespace of its own, or to another end.
    private func move(
        _ program: Program, to end: String = "restore", dumpFault: String = "", restoreFault: String = ""
    ) throws -> [Int] {
        let script = """
            import ctypes, os, socket, subprocess, sys
            binary, tree, work, end, dumping, restoring = sys.argv[1:]
            libc = ctypes.CDLL(None)
            ours, theirs = socket.socketpair()
            def run(fault, *words, **streams):
                order = [binary, *words, '-W', work, '-v4', '-o', words[0] + '.log']
                return subprocess.Popen(order, env=dict(os.environ, BRUMATE_FAULT=fault), **streams)
            def there():
                if end == 'dies':
                    data = b'?'
                    while data and data[-24:-20] != b'\\4\\0\\0\\0':
                        more = theirs.recv(1 << 20); data = more and data[-24:] + more
                    return 0
                if end == 'receive': return run(restoring, 'receive', '-D', work + '/store', '--stream-from', '-', stdin=theirs)
                return run(restoring, 'restore', '-d', '--stream-from', '-', stdin=theirs)
            told, tell = os.pipe()
            if os.fork() == 0:
                ours.close(); os.close(told); os.setsid()
                assert libc.unshare(0x20020000) == 0  # NEWPID, NEWNS
                if os.fork() == 0:
                    assert libc.mount(b'none', b'/', None, 0x44000, None) == 0  # REC, PRIVATE
                    assert libc.mount(b'proc', b'/proc', b'proc', 0, None) == 0
                    process = there(); theirs.close()
                    os.write(tell, b'%d' % (process.wait() if process else 0)); os.close(tell)
                    for number in range(3): os.close(number)
                    while True:
                        try: os.wait()
                        except ChildProcessError: os._exit(0)
                os._exit(0)
            theirs.close(); os.close(tell)
            dump = run(dumping, 'dump', '-t', tree, '--stream-to', '-', stdout=ours)
            ours.close()
            print(dump.wait(), os.read(told, 9).decode(), file=open(work + '/moved', 'w'))
            """
        mkdir(program.work + "/store", 0o700)
        let words = [
            "python3", "-c", script, Program.binary, "\(program.id)", program.work, end, dumpFault, restoreFault,
        ]
        #expect(try program.run(words) == 0, "\(program.text("brumate.log"))")
        return program.text("moved").split { $0 == " " || $0 == "\n" }.compactMap { Int($0) }
    }

    @Test func `through a socket: the program ends here when it is about to run there`() throws {
        let program = try start()
        #expect(try move(program) == [0, 0], "\(program.text("dump.log")) \(program.text("restore.log"))")
        #expect(program.isGone)
        #expect(program.ask() == "ok")
    }

    @Test(arguments: ["restore-planned", "restore-files", "restore-sealed"])
    func `a restore that fails tells the dump, and the program goes on`(fault: String) throws {
        let program = try start()
        #expect(try move(program, restoreFault: fault) == [1, 1])
        #expect(program.text("dump.log").contains("gave up: The fault point \(fault)"), "\(program.text("dump.log"))")
        #expect(program.ask() == "ok")
        #expect(try move(program, restoreFault: fault + ":kill") == [1, -9])
        #expect(program.ask() == "ok")
    }

    @Test func `a receiver that dies after the last byte: the program goes on`() throws {
        let program = try start()
        #expect(try move(program, to: "dies") == [1, 0])
        #expect(program.text("dump.log").contains("is gone before it said that all went well"))
        #expect(program.ask() == "ok")
    }

    @Test(arguments: ["dump-frozen", "dump-pages", "dump-commit"])
    func `a dump that dies leaves nothing at the other end`(fault: String) throws {
        let program = try start()
        for end in ["restore", "receive"] {
            #expect(try move(program, to: end, dumpFault: fault + ":kill") == [-9, 1])
            #expect(try shell(program, "ls store/* images/inventory.img") != 0)
            #expect(program.ask() == "ok")
        }
    }

    @Test func `through a socket into a directory`() throws {
        let program = try start()
        #expect(try move(program, to: "receive") == [0, 0])
        #expect(program.isGone)
        #expect(try shell(program, "R -D store") == 0)
        #expect(program.ask() == "ok")
    }

    @Test func `scripts see the images, and nothing of theirs gets into the stream`() throws {
        let program = try start()
        let script = """
            printf '#!/bin/sh\necho noise; [ $CRTOOLS_SCRIPT_ACTION != post-restore ] || cat $CRTOOLS_IMAGE_DIR/inventory.img >$0.saw\n' >hook
            chmod +x hook; D --display-stats --action-script $W/hook --stream-to - | R --action-script $W/hook --stream-from - && [ -s hook.saw ]
            """
        #expect(try shell(program, script) == 0, "\(program.text("brumate.log"))")
        #expect(program.ask() == "ok")
    }
}
