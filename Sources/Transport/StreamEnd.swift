public import Diagnostics
public import Linux

/// One end of a byte stream: a pipe, a file, or a connected socket.
public final class StreamEnd {
    /// What a stream runs through.
    public enum Kind: Sendable {
        /// A pipe: nobody answers.
        case pipe
        /// A file, or a block device.
        case file
        /// A socket: the other end can answer.
        case socket
    }

    private var file: Descriptor?
    /// How it is called in messages.
    public let name: String
    /// What it runs through.
    public let kind: Kind

    /// Looks at what a descriptor is.
    ///
    /// - Throws: it is something that no stream can go through, such as a terminal.
    public init(_ file: consuming Descriptor, name: String) throws(Failure) {
        let number = file.number
        let status = try attempt("look at \(name)") { () throws(SystemCallError) in try FileStatus.read(in: number) }
        self.file = consume file
        self.name = name
        switch status.kind {
        case .fifo:
            kind = .pipe
            _ = try? systemCall(.fcntl, Int(number), 1031, 1 << 20)  // F_SETPIPE_SZ
        case .regular, .blockDevice: kind = .file
        case .socket:
            kind = .socket
            let type = try attempt("look at \(name)") { () throws(SystemCallError) in try socketOption(number, 3) }
            guard type == 1 else {
                throw Failure(.usage, "\(name) is a socket that keeps no order: it must be a stream")
            }
            Connection.noticeVanishedPeer(number)
        default:
            throw Failure(.usage, "\(name) is no pipe, socket or file: images can't go through it")
        }
    }

    private func number() throws(Failure) -> Int {
        guard let number = file?.number else { throw Failure(.bug, "\(name) is closed") }
        return Int(number)
    }

    private func broken(_ error: SystemCallError) -> Failure {
        switch error.errno {
        case .EPIPE, .ECONNRESET:
            Failure(.vanished, "who reads the stream (\(name)) is gone before its end", cause: error)
        case .ENOSPC, .EDQUOT, .EFBIG:
            Failure(.denied, "there is no room for the stream (\(name))", advice: "Make room", cause: error)
        default: Failure(.vanished, "the stream (\(name)) broke", cause: error)
        }
    }

    /// Writes bytes of our memory.
    public func send(from address: Int, count: Int) throws(Failure) {
        let number = try number()
        var done = 0
        while done < count {
            do throws(SystemCallError) {
                done +=
                    kind == .socket
                    ? try systemCall(.sendto, number, address + done, count - done, 0x4000, 0, 0)  // MSG_NOSIGNAL
                    : try systemCall(.write, number, address + done, count - done)
            } catch {
                guard error.errno == .EAGAIN else { throw broken(error) }
                _ = try? poll(Int32(number), for: StreamEnd.writable, milliseconds: -1)
            }
        }
    }

    private static let readable: Int16 = 1, writable: Int16 = 4, failed: Int16 = 8

    /// Writes a trivial value.
    public func send<T: BitwiseCopyable>(_ value: T) throws(Failure) {
        var bytes = [UInt8](bytesOf: value)
        try bytes.withAddress { (address, count) throws(Failure) in try send(from: address, count: count) }
    }

    /// Whether something can be read at once.
    public var isReadable: Bool {
        guard let number = try? number() else { return false }
        return ((try? poll(Int32(number), for: StreamEnd.readable)) ?? 0) != 0
    }

    /// Reads `count` bytes; fewer if the stream ends.
    public func receive(into address: Int, count: Int) throws(Failure) -> Int {
        let number = try number()
        var done = 0
        while done < count {
            do throws(SystemCallError) {
                let got = try systemCall(.read, number, address + done, count - done)
                if got == 0 { break }
                done += got
            } catch {
                guard error.errno == .EAGAIN else { throw broken(error) }
                _ = try? poll(Int32(number), for: StreamEnd.readable, milliseconds: -1)
            }
        }
        return done
    }

    /// Waits until everything is out of our hands: on the disk, or read by the other end of a pipe.
    public func flush(sync: Bool) throws(Failure) {
        let number = try number()
        switch kind {
        case .socket: return
        case .file:
            guard sync else { return }
            do throws(SystemCallError) { try systemCall(.fsync, number) } catch { throw broken(error) }
        case .pipe:
            while true {
                // In this order: who has read everything may go.
                let found = (try? poll(Int32(number), for: 0)) ?? 0
                var waiting: Int32 = 0
                do throws(SystemCallError) {
                    try withAddress(of: &waiting) { (address) throws(SystemCallError) in
                        _ = try systemCall(.ioctl, number, 0x541b, address)  // FIONREAD
                    }
                } catch { throw broken(error) }
                if waiting == 0 { return }
                if found & StreamEnd.failed != 0 { throw broken(SystemCallError(.write, .EPIPE)) }
                pause(nanoseconds: 200_000)
            }
        }
    }

    /// Closes it: the other end sees the end.
    public func close() { file = nil }
}
