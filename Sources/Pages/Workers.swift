internal import CLinux
internal import Diagnostics
internal import Linux
internal import Synchronization

/// What a pthread runs; the thread owns it.
private final class Errand {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
}

/// Plain threads that copy pages. They touch no ptrace and no task state, so which thread does what is of no concern.
enum Workers {
    /// How many threads copy in parallel; more than four only fight for the page cache's locks.
    static let count: Int = {
        var mask = [UInt64](repeating: 0, count: 16)
        let bytes =
            (try? mask.withAddress { (address, size) throws(SystemCallError) in
                try systemCall(.sched_getaffinity, 0, size, address)
            }) ?? 0
        let processors = mask.prefix(bytes / 8).reduce(0) { $0 + $1.nonzeroBitCount }
        return max(1, min(4, processors))
    }()

    /// Runs `body` in `count` threads, the caller's among them, until all have returned. The first failure is thrown.
    static func run(_ count: Int, _ body: @escaping @Sendable () throws(Failure) -> Void) throws(Failure) {
        let failure = FirstFailure()
        let guarded: @Sendable () -> Void = {
            do throws(Failure) { try body() } catch { failure.note(error) }
        }
        var threads: [pthread_t] = []
        for _ in 1..<max(1, count) {
            var thread = pthread_t()
            // The new thread takes the reference over, unless there is none.
            let errand = unsafe Unmanaged.passRetained(Errand(guarded))
            let error = unsafe pthread_create(
                &thread, nil,
                { argument in
                    guard let argument = unsafe argument else { return nil }
                    unsafe Unmanaged<Errand>.fromOpaque(argument).takeRetainedValue().body()
                    return nil
                }, errand.toOpaque())
            guard error == 0 else {
                unsafe errand.release()
                break
            }
            threads.append(thread)
        }
        guarded()
        for thread in threads { _ = pthread_join(thread, nil) }
        try failure.rethrow()
    }
}

/// The failure that stops all workers.
private final class FirstFailure: Sendable {
    private let failure = Mutex<Failure?>(nil)
    func note(_ new: Failure) { failure.withLock { if $0 == nil { $0 = new } } }
    func rethrow() throws(Failure) { if let failure = failure.withLock({ $0 }) { throw failure } }
}

/// Deals out numbers to workers, each once, in order.
final class Dealer: Sendable {
    private let next = Atomic<Int>(0)
    private let count: Int
    init(_ count: Int) { self.count = count }
    func take() -> Int? {
        let index = next.wrappingAdd(1, ordering: .relaxed).oldValue
        return index < count ? index : nil
    }
}

/// A buffer for copying that stays in the cache.
struct BounceBuffer: ~Copyable {
    /// Bytes of one; measured as the best size here.
    static let size = 256 << 10
    private let memory: Mapping
    var address: Int { memory.address }

    init(size: Int = BounceBuffer.size) throws(Failure) {
        memory = try attempt("get memory for copying pages") { () throws(SystemCallError) in
            try Mapping(length: size, flags: 0x8022)  // PRIVATE | ANONYMOUS | POPULATE
        }
    }
}
