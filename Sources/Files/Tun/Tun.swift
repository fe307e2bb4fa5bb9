internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs

/// The user's end of a network interface (`/dev/net/tun`).
enum Tun: FileKind {
    // `ioctl(2)` of the driver: TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP, TUNGETIFF, TUNGETSNDBUF, TUNSETSNDBUF,
    // TUNGETVNETHDRSZ, TUNSETVNETHDRSZ, TUNSETQUEUE, TUNSETIFINDEX, TUNGETFILTER, TUNSETVNETLE, TUNGETVNETLE, TUNSETVNETBE,
    // TUNGETVNETBE, TUNGETDEVNETNS; and SIOCGSKNS of sockets.
    private static let attach = 0x4004_54ca, persist = 0x4004_54cb, setOwner = 0x4004_54cc, setGroup = 0x4004_54ce
    private static let getInterface = 0x8004_54d2, getBuffer = 0x8004_54d3, setBuffer = 0x4004_54d4
    private static let getHeader = 0x8004_54d7, setHeader = 0x4004_54d8, setQueue = 0x4004_54d9
    private static let setIndex = 0x4004_54da, getFilter = 0x8010_54db
    private static let setLittle = 0x4004_54dc, getLittle = 0x8004_54dd, setBig = 0x4004_54de, getBig = 0x8004_54df
    private static let interfaceNamespace = 0x54e3, socketNamespace = 0x894c

    static func claims(_ facts: FileFacts) -> Bool {
        facts.status.kind == .characterDevice && facts.status.representedMajor == 10
            && facts.status.representedMinor == 200 && facts.statusFlags & UInt32(OpenFlags.path.rawValue) == 0
    }

