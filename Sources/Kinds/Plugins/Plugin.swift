public import Diagnostics
public import Linux
internal import SystemPackage

/// A program that knows files which we don't, in a process of its own. It is spoken to over a socket, its standard input.
public final class Plugin {
    /// The name of its file.
    public let name: String
    private let id: TaskID
    private let socket: Int32
    private var claims: [Claim] = []
    private var isLost = false
    private var hasEnded = false

    /// How long an answer may take.
    static let patience = Duration.seconds(10)
    /// How long it may take to end.
    private static let grace = Duration.seconds(1)
    /// Longest state of a file.
    public static let mostState = PluginMessage.longest - PluginMessage.longestText
    /// The version of the protocol.
    static let version = 1

    /// Starts the program. It is greeted separately, so that several get ready at the same time.
    init(_ name: String, in directory: FilePath) throws(Failure) {
        self.name = name
        var pair: (Int32, Int32) = (0, 0)
        let path = directory.appending(name)
        (id, socket) = try attempt("start the plugin \(path.string)", advice: "Remove it, or pass another --libdir") {
            () throws(SystemCallError) in
            try withAddress(of: &pair) { (pair) throws(SystemCallError) in
                try systemCall(.socketpair, 1, 1 | 0o2000000, 0, pair)  // AF_UNIX, SOCK_STREAM
            }
            let ours = Descriptor(owning: pair.0)
            let theirs = Descriptor(owning: pair.1)
            let id = try startProgram(
                path, arguments: [path.string], environment: [], streams: [0: theirs.number, 1: 2])
            return (id, ours.release())
        }
    }

    deinit { end() }

    /// Lets it go: at the end of its socket it exits, or is killed.
    func end() {
        guard !hasEnded else { return }
        hasEnded = true
        _ = try? systemCall(.close, Int(socket))
        if isLost { _ = try? systemCall(.kill, Int(id.rawValue), 9) }
        if waitForEnd(Plugin.grace) { return }
        _ = try? systemCall(.kill, Int(id.rawValue), 9)
        // Killed it ends, unless a driver holds it: that is not waited for.
        _ = waitForEnd(.milliseconds(100))
    }

    private func waitForEnd(_ time: Duration) -> Bool {
        let deadline = ContinuousClock.now + time
        while ContinuousClock.now < deadline {
            do throws(SystemCallError) {
                if try waitForProgram(id, waits: false) != nil { return true }
            } catch { return true }
            pause(nanoseconds: 1_000_000)
        }
        return false
    }

    // MARK: claims

    /// What it knows.
    private enum Claim {
        /// Devices of a type (`c` or `b`) with a major and perhaps a minor number.
        case device(FileStatus.Kind, major: UInt32, minor: UInt32?)
        /// Links in /proc/PID/fd with this text, or this beginning.
        case link([UInt8], isBeginning: Bool)

        init?(_ text: String) {
            let words = text.split(separator: " ", maxSplits: 1).map(String.init)
            guard words.count == 2 else { return nil }
            switch words[0] {
            case "link":
                let isBeginning = words[1].hasSuffix("*")
                let text = isBeginning ? String(words[1].dropLast()) : words[1]
                guard !text.isEmpty else { return nil }
                self = .link(Array(text.utf8), isBeginning: isBeginning)
            case "device":
                let parts = words[1].split(whereSeparator: { $0 == " " || $0 == ":" }).map(String.init)
                guard parts.count == 3, parts[0] == "c" || parts[0] == "b", let major = UInt32(parts[1]) else {
                    return nil
                }
                let minor = UInt32(parts[2])
                guard minor != nil || parts[2] == "*" else { return nil }
                self = .device(parts[0] == "c" ? .characterDevice : .blockDevice, major: major, minor: minor)
            default: return nil
            }
        }

        func fits(_ status: FileStatus, _ link: [UInt8]) -> Bool {
            switch self {
            case .device(let kind, let major, let minor):
                status.kind == kind && status.representedMajor == major
                    && (minor.map { $0 == status.representedMinor } ?? true)
            case .link(let text, let isBeginning): isBeginning ? link.starts(with: text) : link == text
            }
        }
    }

