import Linux
import Testing

/// Everything that can be observed of a program and its descendants, from outside and by the program itself.
///
/// Fidelity tests compare two observations. What changes by right is left out: times, counters, the number of a pipe,
/// the parent of the root.
enum Observation {
    /// Prints what /proc and kcmp tell of a tree, a line for each fact.
    static let script = #"""
        import ctypes, os, re, sys
        libc = ctypes.CDLL(None)
        facts, names = {}, {}
        VARYING = set('FDSize SigQ PPid VmPeak VmHWM VmRSS RssAnon RssFile RssShmem VmPTE VmSwap State '
                      'voluntary_ctxt_switches nonvoluntary_ctxt_switches'.split())
        STAT = {2: 'group', 3: 'session', 4: 'terminal', 15: 'priority', 16: 'nice', 17: 'threads', 20: 'size',
                22: 'rss limit', 23: 'start_code', 24: 'end_code', 25: 'start_stack', 35: 'exit_signal',
                37: 'rt_priority', 38: 'policy', 42: 'start_data', 43: 'end_data', 44: 'start_brk', 45: 'arg_start',
                46: 'arg_end', 47: 'env_start', 48: 'env_end', 49: 'exit_code'}
        FILES = ('cmdline environ auxv limits timers timerslack_ns coredump_filter autogroup oom_score_adj loginuid '
                 'personality cpuset uid_map setgroups timens_offsets comm').split()
        def read(path):
            try: return open(path, 'rb').read().decode(errors='backslashreplace')
            except OSError as e: return 'error %d' % e.errno
        def tree(root):
            found = [root]
            for process in found:
                for thread in os.listdir('/proc/%d/task' % process):
                    kids = read('/proc/%d/task/%s/children' % (process, thread)).split()
                    found += sorted(int(k) for k in kids if k.isdigit())
            return found
        def anonymous(m): return names.setdefault(m.group(0), '%s:%d' % (m.group(1), len(names)))
        def observe_memory(p, base):
            areas = []
            for line in read(base + 'smaps').splitlines():
                m = re.match(r'([0-9a-f]+)-([0-9a-f]+) (\S+) (\S+) (\S+) (\d+)\s*(.*)', line)
                if m:
                    inode = '-' if 'deleted' in m.group(7) else m.group(6)
                    areas.append([int(m.group(1), 16), int(m.group(2), 16), m.group(3), m.group(4), m.group(5), inode, m.group(7)])
                    continue
                key, _, value = line.partition(':')
                if key == 'VmFlags': value = ' '.join(w for w in value.split() if w != 'sd')
                if key in ('VmFlags', 'KernelPageSize', 'ProtectionKey', 'THPeligible'): areas[-1].append(value.strip())
            # The kernel may join neighbours that were apart only by their history.
            joined = []
            for area in areas:
                last = joined[-1] if joined else None
                if last and last[1] == area[0] and last[2:] == area[2:] and area[5] == '0': last[1] = area[1]
                else: joined.append(area)
            for area in joined: facts['%d memory %x-%x' % (p, area[0], area[1])] = area[2:]
            for line in read(base + 'numa_maps').splitlines():
                words = line.split()
                if words[1] != 'default': facts['%d policy %s' % (p, words[0])] = words[1]
        def observe(p):
            base = '/proc/%d/' % p
            stat = read(base + 'stat'); stat = stat[stat.rindex(')') + 2:].split()
            for index, name in STAT.items(): facts['%d %s' % (p, name)] = stat[index]
            facts['%d state' % p] = stat[0] if stat[0] in 'TZ' else '-'
            if stat[0] == 'Z': return
            for name in FILES:
                facts['%d %s' % (p, name)] = re.sub(r'autogroup-\d+', '', read(base + name))
            for name in ('exe', 'cwd', 'root'): facts['%d %s' % (p, name)] = os.readlink(base + name)
            for name in os.listdir(base + 'ns'): facts['%d ns %s' % (p, name)] = os.readlink(base + 'ns/' + name)
            for t in os.listdir(base + 'task'):
                own = base + 'task/' + t + '/'
                for line in read(own + 'status').splitlines():
                    key, _, value = line.partition(':')
                    if key not in VARYING: facts['%d/%s %s' % (p, t, key)] = value.strip()
                for name in ('cwd', 'root'): facts['%d/%s %s' % (p, t, name)] = os.readlink(own + name)
                facts['%d/%s comm' % (p, t)] = read(own + 'comm')
                for line in read(own + 'sched').splitlines():
                    m = re.match(r'(policy|prio|se.slice|uclamp\S*)\s*:\s*(\S+)', line)
                    if m: facts['%d/%s sched %s' % (p, t, m.group(1))] = m.group(2)
            for d in os.listdir(base + 'fd'):
                target = os.readlink(base + 'fd/' + d)
                target = re.sub(r'(pipe|socket):\[\d+\]', anonymous, target)
                facts['%d fd %s' % (p, d)] = re.sub(r'/#\d+ ', '/# ', target)
                for line in read(base + 'fdinfo/' + d).splitlines():
                    key, _, value = line.partition(':')
                    if key not in ('ino', 'eventfd-id'): facts['%d fdinfo %s %s' % (p, d, key)] = value.strip()
            observe_memory(p, base)
        processes = tree(int(sys.argv[1]))
        for p in processes: observe(p)
        living = [p for p in processes if facts['%d state' % p] != 'Z']
        for i, one in enumerate(living):
            for other in living[i + 1:]:
                facts['%d and %d share' % (one, other)] = [
                    name for kind, name in enumerate(('memory', 'files', 'directories', 'handlers', 'io'), 1)
                    if libc.syscall(312, one, other, kind, 0, 0) == 0]
        with open(sys.argv[2], 'w') as f:
            for key in sorted(facts): f.write('%s: %r\n' % (key, facts[key]))
        """#

    /// What a script under test begins with to ask the kernel about itself: `mine()` for the thread, `process()` for the
    /// process; functions marked `@thread` set up threads of their own, and `threads()` tells what all of them see.
    static let probe = #"""
        libc = ctypes.CDLL(None, use_errno=True); libc.syscall.restype = ctypes.c_long
        def call(number, *arguments):
            long = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
            result = libc.syscall(ctypes.c_long(number), *long)
            return -ctypes.get_errno() if result == -1 else result
        def must(result):
            if result < 0: raise OSError(-result, os.strerror(-result))
            return result
        room = ctypes.create_string_buffer
        def prctl(*arguments): return call(157, *(arguments + (0,) * (5 - len(arguments))))
        def mine():
            out = []
            # keep caps, secure bits, dumpable, timing, seccomp, slack, machine checks, privileges, huge pages, I/O flusher,
            # writing or executing, merging
            for option in (7, 27, 3, 13, 21, 30, 34, 39, 42, 58, 66, 68): out.append('prctl %d: %d' % (option, prctl(option)))
            for option in (2, 25, 37, 40):  # death signal, time stamp counter, subreaper, address to clear
                b = room(8); out.append('prctl %d: %d %s' % (option, prctl(option, b), b.raw.hex()))
            for which in range(3): out.append('speculation %d: %d' % (which, prctl(52, which)))
            out.append('timer ids: %d' % prctl(77, 2))
            b = room(64); r = call(315, 0, b, 64, 0)
            if b.raw[4] != 6: out.append('scheduling: %d %s' % (r, b.raw.hex()))
            else: out.append('deadline: %r' % (struct.unpack('IIQiI', b.raw[:24]),))
            out.append('I/O priority: %d' % call(252, 1, 0))
            b = room(24); out.append('signal stack: %d %s' % (call(131, 0, b), b.raw.hex()))
            b = room(8); call(14, 0, 0, b, 8); out.append('mask: ' + b.raw.hex())
            b = room(8); call(127, b, 8); out.append('pending: ' + b.raw.hex())
            b, c = room(4), room(128); out.append('memory policy: %d %s %s' % (call(239, b, c, 1024, 0, 0), b.raw.hex(), c.raw.hex()))
            b = room(128); got = call(204, 0, 128, b); out.append('affinity: ' + b.raw[:got].hex())
            b, c = room(8), room(8); call(274, 0, b, c); out.append('robust list: ' + b.raw.hex() + c.raw.hex())
            for code in (0x1003, 0x1004, 0x1011, 0x1022):  # FS, GS, CPUID, permitted register sets
                b = room(8); out.append('arch_prctl %x: %d %s' % (code, call(158, code, b), b.raw.hex()))
            return out
        def process():
            out = []
            for number in range(1, 65):
                if number in (9, 19): continue
                b = room(32); call(13, number, 0, b, 8); out.append('action %d: %s' % (number, b.raw.hex()))
            out.append('break: %x' % call(12, 0))
            mask = os.umask(0); os.umask(mask); out.append('umask: %o' % mask)
            out.append('keys: %s' % [call(329, 0, 4096, 0, key) for key in range(16)])
            return out
        class Member:
            def __init__(self, setup):
                self.name, self.setup, self.wrong = setup.__name__, setup, None
                self.questions, self.done = os.pipe(), threading.Semaphore(0)
                self.thread = threading.Thread(target=self.run, daemon=True); self.thread.start(); self.done.acquire()
                if self.wrong: raise Exception(self.name + ': ' + self.wrong)
            def run(self):
                try: self.setup()
                except Exception as e: self.wrong = repr(e)
                self.done.release()
                while True: os.read(self.questions[0], 1); self.told = mine(); self.done.release()
            def tell(self):
                os.write(self.questions[1], b'?'); self.done.acquire(); return [self.name + ' ' + l for l in self.told]
        members = []
        def thread(setup): members.append(Member(setup)); return setup
        def threads(): return [line for member in members for line in member.tell()]

