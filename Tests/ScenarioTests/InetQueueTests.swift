import Glibc
import Testing

/// Helps scripts with TCP.
private let words = """
    def exactly(c, n):
        data = b''
        while len(data) < n:
            more = c.recv(n - len(data))
            if not more: break
            data += more
        return data
    def ends(c):
        # What comes, and how it ends.
        try:
            data = b''
            while True:
                more = c.recv(65536)
                if not more: return data, 'end'
                data += more
        except ConnectionResetError: return data, 'reset'
    def listen(family=socket.AF_INET, address='127.0.0.1', port=0, backlog=16, share=False):
        l = socket.socket(family); l.setsockopt(1, 2, 1)
        if share: l.setsockopt(1, 15, 1)
        l.bind((address, port)); l.listen(backlog); l.settimeout(20); return l
    def waiting(l): return struct.unpack_from('I', l.getsockopt(6, 11, 104), 24)[0]
    def until(condition):
        for i in range(2000):
            if condition(): return
            time.sleep(.005)
        raise Exception('it does not come')

    """

/// In the same suite, as the network's locks are everyone's.
extension `A program goes on with its internet sockets` {
    @Test func `connections of its own that nobody has accepted`() throws {
        let program = try Program(
            words + """
                listener = listen(backlog=3); where = listener.getsockname()
                child = os.fork()
                if child == 0:
                    a = socket.create_connection(where); a.sendall(b'from a'); open(work + '/a', 'w').write(str(a.getsockname()[1]))
                    a.sendall(a.recv(100).upper()); os._exit(0)
                until(lambda: os.path.exists(work + '/a') and open(work + '/a').read())
                b = socket.create_connection(where)
                c = socket.create_connection(where); c.sendall(b'from c'); c.shutdown(socket.SHUT_WR)
                d = socket.create_connection(where); d.sendall(b'from d'); gone = d.getsockname()[1]; d.close()
                until(lambda: waiting(listener) == 4)
                ports = [int(open(work + '/a').read()), b.getsockname()[1], c.getsockname()[1], gone]
                listener.listen(1); size = b.getsockopt(6, 2)
                def check():
                    if waiting(listener) != 4: return '%d wait' % waiting(listener)
                    got = [listener.accept() for i in range(4)]
                    if [peer[1] for _, peer in got] != ports: return 'order: %r, was %r' % (got, ports)
                    (w, _), (x, _), (y, _), (z, _) = got
                    if exactly(w, 6) != b'from a': return 'a'
                    w.sendall(b'answer')
                    if exactly(w, 6) != b'ANSWER': return 'answer'
                    if os.waitpid(child, 0)[1]: return 'child'
                    b.sendall(b'late')
                    if exactly(x, 4) != b'late': return 'b'
                    if b.getsockopt(6, 2) < size * 9 // 10: return 'segments of %d' % b.getsockopt(6, 2)
                    if ends(y) != (b'from c', 'end'): return 'c'
                    y.sendall(b'back')
                    if exactly(c, 4) != b'back': return 'back'
                    if ends(z) != (b'from d', 'end'): return 'd'
                    # The backlog is what it was: two fit, and a third does not.
                    more = [socket.socket() for i in range(4)]
                    for m in more: m.setblocking(False); m.connect_ex(where)
                    if waiting(listener) > 2: return 'backlog'
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `more than fits, resets, and IPv6`() throws {
        let program = try Program(
            words + """
                listener = listen(socket.AF_INET6, '::', backlog=5); port = listener.getsockname()[1]
                a = socket.create_connection(('::1', port)); b = socket.create_connection(('127.0.0.1', port))
                c = socket.create_connection(('127.0.0.1', port)); c.sendall(b'from c')
                a.setblocking(False); sent = 0
                for i in range(10000):
                    try: sent += a.send(b'%08d' % i * 64)
                    except BlockingIOError: break
                a.setblocking(True); until(lambda: waiting(listener) == 3)
                c.setsockopt(1, 13, struct.pack('ii', 1, 0)); c.close()
                def check():
                    (x, _), (y, _), (z, _) = [listener.accept() for i in range(3)]
                    a.shutdown(socket.SHUT_WR)
                    data, end = ends(x)
                    if len(data) != sent or data != b''.join(b'%08d' % i * 64 for i in range(sent // 512 + 1))[:sent]: return 'a: %d of %d' % (len(data), sent)
                    b.sendall(b'from b')
                    if exactly(y, 6) != b'from b': return 'b'
                    # The kernel forgets what a reset connection has not read.
                    if ends(z)[1] != 'reset': return 'c: %r' % (ends(z),)
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `connections on one of several listeners of a port`() throws {
        let program = try Program(
            words + """
                first = listen(share=True); port = first.getsockname()[1]
                listeners = [first] + [listen(port=port, share=True) for i in range(3)]
                clients = [socket.create_connection(('127.0.0.1', port)) for i in range(12)]
                until(lambda: sum(map(waiting, listeners)) == 12)
                before = [waiting(l) for l in listeners]
                def check():
                    now = [waiting(l) for l in listeners]
                    if now != before: return '%r, was %r' % (now, before)
                    peers = sorted(l.accept()[1][1] for l in listeners for i in range(waiting(l)))
                    if peers != sorted(c.getsockname()[1] for c in clients): return 'other clients'
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test func `connections of others that nobody has accepted`() throws {
        let program = try Program(
            words + """
                listener = listen(); open(work + '/port', 'w').write(str(listener.getsockname()[1]))
                def check():
                    if waiting(listener) != int(open(work + '/count').read()): return '%d wait' % waiting(listener)
                    for expected in (b'first', b'', b'x' * 60000):
                        c, _ = listener.accept(); c.settimeout(20)
                        if exactly(c, len(expected)) != expected: return 'not ' + expected[:9].decode()
                        if expected == b'first' and ends(c) != (b'', 'end'): return 'no end'
                        c.sendall(b'welcome'); size = c.getsockopt(6, 2)
                        if size < 20000: return 'segments of %d' % size
                        if not expected: 
                            if exactly(c, 4) != b'late': return 'late'
                        c.close()
                serve(check)
                """)
        let port = program.text("port")
        let first = try Client(port: port), second = try Client(port: port), third = try Client(port: port)
        #expect(first.send("first") == 5)
        first.shutDown()
        #expect(third.send(String(repeating: "x", count: 60000)) == 60000)
        _ = try program.run(["sh", "-c", "echo 3 > \(program.work)/count"])

        #expect(try program.dump() == 1)
        let refusal = program.lastLine("dump.log")
        for word in ["3 connections wait", "port \(port)", "127.0.0.1:", "--tcp-established", "--skip-in-flight"] {
            #expect(refusal.contains(word), "\(refusal)")
        }
        #expect(try program.dump(["--tcp-established", "-R"]) == 1)
        #expect(program.lastLine("dump.log").contains("--leave-running"))
        #expect(second.state == "open")

        #expect(try program.dump(["--tcp-established"]) == 0, "\(program.lastLine("dump.log"))")
        #expect(first.state == "open")
        #expect(second.send("late") == 4)
        #expect(try program.restore() == 1)
        #expect(program.lastLine("restore.log").contains("--tcp-established"))
        #expect(try program.restore(["--tcp-established"]) == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
        #expect(first.receive(8) == "welcome")
        #expect(second.receive(8) == "welcome")
        #expect(third.receive(8) == "welcome")
    }

    @Test func `segments as large as before`() throws {
        let program = try Program(
            words + """
                pairs = []
                for family, address in (socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1'), (socket.AF_INET6, '::ffff:127.0.0.1'):
                    l = listen(family, address); c = socket.create_connection(l.getsockname()[:2]); s, _ = l.accept()
                    c.sendall(b'x' * 100000); l.close(); pairs.append((c, s))
                sizes = [x.getsockopt(6, 2) for pair in pairs for x in pair]
                def check():
                    now = [x.getsockopt(6, 2) for pair in pairs for x in pair]
                    if any(b < a * 9 // 10 for a, b in zip(sizes, now)): return '%r, were %r' % (now, sizes)
                    for c, s in pairs:
                        if exactly(s, 100000) != b'x' * 100000: return 'data'
                        s.sendall(b'answer')
                        if exactly(c, 6) != b'answer': return 'answer'
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "ok")
    }

    @Test(arguments: [false, true])
    func `datagrams`(stays: Bool) throws {
        let program = try Program(
            words + """
                def udp(address='127.0.0.1', family=socket.AF_INET, lite=False, options=()):
                    s = socket.socket(family, socket.SOCK_DGRAM, 136 if lite else 0)
                    for level, number in options: s.setsockopt(level, number, 1)
                    s.bind((address, 0) if isinstance(address, str) else address); s.settimeout(5); return s
                a, b = udp(), udp(); where = a.getsockname()
                b.sendto(b'one', where); b.sendto(b'', where); b.sendto(b'z' * 65000, where)
                gone = udp('127.0.0.2'); gone.sendto(b'from one that is gone', where); peer = gone.getsockname(); gone.close()
                six = udp('::', socket.AF_INET6); other = udp('::1', socket.AF_INET6); port = six.getsockname()[1]
                other.sendto(b'six', ('::1', port)); b.sendto(b'four', ('127.0.0.1', port))
                any4 = udp('0.0.0.0', options=[(0, 8)]); b.sendto(b'to another address', ('127.0.0.3', any4.getsockname()[1]))
                full = udp()
                for i in range(100): b.sendto(b'%03d' % i, full.getsockname())
                full.setsockopt(1, 8, 4096)
                size = full.getsockopt(1, 8)
                shared = [udp(options=[(1, 15)])]; shared += [udp(shared[0].getsockname(), options=[(1, 15)]) for i in range(3)]
                for i in range(20): u = udp(); u.sendto(b'%02d' % i, shared[0].getsockname()); u.close()
                def all(s):
                    s.setblocking(False); got = []
                    while True:
                        try: got.append(s.recv(100))
                        except BlockingIOError: return got
                def counts():
                    # How many wait, without taking them.
                    out = []
                    for s in shared:
                        s.setsockopt(1, 42, 0); n = 0; s.setblocking(False)
                        while True:
                            try: n += len(s.recv(100, socket.MSG_PEEK)) // 2
                            except BlockingIOError: break
                        s.setsockopt(1, 42, -1); out.append(n)
                    return out
                before = counts()
                lite = None
                try: lite, sender = udp(lite=True), udp(lite=True); sender.sendto(b'light', lite.getsockname())
                except OSError: pass
                def check():
                    me = b.getsockname()
                    if a.getsockopt(1, 42) != -1 or a.getsockopt(0, 8) != 0: return 'options'
                    for expected in b'one', b'', b'z' * 65000:
                        if a.recvfrom(70000) != (expected, me): return 'datagrams'
                    if a.recvfrom(100) != (b'from one that is gone', peer): return 'the one that is gone'
                    if six.recvfrom(100)[:2] != (b'six', other.getsockname()): return 'IPv6'
                    data, sender4 = six.recvfrom(100)
                    if data != b'four' or sender4[:2] != ('::ffff:127.0.0.1', me[1]): return 'IPv4 on IPv6'
                    data, control, flags, sender = any4.recvmsg(100, 100)
                    if data != b'to another address' or control[0][2][8:12] != bytes([127, 0, 0, 3]): return 'destination: %r' % control
                    got = all(full)
                    if got != [b'%03d' % i for i in range(100)] or full.getsockopt(1, 8) != size: return 'full: %r' % got
                    if counts() != before: return '%r, was %r' % (counts(), before)
                    if sorted(sum(map(all, shared), [])) != [b'%02d' % i for i in range(20)]: return 'shared'
                    if lite and lite.recvfrom(100)[0] != b'light': return 'UDP-Lite'
                serve(check)
                """)
        // A dump that lets the program run takes nothing.
        if stays { #expect(try program.dump(["-R"]) == 0, "\(program.lastLine("dump.log"))") }
        let outcome = try stays ? program.ask() : program.cycle()
        #expect(outcome == "ok")
    }
}
