internal import ImageMessages
internal import Kinds
internal import Linux

/// Options of mounts and of file systems, between their words in mountinfo, their bits in images (`MS_*`) and what
/// `mount_setattr(2)` takes.
enum MountOptions {
    private static let words: [(word: String, flag: UInt32, attribute: UInt64)] = [
        ("ro", 1, 1), ("nosuid", 2, 2), ("nodev", 4, 4), ("noexec", 8, 8), ("nosymfollow", 256, 0x20_0000),
        ("noatime", 1024, 0x10), ("nodiratime", 2048, 0x80), ("relatime", 1 << 21, 0),
    ]
    private static let fileSystemWords: [(word: String, flag: UInt32)] = [
        ("ro", 1), ("sync", 16), ("mand", 64), ("dirsync", 128), ("lazytime", 1 << 25),
    ]

    /// All attributes that are set or cleared.
    static let all: UInt64 = 0x20_00ff
    /// `MS_UNBINDABLE`.
    static let unbindable: UInt32 = 1 << 17
    /// `MOUNT_ATTR_RDONLY`.
    static let readOnly: UInt64 = 1
    /// `MOUNT_ATTR_STRICTATIME`.
    private static let strict: UInt64 = 0x20

    /// The bits of a mount's options.
    static func flags(_ options: String) -> UInt32 {
        var flags: UInt32 = 0
        for word in options.split(separator: ",") {
            flags |= words.first { $0.word == word }?.flag ?? 0
        }
        return flags
    }

    /// The bits among the options of a file system, and the rest of them.
    static func split(_ options: String, _ owners: TreeOwners) -> (flags: UInt32, rest: String) {
        var flags: UInt32 = 0
        var rest: [String] = []
        for word in options.split(separator: ",") where word != "rw" {
            if let known = fileSystemWords.first(where: { $0.word == word }) {
                flags |= known.flag
            } else {
                rest.append(named(String(word), owners))
            }
        }
        return (flags, rest.joined(separator: ","))
    }

    /// An option that may name a user or a group, as the tree calls them.
    private static func named(_ word: String, _ owners: TreeOwners) -> String {
        let parts = word.split(separator: "=")
        guard owners.isApart, parts.count == 2, let number = UInt32(parts[1]) else { return word }
        switch parts[0] {
        case "uid": return "uid=\(owners.user(number))"
        case "gid": return "gid=\(owners.group(number))"
        default: return word
        }
    }

    /// What sets a mount's options to those of an image.
    static func attributes(_ flags: UInt32) -> UInt64 {
        var attributes = words.reduce(UInt64(0)) { flags & $1.flag == 0 ? $0 : $0 | $1.attribute }
        if flags & (1024 | 1 << 21) == 0 { attributes |= strict }
        return attributes
    }

    /// Kinds of file system that are mounted anew, by their names, with their numbers in images. Others must be there.
    static let kinds: [String: UInt32] = [
        "proc": 1, "sysfs": 2, "devtmpfs": 3, "binfmt_misc": 4, "tmpfs": 5, "devpts": 6, "pstore": 8, "securityfs": 9,
        "fusectl": 10, "debugfs": 11, "cgroup": 12, "mqueue": 14, "tracefs": 19, "cgroup2": 23,
    ]
    /// devpts.
    static let terminals: UInt32 = 6
    /// Of a kind that has a name of its own in the image.
    static let named: UInt32 = 16

    /// The name of a file system's kind in an image; nil for one that can't be mounted anew.
    static func kind(_ entry: MntEntry) -> String? {
        if entry.fstype == named { return String(decoding: entry.fsname, as: UTF8.self) }
        return kinds.first { $0.value == entry.fstype }?.key
    }
}
