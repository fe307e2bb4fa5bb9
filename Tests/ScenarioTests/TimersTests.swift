import Glibc
import Linux
import Testing

@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Timers go on after dump and restore` {
    private static let prelude = """
        libc = ctypes.CDLL(None, use_errno=True)
        def create(clock, notify=0, signo=40, value=0, tid=0):
            event = ctypes.create_string_buffer(struct.pack('<QiiI44x', value, signo, notify, tid), 64)
            number = ctypes.c_int(-1)
            if libc.syscall(222, clock, event, ctypes.byref(number)): raise OSError(ctypes.get_errno(), 'timer_create')
            return number.value
        def settime(number, value, interval=0.0):
            four = [int(interval), int(interval % 1 * 1e9), int(value), int(value % 1 * 1e9)]
            b = ctypes.create_string_buffer(struct.pack('<4q', *four), 32)
            if libc.syscall(223, number, 0, b, None): raise OSError(ctypes.get_errno(), 'timer_settime')
        def gettime(number):
            b = ctypes.create_string_buffer(32)
            if libc.syscall(224, number, b): raise OSError(ctypes.get_errno(), 'timer_gettime')
            s = struct.unpack('<4q', b); return s[2] + s[3] / 1e9, s[0] + s[1] / 1e9
        def delete(number): libc.syscall(226, number)
        def wait(signo, seconds):
            # What sigwaitinfo of Python leaves out: code, timer, overrun, value.
            mask = struct.pack('<Q', 1 << (signo - 1)); time = struct.pack('<qq', seconds, 0)
            b = ctypes.create_string_buffer(128)
            if libc.syscall(128, mask, b, time, 8) != signo: return None
            return struct.unpack_from('<i4xiiQ', b, 8)
        def timers():
            text = ('\\n' + open('/proc/self/timers').read()).split('\\nID: ')[1:]
            return sorted((int(t.split()[0]), t.split('\\n', 1)[1].strip()) for t in text)
        signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))
        spin = lambda: sum(range(200000))
        def clock(task, thread): return (~task << 3) | 2 | (4 if thread else 0)

        """

    @Test(arguments: [nil, "without-timer-ids"]) func `with their ids, clocks and receivers`(_ fault: String?) throws {
        let program = try Program(
            Self.prelude + """
                ready, tid, ended = threading.Event(), [0, 0], threading.Event()
                def body():
                    tid[0] = threading.get_native_id()
                    tid[1] = create(3, 4, 44, 0x44, tid[0]); settime(tid[1], 1000, 2000)
                    ready.set()
                    while True: signal.pause()
                thread = threading.Thread(target=body, daemon=True); thread.start(); ready.wait()
                child = os.fork()
                if child == 0:
                    while True: signal.pause()
                def gap(n):
                    for _ in range(n): delete(create(1))
                gap(3)
                plain = create(1, 0, 40, 0x1234567890abcdef); settime(plain, 1000, 7.5)
                gap(10000)
                idle = create(0, 0, 41)
                none = create(1, 1, 42, 5); settime(none, 500)
                gap(1)
                to_thread = create(1, 4, 43, 0x43, tid[0])
                own = create(2, 0, 45, 0x45); settime(own, 3, 3)
                first = create(clock(os.getpid(), False), 0, 46); settime(first, 2000)
                other = create(clock(child, False), 0, 47); settime(other, 3000, 1)
                other_thread = create(clock(tid[0], True), 0, 48); settime(other_thread, 4000)
                soon = create(1, 0, 49, 0x49); settime(soon, 0.05, 0.05)
                if wait(49, 10) is None: raise SystemExit('no signal')
                before = timers()
                if len(before) != 10: raise SystemExit('timers: %s' % before)
                def near(number, value, interval):
                    v, i = gettime(number)
                    return abs(i - interval) < 1e-6 and value - 100 < v <= value
                def check():
                    if timers() != before: return '%s were %s' % (timers(), before)
                    for number, value, interval in [(plain, 1000, 7.5), (none, 500, 0), (first, 2000, 0),
                            (other, 3000, 1), (other_thread, 4000, 0), (tid[1], 1000, 2000)]:
                        if not near(number, value, interval): return 'timer %d: %s' % (number, gettime(number))
                    if gettime(idle) != (0, 0): return 'idle'
                    for _ in range(3):
                        got = wait(49, 10)
                        if not got or (got[0], got[1], got[3]) != (-2, soon, 0x49): return 'signal %s' % (got,)
                    settime(to_thread, 0.001)
                    bit = 1 << 42
                    def pending():
                        s = open('/proc/self/task/%d/status' % tid[0]).read()
                        return int(s.split('SigPnd:')[1].split()[0], 16) & bit
                    for _ in range(5000):
                        if pending(): break
                        time.sleep(0.001)
                    else: return 'no signal in the thread'
                    # The other thread sleeps, so its CPU time stands still, and ours goes on.
                    a = gettime(tid[1]), gettime(own)
                    for _ in range(1000):
                        spin()
                        if gettime(own) != a[1]: break
                    else: return 'the timer of the process stood still: %s' % (a[1],)
                    if gettime(tid[1]) != a[0]: return 'the timer of the other thread ran: %s' % (a[0],)
                    if create(1) <= before[-1][0]: return 'the next id'
                    delete(timers()[-1][0])
                serve(check)
                """)
        #expect(program.ask() == "ok")
        let outcome = try program.cycle(fault: fault)
        #expect(outcome == "ok")
        let again = try program.cycle(fault: fault)
        #expect(again == "ok")
    }

    @Test(arguments: [nil, "without-timer-ids"])
    func `but for those of tasks that have ended`(_ fault: String?) throws {
        let program = try Program(
            Self.prelude + """
                made = []
                def body():
                    me = threading.get_native_id()
                    made.append(create(clock(me, True))); made.append(create(1, 4, 43, 0, me))
                thread = threading.Thread(target=body); thread.start(); thread.join()
                child = os.fork()
                if child == 0: signal.pause()
                made.append(create(clock(child, False)))
                os.kill(child, 9); os.waitpid(child, 0)
                made.append(create(1)); settime(made[-1], 1000)
                def check():
                    if [n for n, _ in timers()] != made: return '%s' % timers()
                    if gettime(made[-1])[0] < 900: return 'time'
                serve(check)
                """)
        let outcome = try program.cycle(fault: fault)
        #expect(outcome == "ok")
    }

    @Test func `of an interval, virtual and real`() throws {
        let program = try Program(
            Self.prelude + """
                seen = []
                for s in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF): signal.signal(s, lambda n, f: seen.append(n))
                signal.setitimer(signal.ITIMER_REAL, 1000, 33)
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.02, 0.02)
                signal.setitimer(signal.ITIMER_PROF, 2000, 44)
                def check():
                    a, b, c = [signal.getitimer(i) for i in range(3)]
                    if not 900 < a[0] <= 1001 or abs(a[1] - 33) > .1: return 'real %s' % (a,)
                    if not 1900 < c[0] <= 2001 or abs(c[1] - 44) > .1: return 'prof %s' % (c,)
                    if not 0 < b[0] <= .03 or abs(b[1] - .02) > .01: return 'virtual %s' % (b,)
                    del seen[:]
                    for _ in range(1000):
                        if seen: break
                        spin()
                    if not seen or set(seen) != {signal.SIGVTALRM}: return 'signals %s' % seen
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `and an alarm rings`() throws {
        let program = try Program(
            Self.prelude + """
                rung = threading.Event()
                signal.signal(signal.SIGALRM, lambda n, f: rung.set()); signal.alarm(2)
                def check():
                    if not rung.wait(20): return 'no alarm'
                    if signal.alarm(0): return 'again'
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `and one whose id is too far away is refused with its id`() throws {
        let program = try Program(
            Self.prelude + """
                libc.prctl(77, 1, 0, 0, 0); wanted = ctypes.c_int(1234567)
                event = ctypes.create_string_buffer(struct.pack('<QiiI44x', 0, 40, 0, 0), 64)
                if libc.syscall(222, 1, event, ctypes.byref(wanted)): raise SystemExit('timer_create')
                libc.prctl(77, 0, 0, 0, 0)
                serve(lambda: None if timers()[0][0] == 1234567 else repr(timers()))
                """)
        try #require(try program.dump() == 0)
        #expect(try program.restore(fault: "without-timer-ids") == 1)
        #expect(program.lastLine("restore.log").contains("timer 1234567 can't have its id"))
        #expect(program.isGone)
        #expect(try program.restore() == 0)
        #expect(program.ask() == "ok")
    }
}
