import Glibc
import Testing

/// Descriptors that wait for events. Each test compares their fdinfo with what it was, but for times and kernel ids.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Descriptors of events` {
    private static let common = """
        import select, fcntl, errno
        libc = ctypes.CDLL(None, use_errno=True)
        def facts(fd):
            lines = open('/proc/self/fdinfo/%d' % fd).read().splitlines()
            gone = ('ino:', 'mnt_id:', 'eventfd-id:', 'it_value:')
            return [os.readlink('/proc/self/fd/%d' % fd)] + sorted(l.split(' ino:')[0] for l in lines if not l.startswith(gone))
        def table():
            path = '/proc/self/fd/'
            numbers = [int(n) for n in os.listdir(path) if os.path.exists(path + n) or os.path.islink(path + n)]
            return sorted((n, os.get_inheritable(n)) for n in numbers if 'request' not in os.readlink(path + str(n)))
        kept = {}
        def keep(*fds):
            for fd in fds: kept[fd] = facts(fd)
        def changed():
            for fd in kept:
                if facts(fd) != kept[fd]: return '%d: %s, was %s' % (fd, facts(fd), kept[fd])
        def control(epoll, fd, events, data):
            event = struct.pack('=IQ', events, data)
            if libc.epoll_ctl(epoll, 1, fd, event): raise OSError(ctypes.get_errno(), 'epoll_ctl')
        def wait(epoll, timeout=0):
            room = ctypes.create_string_buffer(12 * 64)
            n = libc.epoll_wait(epoll, room, 64, timeout)
            return sorted(struct.unpack_from('=IQ', room, 12 * i) for i in range(n))
        IN, OUT, ONESHOT, ET, EXCLUSIVE = 1, 4, 1 << 30, 1 << 31, 1 << 28

        """

    private func program(_ script: String) throws -> Program { try Program(Self.common + script) }

    @Test func `eventfds and signalfds`() throws {
        let program = try program(
            """
            counter = os.eventfd(5, os.EFD_CLOEXEC); os.eventfd_write(counter, 2**64 - 2 - 5)
            semaphore = os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK); empty = os.eventfd(0)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMAX])
            mask = struct.pack('Q', 1 << signal.SIGUSR1 - 1 | 1 << 63)
            signals = libc.signalfd(-1, mask, os.O_NONBLOCK); os.kill(os.getpid(), signal.SIGRTMAX)
            keep(counter, semaphore, empty, signals)
            def check():
                if changed(): return changed()
                if os.eventfd_read(counter) != 2**64 - 2: return 'counter'
                if [os.eventfd_read(semaphore) for _ in range(3)] != [1, 1, 1]: return 'semaphore'
                if struct.unpack_from('I', os.read(signals, 128))[0] != signal.SIGRTMAX: return 'signal'
                os.kill(os.getpid(), signal.SIGUSR1)
                if struct.unpack_from('I', os.read(signals, 128))[0] != signal.SIGUSR1: return 'signal'
                os.eventfd_write(counter, 2**64 - 2)
                for _ in range(3): os.eventfd_write(semaphore, 1)
                os.kill(os.getpid(), signal.SIGRTMAX)
            serve(check)
            """)
        for _ in 1...2 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }

    @Test func `timerfds on every clock, running, expired and disarmed`() throws {
        let program = try program(
            """
            def make(clock, value, interval=0, flags=0):
                fd = libc.timerfd_create(clock, os.O_NONBLOCK)
                if fd < 0: raise OSError(ctypes.get_errno(), 'timerfd_create')
                ns = lambda t: divmod(round(t * 10**9), 10**9)
                if libc.timerfd_settime(fd, flags, struct.pack('qqqq', *ns(interval), *ns(value)), None):
                    raise OSError(ctypes.get_errno(), 'timerfd_settime')
                return fd
            def left(fd):
                room = ctypes.create_string_buffer(32); libc.timerfd_gettime(fd, room)
                i, j, v, w = struct.unpack('qqqq', room.raw)
                return v + w / 10**9
            running = [make(c, 1000, 7) for c in (0, 1, 7, 8, 9)]
            running += [make(c, time.clock_gettime(r) + 1000, 0.5, 1) for c, r in ((0, 0), (1, 1), (7, 7), (8, 0), (9, 7))]
            running.append(make(0, time.time() + 1000, 0, 3))
            deadline = time.time() + 100000
            day = make(0, deadline, 1.5, 1)
            off = [make(1, 0, 5), make(0, 0, 0, 1), libc.timerfd_create(7, 0)]
            once = make(1, 0.001)
            expired = make(1, 0.001, 400); soon = make(1, 0.0005, 0.002)
            select.select([expired], [], []); select.select([once], [], []); select.select([soon], [], [])
            keep(*running, day, once, expired, *off)
            def check():
                if changed(): return changed()
                for fd in running:
                    if not 900 < left(fd) < 1000: return '%d has %f left' % (fd, left(fd))
                if abs(left(day) - (deadline - time.time())) > 0.001: return 'the deadline moved by %f' % (
                    left(day) - (deadline - time.time()))
                if not 300 < left(expired) < 400: return 'the expired one has %f left' % left(expired)
                for fd in off:
                    if left(fd): return 'a disarmed one runs'
                if struct.unpack('Q', os.read(expired, 8)) != (1,): return 'ticks'
                if struct.unpack('Q', os.read(once, 8)) != (1,) or left(once): return 'one that expired once'
                if struct.unpack('Q', os.read(soon, 8))[0] < 1: return 'fast one'
                select.select([soon], [], [], 10); os.read(soon, 8)
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `an epoll of two thousand files, with all data and flags`() throws {
        let program = try program(
            """
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000))
            e = libc.epoll_create1(0o2000000)
            files = [os.eventfd(0) for _ in range(2000)]
            for n, f in enumerate(files):
                control(e, f, (IN, IN | ET, IN | EXCLUSIVE, IN | ONESHOT)[n % 4], (2**64 - 1 - n) if n & 1 else n)
            keep(e)
            def check():
                if changed(): return 'changed'
                if wait(e): return 'spurious'
                for n in (0, 1000, 1998): os.eventfd_write(files[n], 1)
                if wait(e) != [(IN, 0), (IN, 1000), (IN, 1998)]: return 'events'
                for n in (0, 1000, 1998): os.eventfd_read(files[n])
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `an epoll whose files were closed, duplicated, renumbered and watched twice`() throws {
        let program = try program(
            """
            first = os.pipe()
            e = libc.epoll_create1(0o2000000)
            def pipe(data, number, replace=None):
                r, w = os.pipe()
                if number is not None: os.dup2(r, number, False)
                control(e, number if number is not None else r, IN, data)
                if replace is not None: os.dup2(replace, number)
                elif number is not None: os.close(number)
                return r, w
            closed = pipe(1, 700)                      # lives on under another number, the old one is free
            again = pipe(2, 700)                       # and once more under the same
            other = pipe(3, 701, first[0])             # its number means another file now
            os.set_inheritable(701, True)
            same = pipe(4, 702, e)                     # its number means the epoll itself
            last = pipe(5, 703)                        # the first number that nobody uses
            os.close(701); os.dup2(first[0], 701, False)
            low = os.dup(first[0]); lowest = pipe(6, low)       # the lowest free number
            twice = os.pipe(); d = os.dup(twice[0]); control(e, twice[0], IN, 7); control(e, d, IN, 8); control(e, 701, IN, 9)
            os.set_inheritable(702, True)
            keep(e, 702)
            before = table()
            def check():
                if changed(): return changed()
                now = table()
                if now != before: return '%s, was %s' % (now, before)
                if wait(e): return 'spurious: %s' % wait(e)
                for n, p in enumerate([closed, again, other, same, last, lowest], 1):
                    os.write(p[1], b'.')
                    if wait(e) != [(IN, n)]: return '%d: %s' % (n, wait(e))
                    os.read(p[0], 1)
                os.write(twice[1], b'.'); os.write(first[1], b'.')
                if wait(702) != [(IN, 7), (IN, 8), (IN, 9)]: return 'twice: %s' % wait(e)
                os.read(twice[0], 1); os.read(701, 1)
            serve(check)
            """)
        for _ in 1...2 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }

    @Test func `an epoll whose one-shot entries have fired`() throws {
        let program = try program(
            """
            e = libc.epoll_create1(0o2000000)
            empty = os.pipe(); half = os.pipe(); a, b = socket.socketpair(); counter = os.eventfd(0)
            timer = libc.timerfd_create(1, 0)
            libc.timerfd_settime(timer, 0, struct.pack('qqqq', 0, 0, 0, 1), None)
            fds = [empty[0], half[0], half[1], a.fileno(), counter, timer]
            for n, f in enumerate(fds): control(e, f, OUT | IN | ONESHOT | (ET if n & 1 else 0), n)
            for w in (empty[1], half[1]): os.write(w, b'.')
            fired = []
            while len(fired) < len(fds): fired += wait(e, 1000)
            os.read(empty[0], 1); os.read(timer, 8)
            armed = os.pipe(); control(e, armed[0], IN | ONESHOT, 9)
            keep(e, timer)
            def check():
                if changed(): return changed()
                if wait(e): return 'not disarmed'
                os.write(armed[1], b'.')
                if wait(e) != [(IN, 9)]: return 'not armed'
                # Not even an end may tell.
                os.close(half[1]); b.close()
                os.read(half[0], 1)
                if wait(e): return 'not disarmed: %s' % wait(e)
                os.write(empty[1], b'x')
                if wait(e) or os.read(empty[0], 2) != b'x': return 'not empty'
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `edge-triggered epolls, told and yet to be told`() throws {
        let program = try program(
            """
            a, b = socket.socketpair(); c = os.eventfd(1); p = os.pipe(); os.write(p[1], b'.')
            told = libc.epoll_create1(0); open_ = libc.epoll_create1(0)
            for e in (told, open_):
                control(e, a.fileno(), IN | OUT | ET, 1); control(e, c, IN | ET, 2)
                control(e, p[0], IN | ET, 3); control(e, b.fileno(), IN | ET, 4)
            os.close(os.dup(p[0]))
            all_ = [(IN, 2), (IN, 3), (OUT, 1)]
            if wait(told) != all_: raise Exception('not told')
            keep(told, open_)
            def check():
                if changed(): return changed()
                if wait(told): return 'told twice'
                if wait(open_) != all_: return 'not told'
                for e in (told, open_):
                    b.send(b'.'); os.eventfd_write(c, 1); os.write(p[1], b'.'); a.send(b'.')
                    if wait(e) != [(IN, 2), (IN, 3), (IN, 4), (IN | OUT, 1)]: return 'later events: %s' % wait(e)
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `epolls that are nested, shared and inherited`() throws {
        let program = try program(
            """
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            inner = libc.epoll_create1(0o2000000); middle = libc.epoll_create1(0o2000000); outer = libc.epoll_create1(0o2000000)
            r, w = os.pipe(); control(outer, middle, IN, 1); control(middle, inner, IN, 2); control(inner, r, IN, 3)
            mask = struct.pack('Q', 1 << signal.SIGUSR1 - 1)
            signals = libc.signalfd(-1, mask, 0); control(outer, signals, IN | ET, 5)
            # A child that has an inherited epoll but none of its files, and one that shares the table.
            ask, answers = os.pipe(), os.pipe()
            def served(body):
                while os.read(ask[0], 1): os.write(answers[1], body().ljust(100).encode())
            child = os.fork()
            if child == 0:
                for f in (r, inner, middle): os.close(f)
                served(lambda: str(wait(outer, 1000))); os._exit(0)
            lone = os.fork()
            if lone == 0:
                # What the child alone has, under a number that its parent uses for something else.
                p = os.pipe(); os.dup2(p[0], r); mine = libc.epoll_create1(0o2000000); control(mine, r, IN, 4); os.close(r)
                open(work + '/lone', 'w').write(str(p[1])); os.write(p[1], b'.')
                while True:
                    signal.sigwait([signal.SIGUSR1]); open(work + '/lone', 'w').write(str(wait(mine)))
            while not os.path.exists(work + '/lone') or not open(work + '/lone').read(): time.sleep(0.001)
            keep(inner, middle, outer)
            def check():
                if changed(): return changed()
                if wait(outer): return 'spurious'
                os.kill(os.getpid(), signal.SIGUSR1)
                if wait(outer) != [(IN, 5)]: return 'signal: %s' % wait(outer)
                signal.sigwait([signal.SIGUSR1])
                os.write(w, b'.')
                if wait(outer) != [(IN, 1)] or wait(middle) != [(IN, 2)] or wait(inner) != [(IN, 3)]: return 'nested'
                os.write(ask[1], b'?')
                if os.read(answers[0], 100).strip() != b'[(1, 1)]': return 'child'
                os.read(r, 1)
                open(work + '/lone', 'w').close(); os.kill(lone, signal.SIGUSR1)
                while not open(work + '/lone').read(): time.sleep(0.001)
                if open(work + '/lone').read() != '[(1, 4)]': return 'lone child: ' + open(work + '/lone').read()
            serve(check)
            """)
        for _ in 1...2 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }

    @Test func `an epoll in a table shared by processes`() throws {
        let program = try program(
            """
            e = libc.epoll_create1(0o2000000); r, w = os.pipe(); s, t = os.pipe()
            control(e, r, IN, 1); os.dup2(s, 600); control(e, 600, IN, 2); os.close(600)
            SYS_clone, CLONE_FILES = 56, 0x400
            child = libc.syscall(SYS_clone, CLONE_FILES | 17, 0, 0, 0, 0)
            if child == 0:
                while True: signal.pause()
            keep(e)
            before = table()
            def check():
                if changed(): return changed()
                if table() != before: return 'descriptors: %s, were %s' % (table(), before)
                if libc.syscall(312, os.getpid(), child, 2, 0, 0): return 'the table is not shared'
                os.write(w, b'.'); os.write(t, b'.')
                if wait(e) != [(IN, 1), (IN, 2)]: return 'events'
                os.read(r, 1); os.read(s, 1)
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `pidfds of living and dead tasks and threads`() throws {
        let program = try program(
            """
            THREAD = 0o200
            def opened(id, flags=0):
                fd = libc.syscall(434, id, flags)
                if fd < 0: raise OSError(ctypes.get_errno(), 'pidfd_open')
                return fd
            def child(body):
                pid = os.fork()
                if pid == 0:
                    body(); os._exit(0)
                return pid
            def sleep():
                while True: signal.pause()
            living = child(sleep); zombie = child(lambda: os._exit(3))
            os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
            ids, stop = [], threading.Event()
            def run(): ids.append(threading.get_native_id()); stop.wait()
            thread = threading.Thread(target=run, daemon=True); thread.start()
            done = threading.Event(); brief = threading.Thread(target=lambda: (ids.append(threading.get_native_id()), done.wait()))
            while not ids: time.sleep(0.001)
            brief.start()
            while len(ids) < 2: time.sleep(0.001)
            gone = child(lambda: os._exit(9)); killed = child(sleep); os.kill(killed, signal.SIGTERM)
            of = dict(self=opened(os.getpid(), os.O_NONBLOCK), living=opened(living), zombie=opened(zombie),
                leader=opened(living, THREAD), thread=opened(ids[0], THREAD | os.O_NONBLOCK), ended=opened(ids[1], THREAD),
                gone=opened(gone), again=opened(gone), asThread=opened(gone, THREAD), killed=opened(killed))
            copy = os.dup(of['gone'])
            os.waitpid(gone, 0); os.waitpid(killed, 0); done.set(); brief.join()
            while not 'Pid:\\t-1' in facts(of['ended']): time.sleep(0.001)
            e = select.epoll(); e.register(of['thread'], select.EPOLLIN); e.register(of['living'], select.EPOLLIN)
            keep(*of.values(), e.fileno(), copy)
            def exit_code(fd):
                room = bytearray(struct.pack('<Q', 8) + bytes(56))
                fcntl.ioctl(fd, 0xc040ff0b, room)
                return struct.unpack_from('<Qi', room)[0] & 8 and struct.unpack_from('<i', room, 60)[0]
            codes = {n: exit_code(of[n]) for n in ('gone', 'asThread', 'killed')}
            same = lambda a, b: os.fstat(a).st_ino == os.fstat(b).st_ino
            def check():
                if changed(): return changed()
                now = {n: exit_code(of[n]) for n in codes}
                if now != codes: return 'exit codes %s, were %s' % (now, codes)
                if not same(of['gone'], of['again']) or not same(of['gone'], of['asThread']): return 'inodes'
                if same(of['gone'], of['killed']) or same(of['thread'], of['self']): return 'inodes'
                children = open('/proc/self/task/%d/children' % os.getpid()).read().split()
                if children != [str(living), str(zombie)]: return 'children: %s' % children
                if os.waitid(os.P_PIDFD, of['zombie'], os.WEXITED).si_status != 3: return 'zombie'
                if e.poll(0): return 'spurious'
                signal.pidfd_send_signal(of['self'], 0)
                try: signal.pidfd_send_signal(of['gone'], 0); return 'the dead one lives'
                except ProcessLookupError: pass
                signal.pidfd_send_signal(of['living'], signal.SIGKILL)
                if os.waitid(os.P_PIDFD, of['living'], os.WEXITED).si_pid != living: return 'living'
                stop.set(); thread.join()
                if {f for f, _ in e.poll(10)} > {of['thread'], of['living']}: return 'thread'
            serve(check)
            """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `a pidfd of a task outside of the tree is refused`() throws {
        let program = try program("p = os.pidfd_open(1); serve(lambda: None)")
        let status = try program.dump()
        #expect(status != 0 && program.lastLine("dump.log").contains("task 1, which is not in the tree"))
        #expect(program.ask() == "ok")
    }
}
