import Glibc
import Linux
import Testing

/// Pages that go to another place than the image directory, or come from one while the program runs.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Pages travel` {
    /// Private and shared memory with known contents, children that share some of it, moved and dropped pages.
    private static let script = """
        import hashlib
        N = 12 << 20
        def area(flags): return mmap.mmap(-1, N, flags=flags | mmap.MAP_ANONYMOUS)
        private, shared, moved = area(mmap.MAP_PRIVATE), area(mmap.MAP_SHARED), area(mmap.MAP_PRIVATE)
        private.write(os.urandom(N)); shared.write(os.urandom(N)); moved.write(b'm' * N)
        def digest(): return hashlib.sha256(private[:] + shared[:]).hexdigest()
        before = digest()
        first = [True]
        def check():
            for place in (5 << 20, 11 << 20, 0): private[place]
            if first[0]:
                first[0] = False
                moved.madvise(mmap.MADV_DONTNEED, 0, 4 << 20)
                moved.resize(2 * N)
            if moved[0] or moved[4 << 20] != 0x6d or moved[N - 1] != 0x6d or moved[2 * N - 1]: return 'moved memory'
            children = []
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    try: os._exit(0 if digest() == before else 1)
                    except BaseException: os._exit(2)
                children.append(child)
            for child in children:
                if os.waitpid(child, 0)[1]: return 'memory of a child'
            if digest() != before: return 'memory'
        serve(check)
        """

    /// Starts a server in the background. Returns its port.
    private func start(_ server: [String], _ program: Program) throws -> String {
        #expect(try program.brumate(server + ["--daemon", "--port", "0", "--address", "127.0.0.1"]) == 0)
        let line = program.text("brumate.log").split(separator: "\n").last { $0.hasPrefix("Listening on port ") }
        return String(try #require(line).split(separator: " ")[3])
    }

    /// Waits for a text in a file.
    private func wait(for text: String, in name: String, _ program: Program) -> Bool {
        for _ in 0..<2000 {
            if program.text(name).contains(text) { return true }
            usleep(5000)
        }
        return false
    }

    private func toServer(_ port: String) -> [String] {
        ["--page-server", "--address", "127.0.0.1", "--port", port]
    }

    // MARK: page server

    @Test func `to a page server, which is in the background and on any port`() throws {
        let program = try Program(`Pages travel`.script)
        let store = program.work + "/store"
        #expect(mkdir(store, 0o700) == 0)
        let port = try start(["page-server", "-D", store, "-v4", "-o", "server.log"], program)
        #expect(try program.dump(toServer(port)) == 0)
        #expect(wait(for: "all pages are stored", in: "store/server.log", program))
        let moved = try program.run([
            "sh", "-c", "ls \(program.images)/pages-* || mv \(store)/*.img \(program.images)/",
        ])
        #expect(moved == 0)
        #expect(try program.restore() == 0)
        #expect(program.ask() == "ok")
    }

    @Test func `to a page server that gives back what its older images had`() throws {
        let program = try Program(
            """
            N = 8 << 20
            memory = mmap.mmap(-1, N, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.write(b'a' * N); count = [0]
            def check():
                same = memory[:] == bytes([97 + count[0]]) * N
                count[0] += 1; memory[:] = bytes([97 + count[0]]) * N
                return 'ok' if same else 'other contents'
            serve(check)
            """)
        for (folder, previous) in [("a", nil), ("b", "a")] as [(String, String?)] {
            let (store, images) = (program.work + "/" + folder, program.work + "/images-" + folder)
            #expect(mkdir(store, 0o700) == 0 && mkdir(images, 0o700) == 0)
            let port = try start(
                ["page-server", "-D", store, "-v4", "-o", "server.log", "--auto-dedup"]
                    + (previous.map { ["--prev-images-dir", "../" + $0] } ?? []), program)
            let words = ["dump", "-t", "\(program.id)", "-D", images, "-v4", "-o", "dump.log", "--track-mem", "-R"]
            let parent = previous.map { ["--prev-images-dir", "../images-" + $0] } ?? []
            #expect(try program.brumate(words + parent + toServer(port)) == 0)
            #expect(wait(for: "KiB out of the parents", in: folder + "/server.log", program))
            #expect(program.ask() == "ok")
        }
        #expect(try program.run(["sh", "-c", "cd \(program.work); rm images-b/parent; mv images-b/*.img b/"]) == 0)
        var blocks = 0
        for name in try listDirectory(.init(program.work + "/a")) where name.string.hasPrefix("pages-") {
            var status = stat()
            unsafe stat("\(program.work)/a/\(name)", &status)
            blocks += Int(status.st_blocks) * 512
        }
        let size = try readWholeFile("\(program.work)/a/pages-65536.img").count
        #expect(blocks < size - 7 << 20, "\(blocks) of \(size)")
        program.finish()
        #expect(try program.brumate(["restore", "-d", "-D", program.work + "/b", "-v4", "-o", "restore.log"]) == 0)
        #expect(program.ask() == "ok")
        program.finish()
    }

    @Test func `to a page server that stops half-way: the program goes on`() throws {
        let program = try Program(`Pages travel`.script)
        let server = """
            import socket, sys
            s = socket.create_server(('127.0.0.1', 0))
            open(sys.argv[1] + '/port', 'w').write(str(s.getsockname()[1]))
            c, _ = s.accept(); c.recv(32, socket.MSG_WAITALL); c.send(b'\\0'); c.recv(1 << 20, socket.MSG_WAITALL)
            """
        let script = """
            python3 -c "$0" \(program.work) & while [ ! -s \(program.work)/port ]; do sleep 0.01; done
            \(Program.binary) dump -t \(program.id) -D \(program.images) -o dump.log -v4 \\
                --page-server --address 127.0.0.1 --port $(cat \(program.work)/port)
            """
        #expect(try program.run(["sh", "-c", script, server]) == 1)
        #expect(program.text("images/dump.log").contains("Error"))
        #expect(program.text("images/inventory.img").isEmpty)
        #expect(program.ask() == "ok")
    }

    @Test func `from a sender that stops half-way: the page server keeps nothing`() throws {
        let program = try Program("serve(lambda: None)")
        let port = try start(
            ["page-server", "-D", program.images, "-o", "server.log", "--pidfile", program.work + "/pid"], program)
        let sender = """
            import socket, struct
            c = socket.create_connection(('127.0.0.1', \(port)))
            c.send(struct.pack('<IIQQQ', 4, 0, 0, 0, 77 << 8 | 1)); assert c.recv(1) == b'\\0'
            c.send(struct.pack('<IIQQQ', 6 | 4 << 16, 0, 9, 0x10000, 77 << 8 | 1)); c.send(b'x' * 4096 * 5)
            c.close()
            """
        #expect(try program.run(["python3", "-c", sender]) == 0)
        #expect(wait(for: "in the midst of the pages", in: "images/server.log", program))
        let ended = "while [ -e /proc/$(cat \(program.work)/pid) ]; do sleep 0.01; done; ls \(program.images)/*.img"
        #expect(try program.run(["sh", "-c", ended]) != 0)
    }

    @Test func `by a socket that is passed to both ends`() throws {
        let program = try Program(`Pages travel`.script)
        let script = """
            import os, socket, subprocess, sys
            binary, tree, images = sys.argv[1:]
            a, b = socket.socketpair()
            def run(end, *words):
                words = [binary, *words, '-D', images, '--ps-socket', str(end.fileno())]
                process = subprocess.Popen(words, pass_fds=[end.fileno()])
                end.close()
                return process
            server = run(b, 'page-server', '-o', 'server.log')
            dump = run(a, 'dump', '-t', tree, '--page-server', '-o', 'dump.log')
            sys.exit(dump.wait() or server.wait())
            """
        #expect(try program.run(["python3", "-c", script, Program.binary, "\(program.id)", program.images]) == 0)
        program.reap()
        #expect(try program.restore() == 0)
        #expect(program.ask() == "ok")
    }

    @Test func `not even named, if the server's parent images have them`() throws {
        let program = try Program("serve(lambda: None)")
        #expect(try program.dump(["-R"]) == 0)
        let sender = """
            import socket, struct, sys
            data = open('\(program.images)/pagemap-\(program.id).img', 'rb').read()
            at = 8 + 4 + struct.unpack_from('<I', data, 8)[0] + 5  # past magic, head, and the first field's tag
            first = sum((data[at + i] & 0x7f) << 7 * i for i in range(10) if all(b & 0x80 for b in data[at:at + i]))
            c = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
            c.send(struct.pack('<IIQQQ', 4, 0, 0, 0, \(program.id) << 8 | 1)); assert c.recv(1) == b'\\1'
            c.send(struct.pack('<IIQQQ', 6 | 1 << 16, 0, 1, first + int(sys.argv[2]), \(program.id) << 8 | 1))
            c.send(struct.pack('<IIQQQ', 0x1023, 0, 0, 0, 0)); answer = c.recv(4)
            sys.exit(0 if answer == bytes(4) else 3)
            """
        for (offset, outcome) in [("0", 0), ("-4096", 3)] as [(String, Int32)] {
            let store = program.work + "/store" + offset
            #expect(mkdir(store, 0o700) == 0)
            let words = ["page-server", "-D", store, "--prev-images-dir", "../images", "--pidfile", store + "/pid"]
            let port = try start(words, program)
            #expect(try program.run(["python3", "-c", sender, port, offset]) == outcome)
            let ended = "while [ -e /proc/$(cat \(store)/pid) ]; do sleep 0.01; done; ls \(store)/pagemap-*.img"
            let kept = try program.run(["sh", "-c", ended])
            #expect((kept == 0) == (outcome == 0))
        }
    }

    @Test func `under TLS, unless the other end can't be trusted`() throws {
        let program = try Program(`Pages travel`.script)
        let keys = """
            cd \(program.work) && for n in good bad; do
                openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$n.test \\
                    -keyout $n.key -out $n.pem || exit 1; done
            """
        guard try program.run(["sh", "-c", keys]) == 0 else {
            print("skipped: there is no openssl command to make certificates with")
            return
        }
        func tls(_ name: String, trusting authority: String) -> [String] {
            let path = program.work + "/"
            return ["--tls", "--tls-cacert", path + authority + ".pem", "--tls-cert", path + name + ".pem"]
                + ["--tls-key", path + name + ".key"]
        }
        let good = tls("good", trusting: "good")
        let server = ["page-server", "-D", program.images, "-v4", "-o", "server.log"] + good
        // Another authority; a name that the certificate does not bear.
        for (client, more) in [(tls("bad", trusting: "good"), ["--tls-no-cn-verify"]), (good, [])] {
            let port = try start(server, program)
            #expect(try program.dump(toServer(port) + client + more) == 1)
            #expect(program.ask() == "ok")
        }
        let port = try start(server, program)
        #expect(try program.dump(toServer(port) + good + ["--tls-no-cn-verify"]) == 0)
        #expect(wait(for: "all pages are stored", in: "images/server.log", program))
        #expect(try program.restore() == 0)
        #expect(program.ask() == "ok")
    }

    // MARK: lazy

    @Test func `from the images, when the program runs already`() throws {
        let program = try Program(`Pages travel`.script)
        for _ in 0..<2 {
            #expect(try program.dump() == 0)
            #expect(try program.restore(["--lazy-pages"]) == 0)
            #expect(program.ask() == "ok")
            #expect(wait(for: "all pages are there: ", in: "images/lazy-pages.log", program))
            let maps = program.text("../../proc/\(program.id)/smaps")
            #expect(!maps.split(separator: "\n").contains { $0.hasPrefix("VmFlags:") && $0.contains(" um ") })
        }
    }

    /// Pages that were about to be brought to the parent were never brought to a child that was forked just then.
    @Test func `from the images, also to children that are forked while they come`() throws {
        let program = try Program(
            """
            N, P = 4096, 4096
            memory = mmap.mmap(-1, N * P, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for page in range(0, N, 2): memory[page * P] = 1 + page % 255
            def wrong(): return sum(memory[page * P] != 1 + page % 255 for page in range(0, N, 2))
            def check():
                reader = threading.Thread(target=wrong); reader.start()
                children = []
                for _ in range(40):
                    child = os.fork()
                    if child == 0: os._exit(1 if wrong() else 0)
                    children.append(child)
                reader.join()
                bad = [child for child in children if os.waitpid(child, 0)[1]]
                return '%d children miss pages' % len(bad) if bad else 'ok'
            serve(check)
            """)
        for _ in 0..<5 {
            #expect(try program.dump() == 0)
            #expect(try program.restore(["--lazy-pages"]) == 0)
            #expect(program.ask() == "ok")
            #expect(wait(for: "all pages are there: ", in: "images/lazy-pages.log", program))
        }
    }

    @Test func `from a page server to a lazy-pages daemon`() throws {
        let program = try Program(`Pages travel`.script)
        #expect(try program.dump() == 0)
        let port = try start(["page-server", "--lazy-pages", "-D", program.images, "-o", "server.log", "-v4"], program)
        let daemon = ["lazy-pages", "-D", program.images, "-v4", "-o", "lazy-pages.log", "--daemon"]
        #expect(try program.brumate(daemon + toServer(port)) == 0)
        #expect(try program.restore(["--lazy-pages"]) == 0)
        #expect(program.ask() == "ok")
        #expect(wait(for: "all pages are there: ", in: "images/lazy-pages.log", program))
        #expect(wait(for: "the client has all that it needs", in: "images/server.log", program))
    }

    @Test func `with what threads waited for at an earlier restore first`() throws {
        let program = try Program(`Pages travel`.script)
        #expect(try program.dump() == 0)
        var windows: [UInt64] = []
        for round in 0...1 {
            let port = try start(["page-server", "--lazy-pages", "-D", program.images, "-o", "server.log"], program)
            let proxy = """
                import os, socket, struct, threading, time
                s = socket.create_server(('127.0.0.1', 0))
                open('port.new', 'w').write(str(s.getsockname()[1])); os.rename('port.new', 'port')
                c, _ = s.accept(); server = socket.create_connection(('127.0.0.1', \(port)))
                def requests():
                    while data := c.recv(32, socket.MSG_WAITALL):
                        _, _, pages, start, _ = struct.unpack('IIQQQ', data)
                        server.send(data)
                        with open('requests\(round)', 'a') as f: f.write('%d %d\\n' % (start, pages))
                    server.close()
                threading.Thread(target=requests).start()
                while data := server.recv(1 << 16): c.send(data)
                """
            let script = """
                cd \(program.work); rm -f port; python3 -c "$0" & while [ ! -s port ]; do sleep 0.01; done
                \(Program.binary) lazy-pages -D images -o lazy-pages.log -v4 --page-server --daemon --pidfile ../pager\(round) \\
                    --address 127.0.0.1 --port $(cat port) || exit 1
                \(Program.binary) restore -D images -o restore.log -v4 -d --lazy-pages || exit 1
                """
            #expect(try program.run(["sh", "-c", script, proxy]) == 0)
            #expect(program.ask() == "ok")
            #expect(wait(for: "all pages are there: ", in: "images/lazy-pages.log", program))
            program.finish()
            if round == 0 { windows = try workingSet(of: program) }
        }
        #expect(windows.count > 5)
        // All of it comes before the first large part that nobody waits for.
        let requests = program.text("requests1").split(separator: "\n").map {
            $0.split(separator: " ").compactMap { UInt64($0) }
        }
        let first = requests.prefix { $0[1] <= 16 }.map { $0[0] & ~0xffff }
        #expect(Set(windows).isSubset(of: first), "\(windows) \(requests)")
        // What an older dump's restores waited for says nothing of a new one.
        let other = try Program("serve(lambda: 'ok')")
        #expect(try other.brumate(["dump", "-t", "\(other.id)", "-D", program.images]) == 0)
        other.reap()
        #expect(program.text("images/working-set-\(program.id)").isEmpty)
    }

    /// The addresses in a working set: the first field of each message.
    private func workingSet(of program: Program) throws -> [UInt64] {
        let bytes = try readWholeFile("\(program.images)/working-set-\(program.id)")
        var (found, at): ([UInt64], Int) = ([], 8)
        while at + 4 < bytes.count {
            var (value, shift) = (UInt64(0), UInt64(0))
            for byte in bytes[(at + 5)...] {
                value |= UInt64(byte & 0x7f) << shift
                shift += 7
                if byte < 0x80 { break }
            }
            found.append(value)
            at += 4 + Int(bytes[at])
        }
        return found
    }

    /// Restores a program whose pager gets 2 MiB of its pages from a server, and then nothing more.
    ///
    /// - Parameter ending: what then happens, in Python between pager and server, and in the shell.
    private func interrupt(_ program: Program, python: String = "", shell: String = "") throws {
        #expect(try program.dump() == 0)
        let port = try start(["page-server", "--lazy-pages", "-D", program.images, "-o", "server.log"], program)
        let proxy = """
            import socket, sys, threading
            s = socket.create_server(('127.0.0.1', 0))
            open('port', 'w').write(str(s.getsockname()[1]))
            c, _ = s.accept(); server = socket.create_connection(('127.0.0.1', \(port)))
            def requests():
                while data := c.recv(1 << 16): server.send(data)
                server.close()
            threading.Thread(target=requests).start()
            left = 2 << 20
            while left: data = server.recv(min(left, 1 << 16)); left -= len(data); c.send(data)
            \(python)
            """
        let script = """
            cd \(program.work); python3 -c "$0" & while [ ! -s port ]; do sleep 0.01; done
            \(Program.binary) lazy-pages -D images -o lazy-pages.log -v4 --page-server --daemon --pidfile ../pager \\
                --address 127.0.0.1 --port $(cat port) || exit 1
            \(Program.binary) restore -D images -o restore.log -v4 -d --lazy-pages || exit 1
            \(shell)
            """
        #expect(try program.run(["sh", "-c", script, proxy]) == 0)
        #expect(wait(for: "the tasks run", in: "images/lazy-pages.log", program))
    }

    @Test func `from a page server that is lost: the program is killed and reads no zeros`() throws {
        let program = try Program(`Pages travel`.script)
        try interrupt(program, python: "c.shutdown(2)")
        #expect(wait(for: "the tasks are killed", in: "images/lazy-pages.log", program))
        #expect(program.isGone)
    }

    @Test func `by a pager that is killed: the program is killed, too`() throws {
        let program = try Program(`Pages travel`.script)
        // Its guard was told of everything before the log says so.
        let running = "grep -q 'the tasks run' images/lazy-pages.log"
        let kill = "until \(running); do sleep 0.01; done; kill -9 $(cat pager)"
        try interrupt(program, shell: kill)
        #expect(wait(for: "pager was killed", in: "images/lazy-pages.log", program))
        #expect(program.isGone)
    }

    /// Dumps a program that then serves its pages, and restores it in a pid namespace of its own.
    private func migrate(_ program: Program, restoring more: String) throws -> (dump: Int32, restore: Int32) {
        let script = """
            cd \(program.work); mkfifo ready; exec 8<>ready
            \(Program.binary) dump -t \(program.id) -D images -o dump.log -v4 --lazy-pages --address 127.0.0.1 \\
                --port 0 --status-fd 8 >port & dump=$!
            head -c 1 ready >/dev/null; port=$(tr -dc 0-9 <port)
            \(more)
            wait $dump; echo $? >dumped
            """
        let status = try program.run(["sh", "-c", script])
        return (Int32(program.text("dumped").filter(\.isNumber)) ?? -1, status)
    }

    @Test func `from the stopped program itself, which ends when its other self has all`() throws {
        let program = try Program(`Pages travel`.script)
        let (dumped, status) = try migrate(
            program,
            restoring: """
                unshare -pf --mount-proc \(Program.binary) restore -D images -o restore.log -v4 --lazy-pages \\
                    --page-server --address 127.0.0.1 --port $port 8>&- & echo $! >restorer
                """)
        #expect(status == 0)
        #expect(dumped == 0, "\(program.lastLine("dump.log"))")
        program.reap()
        #expect(program.ask() == "ok")
        #expect(program.text("images/lazy-pages.log").contains("all pages are there: "))
        if let restorer = Int32(program.text("restorer").filter(\.isNumber)) {
            _ = try program.run(["sh", "-c", "kill -9 $(pgrep -P \(restorer)) \(restorer)"])
        }
    }

    @Test func `from the stopped program itself, whose other self is lost: it goes on`() throws {
        let program = try Program(`Pages travel`.script)
        let client = """
            import socket, struct, sys
            c = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
            c.send(struct.pack('<IIQQQ', 7, 0, 9, 0x10000, 77)); c.close()
            """
        let (dumped, _) = try migrate(program, restoring: "python3 -c \"\(client)\" $port 8>&-")
        #expect(dumped == 1)
        #expect(program.text("images/dump.log").contains("Error: "))
        #expect(program.text("images/inventory.img").isEmpty)
        #expect(program.ask() == "ok")
    }
}
