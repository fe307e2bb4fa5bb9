import Glibc
import Testing

/// Checkpoints of servers whose clients are outside of the tree, and stay connected. They need root.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A server goes on with its clients elsewhere` {
    /// The program is the client: it starts the server, which is the tree, loads it, checks every answer, and dumps and
    /// restores it meanwhile.
    private static let prelude = """
        binary = '\(Program.binary)'

        """ + #"""
            import glob, pwd, random, shutil, subprocess
            shared = [0] * 32
            def get(i): return shared[i]
            def put(i, n): shared[i] = n
            def wait(what, condition):
                end = time.monotonic() + 25
                while not condition():
                    if time.monotonic() > end: raise Exception('waited in vain for ' + what)
                    time.sleep(0.001)
            problems = []
            def goes_on(counters):
                before = [get(i) for i in counters]
                wait('progress', lambda: problems or all(get(i) > b + 5 for i, b in zip(counters, before)))
                if problems: raise Exception(problems[0])
            def guarded(body):
                def run(*arguments):
                    try: body(*arguments)
                    except BaseException as e: problems.append('%s%r: %r' % (body.__name__, arguments, e))
                return run
            def start(body, *arguments): threading.Thread(target=guarded(body), args=arguments, daemon=True).start()
            # Not one that the kernel gives to whoever connects while the server is away.
            def free_port():
                while True:
                    port = random.randrange(10000, 32000)
                    with socket.socket() as s:
                        try: s.bind(('127.0.0.1', port)); return port
                        except OSError: pass
            port = free_port()
            os.environ['PATH'] += ':/usr/sbin:/sbin'; os.chmod(work, 0o711)
            def server(words, **how):
                with open(work + '/server.log', 'a') as log:
                    made = subprocess.Popen(
                    words, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **how)
                open(work + '/root', 'w').write(str(made.pid))
                return made
            def server_log(): return open(work + '/server.log').read()
            def connect():
                made = []
                def connected():
                    try: made.append(socket.create_connection(('127.0.0.1', port))); return True
                    except OSError: pass
                wait('the server', connected); made[0].setsockopt(6, 1, 1); made[0].settimeout(25); return made[0]
            # What a dump kills becomes our child and is reaped at once; some machines' init takes seconds.
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
            # Those of one that ends meanwhile are none: sshd's of a session before this are still going.
            def children(pid):
                try: return [int(c) for c in open('/proc/%d/task/%d/children' % (pid, pid)).read().split()]
                except (FileNotFoundError, ProcessLookupError): return []
            def tree(pid): return [pid] + [task for child in children(pid) for task in tree(child)]
            def brumate(order, *options):
                words = [binary, order, '-D', work + '/images', '-v4', '-o', order + '.log', '--tcp-established', *options]
                if subprocess.run(words, stdin=subprocess.DEVNULL).returncode:
                    raise Exception('%s: %s' % (order, open(work + '/images/' + order + '.log').read().splitlines()[-1:]))
            def cycle(meanwhile=lambda: None):
                root = int(open(work + '/root').read()); tasks = tree(root)
                brumate('dump', '-t', str(root))
                for task in tasks:
                    try: os.waitpid(task, 0)
                    except ChildProcessError: pass
                meanwhile(); brumate('restore', '-d')

            """#

    /// Checkpoints the server a few times, at whatever it is doing then.
    private func check(_ script: String) throws {
        let program = try Program(Self.prelude + script)
        program.root = try #require(Int32(program.text("root")))
        for round in 1...3 {
            let outcome = program.ask()
            try #require(outcome == "ok", "round \(round) \(program.text("log"))")
        }
    }

    @Test(programs("nginx", package: "nginx"))
    func `nginx: workers under another uid, and clients that stay connected`() throws {
        try check(
            #"""
            files = {'small': b'x', 'middle': random.randbytes(40000), 'large': random.randbytes(2000000)}
            os.mkdir(work + '/site')
            for name, data in files.items(): open(work + '/site/' + name, 'wb').write(data)
            open(work + '/nginx.conf', 'w').write("""
                user www-data; worker_processes 3; daemon off; pid %(work)s/nginx.pid; error_log %(work)s/error.log;
                events { worker_connections 64; }
                http {
                    access_log %(work)s/access.log; keepalive_requests 1000000; keepalive_timeout 600;
                    client_body_temp_path %(work)s/body; proxy_temp_path %(work)s/proxy;
                    fastcgi_temp_path %(work)s/fastcgi; uwsgi_temp_path %(work)s/uwsgi; scgi_temp_path %(work)s/scgi;
                    server { listen 127.0.0.1:%(port)d reuseport; root %(work)s/site; }
                }
                """ % globals())
            nginx = server(['nginx', '-e', work + '/error.log', '-c', work + '/nginx.conf'])
            requests = [0] * 8
            def ask(c, i, name):
                requests[i] += 1
                c.sendall(b'GET /%s?%d-%d HTTP/1.1\r\nHost: here\r\n\r\n' % (name.encode(), i, requests[i]))
            def response(replies, name):
                status = replies.readline()
                if status != b'HTTP/1.1 200 OK\r\n': raise Exception('status %r' % status)
                length = 0
                while (header := replies.readline()) != b'\r\n':
                    if header.startswith(b'Content-Length:'): length = int(header.split(b':')[1])
                if replies.read(length) != files[name]: raise Exception('%s is not what it was' % name)
            ending = []
            def load(i):
                c = connect(); replies = c.makefile('rb')
                while not ending:
                    # Three requests under way at a time.
                    names = random.choices(['small', 'middle', 'large'], [9, 9, 2 if i == 0 else 0], k=3)
                    for name in names: ask(c, i, name)
                    for name in names: response(replies, name)
                    put(i, get(i) + 1)
                put(i + 10, 1)
            for i in range(6): start(load, i)
            goes_on(range(6))
            slow = connect(); slow_replies = slow.makefile('rb', buffering=4096)
            before = children(nginx.pid)
            rounds = 0
            def check():
                global rounds
                rounds += 1
                # A client that does not read: the server's queue is full.
                ask(slow, 7, 'large'); slow.recv(1, socket.MSG_PEEK)
                cycle(lambda: ask(slow, 7, 'small'))
                goes_on(range(6)); response(slow_replies, 'large'); response(slow_replies, 'small')
                now = children(nginx.pid)
                if now != before: return 'the workers are %r and were %r' % (now, before)
                uids = {os.stat('/proc/%d' % w).st_uid for w in now}
                if uids != {pwd.getpwnam('www-data').pw_uid}: return 'the workers run as %r' % uids
                if rounds < 3: return
                ending.append(1); wait('the clients', lambda: problems or all(get(i + 10) for i in range(6)))
                # What was answered was done once.
                def logged():
                    return sorted(l.split('?')[1].split()[0] for l in open(work + '/access.log') if '" 200 ' in l)
                expected = sorted('%d-%d' % (i, n + 1) for i in range(8) for n in range(requests[i]))
                wait('the log', lambda: len(logged()) >= len(expected))
                if logged() != expected: return 'the log has other requests'
                # The master still leads its workers.
                os.kill(nginx.pid, signal.SIGHUP)
                def workers(): return set(children(nginx.pid))
                wait('new workers', lambda: len(workers()) == 3 and not workers() & set(before))
                c = connect(); ask(c, 6, 'small'); response(c.makefile('rb'), 'small')
                return (problems or [None])[0]
            serve(check)
            """#)
    }

    @Test(programs("psql", "pgbench", package: "postgresql"))
    func `PostgreSQL: under pgbench, with a session in the midst of a transaction`() throws {
        try check(
            #"""
            bin = sorted(glob.glob('/usr/lib/postgresql/*/bin'))[-1] + '/'
            os.mkdir(work + '/pg'); shutil.chown(work + '/pg', 'postgres', 'postgres')
            mine = dict(user='postgres', group='postgres', extra_groups=[], cwd='/')
            there = ['-h', '127.0.0.1', '-p', str(port), '-U', 'postgres']
            def run(*words):
                done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, **mine)
                if done.returncode: raise Exception('%s: %s %s' % (words, done.stdout, done.stderr))
            run(bin + 'initdb', '-D', work + '/pg/data', '--no-sync', '-A', 'trust', '-U', 'postgres', '--locale=C')
            postgres = server([bin + 'postgres', '-D', work + '/pg/data', '-p', str(port), '-c',
                'listen_addresses=127.0.0.1', '-c', 'unix_socket_directories=', '-c', 'shared_buffers=8MB',
                '-c', 'fsync=off'], **mine)
            wait('postgres', lambda: 'ready to accept connections' in server_log())
            run(bin + 'pgbench', '-i', '-q', *there, 'postgres')
            run(bin + 'psql', *there, '-Xqc',
                'create table told as select client, 0 as n from generate_series(0, 3) client')
            open(work + '/counting', 'w').write(r"""
            \set n :n + 1
            update told set n = n + 1 where client = :client_id returning n as got \gset
            \if :n <> :got
            select 'the answer is wrong' / 0;
            \endif
            """)
            # It says so if a connection is lost, or an answer is wrong.
            bench = subprocess.Popen([bin + 'pgbench', '-n', '-c', '4', '-T', '1000', '-M', 'prepared', '-D', 'n=0',
                '-b', 'tpcb-like', '-f', work + '/counting', *there, 'postgres'], stdin=subprocess.DEVNULL,
                stdout=open(work + '/bench', 'w'), stderr=subprocess.STDOUT, **mine)
            class Client:
                def __init__(self):
                    self.process = subprocess.Popen([bin + 'psql', '-XqAt', *there, 'postgres'], stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **mine)
                def send(self, text): self.process.stdin.write(text + ';\n\\echo .\n'); self.process.stdin.flush()
                def ask(self, text): self.send(text); return self.answer()
                def answer(self):
                    lines = []
                    while (line := self.process.stdout.readline()) != '.\n':
                        if not line: raise Exception('the connection is lost: %r' % lines)
                        lines.append(line.strip())
                    return '|'.join(lines)
            c, other = Client(), Client()
            c.ask('create temp table t(n int); prepare more as insert into t values ($1); begin; execute more(1)')
            rounds = 1
            def counts():
                counted = other.ask('select n from told union all select count(*) from pgbench_history')
                return [int(n) for n in counted.split('|')]
            def bench_goes_on():
                before = counts()
                wait('transactions', lambda: bench.poll() is not None or sum(counts()) > sum(before) + 50)
                told = open(work + '/bench').read()
                if bench.poll() is not None or 'abort' in told: raise Exception('pgbench: ' + told)
            bench_goes_on()
            def check():
                global rounds
                # A session in the midst of a transaction, with a prepared statement and a table of its own.
                rounds += 1
                cycle(lambda: c.send('execute more(%d); select count(*), sum(n) from t' % rounds))
                got = c.answer()
                if got != '%d|%d' % (rounds, rounds * (rounds + 1) // 2): return 'the session: ' + got
                bench_goes_on()
                sums = other.ask(
                    'select sum(abalance) from pgbench_accounts union all select sum(bbalance) from pgbench_branches '
                    'union all select sum(tbalance) from pgbench_tellers '
                    'union all select sum(delta) from pgbench_history').split('|')
                if len(set(sums)) != 1: return 'sums: %r' % sums
                if rounds < 4: return
                got = c.ask('commit; select count(*) from t')
                if got != '4': return 'the commit: ' + got
                # The postmaster still leads its processes: an orderly end.
                bench.terminate(); bench.wait()
                os.kill(postgres.pid, signal.SIGINT)
                wait('the end', lambda: 'database system is shut down' in server_log())
            serve(check)
            """#)
    }

    @Test(programs("sshd", "ssh", package: "openssh-server openssh-client"))
    func `sshd: a session on a terminal, and tunnels`() throws {
        try check(
            #"""
            os.makedirs('/run/sshd', exist_ok=True)
            # Somebody with a uid and a shell of his own, if there is an account that is not locked.
            passwords = dict(line.split(':')[:2] for line in open('/etc/shadow'))
            shells = ('/bin/bash', '/bin/sh')
            def may(user): return user.pw_uid and user.pw_shell in shells and passwords[user.pw_name][:1] != '!'
            account = next(filter(may, pwd.getpwall()), pwd.getpwuid(0))
            for key in ('host', 'mine'): subprocess.run(
                ['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', work + '/' + key], check=True)
            open(work + '/config', 'w').write("""
                Port %(port)d
                ListenAddress 127.0.0.1
                HostKey %(work)s/host
                AuthorizedKeysFile %(work)s/mine.pub
                PidFile none
                StrictModes no
                UsePAM no
                PermitRootLogin yes
                """ % globals())
            sshd = server([shutil.which('sshd'), '-D', '-e', '-f', work + '/config'])
            wait('sshd', lambda: 'listening' in server_log())
            # Where the tunnel ends, also outside of the tree.
            echo = socket.create_server(('127.0.0.1', 0)); tunnel = work + '/tunnel'
            def answering(c):
                while data := c.recv(65536): c.sendall(data.swapcase())
            def accepting():
                while True: start(answering, echo.accept()[0])
            start(accepting)
            words = ['ssh', '-F', '/dev/null', '-p', str(port), '-i', work + '/mine', '-o', 'StrictHostKeyChecking=no',
                '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR', account.pw_name + '@127.0.0.1']
            loop = 'stty -echo; echo begun $(id -u); while read line; do n=$((n+1)); echo $n $line; done'
            ssh = subprocess.Popen([*words, '-L', '%s:127.0.0.1:%d' % (tunnel, echo.getsockname()[1]), '-tt', loop],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(work + '/ssh.err', 'w'))
            got = ssh.stdout.readline()
            if got != b'begun %d\r\n' % account.pw_uid:
                raise Exception('%r %s %s' % (got, open(work + '/ssh.err').read(), server_log()))
            def session():
                while True:
                    n = get(0) + 1
                    ssh.stdin.write(b'line %d\n' % n); ssh.stdin.flush()
                    got = ssh.stdout.readline()
                    if got != b'%d line %d\r\n' % (n, n): raise Exception('line %d: %r' % (n, got))
                    put(0, n)
            def through_tunnel(i):
                c = socket.socket(socket.AF_UNIX); c.connect(tunnel)
                while True:
                    n = get(i) + 1
                    data = (b'%d a' % n) * (n % 5000 + 1); c.sendall(data); got = b''
                    while len(got) < len(data):
                        more = c.recv(65536)
                        if not more: raise Exception('the connection is lost')
                        got += more
                    if got != data.swapcase(): raise Exception('another answer')
                    put(i, n)
            start(session); start(through_tunnel, 1); start(through_tunnel, 2)
            goes_on(range(3))
            quiet = socket.socket(socket.AF_UNIX); quiet.connect(tunnel); quiet.settimeout(25)
            tunnels = 2
            def check():
                global tunnels
                cycle(lambda: quiet.send(b'meanwhile'))
                goes_on(range(tunnels + 1))
                if quiet.recv(9, socket.MSG_WAITALL) != b'MEANWHILE': return 'what came meanwhile'
                # It still takes new tunnels, and new sessions.
                tunnels += 1; start(through_tunnel, tunnels); goes_on([tunnels])
                done = subprocess.run([*words, 'echo new'], capture_output=True, stdin=subprocess.DEVNULL)
                if done.stdout != b'new\n': return 'a new session: %r' % done
                return (problems or [None])[0]
            serve(check)
            """#)
    }

    @Test(programs("tcpdump", package: "tcpdump"))
    func `tcpdump: captures on, without a gap but its absence`() throws {
        try check(
            #"""
            capture = work + '/capture'; os.mkdir(capture); os.chmod(capture, 0o777)
            tcpdump = server(['tcpdump', '-i', 'lo', '-U', '-w', capture + '/all.pcap', 'udp dst port %d' % port])
            wait('tcpdump', lambda: 'listening on lo' in server_log())
            sink = socket.socket(2, 2); sink.bind(('127.0.0.1', port))
            out = socket.socket(2, 2); out.connect(sink.getsockname())
            sent = 0
            resting = threading.Lock()
            def load():
                global sent
                while True:
                    with resting:
                        for _ in range(5): out.send(b'number %d ' % sent + b'x' * (sent % 400)); sent += 1
                    for _ in range(5): sink.recv(65536)
                    time.sleep(0.001)
            def numbers():
                data = open(capture + '/all.pcap', 'rb').read()
                found, at = [], 24
                while at + 16 <= len(data):
                    length, = struct.unpack_from('I', data, at + 8); at += 16 + length
                    # Behind the headers of Ethernet, IP and UDP.
                    if at <= len(data): found.append(int(data[at - length + 42:at].split()[1]))
                return found
            start(load)
            wait('packets', lambda: os.path.exists(capture + '/all.pcap') and len(numbers()) > 100)
            known = []
            rounds = 0
            def check():
                global rounds
                rounds += 1
                # In the first and third round it is stopped while packets wait in its ring; in the third nobody sends
                # while it is away.
                os.kill(tcpdump.pid, signal.SIGSTOP)
                until = sent + 200; wait('packets', lambda: sent > until)
                if rounds == 2: os.kill(tcpdump.pid, signal.SIGCONT)
                if rounds == 3: resting.acquire()
                first = sent; cycle(); last = sent
                if rounds == 3: resting.release()
                os.kill(tcpdump.pid, signal.SIGCONT)
                until = sent + 500; wait('packets', lambda: sent > until)
                with resting: wait('the capture', lambda: problems or numbers()[-1] == sent - 1)
                found = numbers()
                gaps = [(a + 1, b) for a, b in zip([-1] + found, found) if b != a + 1]
                fresh = gaps[len(known):]
                if gaps[:len(known)] != known or len(fresh) > 1 or any(not first <= a < b <= last for a, b in fresh):
                    return 'it was away between %d and %d, and lacks %r' % (first, last, gaps)
                known[:] = gaps
                return (problems or [None])[0]
            serve(check)
            """#)
    }

    @Test(programs("memcached", package: "memcached"))
    func `memcached: its threads and their clients`() throws {
        try check(
            #"""
            server(['memcached', '-l', '127.0.0.1', '-p', str(port), '-U', '0', '-u', 'nobody', '-t', '3', '-m', '16'])
            def line(replies, expected):
                got = replies.readline()
                if got != expected: raise Exception('expected %r, got %r' % (expected, got))
            def load(i):
                c = connect(); replies = c.makefile('rb')
                c.sendall(b'set count%d 0 0 1\r\n0\r\n' % i); line(replies, b'STORED\r\n')
                while True:
                    n = get(i) + 1; value = b'%d ' % n * (n % 3000)
                    c.sendall(
                        b'incr count%d 1\r\nset value%d %d 0 %d\r\n%s\r\nget value%d\r\n'
                        % (i, i, n, len(value), value, i))
                    line(replies, b'%d\r\n' % n); line(replies, b'STORED\r\n')
                    line(replies, b'VALUE value%d %d %d\r\n' % (i, n, len(value)))
                    if replies.read(len(value) + 2) != value + b'\r\n': raise Exception('another value')
                    line(replies, b'END\r\n'); put(i, n)
            for i in range(6): start(load, i)
            goes_on(range(6))
            quiet = connect(); quiet_replies = quiet.makefile('rb')
            def check():
                cycle(lambda: quiet.sendall(b'touch count0 0\r\n'))
                goes_on(range(6)); line(quiet_replies, b'TOUCHED\r\n')
                c = connect(); c.sendall(b'touch count0 0\r\n'); line(c.makefile('rb'), b'TOUCHED\r\n')
            serve(check)
            """#)
    }

    @Test func `Python: an asyncio server with its timers and threads`() throws {
        try check(
            #"""
            source = r"""
            import asyncio, sys
            totals = {}
            async def client(reader, writer):
                name = await reader.readline(); totals[name] = 0
                async def ticks():
                    n = 0
                    while True: await asyncio.sleep(0.005); n += 1; writer.write(b'tick %d\n' % n)
                ticking = asyncio.create_task(ticks())
                while line := await reader.readline():
                    number, filling = line.split()
                    totals[name] += int(number)
                    # Now and then another thread works, which wakes the loop.
                    if int(number) % 100 == 0: totals[name] = await asyncio.to_thread(lambda n: n, totals[name])
                    writer.write(b'sum %d %d %s\n' % (totals[name], len(totals), filling)); await writer.drain()
                ticking.cancel(); del totals[name]; writer.close()
            async def main():
                async with await asyncio.start_server(client, '127.0.0.1', int(sys.argv[1])) as server:
                    await server.serve_forever()
            asyncio.run(main())
            """
            server(['python3', '-c', source, str(port)])
            class Client:
                def __init__(self, name):
                    self.socket = connect(); self.replies = self.socket.makefile('rb'); self.ticks = 0; self.send(name)
                def send(self, line): self.socket.sendall(line + b'\n')
                def reply(self):
                    while (line := self.replies.readline()).startswith(b'tick '):
                        self.ticks += 1
                        if line != b'tick %d\n' % self.ticks: raise Exception('tick %d: %r' % (self.ticks, line))
                    return line.split()
                def ask(self, line): self.send(line); return self.reply()
                def close(self): self.replies.close(); self.socket.close()
            def load(i):
                c = Client(b'client %d' % i); total = 0
                while True:
                    n = get(i) + 1; total += n; filling = b'%d' % n * (n % 1000 + 1)
                    got = c.ask(b'%d %s' % (n, filling))
                    if got[:2] + got[3:] != [b'sum', b'%d' % total, filling]:
                        raise Exception('sum %d: %r' % (total, got[:3]))
                    put(i, n); put(i + 10, c.ticks)
            for i in range(4): start(load, i)
            both = [0, 1, 2, 3, 10, 11, 12, 13]
            goes_on(both)
            def clients():
                c = Client(b'another'); got = c.ask(b'7 x'); c.close()
                if got[:2] != [b'sum', b'7']: raise Exception('a new client: %r' % got)
                return int(got[2])
            quiet = Client(b'quiet'); total = 0
            def check():
                global total
                total += 5
                cycle(lambda: quiet.send(b'5 meanwhile'))
                goes_on(both)
                got = quiet.reply()
                if got != [b'sum', b'%d' % total, b'5', b'meanwhile']: return 'what came meanwhile: %r' % got
                # New clients are seen to come and to go.
                clients(); wait('the end of other clients', lambda: clients() == 6)
            serve(check)
            """#)
    }
}
