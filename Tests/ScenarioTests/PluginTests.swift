import Glibc
import Linux
import Testing

/// Files and mappings that a plugin knows.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `A plugin` {
    /// The plugin in docs/plugins.md.
    private static let example: String = {
        let text = String(decoding: (try? readWholeFile("docs/plugins.md")) ?? [], as: UTF8.self)
        guard let start = text.firstRange(of: "```python\n"), let end = text.lastIndex(of: "}") else { return "" }
        let rest = text[start.upperBound...]
        return rest.firstRange(of: "```").map { String(rest[..<$0.lowerBound]) } ?? String(text[..<end])
    }()

    /// Puts a plugin where it can be found. Returns what names its directory.
    private func install(_ source: String, for program: Program, named name: String = "latency") throws -> [String] {
        let folder = program.work + "/plugins"
        if access(folder, F_OK) != 0 { try #require(mkdir(folder, 0o755) == 0) }
        let path = "\(folder)/\(name)"
        unlink(path)
        let file = open(path, O_WRONLY | O_CREAT, 0o755)
        try writeAll(Array(source.utf8), to: file)
        close(file)
        try #require(chmod(path, 0o755) == 0)
        return ["-L", folder]
    }

    private static let latency = """
        f = os.open('/dev/cpu_dma_latency', os.O_RDWR); os.write(f, struct.pack('i', 4321)); g = os.dup(f)
        def check():
            now = [struct.unpack('i', os.pread(n, 4, 0))[0] for n in (f, g)]
            if now != [4321, 4321]: return 'latency %r' % now
            if os.stat(f).st_rdev != os.stat('/dev/cpu_dma_latency').st_rdev: return 'another device'
        serve(check)
        """

    @Test func `dumps a device and makes it again`() throws {
        let program = try Program(Self.latency)
        #expect(program.ask() == "ok")
        #expect(try program.dump() != 0, "without a plugin it is refused")
        let refusal = program.lastLine("dump.log")
        #expect(refusal.contains("/dev/cpu_dma_latency") && refusal.contains("devices with the numbers"), "\(refusal)")
        let options = try install(Self.example, for: program)
        try #require(try program.dump(options) == 0, "\(program.lastLine("dump.log"))")
        #expect(try program.restore() != 0, "without the plugin there is no restore")
        let missing = program.lastLine("restore.log")
        #expect(missing.contains("the plugin latency dumped it"), "\(missing)")
        try #require(try program.restore(options) == 0, "\(program.lastLine("restore.log"))")
        let answer = program.ask()
        #expect(answer == "ok")
    }

    @Test func `can say where device memory is`() throws {
        let program = try Program(
            """
            import hashlib
            path = '/sys/kernel/btf/vmlinux'
            f = os.open(path, os.O_RDONLY)
            if not os.path.exists(path): raise SystemExit('no BTF')
            m = mmap.mmap(f, 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ); os.close(f)
            def check():
                lines = [l for l in open('/proc/self/maps') if path in l]
                if len(lines) != 1 or ' r--p ' not in lines[0]: return repr(lines)
                with open(path, 'rb') as original:
                    if bytes(m) != original.read(8192): return 'other contents'
            serve(check)
            """)
        #expect(program.ask() == "ok")
        #expect(try program.dump() != 0)
        let refusal = program.lastLine("dump.log")
        #expect(refusal.contains("device memory") && refusal.contains("plugin"), "\(refusal)")
        let source = Self.example.replacing("/dev/cpu_dma_latency", with: "/sys/kernel/btf/*")
            .replacing("os.pread(descriptors[0], 4, 0)", with: "b'four'")
            .replacing("os.write(device, state)", with: "assert state == b'four'")
            .replacing("word == 'finish'", with: "word == 'map'")
            .replacing(
                "    else:\n        send('refused', {'reason': 'it can",
                with:
                    "    elif word == 'finish':\n        send('ok')\n    else:\n        send('refused', {'reason': 'it can"
            )
        let options = try install(source, for: program)
        try #require(try program.dump(options) == 0, "\(program.lastLine("dump.log"))")
        try #require(try program.restore(options) == 0, "\(program.lastLine("restore.log"))")
        let answer = program.ask()
        #expect(answer == "ok")
    }

    @Test func `that misbehaves harms nobody`() throws {
        let program = try Program(Self.latency)
        #expect(program.ask() == "ok")
        let dump = "send('ok', state=latency)"
        for (bad, words) in [
            ("raise SystemExit", "it has ended"),
            ("os.kill(os.getpid(), 9)", "it has ended"),
            ("peer.sendall(b'\\x05\\0\\0\\0hello')", "its answer is no message"),
            ("peer.sendall(b'\\xff\\xff\\xff\\xff')", "longer than 16 MiB"),
            ("peer.sendall(b'\\x05\\0'); peer.close(); os.close(0)", "it has ended"),
            ("send('maybe')", "it answers maybe to dump"),
            ("send('ok', descriptors=[1])", "it sent a descriptor at a dump"),
            ("send('ok', descriptors=[1, 1, 1])", "it sent 3 descriptors"),
            ("send('refused', {'reason': 'it is Tuesday', 'advice': 'Wait'})", "refuses it: it is Tuesday. Wait."),
            ("import time; time.sleep(1000)", "did not answer within 10 seconds"),
        ] {
            let options = try install(Self.example.replacing(dump, with: bad), for: program)
            #expect(try program.dump(options) != 0)
            let reason = program.lastLine("dump.log")
            #expect(reason.contains("the plugin latency") && reason.contains(words), "\(bad): \(reason)")
            #expect(reason.contains("/dev/cpu_dma_latency"), "\(reason)")
            #expect(try program.run(["pgrep", "-f", program.work + "/plugins/latency"]) == 1, "it lives on")
            #expect(program.ask() == "ok")
        }
        // Before anything is stopped.
        var options = try install(Self.example.replacing("link /dev", with: "lynx /dev"), for: program)
        #expect(try program.dump(options) != 0)
        #expect(program.lastLine("dump.log").contains("it claims lynx /dev"))
        options = try install("no program", for: program)
        #expect(try program.dump(options) != 0)
        #expect(program.lastLine("dump.log").contains("start the plugin"))
        #expect(try program.dump(["-L", "/nowhere"]) != 0)
        #expect(program.lastLine("dump.log").contains("/nowhere"))
        #expect(program.ask() == "ok")
        // At a restore nothing is left of the tree, and it can be tried again.
        options = try install(Self.example, for: program)
        try #require(try program.dump(options) == 0, "\(program.lastLine("dump.log"))")
        let restore = "send('ok', descriptors=[device])"
        for (bad, words) in [
            ("send('ok')", "it sent no descriptor"), ("raise SystemExit", "it has ended"),
            ("send('refused', {'reason': 'too late'})", "too late"),
        ] {
            options = try install(Self.example.replacing(restore, with: bad), for: program)
            #expect(try program.restore(options) != 0)
            #expect(program.lastLine("restore.log").contains(words), "\(program.lastLine("restore.log"))")
            #expect(program.isGone)
        }
        options = try install(
            Self.example.replacing("'finish':\n        send('ok')", with: "'finish':\n        send('refused')"),
            for: program)
        #expect(try program.restore(options) != 0)
        #expect(program.lastLine("restore.log").contains("it gives no reason"))
        #expect(program.isGone)
        options = try install(Self.example, for: program)
        try #require(try program.restore(options) == 0, "\(program.lastLine("restore.log"))")
        #expect(program.ask() == "ok")
    }
}
