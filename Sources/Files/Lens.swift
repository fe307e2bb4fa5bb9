internal import Diagnostics
internal import Kinds
internal import Linux
internal import Procfs

/// A descriptor number of ours on which one file after the other is looked at: under a fresh number /proc would make fresh
/// entries for each.
final class Lens {
    private let slot: Slot
    /// What /proc calls the number, and its fdinfo, which always tells of the file that is there now.
    private let link: String
    private let fdinfo: Descriptor
    private var text = [UInt8](repeating: 0, count: 1024)

    private struct Slot: ~Copyable {
        let number: Int32
        deinit { _ = try? systemCall(.close, Int(number)) }
    }

    init() throws(SystemCallError) {
        let number = try openFile("/proc/version").release()
        slot = Slot(number: number)
        link = "/proc/self/fd/\(number)"
        fdinfo = try openFile("/proc/self/fdinfo/\(number)")
    }

    /// That of a dump.
    static func of(_ context: DumpContext) throws(Failure) -> Lens {
        try attempt("look at descriptors of our own in /proc") { () throws(SystemCallError) in
            try context.state(Lens.self) { () throws(SystemCallError) in try Lens() }
        }
    }

    /// Puts an open file of ours under the number.
    func look(at file: Int32) throws(SystemCallError) {
        try systemCall(.dup3, Int(file), Int(slot.number), 0o2000000)
    }

    /// The path of an open file of ours, or what it has for one.
    func target(of file: Int32) throws(Failure) -> [UInt8] {
        try attempt("look at the file") { () throws(SystemCallError) in
            try look(at: file)
            return try linkTarget(link)
        }
    }

    /// The path of the file that was looked at last.
    func targetInSight() throws(Failure) -> [UInt8] {
        try attempt("look at the file") { () throws(SystemCallError) in try linkTarget(link) }
    }

    /// What fdinfo says of an open file of ours.
    func information(of file: Int32) throws(Failure) -> DescriptorInformation {
        try attempt("read what /proc says of the descriptor") { () throws(SystemCallError) in
            try look(at: file)
            var length = 0
            while true {
                let (number, from) = (Int(fdinfo.number), length)
                length += try text.withAddress { (address, count) throws(SystemCallError) in
                    try systemCall(.pread64, number, address + from, count - from, from)
                }
                if length < text.count { break }
                text += [UInt8](repeating: 0, count: text.count)
            }
            return DescriptorInformation(text[..<length])
        }
    }
}
