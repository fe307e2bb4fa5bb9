import Glibc
import Linux
import Testing

/// Enters a network namespace of its own and has `facts()`, a text of all that can be seen of it.
private let apart = """
    import subprocess
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000): raise OSError(ctypes.get_errno(), 'unshare')
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    def run(command):
        if os.system(command): raise Exception('failed: ' + command)
    run('ip link set lo up')
    def read(path):
        try: return open('/proc/sys/net/' + path).read().strip()
        except OSError as e: return str(e)
    def settings():
        found = []
        for place, folders, files in os.walk('/proc/sys/net'):
            for name in sorted(files):
                path = os.path.join(place, name)[len('/proc/sys/net/'):]
                # Numbers that tell of the moment.
                if not name.endswith(('_count', 'flush')): found.append(path + ' ' + read(path))
        return sorted(found)
    def facts():
        shown = ['ip -o link', 'ip -o addr', 'ip -4 route show table all', 'ip -6 route show table all', 'ip rule', 'ip -6 rule']
        return '\\n'.join(settings() + [subprocess.getoutput(c) for c in shown])

    """

private func has(_ words: String) -> Bool {
    words.split(separator: " ").allSatisfy { word in
        ["/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"].contains { access($0 + String(word), X_OK) == 0 }
    }
}

/// Whether something in a namespace answers: a stranger to the tree, who has a listener there.
private let stranger =
    apart + """
        listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(9)
        def connects(mark):
            listener.setsockopt(1, 36, mark)
            c = socket.socket(); c.setsockopt(1, 36, mark); c.settimeout(0.3)
            try: c.connect(listener.getsockname())
            except socket.timeout: return 'no'
            a, _ = listener.accept(); a.close(); c.close()
            return 'yes'
        tree = subprocess.Popen(['setsid', 'sleep', '1000'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        open(work + '/root', 'w').write(str(tree.pid))
        while open('/proc/%d/comm' % tree.pid).read() != 'sleep\\n': pass
        # We reap it when a dump kills it.
        threading.Thread(target=tree.wait, daemon=True).start()
        def check(): return connects(0) + ' ' + connects(0xc114)
        serve(check)
        """

@Suite(.serialized, .enabled(if: geteuid() == 0 && has("ip"), "needs root and the program ip"))
struct `A tree goes on in its own network namespace` {
    private func namespace(_ task: Int32) throws -> String { try readLink("/proc/\(task)/ns/net").string }