        """#
}

extension Program {
    /// Starts a script behind the probe.
    convenience init(probing script: String) throws { try self.init(Observation.probe + script) }

    /// What can be observed of the program now: a line for each fact.
    func observe() throws -> [String] {
        let told = ask().split(separator: "\n").map { "inside: " + $0 }
        #expect(
            try run(["python3", "-c", Observation.script, "\(id)", work + "/observed"]) == 0, "\(text("brumate.log"))")
        return told + text("observed").split(separator: "\n").map(String.init)
    }

    /// Dumps and restores the program some times. Returns what was different after the first and the last restore.
    func differences(
        cycles: Int = 2, _ dumpOptions: [String] = [], _ restoreOptions: [String] = [],
        apartFrom isExpected: (String) -> Bool = { _ in false }
    ) throws -> [String] {
        // The first answer settles what asking itself changes.
        _ = ask()
        let before = try observe()
        for cycle in 1...cycles {
            guard try dump(dumpOptions) == 0 else { return ["dump \(cycle): " + lastLine("dump.log")] }
            if dumpOptions.contains("--live") { finish() }
            guard try restore(restoreOptions) == 0 else { return ["restore \(cycle): " + lastLine("restore.log")] }
        }
        let after = try observe()
        let changes = after.difference(from: before).map { change in
            switch change {
            case .remove(_, let line, _): "- " + line
            case .insert(_, let line, _): "+ " + line
            }
        }
        return changes.filter { !isExpected($0) }
    }
}
