internal import Diagnostics
internal import Engine
internal import Linux
internal import Logging
internal import SystemPackage
internal import Transport

extension Orders {
    /// Where the options say that a page server is.
    static func place(_ options: Options) -> PageServerPlace {
        var place = PageServerPlace()
        place.address = options.address
        place.port = options.port ?? 0
        place.socket = options.pageServerSocket
        if options.tls.enabled {
            var security = TransportSecurity()
            security.authority = options.tls.authority ?? security.authority
            security.revocations = options.tls.revocations ?? security.revocations
            security.certificate = options.tls.certificate ?? security.certificate
            security.key = options.tls.key ?? security.key
            security.verifiesName = options.tls.verifiesName
            place.security = security
        }
        return place
    }

    /// Is a page server for one client.
    static func pageServer(_ session: borrowing Session) throws(Failure) {
        let options = session.options
        var request = PageServerRequest(images: session.imagesPath)
        request.place = place(options)
        request.previousImages = options.previousImagesDirectory
        request.givesPages = options.lazyPages
        request.isSynced = options.sync
        request.deduplicates = options.autoDeduplication
        request.compression = options.compression
        request.verifies = options.verify
        let log = session.log
        try Engine.pageServer(request, log: log) { (port) throws(Failure) in
            log.info("listening on port \(port)")
            if options.port == 0 { printOutput("Listening on port \(port)\n") }
            try Background.tellReady(options)
        }
    }
}

extension Session {
    /// A place in a stream's option; paths are relative to where we were started.
    func place(_ place: StreamPlace?) -> StreamPlace? {
        guard case .path(let path) = place else { return place }
        return .path(startPath.pushing(path))
    }
}

extension Orders {
    /// Sends the images as a stream.
    static func send(_ session: borrowing Session) throws(Failure) {
        guard let place = session.place(session.options.streamTo) else { return }
        try sendStream(session.imagesPath, to: place, isSynced: session.options.sync, log: session.log)
    }

    /// Saves a stream as images.
    static func receive(_ session: borrowing Session) throws(Failure) {
        guard let place = session.place(session.options.streamFrom) else { return }
        try receiveStream(from: place, into: session.imagesPath, isSynced: session.options.sync, log: session.log)
    }

    /// Is the pager of one lazy restore.
    static func lazyPages(_ session: borrowing Session) throws(Failure) {
        let options = session.options
        var request = LazyPagesRequest(images: session.imagesPath)
        request.verifies = options.verify
        if options.pageServer { request.pageServer = place(options) }
        request.restore = Background.number(of: pagerVariable)
        let log = session.logFile ?? 2
        request.startGuard = { () throws(Failure) in try startGuard(log) }
        try Engine.lazyPages(request, log: session.log) { () throws(Failure) in
            if request.restore != nil { Background.leave() } else { try Background.tellReady(options) }
        }
    }

    /// A pager of ours keeps nothing that whoever started the restore left open.
    static func closeStrangers(_ options: Options) {
        guard let own = Background.number(of: pagerVariable) else { return }
        var at: Int32 = 3
        for kept in [own, options.pageServerSocket].compactMap({ $0 }).sorted() where kept >= at {
            if kept > at { _ = try? systemCall(.close_range, Int(at), Int(kept) - 1, 0) }
            at = kept + 1
        }
        _ = try? systemCall(.close_range, Int(at), Int(Int32.max), 0)
    }

    /// The environment variable that tells the guard of a pager its socket.
    private static let guardVariable = "BRUMATE_GUARD"

    private static func startGuard(_ log: Int32) throws(Failure) -> Descriptor {
        let (theirs, ours) = try pagerSockets()
        let socket = Descriptor(owning: ours)
        let end = Descriptor(owning: theirs)
        try attempt("start the pager's guard") { () throws(SystemCallError) in
            _ = try startProgram(
                "/proc/self/exe", arguments: ["brumate", "lazy-pages"], environment: ["\(guardVariable)=3"],
                streams: [2: log, 3: end.number])
        }
        return socket
    }

    /// Guards a pager if that is what this process was started for. Returns its exit status then.
    static func guardPager() -> Int32? {
        guard let number = Background.number(of: guardVariable) else { return nil }
        _ = try? systemCall(.close_range, Int(number) + 1, Int(Int32.max), 0)
        _ = try? systemCall(.setsid)
        do throws(Failure) {
            try Engine.guardPager(Descriptor(owning: number))
            return 0
        } catch {
            printError(error)
            return 1
        }
    }

    /// The environment variable that tells a pager of ours its socket.
    private static let pagerVariable = "BRUMATE_PAGER"

    /// How a restore comes to its pager: the daemon that waits in the work directory, or else one of its own.
    static func pager(
        _ session: borrowing Session
    ) -> @Sendable (Set<TaskID>) throws(Failure) -> PagerConnection {
        var words = ["brumate", "lazy-pages", "--no-default-config", "--log-file", "lazy-pages.log"]
        let options = session.options
        words += ["--images-dir", session.imagesPath.string, "--work-dir", session.workPath.string]
        words += ["--verbosity=\(options.verbosity)"]
        if !options.verify { words.append("--no-verify") }
        if options.pageServer {
            words.append("--page-server")
            if let address = options.address { words += ["--address", address] }
            if let port = options.port { words += ["--port", "\(port)"] }
            if let socket = options.pageServerSocket { words += ["--ps-socket", "\(socket)"] }
            if options.tls.enabled {
                words.append("--tls")
                if !options.tls.verifiesName { words.append("--tls-no-cn-verify") }
                for (name, path) in [
                    ("cacert", options.tls.authority), ("cacrl", options.tls.revocations),
                    ("cert", options.tls.certificate), ("key", options.tls.key),
                ] {
                    if let path { words += ["--tls-\(name)", path.string] }
                }
            }
        }
        let (arguments, log, passed) = (words, session.log, options.pageServer ? options.pageServerSocket : nil)
        let hasPages = !options.pageServer
        return { (taken) throws(Failure) in
            if let daemon = try connectToPager() { return daemon }
            log.info("no lazy-pages daemon waits here: a pager is started, its log is lazy-pages.log")
            return PagerConnection(
                try startPager(arguments, taken: taken, passed: passed), isOurs: true, hasPages: hasPages)
        }
    }

