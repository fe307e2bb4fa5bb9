import Glibc
import Linux
import Testing

/// Restores on a kernel with another vdso. One kernel has only one, so it is made foreign: by a fault, which lets the
/// restore believe so, or by the program, which changes its own.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A vdso that is not this kernel's` {
    private static let prelude = """
        libc = ctypes.CDLL(None, use_errno=True)
        libc.getauxval.restype = ctypes.c_ulong
        class T(ctypes.Structure): _fields_ = [('s', ctypes.c_long), ('n', ctypes.c_long)]
        def raw(clock):
            t = T(); libc.syscall(228, clock, ctypes.byref(t)); return t.s + t.n / 1e9
        def mapping(name):
            for l in open('/proc/self/maps'):
                if l.rstrip().endswith(name): return [int(x, 16) for x in l.split()[0].split('-')]
        old = libc.getauxval(33)
        start, end = mapping('[vdso]')

        """

    @Test func `is replaced as often as need be`() throws {
        let program = try Program(
            Self.prelude + """
                if old != start: raise SystemExit('the vdso is elsewhere')
                count, last = [0], [time.monotonic()]
                def loop():
                    while True:
                        now = time.monotonic()
                        if now < last[0]: count[0] = -10**9
                        last[0] = now; count[0] += 1
                threading.Thread(target=loop, daemon=True).start()
                (r, w), (r2, w2) = os.pipe(), os.pipe()
                child = os.fork()
                if child == 0:
                    while os.read(r, 1): os.write(w2, b'+' if abs(time.clock_gettime(6) - raw(6)) < 1 else b'-')
                seen = [0]; before = [last[0]]
                def check():
                    if libc.getauxval(33) != old: return 'auxv'
                    if time.monotonic() < before[0]: return 'time went back'
                    before[0] = time.monotonic()
                    for clock in (0, 1, 4, 5, 6, 7, 11):
                        a, b, c = raw(clock), time.clock_gettime(clock), raw(clock)
                        if not a <= b + 1e-6 <= c + 2e-6: return 'clock %d: %r %r %r' % (clock, a, b, c)
                    if abs(time.time() - raw(0)) > 1 or abs(libc.time(None) - raw(0)) > 2: return 'time'
                    if len(os.urandom(8)) != 8: return 'random'
                    now = count[0]
                    while count[0] == now: time.sleep(0.001)
                    if count[0] <= seen[0]: return 'the loop: %d' % count[0]
                    seen[0] = count[0]
                    m = open('/proc/%d/maps' % child).read()
                    if m.count('[vdso]') != 1 or '%x-' % old not in m: return 'the vdso of the child: ' + m
                    os.write(w, b'?')
                    if os.read(r2, 1) != b'+': return 'the clock of the child'
                    place = mapping('[vdso]')[0]
                    return 'own' if place == old else 'foreign'
                serve(check)
                """)
        #expect(program.ask() == "own")
        #expect(try program.cycle() == "own")
        #expect(try program.cycle(fault: "foreign-vdso") == "foreign")
        #expect(try program.cycle() == "foreign")
        let mappings = try lines(program)
        #expect(try program.cycle(fault: "foreign-vdso") == "foreign")
        #expect(try program.cycle(fault: "foreign-vdso") == "foreign")
        #expect(try program.cycle() == "foreign")
        // Each kernel on the way leaves its vdso only where a thread was using it.
        #expect(try lines(program) <= mappings + 4)
    }

    private func lines(_ program: Program) throws -> Int {
        try readWholeFile("/proc/\(program.id)/maps").count { $0 == 0x0a }
    }

    /// Puts a function of the program's own into its vdso, over the end of `clock_getres`, and lets the symbol `time` name
    /// it.
    private static let change = """
        with open('/proc/self/mem', 'rb', buffering=0) as m:
            m.seek(start); image = m.read(end - start)
        def u(f, at): return struct.unpack_from(f, image, at)[0]
        dyn = next(u('<Q', 64 + 56 * i + 8) for i in range(u('<H', 56)) if u('<I', 64 + 56 * i) == 2)
        tags = {}
        while u('<Q', dyn): tags.setdefault(u('<Q', dyn), u('<Q', dyn + 8)); dyn += 16
        symbols = {}
        for at in range(tags[6] + 24, tags[6] + 24 * u('<I', tags[4] + 4), 24):
            name = tags[5] + u('<I', at)
            symbols[image[name:image.index(b'\\0', name)]] = at
        offset = u('<Q', symbols[b'clock_getres'] + 8) + 64
        place = start + offset
        def change(code):
            with open('/proc/self/mem', 'r+b', buffering=0) as m:
                m.seek(start + symbols[b'time'] + 8); m.write(struct.pack('<Q', offset))
                m.seek(place); m.write(code)

        """

    @Test func `has its functions elsewhere, and they lead to the kernel's`() throws {
        let program = try Program(
            Self.prelude + Self.change + """
                change(b'\\xb8\\x2a\\0\\0\\0\\xc3')  # mov $42, %eax; ret
                moved = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(place)
                def check():
                    got = moved(None)
                    return '42' if got == 42 else 'time' if abs(got - raw(0)) < 2 else repr(got)
                serve(check)
                """)
        #expect(program.ask() == "42")
        #expect(try program.cycle() == "time")
        #expect(try program.cycle() == "time")
        #expect(try program.cycle(fault: "foreign-vdso") == "time")
    }

    @Test func `is left standing where a thread was stopped in it`() throws {
        let program = try Program(
            Self.prelude + Self.change + """
                # 16 nops; loop: cmpb $0, (%rdi); je loop; mov $7, %eax; ret
                change(b'\\x90' * 16 + b'\\x80\\x3f\\0\\x74\\xfb\\xb8\\x07\\0\\0\\0\\xc3')
                flag = ctypes.create_string_buffer(1); got = []
                inside = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(place)
                t = threading.Thread(target=lambda: got.append(inside(ctypes.addressof(flag))), daemon=True); t.start()
                def stands():
                    for task in os.listdir('/proc/self/task'):
                        s = open('/proc/self/task/%s/stat' % task).read().split(')')[1].split()
                        if int(task) != os.getpid() and s[0] == 'R': return True
                while not stands(): time.sleep(0.001)
                def check():
                    if not stands(): return 'the thread is gone: %s' % got
                    flag[0] = b'\\1'; t.join()
                    return 'ok' if got == [7] else repr(got)
                serve(check)
                """)
        #expect(try program.cycle() == "ok")
        #expect(program.text("images/restore.log").contains("within the old vdso"))
    }

    @Test func `is refused where a thread stands in what a jump would overwrite`() throws {
        let program = try Program(
            Self.prelude + Self.change + """
                change(b'\\x90\\x80\\x3f\\0\\x74\\xfb\\xb8\\x07\\0\\0\\0\\xc3')
                flag = ctypes.create_string_buffer(1)
                inside = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(place)
                threading.Thread(target=lambda: inside(ctypes.addressof(flag)), daemon=True).start()
                def check():
                    for task in os.listdir('/proc/self/task'):
                        s = open('/proc/self/task/%s/stat' % task).read().split(')')[1].split()
                        if int(task) != os.getpid() and s[0] == 'R': return 'ok'
                    return 'the thread is gone'
                while check() != 'ok': time.sleep(0.001)
                serve(check)
                """)
        try #require(try program.dump() == 0)
        #expect(try program.restore() == 1)
        #expect(program.lastLine("restore.log").contains("in the first instructions of a function of the vdso"))
        #expect(program.isGone)
    }
}
