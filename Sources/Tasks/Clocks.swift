internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux

/// The clocks of the tree's time namespace: `timens-0.img` records where they stood.
enum Clocks {
    static func dump(_ context: DumpContext) throws(Failure) {
        var entry = TimensEntry()
        entry.monotonic = try read(1)
        entry.boottime = try read(7)
        try context.images.write(.timeNamespace(0), [entry])
    }

    private static func read(_ clock: Int) throws(Failure) -> Timespec {
        var now: (UInt64, UInt64) = (0, 0)
        try attempt("read a clock") { () throws(SystemCallError) in
            try withAddress(of: &now) { (address) throws(SystemCallError) in
                try systemCall(.clock_gettime, clock, address)
            }
        }
        var entry = Timespec()
        (entry.tvSec, entry.tvNsec) = now
        return entry
    }
}
