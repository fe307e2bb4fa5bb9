import Glibc
import Linux
import Testing

/// Whether a test's programs are installed. One that lacks some is skipped and says which.
func programs(_ names: String..., package: String) -> ConditionTrait {
    let missing = names.filter { name in
        !["/usr/sbin", "/usr/bin", "/usr/local/bin"].contains { access("\($0)/\(name)", X_OK) == 0 }
    }
    return .enabled(
        if: missing.isEmpty, "not installed: \(missing.joined(separator: ", ")); run 'apt-get install \(package)'")
}

private func ioUringIsAllowed() -> Bool {
    guard let text = try? readWholeFile("/proc/sys/kernel/io_uring_disabled") else { return false }
    return text.first == 0x30
}

/// Checkpoints of real programs under load, with nothing prepared for them. They need root.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A real program goes on under load` {
    /// Counters that the tasks of a tree share, and waiting for something that can be seen.
    private static let prelude = """
        import random, sqlite3, subprocess
        shared = mmap.mmap(-1, 4096)
        def get(i): return struct.unpack_from('Q', shared, 8 * i)[0]
        def put(i, n): struct.pack_into('Q', shared, 8 * i, n)
        def wait(what, condition):
            end = time.monotonic() + 25
            while not condition():
                if time.monotonic() > end: raise Exception('waited in vain for ' + what)
                time.sleep(0.001)
        def goes_on(counters):
            before = [get(i) for i in counters]
            wait('progress', lambda: all(get(i) > b for i, b in zip(counters, before)))
        problems = []
        def guarded(body):
            def run(*arguments):
                try: body(*arguments)
                except BaseException as e: problems.append(repr(e))
            return run
        def start(body, *arguments): threading.Thread(target=guarded(body), args=arguments, daemon=True).start()
        asked = 0

        """

    private func program(_ script: String) throws -> Program { try Program(Self.prelude + script) }

    /// Checkpoints it several times, at whatever it is doing then.
    private func check(_ program: Program, rounds: Int = 4, _ options: [String] = []) throws {
        for round in 1...rounds {
            let outcome = try program.cycle(options)
            try #require(outcome == "ok", "round \(round)")
        }
    }

    @Test func `SQLite: two writers in WAL mode lose no row`() throws {
        let program = try program(
            """
            def connect(): return sqlite3.connect(work + '/db', timeout=30, isolation_level=None)
            db = connect(); db.execute('pragma journal_mode=wal'); db.execute('create table t(w int, n int, data text)')
            db.close()
            def writer(w):
                db = connect(); db.execute('pragma wal_autocheckpoint=50'); n = 0
                while True:
                    db.execute('begin immediate')
                    for part in range(3): db.execute('insert into t values(?,?,?)', (w, n, 'x' * 300))
                    db.execute('commit'); n += 1; put(w, n)
            for w in (0, 1):
                if os.fork() == 0:
                    try: writer(w)
                    except BaseException as e: open(work + '/problem', 'a').write(repr(e))
                    os._exit(1)
            goes_on([0, 1])
            def check():
                goes_on([0, 1])
                if os.path.exists(work + '/problem'): return open(work + '/problem').read()
                db = connect()
                for w in (0, 1):
                    told = get(w)
                    rows, numbers, last = db.execute(
                        'select count(*), count(distinct n), max(n) from t where w=?', (w,)).fetchone()
                    if rows != 3 * numbers or numbers != last + 1 or numbers < told:
                        return 'writer %d committed %d, found %d rows of %d' % (w, told, rows, numbers)
                intact = db.execute('pragma integrity_check').fetchone()[0]
                db.close()
                if intact != 'ok': return intact
            serve(check)
            """)
        #expect(try program.dump() == 1)
        #expect(program.lastLine("dump.log").contains("--file-locks"))
        try check(program, ["--file-locks"])
    }

    @Test(programs("redis-server", package: "redis-server"))
    func `Redis: with its append-only file, clients, and a save in a forked child`() throws {
        let program = try program(
            """
            def server():
                return subprocess.Popen(
                    ['redis-server', '--port', '0', '--unixsocket', work + '/socket', '--dir', work, '--save', '',
                    '--appendonly', 'yes', '--auto-aof-rewrite-min-size', '100kb',
                    '--auto-aof-rewrite-percentage', '10', '--rdb-key-save-delay', '20'], stdout=open(work + '/redis', 'a'))
            class Client:
                def __init__(self):
                    def connected():
                        self.socket = socket.socket(socket.AF_UNIX)
                        try: self.socket.connect(work + '/socket'); return True
                        except OSError: self.socket.close()
                    wait('redis', connected); self.replies = self.socket.makefile('rb')
                def send(self, *words):
                    words = [w.encode() for w in words]
                    parts = [b'*%d\\r\\n' % len(words)] + [b'$%d\\r\\n%s\\r\\n' % (len(w), w) for w in words]
                    self.socket.sendall(b''.join(parts))
                def reply(self):
                    line = self.replies.readline().decode()
                    if not line.endswith('\\r\\n'): raise Exception('the connection is lost')
                    return self.replies.read(int(line[1:]) + 2)[:-2].decode() if line[0] == '$' else line.strip()
                def ask(self, *words): self.send(*words); return self.reply()
            redis = server()
            c = Client(); c.ask('DEBUG', 'POPULATE', '2000', 'filling', '200')
            def load(i):
                c = Client(); n = 0
                while not get(9):
                    for part in range(12): c.send('INCR', 'count%d' % i)
                    for part in range(12):
                        n += 1
                        got = c.reply()
                        if got != ':%d' % n: raise Exception('expected %d, got %s' % (n, got))
                    put(i, n)
                put(i + 4, 1)
            for i in range(4): start(load, i)
            def saving(): return 'rdb_bgsave_in_progress:1' in c.ask('INFO', 'persistence')
            def save():
                # Not while the append-only file is being rewritten.
                wait('a save', lambda: c.ask('BGSAVE')[0] == '+' or saving())
            goes_on(range(4)); save()
            def check():
                global asked, redis, c
                asked += 1
                goes_on(range(4))
                if problems: return problems[0]
                if redis.poll() is not None: return 'redis has ended'
                wait('the end of the save', lambda: not saving())
                if 'rdb_last_bgsave_status:ok' not in c.ask('INFO', 'persistence'): return 'the save failed'
                if asked < 4: save(); return
                put(9, 1); wait('the clients', lambda: all(get(i + 4) for i in range(4)) or problems)
                # While the disk is slow it answers up to two seconds before it writes.
                wait('the file', lambda: 'aof_buffer_length:0\\r' in c.ask('INFO', 'persistence'))
                redis.kill(); redis.wait()
                # What it wrote before and after is one append-only file.
                redis = server(); c = Client()
                wait('the loading', lambda: 'LOADING' not in c.ask('GET', 'count0'))
                for i in range(4):
                    if c.ask('GET', 'count%d' % i) != str(get(i)): return 'count %d is lost' % i
                redis.kill(); redis.wait()
            serve(check)
            """)
        try check(program)
    }

    /// A MariaDB server on a fresh directory, and a client that is asked line by line.
    private static let mariadb = """
        def server(**how):
            os.makedirs(work + '/data/test')
            return subprocess.Popen(
                ['mariadbd', '--no-defaults', '--user=root', '--datadir=' + work + '/data', '--skip-networking',
                '--socket=' + work + '/socket', '--skip-grant-tables', '--innodb-buffer-pool-size=8M',
                '--innodb-log-file-size=4M', '--innodb-max-dirty-pages-pct-lwm=0.1', '--log-error=' + work + '/maria.err'], **how)
        class Client:
            def __init__(self):
                self.process = subprocess.Popen(
                    ['mariadb', '--no-defaults', '--socket=' + work + '/socket', '-nNB', 'test'], stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            def ask(self, text):
                self.process.stdin.write(text.encode() + b" select '-';\\n"); self.process.stdin.flush()
                lines = []
                while True:
                    line = self.process.stdout.readline().decode().strip()
                    if not line: raise Exception('the connection is lost')
                    if line == '-': return lines
                    lines.append(line)
            def close(self): self.process.stdin.close(); self.process.wait()
        def insert(c, i, n):
            c.ask("begin; insert into t(w, n, data) values(%d, %d, repeat('x', 900)), (%d, %d, 'y'); commit;" % (i, n, i, n))
        table = 'create table t(id bigint auto_increment primary key, w int, n int, data text, key(w, n)) engine=innodb;'
        def complete(c, writers):
            told = [get(i) for i in writers]
            for i in writers:
                found = c.ask('select count(*), count(distinct n), max(n) from t where w = %d;' % i)[0].split()
                rows, numbers, last = map(int, found)
                if rows != 2 * numbers or numbers != last + 1 or numbers < told[i]:
                    return 'writer %d committed %d, found %s' % (i, told[i], found)
            checked = c.ask('check table t extended;')[0]
            if not checked.endswith('OK'): return checked
            if 'InnoDB: Using io_uring' not in open(work + '/maria.err').read(): return 'it does not use io_uring'

        """

    @Test(
        programs("mariadbd", "mariadb", package: "mariadb-server"),
        .enabled(if: ioUringIsAllowed(), "io_uring is not allowed: sysctl kernel.io_uring_disabled=0"))
    func `MariaDB: on io_uring, with its clients`() throws {
        let program = try program(
            Self.mariadb + """
                maria = server(); wait('mariadbd', lambda: os.path.exists(work + '/socket'))
                c = Client(); c.ask(table)
                def load(i):
                    c = Client(); n = 0
                    while True: insert(c, i, n); n += 1; put(i, n)
                for i in range(3): start(load, i)
                goes_on(range(3))
                def check():
                    goes_on(range(3))
                    return (problems or [complete(c, range(3))])[0]
                serve(check)
                """)
        try check(program, ["--file-locks"])
    }

    @Test(
        programs("mariadbd", "mariadb", package: "mariadb-server"),
        .enabled(if: ioUringIsAllowed(), "io_uring is not allowed: sysctl kernel.io_uring_disabled=0"))
    func `MariaDB: between two connections of clients elsewhere`() throws {
        let program = try program(
            Self.mariadb + """
                maria = server(start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL)
                open(work + '/root', 'w').write(str(maria.pid))
                # We are not in the tree, and reap it when it is killed.
                start(maria.wait)
                wait('mariadbd', lambda: os.path.exists(work + '/socket'))
                c = Client(); c.ask(table); c.close()
                def load():
                    n = 0
                    while True:
                        try: c = Client(); insert(c, 0, n); n += 1; put(0, n)
                        except Exception: pass
                        try: c.close()
                        except OSError: pass
                        time.sleep(random.random() * 1.5)
                start(load)
                goes_on([0])
                def check():
                    goes_on([0])
                    c = Client(); problem = complete(c, [0]); c.close()
                    return (problems or [problem])[0]
                serve(check)
                """)
        program.root = try #require(Int32(program.text("root")))
        for _ in 1...2 {
            var refusals = 0
            while try program.dump(["--file-locks"]) != 0 {
                let line = program.lastLine("dump.log")
                try #require(line.contains("outside of the tree") || line.contains("wait to be accepted"), "\(line)")
                refusals += 1
                try #require(refusals < 300, "it is never without a connection")
            }
            try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
            let answer = program.ask()
            try #require(answer == "ok")
        }
    }

    @Test(programs("make", "gcc", package: "make gcc"))
    func `make -j4: a build that is dumped in the middle has the same result`() throws {
        let program = try program(
            """
            def project(name):
                folder = work + '/' + name; os.mkdir(folder)
                for n in range(12):
                    bodies = ['int f%d_%d(int a) { int s = %d; while (a--) s += a * s ^ %d; return s; }\\n' % (n, k, k, n)
                        for k in range(20)]
                    open('%s/m%02d.c' % (folder, n), 'w').write('#include <stdio.h>\\n' + ''.join(bodies))
                calls = ' ^ '.join('f%d_%d(%d)' % (n, n, n) for n in range(12))
                heads = ''.join('int f%d_%d(int);\\n' % (n, n) for n in range(12))
                open(folder + '/main.c', 'w').write(
                    '#include <stdio.h>\\n%sint main(void) { printf("%%d\\\\n", %s); return 0; }\\n' % (heads, calls))
                open(folder + '/Makefile', 'w').write(
                    'OBJECTS := $(patsubst %.c,%.o,$(sort $(wildcard *.c)))\\n'
                    'sums: prog\\n\\t./prog > output && sha256sum *.o prog output > $@\\n'
                    'prog: $(OBJECTS)\\n\\tgcc -Wl,--build-id=none -o $@ $(OBJECTS)\\n'
                    '%.o: %.c\\n\\tgcc -O1 -pipe -frandom-seed=$< -c -o $@ $<\\n')
                return subprocess.Popen(['make', '-j4', '-C', folder], stdout=open(folder + '/log', 'w'), stderr=2)
            def sums(name): return open(work + '/' + name + '/sums').read()
            if project('undisturbed').wait(): raise Exception(open(work + '/undisturbed/log').read())
            build = project('disturbed')
            def log(): return open(work + '/disturbed/log').read()
            wait('the build', lambda: log().count('gcc') > 1)
            def check():
                status, lines = build.poll(), log().count('gcc')
                if status is None:
                    # Not before something has happened.
                    wait('progress', lambda: build.poll() is not None or log().count('gcc') > lines)
                    return 'it builds'
                if status: return 'make ended with %d: %s' % (status, log())
                if sums('disturbed') != sums('undisturbed'): return 'the result differs'
            serve(check)
            """)
        var rounds = 0
        var outcome = "it builds"
        while outcome == "it builds" {
            outcome = try program.cycle()
            rounds += 1
        }
        #expect(outcome == "ok")
        #expect(rounds > 2)
    }

    @Test(programs("tmux", package: "tmux"))
    func `tmux: its server and the jobs of the shells in it`() throws {
        // The program is the one who looks at the screen; the server is a daemon and its own tree.
        let program = try program(
            """
            environment = dict(os.environ, HOME=work, TERM='xterm'); environment.pop('TMUX', None)
            def tmux(*words):
                made = subprocess.run(['tmux', '-S', work + '/socket', '-f', '/dev/null', *words], env=environment,
                    capture_output=True, text=True)
                if made.returncode: raise Exception('tmux %s: %s' % (words, made.stderr))
                return made.stdout
            screen = lambda: tmux('capture-pane', '-p')
            def keys(text): tmux('send-keys', '-l', text); tmux('send-keys', 'Enter')
            marks = 0
            def shell(command):
                global marks
                marks += 1
                keys("clear; %s; echo E''ND%d" % (command, marks))
                wait(command, lambda: 'END%d' % marks in screen())
                return [l for l in screen().splitlines() if l.startswith('[')]
            def foreground(name): wait(name, lambda: tmux('display-message', '-p', '#{pane_current_command}') == name + '\\n')
            def ticks():
                try: return int(open(work + '/ticks').read() or 0)
                except OSError: return 0
            def typed(text):
                keys(text)
                # Once as the terminal echoes it, once as cat writes it.
                wait('an echo', lambda: screen().splitlines().count(text) == 2)
            tmux('new-session', '-d', '-x', '100', '-y', '50', 'bash --norc --noprofile')
            tmux('split-window', '-d', 'while :; do date +%N; done'); tmux('new-window', '-d', 'exec sleep 1000')
            tmux('set-buffer', 'kept'); open(work + '/root', 'w').write(tmux('display-message', '-p', '#{pid}').strip())
            shell("PS1='$ '")
            # It ends with the test, even if nobody is left to end it.
            shell('while [ -d %s ]; do echo $((++i)) > %s/ticks; read -t 0.001 < /dev/zero; done & :' % (work, work))
            shell('sleep 1000 & :')
            keys('cat'); foreground('cat'); typed('before'); tmux('send-keys', 'C-z')
            wait('the stop', lambda: 'Stopped' in screen())
            jobs = shell('jobs')
            if len(jobs) != 3: raise Exception(screen())
            keys('clear; cat -'); foreground('cat'); typed('first')
            def check():
                global asked
                asked += 1
                typed('again %d' % asked)
                tmux('send-keys', 'C-d'); wait('the prompt', lambda: screen().rstrip().endswith('$'))
                if 'Stopped' in screen(): return 'told again that a job stopped: ' + screen()
                now = shell('jobs')
                if now != jobs: return 'jobs: %s, were %s' % (now, jobs)
                keys('clear; fg %3'); foreground('cat'); typed('continued')
                tmux('send-keys', 'C-z'); wait('the stop', lambda: 'Stopped' in screen())
                before = ticks(); wait('the job in the background', lambda: ticks() > before)
                if tmux('show-buffer') != 'kept': return 'the buffer is lost'
                if len(tmux('list-panes', '-s').splitlines()) != 3: return 'a pane is lost'
                keys('clear; cat -'); foreground('cat'); typed('first')
            serve(check)
            """)
        program.root = try #require(Int32(program.text("root")))
        try check(program, rounds: 3)
    }
}
