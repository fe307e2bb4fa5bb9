internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// `status` bits of a mapping in the image.
struct AreaStatus: OptionSet, Hashable {
    var rawValue: UInt32
    static let regular = AreaStatus(rawValue: 1 << 0)
    static let vsyscall = AreaStatus(rawValue: 1 << 2)
    static let vdso = AreaStatus(rawValue: 1 << 3)
    static let heap = AreaStatus(rawValue: 1 << 5)
    static let filePrivate = AreaStatus(rawValue: 1 << 6)
    static let fileShared = AreaStatus(rawValue: 1 << 7)
    static let anonymousShared = AreaStatus(rawValue: 1 << 8)
    static let anonymousPrivate = AreaStatus(rawValue: 1 << 9)
    static let sysv = AreaStatus(rawValue: 1 << 10)
    static let socket = AreaStatus(rawValue: 1 << 11)
    static let vvar = AreaStatus(rawValue: 1 << 12)
    static let aioRing = AreaStatus(rawValue: 1 << 13)
    static let memfd = AreaStatus(rawValue: 1 << 14)
    static let shadowStack = AreaStatus(rawValue: 1 << 15)
    static let guardPages = AreaStatus(rawValue: 1 << 16)
    static let uprobes = AreaStatus(rawValue: 1 << 17)
    /// Ours: memory of an io_uring, which is mapped when that is made.
    static let ring = AreaStatus(rawValue: RingMapping.status)

    /// Ours: memory of a device, which only a plugin knows.
    static let device = AreaStatus(rawValue: 1 << 25)

    /// What only other issues can bring back.
    static let unsupported: AreaStatus = [.shadowStack, .uprobes]
    /// Mappings of a file in files.img.
    static let file: AreaStatus = [.filePrivate, .fileShared]
}

/// `MAP_*` bits as the image holds them, which are the kernel's.
enum MapFlags {
    static let shared = 0x1, `private` = 0x2, droppable = 0x8, fixed = 0x10, anonymous = 0x20, growsDown = 0x100
    static let locked = 0x2000, noReserve = 0x4000, hugePages = 0x40000, fixedNoReplace = 0x100000
    /// Where the size of huge pages is: the logarithm in 6 bits.
    static let hugeShift = 26
}

/// `MCL_*` bits of mlockall(2).
enum LockAll {
    static let future = 2, onFault = 4
}

/// A mapping to be restored.
struct Area: Hashable {
    var range: AddressRange
    var protection: Int
    var flags: Int
    var status: AreaStatus
    /// Id in files.img, or of a shared memory segment.
    var file: UInt64
    var offset: UInt64
    /// How the file must be open: 0 to read, 1 to write, 2 for both; nil if the image does not say.
    var access: UInt32?
    var advice: UInt64
    var name: [UInt8]
    var more: [String]
    /// The protection key; that of memory that can only be executed is the kernel's business.
    var key: UInt32
    /// NUMA mode with its flags, and nodes; 0 is the default.
    var policy: UInt32, nodes: [UInt8]

    /// Checks an image's mapping.
    init(_ entry: VmaEntry) throws(Failure) {
        range = AddressRange(entry.start, entry.end)
        protection = Int(entry.prot & 0xf)
        flags = Int(entry.flags)
        status = AreaStatus(rawValue: entry.status)
        // Its contents wait in ordinary memory at its place until it is made.
        if status.contains(.aioRing) { flags = MapFlags.private }
        file = entry.shmid
        offset = entry.pgoff
        access = entry.hasFdflags ? entry.fdflags & 3 : nil
        advice = entry.madv
        name = Array(entry.name)
        more = String(decoding: entry.moreFlags, as: UTF8.self).split(separator: " ").map(String.init)
        (key, policy, nodes) = (entry.protectionKey, entry.mempolicyMode, Array(entry.mempolicyNodes))
        guard key < 16, nodes.count <= 1 << 13 else {
            throw Failure(.corruptImage, "the mapping \(range) makes no sense")
        }
        guard entry.start < entry.end, entry.start % pageSize == 0, entry.end % pageSize == 0 else {
            throw Failure(.corruptImage, "the mapping \(range) makes no sense")
        }
        if status.contains(.vsyscall) { return }
        guard entry.end <= 0x7fff_ffff_f000 else {
            throw Failure(.corruptImage, "the mapping \(range) is not in user space")
        }
        if !status.isDisjoint(with: .unsupported) {
            throw Failure(
                .unsupported, "the mapping \(range) is of a kind that can't be restored yet (status \(entry.status))")
        }
    }

    /// Whether its pages belong to the process alone.
    var isPrivate: Bool { !status.isDisjoint(with: [.filePrivate, .anonymousPrivate, .aioRing]) && !isOfKernel }
    /// Whether the kernel made it.
    var isOfKernel: Bool { !status.isDisjoint(with: [.vdso, .vvar, .vsyscall]) }
    /// Whether it is mapped from a descriptor.
    var isFile: Bool { !status.isDisjoint(with: .file) }
    /// How a System V segment is attached: the protection that the mapping then has.
    var attachedProtection: Int { (access == 0 ? 1 : 3) | protection & 4 }
    /// Whether it can only be executed, which the kernel makes of a protection key of its own.
    var isExecuteOnly: Bool { protection == 4 }
    /// Whether it has to be mapped at all.
    var isMapped: Bool { !isOfKernel && status.isDisjoint(with: [.guardPages, .ring, .socket]) }

    /// Whether a mapping of a parent can serve as this one: it is the same but for what is set at the end.
    func isInheritable(from other: Area) -> Bool {
        isMapped && !status.contains(.device) && range == other.range && flags == other.flags && status == other.status
            && file == other.file
            && offset == other.offset
    }
}

extension VMA {
    /// Whether it is memory of a device.
    var isDevice: Bool { !isOfKernel && (flags.contains("io") || flags.contains("pf")) }

    /// Whether it is memory of an io_uring.
    var isRing: Bool { isShared && isNamed("anon_inode:[io_uring]") }

    /// Whether it is the rings of a packet socket.
    var isSocket: Bool { name.starts(with: "socket:[".utf8) }

    /// Size of its pages in bytes, if they are huge.
    var hugePageSize: UInt64? { flags.contains("ht") ? kernelPageSize ?? 2 << 20 : nil }
}
