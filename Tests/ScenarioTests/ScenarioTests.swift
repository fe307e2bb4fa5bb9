import Glibc
import Linux
import Testing

/// Whole checkpoints of Python programs. They need root.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A program goes on after dump and restore` {
    @Test func `with its memory, threads and counters`() throws {
        let program = try Program(
            """
            import hashlib
            data = bytearray(os.urandom(3 << 20)); digest = hashlib.sha256(data).hexdigest()
            ticks = [0]
            def tick():
                while True: ticks[0] += 1; time.sleep(0.001)
            for _ in range(5): threading.Thread(target=tick, daemon=True).start()
            last = [0]
            def check():
                if hashlib.sha256(data).hexdigest() != digest: return 'memory changed'
                if len(os.listdir('/proc/self/task')) != 6: return 'threads are missing'
                while ticks[0] <= last[0]: time.sleep(0.001)
                last[0] = ticks[0]
            serve(check)
            """)
        for _ in 1...3 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }

    @Test func `with files, offsets, flags, and descriptions shared after fork`() throws {
        let program = try Program(
            """
            f = os.open(work + '/data', os.O_RDWR | os.O_CREAT); os.write(f, b'0123456789'); os.lseek(f, 3, 0)
            a = os.open(work + '/data', os.O_WRONLY | os.O_APPEND); d = os.dup(f); os.set_inheritable(d, True)
            p = os.open(work, os.O_PATH)
            g = os.open(work + '/gone', os.O_RDWR | os.O_CREAT); os.write(g, b'ghost'); os.unlink(work + '/gone')
            os.mkdir(work + '/dir'); os.chdir(work + '/dir'); os.umask(0o31)
            r, w = os.pipe()
            child = os.fork()
            if child == 0:
                os.read(r, 1); os.lseek(f, 7, 0); os._exit(5)
            def check():
                import fcntl
                if os.lseek(f, 0, 1) != 3: return 'offset'
                if not fcntl.fcntl(a, fcntl.F_GETFL) & os.O_APPEND: return 'append'
                if fcntl.fcntl(d, fcntl.F_GETFD) & 1 or not fcntl.fcntl(f, fcntl.F_GETFD) & 1: return 'close-on-exec'
                if os.pread(g, 10, 0) != b'ghost' or os.fstat(g).st_nlink: return 'ghost'
                if os.getcwd() != work + '/dir' or os.umask(0o31) != 0o31: return 'directories'
                if not os.readlink('/proc/self/fd/%d' % g).endswith('/gone (deleted)'): return 'name of the ghost'
                os.write(w, b'!')
                if os.waitpid(child, 0)[1] >> 8 != 5: return 'child'
                if os.lseek(d, 0, 1) != 7: return 'the description is not shared'
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `with pipes in any state`() throws {
        let program = try Program(
            """
            import fcntl
            full = os.pipe(); os.set_blocking(full[1], False)
            n = 0
            try:
                while True: n += os.write(full[1], bytes([n & 255]) * 4096)
            except BlockingIOError: pass
            big = os.pipe(); fcntl.fcntl(big[1], 1031, 1 << 18); os.write(big[1], b'x' * 200000)
            half = os.pipe(); os.write(half[1], b'last words'); os.close(half[1])
            packets = os.pipe2(os.O_DIRECT); os.write(packets[1], b'one'); os.write(packets[1], b'three')
            many = [os.pipe() for _ in range(2000)]
            def check():
                if fcntl.fcntl(big[0], 1032) != 1 << 18 or len(os.read(big[0], 1 << 20)) != 200000: return 'big pipe'
                if os.read(half[0], 100) != b'last words' or os.read(half[0], 1) != b'': return 'half-closed pipe'
                if os.read(packets[0], 100) != b'one' or os.read(packets[0], 100) != b'three': return 'packets'
                got = 0
                while got < n: got += len(os.read(full[0], 65536))
                os.write(many[1999][1], b'.')
                if os.read(many[1999][0], 1) != b'.': return 'many pipes'
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `as a tree with sessions, groups, zombies and a stopped child`() throws {
        let program = try Program(
            """
            def child(body):
                pid = os.fork()
                if pid == 0:
                    try: body()
                    finally: os._exit(0)
                return pid
            def sleep():
                while True: signal.pause()
            group = child(lambda: (os.setpgid(0, 0), sleep()))
            session = child(lambda: (os.setsid(), child(sleep), sleep()))
            zombie = child(lambda: os._exit(42))
            killed = child(lambda: os.kill(os.getpid(), 9))
            stopped = child(sleep); 
            os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT); os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
            os.kill(stopped, signal.SIGSTOP); os.waitid(os.P_PID, stopped, os.WSTOPPED | os.WNOWAIT)
            while os.getpgid(group) != group or os.getsid(session) != session: time.sleep(0.001)
            def check():
                if os.getpgid(group) != group or os.getsid(group) != os.getpid(): return 'group'
                if os.getsid(session) != session: return 'session'
                if open('/proc/%d/stat' % stopped).read().split()[2] != 'T': return 'not stopped'
                if os.waitpid(zombie, 0)[1] != 42 << 8: return 'zombie'
                if os.waitpid(killed, 0)[1] != 9: return 'killed zombie'
                os.kill(stopped, signal.SIGCONT); os.kill(stopped, 9)
                if os.waitpid(stopped, 0)[1] != 9: return 'stopped child'
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `without an early or interrupted sleep`() throws {
        let program = try Program(
            """
            libc = ctypes.CDLL(None, use_errno=True)
            results = {}
            class T(ctypes.Structure): _fields_ = [('s', ctypes.c_long), ('n', ctypes.c_long)]
            def nap(name, call, least):
                start = time.monotonic(); r = call(); results[name] = (r, ctypes.get_errno(), time.monotonic() - start, least)
            t, rem = T(1, 0), T(0, 0)
            fds = (ctypes.c_int * 2)(-1, 0)
            jobs = [
                ('nanosleep', lambda: libc.nanosleep(ctypes.byref(T(1, 0)), ctypes.byref(rem)), 1),
                ('nanosleep without remainder', lambda: libc.nanosleep(ctypes.byref(T(1, 0)), None), 1),
                ('poll', lambda: libc.poll(fds, 1, 1000), 1),
            ]
            threads = [threading.Thread(target=nap, args=j) for j in jobs]
            for th in threads: th.start()
            def check():
                for th in threads: th.join()
                for name, (r, errno, took, least) in results.items():
                    if r: return '%s returned %d, errno %d' % (name, r, errno)
                    if took < least: return '%s was early: %f' % (name, took)
            serve(check)
            """)
        // Once while it goes on running, which leaves its threads in restart_syscall, then for good.
        #expect(try program.dump(["-R"]) == 0)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `with signals, timers, limits and identity`() throws {
        let program = try Program(
            """
            import resource
            seen = []
            signal.signal(signal.SIGUSR1, lambda s, f: seen.append(s)); signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN, signal.SIGTERM]); os.kill(os.getpid(), signal.SIGRTMIN)
            signal.setitimer(signal.ITIMER_REAL, 1000, 2000)
            resource.setrlimit(resource.RLIMIT_NOFILE, (400, 500)); os.nice(3); os.sched_setaffinity(0, {0})
            libc = ctypes.CDLL(None); libc.prctl(15, b'renamed'); libc.prctl(36, 1, 0, 0, 0); libc.prctl(29, 123456)
            open('/proc/self/coredump_filter', 'w').write('0x11'); open('/proc/self/oom_score_adj', 'w').write('77')
            for name in ('', '/request', '/answer'): os.chmod(work + name, 0o777)
            os.setgroups([7, 9]); os.setresgid(11, 12, 13); os.setresuid(1000, 1001, 1002)
            libc.prctl(38, 1, 0, 0, 0)
            def status(key): return [l.split(':')[1].split() for l in open('/proc/thread-self/status') if l.startswith(key + ':')][0]
            before = {k: status(k) for k in 'Uid Gid Groups CapEff CapPrm CapBnd NoNewPrivs Cpus_allowed SigBlk SigIgn'.split()}
            def check():
                for k in before:
                    if status(k) != before[k]: return '%s: %s, was %s' % (k, status(k), before[k])
                if resource.getrlimit(resource.RLIMIT_NOFILE) != (400, 500): return 'limit'
                left, every = signal.getitimer(signal.ITIMER_REAL)
                if not 900 < left < 1000 or every != 2000: return 'timer'
                if signal.sigpending() != {signal.SIGRTMIN}: return 'pending: %s' % signal.sigpending()
                if os.getpriority(0, 0) != 3 or libc.prctl(30) != 123456: return 'nice or slack'
                if open('/proc/self/comm').read() != 'renamed\\n': return 'name'
                if open('/proc/self/coredump_filter').read() != '00000011\\n': return 'core filter'
                if open('/proc/self/oom_score_adj').read() != '77\\n': return 'oom score'
                os.kill(os.getpid(), signal.SIGUSR1)
                while not seen: time.sleep(0.001)
                if seen != [signal.SIGUSR1]: return 'handler'
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `with every kind of mapping`() throws {
        let program = try Program(
            """
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
            libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
            libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
            P = 4096
            def area(flags=0x22, prot=3, pages=8, fd=-1): return libc.mmap(None, pages * P, prot, flags, fd, 0)
            def put(a, n=5): ctypes.memset(a, n, P)
            plain = area(); put(plain + P)
            ro = area(); put(ro); libc.mprotect(ro, 8 * P, 1)
            none = area(); put(none); libc.mprotect(none, 8 * P, 0)
            shared = area(0x21); put(shared, 9)
            named = area(); has_names = libc.prctl(0x53564d41, 0, named, 8 * P, b'a name') == 0
            advised = area()
            for advice in (10, 16, 2): libc.madvise(advised, 8 * P, advice)
            locked = area(pages=2); libc.mlock(locked, 2 * P); libc.prctl(15, 0, None, 0, None)
            guard = area(); guarded = libc.madvise(guard + 2 * P, P, 102) == 0
            open(work + '/mapped', 'wb').write(b'f' * 5 * P)
            f = os.open(work + '/mapped', os.O_RDWR)
            fp = area(2, fd=f, pages=4); put(fp + P, 66)
            fs = area(1, fd=f, pages=4); put(fs + 2 * P, 77)
            m = os.memfd_create('shm'); os.ftruncate(m, 4 * P); ms = area(1, fd=m, pages=4); put(ms, 3)
            os.close(f)
            def maps(): return [l for l in open('/proc/self/maps') if not '[heap]' in l]
            def lines(key):
                out, head = {}, None
                for l in open('/proc/self/smaps'):
                    if l[0] in '0123456789abcdef' and '-' in l.split()[0]: head = l.split()[0]
                    elif l.startswith(key): out[head] = l
                return out
            interesting = [plain, ro, none, shared, named, advised, locked, guard, fp, fs, ms]
            def flags():
                d = lines('VmFlags:'); return [[v for k, v in d.items() if int(k.split('-')[0], 16) <= a < int(k.split('-')[1], 16)] for a in interesting]
            before = flags()
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            child = os.fork()
            if child == 0:
                signal.sigwait([signal.SIGUSR1]); os._exit(ctypes.string_at(shared, 1)[0])
            def check():
                if flags() != before: return 'flags: %s were %s' % (flags(), before)
                if ctypes.string_at(plain, 3 * P) != b'\\0' * P + b'\\5' * P + b'\\0' * P: return 'plain'
                if ctypes.string_at(ro, P) != b'\\5' * P: return 'read-only'
                libc.mprotect(none, 8 * P, 1)
                if ctypes.string_at(none, P) != b'\\5' * P: return 'inaccessible'
                if ctypes.string_at(fp, 3 * P) != b'f' * P + b'B' * P + b'M' * P: return 'private file'
                if ctypes.string_at(fs, 3 * P) != b'f' * 2 * P + b'M' * P: return 'shared file'
                if ctypes.string_at(ms, 2) != b'\\3\\3': return 'memfd'
                if has_names and not any('[anon:a name]' in l for l in maps()): return 'name'
                ctypes.memset(shared, 33, 1)
                os.kill(child, signal.SIGUSR1)
                if os.waitpid(child, 0)[1] >> 8 != 33: return 'shared memory'
                if guarded:
                    pid = os.fork()
                    if pid == 0: ctypes.memset(guard + 2 * P, 1, 1); os._exit(0)
                    if os.waitpid(pid, 0)[1] & 127 != 11: return 'guard page'
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `and a forked tree keeps sharing its pages`() throws {
        let program = try Program(
            """
            data = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            data.write(os.urandom(1 << 20) * 32)
            def child():
                pid = os.fork()
                if pid == 0:
                    data[5 << 20] = (data[5 << 20] + 1) & 255
                    while True: signal.pause()
                return pid
            children = [child() for _ in range(4)]
            def private(pid):
                return sum(int(l.split()[1]) for l in open('/proc/%d/smaps_rollup' % pid) if l.startswith('Private_'))
            def check():
                for pid in children:
                    if private(pid) > 8 << 10: return 'process %d has %d kB of its own' % (pid, private(pid))
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }
}

@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Nothing is lost when an order fails` {
    private static let counter = """
        ticks = [0]
        def tick():
            while True: ticks[0] += 1; time.sleep(0.001)
        threading.Thread(target=tick, daemon=True).start()
        child = os.fork()
        if child == 0:
            while True: signal.pause()
        last = [0]
        def check():
            while ticks[0] <= last[0]: time.sleep(0.001)
            last[0] = ticks[0]
            if any('brumate' in l for l in open('/proc/self/maps')): return 'a mapping is left'
            os.kill(child, 0)
        serve(check)
        """

    @Test(arguments: [
        "dump-frozen", "dump-planted", "dump-connected", "dump-cured", "dump-files", "dump-pages", "dump-commit",
    ])
    func `a dump that fails or dies leaves the tree running`(_ point: String) throws {
        let program = try Program(Self.counter)
        let maps = try readWholeFile("/proc/\(program.id)/maps")
        for ending in ["fail", "kill"] {
            #expect(try program.dump(fault: "\(point):\(ending)") != 0)
            #expect(program.ask() == "ok", "\(point):\(ending)")
            #expect(try readWholeFile("/proc/\(program.id)/maps") == maps, "\(point):\(ending)")
            #expect(access(program.images + "/inventory.img", F_OK) != 0)
        }
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test(arguments: [
        "restore-planned", "restore-sown", "restore-grown", "restore-memory", "restore-files", "restore-sealed",
    ])
    func `a restore that fails or dies leaves nothing`(_ point: String) throws {
        let program = try Program(Self.counter)
        let children = try readWholeFile("/proc/\(program.id)/task/\(program.id)/children")
        let child = try #require(Int32(String(decoding: children, as: UTF8.self).filter(\.isNumber)))
        try #require(try program.dump() == 0)
        while kill(child, 0) == 0 { usleep(1000) }
        for ending in ["fail", "kill"] {
            #expect(try program.restore(fault: "\(point):\(ending)") != 0)
            if ending == "fail" { #expect(kill(child, 0) != 0, "the pid of its child is not free") }
            #expect(program.isGone, "\(point):\(ending)")
        }
        #expect(try program.restore() == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
    }

    @Test func `a restore that dies while it lets the tree go leaves it whole, one that fails leaves nothing`() throws {
        let program = try Program(Self.counter)
        try #require(try program.dump() == 0)
        #expect(try program.restore(fault: "restore-releasing:fail") != 0)
        #expect(program.isGone)
        #expect(try program.restore(fault: "restore-releasing:kill") != 0)
        #expect(program.ask() == "ok")
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `an unlinked file over the limit is refused with its size and the option`() throws {
        let program = try Program(
            """
            f = os.open(work + '/big', os.O_RDWR | os.O_CREAT); os.write(f, b'x' * (2 << 20)); os.unlink(work + '/big')
            serve(lambda: None if os.fstat(f).st_size == 2 << 20 else 'size')
            """)
        #expect(try program.dump() == 1)
        let line = program.lastLine("dump.log")
        #expect(
            line.contains("Error") && line.contains("--ghost-limit") && line.contains("/big")
                && line.contains("2097152"))
        #expect(program.ask() == "ok")
        let outcome = try program.cycle(["--ghost-limit", "4M"])
        #expect(outcome == "ok")
    }

    @Test func `figures and CPU features are written and read`() throws {
        let program = try Program("serve(lambda: None)")
        #expect(try program.brumate(["cpuinfo", "dump", "-D", program.images]) == 0)
        #expect(try program.brumate(["cpuinfo", "check", "-D", program.images]) == 0)
        #expect(try program.cycle() == "ok")
        for name in ["cpuinfo.img", "stats-dump", "stats-restore"] {
            #expect(access("\(program.images)/\(name)", F_OK) == 0, "\(name)")
        }
    }

    @Test func `a taken pid is named with its holder before anything is created`() throws {
        let program = try Program("serve(lambda: None)")
        #expect(try program.dump(["-R"]) == 0)
        #expect(try program.restore() == 1)
        #expect(program.lastLine("restore.log").contains("\(program.id) is taken by another task (python"))
        #expect(program.ask() == "ok")
    }

    @Test func `a changed file is refused with what was expected`() throws {
        let program = try Program("f = open(work + '/file', 'w'); f.write('12345'); f.flush()\nserve(lambda: None)")
        #expect(try program.dump() == 0)
        let file = open(program.work + "/file", O_WRONLY | O_APPEND)
        var byte: UInt8 = 1
        unsafe write(file, &byte, 1)
        close(file)
        #expect(try program.restore() == 1)
        let line = program.lastLine("restore.log")
        #expect(line.contains("has 6 bytes, expected 5") && line.contains("/file"))
        #expect(program.isGone)
    }

    @Test func `images damaged at random are read without a trap`() throws {
        let program = try Program(
            """
            r, w = os.pipe(); os.write(w, b'contents'); t = threading.Thread(target=signal.pause, daemon=True); t.start()
            if os.fork() == 0:
                while True: signal.pause()
            signal.setitimer(signal.ITIMER_REAL, 1000, 2000)
            serve(lambda: None)
            """)
        #expect(try program.dump(["-R"]) == 0)
        // Always the same damages, so that a failure can be repeated.
        #expect(try program.fuzz(seconds: 5, seed: 20261124) == 0, "\(program.text("log"))")
    }

    @Test func `a directory without an inventory is no image`() throws {
        let program = try Program("serve(lambda: None)")
        #expect(try program.restore() == 1)
        #expect(program.lastLine("restore.log").contains("no complete image"))
    }
}
