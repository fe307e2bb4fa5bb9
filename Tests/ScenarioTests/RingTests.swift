import Glibc
import Linux
import Testing

/// Rings of requests and queues of messages. They need root.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A program goes on with its rings and queues` {
    /// System calls that Python has not.
    private static let calls = """
        libc = ctypes.CDLL(None, use_errno=True)
        def call(number, *words):
            got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(w) if isinstance(w, int) else w for w in words])
            if got < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return got

        """

    private static let contexts = """
        class Ring:
            def __init__(self, number):
                id = ctypes.c_ulong(0); call(206, number, ctypes.byref(id)); self.id = id.value
                self.header = (ctypes.c_uint * 8).from_address(self.id)
                self.file = os.open(work + '/data', os.O_RDWR | os.O_CREAT); os.pwrite(self.file, b'0123456789', 0)
                self.buffer = ctypes.create_string_buffer(16)
            def submit(self, tag, length):
                block = ctypes.create_string_buffer(struct.pack(
                    '<QIiHhiQQqQII', tag, 0, 0, 0, 0, self.file, ctypes.addressof(self.buffer), length, 0, 0, 0, 0))
                pointer = ctypes.c_ulong(ctypes.addressof(block))
                return call(209, self.id, 1, ctypes.byref(pointer))
            def fetch(self, most):
                room = ctypes.create_string_buffer(32 * most); got = call(208, self.id, 0, most, room, None)
                return [struct.unpack_from('<QQqq', room, 32 * i)[::2] for i in range(got)]

        """

    /// Dumps a program that runs on, ends it, and restores it.
    private func goBack(_ program: Program) throws {
        try #require(try program.dump(["--live"]) == 0, "\(program.lastLine("dump.log"))")
        // It had only to stand still for a copy of its memory.
        #expect(!program.text("images/dump.log").contains("while it stands still"))
        program.finish()
        try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
    }

    @Test func `AIO contexts that are used while they are dumped live`() throws {
        let program = try Program(
            RingTests.calls + RingTests.contexts + """
                ring = Ring(100); large = Ring(3000); submitted, fetched, problems = [0, 0], [0, 0], []
                pages = mmap.mmap(-1, 64 << 20); pages.write(b'x' * (64 << 20)); stopped = threading.Event()
                def fetch(i, most):
                    for tag, got in (ring, large)[i].fetch(most):
                        if (tag, got) != (fetched[i], tag % 10): problems.append('%r instead of %d' % ((tag, got), fetched[i]))
                        fetched[i] += 1
                def run():
                    while not os.path.exists(work + '/stop') and not problems:
                        for i in (0, 1):
                            n = submitted[i]; struct.pack_into('Q', pages, n % 16384 * 4096 + 8 * i, n)
                            (ring, large)[i].submit(n, n % 10); submitted[i] = n + 1
                            if n - fetched[i] > (30, 900)[i]: fetch(i, 20)
                    stopped.set()
                threading.Thread(target=run, daemon=True).start()
                def check():
                    if not os.path.exists(work + '/stop'): return '%d' % submitted[0]
                    stopped.wait()
                    for i in (0, 1):
                        fetch(i, 10000)
                        if fetched[i] != submitted[i]: problems.append('%d of %d' % (fetched[i], submitted[i]))
                        for n in range(max(0, submitted[i] - 16384), submitted[i]):
                            got, = struct.unpack_from('Q', pages, n % 16384 * 4096 + 8 * i)
                            if got != n: problems.append('page %d has %d, not %d' % (n % 16384, got, n)); break
                    return ', '.join(problems[:3]) or 'ok'
                serve(check)
                """)
        let before = program.ask()
        while program.ask() == before { sched_yield() }
        try goBack(program)
        while program.ask() == before { sched_yield() }
        try goBack(program)
        // What is restored stops at once: it is what it was at the stop.
        try #require(close(open(program.work + "/stop", O_CREAT | O_WRONLY, 0o600)) == 0)
        #expect(program.ask() == "ok")
    }

    @Test(arguments: ["64 0x10000 1000 files buffers eventfd unfetched handle", "8 0x1000 100 buffers files eventfd"])
    func `io_urings that are dumped live`(_ kind: String) throws {
        let program = try RingTests.ring(kind)
        for _ in 1...2 {
            try goBack(program)
            #expect(program.ask() == "ok")
        }
    }

    @Test func `AIO contexts, with completions that wait and go round`() throws {
        let program = try Program(
            RingTests.calls + RingTests.contexts + """
                rings = [Ring(1), Ring(100), Ring(3000)]; expected = []
                for ring in rings:
                    places = ring.header[1]
                    for i in range(places + places // 2): ring.submit(i, 1); ring.fetch(1)
                    waiting = places // 2 + 5
                    for i in range(waiting): ring.submit(1000 + i, i % 10)
                    expected.append([(1000 + i, i % 10) for i in range(waiting)])
                    if ring.header[3] >= ring.header[2]: answer('not wrapped')
                seen = [list(ring.header)[1:4] for ring in rings]
                child = os.fork()
                if child == 0: signal.pause()
                def check():
                    global seen
                    if [list(ring.header)[1:4] for ring in rings] != seen: return 'head or tail'
                    for ring, events in zip(rings, expected):
                        got = ring.fetch(10000)
                        if got != events: return 'events %r' % got[:3]
                        for i in range(2 * ring.header[1]):
                            if ring.submit(i, 5) != 1 or ring.fetch(1) != [(i, 5)]: return 'new requests'
                        del events[:]
                    if rings[0].buffer.raw[:5] != b'01234': return 'data'
                    seen = [list(ring.header)[1:4] for ring in rings]
                serve(check)
                """)
        for _ in 1...2 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }

    /// Compiles the program with the rings into a program's work directory.
    private static func ring(_ words: String) throws -> Program {
        try Program(
            """
            import subprocess, signal
            subprocess.run(['cc', '-O1', '-o', work + '/ring', '\(RingTests.source)'], check=True)
            os.execv(work + '/ring', ['ring', work] + '\(words)'.split())
            """)
    }

    private static let source = #filePath.replacing("ScenarioTests/RingTests.swift", with: "Programs/ring.c")

    @Test(
        arguments: [
            "8 0 100", "1 0 3 unfetched", "64 0x10000 1000 files buffers eventfd unfetched handle",
            "8 2 100 buffers", "8 0x1000 100 buffers files eventfd", "128 0x3100 5000 unfetched files",
            "256 0xc00 700 unfetched", "16 0xc00 700", "8 1 50", "64 0 100 messages", "64 0x3000 100 messages",
            "32768 0x10002 100000 buffers unfetched", "4096 0 3000000",
        ])
    func `idle io_urings of every kind`(_ kind: String) throws {
        let program = try RingTests.ring(kind)
        for _ in 1...2 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }

    @Test(arguments: [("timeout", "1 requests are in flight: timeouts"), ("poll", "one to poll")])
    func `io_urings with requests in flight are refused, and the program goes on`(_ kind: String, _ words: String)
        throws
    {
        let program = try RingTests.ring("8 0 10 " + kind)
        let status = try program.dump()
        #expect(status != 0)
        #expect(program.lastLine("dump.log").contains(words))
        #expect(program.ask() == "ok")
    }

    @Test func `System V shared memory, kept and removed, whole and in parts, in several processes`() throws {
        let program = try Program(
            RingTests.calls + """
                def attach(id, address=0, flags=0):
                    libc.shmat.restype = ctypes.c_void_p
                    got = libc.shmat(id, ctypes.c_void_p(address), flags)
                    if got in (None, 2**64 - 1): raise OSError(ctypes.get_errno(), 'shmat')
                    return got
                def memory(address, length): return (ctypes.c_char * length).from_address(address)
                key = 0x42520000 | os.getpid() & 0xffff
                kept = call(29, key, 5 * 4096 + 7, 0o3640); gone = call(29, key + 1, 3 << 20, 0o3600)
                one, two = attach(kept), attach(kept, 0, 0o10000); three = attach(gone)
                call(31, gone, 0, None)
                libc.munmap(ctypes.c_void_p(one + 4096), ctypes.c_size_t(4096))
                libc.mprotect(ctypes.c_void_p(one + 8192), ctypes.c_size_t(4096), 1)
                memory(one, 5)[:] = b'whole'; memory(one + 12288, 4)[:] = b'part'; memory(three + (2 << 20), 4)[:] = b'gone'
                r, w = os.pipe(); r2, w2 = os.pipe()
                if os.fork() == 0:
                    while os.read(r, 1): memory(three, 1)[:] = bytes([memory(three, 1)[0][0] + 1]); os.write(w2, b'.')
                def look():
                    text = [l.split() for l in open('/proc/sysvipc/shm') if l.split()[1] in (str(kept), str(gone))]
                    maps = [l for l in open('/proc/self/maps') if 'SYSV' in l]
                    return sorted(l[:4] + l[6:11] for l in text), [l.split()[:3] + l.split()[5:] for l in maps]
                before = look()
                def check():
                    if look() != before: return 'status %r %r' % (look(), before)
                    if memory(one, 5).raw != b'whole' or memory(two + 12288, 4).raw != b'part': return 'contents'
                    if memory(three + (2 << 20), 4).raw != b'gone': return 'contents of the removed one'
                    old = memory(three, 1)[0][0]; os.write(w, b'.'); os.read(r2, 1)
                    if memory(three, 1)[0][0] != old + 1: return 'not shared'
                    memory(one, 5)[:] = b'other'
                    if memory(two, 5).raw != b'other': return 'attached twice, but not the same'
                    memory(one, 5)[:] = b'whole'
                signal.signal(signal.SIGTERM, lambda *_: (call(31, kept, 0, None), os._exit(0)))
                serve(check)
                """)
        defer { program.end() }
        let here = try program.cycle()
        #expect(here == "ok")
        // As after a reboot: the segment is gone.
        let dumped = try program.dump()
        #expect(dumped == 0)
        let key = 0x4252_0000 | program.id & 0xffff
        let id = shmget(key, 0, 0)
        #expect(id >= 0)
        unsafe shmctl(id, IPC_RMID, nil)
        let restored = try program.restore()
        #expect(restored == 0)
        #expect(program.ask() == "ok")
    }

    @Test func `POSIX message queues, with messages, priorities and notifications`() throws {
        let program = try Program(
            RingTests.calls + """
                def attributes(most, length): return ctypes.create_string_buffer(struct.pack('<8q', 0, most, length, 0, 0, 0, 0, 0))
                def opened(name, flags, most=8, length=64):
                    return call(240, name, flags | os.O_RDWR | os.O_CREAT, 0o640, attributes(most, length))
                def send(q, text, priority): call(242, q, text, len(text), priority, None)
                def receive(q, length):
                    room = ctypes.create_string_buffer(length); priority = ctypes.c_uint(0)
                    got = call(243, q, room, length, ctypes.byref(priority), None)
                    return room.raw[:got], priority.value
                name = ('brumate-test-%d' % os.getpid()).encode()
                kept = opened(name + b'k', os.O_NONBLOCK); second = call(240, name + b'k', os.O_WRONLY, 0, None)
                gone = opened(name + b'g', 0, 3, 8192); call(241, name + b'g')
                told = opened(name + b't', os.O_NONBLOCK)
                os.fchmod(kept, 0o604)
                for i, p in enumerate([1, 5, 1, 0, 5]): send(kept, b'%d' % i, p)
                send(gone, b'x' * 8192, 31); send(gone, b'', 2)
                signal.signal(signal.SIGUSR1, lambda *_: hits.append(1)); hits = []
                event = ctypes.create_string_buffer(struct.pack('<Qii', 0, signal.SIGUSR1, 0) + bytes(48))
                call(244, told, event)
                def look(q):
                    now = ctypes.create_string_buffer(64); call(245, q, None, now)
                    return struct.unpack('<8q', now.raw)[:4], os.stat(q).st_mode, os.readlink('/proc/self/fd/%d' % q)
                before = [look(q) for q in (kept, second, gone, told)]
                def check():
                    if [look(q) for q in (kept, second, gone, told)] != before: return 'attributes %r' % look(gone)
                    if [receive(kept, 64) for _ in range(5)] != [(b'1', 5), (b'4', 5), (b'0', 1), (b'2', 1), (b'3', 0)]: return 'order'
                    for i, p in enumerate([1, 5, 1, 0, 5]): send(second, b'%d' % i, p)
                    if receive(gone, 8192) != (b'x' * 8192, 31) or receive(gone, 8192) != (b'', 2): return 'the unlinked one'
                    send(gone, b'x' * 8192, 31); send(gone, b'', 2)
                    count = len(hits); send(told, b'!', 0); time.sleep(0)
                    if len(hits) != count + 1: return 'no notification'
                    receive(told, 64); call(244, told, event)
                def cleanup(number, frame):
                    for end in b'kt': call(241, name + bytes([end]))
                    os._exit(0)
                signal.signal(signal.SIGTERM, cleanup)
                serve(check)
                """)
        defer { program.end() }
        let running = try program.dump(["-R"])
        #expect(running == 0)
        #expect(program.ask() == "ok")
        let here = try program.cycle()
        #expect(here == "ok")
        // As after a reboot: the queues are gone.
        let dumped = try program.dump()
        #expect(dumped == 0)
        for end in "kt" {
            try withCString("brumate-test-\(program.id)\(end)") { (name) throws(SystemCallError) in
                try systemCall(.mq_unlink, name)
            }
        }
        let restored = try program.restore()
        #expect(restored == 0)
        #expect(program.ask() == "ok")
    }
}

private typealias RingTests = `A program goes on with its rings and queues`

extension Program {
    /// Asks the program to end and waits until it has.
    fileprivate func end() {
        kill(id, SIGTERM)
        while isAlive { sched_yield() }
    }
}
