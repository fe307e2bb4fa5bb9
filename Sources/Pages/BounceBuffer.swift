internal import Diagnostics
internal import Linux

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
