/// References to processes, and copies of their descriptors.
extension TaskID {
    /// Opens a pidfd of the process (`pidfd_open(2)`).
    public func openHandle() throws(SystemCallError) -> Descriptor {
        Descriptor(owning: Int32(try systemCall(.pidfd_open, Int(rawValue), 0)))
    }
}

/// Copies a descriptor of the process that a pidfd refers to (`pidfd_getfd(2)`).
///
/// - Parameter number: what the process calls it.
public func fetchDescriptor(_ number: Int, through pidfd: Int32) throws(SystemCallError) -> Descriptor {
    Descriptor(owning: Int32(try systemCall(.pidfd_getfd, Int(pidfd), number, 0)))
}
