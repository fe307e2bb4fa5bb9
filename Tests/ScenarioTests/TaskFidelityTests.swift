import Glibc
import Linux
import Testing

/// What tasks and threads are, compared in everything that can be observed.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A task comes back the same` {
    @Test func `with any attributes of threads`() throws {
        let program = try Program(
            probing: """
                import resource
                signal.pthread_sigmask(signal.SIG_BLOCK, [36, 12])
                libc.personality(0x0040000 | 0x0100000)
                def policy(number, priority=0): must(call(144, 0, number, struct.pack('i', priority)))
                def attributes(policy, nice, runtime, deadline=0, period=0):
                    must(call(314, 0, struct.pack('IIQiIQQQII', 56, policy, 0, nice, 0, runtime, deadline, period, 0, 0), 0))
                @thread
                def fifo(): policy(1, 7)
                @thread
                def round_robin(): policy(2 | 0x40000000, 3)
                @thread
                def batch(): policy(3); must(call(141, 0, call(186), 5))
                @thread
                def idle(): policy(5)
                @thread
                def deadline(): attributes(6, 0, 1000000, 20000000, 30000000)
                @thread
                def slice(): attributes(0, 2, 20000000)
                @thread
                def affine(): os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
                @thread
                def disk(): must(call(251, 1, 0, 2 << 13 | 5))
                @thread
                def idle_disk(): must(call(251, 1, 0, 3 << 13))
                @thread
                def slack(): must(prctl(29, 777777))
                @thread
                def name(): must(prctl(15, b'\\xff\\n\\\\x (y) \\t'))
                @thread
                def ids():
                    must(call(116, 3, struct.pack('III', 5, 70000, 3))); must(call(119, 10, 11, 12)); must(call(117, 0, 1001, 0))
                    must(call(123, 77)); must(call(122, 78))
                @thread
                def rights():
                    # NOROOT, NO_SETUID_FIXUP, KEEP_CAPS and its lock; sets that differ; one ambient
                    must(prctl(28, 0x35)); must(prctl(24, 20))
                    must(call(126, struct.pack('II', 0x20080522, 0), struct.pack('6I', 0x403, 0x507, 0x402, 0, 1, 0)))
                    must(prctl(47, 2, 10)); must(prctl(38, 1))
                @thread
                def filtered():
                    must(prctl(38, 1)); code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000) * 3)
                    for flags, length in ((0, 3), (2, 2)):
                        must(call(317, 1, flags, struct.pack('HxxxxxxQ', length, ctypes.addressof(code))))
                @thread
                def machine_check(): must(prctl(33, 1, 1))
                @thread
                def speculation(): [prctl(53, which, 4) for which in range(3) if prctl(52, which) > 0]
                @thread
                def numa(): call(238, 3, struct.pack('Q', 1), 64)
                open('/proc/self/coredump_filter', 'w').write('0x7f'); open('/proc/self/oom_score_adj', 'w').write('300')
                if os.path.exists('/proc/self/autogroup'): open('/proc/self/autogroup', 'w').write('7')
                os.umask(0o137); os.nice(2)
                must(prctl(36, 1)); prctl(67, 1); prctl(41, 1, 2) == 0 or prctl(41, 1)
                for limit, value in ((0, 99999), (1, 1 << 40 | 1), (2, 1 << 40), (3, 7 << 20 | 5), (4, 12345), (5, 1 << 33),
                                     (6, 3000), (7, 777), (8, 1 << 22), (9, 1 << 41), (10, 44), (11, 555), (12, 66666)):
                    resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
                prctl(65, 1); must(prctl(4, 0))
                serve(lambda: '\\n'.join(mine() + process() + threads()))
                """)
        let changes = try program.differences()
        #expect(changes.isEmpty, "\(changes.joined(separator: "\n"))")
    }

    @Test func `in a tree that shares descriptor tables and directories in any way`() throws {
        let program = try Program(
            probing: """
                FILES, FS, PARENT = 0x400, 0x200, 0x8000
                def child(flags, body=lambda: None):
                    pid = must(call(56, flags, 0, 0, 0, 0))
                    if pid == 0:
                        try:
                            body()
                            while True: signal.pause()
                        finally: os._exit(9)
                    return pid
                must(prctl(36, 1))
                child(17 | FILES); child(17 | FS); child(0); child(signal.SIGUSR1)
                # Tables that are shared in the next generation only.
                def own(): os.open('/dev/zero', os.O_RDONLY); os.chdir(work)
                child(17, lambda: (own(), child(17 | FILES)))
                # A sibling, and two orphans, that share what their parent does not.
                def sibling(): own(); child(17 | FILES | FS | PARENT)
                child(17, sibling)
                def orphans(): own(); child(17 | FILES | FS); child(17 | FILES | FS); os._exit(0)
                gone = child(17, orphans); os.waitpid(gone, 0)
                death = child(17, lambda: must(prctl(1, 15)))
                # A thread may go elsewhere, even to a directory that is gone.
                os.mkdir(work + '/gone'); os.mkdir(work + '/there')
                @thread
                def elsewhere(): must(call(272, FS)); os.chdir(work + '/gone'); os.umask(0o77)
                @thread
                def below(): must(call(272, FS)); os.chdir(work + '/there'); os.chroot(work); os.umask(0o11)
                os.rmdir(work + '/gone')
                while len(open('/proc/self/task/%d/children' % os.getpid()).read().split()) < 10: time.sleep(0.001)
                serve(lambda: '\\n'.join(mine() + process() + threads()))
                """)
        let changes = try program.differences()
        #expect(changes.isEmpty, "\(changes.joined(separator: "\n"))")
    }

    @Test func `and a death signal does not end a tree whose restorer went away`() throws {
        let program = try Program(probing: "must(prctl(1, 15))\nserve(lambda: None)")
        let outcome = try program.cycle()
        #expect(outcome == "ok")
        #expect(program.text("images/restore.log").contains("no death signal"))
    }

    @Test func `or is refused in time, if it sleeps in vfork`() throws {
        let program = try Program(
            """
            os.mkfifo(work + '/blocked')
            libc = ctypes.CDLL(None)
            def spawn():
                actions, pid = ctypes.create_string_buffer(256), ctypes.c_int()
                libc.posix_spawn_file_actions_init(actions)
                libc.posix_spawn_file_actions_addopen(actions, 9, (work + '/blocked').encode(), os.O_RDONLY, 0)
                words = (ctypes.c_char_p * 2)(b'true', None)
                libc.posix_spawn(ctypes.byref(pid), b'/bin/true', actions, None, words, None)
                os.waitpid(pid.value, 0)
            spawner = threading.Thread(target=spawn); spawner.start()
            while True:
                kids = open('/proc/self/task/%d/children' % spawner.native_id).read().split()
                # It waits in open(2).
                if kids and open('/proc/%s/syscall' % kids[0]).read().split()[0] in ('2', '257'): break
            def check():
                os.close(os.open(work + '/blocked', os.O_WRONLY)); spawner.join()
            serve(check)
            """)
        let started = ContinuousClock.now
        #expect(try program.dump(["--timeout", "1"]) != 0)
        #expect(ContinuousClock.now - started < .seconds(20))
        #expect(program.lastLine("dump.log").contains("does not stop"))
        let answer = program.ask()
        #expect(answer == "ok")
    }
}