    @Test func `with addresses, routes, rules and settings`() throws {
        let program = try Program(
            apart + """
                run('ip link set lo mtu 40000')
                run('ip addr add 10.1.2.3/24 dev lo label lo:1'); run('ip addr add fd00:1::3/64 dev lo nodad')
                run('ip addr del 127.0.0.1/8 dev lo')
                run('ip route add 10.9.0.0/16 via 10.1.2.9 metric 7'); run('ip route add local 10.77.0.0/16 dev lo')
                run('ip route add table 77 10.8.0.0/16 dev lo'); run('ip route add blackhole 10.66.0.0/16')
                run('ip -6 route add fd00:9::/64 dev lo metric 5'); run('ip route add 10.5.0.0/16 via 10.9.0.1 onlink dev lo')
                run('ip rule add from 10.1.0.0/16 lookup 77'); run('ip rule del lookup default')
                run('ip -6 rule add from fd00:1::/64 lookup 77 pref 100')
                def write(path, value): open('/proc/sys/net/' + path, 'w').write(value)
                write('ipv4/ip_forward', '1'); write('ipv4/conf/lo/rp_filter', '2'); write('ipv4/conf/default/log_martians', '1')
                write('ipv6/conf/all/forwarding', '1'); write('ipv6/conf/lo/hop_limit', '33')
                write('unix/max_dgram_qlen', '77'); write('ipv4/ping_group_range', '5\\t9')
                write('ipv4/ip_local_port_range', '20000\\t30000'); write('ipv4/tcp_syncookies', '2')
                listener = socket.socket(); listener.bind(('10.1.2.3', 0)); listener.listen(1)
                def check():
                    c = socket.create_connection(listener.getsockname()); a, _ = listener.accept(); a.close(); c.close()
                    return facts()
                serve(check)
                """)
        let (before, place) = (program.ask(), try namespace(program.id))
        #expect(try namespace(getpid()) != place)
        for word in ["10.77.0.0/16", "fd00:9::/64", "lookup 77", "mtu 40000"] { #expect(before.contains(word)) }
        for _ in 1...2 {
            try #require(try program.dump() == 0, "\(program.lastLine("dump.log"))")
            try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
            let after = program.ask()
            for change in after.split(separator: "\n").difference(from: before.split(separator: "\n")) {
                Issue.record("\(change)")
            }
            #expect(try namespace(program.id) != namespace(getpid()))
            #expect(!program.text("images/restore.log").contains("stays as it is"))
        }
    }

    /// Runs something in the namespace around the tree's, which is one of the test's own.
    private func around(_ program: Program, _ words: [String], fault: String? = nil) throws -> Int32 {
        try program.run(
            (fault.map { ["BRUMATE_FAULT=\($0)"] } ?? []) + ["nsenter", "-t", "\(program.id)", "-n"] + words)
    }

    @Test func `with its devices, whose other ends are outside`() throws {
        let program = try Program(
            apart + """
                import re
                run('ip link add br0 type bridge; ip addr add 10.0.0.1/24 dev br0; ip link set br0 up')
                run('ip link add low0 type veth peer name low1; ip link set low0 up; ip link set low1 up')
                run('ip link add spare0 type veth peer name spare1')
                (ready, told), (waiting, go) = os.pipe(), os.pipe()
                child = os.fork()
                if child == 0:
                    os.setsid(); libc.unshare(0x40000000); os.write(told, b'!'); os.read(waiting, 1)
                    for number in (ready, told, waiting, go): os.close(number)
                    run('ip link set lo up; ip link set eth0 address 02:00:00:00:00:77 mtu 1400; ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0')
                    run('ip route add default via 10.0.0.1; ip link set mv0 up; ip addr add 10.7.0.2/24 dev mv0')
                    run('ip link add brin type bridge hello_time 300; ip link add va type veth peer name vb; ip link set va master brin')
                    for name in ('brin', 'va', 'vb'): run('ip link set %s up' % name)
                    run('ip addr add 10.5.0.1/24 dev brin; ip -6 addr add fd00:5::1/64 dev brin nodad')
                    def shown(command):
                        # Numbers and names outside, and what takes a moment to be known.
                        text = re.sub(r'@if[0-9]+| link-netnsid [0-9]+| tentative| state [A-Z]+| linkdown|M-DOWN', '', subprocess.getoutput(command))
                        return sorted(re.sub(r'<.*>', '', line) for line in text.split('\\n'))
                    def check():
                        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); s.connect(('10.0.0.1', 7777)); s.send(b'ping')
                        out = [repr(s.recv(10))]
                        for command in ('ip -o link', 'ip -o addr', 'ip -4 route show table all', 'cat /sys/class/net/va/brport/bridge/bridge/hello_time'): out += shown(command)
                        out += [w for w in re.findall(r'mode [a-z]+', subprocess.getoutput('ip -d link show mv0'))] + [read('ipv4/conf/eth0/rp_filter')]
                        return '\\n'.join(out)
                    open('/proc/sys/net/ipv4/conf/eth0/rp_filter', 'w').write('2')
                    serve(check)
                os.read(ready, 1)
                run('ip link add host0 type veth peer name eth0 netns %d; ip link set host0 master br0 up' % child)
                run('ip link add link low0 name mv0 netns %d type macvlan mode private' % child)
                open(work + '/root', 'w').write(str(child))
                os.write(go, b'!')
                threading.Thread(target=os.waitpid, args=(child, 0), daemon=True).start()
                s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.0.0.1', 7777))
                while True:
                    data, who = s.recvfrom(10); s.sendto(data, who)
                """)
        program.root = Int32(program.text("root"))
        let before = program.ask()
        for word in ["b'ping'", "02:00:00:00:00:77", "mtu 1400", "10.0.0.1 dev eth0", "master brin", "mode private"] {
            #expect(before.contains(word), "\(before)")
        }
        let images = ["-D", program.images, "-v4"]
        let root = try #require(program.root)
        let dump = [Program.binary, "dump", "-t", "\(root)", "-o", "dump.log"] + images
        let restore = [Program.binary, "restore", "-d", "-o", "restore.log"] + images
        try #require(try around(program, dump) == 0, "\(program.lastLine("dump.log"))")
        #expect(try around(program, restore) != 0)
        #expect(program.lastLine("restore.log").contains("--external veth[eth0]:NAME"))
        // What was moved comes back if the restore fails.
        let macvlan = ["--external", "macvlan[mv0]:low0"]
        let moved = ["--external", "netdev[eth0]:spare0"] + macvlan
        #expect(try around(program, restore + moved, fault: "restore-files:fail") != 0)
        #expect(try around(program, ["ip", "link", "show", "spare0"]) == 0)
        for more in [["veth[eth0]:host0@br0"], ["veth[eth0]:host7@br0"]] {
            let words = more.flatMap { ["--external", $0] } + macvlan
            try #require(try around(program, restore + words) == 0, "\(program.lastLine("restore.log"))")
            let after = program.ask()
            for change in after.split(separator: "\n").difference(from: before.split(separator: "\n")) {
                Issue.record("\(change)")
            }
            try #require(try around(program, dump) == 0, "\(program.lastLine("dump.log"))")
        }
        try #require(try around(program, restore + moved) == 0, "\(program.lastLine("restore.log"))")
        #expect(try around(program, ["ip", "link", "set", "spare1", "master", "br0", "up"]) == 0)
        #expect(program.ask() == before)
    }

    @Test(arguments: ["nft", "iptables-legacy"])
    func `with a connection inside and rules that ask for its state`(tool: String) throws {
        guard has(tool) else { return print("skipped: there is no program \(tool)") }
        let program = try Program(
            apart + """
                tool = '\(tool)'
                if tool == 'nft':
                    run('nft add table ip filter')
                    run("nft 'add chain ip filter INPUT { type filter hook input priority 0 ; }'")
                    run("nft add rule ip filter INPUT iifname lo tcp dport '{ 1024-65535 }' ct state established accept")
                    run("nft add rule ip filter INPUT iifname lo tcp dport 8888 ct state new accept")
                    run("nft add rule ip filter INPUT counter drop")
                else:
                    run('iptables-legacy -w -A INPUT -i lo -p tcp -m state --state ESTABLISHED -j ACCEPT')
                    run('iptables-legacy -w -A INPUT -i lo -p tcp --dport 8888 -m state --state NEW -j ACCEPT')
                    run('iptables-legacy -w -N kept'); run('iptables-legacy -w -A INPUT -j DROP')
                listener = socket.socket(); listener.bind(('127.0.0.1', 8888)); listener.listen(1)
                client = socket.create_connection(listener.getsockname()); server, _ = listener.accept()
                waiting = socket.create_connection(listener.getsockname())
                def rules(): return subprocess.getoutput('nft -s list ruleset; iptables-legacy-save 2>&1 | grep "^-A\\|^:k"')
                def check():
                    client.settimeout(5); server.settimeout(5)
                    client.sendall(b'there'); got = server.recv(5)
                    server.sendall(b'back'); got += client.recv(4)
                    refused = socket.socket(); refused.settimeout(0.3)
                    other = socket.socket(); other.bind(('127.0.0.1', 0)); other.listen(1)
                    try: refused.connect(other.getsockname()); got += b' open!'
                    except socket.timeout: pass
                    return got.decode() + rules()
                serve(check)
                """)
        let before = program.ask()
        #expect(before.hasPrefix("thereback") && !before.contains("open!"), "\(before)")
        for _ in 1...2 {
            try #require(try program.dump() == 0, "\(program.lastLine("dump.log"))")
            try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
            let after = program.ask()
            #expect(after.contains(tool == "nft" ? "dport 8888" : "--dport 8888"))
            #expect(after == before)
        }
    }

    /// A stranger in the namespace, and a tree there.
    private func withStranger() throws -> Program {
        let program = try Program(stranger)
        program.root = try #require(Int32(program.text("root")))
        #expect(program.ask() == "yes yes")
        return program
    }

    @Test(arguments: ["nftables", "iptables"])
    func `which is locked until it is back there`(method: String) throws {
        if method == "iptables", !has("iptables-restore") {
            return print("skipped: there is no program iptables-restore")
        }
        let program = try withStranger()
        let (root, place) = (try #require(program.root), try namespace(program.id))
        for _ in 1...2 {
            try #require(
                try program.dump(["--network-lock", method]) == 0, "\(program.lastLine("dump.log"))")
            #expect(program.ask() == "no yes")
            try #require(
                try program.restore(["--join-ns", "net:\(program.id)"]) == 0, "\(program.lastLine("restore.log"))")
            #expect(program.ask() == "yes yes")
            #expect(try namespace(root) == place)
        }
        try #require(try program.dump(["--network-lock", method, "-R"]) == 0, "\(program.lastLine("dump.log"))")
        #expect(program.ask() == "yes yes")
    }

