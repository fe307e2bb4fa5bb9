public import Diagnostics
internal import Linux

/// Where images go in place of a directory: a stream.
public protocol ImageReceiver: AnyObject {
    /// Appends bytes of our memory to a file, which begins with the first ones. None at all make an empty file.
    func append(_ name: String, from address: Int, count: Int) throws(Failure)
    /// Makes a second name of a file that is complete.
    func link(_ name: String, to other: String) throws(Failure)
}

extension ImageReceiver {
    /// Appends the contents of an open file to a file.
    public func append(_ name: String, contentsOf file: Int32) throws(Failure) {
        var buffer = [UInt8](repeating: 0, count: 256 << 10)
        var offset: UInt64 = 0
        try append(name, from: 0, count: 0)
        while true {
            let at = offset
            let got = try buffer.withAddress { (address, count) throws(Failure) in
                let got = try attempt("read \(name)") { () throws(SystemCallError) in
                    try readFully(file, into: address, count: count, at: at)
                }
                try append(name, from: address, count: got)
                return got
            }
            offset += UInt64(got)
            if got < buffer.count { return }
        }
    }
}
