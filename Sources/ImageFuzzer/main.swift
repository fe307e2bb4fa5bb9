// Damages images at random and lets the engine read them: ImageFuzzer DIRECTORY SECONDS [SEED].
// Every damage must end in an error or a plan; a trap ends this process, and the files that caused it stay in the
// directory that is printed first.

internal import Diagnostics
internal import Engine
internal import Glibc
internal import Linux
internal import Logging
internal import SystemPackage

/// A small, repeatable source of randomness (xorshift64*).
struct Dice: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return state &* 0x2545_f491_4f6c_dd1d
    }
}

func put(_ bytes: [UInt8], _ path: String) throws(SystemCallError) {
    let file = try openFile(path, [.writeOnly, .create, .truncate])
    try writeAll(bytes, to: file.number)
}

func damage(_ good: [UInt8], _ dice: inout Dice) -> [UInt8] {
    var bytes = good
    for _ in 0..<Int.random(in: 1...4, using: &dice) {
        guard !bytes.isEmpty else { return [0] }
        let at = Int.random(in: 0..<bytes.count, using: &dice)
        switch Int.random(in: 0..<6, using: &dice) {
        case 0: bytes[at] ^= 1 << UInt8.random(in: 0..<8, using: &dice)
        case 1: bytes[at] = UInt8.random(in: 0...255, using: &dice)
        case 2: bytes.removeSubrange(at...)
        case 3: bytes.insert(contentsOf: bytes[at...].prefix(16), at: at)
        case 4:
            bytes.replaceSubrange(
                at..<min(at + 8, bytes.count), with: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])
        default: bytes[at] = [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &dice) ?? 0
        }
    }
    return bytes
}

func run(_ source: String, seconds: Int, seed: UInt64) throws -> Int {
    let folder = "/tmp/brumate-fuzz.\(TaskID.current)"
    unsafe mkdir(folder, 0o700)
    var names: [String] = []
    var good: [String: [UInt8]] = [:]
    for name in try listDirectory(FilePath(source)) where name.string.hasSuffix(".img") {
        // Raw pages say nothing to a reader.
        let bytes = try readWholeFile(source + "/" + name.string)
        good[name.string] = bytes
        if !name.string.hasPrefix("pages-") { names.append(name.string) }
        try put(bytes, folder + "/" + name.string)
    }
    print("damaged images are in \(folder)")
    let log = Logger(label: "fuzzer") { _ in SwiftLogNoOpLogHandler() }
    var dice = Dice(state: seed | 1)
    let end = ContinuousClock.now + .seconds(seconds)
    var (rounds, refused) = (0, 0)
    while ContinuousClock.now < end {
        let victims = (0..<Int.random(in: 1...2, using: &dice)).compactMap { _ in names.randomElement(using: &dice) }
        for name in victims { try put(damage(good[name] ?? [], &dice), folder + "/" + name) }
        // Half of it must come past the hashes.
        do { try checkImages(FilePath(folder), verifies: Bool.random(using: &dice), log: log) } catch { refused += 1 }
        rounds += 1
        for name in victims { try put(good[name] ?? [], folder + "/" + name) }
    }
    for name in good.keys { unsafe unlink(folder + "/" + name) }
    unsafe rmdir(folder)
    print("\(rounds) damaged images read, \(refused) refused, no trap (seed \(seed))")
    return rounds
}

guard CommandLine.arguments.count >= 3, let seconds = Int(CommandLine.arguments[2]) else {
    print("ImageFuzzer DIRECTORY SECONDS [SEED]")
    exit(2)
}
let seed = CommandLine.arguments.count > 3 ? UInt64(CommandLine.arguments[3]) ?? 1 : UInt64.random(in: 1...UInt64.max)
exit(try run(CommandLine.arguments[1], seconds: seconds, seed: seed) > 0 ? 0 : 1)