    /// Whether it knows a file.
    func knows(_ status: FileStatus, _ link: [UInt8]) -> Bool { claims.contains { $0.fits(status, link) } }

    /// Tells it what is to be done, and asks what it knows.
    func greet(_ order: String, root: TaskID?) throws(Failure) {
        var hello = PluginMessage("hello")
        hello.add("protocol", "\(Plugin.version)")
        hello.add("order", order)
        if let root { hello.add("root", "\(root)") }
        let answer = try ask(hello).answer
        for text in answer.all("claim") {
            guard let claim = Claim(text) else {
                throw broken("it claims \(text.prefix(80)), which is neither a device nor a link")
            }
            claims.append(claim)
        }
    }

    // MARK: requests

    /// Asks it for something. Returns the answer and the descriptor that came with it.
    ///
    /// - Parameters:
    ///   - descriptor: one of ours, of which it gets a copy.
    ///   - wantsDescriptor: whether an answer must come with a descriptor; else none may.
    public func ask(
        _ request: PluginMessage, descriptor: Int32? = nil
    ) throws(Failure) -> (answer: PluginMessage, descriptor: Int32?) {
        guard !isLost else { throw Failure(.denied, "the plugin \(name) has failed before") }
        let deadline = ContinuousClock.now + Plugin.patience
        let received: [Int32]
        let bytes: [UInt8]
        do throws(SystemCallError) {
            let text = request.encoded
            guard text.count <= PluginMessage.longest else { throw SystemCallError(.sendmsg, .EMSGSIZE) }
            try send([UInt8](bytesOf: UInt32(text.count).littleEndian) + text, descriptor, deadline)
            (bytes, received) = try receive(deadline)
        } catch {
            let why =
                switch error.errno {
                case .ETIMEDOUT: "it did not answer within \(Plugin.patience.components.seconds) seconds"
                case .EPIPE, .ECONNRESET: "it has ended"
                case .EMSGSIZE: "a message is longer than \(PluginMessage.longest >> 20) MiB"
                default: "it can't be spoken to"
                }
            throw broken(why, cause: error)
        }
        var isKept = false
        defer { if !isKept { for number in received { _ = try? systemCall(.close, Int(number)) } } }
        guard let answer = PluginMessage(decoding: bytes) else { throw broken("its answer is no message") }
        switch answer.word {
        case "ok": break
        case "refused":
            let reason = String(answer.first("reason")?.prefix(500) ?? "it gives no reason")
            throw Failure(
                .unsupported, "the plugin \(name) refuses it: \(reason)",
                advice: answer.first("advice").map { String($0.prefix(500)) })
        default: throw broken("it answers \(answer.word.prefix(40)) to \(request.word)")
        }
        guard received.count <= 1 else { throw broken("it sent \(received.count) descriptors where one can be used") }
        isKept = true
        return (answer, received.first)
    }

    /// It is not asked again, and is killed.
    public func broken(_ why: String, cause: SystemCallError? = nil) -> Failure {
        isLost = true
        end()
        return Failure(
            .denied, "the plugin \(name) failed: \(why)", advice: "See its own output, or leave it out (--libdir)",
            cause: cause)
    }

    /// Waits until the socket can be read or written.
    private func wait(for events: Int16, _ deadline: ContinuousClock.Instant) throws(SystemCallError) {
        let left = (deadline - ContinuousClock.now).components
        let milliseconds = left.seconds * 1000 + left.attoseconds / 1_000_000_000_000_000
        guard milliseconds > 0 else { throw SystemCallError(.poll, .ETIMEDOUT) }
        let ready = try poll(socket, for: events, milliseconds: Int(milliseconds))
        if ready == 0 { throw SystemCallError(.poll, .ETIMEDOUT) }
    }

