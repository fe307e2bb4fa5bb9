internal import Diagnostics
internal import Linux
internal import Procfs
internal import SystemPackage

/// A small process of ours that keeps a parcel between two orders.
///
/// It listens under a name that tells the root of the tree. The first who asks gets the parcel, and the holder ends; it
/// also ends with the root. So there is never more than one who may rely on what was tracked: an order that dies loses it,
/// and the next one counts everything as changed.
public enum TrackingHolder {
    /// The word that makes our program a holder.
    public static let order = "hold-tracking"

    // Its descriptors.
    private static let listener: Int32 = 3, parcel: Int32 = 4, root: Int32 = 5

    private static let unix = 1, packets = 5 | 0o2000000  // AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC

    /// An abstract socket address: the pid namespace, the pid there, and when it began.
    private static func address(of root: TaskID) throws(Failure) -> [UInt8] {
        let namespace = try attempt("look at our pid namespace") { () throws(SystemCallError) in
            try FileStatus.read("/proc/self/ns/pid", in: currentDirectory).inode
        }
        let started = try TaskStat.read(of: root).startTime
        return [UInt8](bytesOf: UInt16(unix)) + [0] + Array("brumate-tracking/\(namespace)/\(root)/\(started)".utf8)
    }

    private static func socket() throws(SystemCallError) -> Descriptor {
        Descriptor(owning: Int32(try systemCall(.socket, unix, packets, 0)))
    }

    /// Whether who is at the other end of a socket may give or have a parcel.
    private static func isTrusted(_ socket: Int32) -> Bool {
        var answer: (pid: Int32, uid: UInt32, gid: UInt32, size: UInt32) = (0, .max, .max, 12)
        do throws(SystemCallError) {
            try withAddress(of: &answer) { (address) throws(SystemCallError) in
                try systemCall(.getsockopt, Int(socket), 1, 17, address, address + 12)  // SO_PEERCRED
            }
            let own = try systemCall(.geteuid)
            return answer.uid == 0 || Int(answer.uid) == own
        } catch { return false }
    }

    /// Takes the parcel of a tree from its holder, which ends; nil if there is none.
    static func take(of root: TaskID) throws(Failure) -> TrackingParcel? {
        let address = try address(of: root)
        do throws(SystemCallError) {
            let connection = try socket()
            do throws(SystemCallError) {
                try address.withConstantAddress { (address, length) throws(SystemCallError) in
                    _ = try systemCall(.connect, Int(connection.number), address, length)
                }
            } catch {
                if error.errno == .ECONNREFUSED { return nil }
                throw error
            }
            guard isTrusted(connection.number) else { return nil }
            try limit(connection.number)
            let (_, numbers) = try SocketMessage.receive(16, from: connection.number)
            for number in numbers.dropFirst() { _ = try? systemCall(.close, Int(number)) }
            guard let number = numbers.first else { return nil }
            let queue = Descriptor(owning: number)
            try limit(queue.number)
            return try TrackingParcel(from: queue.number)
        } catch {
            throw Failure(.vanished, "can't take over the memory tracking of task \(root)", cause: error)
        }
    }

    /// Nobody keeps us waiting for more than five seconds (SO_RCVTIMEO).
    private static func limit(_ socket: Int32) throws(SystemCallError) {
        var time: (Int, Int) = (5, 0)
        try withAddress(of: &time) { (time) throws(SystemCallError) in
            _ = try systemCall(.setsockopt, Int(socket), 1, 20, time, 16)
        }
    }

    /// Starts a holder.
    static func start(_ contents: TrackingParcel, root task: TaskID) throws(Failure) {
        let address = try address(of: task)
        try attempt("keep the memory tracking of task \(task)") { () throws(SystemCallError) in
            // All above the numbers that they get.
            let listening = try socket().duplicate(atLeast: 16)
            let started = ContinuousClock.now
            while true {
                do throws(SystemCallError) {
                    try address.withConstantAddress { (address, length) throws(SystemCallError) in
                        _ = try systemCall(.bind, Int(listening.number), address, length)
                    }
                    break
                } catch {
                    // The holder that gave us the last parcel is on its way out.
                    guard error.errno == .EADDRINUSE, ContinuousClock.now - started < .seconds(2) else { throw error }
                    pause(nanoseconds: 1_000_000)
                }
            }
            try systemCall(.listen, Int(listening.number), 4)
            var pair: (Int32, Int32) = (0, 0)
            try withAddress(of: &pair) { (pair) throws(SystemCallError) in
                _ = try systemCall(.socketpair, unix, packets, 0, pair)
            }
            let near = Descriptor(owning: pair.0)
            let far = try Descriptor(owning: pair.1).duplicate(atLeast: 16)
            try contents.post(to: near.number)
            let pidfd = try task.openHandle().duplicate(atLeast: 16)
            let null = try openFile("/dev/null", .readWrite).duplicate(atLeast: 16)
            _ = try startProgram(
                "/proc/self/exe", arguments: ["brumate", order], environment: [],
                streams: [
                    0: null.number, 1: null.number, 2: null.number, listener: listening.number, parcel: far.number,
                    root: pidfd.number,
                ])
        }
    }

    /// What a holder does: waits for someone who wants the parcel, or for the end of the tree's root.
    public static func hold() -> Int32 {
        _ = try? systemCall(.close_range, Int(root) + 1, Int(UInt32.max), 0)
        _ = try? systemCall(.setsid)
        _ = try? withCString("brumate") { (name) throws(SystemCallError) in try systemCall(.prctl, 15, name) }
        _ = try? withCString("/") { (path) throws(SystemCallError) in try systemCall(.chdir, path) }
        while true {
            var events = [UInt64(UInt32(listener)) | 1 << 32, UInt64(UInt32(root)) | 1 << 32]  // POLLIN
            do throws(SystemCallError) {
                try events.withAddress { (address, _) throws(SystemCallError) in
                    _ = try systemCall(.poll, address, 2, -1)
                }
                if events[1] >> 48 != 0 { return 0 }
                guard events[0] >> 48 != 0 else { continue }
                let connection = Descriptor(
                    owning: Int32(try systemCall(.accept4, Int(listener), 0, 0, 0o2000000)))
                guard isTrusted(connection.number) else { continue }
                // The name is free before the other one knows.
                try systemCall(.close, Int(listener))
                try SocketMessage.send([1], [parcel], to: connection.number)
                return 0
            } catch {
                if error.call != .accept4 { return 1 }
            }
        }
    }
}