    /// Starts a pager of our own, whose pid is not one of those that the tree needs.
    private static func startPager(
        _ arguments: [String], taken: Set<TaskID>, passed: Int32?
    ) throws(Failure) -> Descriptor {
        // Those whose pids are taken wait as long, so that each gets another.
        var failed: [TaskID] = []
        var sockets: [Int32] = []
        defer {
            for socket in sockets { _ = try? systemCall(.close, Int(socket)) }
            for pager in failed { _ = try? waitForProgram(pager) }
        }
        while true {
            let (theirs, ours) = try pagerSockets()
            let socket = Descriptor(owning: ours)
            let end = Descriptor(owning: theirs)
            let pager = try attempt("start the pager") { () throws(SystemCallError) in
                // Above what the user passes.
                let copy = try end.duplicate(atLeast: 100)
                var streams = [copy.number: copy.number]
                if let passed { streams[passed] = passed }
                return try startProgram(
                    "/proc/self/exe", arguments: arguments, environment: ["\(pagerVariable)=\(copy.number)"],
                    streams: streams)
            }
            guard taken.contains(pager) else { return socket }
            failed.append(pager)
            sockets.append(socket.release())
        }
    }
}

/// Servers that go into the background (`--daemon`).
enum Background {
    /// The environment variable that tells the process in the background where to say that it is ready.
    private static let variable = "BRUMATE_BACKGROUND"

    /// Starts a server that is to run in the background as a process of its own, and waits until it is ready. Returns our
    /// exit status; nil if this process is to do the work itself.
    static func start(_ invocation: Invocation) -> Int32? {
        guard case .order(let action) = invocation.request, invocation.failure == nil,
            action == .pageServer || action == .lazyPages, invocation.options.restoreDetached,
            descriptor == nil
        else { return nil }
        do throws(SystemCallError) {
            let words = try readWholeFile("/proc/self/cmdline").split(separator: 0, omittingEmptySubsequences: false)
            var pipe: (Int32, Int32) = (0, 0)
            try withAddress(of: &pipe) { (pipe) throws(SystemCallError) in try systemCall(.pipe2, pipe, 0o2000000) }
            let reading = Descriptor(owning: pipe.0)
            let writing = Descriptor(owning: pipe.1)
            // Above what the user passes.
            let number = Int32(try systemCall(.fcntl, Int(writing.number), 1030, 100))
            let child = try startProgram(
                "/proc/self/exe", arguments: words.dropLast().map { String(decoding: $0, as: UTF8.self) },
                environment: ["\(variable)=\(number)"], streams: [number: number])
            try systemCall(.close, Int(number))
            try writing.close()
            var byte: UInt8 = 0
            let from = Int(reading.number)
            let got = try withAddress(of: &byte) { (address) throws(SystemCallError) in
                try systemCall(.read, from, address, 1)
            }
            if got == 1 { return 0 }
            return try waitForProgram(child) ?? 1
        } catch {
            printError(Failure(.denied, "can't go into the background", cause: error))
            return 1
        }
    }

    /// Where to say that we are ready, if we are in the background.
    private static var descriptor: Int32? { number(of: variable) }

    /// The descriptor that an environment variable names.
    static func number(of variable: String) -> Int32? {
        let text = (try? readWholeFile("/proc/self/environ")) ?? []
        let start = Array("\(variable)=".utf8)
        let entry = text.split(separator: 0).first { $0.starts(with: start) }
        return entry.flatMap { Int32(String(decoding: $0.dropFirst(start.count), as: UTF8.self)) }
    }

    /// Tells whoever waits for it that a server is ready: the pid file, `--status-fd`, the process that started us.
    static func tellReady(_ options: Options) throws(Failure) {
        if let path = options.pidfile {
            try attempt("write the pid file \(path.string)", code: .conflict, advice: "Remove an older one first") {
                () throws(SystemCallError) in
                let file = try openFile(path, [.writeOnly, .create, .exclusive], mode: 0o600)
                try writeAll(Array("\(TaskID.current)".utf8), to: file.number)
            }
        }
        try sayReady(options)
        if descriptor != nil { leave() }
    }

    /// Says so by descriptor.
    static func sayReady(_ options: Options) throws(Failure) {
        for number in [options.statusDescriptor, descriptor].compactMap({ $0 }) {
            try attempt("say by descriptor \(number) that we are ready", code: .usage, advice: "Check --status-fd") {
                () throws(SystemCallError) in try writeAll([0], to: number)
            }
            _ = try? systemCall(.close, Int(number))
        }
    }

    /// Leaves the session and the standard streams of whoever started us.
    static func leave() {
        _ = try? systemCall(.setsid)
        // Who waits for the end of our output waits no longer.
        guard let nothing = try? openFile("/dev/null", .readWrite) else { return }
        for number in 0...2 { _ = try? systemCall(.dup3, Int(nothing.number), number, 0) }
    }
}
