import Glibc
import Linux
import Testing

/// System V semaphores, message queues and segments in the machine's own IPC namespace. They need root.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A program goes on with its System V objects` {
    /// System calls that Python has not, and a cleanup of what was made.
    private static let calls = """
        libc = ctypes.CDLL(None, use_errno=True)
        def call(number, *words):
            got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(w) if isinstance(w, int) else w for w in words])
            if got < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return got
        UNDO, NOWAIT = 0x1000, 0x800
        key = 0x42530000 | os.getpid() & 0xffff
        made = []
        def noted(kind, id):
            made.append((kind, id))
            with open(work + '/made', 'a') as f: f.write('%s %d\\n' % (kind, id))
            return id
        def semaphores(count, key=0, mode=0o600): return noted('s', call(64, key, count, 0o3000 | mode))
        def queue(key=0, mode=0o600): return noted('q', call(68, key, 0o3000 | mode))
        def segment(size, key=0, mode=0o600): return noted('m', call(29, key, size, 0o3000 | mode))
        def semop(id, *ops):
            b = ctypes.create_string_buffer(b''.join(struct.pack('<Hhh', *op) for op in ops)); return call(65, id, b, len(ops))
        def semctl(id, number, command, argument=0): return call(66, id, number, command, argument)
        def values(id, count): return [semctl(id, i, 12) for i in range(count)]
        def pids(id, count): return [semctl(id, i, 11) for i in range(count)]
        def send(id, type, text): b = ctypes.create_string_buffer(struct.pack('<q', type) + text); call(69, id, b, len(text), NOWAIT)
        def receive(id, type=0, flags=NOWAIT):
            b = ctypes.create_string_buffer(8 + 8192); got = call(70, id, b, 8192, type, flags)
            return struct.unpack_from('<q', b.raw)[0], b.raw[8:8 + got]
        def line(kind, id):
            for l in list(open('/proc/sysvipc/' + kind))[1:]:
                if l.split()[1] == str(id): return l.split()

        """

    private static func program(_ script: String) throws -> Program { try Program(calls + script) }

    /// Removes what a program made, as a reboot does.
    private static func remove(_ program: Program) {
        for line in Set(program.text("made").split(separator: "\n")) {
            let words = line.split(separator: " ")
            guard words.count == 2, let id = Int(words[1]) else { continue }
            switch words[0] {
            case "s": _ = try? systemCall(.semctl, id, 0, 0)
            case "q": _ = try? systemCall(.msgctl, id, 0, 0)
            default: _ = try? systemCall(.shmctl, id, 0, 0)
            }
        }
    }

    /// Goes through a dump that lets it run, a restore with everything still there, and one as after a reboot.
    private func expectAll(_ program: Program) throws {
        let running = try program.dump(["-R"])
        #expect(running == 0)
        #expect(program.ask() == "ok")
        for _ in 1...2 {
            let here = try program.cycle()
            #expect(here == "ok")
        }
        for _ in 1...2 {
            let dumped = try program.dump()
            #expect(dumped == 0)
            Self.remove(program)
            let restored = try program.restore()
            #expect(restored == 0, "\(program.lastLine("restore.log"))")
            #expect(program.ask() == "ok")
        }
    }

    @Test func `semaphores with values, keys, owners and permissions`() throws {
        let program = try Self.program(
            """
            one = semaphores(3, key, 0o640); two = semaphores(40)
            semctl(one, 0, 16, 7); semop(one, (2, 32767, 0)); semop(two, (39, 3, 0), (0, 1, 0))
            status = ctypes.create_string_buffer(104)
            call(66, one, 0, 2, status); struct.pack_into('<II', status, 4, 1234, 4321); call(66, one, 0, 1, status)
            def look():
                return [line('sem', i)[:8] for i in (one, two)], values(one, 3), values(two, 40), pids(one, 3), pids(two, 40)
            before = look()
            def check():
                if look() != before: return '%r instead of %r' % (look(), before)
                semop(one, (0, -7, NOWAIT)); semop(one, (0, 7, NOWAIT))
            serve(check)
            """)
        defer { Self.remove(program) }
        try expectAll(program)
    }

    @Test func `what a task's end gives back, of any size and in several tasks and threads`() throws {
        let program = try Self.program(
            """
            sizes = [1, -1, 0, 5, -5, 32767, -32767, 300, -12345, 2, 0]
            id = semaphores(len(sizes)); other = semaphores(1)
            for n, s in enumerate(sizes): semctl(id, n, 16, max(s, 0) if s != 5 else 9)
            for n, s in enumerate(sizes):
                if s: semop(id, (n, -s, UNDO))
            # The least that there is: 32768 more than there were.
            semctl(other, 0, 16, 0); semop(other, (0, 32767, UNDO)); semop(other, (0, -32767, 0), (0, 1, UNDO))
            def threaded():
                libc.unshare(0x40000); semop(id, (3, -2, UNDO)); ready.set(); signal.pause()
            ready = threading.Event(); threading.Thread(target=threaded, daemon=True).start(); ready.wait()
            shared = threading.Event()
            def same(): semop(id, (9, 1, UNDO)); shared.set(); threading.Event().wait()
            threading.Thread(target=same, daemon=True).start(); shared.wait()
            r, w = os.pipe(); r2, w2 = os.pipe()
            child = os.fork()
            if child == 0:
                semop(id, (0, 4, UNDO)); semop(id, (3, -1, UNDO)); os.write(w2, b'.')
                os.read(r, 1); os._exit(0)
            os.read(r2, 1)
            before = values(id, len(sizes)), pids(id, len(sizes)), values(other, 1)
            def check():
                now = values(id, len(sizes)), pids(id, len(sizes)), values(other, 1)
                if now != before: return '%r instead of %r' % (now, before)
            def finish():
                # The ends of the child and of the thread alone, and then ours as far as it is not cut off.
                start = values(id, len(sizes)); os.write(w, b'.'); os.waitpid(child, 0); after = values(id, len(sizes))
                if [a - b for a, b in zip(after, start)] != [-4, 0, 0, 1] + [0] * 7: return 'the child gave back %r' % after
                # Room for all of it.
                for n in range(len(sizes)):
                    now = values(id, len(sizes))[n]; middle = 16000
                    semop(id, (n, middle - now, 0)) if middle != now else None
                answer('gone'); os.kill(os.getpid(), signal.SIGKILL)
            def asked():
                if os.path.exists(work + '/finish'): return finish()
                return check()
            serve(asked)
            """)
        defer { Self.remove(program) }
        try expectAll(program)
        close(open(program.work + "/finish", O_CREAT | O_WRONLY, 0o600))
        #expect(program.ask() == "gone")
        #expect(program.isGone)
        let id = program.text("made").split(separator: "\n").first.flatMap { Int($0.split(separator: " ")[1]) } ?? -1
        // Its own adjustments and the thread's, of 16000 each.
        let sizes = [1, -1, 0, 5 + 2, -5, 32767, -32767, 300, -12345, 2 - 1, 0]
        let wanted = sizes.map { min(max(16000 + $0, 0), 32767) }
        // The first thread can be gone before the others, and what they share is given back by the last.
        var left: [Int] = []
        for _ in 0..<100_000 where left != wanted {
            left = sizes.indices.map { (try? systemCall(.semctl, id, $0, 12)) ?? -1 }
            sched_yield()
        }
        #expect(left == wanted)
    }

    @Test func `tasks that share what they give back`() throws {
        let program = try Self.program(
            """
            id = semaphores(1); semctl(id, 0, 16, 10)
            semop(id, (0, -3, UNDO))
            r, w = os.pipe()
            child = call(56, 0x40000 | signal.SIGCHLD, 0, 0, 0, 0)
            if child == 0:
                os.read(r, 1); semop(id, (0, -2, UNDO)); os._exit(0)
            def check():
                global child
                if values(id, 1) != [7]: return 'value %r' % values(id, 1)
                if libc.syscall(312, os.getpid(), child, 6, 0, 0) != 0: return 'not shared'
            def asked():
                if not os.path.exists(work + '/finish'): return check()
                os.write(w, b'.'); os.waitpid(child, 0)
                if values(id, 1) != [5]: return 'the end of one gave it back: %r' % values(id, 1)
            serve(asked)
            """)
        defer { Self.remove(program) }
        try expectAll(program)
        close(open(program.work + "/finish", O_CREAT | O_WRONLY, 0o600))
        #expect(program.ask() == "ok")
        kill(program.id, SIGKILL)
        #expect(program.isGone)
        let id = program.text("made").split(separator: "\n").first.flatMap { Int($0.split(separator: " ")[1]) } ?? -1
        #expect((try? systemCall(.semctl, id, 0, 12)) == 10)
    }

    @Test func `tasks that wait for semaphores and messages wait on`() throws {
        let program = try Self.program(
            """
            id = semaphores(2); q = queue(); full = queue()
            status = ctypes.create_string_buffer(120); call(71, full, 2, status)
            struct.pack_into('<Q', status, 88, 4); call(71, full, 1, status); send(full, 1, b'full')
            r, w = os.pipe()
            def waiter(wait):
                child = os.fork()
                if child == 0:
                    try: wait(); os.write(w, b'.')
                    except OSError as e: os.write(w, b'%d' % e.errno)
                    os._exit(0)
                while open('/proc/%d/stat' % child).read().split(') ')[1][0] != 'S': time.sleep(0)
                while open('/proc/%d/syscall' % child).read().split()[0] not in ('65', '220', '69', '70'): time.sleep(0)
                return child
            hour = ctypes.create_string_buffer(struct.pack('<qq', 3600, 0))
            def timed(): call(220, id, ctypes.create_string_buffer(struct.pack('<Hhh', 1, -1, 0)), 1, hour)
            def late(): b = ctypes.create_string_buffer(struct.pack('<q', 7) + b'late'); call(69, full, b, 4, 0)
            def start(): return [waiter(lambda: semop(id, (0, -1, UNDO))), waiter(timed), waiter(lambda: receive(q, 5, 0)), waiter(late)]
            children = start()
            def check():
                global children
                semop(id, (0, 1, 0)); semop(id, (1, 1, 0)); send(q, 5, b'x')
                if receive(full) != (1, b'full'): return 'not full'
                for c in children: os.waitpid(c, 0)
                got = os.read(r, 100)
                if got != b'....': return 'a wait was interrupted: %r' % got
                if receive(full) != (7, b'late'): return 'nothing sent'
                if values(id, 2) != [1, 0]: return 'values %r' % values(id, 2)
                semop(id, (0, -1, 0)); send(full, 1, b'full'); children = start()
            serve(check)
            """)
        defer { Self.remove(program) }
        try expectAll(program)
    }

    @Test func `message queues with messages of all types and sizes, untouched by the dump`() throws {
        let program = try Self.program(
            """
            one = queue(key, 0o622); two = queue(); empty = queue(); once = queue()
            messages = [(3, b'three'), (1, b''), (9, b'x' * 8192), (1, b'one again'), (2**62, b'y' * 1001)]
            for m in messages: send(one, *m)
            send(two, 1, b'taken'); receive(two); send(two, 2, b'left')
            child = os.fork()
            if child == 0: signal.pause()
            send(empty, 1, b''); receive(empty)
            send(once, 1, b'never received')
            def look(): return [line('msg', i)[:11] for i in (one, two, empty, once)]
            before = look()
            def check():
                if look() != before: return '%r instead of %r' % (look(), before)
                got = [receive(one) for _ in messages]
                if got != messages: return 'messages %r' % [(t, x[:10]) for t, x in got]
                for m in messages: send(one, *m)
                if receive(two) != (2, b'left'): return 'the other'
                send(two, 2, b'left'); before[:] = look()
            serve(check)
            """)
        defer { Self.remove(program) }
        try expectAll(program)
    }

    @Test func `objects that were changed after the dump are set back, if only the tree changed them`() throws {
        let program = try Self.program(
            """
            id = semaphores(2); q = queue(); m = segment(9000)
            libc.shmat.restype = ctypes.c_void_p
            def at(body):
                a = libc.shmat(m, None, 0); out = body((ctypes.c_char * 9000).from_address(a)); libc.shmdt(ctypes.c_void_p(a))
                return out
            at(lambda b: b.__setitem__(slice(0, 4), b'then'))
            semctl(id, 0, 16, 5); semop(id, (0, -1, UNDO)); send(q, 1, b'then')
            def check():
                if values(id, 2) != [4, 0]: return 'values %r' % values(id, 2)
                if receive(q) != (1, b'then'): return 'messages'
                if at(lambda b: (b[0:4], b[8999])) != (b'then', bytes(1)): return 'segment'
                semctl(id, 0, 16, 100); semop(id, (1, 3, 0)); send(q, 1, b'now'); send(q, 1, b'more')
                at(lambda b: b.__setitem__(slice(0, 4), b'now!')); at(lambda b: b.__setitem__(8999, b'!'))
            serve(check)
            """)
        defer { Self.remove(program) }
        let dumped = try program.dump(["-R"])
        #expect(dumped == 0)
        #expect(program.ask() == "ok")
        for _ in 1...2 {
            kill(program.id, SIGKILL)
            #expect(program.isGone)
            program.reap()
            let restored = try program.restore()
            #expect(restored == 0, "\(program.lastLine("restore.log"))")
            #expect(program.ask() == "ok")
        }
    }

    @Test func `a segment that nobody has attached comes back with its contents`() throws {
        let program = try Self.program(
            """
            m = segment(3 << 20, key, 0o640); never = segment(4096)
            libc.shmat.restype = ctypes.c_void_p
            a = libc.shmat(m, None, 0); (ctypes.c_char * 4).from_address(a + (2 << 20))[:] = b'here'; libc.shmdt(ctypes.c_void_p(a))
            def look(): return [line('shm', i)[:6] + line('shm', i)[6:11] for i in (m, never)]
            before = look()
            def check():
                if look()[0] != before[0] or look()[1][:5] != before[1][:5]: return '%r instead of %r' % (look(), before)
                a = libc.shmat(m, None, 0); got = (ctypes.c_char * 4).from_address(a + (2 << 20)).raw; libc.shmdt(ctypes.c_void_p(a))
                if got != b'here': return 'contents %r' % got
            serve(check)
            """)
        defer { Self.remove(program) }
        try expectAll(program)
    }

    @Test func `what others use is left alone, and what the tree held of it is taken again`() throws {
        let holder = try Self.program(
            """
            id = semaphores(2, 0x42540001); semctl(id, 0, 16, 1); semctl(id, 1, 16, 1)
            q = queue(0x42540001); send(q, 1, b'of another'); receive(q)
            def check():
                semop(id, (0, -1, NOWAIT)) if os.path.exists(work + '/take') else semop(id, (0, 1, 0))
            serve(check)
            """)
        defer { Self.remove(holder) }
        let program = try Self.program(
            """
            id = call(64, 0x42540001, 2, 0); semop(id, (0, -1, UNDO))
            q = call(68, 0x42540001, 0); send(q, 1, b'ours')
            serve(lambda: None if values(id, 1) == [0] else 'value %r' % values(id, 1))
            """)
        let id = holder.text("made").split(separator: "\n").first.flatMap { Int($0.split(separator: " ")[1]) } ?? -1
        let dumped = try program.dump()
        #expect(dumped == 0)
        #expect(program.text("images/dump.log").contains("it is not in the image"))
        #expect((try? systemCall(.semctl, id, 0, 12)) == 1)
        // Another takes it: two would hold it.
        close(open(holder.work + "/take", O_CREAT | O_WRONLY, 0o600))
        #expect(holder.ask() == "ok")
        let conflict = try program.restore()
        #expect(conflict != 0)
        #expect(program.lastLine("restore.log").contains("another task holds what thread"))
        #expect((try? systemCall(.semctl, id, 0, 12)) == 0)
        unlink(holder.work + "/take")
        #expect(holder.ask() == "ok")
        let restored = try program.restore()
        #expect(restored == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
        kill(program.id, SIGKILL)
        #expect(program.isGone)
        #expect((try? systemCall(.semctl, id, 0, 12)) == 1)
    }

    @Test func `an object that another has taken or changed is a conflict, and nothing is harmed`() throws {
        let program = try Self.program(
            """
            id = semaphores(1, key); semctl(id, 0, 16, 4); semop(id, (0, -1, UNDO)); q = queue(); send(q, 1, b'x')
            serve(lambda: None if values(id, 1) == [3] else 'value %r' % values(id, 1))
            """)
        defer { Self.remove(program) }
        let ids = program.text("made").split(separator: "\n").compactMap { Int($0.split(separator: " ")[1]) }
        let dumped = try program.dump()
        #expect(dumped == 0)
        try #require(ids.count == 2)
        // Changed by us.
        try systemCall(.semctl, ids[0], 0, 16, 9)
        let changed = try program.restore()
        #expect(changed != 0)
        #expect(program.lastLine("restore.log").contains("ipcrm -s \(ids[0])"))
        #expect((try? systemCall(.semctl, ids[0], 0, 12)) == 9)
        // The key is another's.
        try systemCall(.semctl, ids[0], 0, 0)
        let key = 0x4253_0000 | Int(program.id) & 0xffff
        let other = try systemCall(.semget, key, 1, 0o3600)
        let taken = try program.restore()
        #expect(taken != 0)
        #expect(program.lastLine("restore.log").contains("ipc"))
        try systemCall(.semctl, other, 0, 0)
        // A restore that fails late leaves nothing new and everything old.
        let failed = try program.restore(fault: "restore-sealed")
        #expect(failed != 0)
        #expect((try? systemCall(.semctl, ids[0], 0, 12)) == nil)
        let restored = try program.restore()
        #expect(restored == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
        let again = try program.dump()
        #expect(again == 0)
        #expect((try? systemCall(.semctl, ids[0], 0, 12)) == 4)
        for fault in ["restore-sealed", "restore-sealed:kill"] {
            let failed = try program.restore(fault: fault)
            #expect(failed != 0)
            #expect(program.isGone)
            #expect((try? systemCall(.semctl, ids[0], 0, 12)) == 4)
        }
    }
}
