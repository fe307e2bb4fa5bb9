import Glibc
import Linux
import Testing

/// Compressed pages, and hashes of images.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Packed images` {
    /// Memory of all kinds: compressible, incompressible and mixed; private, shared and a file of memory; few pages and
    /// many; a child that shares some of it and changes some.
    private static let script = """
        import hashlib, random
        dice, areas, round = random.Random(5), [], [0]
        def area(size, flags, text):
            memory = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
            memory.write((text * (size // len(text) + 1))[:size]); areas.append(memory); return memory
        words = b''.join(b'%d %x ' % (dice.randrange(1000), dice.randrange(1 << 30)) for _ in range(2000))
        for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
            area(9 << 20, flags, words); area(3 << 20, flags, dice.randbytes(1 << 20)); area(8192, flags, b'few')
        file = os.memfd_create('some'); os.ftruncate(file, 1 << 20); os.pwrite(file, words, 300_000)
        def digest():
            total = hashlib.sha256(os.pread(file, 1 << 20, 0))
            for memory in areas: total.update(memory[:])
            return total.hexdigest()
        here, there = socket.socketpair()
        if os.fork() == 0:
            for page in range(0, 9 << 20, 40960): areas[0][page] ^= 0xff
            mine = digest(); here.close()
            while there.recv(1): there.send(b'ok ' if digest() == mine else b'bad')
            os._exit(0)
        there.close()
        def step():
            for _ in range(20):
                page = dice.randrange(0, 9 << 20); areas[0][page] ^= 0x55
            return digest()
        before = [digest()]
        def check():
            for place in (8 << 20, 5 << 20, 0): areas[0][place], areas[1][place // 4]
            here.send(b'?')
            if here.recv(3) != b'ok ': return 'the child'
            if digest() != before[0]: return 'memory'
            before[0] = step()
        serve(check)
        """

    private static let forms = ["--compress", "--compress=zstd", "--compress=zstd:9"]

    private func program() throws -> Program { try Program(`Packed images`.script) }

    private func names(_ folder: String) throws -> [String] {
        try listDirectory(.init(folder)).map(\.string).sorted()
    }

    private func bytes(_ folder: String, _ start: String) throws -> UInt64 {
        try names(folder).filter { $0.hasPrefix(start) }.reduce(0) {
            try $0 + FileStatus.read(folder + "/" + $1, in: currentDirectory).size
        }
    }

    /// Changes a file by `body`.
    private func change(_ path: String, _ body: (inout [UInt8]) -> Void) throws {
        var bytes = try readWholeFile(path)
        body(&bytes)
        let file = try openFile(path, [.writeOnly, .truncate])
        try writeAll(bytes, to: file.number)
    }

    /// Kills the program and its child, and waits until their pids are free.
    private func end(_ program: Program) {
        kill(-program.id, SIGKILL)
        program.reap()
        while kill(-program.id, 0) == 0 { usleep(1000) }
    }

    // MARK: round trips

    @Test(arguments: forms)
    func `bring everything back, eagerly and lazily`(form: String) throws {
        let program = try program()
        #expect(try program.cycle([form]) == "ok")
        #expect(try bytes(program.images, "pages-") == 0)
        #expect(try names(program.images).contains("integrity.img"))
        let packed = try bytes(program.images, "packed-")
        #expect(packed > 6 << 20 && packed < 26 << 20, "\(packed)")
        // Into the same directory, with pages as they are, and back.
        #expect(try program.cycle(["--checksum"]) == "ok")
        #expect(try bytes(program.images, "packed-") == 0)
        #expect(try bytes(program.images, "pages-") > 24 << 20)
        #expect(try program.dump([form]) == 0)
        #expect(try bytes(program.images, "pages-") == 0)
        #expect(try program.restore(["--lazy-pages"]) == 0)
        #expect(program.ask() == "ok")
        #expect(program.ask() == "ok")
    }

    @Test func `bring everything back while hashes are kept of unpacked pages, lazily too`() throws {
        let program = try program()
        #expect(try program.cycle(["--checksum", "--no-sync"]) == "ok")
        #expect(try program.dump(["--checksum"]) == 0)
        #expect(try program.restore(["--lazy-pages"]) == 0)
        #expect(program.ask() == "ok")
        #expect(try program.cycle(["--compress", "--no-checksum"]) == "ok")
        #expect(try !names(program.images).contains("integrity.img"))
    }

    @Test func `live, and in chains of packed and unpacked sets`() throws {
        let program = try program()
        let all: [(String, [String])] = [
            ("pre-dump", ["--compress"]), ("pre-dump", []), ("dump", ["--live", "--track-mem", "--compress=zstd"]),
            ("dump", ["-R", "--track-mem", "--checksum"]), ("dump", ["--track-mem", "--compress"]),
        ]
        for (index, (order, more)) in all.enumerated() {
            let folder = "\(program.work)/\(index)"
            try #require(mkdir(folder, 0o700) == 0)
            let previous = index > 0 ? ["--prev-images-dir", "../\(index - 1)"] : []
            let words = [order, "-t", "\(program.id)", "-D", folder, "-v4", "-o", "log"] + more + previous
            #expect(try program.brumate(words) == 0, "\(program.text("\(index)/log").suffix(300))")
            if index < 4 { #expect(program.ask() == "ok") }
        }
        program.reap()
        let last = program.work + "/4"
        #expect(!program.text("4/log").contains("everything is written"))
        #expect(try program.brumate(["restore", "-D", last, "-d", "-v4", "-o", "restore.log"]) == 0)
        #expect(program.ask() == "ok")
    }

    @Test func `come through a page server that packs, and serve lazy pages`() throws {
        let program = try program()
        let store = program.work + "/store"
        try #require(mkdir(store, 0o700) == 0)
        let server = ["--daemon", "--port", "0", "--address", "127.0.0.1"]
        func port() throws -> String {
            let line = program.text("brumate.log").split(separator: "\n").last { $0.hasPrefix("Listening on port ") }
            return String(try #require(line).split(separator: " ")[3])
        }
        #expect(try program.brumate(["page-server", "-D", store, "--compress", "-o", "log"] + server) == 0)
        let place = ["--page-server", "--address", "127.0.0.1", "--port"]
        #expect(try program.dump(place + [try port(), "--compress"]) == 1)
        #expect(program.text("images/dump.log").contains("Pass --compress to the page server"))
        #expect(try program.dump(place + [try port(), "--checksum"]) == 0)
        while try !names(store).contains("inventory.img") {
            #expect(try bytes(store, "pages-") == 0)
            #expect(try program.run(["sh", "-c", "mv \(program.images)/*.img \(store)"]) == 0)
        }
        #expect(try bytes(store, "packed-") > 6 << 20)
        #expect(try program.brumate(["page-server", "--lazy-pages", "-D", store, "-o", "log2"] + server) == 0)
        let restore = ["restore", "-D", store, "--lazy-pages", "-d", "-v4", "-o", "restore.log"]
        #expect(try program.brumate(restore + place + [try port()]) == 0)
        #expect(program.ask() == "ok")
        #expect(try program.dump() == 0)
        #expect(try program.restore() == 0)
        #expect(program.ask() == "ok")
    }

    // MARK: unpack

    /// The pages of a set, as they would be unpacked.
    private func pages(_ folder: String) throws -> [String: [UInt8]] {
        var found: [String: [UInt8]] = [:]
        for folder in [folder, folder + "/shared-pages"] {
            for name in (try? names(folder)) ?? [] where name.hasPrefix("pages-") {
                found[folder + "/" + name] = try readWholeFile(folder + "/" + name)
            }
        }
        return found
    }

    @Test func `become CRIU's again, byte for byte, whenever the order dies`() throws {
        let program = try program()
        // The child waits, too, when it has answered.
        #expect(program.ask() == "ok")
        #expect(try program.dump(["-R"]) == 0)
        // It only waits for questions: the second dump has the same pages, but for a few of the interpreter's.
        let plain = try pages(program.images)
        #expect(try program.dump(["--compress"]) == 0)
        #expect(try pages(program.images).isEmpty)
        #expect(try program.run(["cp", "-a", program.images, program.work + "/copy"]) == 0)
        for fault in ["unpack-written", "unpack-bare", "unpack-sealed"] {
            #expect(try program.run(["sh", "-c", "cp -a \(program.work)/copy/. \(program.images)"]) == 0)
            #expect(try program.brumate(["unpack", "-D", program.images], fault: fault + ":kill") != 0)
            #expect(try program.restore() == 0, "\(fault) \(program.lastLine("restore.log"))")
            #expect(program.ask() == "ok")
            end(program)
        }
        #expect(try program.brumate(["unpack", "-D", program.images]) == 0)
        let unpacked = try pages(program.images)
        #expect(unpacked.count == plain.count && unpacked.count > 3)
        for (name, bytes) in plain {
            let other = unpacked[name] ?? []
            let pages = stride(from: 0, to: bytes.count, by: 4096).map { $0..<($0 + 4096) }
            try #require(bytes.count == other.count, "\(name)")
            let different = pages.filter { bytes[$0] != other[$0] }.count
            #expect(different < 8, "\(name): \(different) of \(pages.count) pages")
        }
        #expect(try bytes(program.images, "packed-") == 0)
        #expect(try names(program.images).contains("integrity.img"))
        #expect(try program.restore() == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
    }

    // MARK: damage

    @Test(arguments: [["--compress"], ["--checksum"], ["--compress=zstd", "--no-checksum"]])
    func `that are damaged are refused before anything is made, whichever file it is`(form: [String]) throws {
        let program = try program()
        #expect(try program.dump(form) == 0)
        let hasSums = !form.contains("--no-checksum")
        let all = try names(program.images).filter { $0.hasSuffix(".img") }
        let shared = try names(program.images + "/shared-pages").map { "shared-pages/" + $0 }
        let subjects = (all + shared).filter { hasSums || $0.contains("packed-") && $0.hasPrefix("packed-") }
        #expect(subjects.count > (hasSums ? 15 : 3))
        for name in subjects {
            let path = program.images + "/" + name
            let good = try readWholeFile(path)
            guard !good.isEmpty else { continue }
            for damage in ["a bit", "the last byte", "cut", "missing"] {
                switch damage {
                case "a bit": try change(path) { $0[$0.count / 2] ^= 4 }
                case "the last byte": try change(path) { $0[$0.count - 1] ^= 0x80 }
                case "cut": try change(path) { $0.removeLast() }
                default: unlink(path)
                }
                #expect(try program.restore() == 1, "\(name): \(damage)")
                let log = program.text("images/restore.log")
                let last = String(name.split(separator: "/").last ?? "")
                // Without hashes nobody knows of what kind the missing one is.
                let tail = hasSums || damage != "missing" ? last : "pages-" + last.dropFirst(7)
                #expect(log.contains(tail), "\(name), \(damage): \(log.suffix(300))")
                // Without hashes of all files, pages are only looked at when they are needed.
                if hasSums { #expect(!log.contains("sown") && program.isGone) }
                let file = try openFile(path, [.writeOnly, .create, .truncate], mode: 0o600)
                try writeAll(good, to: file.number)
            }
        }
        #expect(try program.restore() == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
    }

    @Test func `with files of other images are refused, and so are other parents`() throws {
        let program = try program()
        let folders = (0..<3).map { "\(program.work)/\($0)" }
        for (index, folder) in folders.enumerated() {
            try #require(mkdir(folder, 0o700) == 0)
            let previous = index > 0 ? ["--prev-images-dir", "../\(index - 1)"] : []
            let words = ["dump", "-R", "--track-mem", "-t", "\(program.id)", "-D", folder, "-o", "log", "--checksum"]
            #expect(try program.brumate(words + previous) == 0)
            #expect(program.ask() == "ok")
        }
        let id = program.id
        end(program)
        func restore(_ more: [String] = []) throws -> String {
            let words = ["restore", "-D", folders[2], "-d", "-v4", "-o", "restore.log"]
            let status = try program.brumate(words + more)
            return status == 0 ? "ok" : program.text("2/restore.log")
        }
        let (mine, other) = (folders[2] + "/core-\(id).img", folders[1] + "/core-\(id).img")
        let good = try readWholeFile(mine)
        let foreign = try readWholeFile(other)
        try change(mine) { $0 = foreign }
        #expect(try restore().contains("core-\(id).img"))
        try change(mine) { $0 = good }
        // A page of the first set in the chain.
        let pages = try #require(try names(folders[0]).first { $0.hasPrefix("pages-") })
        try change(folders[0] + "/" + pages) { $0[$0.count / 2] ^= 1 }
        #expect(try restore().contains("\(pages) is damaged"))
        try change(folders[0] + "/" + pages) { $0[$0.count / 2] ^= 1 }
        // A parent that is whole, but another.
        #expect(
            try program.run(["sh", "-c", "mv \(folders[1]) \(folders[1]).old && cp -a \(folders[0]) \(folders[1])"])
                == 0)
        #expect(try restore().contains("does not hold the images that those after it were made from"))
        #expect(try program.run(["sh", "-c", "rm -r \(folders[1]) && mv \(folders[1]).old \(folders[1])"]) == 0)
        // One more image that a restore would read.
        try #require(link(folders[2] + "/files.img", folders[2] + "/filelocks.img") == 0)
        #expect(try restore().contains("filelocks.img"))
        unlink(folders[2] + "/filelocks.img")
        #expect(try restore() == "ok")
        #expect(program.ask() == "ok")
    }

    @Test func `at random damaged are an error or a plan`() throws {
        let program = try Program("block = os.urandom(100_000) + b'x' * 2_000_000\nserve(lambda: None)")
        #expect(try program.dump(["--compress"]) == 0)
        #expect(try program.fuzz(seconds: 3, seed: 20261127) == 0, "\(program.text("log"))")
    }

    @Test func `are taken as they are with --no-verify, and lazy pages are looked at when they are read`() throws {
        let program = try program()
        #expect(try program.dump(["--checksum"]) == 0)
        let largest = try #require(
            try names(program.images).filter { $0.hasPrefix("pages-") }.max {
                try FileStatus.read(program.images + "/" + $0, in: currentDirectory).size
                    < FileStatus.read(program.images + "/" + $1, in: currentDirectory).size
            })
        try change(program.images + "/" + largest) { $0[$0.count / 2] ^= 1 }
        #expect(try program.restore() == 1)
        // The pager finds it, and ends the tree, or the restore is not done yet.
        if try program.restore(["--lazy-pages"]) == 0 {
            while !program.isGone { usleep(1000) }
        }
        while kill(-program.id, 0) == 0 { usleep(1000) }
        let logs = program.text("images/lazy-pages.log") + program.text("images/restore.log")
        #expect(logs.contains("\(largest) is damaged"))
        #expect(try program.restore(["--no-verify"]) == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() != "nobody serves")
    }

    @Test func `lose no page to deduplication, which leaves packed parents alone`() throws {
        let program = try program()
        for (index, form) in [["--compress"], ["--checksum"], ["--checksum"]].enumerated() {
            let folder = "\(program.work)/\(index)"
            try #require(mkdir(folder, 0o700) == 0)
            let previous = index > 0 ? ["--prev-images-dir", "../\(index - 1)", "--auto-dedup"] : []
            let words = ["dump", "-R", "--track-mem", "-t", "\(program.id)", "-D", folder, "-o", "log", "-v4"]
            #expect(try program.brumate(words + previous + form) == 0)
            #expect(program.ask() == "ok")
        }
        #expect(program.text("1/log").contains("because it is packed"))
        end(program)
        let words = ["restore", "-D", program.work + "/2", "-d", "-o", "restore.log"]
        #expect(try program.brumate(words) == 0, "\(program.text("2/restore.log"))")
        #expect(program.ask() == "ok")
    }
}
