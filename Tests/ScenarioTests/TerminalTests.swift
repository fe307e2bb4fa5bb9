import Glibc
import Linux
import Testing

/// Terminals of Python programs, before and after a checkpoint.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A terminal goes on after dump and restore` {
    private static let helpers = """
        import fcntl, termios, tty, select, stat
        def word(fd, request): return struct.unpack('i', fcntl.ioctl(fd, request, bytes(4)))[0]
        def put(fd, request, value): fcntl.ioctl(fd, request, struct.pack('i', value))
        def master():
            m = os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY); put(m, 0x40045431, 0)
            return m
        def index(m): return word(m, 0x80045430)
        def pair():
            m = master()
            return m, os.open('/dev/pts/%d' % index(m), os.O_RDWR | os.O_NOCTTY)
        def events(fd):
            p = select.poll(); p.register(fd, select.POLLIN)
            found = p.poll(0)
            return found[0][1] if found else 0
        def pieces(fd):
            got = []; os.set_blocking(fd, False)
            try:
                while len(got) < 9: got.append(os.read(fd, 9999))
            except BlockingIOError: pass
            except OSError as e: got.append(e.errno)
            return got
        def soon(condition):
            while not condition(): time.sleep(0.001)
        def control(pid):
            f = open('/proc/%d/stat' % pid).read().rsplit(')', 1)[1].split(); return int(f[4]), int(f[5])
        signal.signal(signal.SIGTTOU, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)

        """

    private static let contents =
        helpers + """
            m, s = pair()
            os.write(m, b'one\\ntwo\\nend\\x04\\x04part'); soon(lambda: word(m, termios.FIONREAD) == 17)
            os.write(s, b'output\\n'); soon(lambda: word(m, termios.FIONREAD) == 25)
            m2, s2 = pair(); tty.setraw(s2); put(m2, 0x5420, 1)
            os.write(m2, b'raw\\r\\n\\x03\\x00\\xff'); os.write(s2, b'a\\nb'); soon(lambda: events(m2) & 1 and events(s2) & 1)
            m3, s3 = pair(); os.write(s3, b'last words'); os.close(s3); soon(lambda: word(m3, termios.FIONREAD) == 10)
            def check():
                got = pieces(s)
                if got != [b'one\\n', b'two\\n', b'end', b'']: return 'lines: %s' % got
                os.write(m, b'ial\\n'); soon(lambda: events(s))
                got = pieces(s)
                if got != [b'partial\\n']: return 'unfinished line: %s' % got
                soon(lambda: word(m, termios.FIONREAD) == 30)
                got = pieces(m)
                if got != [b'one\\r\\ntwo\\r\\nendpartoutput\\r\\nial\\r\\n']: return 'output: %s' % got
                got = pieces(s2), pieces(m2)
                if got != ([b'raw\\r\\n\\x03\\x00\\xff'], [b'\\0a\\nb']): return 'raw: %s, %s' % got
                got = pieces(m3)
                if got != [b'last words', 5]: return 'closed: %s' % got
            serve(check)
            """

    @Test func `with what waits at both ends: lines, ends of file, an unfinished line, raw bytes`() throws {
        let program = try Program(Self.contents)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test(arguments: [["-R"], ["fail"], ["kill"]])
    func `and a tree that goes on still has what waited`(_ ending: [String]) throws {
        let program = try Program(Self.contents)
        if ending == ["-R"] {
            #expect(try program.dump(ending) == 0)
        } else {
            #expect(try program.dump(fault: "dump-commit:\(ending[0])") != 0)
        }
        #expect(program.ask() == "ok")
    }

    @Test func `when a background process reads its own terminal's contents`() throws {
        let program = try Program(
            Self.helpers + """
                m, s = pair(); fcntl.ioctl(s, termios.TIOCSCTTY, 0)
                other = os.fork()
                if other == 0:
                    while True: signal.pause()
                os.setpgid(other, other); os.tcsetpgrp(s, other)
                os.write(m, b'a\\nb'); soon(lambda: events(s))
                def check():
                    if os.tcgetpgrp(s) != other: return 'foreground group'
                    os.tcsetpgrp(s, os.getpgrp())
                    if pieces(s) != [b'a\\n']: return 'line'
                    os.tcsetpgrp(s, other)
                serve(check)
                """)
        #expect(try program.dump(["-R"]) == 0)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `with its modes, settings, sizes and owners`() throws {
        let program = try Program(
            Self.helpers + """
                m, s = pair(); put(m, 0x5420, 1); fcntl.ioctl(m, termios.TIOCEXCL)
                a = termios.tcgetattr(s); a[0] |= termios.IUTF8 if hasattr(termios, 'IUTF8') else 0o40000
                a[3] &= ~termios.ECHO; a[6][termios.VERASE] = b'#'; termios.tcsetattr(s, termios.TCSANOW, a)
                locked = bytearray(60); struct.pack_into('I', locked, 12, termios.ISIG); fcntl.ioctl(s, 0x5457, bytes(locked))
                m2, s2 = pair(); fcntl.ioctl(s2, termios.TIOCEXCL); put(m2, 0x40045431, 1)
                fcntl.ioctl(m2, termios.TIOCSWINSZ, struct.pack('HHHH', 11, 22, 33, 44))
                os.fchown(s2, 7, 8); os.fchmod(s2, 0o640); os.set_blocking(s2, False)
                s3 = os.open('/proc/self/fd/%d' % s, os.O_RDONLY | os.O_NOCTTY); s4 = os.dup(s3)
                m4, t = pair(); os.chmod('/dev/pts/%d' % index(m4), 0o620); os.close(t)
                m5 = master()
                m6, s6 = pair(); os.close(m6)
                def state():
                    return [termios.tcgetattr(s), termios.tcgetattr(s2), fcntl.ioctl(s, 0x5456, bytes(60)),
                        fcntl.ioctl(s, 0x802c542a, bytes(44)),
                        [word(f, 0x80045440) for f in (m, s, m2, s2)], [word(f, 0x80045432) for f in (m, s, m2, s2, s3, m4, m5)],
                        [(word(f, 0x80045438), word(f, 0x80045439)) for f in (m, m2, m4, m5)],
                        fcntl.ioctl(s2, termios.TIOCGWINSZ, bytes(8)), fcntl.ioctl(m2, termios.TIOCGWINSZ, bytes(8)),
                        [(os.fstat(f).st_mode, os.fstat(f).st_uid, os.fstat(f).st_gid, os.fstat(f).st_rdev) for f in (s, s2, s6)],
                        [fcntl.fcntl(f, fcntl.F_GETFL) for f in (m, s, s2, s3, s4, s6)],
                        os.stat('/dev/pts/%d' % index(m4)).st_mode, [os.readlink('/proc/self/fd/%d' % f) for f in (m, s, s6)],
                        [events(f) for f in (m4, m5, s6)]]
                before = state()
                def check():
                    now = state()
                    for a, b in zip(before, now):
                        if a != b: return '%s, was %s' % (b, a)
                    os.set_blocking(s3, False)
                    if fcntl.fcntl(s4, fcntl.F_GETFL) & os.O_NONBLOCK == 0: return 'not shared'
                    if fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK: return 'shared'
                    os.set_blocking(s3, True)
                serve(check)
                """)
        for _ in 1...2 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }

    @Test func `as the controlling one of those members of its session that had it, with the foreground group`() throws
    {
        let program = try Program(
            Self.helpers + """
                m, s = pair()
                def child(f):
                    pid = os.fork()
                    if pid == 0:
                        try: f()
                        except BaseException as e: answer(repr(e))
                        while True: signal.pause()
                    return pid
                before_it = child(lambda: None)
                fcntl.ioctl(s, termios.TIOCSCTTY, 0); t = os.open('/dev/tty', os.O_RDWR)
                member = child(lambda: os.setpgid(0, 0))
                def grandchild(): os.setpgid(0, 0); child(lambda: None)
                family = child(grandchild)
                lost = child(lambda: fcntl.ioctl(t, termios.TIOCNOTTY))
                m2, s2 = pair()
                def other():
                    os.setsid(); fcntl.ioctl(s2, termios.TIOCSCTTY, 0); os.close(s2); u = os.open('/dev/tty', os.O_RDWR)
                    while True:
                        got = os.read(u, 99); os.write(u, got.upper())
                session = child(other); os.close(s2)
                soon(lambda: control(lost)[0] == 0 and control(session)[0] == word(m2, 0x80045432) and os.getpgid(member) == member)
                os.tcsetpgrp(t, member)
                everybody = [os.getpid(), before_it, member, family, lost, session]
                before = [control(p) for p in everybody]
                def check():
                    now = [control(p) for p in everybody]
                    if now != before: return '%s, was %s' % (now, before)
                    if now[0][0] == 0 or now[1][0] or now[2][0] != now[0][0] or now[4][0]: return 'test: %s' % now
                    if os.tcgetpgrp(t) != member or os.tcgetpgrp(s) != member or os.fstat(t).st_rdev != 0x500: return 'descriptors'
                    os.write(m2, b'hello\\n'); soon(lambda: word(m2, termios.FIONREAD) >= 14)
                    if os.read(m2, 99) != b'hello\\r\\nHELLO\\r\\n': return 'the other session'
                    os.write(m, b'\\x03')
                    if os.waitpid(member, 0)[1] != 2: return 'the foreground group was not interrupted'
                    os.kill(session, 9)
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `whose foreground group has no member any more`() throws {
        let program = try Program(
            Self.helpers + """
                m, s = pair(); fcntl.ioctl(s, termios.TIOCSCTTY, 0)
                gone = os.fork()
                if gone == 0: os._exit(0)
                os.setpgid(gone, gone); os.tcsetpgrp(s, gone); os.waitpid(gone, 0)
                serve(lambda: None if os.tcgetpgrp(s) == gone else 'now it is %d' % os.tcgetpgrp(s))
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `under a shell with jobs in the foreground, the background and stopped`() throws {
        let program = try Program(
            Self.helpers + """
                m, s = pair()
                shell = os.fork()
                if shell == 0:
                    os.setsid(); fcntl.ioctl(s, termios.TIOCSCTTY, 0)
                    for i in range(3): os.dup2(s, i)
                    os.execvpe('bash', ['bash', '--norc', '--noprofile', '-i'], {'PS1': 'prompt:', 'PATH': os.environ['PATH'], 'TERM': 'dumb'})
                os.close(s)
                def front(): return control(shell)[1] != shell and open('/proc/%d/comm' % control(shell)[1]).read() in ('cat\\n', 'sleep\\n')
                seen = b''
                def expect(text):
                    global seen
                    while text not in seen: seen += os.read(m, 999)
                    seen = seen[seen.index(text) + len(text):]
                def say(text): os.write(m, text)
                expect(b'prompt:')
                say(b'sleep 1000 & echo started-$?\\n'); expect(b'started-0'); expect(b'prompt:')
                say(b'sleep 2000\\n'); soon(front); say(b'\\x1a'); expect(b'Stopped'); expect(b'prompt:')
                say(b'cat\\n'); soon(front); say(b'line\\n'); expect(b'line'); expect(b'line'); say(b'unfinis'); expect(b'unfinis')
                before = control(shell)
                def check():
                    if control(shell) != before: return '%s, was %s' % (control(shell), before)
                    say(b'hed\\n'); expect(b'hed'); expect(b'unfinished')
                    say(b'\\x03'); expect(b'prompt:')
                    say(b'jobs\\n'); expect(b'Running'); expect(b'sleep 1000'); expect(b'Stopped'); expect(b'sleep 2000'); expect(b'prompt:')
                    say(b'fg %2\\n'); expect(b'sleep 2000'); soon(front); say(b'\\x03'); expect(b'prompt:')
                    say(b'kill %1; wait; echo result-$?\\n'); expect(b'result-'); expect(b'prompt:')
                    say(b'cat\\n'); soon(front); say(b'line\\n'); expect(b'line'); expect(b'line'); say(b'unfinis'); expect(b'unfinis')
                    say(b'\\x03'); expect(b'prompt:'); say(b'exit\\n'); os.waitpid(shell, 0)
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `a thousand times`() throws {
        let program = try Program(
            Self.helpers + """
                import resource
                resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
                pairs = [pair() for _ in range(1000)]
                before = [index(m) for m, s in pairs]
                os.write(pairs[500][0], b'line\\npart'); soon(lambda: events(pairs[500][1]))
                def check():
                    if [index(m) for m, s in pairs] != before: return 'indices'
                    for i, (m, s) in enumerate(pairs):
                        if i != 500: os.write(m, b'%d\\n' % i)
                    for i, (m, s) in enumerate(pairs):
                        if i != 500 and os.read(s, 99) != b'%d\\n' % i: return 'pair %d' % i
                    if pieces(pairs[500][1]) != [b'line\\n']: return 'contents'
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `or a taken index is named, and nothing is left of the restore`() throws {
        let program = try Program(Self.helpers + "m, s = pair()\nserve(lambda: None)")
        let number = try #require(readNumber(program))
        #expect(try program.dump() == 0)
        // All indices up to the one that the program had.
        var taken: [Int32] = []
        defer { for file in taken { close(file) } }
        for _ in 0...number { taken.append(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)) }
        #expect(try program.restore() == 1)
        let line = program.lastLine("restore.log")
        #expect(line.contains("/dev/pts/\(number) is in use by others"), "\(line)")
        #expect(program.isGone)
        for file in taken { close(file) }
        taken = []
        #expect(try program.restore() == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
    }

    private func readNumber(_ program: Program) -> Int? {
        for number in (try? listNumbers("/proc/\(program.id)/fd")) ?? [] {
            let target = (try? readLink("/proc/\(program.id)/fd/\(number)").string) ?? ""
            if target.hasPrefix("/dev/pts/") { return Int(target.dropFirst("/dev/pts/".count)) }
        }
        return nil
    }

    /// Programs whose terminal has its master end outside of the tree. A driver in Python plays the terminal.
    @Suite(.serialized)
    struct `from outside` {
        private static let helpers = """
            import pty, subprocess, termios, tty, fcntl
            binary = os.environ.get('BRUMATE', '.build/release/brumate')
            def order(*words, **more): return subprocess.run([binary, *words, '-D', work + '/images', '-v4'], **more).returncode
            def log(name): return open(work + '/images/' + name).read().splitlines()[-1]
            def text(name):
                try: return open(work + '/' + name).read()
                except FileNotFoundError: return ''
            def session(body):
                pid, fd = pty.fork()
                if pid == 0:
                    try: body()
                    except BaseException as e: open(work + '/trouble', 'a').write(repr(e))
                    os._exit(0)
                return pid, fd
            def until(condition):
                for _ in range(20000):
                    if condition(): return
                    if text('trouble'): raise Exception(text('trouble'))
                    time.sleep(0.001)
                raise Exception('waited in vain: %s %s %s' % (text('out'), text('images/dump.log')[-300:], text('images/restore.log')[-300:]))

            """

        @Test func `is exchanged for the terminal of the restore with --shell-job`() throws {
            let program = try Program(
                Self.helpers + """
                    job = '''
                    import os, sys, signal, termios, tty
                    signal.signal(signal.SIGTTOU, signal.SIG_IGN); os.tcsetpgrp(0, os.getpgrp()); tty.setcbreak(0)
                    os.closerange(3, 100); t = os.open('/dev/tty', os.O_RDWR); open(sys.argv[1] + '/ready', 'w').write('x')
                    while True:
                        got = os.read(t, 1).decode()
                        facts = [got, os.ttyname(0), os.tcgetpgrp(0) == os.getpgrp(), termios.tcgetattr(0)[3] & termios.ICANON]
                        if got == 'q': sys.exit()
                        open(sys.argv[1] + '/out', 'a').write(repr(facts) + chr(10))
                    '''
                    def first():
                        p = subprocess.Popen([sys.executable, '-c', job, work], preexec_fn=lambda: os.setpgid(0, 0))
                        until(lambda: text('out'))
                        if order('dump', '-o', 'refused.log', '-t', str(p.pid)) != 1: raise Exception('dumped without --shell-job')
                        if order('dump', '-o', 'dump.log', '-t', str(p.pid), '-j'): raise Exception(log('dump.log'))
                        p.wait()
                    def second():
                        if order('restore', '-o', 'refused.log', '-d', '-j', stdin=subprocess.DEVNULL) != 1: raise Exception('no terminal')
                        if order('restore', '-o', 'restore.log', '-d', '-j'): raise Exception(log('restore.log'))
                        until(lambda: text('out').count(chr(10)) == 2)
                    pid, fd = session(first); until(lambda: text('ready')); os.write(fd, b'a'); os.waitpid(pid, 0)
                    old = text('out'); between = pty.openpty()
                    pid, fd2 = session(second); name = '/dev/pts/%d' % struct.unpack('i', fcntl.ioctl(fd2, 0x80045430, bytes(4)))[0]
                    until(lambda: 'stats-restore' in os.listdir(work + '/images'))
                    os.write(fd2, b'b'); until(lambda: text('out').count(chr(10)) == 2); os.write(fd2, b'q'); os.waitpid(pid, 0)
                    def check():
                        if text('trouble'): return text('trouble')
                        a, b = [eval(l) for l in text('out').splitlines()]
                        if a[0] != 'a' or a[2:] != [True, 0]: return 'before: %s' % a
                        if b != ['b', name, True, 0] or b[1] == a[1]: return '%s, was %s' % (b, a)
                    serve(check)
                    """)
            #expect(program.ask() == "ok")
        }

        @Test func `is passed with --external and --inherit-fd`() throws {
            let program = try Program(
                Self.helpers + """
                    m, s = pty.openpty()
                    p = subprocess.Popen([sys.executable, '-c',
                        'import os, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.closerange(3, 100); os.write(1, b"up"); '
                        'os.write(1, os.read(0, 99).upper())'], stdin=s, stdout=s, stderr=s)
                    os.read(m, 99)
                    st = os.fstat(s); name = 'tty[%x:%x]' % (st.st_rdev, st.st_dev); os.close(s)
                    refused = order('dump', '-o', 'dump.log', '-t', str(p.pid)); why = log('dump.log')
                    if order('dump', '-o', 'dump.log', '-t', str(p.pid), '--external', name): raise Exception(log('dump.log'))
                    p.wait(); os.close(m)
                    spare = pty.openpty(); m, s = pty.openpty(); path = os.ttyname(s)
                    refused_too = order('restore', '-o', 'restore.log', '-d'); why_too = log('restore.log')
                    if order('restore', '-o', 'restore.log', '-d', '--inherit-fd', 'fd[%d]:%s' % (s, name), pass_fds=[s]): raise Exception(log('restore.log'))
                    facts = open('/proc/%d/stat' % p.pid).read().rsplit(')', 1)[1].split()[3:6], os.readlink('/proc/%d/fd/0' % p.pid)
                    number = os.fstat(s).st_rdev; os.close(s)
                    def check():
                        if refused != 1 or name not in why: return 'not refused: %s' % why
                        if refused_too != 1 or '--inherit-fd fd[N]:' + name not in why_too: return 'not refused: %s' % why_too
                        if facts != ([str(p.pid), str(number), str(p.pid)], path): return str(facts)
                        os.write(m, b'hello' + bytes([10])); got = b''
                        while b'HELLO' not in got: got += os.read(m, 99)
                    serve(check)
                    """)
            #expect(program.ask() == "ok")
        }
    }
}
