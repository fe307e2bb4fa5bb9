/// The name and magic number of an image file.
public struct ImageName: Hashable, Sendable {
    /// The file's name in the image directory.
    public var fileName: String
    /// The kind's magic number, 0 for raw images.
    public var magic: UInt32
    /// Whether it belongs to the tools and not to the checkpoint (stats, working sets).
    public var isService = false

    init(_ fileName: String, _ magic: UInt32, isService: Bool = false) {
        self.fileName = fileName
        self.magic = magic
        self.isService = isService
    }

    /// First word of an image of version 1.1.
    static let commonMagic: UInt32 = 0x5456_4319
    /// First word of a service image.
    static let serviceMagic: UInt32 = 0x5510_5940

    /// The words that begin the file. The inventory has no common magic: it tells which version the others have.
    var header: [UInt32] {
        if magic == 0 { return [] }
        if isService { return [ImageName.serviceMagic, magic] }
        return magic == ImageName.inventory.magic ? [magic] : [ImageName.commonMagic, magic]
    }

    /// `inventory.img`, written last.
    public static let inventory = ImageName("inventory.img", 0x5831_3116)
    /// `integrity.img`, our own: the hashes of all other images.
    public static let integrity = ImageName("integrity.img", 0x494e_5447)
    /// `pstree.img`.
    public static let processTree = ImageName("pstree.img", 0x5027_3030)
    /// `files.img`: every open file.
    public static let files = ImageName("files.img", 0x5630_3138)
    /// `seccomp.img`.
    public static let seccomp = ImageName("seccomp.img", 0x6441_3049)
    /// `pipes-data.img`.
    public static let pipesData = ImageName("pipes-data.img", 0x5645_3709)
    /// `sk-queues.img`: what waits to be received.
    public static let socketQueues = ImageName("sk-queues.img", 0x5626_4026)
    /// `sk-waiting.img`, our own: what was sent on connections that wait to be accepted.
    public static let waitingConnections = ImageName("sk-waiting.img", 0x534b_5741)
    /// `tcp-waiting.img`, our own: TCP connections that wait to be accepted.
    public static let waitingTCP = ImageName("tcp-waiting.img", 0x5443_5057)
    /// `inet-queues.img`, our own: datagrams that wait to be received.
    public static let datagrams = ImageName("inet-queues.img", 0x494e_5155)
    /// `fifo-data.img`.
    public static let fifoData = ImageName("fifo-data.img", 0x5933_3054)
    /// `remap-fpath.img`.
    public static let remapPaths = ImageName("remap-fpath.img", 0x5913_3954)
    /// `memfd.img`.
    public static let memfd = ImageName("memfd.img", 0x4845_3499)
    /// `inotify-queue.img`, our own: what waits to be read from inotifies.
    public static let inotifyQueue = ImageName("inotify-queue.img", 0x4252_4951)
    /// `bpfmap-data.img`.
    public static let bpfMapData = ImageName("bpfmap-data.img", 0x6432_4033)
    /// `mqueues.img`, which is ours: POSIX message queues.
    public static let messageQueues = ImageName("mqueues.img", 0x4d51_5545)
    /// `filelocks.img`.
    public static let fileLocks = ImageName("filelocks.img", 0x5432_3616)
    /// `cgroup.img`.
    public static let cgroup = ImageName("cgroup.img", 0x5938_3330)
    /// `cpuinfo.img`.
    public static let cpuInformation = ImageName("cpuinfo.img", 0x6140_4013)
    /// `tty-info.img`.
    public static let ttyInformation = ImageName("tty-info.img", 0x5945_3036)
    /// `tty-data.img`: what waits in terminals.
    public static let ttyData = ImageName("tty-data.img", 0x5941_3026)
    /// `stats-dump`.
    public static let dumpStatistics = ImageName("stats-dump", 0x5709_3306, isService: true)
    /// `stats-restore`.
    public static let restoreStatistics = ImageName("stats-restore", 0x5709_3306, isService: true)
    /// `working-set-PID`, our own: what threads waited for at lazy restores.
    public static func workingSet(_ id: Int32) -> ImageName {
        ImageName("working-set-\(id)", 0x574f_524b, isService: true)
    }
    /// `working-set-shmem-ID`, our own: the same of shared memory.
    public static func sharedWorkingSet(_ id: UInt64) -> ImageName {
        ImageName("working-set-shmem-\(id)", 0x574f_524b, isService: true)
    }
    /// `core-TID.img`.
    public static func core(_ id: Int32) -> ImageName { ImageName("core-\(id).img", 0x5505_3847) }
    /// `ids-PID.img`.
    public static func ids(_ id: Int32) -> ImageName { ImageName("ids-\(id).img", 0x5443_2030) }
    /// `mm-PID.img`.
    public static func memory(_ id: Int32) -> ImageName { ImageName("mm-\(id).img", 0x5749_2820) }
    /// `fs-PID.img`.
    public static func directories(_ id: Int32) -> ImageName { ImageName("fs-\(id).img", 0x5140_3912) }
    /// `fdinfo-ID.img`, by the id of the descriptor table.
    public static func descriptors(_ id: UInt32) -> ImageName { ImageName("fdinfo-\(id).img", 0x5621_3732) }
    /// `pagemap-PID.img`.
    public static func pagemap(_ id: Int32) -> ImageName { ImageName("pagemap-\(id).img", 0x5608_4025) }
    /// `pagemap-shmem-ID.img`.
    public static func sharedPagemap(_ id: UInt64) -> ImageName { ImageName("pagemap-shmem-\(id).img", 0x5608_4025) }
    /// `shared-sums-ID.img`, our own: hashes of the pages of a piece of shared memory.
    public static func sharedSums(_ id: UInt64) -> ImageName { ImageName("shared-sums-\(id).img", 0x5348_534d) }
    /// `pages-N.img`, raw pages.
    public static func pages(_ id: UInt32) -> ImageName { ImageName("pages-\(id).img", 0) }
    /// `packed-N.img`, our own: what `pages-N.img` holds, compressed.
    public static func packedPages(_ id: UInt32) -> ImageName { ImageName("packed-\(id).img", 0x5041_434b) }
    /// `ghost-file-ID.img`, in hexadecimal.
    public static func ghost(_ id: UInt32) -> ImageName {
        ImageName("ghost-file-\(String(id, radix: 16)).img", 0x5258_3605)
    }
    /// `ipcns-shm-ID.img`: System V shared memory.
    public static func sharedMemory(_ id: UInt32) -> ImageName { ImageName("ipcns-shm-\(id).img", 0x4628_3044) }
    /// `ipcns-sem-ID.img`: System V semaphores.
    public static func semaphores(_ id: UInt32) -> ImageName { ImageName("ipcns-sem-\(id).img", 0x5957_3019) }
    /// `ipcns-msg-ID.img`: System V message queues.
    public static func systemVQueues(_ id: UInt32) -> ImageName { ImageName("ipcns-msg-\(id).img", 0x5545_3737) }
    /// `plugin-ID.img`, raw: what a plugin keeps of a file.
    public static func pluginState(_ id: UInt32) -> ImageName { ImageName("plugin-\(id).img", 0) }
    /// `tcp-stream-INODE.img`, in hexadecimal: the state of a connection, and what waits in its queues.
    public static func tcpStream(_ inode: UInt32) -> ImageName {
        ImageName("tcp-stream-\(String(inode, radix: 16)).img", 0x5146_5506)
    }
    /// `mountpoints-ID.img`: the mounts of a mount namespace.
    public static func mounts(_ id: UInt32) -> ImageName { ImageName("mountpoints-\(id).img", 0x5556_3928) }
    /// `tmpfs-dev-DEVICE.tar.gz.img`, raw: what a file system in memory held.
    public static func mountedFiles(_ device: UInt32) -> ImageName { ImageName("tmpfs-dev-\(device).tar.gz.img", 0) }
    /// `pidns-ID.img`.
    public static func pidNamespace(_ id: UInt32) -> ImageName { ImageName("pidns-\(id).img", 0x6115_7326) }
    /// `userns-ID.img`: users and groups.
    public static func userNamespace(_ id: UInt32) -> ImageName { ImageName("userns-\(id).img", 0x5547_4906) }
    /// `utsns-ID.img`: the host's name.
    public static func hostName(_ id: UInt32) -> ImageName { ImageName("utsns-\(id).img", 0x5447_3203) }
    /// `ipcns-var-ID.img`: settings of an IPC namespace.
    public static func settingsOfIPC(_ id: UInt32) -> ImageName { ImageName("ipcns-var-\(id).img", 0x5311_5007) }
    /// `timens-ID.img`.
    public static func timeNamespace(_ id: UInt32) -> ImageName { ImageName("timens-\(id).img", 0x4311_4433) }
    /// `netns-ID.img`: the settings of a network namespace.
    public static func network(_ id: UInt32) -> ImageName { ImageName("netns-\(id).img", 0x5593_3752) }
    /// `netdev-ID.img`: the devices of a network namespace.
    public static func networkDevices(_ id: UInt32) -> ImageName { ImageName("netdev-\(id).img", 0x5737_3951) }
    /// A raw image of a network namespace.
    public static func network(_ id: UInt32, _ part: NetworkPart) -> ImageName {
        ImageName("\(part.rawValue)-\(id).img", 0)
    }

