public import Diagnostics
public import Linux
public import Remote

/// Carries descriptors into puppets through one inherited socket (SCM_RIGHTS), up to 253 a message.
public final class Courier {
    private let ours: Descriptor
    /// The number of the socket in every puppet.
    public let remote: RemoteDescriptor
    private let theirs: Descriptor

    /// Makes the socket pair.
    ///
    /// - Parameter number: a descriptor number that no restored task uses; ours must be free at that number too.
    public init(at number: Int32) throws(Failure) {
        var pair: (Int32, Int32) = (0, 0)
        try attempt("create a socket pair") { () throws(SystemCallError) in
            try withAddress(of: &pair) { (pair) throws(SystemCallError) in
                try systemCall(.socketpair, 1, 5 | 0o2000000, 0, pair)  // AF_UNIX, SOCK_SEQPACKET
            }
            // Either end may have got the number that one is to have: both go above it first.
            let low = Descriptor(owning: pair.0)
            let high = Descriptor(owning: pair.1)
            let kept = try low.duplicate(atLeast: number + 1)
            let passed = try high.duplicate(atLeast: number + 1)
            try low.close()
            try high.close()
            try systemCall(.dup3, Int(passed.number), Int(number), 0)  // inherited
            pair.0 = kept.release()
        }
        ours = Descriptor(owning: pair.0)
        theirs = Descriptor(owning: number)
        remote = RemoteDescriptor(number)
    }

    /// The most descriptors that the kernel takes in one message (SCM_MAX_FD).
    static let most = 253

    /// Descriptors of ours that the kernel refuses to send: io_urings. Puppets fetch them themselves.
    public var unsendable: Set<Int32> = []

    /// Hands copies of our descriptors to a puppet. Returns their numbers there, the lowest that were free.
    public func deliver(_ numbers: [Int32], to puppet: Puppet) throws(Failure) -> [RemoteDescriptor] {
        guard numbers.contains(where: unsendable.contains) else { return try send(numbers, to: puppet) }
        let ourselves = try attempt("open a pidfd of our own") { () throws(SystemCallError) in
            try TaskID.current.openHandle()
        }
        // It goes out of the way, so that what arrives gets the lowest numbers.
        let low = try send([ourselves.number], to: puppet)[0]
        var start = Batch()
        let moved = start.add(
            .fcntl, .descriptor(low), .value(1030), .value(Int(remote.number) + 1), doing: "move a descriptor away")
        start.add(.close, .descriptor(low), doing: "close a descriptor")
        let source = RemoteDescriptor(Int32(try puppet.run(start)[moved]))
        var arrived: [RemoteDescriptor] = []
        var next = 0
        while next < numbers.count {
            let stretch = numbers[next...].prefix { !unsendable.contains($0) }
            arrived += try send(Array(stretch), to: puppet)
            next += stretch.count
            guard next < numbers.count else { break }
            var fetch = Batch()
            let slot = fetch.add(
                .pidfd_getfd, .descriptor(source), .value(Int(numbers[next])), .value(0), doing: "fetch a descriptor")
            // What is fetched is closed on exec, what is received is not.
            fetch.add(.fcntl, .result(slot), .value(2), .value(0), doing: "fetch a descriptor")
            arrived.append(RemoteDescriptor(Int32(try puppet.run(fetch)[slot])))
            next += 1
        }
        var end = Batch()
        end.add(.close, .descriptor(source), doing: "close a descriptor")
        try puppet.run(end)
        return arrived
    }

    private func send(_ numbers: [Int32], to puppet: Puppet) throws(Failure) -> [RemoteDescriptor] {
        var arrived: [RemoteDescriptor] = []
        arrived.reserveCapacity(numbers.count)
        // A few messages at a time: the socket's buffer bounds what may be under way.
        let parts = stride(from: 0, to: numbers.count, by: Courier.most * Courier.mostMessages).map {
            numbers[$0..<min($0 + Courier.most * Courier.mostMessages, numbers.count)]
        }
        try parts.first.map { (part) throws(Failure) in try send(messages: part) }
        for (place, part) in parts.enumerated() {
            var batch = Batch()
            var heads: [(Batch.Buffer, Int)] = []
            for start in stride(from: part.startIndex, to: part.endIndex, by: Courier.most) {
                let count = min(Courier.most, part.endIndex - start)
                let control = batch.reserve(16 + 4 * count + 8)
                let byte = batch.reserve(1)
                let vector = batch.place(value: (UInt64(0), UInt64(1)))
                batch.point(vector, at: 0, to: byte)
                let message = batch.place(
                    value: (UInt64(0), UInt64(0), UInt64(0), UInt64(1), UInt64(0), UInt64(control.count), UInt64(0)))
                batch.point(message, at: 16, to: vector)
                batch.point(message, at: 32, to: control)
                batch.add(.recvmsg, .descriptor(remote), .buffer(message), .value(0), doing: "receive descriptors")
                heads.append((control, count))
            }
            // What comes next is sent while these arrive.
            let results = try puppet.run(batch) { () throws(Failure) in
                if place + 1 < parts.count { try send(messages: parts[place + 1]) }
            }
            for (control, count) in heads {
                let length = results.value(UInt64.self, control)
                guard length == UInt64(16 + 4 * count) else {
                    throw Failure(
                        .denied, "task \(puppet.id) received only some of \(count) descriptors",
                        advice: "Raise its limit on open files (RLIMIT_NOFILE)")
                }
                for index in 0..<count {
                    arrived.append(RemoteDescriptor(results.value(Int32.self, control, at: 16 + 4 * index)))
                }
            }
        }
        return arrived
    }

    /// How many messages are received at a time; twice as many may be under way.
    private static let mostMessages = 8

    private func send(messages numbers: ArraySlice<Int32>) throws(Failure) {
        for start in stride(from: numbers.startIndex, to: numbers.endIndex, by: Courier.most) {
            try send(Array(numbers[start..<min(start + Courier.most, numbers.endIndex)]))
        }
    }

    private func send(_ numbers: [Int32]) throws(Failure) {
        var control: [UInt8] = [UInt8](bytesOf: UInt64(16 + 4 * numbers.count)) + [UInt8](bytesOf: (Int32(1), Int32(1)))
        for number in numbers { control += [UInt8](bytesOf: number) }
        while control.count & 7 != 0 { control.append(0) }
        var byte: [UInt8] = [0]
        let socket = Int(ours.number)
        let length = control.count
        try attempt("send descriptors", advice: "Raise the limit on open files (RLIMIT_NOFILE)") {
            () throws(SystemCallError) in
            try byte.withAddress { (byte, _) throws(SystemCallError) in
                try control.withAddress { (control, _) throws(SystemCallError) in
                    var vector: (Int, Int) = (byte, 1)
                    try withAddress(of: &vector) { (vector) throws(SystemCallError) in
                        var message: (Int, Int, Int, Int, Int, Int, Int) = (0, 0, vector, 1, control, length, 0)
                        try withAddress(of: &message) { (message) throws(SystemCallError) in
                            try systemCall(.sendmsg, socket, message, 0)
                        }
                    }
                }
            }
        }
    }
}
