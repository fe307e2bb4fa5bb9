import Glibc
import Linux
import Testing

/// Resources that stay outside of the image, and descriptors that stand for them. They need root.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A restored program gets descriptors that we pass` {
    private func text(of file: Int32) -> String {
        var room = [UInt8](repeating: 0, count: 100)
        var waiting = pollfd(fd: file, events: Int16(POLLIN), revents: 0)
        guard unsafe poll(&waiting, 1, 30_000) == 1 else { return "nothing" }
        let got = unsafe read(file, &room, room.count)
        return String(decoding: room[..<max(got, 0)], as: UTF8.self)
    }

    @Test func `for a pipe to the outside and for a file, and no others`() throws {
        let program = try Program(
            """
            r, w = os.pipe(); os.set_inheritable(w, True); os.write(w, b'old')
            with open(work + '/inode', 'w') as f: f.write(str(os.fstat(w).st_ino))
            os.close(r)
            log = os.open(work + '/old', os.O_WRONLY | os.O_CREAT); os.write(log, b'before')
            before = len(os.listdir('/proc/self/fd')) + 1  # the questions
            def check():
                if len(os.listdir('/proc/self/fd')) != before: return 'descriptors: %r' % os.listdir('/proc/self/fd')
                os.write(w, b'hello'); os.write(log, b'after')
            serve(check)
            """)
        #expect(try program.dump() == 0)
        var ends: [Int32] = [-1, -1]
        #expect(unsafe pipe(&ends) == 0)
        let reading = dup(ends[0])
        _ = fcntl(reading, F_SETFD, FD_CLOEXEC)
        let file = open(program.work + "/new", O_RDWR | O_CREAT | O_APPEND, 0o600)
        let path = program.work.dropFirst() + "/old"
        let inode = program.text("inode")
        #expect(
            try program.restore([
                "--inherit-fd", "fd[\(ends[1])]:pipe:[\(inode)]", "--inherit-fd", "fd[\(file)]:\(path)",
            ]) == 0, "\(program.lastLine("restore.log"))")
        for number in [ends[0], ends[1], file] { close(number) }
        #expect(program.ask() == "ok")
        #expect(text(of: reading) == "hello")
        #expect(program.text("new") == "after" && program.text("old") == "before")
        // Nobody else holds the writing end: it ends with the program.
        kill(program.id, SIGKILL)
        #expect(text(of: reading) == "")
        close(reading)
    }

    @Test func `for one end of a socket pair, which is refused without being named`() throws {
        let program = try Program(
            """
            a, b = socket.socketpair()
            keeper = os.fork()
            if keeper == 0:
                os.setsid(); a.close(); signal.pause()
            b.close(); a.settimeout(10)
            with open(work + '/inode', 'w') as f: f.write(str(os.fstat(a.fileno()).st_ino))
            pid = os.fork()
            if pid == 0:
                os.setsid()
                def check():
                    if os.getppid() == 0: return 'parent'
                    a.send(b'question')
                    if a.recv(100) != b'answer': return 'no answer'
                with open(work + '/pid', 'w') as f: f.write(str(os.getpid()))
                serve(check)
            os.waitpid(pid, 0)
            os.kill(keeper, 9); os.waitpid(keeper, 0)
            """)
        let pid = program.text("pid")
        let inode = program.text("inode")
        let common = ["-D", program.images, "-v4", "-o"]
        #expect(try program.brumate(["dump", "-t", pid] + common + ["dump.log"]) == 1)
        #expect(program.lastLine("dump.log").contains("--external unix[\(inode)]"))
        #expect(
            try program.brumate(["dump", "-t", pid] + common + ["dump.log", "--external", "unix[\(inode)]"]) == 0,
            "\(program.lastLine("dump.log"))")
        // The parent reaps the dumped one and ends.
        while !program.isGone { usleep(1000) }
        var ends: [Int32] = [-1, -1]
        #expect(unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        #expect(
            try program.brumate(
                ["restore", "-d"] + common + ["restore.log", "--inherit-fd", "fd[\(ends[1])]:socket:[\(inode)]"]) == 0,
            "\(program.lastLine("restore.log"))")
        var answer: [UInt8] = Array("answer".utf8)
        #expect(unsafe write(ends[0], &answer, answer.count) == 6)
        #expect(program.ask() == "ok")
        #expect(text(of: ends[0]) == "question")
        if let number = Int32(pid) { kill(number, SIGKILL) }
        for number in ends { close(number) }
    }

    @Test func `for a device without state, which may also be another one or the same again`() throws {
        for (words, path) in [
            ([], "/dev/loop-control"), (["--external", "dev[loops]:/dev/zero"], "/dev/zero"),
            (["--inherit-fd", "fd[90]:loops"], "/dev/full"),
        ] {
            let program = try Program(
                """
                d = os.open('/dev/loop-control', os.O_RDWR)
                serve(lambda: os.readlink('/proc/self/fd/%d' % d))
                """)
            #expect(try program.dump() == 1)
            #expect(
                try program.dump(["--external", "dev[10/237]:loops"]) == 0, "\(program.lastLine("dump.log"))")
            let passed = open("/dev/full", O_RDWR)
            #expect(dup2(passed, 90) == 90)
            #expect(try program.restore(words) == 0, "\(program.lastLine("restore.log"))")
            close(passed)
            close(90)
            #expect(program.ask() == path)
        }
    }

    @Test func `but not where the descriptor is not open`() throws {
        let program = try Program("serve(lambda: None)")
        #expect(try program.dump() == 0)
        #expect(try program.restore(["--inherit-fd", "fd[973]:some/file"]) == 1)
        #expect(program.lastLine("restore.log").contains("descriptor 973, passed for some/file, is not open"))
        #expect(try program.restore() == 0)
    }
}