    /// Raw images of a network namespace, by the beginnings of their names.
    public enum NetworkPart: String, CaseIterable, Sendable {
        /// Addresses, routes and rules as `ip … save` writes them. The rules of IPv6 are our own.
        case addresses = "ifaddr"
        /// Routes of IPv4.
        case routes = "route"
        /// Routes of IPv6.
        case routes6 = "route6"
        /// Rules of IPv4.
        case rules = "rule"
        /// Rules of IPv6.
        case rules6 = "rule6"
        /// As `iptables-save` writes it.
        case iptables = "iptables"
        /// As `ip6tables-save` writes it.
        case ip6tables = "ip6tables"
        /// As `nft list` writes it.
        case nftables = "nftables"
        /// Messages of connection tracking.
        case tracked = "netns-ct"
        /// What connection tracking expects.
        case expected = "netns-exp"
        /// Further settings, our own: a path below /proc/sys/net, a tab, the value.
        case settings = "netns-sysctl"
    }

    /// Whether a file is a raw image of a namespace, which shows no magic.
    static func isOfNamespace(_ name: String) -> Bool {
        if name.hasPrefix("tmpfs-dev-") { return true }
        guard name.hasSuffix(".img"), let dash = name.lastIndex(of: "-") else { return false }
        return NetworkPart(rawValue: String(name[..<dash])) != nil
    }
}