    private func send(
        _ bytes: [UInt8], _ descriptor: Int32?, _ deadline: ContinuousClock.Instant
    ) throws(SystemCallError) {
        // struct cmsghdr of SOL_SOCKET and SCM_RIGHTS, one descriptor, padding.
        var control: (UInt64, Int32, Int32, Int32, Int32) = (20, 1, 1, descriptor ?? -1, 0)
        var done = 0
        while done < bytes.count {
            try wait(for: 4, deadline)  // POLLOUT
            let hasControl = descriptor != nil && done == 0
            let start = done
            do throws(SystemCallError) {
                done += try bytes.withConstantAddress { (bytes, count) throws(SystemCallError) in
                    try withAddress(of: &control) { (control) throws(SystemCallError) in
                        try exchange(
                            .sendmsg, bytes + start, count - start, control: hasControl ? control : 0,
                            hasControl ? 24 : 0, flags: 0x4040  // MSG_DONTWAIT, MSG_NOSIGNAL
                        ).count
                    }
                }
            } catch { if error.errno != .EAGAIN { throw error } }
        }
    }

    private func receive(_ deadline: ContinuousClock.Instant) throws(SystemCallError) -> ([UInt8], [Int32]) {
        var received: [Int32] = []
        do throws(SystemCallError) {
            let head = try receive(4, &received, deadline)
            let length = Int(head.load(UInt32.self) ?? 0)
            guard length <= PluginMessage.longest else { throw SystemCallError(.recvmsg, .EMSGSIZE) }
            return (try receive(length, &received, deadline), received)
        } catch {
            for number in received { _ = try? systemCall(.close, Int(number)) }
            throw error
        }
    }

    private func receive(
        _ count: Int, _ received: inout [Int32], _ deadline: ContinuousClock.Instant
    ) throws(SystemCallError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: min(count, 1 << 16))
        var done = 0
        while done < count {
            // Room grows with what has come, not with what was announced.
            if done == bytes.count { bytes += [UInt8](repeating: 0, count: min(count - done, bytes.count)) }
            try wait(for: 1, deadline)  // POLLIN
            var control = [UInt8](repeating: 0, count: 64)
            let start = done
            do throws(SystemCallError) {
                let got = try bytes.withAddress { (bytes, count) throws(SystemCallError) in
                    try control.withAddress { (control, room) throws(SystemCallError) in
                        try exchange(
                            .recvmsg, bytes + start, count - start, control: control, room,
                            flags: 0x4000_0040)  // MSG_CMSG_CLOEXEC, MSG_DONTWAIT
                    }
                }
                received += Plugin.descriptors(Array(control.prefix(got.control)))
                if got.count == 0 { throw SystemCallError(.recvmsg, .ECONNRESET) }
                done += got.count
            } catch { if error.errno != .EAGAIN { throw error } }
        }
        return bytes
    }

    private func exchange(
        _ call: SystemCall, _ bytes: Int, _ count: Int, control: Int, _ room: Int, flags: Int
    ) throws(SystemCallError) -> (count: Int, control: Int) {
        var vector: (Int, Int) = (bytes, count)
        return try withAddress(of: &vector) { (vector) throws(SystemCallError) in
            var message: (Int, Int, Int, Int, Int, Int, Int) = (0, 0, vector, 1, control, room, 0)
            let done = try withAddress(of: &message) { (message) throws(SystemCallError) in
                try systemCall(call, Int(socket), message, flags)
            }
            return (done, message.5)
        }
    }

    /// The descriptors in received control messages.
    private static func descriptors(_ control: [UInt8]) -> [Int32] {
        var found: [Int32] = []
        var at = 0
        while let length = control.load(UInt64.self, at: at).map({ Int(clamping: $0) }), length >= 16,
            length <= control.count - at
        {
            if control.load(Int32.self, at: at + 8) == 1, control.load(Int32.self, at: at + 12) == 1 {
                for place in stride(from: at + 16, through: at + length - 4, by: 4) {
                    if let number = control.load(Int32.self, at: place) { found.append(number) }
                }
            }
            at += (length + 7) & ~7
        }
        return found
    }
}
