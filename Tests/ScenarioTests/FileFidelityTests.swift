import Glibc
import Linux
import Testing

/// Open files, compared in everything that can be observed.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A file comes back the same` {
    private static let files = """
        import fcntl, hashlib
        kept, folder = {}, work + '/d'
        os.mkdir(folder)
        def keep(name, path, flags, mode=0o644):
            try: kept[name] = os.open(path, flags, mode)
            except OSError as e: print(name, e); return -1
            return kept[name]
        def pipe(name, flags=0): ends = os.pipe2(flags); kept[name + ' r'], kept[name + ' w'] = ends; return ends
        def own(file, kind, id): must(call(72, file, 15, struct.pack('ii', kind, id)))
        def told(except_times=()):
            out = []
            for name, fd in kept.items():
                s = os.fstat(fd)
                if not name.startswith('/proc'):
                    out.append('%s: mode %o owner %d %d size %d links %d' % (name, s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_nlink))
                try: out.append('%s attributes: %r' % (name, sorted((k, os.getxattr(fd, k)) for k in os.listxattr(fd))))
                except OSError as e: out.append('%s attributes: error %d' % (name, e.errno))
                owner, ids = room(8), room(8)
                out.append('%s owner: %d %s %d %s' % (name, call(72, fd, 16, owner), owner.raw.hex(), call(72, fd, 17, ids), ids.raw.hex()))
                out.append('%s signal, flags, descriptor flags, pipe size, seals: %r' % (name, [call(72, fd, n) for n in (11, 3, 1, 1032, 1034)]))
                waiting = room(4)
                if name != 'kmsg' and call(16, fd, 0x541b, waiting) == 0: out.append('%s waiting: %s' % (name, waiting.raw.hex()))
                out.append('%s offset: %d' % (name, call(8, fd, 0, 1)))
            numbers = sorted(kept.values())
            out.append('same: %r' % [(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1:] if call(312, os.getpid(), os.getpid(), 0, a, b) == 0])
            return out

        """

    /// Such as the source of a lazy migration on the same machine.
    @Test func `A fifo that somebody else has open has its contents once`() throws {
        let program = try Program(
            """
            os.mkfifo(work + '/fifo'); f = os.open(work + '/fifo', os.O_RDWR); os.write(f, b'x' * 60000)
            serve(lambda: str(len(os.read(f, 100000))) + (os.write(f, b'x' * 60000) and ''))
            """)
        let other = open(program.work + "/fifo", O_RDWR | O_CLOEXEC)
        defer { close(other) }
        for _ in 1...2 { #expect(try program.cycle() == "60000") }
    }

    @Test func `with all flags, offsets, owners and attributes`() throws {
        let program = try Program(
            probing: Self.files + """
                f = keep('plain', folder + '/plain', os.O_RDWR | os.O_CREAT); os.write(f, b'x' * 10000); os.lseek(f, 1 << 33, 0)
                for name, flags in dict(append=os.O_APPEND | os.O_WRONLY, direct=os.O_DIRECT, noatime=os.O_NOATIME, sync=os.O_SYNC | 2,
                                        dsync=os.O_DSYNC | 2, nonblock=os.O_NONBLOCK, path=os.O_PATH, write=1, signals=0o20000).items():
                    keep(name, folder + '/plain', flags)
                for i in range(50): open(folder + '/e%d' % i, 'w').close()
                d = keep('directory', folder, os.O_DIRECTORY); b = room(400); call(217, d, b, 400)
                os.symlink('plain', folder + '/link'); keep('link', folder + '/link', os.O_PATH | os.O_NOFOLLOW)
                keep('odd name', folder + '/a b\\n\\\\x(deleted) (deleted)', os.O_RDWR | os.O_CREAT)
                keep('bytes', os.fsencode(folder) + b'/\\xff\\xfe', os.O_RDWR | os.O_CREAT)
                keep('moved', folder + '/mv', os.O_RDWR | os.O_CREAT); os.rename(folder + '/mv', folder + '/mv2')
                for name in ('null', 'zero', 'full', 'random', 'urandom'): keep(name, '/dev/' + name, os.O_RDWR)
                keep('kmsg', '/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK)
                for name in ('self/status', 'meminfo', 'self/task', 'self/fd', 'sys/kernel/ostype', 'self/ns/net', 'self/exe'):
                    keep('/proc/' + name, '/proc/' + name, os.O_RDONLY)
                r, w = pipe('wide'); fcntl.fcntl(w, 1031, 1 << 17); os.write(w, b'abc')
                packets = pipe('packets', os.O_DIRECT | os.O_NONBLOCK); os.write(packets[1], b'one'); os.write(packets[1], b'two!')
                half = os.pipe(); os.close(half[1]); kept['half'] = half[0]; half = os.pipe(); os.close(half[0]); kept['other half'] = half[1]
                kept['path of a pipe'] = os.open('/proc/self/fd/%d' % r, os.O_PATH)
                kept['pipe again'] = os.open('/proc/self/fd/%d' % r, os.O_RDONLY | os.O_NONBLOCK)
                signal.pthread_sigmask(signal.SIG_BLOCK, [42, 43])
                @thread
                def other(): pass
                async_pipe = pipe('async'); own(async_pipe[0], 1, os.getpid()); fcntl.fcntl(async_pipe[0], 10, 42)
                fcntl.fcntl(async_pipe[0], fcntl.F_SETFL, fcntl.fcntl(async_pipe[0], fcntl.F_GETFL) | 0o20000)
                thread_pipe = pipe('of a thread'); own(thread_pipe[0], 0, members[0].thread.native_id)
                own(pipe('of a group')[0], 2, os.getpgrp())
                os.seteuid(77); own(pipe('of another user')[0], 1, os.getpid()); os.seteuid(0)
                os.mkfifo(folder + '/fifo'); both = keep('fifo', folder + '/fifo', os.O_RDWR | os.O_NONBLOCK); os.write(both, b'in it')
                keep('fifo r', folder + '/fifo', os.O_RDONLY | os.O_NONBLOCK); keep('fifo w', folder + '/fifo', os.O_WRONLY)
                m = os.memfd_create('odd size', 3); kept['memfd'] = m; os.write(m, b'123'); fcntl.fcntl(m, 1033, 2 | 4)
                kept['high'] = fcntl.fcntl(f, fcntl.F_DUPFD, 5000); kept['high, closed'] = fcntl.fcntl(f, fcntl.F_DUPFD_CLOEXEC, 3000)
                asked = [0]
                def check():
                    out = told()
                    at = os.lseek(d, 0, 1); b = room(100000); got = call(217, d, b, 100000); os.lseek(d, at, 0)
                    out.append('the rest of the directory: ' + hashlib.md5(b.raw[:got]).hexdigest())
                    os.write(async_pipe[1], b'!'); os.read(async_pipe[0], 1)
                    out.append('signal: %s' % signal.sigtimedwait([42], 5).si_signo)
                    return '\\n'.join(out)
                serve(check)
                """)
        let changes = try program.differences()
        #expect(changes.isEmpty, "\(changes.joined(separator: "\n"))")
    }

    @Test func `at its number, and numbers that were free are free`() throws {
        let program = try Program(
            probing: Self.files + """
                import errno
                null = os.open('/dev/null', os.O_RDWR); os.close(0)
                numbers = [3, 4, 6, 7, 8, 11, 12, 13, 20, 21, 22, 23, 24, 40, 400, 401, 1000]
                for i, n in enumerate(numbers): os.dup2(os.open('/', os.O_RDONLY) if i % 3 else null, n, inheritable=i % 2 == 0)
                for n in range(3, 1010):
                    if n not in numbers:
                        try: os.close(n)
                        except OSError: pass
                def told():
                    out = []
                    for n in range(1010):
                        try: out.append('%d %s %d' % (n, os.readlink('/proc/self/fd/%d' % n), fcntl.fcntl(n, fcntl.F_GETFD)))
                        except OSError: pass
                    return '\\n'.join(out)
                serve(told)
                """)
        let changes = try program.differences()
        #expect(changes.isEmpty, "\(changes.joined(separator: "\n"))")
    }

    @Test func `even if it has no name any more`() throws {
        let program = try Program(
            probing: Self.files + """
                g = keep('ghost', folder + '/ghost', os.O_RDWR | os.O_CREAT); os.pwrite(g, b'end', 900000); os.pwrite(g, b'start', 0)
                os.fchown(g, 123, 456); os.fchmod(g, 0o4640)
                os.setxattr(g, 'trusted.any', bytes(range(256)))
                lists = ((1, 6, 2 ** 32 - 1), (2, 4, 77), (4, 4, 2 ** 32 - 1), (16, 4, 2 ** 32 - 1), (32, 0, 2 ** 32 - 1))
                try: os.setxattr(g, 'system.posix_acl_access', struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *l) for l in lists))
                except OSError as e: print('no access control lists here:', e)
                os.utime(g, ns=(10 ** 18 + 123456000, 10 ** 18 + 987654000)); os.unlink(folder + '/ghost')
                t = keep('never named', folder, os.O_TMPFILE | os.O_RDWR, 0o640); os.write(t, b'to be linked')
                u = keep('never named 2', folder, os.O_TMPFILE | os.O_WRONLY, 0o600); kept['again'] = os.open('/proc/self/fd/%d' % u, os.O_RDONLY)
                os.mkdir(folder + '/gone'); os.mkdir(folder + '/gone/below'); keep('below', folder + '/gone/below', os.O_DIRECTORY)
                os.chmod(folder + '/gone/below', 0o751); os.chdir(folder + '/gone/below')
                os.rmdir(folder + '/gone/below'); os.rmdir(folder + '/gone')
                os.mkfifo(folder + '/fifo'); f = keep('fifo', folder + '/fifo', os.O_RDWR); os.write(f, b'in it'); os.unlink(folder + '/fifo')
                def check():
                    s = os.fstat(g)
                    # Holes stay holes: three blocks for the data and what the attributes may need.
                    holes = s.st_blocks <= 32
                    return '\\n'.join(told() + ['%r %r %d %s' % (os.pread(g, 5, 0), os.pread(g, 3, 900000), s.st_mtime_ns, holes), repr(os.pread(t, 20, 0))])
                serve(check)
                """)
        let changes = try program.differences()
        #expect(changes.isEmpty, "\(changes.joined(separator: "\n"))")
    }

    /// The temporary name that the dump gives it is what the image refers to.
    @Test func `and a file with another name can be restored after a restore that failed`() throws {
        let program = try Program(
            """
            file = open(work + '/one', 'w+'); file.write('text'); file.flush()
            os.link(work + '/one', work + '/two'); os.unlink(work + '/one')
            def check():
                file.seek(0); return '%s %d %s' % (file.read(), os.fstat(file.fileno()).st_nlink, sorted(n for n in os.listdir(work) if 'link' in n))
            serve(check)
            """)
        let before = program.ask()
        #expect(before == "text 1 []")
        try #require(try program.dump(["--link-remap"]) == 0, "\(program.lastLine("dump.log"))")
        #expect(try program.restore(fault: "restore-files:fail") != 0)
        try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == before)
    }

    @Test func `and a file without a name can still get one`() throws {
        let program = try Program(
            probing: """
                t = os.open(work, os.O_TMPFILE | os.O_RDWR, 0o640); os.write(t, b'whole')
                def check():
                    must(call(265, -100, b'/proc/self/fd/%d' % t, -100, (work + '/linked').encode(), 0x400))
                    return open(work + '/linked').read()
                serve(check)
                """)
        let outcome = try program.cycle()
        #expect(outcome == "whole")
    }

    @Test func `or is refused if it is of another build`() throws {
        let program = try Program(
            """
            import shutil
            library = work + '/library'; shutil.copy(os.path.realpath('/bin/true'), library); image = open(library, 'rb').read()
            f = os.open(library, os.O_RDONLY); mapped = mmap.mmap(f, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ); os.close(f)
            # The same, but for one bit of its build id: a note of 20 bytes, of the type 3, by GNU.
            at = image.index(struct.pack('III', 4, 20, 3) + b'GNU\\0') + 16
            open(work + '/other', 'wb').write(image[:at] + bytes([image[at] ^ 1]) + image[at + 1:]); os.chmod(work + '/other', 0o755)
            def check():
                if bytes(mapped) != open(work + '/library', 'rb').read(): return 'the mapping changed'
            serve(check)
            """)
        #expect(program.ask() == "ok")
        #expect(try program.dump() == 0)
        #expect(rename("\(program.work)/library", "\(program.work)/original") == 0)
        #expect(rename("\(program.work)/other", "\(program.work)/library") == 0)
        #expect(try program.restore() != 0)
        let reason = program.lastLine("restore.log")
        #expect(reason.contains("/library") && reason.contains("build id") && reason.contains("expected"), "\(reason)")
        #expect(rename("\(program.work)/original", "\(program.work)/library") == 0)
        #expect(try program.restore() == 0)
        let answer = program.ask()
        #expect(answer == "ok")
    }

    @Test func `and nobody else holds its files when it runs on`() throws {
        // Found by a build: the program that it had just linked was busy (ETXTBSY).
        let program = try Program(
            """
            import fcntl
            problems, rounds = [], [0]
            open(work + '/script', 'w').write(
                '#!/bin/sh\\n[ "$CRTOOLS_SCRIPT_ACTION" != post-resume ] || ls -l /proc/$PPID/fd > %s/held\\n' % work)
            os.chmod(work + '/script', 0o755)
            def load():
                path = work + '/written'
                while True:
                    writing = os.open(path, os.O_WRONLY | os.O_CREAT, 0o700)
                    fcntl.flock(writing, fcntl.LOCK_EX)
                    time.sleep(0.002)
                    os.close(writing)
                    reading = os.open(path, os.O_RDONLY)
                    try:
                        # There is no such lease while anyone could write.
                        fcntl.fcntl(reading, 1024, fcntl.F_RDLCK); fcntl.fcntl(reading, 1024, fcntl.F_UNLCK)
                        fcntl.flock(reading, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except OSError as e: problems.append(repr(e))
                    os.close(reading); rounds[0] += 1
            threading.Thread(target=load, daemon=True).start()
            def check():
                before = rounds[0]
                while rounds[0] < before + 3: time.sleep(0.001)
                if problems: return problems[0]
            serve(check)
            """)
        for round in 1...8 {
            // Every second one fails once it has copied the descriptors.
            let fault = round % 2 == 0 ? "dump-files" : nil
            let status = try program.dump(["-R", "--file-locks"], fault: fault)
            #expect((status == 0) == (fault == nil))
            let answer = program.ask()
            try #require(answer == "ok", "round \(round)")
        }
        #expect(try program.dump(["--file-locks"]) == 0)
        #expect(try program.restore(["--action-script", program.work + "/script"]) == 0)
        let answer = program.ask()
        #expect(answer == "ok")
        let held = program.text("held")
        #expect(held.contains("restore.log") && !held.contains("/request"), "\(held)")
    }
}
