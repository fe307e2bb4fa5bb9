internal import CLinux
internal import Synchronization

/// What a pthread runs; the thread owns it.
private final class Errand {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }

    /// The start of a thread, which takes the reference over.
    private static let run: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = { argument in
        guard let argument = unsafe argument else { return nil }
        unsafe Unmanaged<Errand>.fromOpaque(argument).takeRetainedValue().body()
        return nil
    }

    /// Starts a thread that runs it. Throws where there can be no more.
    static func start(_ body: @escaping @Sendable () -> Void) throws(SystemCallError) -> pthread_t {
        var thread = pthread_t()
        // The new thread takes the reference over, unless there is none.
        let errand = unsafe Unmanaged.passRetained(Errand(body))
        let error = unsafe pthread_create(&thread, nil, run, errand.toOpaque())
        guard error == 0 else {
            unsafe errand.release()
            throw SystemCallError(.clone, Errno(rawValue: error))
        }
        return thread
    }
}

/// Plain threads that copy pages and write images. They touch no ptrace and no task state, so which thread does what is of
/// no concern.
public enum Workers {
    /// How many threads work in parallel; more than four only fight for the page cache's locks.
    public static let count: Int = {
        var mask = [UInt64](repeating: 0, count: 16)
        let bytes =
            (try? mask.withAddress { (address, size) throws(SystemCallError) in
                try systemCall(.sched_getaffinity, 0, size, address)
            }) ?? 0
        let processors = mask.prefix(bytes / 8).reduce(0) { $0 + $1.nonzeroBitCount }
        return max(1, min(4, processors))
    }()

    /// Runs `body` in `count` threads, the caller's among them, until all have returned. The first failure is thrown.
    public static func run<E: Error>(_ count: Int, _ body: @escaping @Sendable () throws(E) -> Void) throws(E) {
        let failure = FirstFailure<E>()
        let guarded: @Sendable () -> Void = {
            do throws(E) { try body() } catch { failure.note(error) }
        }
        var threads: [pthread_t] = []
        for _ in 1..<max(1, count) {
            guard let thread = try? Errand.start(guarded) else { break }
            threads.append(thread)
        }
        guarded()
        for thread in threads { _ = pthread_join(thread, nil) }
        try failure.rethrow()
    }
}

/// Something that another thread does meanwhile. Its owner waits for its end.
public struct Background: ~Copyable {
    private let thread: pthread_t?

    /// Begins. If there can be no more threads, it is done at once.
    public init(_ body: @escaping @Sendable () -> Void) {
        thread = try? Errand.start(body)
        if thread == nil { body() }
    }

    /// Begins what can't be done at once. Throws where there can be no more threads.
    public static func start(_ body: @escaping @Sendable () -> Void) throws(SystemCallError) -> Background {
        Background(of: try Errand.start(body))
    }

    private init(of thread: pthread_t) { self.thread = thread }

    /// Waits until it is done.
    public consuming func wait() {}

    deinit { if let thread { pthread_join(thread, nil) } }
}

extension Workers {
    /// Cuts 0 to `count` - 1 into shares, has each share made something of by one of `threads` threads, and returns what
    /// was made in order. The first failure is thrown.
    public static func map<R: Sendable, E: Error>(
        _ count: Int, share: Int = 1, threads: Int = Workers.count,
        _ body: @escaping @Sendable (Range<Int>) throws(E) -> R
    ) throws(E) -> [R] {
        let shares = (count + share - 1) / share
        let dealer = Dealer(shares)
        let made = Mutex([R?](repeating: nil, count: shares))
        try run(threads) { () throws(E) in
            while let index = dealer.take() {
                let result = try body((index * share)..<min(count, (index + 1) * share))
                made.withLock { $0[index] = result }
            }
        }
        return made.withLock { $0.compactMap { $0 } }
    }
}

/// The failure that stops all workers.
private final class FirstFailure<E: Error>: Sendable {
    private let failure = Mutex<E?>(nil)
    func note(_ new: E) { failure.withLock { if $0 == nil { $0 = new } } }
    func rethrow() throws(E) { if let failure = failure.withLock({ $0 }) { throw failure } }
}

/// Deals out numbers to workers, each once, in order.
public final class Dealer: Sendable {
    private let next = Atomic<Int>(0)
    private let count: Int

    /// Deals out 0 to `count` - 1.
    public init(_ count: Int) { self.count = count }

    /// The next number, nil when all are dealt.
    public func take() -> Int? {
        let index = next.wrappingAdd(1, ordering: .relaxed).oldValue
        return index < count ? index : nil
    }
}
