import Glibc
import Linux
import Testing

/// Network interfaces whose other end is a task, in a network namespace of the test.
@Suite(.serialized, .enabled(if: geteuid() == 0 && access("/dev/net/tun", F_OK) == 0, "needs root and tun"))
struct `A network interface of the tun driver` {
    /// A network namespace that has a name as long as this lives.
    private final class Namespace {
        let name = "brumate-test-\(getpid())"
        let program: Program

        init(_ script: String) throws {
            program = try Program(
                """
                import fcntl, subprocess, json
                subprocess.run(['ip', 'netns', 'add', '\(name)'], check=True)
                f = os.open('/run/netns/\(name)', os.O_RDONLY); libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(f, 0x40000000): raise OSError(ctypes.get_errno())
                os.close(f)
                TUN, TAP, NO_PI, HDR, MULTI, PERSIST = 1, 2, 0x1000, 0x4000, 0x100, 0x800
                def opened(): return os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
                def request(name, flags): return struct.pack('16sH22x', name.encode(), flags)
                def attached(name, flags): t = opened(); fcntl.ioctl(t, 0x400454ca, request(name, flags)); return t
                def number(t, command, value): fcntl.ioctl(t, command, struct.pack('i', value))
                def told(t):
                    out = []
                    for command, size in ((0x800454d2, 40), (0x800454d3, 4), (0x800454d7, 4), (0x800454dd, 4)):
                        room = bytearray(size)
                        try: fcntl.ioctl(t, command, room); out.append(room.hex())
                        except OSError as e: out.append(e.errno)
                    return out + [fcntl.fcntl(t, 3)]
                def ip(*words):
                    text = subprocess.run(['ip', '-j', '-d', *words], check=True, capture_output=True, text=True).stdout
                    return json.loads(text or '[]')
                def network():
                    out = [ip('link'), ip('addr'), ip('route', 'show', 'table', 'all'), ip('-6', 'route', 'show', 'table', 'all')]
                    # Privacy and lifetimes count down; link-local addresses become ready in their own time.
                    def plain(value):
                        if isinstance(value, list): return sorted((plain(v) for v in value), key=repr)
                        if isinstance(value, dict): return {k: plain(v) for k, v in value.items()
                            if k not in ('valid_life_time', 'preferred_life_time', 'tentative', 'metric', 'stats', 'stats64', 'stable-privacy', 'permaddr', 'operstate')}
                        return value
                    return plain(out)

                """ + script)
        }

        func brumate(_ words: [String]) throws -> Int32 {
            try program.run(
                ["nsenter", "--net=/run/netns/\(name)", Program.binary] + words + ["-D", program.images, "-v4"])
        }

        func cycle() throws -> String {
            guard try brumate(["dump", "-t", "\(program.id)", "-o", "dump.log"]) == 0 else {
                return "dump: " + program.lastLine("dump.log")
            }
            var status: Int32 = 0
            unsafe waitpid(program.id, &status, 0)
            guard try brumate(["restore", "-o", "restore.log", "-d"]) == 0 else {
                return "restore: " + program.lastLine("restore.log")
            }
            return program.ask()
        }

        deinit { _ = try? program.run(["ip", "netns", "del", name]) }
    }

    private static let check = """

        def flat(value, place=''):
            if isinstance(value, (list, dict)) and value:
                return [line for k, v in (value.items() if isinstance(value, dict) else enumerate(value)) for line in flat(v, '%s/%s' % (place, k))]
            return ['%s: %r' % (place, value)]
        def facts(): return flat([[told(t) for t in all_files], network()])
        before = facts()
        def check():
            now = facts()
            if now != before: return 'was %r, is %r' % ([l for l in before if l not in now], [l for l in now if l not in before])
            return works()
        serve(check)
        """

