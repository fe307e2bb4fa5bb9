internal import Diagnostics
internal import Kinds
internal import Linux

extension RestoreContext {
    /// Adds a socket: what the caller passed for it, or what is made.
    func addSocket(_ id: UInt32, inode: UInt32, make: () throws(Failure) -> Descriptor) throws(Failure) {
        try during(.file("socket:[\(inode)]")) { () throws(Failure) in
            if let passed = try inherited("socket:[\(inode)]") { return try files.add(id, passed) }
            try files.add(id, try make())
        }
    }
}
