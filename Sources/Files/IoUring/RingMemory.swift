internal import Diagnostics
internal import Linux

/// `IORING_SETUP_*`.
enum RingSetup {
    static let polled: UInt32 = 1 << 0, kernelPolls: UInt32 = 1 << 1, affine: UInt32 = 1 << 2, sized: UInt32 = 1 << 3
    static let attached: UInt32 = 1 << 5, disabled: UInt32 = 1 << 6, submitsAll: UInt32 = 1 << 7
    static let cooperative: UInt32 = 1 << 8, flagsWork: UInt32 = 1 << 9, wideRequests: UInt32 = 1 << 10
    static let wideCompletions: UInt32 = 1 << 11, singleIssuer: UInt32 = 1 << 12, defersWork: UInt32 = 1 << 13
    static let ownMemory: UInt32 = 1 << 14, noArray: UInt32 = 1 << 16
    /// What can be set up again. A ring without the array of indices gets one, which has every index at its place.
    static let restorable =
        polled | kernelPolls | affine | submitsAll | cooperative | flagsWork | wideRequests | wideCompletions
        | singleIssuer | defersWork | disabled
}

/// `struct io_uring_params`: what a ring is to be, and where in its memory things are.
struct RingParameters: BitwiseCopyable {
    struct Requests: BitwiseCopyable {
        var head: UInt32 = 0, tail: UInt32 = 0, mask: UInt32 = 0, entries: UInt32 = 0, flags: UInt32 = 0
        var dropped: UInt32 = 0, array: UInt32 = 0, reserved: UInt32 = 0, address: UInt64 = 0
    }
    struct Completions: BitwiseCopyable {
        var head: UInt32 = 0, tail: UInt32 = 0, mask: UInt32 = 0, entries: UInt32 = 0, overflow: UInt32 = 0
        var cqes: UInt32 = 0, flags: UInt32 = 0, reserved: UInt32 = 0, address: UInt64 = 0
    }
    var requestCount: UInt32 = 0, completionCount: UInt32 = 0, flags: UInt32 = 0
    var threadProcessor: UInt32 = 0, threadPatience: UInt32 = 0, features: UInt32 = 0, attachedTo: UInt32 = 0
    var reserved: (UInt32, UInt32, UInt32) = (0, 0, 0)
    var requests = Requests()
    var completions = Completions()

    /// Where things are in any ring of this kernel, but for the array.
    static func ofKernel() throws(Failure) -> RingParameters {
        var parameters = RingParameters()
        try attempt(
            "create an io_uring", advice: "Allow it with: sysctl kernel.io_uring_disabled=0"
        ) { () throws(SystemCallError) in
            let made = try withAddress(of: &parameters) { (address) throws(SystemCallError) in
                try systemCall(.io_uring_setup, 1, address)
            }
            try Descriptor(owning: Int32(made)).close()
        }
        return parameters
    }
}

/// The sizes of a ring's parts in bytes.
struct RingShape {
    let requests: Int, completions: Int
    var hasWideRequests: Bool, hasWideCompletions: Bool

    /// The kernel's limits.
    static let mostRequests = 1 << 15, mostCompletions = 1 << 16

    var requestLength: Int { hasWideRequests ? 128 : 64 }
    var completionLength: Int { hasWideCompletions ? 32 : 16 }
    var requestBytes: Int { requests * requestLength }
    var completionBytes: Int { completions * completionLength }
    var arrayBytes: Int { requests * 4 }

    /// Where the array is: behind the completions, on a line of the cache.
    func array(completionsAt start: Int) -> Int { (start + completionBytes + 63) & ~63 }
}

/// The memory of a ring, mapped here.
struct RingMemory: ~Copyable {
    private let rings: Mapping, entries: Mapping
    let shape: RingShape
    private let layout: RingParameters
    private let arrayAt: Int

    /// `IORING_OFF_SQ_RING`, `IORING_OFF_SQES`.
    static let ringsAt = 0, requestsAt = 0x1000_0000

    init(_ ring: Int32, _ shape: RingShape, _ layout: RingParameters, hasArray: Bool = true) throws(Failure) {
        let array = shape.array(completionsAt: Int(layout.completions.cqes))
        let length = hasArray ? array + shape.arrayBytes : Int(layout.completions.cqes) + shape.completionBytes
        let mapped = try attempt("map an io_uring") { () throws(SystemCallError) in
            try Mapping(length: length, flags: 1, file: ring, offset: RingMemory.ringsAt)
        }
        let requests = try attempt("map the requests of an io_uring") { () throws(SystemCallError) in
            try Mapping(length: shape.requestBytes, flags: 1, file: ring, offset: RingMemory.requestsAt)
        }
        self.shape = shape
        self.layout = layout
        arrayAt = array
        rings = mapped
        entries = requests
    }

    var requestHead: UInt32 { rings.loadShared(at: Int(layout.requests.head)) }
    var requestTail: UInt32 {
        get { rings.loadShared(at: Int(layout.requests.tail)) }
        nonmutating set { rings.storeShared(newValue, at: Int(layout.requests.tail)) }
    }
    var requestFlags: UInt32 { rings.loadShared(at: Int(layout.requests.flags)) }
    var dropped: UInt32 {
        get { rings.loadShared(at: Int(layout.requests.dropped)) }
        nonmutating set { rings.storeShared(newValue, at: Int(layout.requests.dropped)) }
    }
    var completionHead: UInt32 {
        get { rings.loadShared(at: Int(layout.completions.head)) }
        nonmutating set { rings.storeShared(newValue, at: Int(layout.completions.head)) }
    }
    var completionTail: UInt32 { rings.loadShared(at: Int(layout.completions.tail)) }
    var completionFlags: UInt32 {
        get { rings.loadShared(at: Int(layout.completions.flags)) }
        nonmutating set { rings.storeShared(newValue, at: Int(layout.completions.flags)) }
    }
    var overflow: UInt32 {
        get { rings.loadShared(at: Int(layout.completions.overflow)) }
        nonmutating set { rings.storeShared(newValue, at: Int(layout.completions.overflow)) }
    }

    var completions: [UInt8] {
        get { rings.bytes(at: Int(layout.completions.cqes), count: shape.completionBytes) }
        nonmutating set { rings.store(newValue, at: Int(layout.completions.cqes)) }
    }
    var array: [UInt8] {
        get {
            arrayAt + shape.arrayBytes <= rings.length ? rings.bytes(at: arrayAt, count: shape.arrayBytes) : []
        }
        nonmutating set { rings.store(newValue, at: arrayAt) }
    }
    var requests: [UInt8] {
        get { entries.bytes(at: 0, count: shape.requestBytes) }
        nonmutating set { entries.store(newValue, at: 0) }
    }

    /// Sets the index that the request at a position of the ring has.
    func setIndex(_ index: UInt32, at position: UInt32) {
        rings.storeShared(index, at: arrayAt + 4 * Int(position & UInt32(shape.requests - 1)))
    }
}