    @Test func `comes back with its addresses and routes`() throws {
        let space = try Namespace(
            """
            plain = opened()
            t = attached('brm0', TUN | NO_PI); number(t, 0x400454d4, 54321)
            for words in (['link', 'set', 'lo', 'up'], ['addr', 'add', '10.9.0.1/24', 'dev', 'brm0'],
                          ['addr', 'add', '10.9.7.1', 'peer', '10.9.7.2', 'dev', 'brm0', 'label', 'brm0:x'],
                          ['link', 'set', 'brm0', 'up', 'mtu', '1300', 'txqueuelen', '77'], ['-6', 'addr', 'add', 'fd00:9::1/64', 'dev', 'brm0', 'nodad'],
                          ['route', 'add', '10.10.0.0/16', 'via', '10.9.0.2'], ['route', 'add', '10.11.0.0/16', 'dev', 'brm0', 'table', '77'],
                          ['-6', 'route', 'add', 'fd00:a::/64', 'via', 'fd00:9::2']):
                subprocess.run(['ip', *words], check=True)
            h = attached('brm1', TAP | HDR); number(h, 0x400454d8, 12); number(h, 0x400454dc, 1)
            libc.ioctl(h, 0x400454cc, 1234); libc.ioctl(h, 0x400454ce, 4321)
            subprocess.run(['ip', 'link', 'set', 'brm1', 'address', '02:11:22:33:44:55'], check=True)
            all_files = [plain, t, h]
            def works():
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b'to the task', ('10.10.3.4', 9))
                while True:
                    packet = os.read(t, 2000)
                    if packet.endswith(b'to the task'): break
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                    s.bind(('10.9.0.1', 5555)); s.settimeout(10)
                    udp = struct.pack('!HHHH', 7, 5555, 8 + 5, 0) + b'hello'
                    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, bytes([10, 9, 0, 2]), bytes([10, 9, 0, 1]))
                    total = sum(struct.unpack('!10H', head)); total = (total & 0xffff) + (total >> 16)
                    head = head[:10] + struct.pack('!H', ~total & 0xffff) + head[12:]
                    os.write(t, head + udp)
                    if s.recv(100) != b'hello': return 'not from the task'
            """ + Self.check)
        #expect(space.program.ask() == "ok")
        let answer = try space.cycle()
        #expect(answer == "ok")
    }

    @Test func `is found again if it is persistent, with all its queues`() throws {
        let space = try Namespace(
            """
            p = attached('brm2', TAP | NO_PI); number(p, 0x400454cb, 1); libc.ioctl(p, 0x400454cb, 1)
            subprocess.run(['ip', 'link', 'set', 'brm2', 'up'], check=True)
            q = [attached('brm3', TAP | MULTI | NO_PI) for i in range(3)]
            fcntl.ioctl(q[1], 0x400454d9, request('brm3', 0x400))
            same = os.dup(q[2]); all_files = [p, same] + q
            def works():
                if libc.syscall(312, os.getpid(), os.getpid(), 0, same, q[2]): return 'no dup any more'
            """ + Self.check)
        #expect(space.program.ask() == "ok")
        let answer = try space.cycle()
        #expect(answer == "ok")
        // Persistent ones stay on the machine, others go with their last file.
        let links = try space.program.run(["nsenter", "--net=/run/netns/\(space.name)", "ip", "link", "show", "brm2"])
        #expect(links == 0)
    }

    @Test func `comes back with its network namespace, from outside`() throws {
        let space = try Namespace(
            """
            t = attached('brm5', TUN | NO_PI); all_files = [t]
            for words in ('link set lo up', 'link set brm5 up', 'addr add 10.7.0.1/24 dev brm5', 'route add 10.8.0.0/16 via 10.7.0.9'):
                subprocess.run(['ip'] + words.split(), check=True)
            place = os.readlink('/proc/self/ns/net')
            def works():
                if place == os.readlink('/proc/self/ns/net') and os.path.exists(work + '/away'): return 'the same namespace'
            """ + Self.check)
        #expect(space.program.ask() == "ok")
        for _ in 1...2 {
            try #require(try space.program.dump() == 0, "\(space.program.lastLine("dump.log"))")
            try #require(try space.program.run(["touch", space.program.work + "/away"]) == 0)
            try #require(try space.program.restore() == 0, "\(space.program.lastLine("restore.log"))")
            #expect(space.program.ask() == "ok")
        }
    }

    @Test func `is refused in words if it can't be had`() throws {
        let space = try Namespace(
            """
            t = attached('brm4', TAP | NO_PI); all_files = [t]
            def works(): pass
            """ + Self.check)
        #expect(space.program.ask() == "ok")
        try #require(try space.brumate(["dump", "-t", "\(space.program.id)", "-o", "dump.log"]) == 0)
        let inside = ["nsenter", "--net=/run/netns/\(space.name)", "ip"]
        var status: Int32 = 0
        unsafe waitpid(space.program.id, &status, 0)
        try #require(try space.program.run(inside + ["tuntap", "add", "dev", "brm4", "mode", "tun"]) == 0)
        #expect(try space.brumate(["restore", "-o", "restore.log", "-d"]) != 0)
        let reason = space.program.lastLine("restore.log")
        #expect(reason.contains("brm4") && reason.contains("Another program may use it"), "\(reason)")
        try #require(try space.program.run(inside + ["link", "del", "brm4"]) == 0)
        try #require(try space.brumate(["restore", "-o", "restore.log", "-d"]) == 0)
        let answer = space.program.ask()
        #expect(answer == "ok")
    }
}
