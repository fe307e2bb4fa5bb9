import Glibc
import Linux
import Testing

/// Tasks that handle page faults themselves.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A userfaultfd` {
    private static let prelude = """
        import fcntl, array
        libc = ctypes.CDLL(None, use_errno=True); libc.syscall.restype = ctypes.c_long; libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        PAGE = 4096
        def handler(flags=0o4000): return libc.syscall(323, flags)
        def api(u, features=0): fcntl.ioctl(u, 0xc018aa3f, bytearray(struct.pack('QQQ', 0xaa, features, 0)))
        def memory(pages): return libc.mmap(None, pages * PAGE, 3, 0x22, -1, 0)
        def register(u, at, pages, mode): fcntl.ioctl(u, 0xc020aa00, bytearray(struct.pack('QQQQ', at, pages * PAGE, mode, 0)))
        def copy(u, at, data):
            source = ctypes.create_string_buffer(data.ljust(PAGE, b'.'), PAGE)
            fcntl.ioctl(u, 0xc028aa03, bytearray(struct.pack('QQQQq', at, ctypes.addressof(source), PAGE, 0, 0)))
        def zero(u, at, pages=1): fcntl.ioctl(u, 0xc020aa04, bytearray(struct.pack('QQQq', at, pages * PAGE, 0, 0)))
        def protect(u, at, pages, on): fcntl.ioctl(u, 0xc018aa06, bytearray(struct.pack('QQQ', at, pages * PAGE, on)))
        def message(u, patience=10):
            import select
            if not select.select([u], [], [], patience)[0]: return None
            words = struct.unpack('QQQQ', os.read(u, 32)); return words[0] & 0xff, words[1], words[2]
        # Calls of libc run without Python's own lock, which the handler needs.
        def poke(at, byte): libc.memset(ctypes.c_void_p(at), byte, ctypes.c_size_t(1))
        def peek(at):
            out = ctypes.create_string_buffer(1); libc.memcpy(out, ctypes.c_void_p(at), ctypes.c_size_t(1)); return out.raw[0]
        def pagemap(at, pages):
            with open('/proc/self/pagemap', 'rb') as f: f.seek(at // PAGE * 8); words = struct.unpack('%dQ' % pages, f.read(pages * 8))
            return ''.join(('w' if w >> 57 & 1 else 'p') if w >> 62 else '-' for w in words)
        def flags(at):
            lines = iter(open('/proc/self/smaps'))
            for line in lines:
                if line.startswith('%x-' % at): break
            return next(sorted(set(l.split()) & {'um', 'uw', 'ui'}) for l in lines if l.startswith('VmFlags'))
        def faulting(action):
            import threading
            t = threading.Thread(target=action); t.start(); return t

        """

    @Test func `watches the same pages again`() throws {
        let program = try Program(
            Self.prelude + """
                bare = handler(0); u = handler(); api(u, 1 << 13); v = handler(); api(v)
                a = memory(64); register(u, a, 64, 1); copy(u, a, b'first'); copy(u, a + 5 * PAGE, b'sixth'); zero(u, a + 9 * PAGE, 2)
                gap = memory(1)
                b = memory(1100); register(v, b, 1100, 1)
                for i in range(0, 1100, 2): copy(v, b + i * PAGE, b'even %d' % i)
                gap2 = memory(1)
                c = memory(32)
                for i in range(16): poke(c + i * PAGE, 7)
                register(u, c, 32, 2); protect(u, c + 3 * PAGE, 4, 1); protect(u, c + 20 * PAGE, 2, 1)
                gap3 = memory(1)
                d = memory(8); register(u, d, 8, 3); copy(u, d, b'both'); protect(u, d, 1, 1)
                def facts():
                    out = [pagemap(x, n) for x, n in ((a, 64), (b, 1100), (c, 32), (d, 8))] + [flags(x) for x in (a, b, c, d)]
                    for n in (bare, u, v):
                        out.append([l for l in open('/proc/self/fdinfo/%d' % n) if not l.startswith('ino')] + [os.readlink('/proc/self/fd/%d' % n)])
                    return out
                before = facts(); asked = 0
                def check():
                    global asked
                    asked += 1
                    now = facts()
                    if now != before: return repr([(x, y) for x, y in zip(before, now) if x != y])
                    if (peek(a), peek(a + 5 * PAGE), peek(a + 9 * PAGE)) != (ord('f'), ord('s'), 0): return 'other contents'
                    if asked == 1: return
                    for x, n, h, other in ((a, 20, u, v), (b, 501, v, u), (d, 4, u, v)):
                        t = faulting(lambda: peek(x + n * PAGE))
                        if message(h) != (0x12, 0, x + n * PAGE): return 'no fault at %d' % n
                        if message(other, 0): return 'the other handler is asked'
                        copy(h, x + n * PAGE, b'later'); t.join()
                        if peek(x + n * PAGE) != ord('l'): return 'not filled'
                    for x, n in ((c, 4), (d, 0), (c, 21)):
                        t = faulting(lambda: poke(x + n * PAGE, 9))
                        told = message(u)
                        if told != (0x12, 3, x + n * PAGE): return 'no protection at %d: %r' % (n, told)
                        protect(u, x + n * PAGE, 1, 0); t.join()
                        if peek(x + n * PAGE) != 9: return 'not written'
                    poke(c + 10 * PAGE, 3)
                    api(bare)
                    e = memory(1); register(bare, e, 1, 1); zero(bare, e)
                serve(check)
                """)
        #expect(program.ask() == "ok")
        let answer = try program.cycle()
        #expect(answer == "ok")
    }

    @Test func `watches the memory of the right task`() throws {
        let program = try Program(
            Self.prelude + """
                u = handler(); api(u); a = memory(16); register(u, a, 16, 1); copy(u, a, b'parent')
                ours, theirs = socket.socketpair()
                asks, hears = os.pipe(), os.pipe()
                child = os.fork()
                if child == 0:
                    w = handler(); api(w); x = memory(16); register(w, x, 16, 1); copy(w, x, b'child')
                    socket.send_fds(theirs, [struct.pack('Q', x)], [w]); ours.close(); theirs.close(); os.close(w); os.close(u)
                    while True:
                        os.read(asks[0], 1); os.write(hears[1], bytes([peek(x + 3 * PAGE)]))
                data, (w,), *_ = socket.recv_fds(ours, 8, 1); x = struct.unpack('Q', data)[0]
                ours.close(); theirs.close()
                asked = 0
                def check():
                    global asked
                    asked += 1
                    if asked == 1: return
                    os.write(asks[1], b'?')
                    if message(w) != (0x12, 0, x + 3 * PAGE): return 'no fault of the child'
                    copy(w, x + 3 * PAGE, b'child again')
                    if os.read(hears[0], 1) != b'c': return 'other contents'
                    t = faulting(lambda: peek(a + 2 * PAGE))
                    if message(u) != (0x12, 0, a + 2 * PAGE): return 'no fault of our own'
                    zero(u, a + 2 * PAGE); t.join()
                serve(check)
                """)
        #expect(program.ask() == "ok")
        let answer = try program.cycle()
        #expect(answer == "ok")
    }

    @Test func `is told again of a fault that nobody has answered`() throws {
        let program = try Program(
            Self.prelude + """
                import select
                u = handler(); api(u); a = memory(4); register(u, a, 4, 1); read = []
                t = faulting(lambda: read.append(peek(a + 4096))); select.select([u], [], [])
                asked = 0
                def check():
                    global asked
                    asked += 1
                    if asked == 1: return
                    if message(u) != (0x12, 0, a + 4096): return 'no fault'
                    copy(u, a + 4096, b'late'); t.join()
                    if read != [ord('l')]: return repr(read)
                serve(check)
                """)
        #expect(program.ask() == "ok")
        let answer = try program.cycle()
        #expect(answer == "ok")
    }

    @Test func `is refused if it watches what can't be had again, or its other end is elsewhere`() throws {
        for (script, words) in [
            (
                "u = handler(); api(u)\nf = os.memfd_create('x', 0); os.truncate(f, PAGE); a = libc.mmap(None, PAGE, 3, 1, f, 0)\n"
                    + "register(u, a, 1, 1)\ndef check(): pass\n",
                "shared memory"
            ),
            (
                """
                ours, theirs = socket.socketpair()
                if os.fork() == 0:
                    # Not a child of the tree: its parent ends.
                    if os.fork(): os._exit(0)
                    u = handler(); api(u); a = memory(4); register(u, a, 4, 1)
                    socket.send_fds(theirs, [b'x'], [u]); time.sleep(60); os._exit(0)
                os.wait(); _, (u,), *_ = socket.recv_fds(ours, 1, 1); ours.close(); theirs.close()
                def check(): pass

                """,
                "not in the tree, or gone"
            ),
            (
                """
                ours, theirs = socket.socketpair()
                if os.fork() == 0:
                    if os.fork(): os._exit(0)
                    kept = socket.recv_fds(theirs, 1, 1); theirs.send(b'x'); ours.close(); theirs.close(); time.sleep(60); os._exit(0)
                os.wait(); u = handler(); api(u); a = memory(4); register(u, a, 4, 1); socket.send_fds(ours, [b'x'], [u])
                ours.recv(1); os.close(u); ours.close(); theirs.close()
                def check(): pass

                """,
                "handled by a task that is not in the tree"
            ),
        ] {
            let program = try Program(Self.prelude + script + "serve(check)\n")
            #expect(program.ask() == "ok")
            #expect(try program.dump() != 0)
            let reason = program.lastLine("dump.log")
            #expect(reason.contains(words) && reason.contains("userfaultfd"), "\(reason)")
            #expect(program.ask() == "ok")
        }
    }
}
