import Brumate
import Engine
import Linux
import SystemPackage
import Testing

@Suite struct `The command line is CRIU's` {
    private func read(_ words: String...) -> Invocation { Invocation(words.map { Word($0) }, machine: "/nonexistent") }

    @Test func `as its test suite calls it`() {
        let dump = read(
            "dump", "--no-default-config", "--log-file", "dump.log", "--images-dir", "/tmp", "--verbosity=4", "--tree",
            "66",
            "--timeout", "10", "--pre-dump-mode", "splice")
        #expect(dump.failure == nil && dump.request == .order(.dump))
        #expect(dump.options.tree == TaskID(66) && dump.options.verbosity == 4 && dump.options.timeout == .seconds(10))
        let check = read("check", "--no-default-config", "-verbosity=0", "--feature", "userns")
        #expect(check.failure == nil && check.options.verbosity == 0 && check.options.checkFeatures == ["userns"])
    }

    @Test func `letters, counts and abbreviations`() {
        #expect(read("dump", "-t1", "-v4").options.verbosity == 4)
        #expect(read("dump", "-t", "1", "--leave-r").options.ending == .running)
        #expect(read("dump", "-t", "1", "--shell-job", "--no-shell-job").options.shellJob == false)
        #expect(read("dump", "-t", "1", "--ghost-limit", "8M").options.ghostLimit == 8 << 20)
        #expect(read("restore", "-d", "-D", "/x", "--exec-cmd").failure != nil)
        // What only we have makes nothing of CRIU's ambiguous.
        #expect(read("dump", "-t", "1", "--stre").options.stream)
    }

    @Test func `where a stream goes`() {
        for (word, place) in [
            ("-", .standard), ("5", .descriptor(5)), ("./5", .path("./5")), ("|ssh host", .command("ssh host")),
        ] as [(String, StreamPlace)] {
            #expect(read("dump", "-t", "1", "--stream-to", word).options.streamTo == place)
        }
        #expect(read("restore", "--stream-from", "-").options.streamFrom == .standard)
        for other in [["--prev-images-dir", "x"], ["--page-server"], ["--lazy-pages"], ["--stream-from", "-"]] {
            let words = ["dump", "-t", "1", "--stream-to", "-"] + other
            #expect(Invocation(words.map { Word($0) }, machine: "/nonexistent").failure != nil, "\(other)")
        }
        #expect(read("receive", "-D", "/x").failure != nil && read("send", "-D", "/x").failure != nil)
    }

    @Test func `nonsense is refused`() {
        for words in [
            ["dump"], ["fly"], ["dump", "-t", "x"], ["dump", "-t", "1", "--no-such"], ["restore", "--leave"], [],
        ] {
            #expect(Invocation(words.map { Word($0) }, machine: "/nonexistent").failure != nil, "\(words)")
        }
    }
}
