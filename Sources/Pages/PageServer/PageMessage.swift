internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Linux

/// A message of the page server's protocol, 32 bytes in the order of the machine.
///
/// Who sends pages opens a page map (`open`, answered by a byte: whether there is a parent), adds runs in ascending order,
/// each followed by its pages if they are present, and ends by `close`, which is answered by a status of four bytes. Who
/// wants pages sends `get`, and receives `add` with as many pages as there are, at most as many as were asked for.
struct PageMessage: Hashable {
    /// The lower half of the first word.
    enum Command: UInt32 {
        /// Older senders: pages that are present, pages of the parent, and an opening without an answer.
        case addPresent = 1, addParent = 2, openUnanswered = 3
        /// Begins a page map.
        case open = 4
        /// Asks whether there is a parent of a page map; answered by a word.
        case parent = 5
        /// A run, with the flags of the page map in the upper half of the first word.
        case add = 6
        /// Wants pages.
        case get = 7
        /// The end; the second is for sockets that stay open.
        case close = 0x1023, forcedClose = 0x1024
    }

    var command: UInt32
    var flags: UInt32 = 0
    var pages: UInt64 = 0
    var address: UInt64 = 0
    /// Whose pages: type and id, or, in `get` and its answer, the pid.
    var owner: UInt64 = 0

    /// As it travels.
    typealias Wire = (UInt32, UInt32, UInt64, UInt64, UInt64)

    init(_ command: Command, _ run: PageRun? = nil, owner: UInt64 = 0) {
        self.command = command.rawValue
        self.owner = owner
        if let run { (flags, pages, address) = (run.entry.flags, run.pages, run.address.rawValue) }
    }

    init(_ wire: Wire) {
        command = wire.0 & 0xffff
        flags = wire.0 >> 16
        (pages, address, owner) = (wire.2, wire.3, wire.4)
    }

    var wire: Wire { (command | flags << 16, 0, pages, address, owner) }

    /// The run, if it makes sense.
    var run: PageRun? {
        let (bytes, over) = pages.multipliedReportingOverflow(by: pageSize)
        let (end, past) = address.addingReportingOverflow(bytes)
        guard !over, !past, pages > 0, address % pageSize == 0, end <= 1 << 56 else { return nil }
        return PageRun(
            address: Address(address), pages: pages, isPresent: flags & 4 != 0, isInParent: flags & 1 != 0,
            isLazy: flags & 2 != 0)
    }
}

extension PageOwner {
    /// As the protocol names it.
    var wire: UInt64 {
        switch self {
        case .process(let id): UInt64(UInt32(bitPattern: id)) << 8 | 1
        case .shared(let id): id << 8 | 2
        }
    }

    /// Reads the protocol's name.
    init?(wire: UInt64) {
        switch wire & 0xff {
        case 1:
            guard let id = Int32(exactly: wire >> 8), id > 0 else { return nil }
            self = .process(id)
        case 2: self = .shared(wire >> 8)
        default: return nil
        }
    }
}