    // MARK: dump

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        let number = file.handle.number
        try refuseForeign(number, socketNamespace, file)
        var entry = TunfileEntry()
        entry.id = file.id
        entry.fown = try FileOwner.dump(file, context)
        entry.openFlags = file.facts.statusFlags
        entry.path = imageBytes(file.facts.target)
        if let (name, flags) = try interface(number) {
            try refuseForeign(number, interfaceNamespace, file)
            try during(.step("the interface \(name)")) { () throws(Failure) in
                entry.netdev = imageBytes(name.utf8)
                entry.detached = flags & TunInterface.detached != 0
                entry.link.flags = flags & (TunInterface.settable | TunInterface.persistent)
                try ask(number, &entry)
                try TunInterface.dump(name, &entry)
            }
        }
        var whole = FileEntry(.tunf, file.id)
        whole.tunf = entry
        return whole
    }

    /// The interface that a file is attached to.
    private static func interface(_ number: Int32) throws(Failure) -> (name: String, flags: UInt32)? {
        var request = [UInt8](repeating: 0, count: 40)
        do throws(SystemCallError) {
            try request.withAddress { (address, _) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), getInterface, address)
            }
        } catch {
            if error.errno == .EBADFD { return nil }
            throw Failure(.denied, "can't ask for its network interface", cause: error)
        }
        let name = String(decoding: request.prefix(16).prefix { $0 != 0 }, as: UTF8.self)
        return (name, UInt32(request.load(UInt16.self, at: 16) ?? 0))
    }

    private static func ask(_ number: Int32, _ entry: inout TunfileEntry) throws(Failure) {
        func get(_ command: Int) throws(SystemCallError) -> UInt32 {
            var value: UInt32 = 0
            try withAddress(of: &value) { (address) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), command, address)
            }
            return value
        }
        try attempt("ask for the attributes") { () throws(SystemCallError) in
            // A detached queue is told its interface's name and nothing else by old kernels.
            entry.link.sndbuf = try get(getBuffer)
            entry.link.vnethdr = try get(getHeader)
            entry.littleEndian = try get(getLittle) != 0
            // Only kernels that can be told to use it tell.
            entry.bigEndian = ((try? get(getBig)) ?? 0) != 0
        }
        guard entry.link.flags & TunInterface.tap != 0 else { return }
        var filter: (UInt64, UInt64) = (0, 0)  // struct sock_fprog
        let hasFilter = try attempt("ask for a packet filter") { () throws(SystemCallError) in
            try withAddress(of: &filter) { (address) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), getFilter, address)
            }
            return filter.0 & 0xffff != 0
        }
        if hasFilter {
            throw Failure(
                .unsupported, "it has a packet filter, which the kernel does not give back",
                advice: "Detach it before the dump (TUNDETACHFILTER)")
        }
    }

    /// Interfaces of other network namespaces than ours can't be made again.
    private static func refuseForeign(_ number: Int32, _ command: Int, _ file: OpenFile) throws(Failure) {
        let isOurs = try attempt("ask for its network namespace") { () throws(SystemCallError) in
            let namespace = Descriptor(owning: Int32(try systemCall(.ioctl, Int(number), command)))
            return try linkTarget("/proc/self/fd/\(namespace.number)") == linkTarget("/proc/self/ns/net")
        }
        guard isOurs else {
            throw Failure(
                .unsupported, "it belongs to another network namespace than brumate's",
                advice: "Run brumate in that namespace (nsenter --net)")
        }
    }

    // MARK: restore

    static let lateSteps = LateSteps.none

    static func restores(_ entry: FileEntry) -> Bool { entry.type == UInt32(FdTypes.tunf.rawValue) && entry.hasTunf }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.tunf.hasFown ? entry.tunf.fown : nil }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            let entry = member.tunf
            let name = String(decoding: entry.netdev, as: UTF8.self)
            try during(.file(entry.hasNetdev ? "the interface \(name)" : "/dev/net/tun")) { () throws(Failure) in
                let path = entry.hasPath ? Array(entry.path) : Array("/dev/net/tun".utf8)
                guard path.first == 0x2f else { throw Failure(.corruptImage, "its path makes no sense") }
                // struct file_operations of this driver have no other use of the flags.
                let flags = OpenFlags(rawValue: Int32(bitPattern: entry.openFlags & ~0o2001300))
                let made = try attempt("open \(String(decoding: path, as: UTF8.self))") { () throws(SystemCallError) in
                    try openFile(path, entry.hasOpenFlags ? flags : .readWrite)
                }
                let status = try attempt("look at it") { () throws(SystemCallError) in
                    try FileStatus.read(in: made.number)
                }
                guard status.kind == .characterDevice, status.representedMajor == 10, status.representedMinor == 200
                else { throw Failure(.conflict, "the file is not the driver of tun interfaces any more") }
                if entry.hasNetdev { try attach(made.number, to: name, entry, context) }
                try context.files.add(member.id, made)
            }
        }
    }

    private static func attach(
        _ number: Int32, to name: String, _ entry: TunfileEntry, _ context: RestoreContext
    ) throws(Failure) {
        guard entry.hasLink else {
            throw Failure(
                .unsupported, "the interface is part of a network namespace's image, which can't be restored yet")
        }
        guard !name.isEmpty, name.utf8.count < 16, !name.contains("%"), !name.contains("/") else {
            throw Failure(.corruptImage, "no interface can have this name")
        }
        let isThere = try attempt("look for it") { () throws(SystemCallError) in try TunInterface.exists(name) }
        if !isThere {
            var index = entry.ifindex
            // Another may have the number; then it gets a new one.
            _ = try? withAddress(of: &index) { (address) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), setIndex, address)
            }
        }
        var request = TunInterface.request(name, UInt16(entry.link.flags & TunInterface.settable))
        do throws(SystemCallError) {
            do throws(SystemCallError) {
                try request.withAddress { (address, _) throws(SystemCallError) in
                    try systemCall(.ioctl, Int(number), attach, address)
                }
            } catch {
                guard !isThere, error.errno == .EEXIST || error.errno == .EBUSY else { throw error }
                var any: UInt32 = 0
                try withAddress(of: &any) { (address) throws(SystemCallError) in
                    try systemCall(.ioctl, Int(number), setIndex, address)
                }
                try request.withAddress { (address, _) throws(SystemCallError) in
                    try systemCall(.ioctl, Int(number), attach, address)
                }
            }
        } catch {
            throw Failure(
                .conflict, "can't attach to the interface \(name)",
                advice: isThere
                    ? "Another program may use it, or it may be of another kind: end that, or remove it" : nil,
                cause: error)
        }
        try set(number, name, entry, isNew: !isThere)
        if !isThere { try TunInterface.configure(name, entry) }
        if entry.detached { try detach(number, name) }
        context.log.debug("attached to the interface \(name), which \(isThere ? "was there" : "is new")")
    }

    private static func detach(_ number: Int32, _ name: String) throws(Failure) {
        var request = TunInterface.request(name, UInt16(TunInterface.detached))
        try attempt("detach a queue") { () throws(SystemCallError) in
            try request.withAddress { (address, _) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), setQueue, address)
            }
        }
    }

    private static func set(
        _ number: Int32, _ name: String, _ entry: TunfileEntry, isNew: Bool
    ) throws(Failure) {
        func put(_ command: Int, _ value: UInt32) throws(SystemCallError) {
            var value = value
            try withAddress(of: &value) { (address) throws(SystemCallError) in
                try systemCall(.ioctl, Int(number), command, address)
            }
        }
        try attempt("set the attributes") { () throws(SystemCallError) in
            try put(setBuffer, entry.link.sndbuf)
            try put(setHeader, entry.link.vnethdr)
            if entry.littleEndian { try put(setLittle, 1) }
            if entry.bigEndian { try put(setBig, 1) }
            guard isNew else { return }
            // These take the value itself.
            if entry.link.owner != -1 { try systemCall(.ioctl, Int(number), setOwner, Int(entry.link.owner)) }
            if entry.link.group != -1 { try systemCall(.ioctl, Int(number), setGroup, Int(entry.link.group)) }
            if entry.link.flags & TunInterface.persistent != 0 { try systemCall(.ioctl, Int(number), persist, 1) }
        }
    }
}
