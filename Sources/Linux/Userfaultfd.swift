/// What is asked of a userfaultfd of ours (`ioctl_userfaultfd(2)`).
public enum Userfaultfd {
    /// Agrees upon features (`UFFDIO_API`).
    ///
    /// - Parameter features: bits of `UFFD_FEATURE_*`.
    public static func agree(_ number: Int32, features: UInt64) throws(SystemCallError) {
        var interface = (UInt64(0xaa), features, UInt64(0))
        try withAddress(of: &interface) { (interface) throws(SystemCallError) in
            _ = try systemCall(.ioctl, Int(number), 0xc018_aa3f, interface)
        }
    }

    /// Watches a range (`UFFDIO_REGISTER`).
    ///
    /// - Parameter mode: bits of `UFFDIO_REGISTER_MODE_*`.
    public static func register(_ number: Int32, _ range: AddressRange, mode: UInt64) throws(SystemCallError) {
        var request = (range.start.rawValue, range.length, mode, UInt64(0))
        try withAddress(of: &request) { (request) throws(SystemCallError) in
            _ = try systemCall(.ioctl, Int(number), 0xc020_aa00, request)
        }
    }

    /// Watches it no more (`UFFDIO_UNREGISTER`).
    public static func unregister(_ number: Int32, _ range: AddressRange) throws(SystemCallError) {
        try ask(number, 0x8010_aa01, range)
    }

    /// Lets those go on who wait for pages of a range (`UFFDIO_WAKE`).
    public static func wake(_ number: Int32, _ range: AddressRange) throws(SystemCallError) {
        try ask(number, 0x8010_aa02, range)
    }

    private static func ask(_ number: Int32, _ request: Int, _ range: AddressRange) throws(SystemCallError) {
        var words = (range.start.rawValue, range.length)
        try withAddress(of: &words) { (words) throws(SystemCallError) in
            _ = try systemCall(.ioctl, Int(number), request, words)
        }
    }

    /// Protects pages from writing, or does so no more and lets those go on who wait (`UFFDIO_WRITEPROTECT`).
    public static func setProtection(_ number: Int32, _ range: AddressRange, isOn: Bool) throws(SystemCallError) {
        var request = (range.start.rawValue, range.length, UInt64(isOn ? 1 : 0))
        try withAddress(of: &request) { (request) throws(SystemCallError) in
            _ = try systemCall(.ioctl, Int(number), 0xc018_aa06, request)
        }
    }

    /// Whether something changes mappings whose message is not read yet: the kernel refuses to fill anything then
    /// (`UFFDIO_ZEROPAGE`), even nothing.
    public static func hasEvent(_ number: Int32) -> Bool {
        var nothing = (UInt64(0), UInt64(0), UInt64(0), UInt64(0))
        do throws(SystemCallError) {
            try withAddress(of: &nothing) { (nothing) throws(SystemCallError) in
                _ = try systemCall(.ioctl, Int(number), 0xc020_aa04, nothing)
            }
            return false
        } catch { return error.errno == .EAGAIN }
    }

    /// A `struct uffd_msg`: `UFFD_EVENT_*`, and its arguments.
    public struct Message: Sendable {
        /// What happened.
        public let event: UInt8
        /// Three words, whose meaning depends on that.
        public let words: [UInt64]
    }

    /// Most messages that one call reads.
    public static let mostMessages = 32

    /// Reads messages that wait. None: no more do. Does not block where the descriptor does not.
    ///
    /// - Parameter most: how many at most. Who is told of by another one goes on waiting.
    public static func readMessages(_ number: Int32, most: Int = mostMessages) throws(SystemCallError) -> [Message] {
        var room = [UInt8](repeating: 0, count: 32 * most)
        let got: Int
        do throws(SystemCallError) {
            got = try room.withAddress { (address, count) throws(SystemCallError) in
                try systemCall(.read, Int(number), address, count)
            }
        } catch {
            if error.errno == .EAGAIN { return [] }
            throw error
        }
        return stride(from: 0, to: got, by: 32).map { start in
            Message(event: room[start], words: (1...3).map { room.load(UInt64.self, at: start + 8 * $0) ?? 0 })
        }
    }
}
