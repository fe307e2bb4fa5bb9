import Glibc
import Linux
import Testing

/// Open files of /proc, of living and dead tasks.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `An open file of proc` {
    @Test func `is of the same task again`() throws {
        let program = try Program(
            """
            kept, me = {}, os.getpid()
            def keep(name, path, flags=os.O_RDONLY, position=0):
                fd = kept[name] = os.open(path, flags)
                if position: os.lseek(fd, position, 0)
            asks, hears = os.pipe(), os.pipe()
            secret = ctypes.create_string_buffer(b'child or parent?')
            child = os.fork()
            if child == 0:
                secret.value = b'the child'
                while True: os.read(asks[0], 1); os.write(hears[1], secret.raw)
            zombie = os.fork()
            if zombie == 0: os._exit(7)
            os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
            release = threading.Event()
            thread = threading.Thread(target=release.wait, daemon=True); thread.start(); tid = thread.native_id
            for name, task in (('me', me), ('child', child), ('zombie', zombie)):
                keep(name + ' dir', '/proc/%d' % task)
                for entry in ('status', 'stat', 'cmdline', 'limits', 'oom_score_adj', 'wchan', 'comm'): keep(name + ' ' + entry, '/proc/%d/%s' % (task, entry))
            for name, task in (('me', me), ('child', child)):
                keep(name + ' fds', '/proc/%d/fd' % task); keep(name + ' tasks', '/proc/%d/task' % task); keep(name + ' infos', '/proc/%d/fdinfo' % task)
                keep(name + ' maps', '/proc/%d/maps' % task, position=100); keep(name + ' mem', '/proc/%d/mem' % task, os.O_RDWR, 4096)
                keep(name + ' pagemap', '/proc/%d/pagemap' % task, position=80); keep(name + ' auxv', '/proc/%d/auxv' % task, position=16)
                keep(name + ' ns', '/proc/%d/ns' % task); keep(name + ' a ns', '/proc/%d/ns/uts' % task); keep(name + ' tcp', '/proc/%d/net/tcp' % task)
                keep(name + ' mounts', '/proc/%d/mountinfo' % task, position=10); keep(name + ' attributes', '/proc/%d/attr' % task)
                keep(name + ' environ', '/proc/%d/environ' % task, position=3); keep(name + ' write', '/proc/%d/comm' % task, os.O_WRONLY)
            keep('thread', '/proc/%d/task/%d' % (me, tid)); keep('thread status', '/proc/self/task/%d/status' % tid)
            keep('thread fds', '/proc/%d/task/%d/fd' % (me, tid)); keep('self', '/proc/self'); keep('thread-self', '/proc/thread-self')
            keep('self path', '/proc/self', os.O_PATH | os.O_NOFOLLOW); keep('net', '/proc/net/dev'); keep('by name', '/proc/self/status', os.O_PATH)
            keep('sys', '/proc/sys/kernel/hostname'); keep('root', '/proc'); keep('version', '/proc/version', position=5); keep('info', '/proc/self/fdinfo/0')
            os.lseek(kept['root'], 0, 0)
            dead = os.fork()
            if dead == 0: time.sleep(100)
            keep('dead dir', '/proc/%d' % dead); keep('dead status', '/proc/%d/status' % dead); keep('dead maps', '/proc/%d/maps' % dead)
            keep('dead task', '/proc/%d/task/%d' % (dead, dead))
            os.kill(dead, 9); os.waitpid(dead, 0)
            def facts():
                out = []
                for name, fd in kept.items():
                    s = os.fstat(fd)
                    try: position = os.lseek(fd, 0, 1)
                    except OSError as e: position = e.errno
                    out.append((name, os.readlink('/proc/self/fd/%d' % fd), position, oct(s.st_mode)))
                    try: import fcntl; out.append(fcntl.fcntl(fd, 3))
                    except OSError as e: out.append(e.errno)
                    if name.startswith('dead'):
                        try: out.append(os.read(fd, 10) if name != 'dead dir' and name != 'dead task' else os.listdir(fd))
                        except OSError as e: out.append(e.errno)
                    elif name.split()[-1] in ('status', 'by') and 'name' not in name: out.append(os.pread(fd, 4000, 0).split(b'\\n')[0])
                    elif name.endswith('stat'): out.append(os.pread(fd, 4000, 0).split()[:2])
                    elif name in ('me dir', 'child dir', 'zombie dir', 'thread', 'self', 'thread-self'):
                        f = os.open('stat', os.O_RDONLY, dir_fd=fd); out.append(os.read(f, 4000).split()[:2]); os.close(f)
                return out
            before = facts()
            def check():
                now = facts()
                if now != before: return 'was %r and is %r' % [(x, y) for x, y in zip(before, now) if x != y][0]
                place = ctypes.addressof(secret)
                if os.pread(kept['child mem'], 9, place) != b'the child': return 'not the memory of the child'
                if os.pread(kept['me mem'], 5, place) != b'child': return 'not our memory'
                os.pwrite(kept['child mem'], b'THE', place); os.write(asks[1], b'?')
                if not os.read(hears[0], 100).startswith(b'THE child'): return 'the child has other memory'
                os.pwrite(kept['child mem'], b'the', place)
                if int(os.pread(kept['me maps'], 8, 0), 16) == 0: return 'no maps'
                name = open('/proc/self/comm').read().strip(); os.write(kept['me write'], b'renamed')
                if open('/proc/self/comm').read() != 'renamed\\n': return 'not our name'
                os.write(kept['me write'], name.encode())
                if str(tid) not in os.listdir(kept['me tasks']): return 'no thread'
                if sorted(os.listdir(kept['child fds'])) != sorted(os.listdir('/proc/%d/fd' % child)): return 'other descriptors'
                os.lseek(kept['me tasks'], 0, 0); os.lseek(kept['child fds'], 0, 0)
            serve(check)
            """)
        let first = program.ask()
        #expect(first == "ok")
        let answer = try program.cycle()
        #expect(answer == "ok")
    }

    @Test func `of a task outside of the tree is called by its name`() throws {
        let program = try Program(
            """
            f = os.open('/proc/1/status', os.O_RDONLY)
            def check():
                if not os.pread(f, 10, 0).startswith(b'Name:'): return 'no status'
            serve(check)
            """)
        let answer = try program.cycle()
        #expect(answer == "ok")
        #expect(program.text("images/dump.log").contains("/proc/1/status"))
        #expect(program.text("images/dump.log").contains("not in the tree"))
    }
}
