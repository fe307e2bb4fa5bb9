import Glibc
import Linux
import Testing

/// Locks and leases of Python programs, across a checkpoint. They need root.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Locks and leases survive a checkpoint` {
    /// What the scripts have in common: `locks(fd)` is what fdinfo shows, `free(path)` whether a newcomer gets a lock.
    private static let prelude = """
        import fcntl
        def create(name, flags=os.O_RDWR):
            fd = os.open(work + '/' + name, flags | os.O_CREAT, 0o600)
            return fd
        def locks(fd): return sorted(l.split(':', 2)[2] for l in open('/proc/self/fdinfo/%d' % fd) if l.startswith('lock'))
        def free(name, how):
            # A child is another process with a description of its own.
            pid = os.fork()
            if pid == 0:
                fd = os.open(work + '/' + name, os.O_RDWR)
                try: how(fd); os._exit(0)
                except OSError: os._exit(1)
            return os.waitpid(pid, 0)[1] == 0
        posix = lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        flock = lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        OFD_SETLK = 37
        def ofd(fd, kind, start, length): fcntl.fcntl(fd, OFD_SETLK, struct.pack('hhqqq', kind, 0, start, length, 0))

        """

    private func program(_ script: String) throws -> Program {
        try Program(`Locks and leases survive a checkpoint`.prelude + script)
    }

    @Test func `on a file that is also mapped: a second writer is kept out`() throws {
        let program = try program(
            """
            p = create('posix'); os.ftruncate(p, 4096); posix(p); mp = mmap.mmap(p, 4096)
            f = create('flock'); os.ftruncate(f, 4096); flock(f); mf = mmap.mmap(f, 4096)
            before = locks(p) + locks(f)
            def check():
                if len(before) != 2 or locks(p) + locks(f) != before: return 'shown: %r' % (locks(p) + locks(f))
                if free('posix', posix) or free('flock', flock): return 'a second writer got in'
                os.close(p)
                if not free('posix', posix): return 'closing did not drop the POSIX lock'
            serve(check)
            """)
        let outcome = try program.cycle(["--file-locks"])
        #expect(outcome == "ok")
    }

    @Test func `that only a mapping holds, as the descriptor is closed`() throws {
        let program = try program(
            """
            f = create('flock'); os.ftruncate(f, 4096); flock(f)
            o = create('ofd'); os.ftruncate(o, 4096); ofd(o, fcntl.F_WRLCK, 0, 0)
            libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p
            libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
            maps = [libc.mmap(None, 4096, 3, 1, fd, 0) for fd in (f, o)]
            os.close(f); os.close(o)
            def check():
                if free('flock', flock) or free('ofd', lambda fd: ofd(fd, fcntl.F_WRLCK, 0, 0)): return 'lost'
                for m in maps: libc.munmap(m, 4096)
                if not free('flock', flock): return 'the lock outlives its mapping'
                if not free('ofd', lambda fd: ofd(fd, fcntl.F_WRLCK, 0, 0)): return 'the OFD lock outlives its mapping'
            serve(check)
            """)
        #expect(try program.dump() == 1)
        #expect(program.lastLine("dump.log").contains("which a mapping holds"))
        let outcome = try program.cycle(["--file-locks"])
        #expect(outcome == "ok")
    }

    @Test func `of a description that is shared through fork`() throws {
        let program = try program(
            """
            f = create('shared'); r, w = os.pipe(); done, finished = os.pipe()
            child = os.fork()
            if child == 0:
                flock(f); os.write(finished, b'.')
                os.read(r, 1); fcntl.flock(f, fcntl.LOCK_UN); os.write(finished, b'.'); signal.pause()
            os.read(done, 1); d = os.dup(f)
            before = locks(f)
            def check():
                if locks(f) != before or locks(d) != before or ' %d ' % child not in before[0]: return 'shown: %r' % locks(f)
                if free('shared', flock): return 'it is free'
                os.close(f)
                if free('shared', flock): return 'closing one descriptor freed it'
                os.write(w, b'.'); os.read(done, 1)
                if not free('shared', flock) or locks(d): return 'the child did not unlock it'
            serve(check)
            """)
        let outcome = try program.cycle(["--file-locks"])
        #expect(outcome == "ok")
    }

    @Test func `of ranges, by process and by description`() throws {
        let program = try program(
            """
            a, b = create('ranges'), create('ranges')
            ofd(a, fcntl.F_WRLCK, 0, 10); ofd(b, fcntl.F_RDLCK, 20, 0)
            p = create('posix')
            for at in range(1000): fcntl.lockf(p, fcntl.LOCK_EX, 1, 2 * at)
            fcntl.lockf(p, fcntl.LOCK_SH, 510, 0x40000002)
            q = create('posix')
            before = locks(a), locks(b), locks(p), locks(q)
            def tries(fd, kind, start, length):
                try: ofd(fd, kind, start, length); ofd(fd, fcntl.F_UNLCK, start, length); return True
                except OSError: return False
            def check():
                now = locks(a), locks(b), locks(p), locks(q)
                if now != before or len(now[2]) != 1001: return 'shown: %r' % (now,)
                if tries(b, fcntl.F_RDLCK, 9, 1) or not tries(b, fcntl.F_WRLCK, 10, 10): return 'first range'
                if tries(a, fcntl.F_WRLCK, 1 << 40, 1) or not tries(a, fcntl.F_RDLCK, 20, 0): return 'second range'
                if free('posix', lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1998)): return 'POSIX'
                if not free('posix', lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1999)): return 'gap'
            serve(check)
            """)
        let outcome = try program.cycle(["--file-locks"])
        #expect(outcome == "ok")
    }

    @Test func `while somebody breaks a lease: nobody is told twice, and the waiter gets in at the end`() throws {
        let program = try program(
            """
            told = []
            def lease(name, flags, kind):
                # Each has a signal of its own, as Python runs a handler once for several.
                fd = create(name, flags); fcntl.fcntl(fd, 1024, kind)
                number = signal.SIGRTMIN + 3 + ord(name) - 97; fcntl.fcntl(fd, 10, number)
                signal.signal(number, lambda *a: told.append(a[0]))
                return fd
            def breaker(name, flags):
                pid = os.fork()
                if pid == 0: os.open(work + '/' + name, flags); os._exit(7)
                return pid
            leases = [lease('a', os.O_RDWR, 1), lease('b', os.O_RDWR, 1), lease('c', os.O_RDONLY, 0),
                      lease('d', os.O_RDONLY, 1)]
            quiet = lease('e', os.O_RDWR, 1)
            waiting = [breaker('a', os.O_WRONLY), breaker('b', os.O_RDONLY), breaker('c', os.O_WRONLY),
                       breaker('d', os.O_WRONLY)]
            while len(told) < 4: time.sleep(0.001)
            before = [locks(fd) for fd in leases], locks(quiet)
            def reads(name):
                try: os.close(os.open(work + '/' + name, os.O_RDONLY | os.O_NONBLOCK)); return True
                except BlockingIOError: return False
            def check():
                now = [locks(fd) for fd in leases], locks(quiet)
                if now != before: return 'shown: %r, before %r' % (now, before)
                if [fcntl.fcntl(fd, 1025) for fd in leases + [quiet]] != [2, 0, 2, 2, 1]: return 'types'
                if len(told) != 4: return 'told %d times' % len(told)
                if not reads('c') or reads('d'): return 'the former types'
                if len(told) != 4: return 'told again'
                for fd in leases: fcntl.fcntl(fd, 1024, 2)
                for pid in waiting:
                    if os.waitpid(pid, 0)[1] >> 8 != 7: return 'a waiter did not get in'
                if reads('e'): return 'the quiet lease'
                while len(told) < 5: time.sleep(0.001)
            serve(check)
            """)
        let outcome = try program.cycle(["--file-locks"])
        #expect(outcome == "ok")
    }

    @Test func `a write lease on a file that is mapped from the same description`() throws {
        let program = try program(
            """
            f = create('leased'); os.ftruncate(f, 4096); m = mmap.mmap(f, 4096); os.close(f)
            f = create('other'); os.ftruncate(f, 4096)
            libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p
            libc.mmap(None, 4096, 3, 1, f, 0); fcntl.fcntl(f, 1024, 1)
            def check():
                if fcntl.fcntl(f, 1025) != 1: return 'the lease is lost'
            serve(check)
            """)
        let outcome = try program.cycle(["--file-locks"])
        #expect(outcome == "ok")
    }

    @Test func `or are refused with the descriptor, the task and the option`() throws {
        for (take, name) in [
            ("posix(f)", "POSIX lock"), ("flock(f)", "flock"), ("ofd(f, fcntl.F_WRLCK, 0, 0)", "OFD lock"),
            ("fcntl.fcntl(f, 1024, 1)", "lease"),
        ] {
            let program = try program(
                "f = os.dup2(create('file'), 77); os.closerange(3, 77); \(take)\nserve(lambda: None)")
            #expect(try program.dump() == 1)
            let line = program.lastLine("dump.log")
            #expect(
                line.contains("file descriptor 77") && line.contains("task \(program.id)")
                    && line.contains("the \(name) on \(program.work)/file") && line.contains("--file-locks"), "\(line)")
            #expect(program.ask() == "ok")
        }
    }

    @Test func `and a lock that was taken by somebody else in between is a conflict`() throws {
        let program = try program("f = create('file'); flock(f)\nserve(lambda: None)")
        #expect(try program.dump(["--file-locks"]) == 0)
        let file = open(program.work + "/file", O_RDWR | O_CLOEXEC)
        #expect(flock(file, LOCK_EX | LOCK_NB) == 0)
        #expect(try program.restore() == 1)
        let line = program.lastLine("restore.log")
        #expect(line.contains("another process is in the way of its flock"), "\(line)")
        #expect(program.isGone)
        close(file)
        #expect(try program.restore() == 0)
        #expect(program.ask() == "ok")
    }
}
