internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Remote

/// The host's name and its NIS domain (UTS namespace).
enum HostName {
    /// Bytes of each field of `struct new_utsname`; the second is the name, the sixth the domain.
    private static let field = 65

    static func dump(_ id: UInt32, of root: TaskID, _ context: DumpContext) throws(Failure) {
        let namespace = try NamespaceKind.uts.open(of: root)
        let names = try NamespaceKind.uts.inside(namespace.number) { () throws(Failure) in
            var names = [UInt8](repeating: 0, count: 6 * field)
            try attempt("read the host's name") { () throws(SystemCallError) in
                try names.withAddress { (address, _) throws(SystemCallError) in try systemCall(.uname, address) }
            }
            return names
        }
        func name(_ index: Int) -> some Sequence<UInt8> {
            names[index * field..<(index + 1) * field].prefix { $0 != 0 }
        }
        var entry = UtsnsEntry()
        entry.nodename = imageBytes(Array(name(1)))
        entry.domainname = imageBytes(Array(name(5)))
        try context.images.write(.hostName(id), [entry])
    }

    /// Has the tree's first task, in a new namespace, set the names.
    static func restore(_ entry: UtsnsEntry, _ batch: inout Batch) {
        let (name, domain) = (batch.place(Array(entry.nodename)), batch.place(Array(entry.domainname)))
        batch.add(.sethostname, .buffer(name), .value(entry.nodename.count), doing: "set the host's name")
        batch.add(.setdomainname, .buffer(domain), .value(entry.domainname.count), doing: "set the domain's name")
    }
}
