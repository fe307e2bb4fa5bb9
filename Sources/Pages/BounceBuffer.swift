internal import Diagnostics
internal import ImageFormat
internal import Linux

/// A buffer for copying that stays in the cache.
struct BounceBuffer: ~Copyable {
    /// Bytes of one; measured as the best size here. What one holds is also a chunk of a pages file.
    static let size = PagesFileWriter.chunkSize
    private let memory: Mapping
    var address: Int { memory.address }

    init(size: Int = BounceBuffer.size) throws(Failure) {
        memory = try attempt("get memory for copying pages") { () throws(SystemCallError) in
            try Mapping(length: size, flags: 0x8022)  // PRIVATE | ANONYMOUS | POPULATE
        }
    }
}