    @Test(arguments: ["dump-locked:fail", "dump-files:fail", "dump-commit:fail", "dump-locked:kill", "dump-cured:kill"])
    func `after a dump that did not end well`(fault: String) throws {
        let program = try withStranger()
        let root = try #require(program.root)
        #expect(try program.dump(fault: fault) != 0)
        #expect(program.ask() == "yes yes")
        #expect(kill(root, 0) == 0)
        #expect(try readWholeFile("/proc/\(root)/comm") == Array("sleep\n".utf8))
    }

    @Test(arguments: ["restore-sown", "restore-network", "restore-files", "restore-sealed"])
    func `after a restore that did not end well`(point: String) throws {
        let program = try Program(
            apart + """
                listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(1)
                client = socket.create_connection(listener.getsockname()); server, _ = listener.accept()
                def check(): client.sendall(b'x'); return 'ok' if server.recv(1) == b'x' else 'lost'
                serve(check)
                """)
        try #require(try program.dump() == 0, "\(program.lastLine("dump.log"))")
        #expect(try program.restore(fault: "\(point):fail") != 0)
        #expect(program.isGone)
        try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
    }

    @Test(arguments: ["nftables", "iptables"])
    func `with a client there that notices nothing`(method: String) throws {
        if method == "iptables", !has("iptables-restore") {
            return print("skipped: there is no program iptables-restore")
        }
        let program = try Program(
            apart + """
                listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(9)
                tree = os.fork()
                if tree == 0:
                    os.setsid(); os.close(2); os.open('/dev/null', os.O_RDWR)
                    server, _ = listener.accept()
                    # Waits to be accepted.
                    inner = socket.create_connection(listener.getsockname()); inner.sendall(b'inner')
                    server.sendall(b'go')
                    while True:
                        got = server.recv(99)
                        if got == b'accept': waiting, _ = listener.accept(); got = waiting.recv(99)
                        server.sendall(b'<' + got + b'>')
                threading.Thread(target=os.waitpid, args=(tree, 0), daemon=True).start()
                client = socket.create_connection(listener.getsockname()); client.settimeout(20)
                listener.close(); client.recv(2)
                open(work + '/root', 'w').write(str(tree))
                words, told = [b'one', b'two', b'accept', b'three'], []
                def check():
                    word = words.pop(0); client.sendall(word); return client.recv(99).decode()
                serve(check)
                """)
        program.root = Int32(program.text("root"))
        #expect(program.ask() == "<one>")
        for answer in ["<two>", "<inner>"] {
            try #require(
                try program.dump(["--network-lock", method, "--tcp-established"]) == 0,
                "\(program.lastLine("dump.log"))")
            try #require(
                try program.restore(["--join-ns", "net:\(program.id)", "--tcp-established"]) == 0,
                "\(program.lastLine("restore.log"))")
            #expect(program.ask() == answer)
        }
        #expect(try program.run(["sh", "-c", "nsenter -t \(program.id) -n iptables -w -C INPUT -j CRIU"]) != 0)
    }

    @Test func `without sockets of another`() throws {
        let program = try Program("other = socket.socket()\n" + apart + "serve(lambda: 'ok')")
        #expect(try program.dump() != 0)
        let error = program.lastLine("dump.log")
        #expect(error.contains("file descriptor") && error.contains("another network namespace"), "\(error)")
        #expect(program.ask() == "ok")
    }

    @Test func `or in one that is named, where it had none of its own`() throws {
        let host = try Program(apart + "serve(lambda: 'ok')")
        let program = try Program(
            """
            listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(1)
            client = socket.create_connection(listener.getsockname()); server, _ = listener.accept()
            def check():
                client.sendall(b'x'); server.recv(1)
                c = socket.create_connection(listener.getsockname()); listener.accept()
                return os.readlink('/proc/self/ns/net')
            serve(check)
            """)
        let place = try namespace(host.id)
        #expect(program.ask() != place)
        try #require(try program.dump() == 0, "\(program.lastLine("dump.log"))")
        #expect(try program.restore(["--join-ns", "net:/proc/self/exe"]) != 0)
        let error = program.lastLine("restore.log")
        #expect(error.contains("/proc/self/exe"), "\(error)")
        try #require(
            try program.restore(["--join-ns", "net:/proc/\(host.id)/ns/net"]) == 0, "\(program.lastLine("restore.log"))"
        )
        #expect(program.ask() == place)
    }

    @Test func `which a script fills`() throws {
        let program = try Program(
            apart + """
                run('ip link add v0 type veth peer name v1; ip link add link v0 name br0 type macvlan')
                serve(lambda: subprocess.getoutput('ip -o link show up') + subprocess.getoutput('ip -o link show'))
                """)
        #expect(program.ask().contains("br0"))
        #expect(try program.dump() != 0)
        let error = program.lastLine("dump.log")
        for word in ["br0", "macvlan", "--empty-ns net"] { #expect(error.contains(word), "\(error)") }
        #expect(program.ask().contains("br0"))
        try #require(try program.dump(["--empty-ns", "net"]) == 0, "\(program.lastLine("dump.log"))")
        let script = """
            #!/bin/sh
            ip() { nsenter --net=/proc/$CRTOOLS_INIT_PID/ns/net ip "$@"; }
            case $CRTOOLS_SCRIPT_ACTION in
            setup-namespaces) [ "$(ip -o link show | wc -l)" = 1 ] && ip link add br7 type bridge ;;
            post-setup-namespaces) ip link set br7 up ;;
            esac
            """
        try #require(
            try program.run([
                "sh", "-c",
                "printf %s '\(script.replacing("'", with: "'\\''"))' > \(program.work)/script && chmod +x \(program.work)/script",
            ]) == 0)
        try #require(
            try program.restore(["--empty-ns", "net", "--action-script", program.work + "/script"]) == 0,
            "\(program.lastLine("restore.log"))")
        let after = program.ask()
        #expect(after.contains("br7") && !after.contains("br0"), "\(after)")
    }

    @Test func `unless its tasks are in several`() throws {
        let program = try Program(
            apart + """
                ready, go = os.pipe()
                child = os.fork()
                if child == 0:
                    libc.unshare(0x40000000); os.write(go, b'x'); signal.pause()
                os.read(ready, 1)
                serve(lambda: 'ok %d' % child)
                """)
        let child = program.ask().split(separator: " ")[1]
        #expect(try program.dump() != 0)
        let error = program.lastLine("dump.log")
        #expect(error.contains("ask \(child)") && error.contains("another network namespace"), "\(error)")
        #expect(!program.text("images/dump.log").contains("stopped"))
        #expect(program.ask() == "ok \(child)")
    }
}
