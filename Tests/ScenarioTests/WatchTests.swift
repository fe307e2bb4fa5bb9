import Glibc
import Linux
import Testing

/// Checkpoints of programs that watch files, or hold objects of bpf(2) and userfaultfd(2). They need root.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Watches and their like` {
    /// Calls of the C library, and what fdinfo says.
    static let library = """
        import fcntl, termios, array, subprocess
        libc = ctypes.CDLL(None, use_errno=True)
        def call(name, *arguments):
            r = getattr(libc, name)(*arguments)
            if r < 0: raise OSError(ctypes.get_errno(), name)
            return r
        def info(fd, kind):
            return [l for l in open('/proc/self/fdinfo/%d' % fd).read().split('\\n') if l.startswith(kind)]
        def waiting(fd):
            a = array.array('i', [0]); fcntl.ioctl(fd, termios.FIONREAD, a); return a[0]
        def events(fd):
            if not waiting(fd): return []
            b, o, out = os.read(fd, 1 << 20), 0, []
            while o < len(b):
                wd, mask, cookie, n = struct.unpack_from('iIII', b, o)
                out.append((wd, mask, cookie, b[o + 16:o + 16 + n].rstrip(b'\\0').decode())); o += 16 + n
            return out
        def watch(fd, path, mask): return call('inotify_add_watch', fd, path.encode(), ctypes.c_uint(mask))
        def touch(path): open(path, 'w').close()

        """

    private func program(_ script: String) throws -> Program { try Program(Self.library + script) }

    @Test func `inotify keeps numbers, masks and files, wherever they are by now`() throws {
        let program = try program(
            """
            fd = call('inotify_init1', 0o4000)
            os.mkdir(work + '/d'); touch(work + '/d/a'); touch(work + '/gone'); touch(work + '/old'); os.mkdir(work + '/olddir')
            os.symlink('nowhere', work + '/link'); os.mkfifo(work + '/fifo')
            for i in range(4): watch(fd, work + '/d', 0xfff); call('inotify_rm_watch', fd, i + 1)
            w = {}
            w['dir'] = watch(fd, work + '/d', 0x100 | 0x04000000)              # IN_CREATE | IN_EXCL_UNLINK
            w['once'] = watch(fd, work + '/d/a', 0x2 | 0x80000000)             # IN_MODIFY | IN_ONESHOT
            w['old'] = watch(fd, work + '/old', 0x2); watch(fd, work + '/old', 0x4 | 0x20000000)  # IN_MASK_ADD
            w['olddir'] = watch(fd, work + '/olddir', 0x200)
            w['link'] = watch(fd, work + '/link', 0x4 | 0x02000000)            # IN_DONT_FOLLOW
            w['fifo'] = watch(fd, work + '/fifo', 0x2 | 0x8)
            w['null'] = watch(fd, '/dev/null', 0x4)
            w['none'] = watch(fd, work, 0x01000000)                            # IN_ONLYDIR: no event at all
            gone = os.open(work + '/gone', os.O_RDWR); w['gone'] = watch(fd, work + '/gone', 0x2)
            os.unlink(work + '/gone')
            os.rename(work + '/old', work + '/new'); os.rename(work + '/olddir', work + '/newdir')
            if w['dir'] != 5: raise Exception('numbers')
            while waiting(fd): events(fd)
            def lines(): return [l for l in info(fd, 'inotify wd') if not l.startswith('inotify wd:%x ' % w['gone'])]
            before = lines(); count = len(info(fd, 'inotify'))
            def check():
                global w, before, count
                if lines() != before or len(info(fd, 'inotify')) != count: return '%s became %s' % (before, info(fd, 'inotify'))
                if waiting(fd): return 'trash %s' % events(fd)
                n = max(w.values()) + 1
                if watch(fd, '/', 0x400) != n: return 'next number'
                call('inotify_rm_watch', fd, n); events(fd)
                touch(work + '/d/b'); os.unlink(work + '/d/b')
                if events(fd) != [(w['dir'], 0x100, 0, 'b')]: return 'directory'
                os.write(gone, b'x')
                if events(fd) != [(w['gone'], 2, 0, '')]: return 'unlinked'
                with open(work + '/new', 'w') as f: f.write('x')
                os.chmod(work + '/new', 0o600)
                if events(fd) != [(w['old'], 2, 0, ''), (w['old'], 4, 0, '')]: return 'moved file'
                touch(work + '/newdir/c'); os.unlink(work + '/newdir/c')
                if events(fd) != [(w['olddir'], 0x200, 0, 'c')]: return 'moved directory'
                os.utime(work + '/link', follow_symlinks=False)
                if events(fd) != [(w['link'], 4, 0, '')]: return 'link'
                for i in range(2):
                    with open(work + '/d/a', 'w') as f: f.write('x')
                if events(fd) != [(w['once'], 2, 0, ''), (w['once'], 0x8000, 0, '')]: return 'one shot'
                w['once'] = watch(fd, work + '/d/a', 0x2 | 0x80000000); before = lines()
            serve(check)
            """)
        for _ in 1...2 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }

    @Test func `inotify keeps the events that wait`() throws {
        let program = try program(
            """
            def happen():
                fd = call('inotify_init1', 0o4000)
                base = work + '/e%d' % fd
                os.mkdir(base); os.mkdir(base + '/d'); os.mkdir(base + '/other'); touch(base + '/f'); touch(base + '/g')
                d = watch(fd, base + '/d', 0xfff); o = watch(fd, base + '/other', 0xfff); f = watch(fd, base + '/f', 0xfff)
                g = watch(fd, base + '/g', 0xfff)
                with open(base + '/d/file', 'w') as x: x.write('hello')
                open(base + '/d/file').read(); os.chmod(base + '/d/file', 0o600); os.listdir(base + '/d')
                os.mkdir(base + '/d/' + 'long' * 60); os.rename(base + '/d/' + 'long' * 60, base + '/other/dir')
                os.rename(base + '/d/file', base + '/file'); os.rename(base + '/file', base + '/other/back')
                os.rename(base + '/other/back', base + '/other/again'); os.unlink(base + '/other/again')
                os.rename(base + '/f', base + '/f2'); os.listdir(base + '/other/dir'); os.chmod(base + '/other', 0o755)
                with open(base + '/f2', 'w') as x: x.write('x')
                open(base + '/f2').read(); os.unlink(base + '/g'); call('inotify_rm_watch', fd, o)
                os.rmdir(base + '/other/dir'); touch(base + '/d/late')
                return fd
            def paired(all):
                cookies = []
                for e in all:
                    if e[2] and e[2] not in cookies: cookies.append(e[2])
                return [(e[0], e[1], cookies.index(e[2]) if e[2] else -1, e[3]) for e in all]
            # What is read from one queue is what must be read from the other, which waits until after the restore.
            want = paired(events(happen())); fd = happen(); lines = info(fd, 'inotify')
            def check():
                global fd, lines
                if info(fd, 'inotify') != lines: return 'watches'
                got = paired(events(fd))
                if got != want or len(want) < 30: return '%s became %s' % ([w for w in want if w not in got], [g for g in got if g not in want])
                if waiting(fd): return 'more'
                touch(work + '/e%d/d/new' % fd); n = len(events(fd))
                if n != 3: return 'watch, %d' % n
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `inotify reports an overflow where events can't be kept, and takes none from a tree that runs on`()
        throws
    {
        let script = """
            fd = call('inotify_init1', 0o4000); w = watch(fd, work, 0x100)
            for i in range(int(open('/proc/sys/fs/inotify/max_queued_events').read()) + 5 if FULL else 1): 
                touch(work + '/x%d' % i); os.unlink(work + '/x%d' % i)
            n = waiting(fd)
            def check():
                if os.path.exists(work + '/restored'):
                    got = events(fd)
                    return None if got == [(-1, 0x4000, 0, '')] and not waiting(fd) else 'got %s' % got[:3]
                os.mkdir(work + '/restored')
                return None if waiting(fd) >= n else 'taken away'
            serve(check)
            """
        let full = try program(script.replacing("FULL", with: "True"))
        #expect(full.ask() == "ok")
        #expect(try full.cycle() == "ok")
        let running = try program(script.replacing("FULL", with: "False"))
        #expect(try running.dump(["-R"]) == 0)
        #expect(running.ask() == "ok")
        kill(running.id, SIGKILL)
        var status: Int32 = 0
        unsafe waitpid(running.id, &status, 0)
        #expect(try running.restore() == 0)
        #expect(running.ask() == "ok")
    }

    /// Mounts an overlay under the program's work directory, or ends with `no overlay`.
    static let overlay = """
        def mount():
            t = work + '/t'; os.mkdir(t)
            try:
                subprocess.run(['mount', '-t', 'tmpfs', 'x', t], check=True, capture_output=True)
                for n in 'lower', 'upper', 'work', 'm': os.mkdir(t + '/' + n)
                os.makedirs(t + '/lower/d/e'); touch(t + '/lower/f'); touch(t + '/lower/d/e/g')
                o = 'lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work' % (t, t, t)
                subprocess.run(['mount', '-t', 'overlay', 'o', '-o', o, t + '/m'], check=True, capture_output=True)
            except subprocess.CalledProcessError as e:
                subprocess.run(['umount', '-l', t], capture_output=True); return None, e.stderr.decode()
            return t + '/m', None
        def unmount():
            subprocess.run(['umount', '-l', work + '/t/m'], capture_output=True)
            subprocess.run(['umount', '-l', work + '/t'], capture_output=True)
        m, trouble = mount()

        """

    @Test func `inotify on overlayfs, whose handles can't be opened`() throws {
        let program = try program(
            Self.overlay + """
                if m:
                    fd = call('inotify_init1', 0o4000)
                    for n in '', '/f', '/d', '/d/e/g': watch(fd, m + n, 0x2 | 0x100)
                    open1 = os.open(m + '/d/e', os.O_RDONLY); watch(fd, m + '/d/e', 0x100)
                    with open(m + '/d/e/up', 'w') as f: f.write('x')
                    watch(fd, m + '/d/e/up', 0x2); os.rename(m + '/d/e/up', m + '/moved'); os.sync(); events(fd)
                    before = info(fd, 'inotify')
                def check():
                    if not m: return 'no overlay: ' + trouble
                    try:
                        if info(fd, 'inotify') != before: return '%s became %s' % (before, info(fd, 'inotify'))
                        with open(m + '/moved', 'a') as f: f.write('x')
                        touch(m + '/d/n')
                        got = events(fd)
                        return None if got == [(1, 2, 0, 'moved'), (6, 2, 0, ''), (3, 0x100, 0, 'n')] else '%s' % got
                    finally: unmount()
                serve(check)
                """)
        let first = program.text("log")
        let outcome = try program.cycle()
        if outcome.hasPrefix("no overlay") {
            print("skipped: \(outcome) \(first)")
            return
        }
        #expect(outcome == "ok")
    }

    @Test func `fanotify keeps marks on inodes, mounts and file systems, and reports lost events`() throws {
        let program = try program(
            """
            t = work + '/t'; os.mkdir(t); subprocess.run(['mount', '-t', 'tmpfs', 'x', t], check=True)
            touch(t + '/a'); touch(t + '/gone'); os.mkdir(t + '/d')
            def mark(fd, flags, mask, path): call('fanotify_mark', fd, flags, ctypes.c_ulong(mask), -100, path.encode())
            fd = call('fanotify_init', 0x2, 0o100000)
            mark(fd, 0x1, 0x2 | 0x20, t + '/a'); mark(fd, 0x21, 0x8, t + '/a')       # FAN_MARK_IGNORED_MASK
            mark(fd, 0x11, 0x20 | 0x40000000, t)                                     # FAN_MARK_MOUNT
            mark(fd, 0x441, 0x48000002, t + '/d')                                    # FAN_MARK_IGNORE, surviving
            gone = os.open(t + '/gone', os.O_RDWR); os.unlink(t + '/gone'); mark(fd, 0x201, 0x2, '/proc/self/fd/%d' % gone)
            fid = call('fanotify_init', 0x2 | 0x1 | 0xe00, 0)                        # FAN_REPORT_DFID_NAME
            mark(fid, 0x101, 0x100 | 0x40000000, t)                                  # FAN_MARK_FILESYSTEM
            mark(fid, 0x1, 0x200 | 0x08000000, t + '/d')
            idle = call('fanotify_init', 0x2 | 0x600, 0); mark(idle, 0x1, 0x200, t + '/d')
            touch(t + '/event'); os.mkdir(t + '/event.d')
            def marks(f): return [l for l in info(f, 'fanotify') if 'mflags:200 ' not in l]
            before = [marks(f) for f in (fd, fid, idle)]; count = len(info(fd, 'fanotify'))
            def read(f):
                out = []
                while waiting(f):
                    b, o = os.read(f, 65536), 0
                    while o < len(b):
                        n, _, _, _, mask, efd, pid = struct.unpack_from('IBBHQii', b, o); o += n
                        out.append((hex(mask), os.path.basename(os.readlink('/proc/self/fd/%d' % efd)) if efd >= 0 else efd))
                        if efd >= 0: os.close(efd)
                return out
            def check():
                try:
                    got = [marks(f) for f in (fd, fid, idle)]
                    if got != before: return '%s became %s' % (before, got)
                    if len(info(fd, 'fanotify')) != count: return 'mark on the unlinked file'
                    got = [read(f) for f in (fd, fid, idle)]
                    if got != [[('0x4000', -1)], [('0x4000', -1)], []]: return 'no overflow: %s' % [g[:3] for g in got]
                    with open(t + '/a', 'w') as f: f.write('x')
                    os.write(gone, b'x'); touch(t + '/d/n'); os.unlink(t + '/d/n')
                    got = [read(f) for f in (fd, fid, idle)]
                    if got[0] != [('0x22', 'a'), ('0x2', 'gone (deleted)'), ('0x20', 'n (deleted)')]: return '%s' % got
                    if [e[0] for e in got[1]] != ['0x300'] or [e[0] for e in got[2]] != ['0x200']: return '%s' % got
                finally: subprocess.run(['umount', '-l', t])
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `BPF maps of every plain type, shared, frozen and read-only`() throws {
        let program = try program(
            """
            def bpf(cmd, *words, size=128):
                a = ctypes.create_string_buffer(b''.join(words), size); r = libc.syscall(321, cmd, a, size)
                if r < 0: raise OSError(ctypes.get_errno(), 'bpf %d' % cmd)
                return r
            I = lambda *v: struct.pack('%dI' % len(v), *v); Q = lambda *v: struct.pack('%dQ' % len(v), *v)
            def create(kind, key, value, most, flags=0, name=b'map'): return bpf(0, I(kind, key, value, most, flags, 0, 0), name.ljust(16, b'\\0'))
            def put(m, k, v): kb, vb = ctypes.create_string_buffer(k, len(k)), ctypes.create_string_buffer(v, len(v)); bpf(2, I(m, 0), Q(ctypes.addressof(kb) if k else 0, ctypes.addressof(vb), 0))
            def get(m, k, size):
                kb, vb = ctypes.create_string_buffer(k, len(k)), ctypes.create_string_buffer(size)
                bpf(1, I(m, 0), Q(ctypes.addressof(kb), ctypes.addressof(vb), 0)); return vb.raw
            cpus = int(open('/sys/devices/system/cpu/possible').read().strip().split('-')[-1]) + 1
            maps = []
            for kind, each, flags in (1, 8, 0), (2, 8, 0x400), (5, 16 * cpus, 0), (6, 16 * cpus, 0), (9, 8, 0), (10, 16 * cpus, 0), (11, 8, 1):
                value = each if each == 8 else 12
                m = create(kind, 4 if kind not in (11,) else 8, value, 3000, flags, b'kind%d' % kind)
                keys = [struct.pack('I', i) for i in range(2000)] if kind != 11 else [struct.pack('I', 8 + i % 25) + os.urandom(4) for i in range(300)]
                content = {}
                for k in keys:
                    v = os.urandom(each)
                    if value == 12: v = b''.join(v[o:o + 12] + b'\\0' * 4 for o in range(0, each, 16))
                    put(m, k, v)
                for k in keys: content[k] = get(m, k, each)
                maps.append((m, each, content, kind))
            frozen = create(1, 4, 4, 4, name=b'frozen'); put(frozen, b'aaaa', b'bbbb'); bpf(22, I(frozen))
            rid = struct.unpack_from('II', open('/proc/self/fdinfo/%d' % maps[0][0]).read().encode() + b'        ')[0]
            ids = dict(l.split(':') for l in open('/proc/self/fdinfo/%d' % maps[0][0]).read().split('\\n') if ':' in l)
            reader = bpf(14, I(int(ids['map_id']), 0, 8)); dup = os.dup(maps[0][0])
            queue = create(22, 0, 8, 10, name=b'queue')
            def facts(m): return [l for l in open('/proc/self/fdinfo/%d' % m).read().split('\\n') if l and l.split(':')[0] in ('flags', 'map_type', 'key_size', 'value_size', 'max_entries', 'map_flags', 'map_extra', 'memlock', 'frozen')]
            every = [m[0] for m in maps] + [frozen, reader, dup, queue]; before = [facts(m) for m in every]
            def check():
                if [facts(m) for m in every] != before: return '%s became %s' % (before, [facts(m) for m in every])
                for m, each, content, kind in maps:
                    for k, v in content.items():
                        if get(m, k, each) != v: return 'kind %d' % kind
                try: put(frozen, b'cccc', b'dddd'); return 'not frozen'
                except PermissionError: pass
                try: put(reader, b'cccc', b'd' * 8); return 'not read-only'
                except PermissionError: pass
                put(maps[0][0], b'zzzz', b'shared!!')
                if get(reader, b'zzzz', 8) != b'shared!!' or get(dup, b'zzzz', 8) != b'shared!!': return 'not the same map'
                put(queue, b'', b'x' * 8)
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `what can't be dumped is refused before anything stops, with its number, path and a way out`() throws {
        for (script, words) in [
            (
                """
                b = ctypes.create_string_buffer(struct.pack('IIQ', 1, 128, 0), 128); fd = libc.syscall(298, b, 0, -1, -1, 8)
                os.dup2(fd, 77, inheritable=True); os.close(fd)
                child = os.fork()
                if child == 0:
                    os.setsid()
                    while True: signal.pause()
                os.close(77); fd = 77
                """,
                ["file descriptor 77", "anon_inode:[perf_event]", "performance counter", "Stop the profiler"]
            ),
            (
                "fd = call('fanotify_init', 0x4, 0); call('fanotify_mark', fd, 1, ctypes.c_ulong(0x10000), -100, work.encode())",
                ["anon_inode:[fanotify]", "grants permissions", "FAN_*_PERM"]
            ),
            ("fd = libc.syscall(447, 0)", ["secret memory", "nobody but its task", "Unmap"]),
            (
                "fd = os.open('/dev/loop-control', os.O_RDONLY)",
                ["/dev/loop-control", "devices with the numbers 10:237"]
            ),
        ] {
            let program = try program(script + "\nif fd < 0: raise OSError()\nserve(lambda: 'fd %d' % fd)\n")
            let number = program.ask().split(separator: " ").last ?? "?"
            #expect(try program.dump() != 0)
            let line = program.lastLine("dump.log")
            for word in words + ["file descriptor \(number)"] { #expect(line.contains(word), "\(line)") }
            #expect(!program.text("images/dump.log").contains("stopped"))
            #expect(program.ask().hasPrefix("fd"))
        }
    }

    @Test func `entries of /proc of living and dead tasks`() throws {
        let program = try program(
            """
            child = os.fork()
            if child == 0:
                while True: signal.pause()
            dead = os.fork()
            if dead == 0:
                while True: signal.pause()
            f = [os.open('/proc/%d/stat' % child, os.O_RDONLY), os.open('/proc/self/fdinfo/0', os.O_RDONLY),
                 os.open('/proc/%d/task' % child, os.O_RDONLY), os.open('/proc/%d/comm' % os.getpid(), os.O_RDWR)]
            d = os.open('/proc/%d/status' % dead, os.O_RDONLY)
            os.kill(dead, 9); os.waitpid(dead, 0)
            paths = [os.readlink('/proc/self/fd/%d' % x) for x in f + [d]]
            def check():
                if [os.readlink('/proc/self/fd/%d' % x) for x in f + [d]] != paths: return 'paths'
                if not os.pread(f[0], 100, 0).startswith(b'%d (' % child): return 'stat'
                if not os.pread(f[1], 100, 0).startswith(b'pos:'): return 'fdinfo'
                if os.listdir(f[2]) != [str(child)]: return 'directory'
                try: os.pread(d, 100, 0); return 'the dead task lives'
                except ProcessLookupError: pass
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }
}
