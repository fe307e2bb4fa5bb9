internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// Files of which it is known that they can't be dumped, and why.
enum Refused: FileKind {
    /// What a file is, why it can't be dumped, what can be done about it.
    private struct Reason {
        let what: String, why: String, advice: String
    }

    private static let close = "Close it before the dump"

    /// By the text of the link, or its beginning.
    private static let reasons: [(link: String, reason: Reason)] = [
        (
            "anon_inode:[perf_event]",
            Reason(
                what: "a performance counter",
                why: "the kernel does not tell how it was set up, nor takes back its count",
                advice: "Stop the profiler, or close the counter, before the dump")
        ),
        (
            "anon_inode:bpf-prog",
            Reason(
                what: "a BPF program", why: "the kernel has only its translation",
                advice:
                    "Close it before the dump, pin it under /sys/fs/bpf if it is to stay, and load it again afterwards")
        ),
        (
            "anon_inode:bpf_link",
            Reason(
                what: "a BPF program's attachment", why: "the program can't be dumped",
                advice: "Detach it before the dump, or pin it under /sys/fs/bpf")
        ),
        ("anon_inode:bpf", Reason(what: "a BPF object", why: "the kernel does not tell what it holds", advice: close)),
        (
            "anon_inode:btf",
            Reason(what: "BPF type information", why: "no call loads it again as it was", advice: close)
        ),
        (
            "anon_inode:kvm",
            Reason(
                what: "part of a virtual machine", why: "its state is in the kernel and the processor",
                advice: "Use the virtual machine's own snapshots")
        ),
        (
            "anon_inode:[iommufd",
            Reason(what: "device memory mapping", why: "devices may be writing to it", advice: "Detach the device")
        ),
        (
            "anon_inode:[vfio",
            Reason(what: "a device in user space", why: "its state is in the hardware", advice: "Detach the device")
        ),
        (
            "anon_inode:seccomp notify",
            Reason(
                what: "the supervisor's end of a seccomp filter",
                why: "a filter can't be given the same supervisor again",
                advice: "Dump the supervised tasks and their supervisor without filters that notify")
        ),
        (
            "anon_inode:[landlock-ruleset]",
            Reason(what: "a Landlock rule set", why: "the kernel does not tell its rules", advice: close)
        ),
        (
            "anon_inode:[fscontext]",
            Reason(
                what: "a file system in the making", why: "the kernel does not tell its options",
                advice: "Let it be mounted, or close it, before the dump")
        ),
        (
            "/secretmem (deleted)",
            Reason(
                what: "secret memory (memfd_secret)", why: "nobody but its task can read it, by design",
                advice: "Unmap and close it before the dump")
        ),
        (
            "anon_inode:dmabuf",
            Reason(
                what: "a buffer of a device", why: "its state is in the hardware", advice: "Stop the use of the device")
        ),
        (
            "anon_inode:sync_file",
            Reason(what: "a fence of a device", why: "its state is in the hardware", advice: close)
        ),
        ("/dev/kvm", Reason(what: "the door to virtual machines", why: "it has state in the kernel", advice: close)),
        (
            "/dev/fuse",
            Reason(
                what: "a file system served by a task", why: "requests under way can't be kept",
                advice: "Unmount the file system before the dump")
        ),
    ]

    private static func reason(_ facts: FileFacts) -> Reason? {
        guard facts.statusFlags & UInt32(OpenFlags.path.rawValue) == 0 else { return nil }
        return reasons.first { facts.begins(with: $0.link) && isMeant($0.link, facts) }?.reason
    }

    /// A map of BPF is not meant by "a BPF object"; and ordinary files may have any name.
    private static func isMeant(_ link: String, _ facts: FileFacts) -> Bool {
        if link == "anon_inode:bpf" { return !BPFMap.claims(facts) }
        if link.hasPrefix("/dev/") { return facts.text == link && facts.status.kind == .characterDevice }
        // An ordinary file that says so has no links.
        if link.hasPrefix("/") { return facts.text == link && facts.status.links > 0 && facts.status.blocks == 0 }
        return true
    }

    static func claims(_ facts: FileFacts) -> Bool { reason(facts) != nil }

    static func refusal(_ facts: FileFacts) -> Failure? {
        guard let reason = reason(facts) else { return nil }
        return Failure(
            .unsupported, "this is \(reason.what), which can't be dumped: \(reason.why)", advice: reason.advice)
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        throw refusal(file.facts) ?? Refused.unknown(file.facts)
    }

    static func restores(_ entry: FileEntry) -> Bool { false }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {}

    /// Why a file of no known kind can't be dumped.
    static func unknown(_ facts: FileFacts) -> Failure {
        let kind: String
        if facts.begins(with: "anon_inode:") {
            kind = "objects of the kind \(facts.text.dropFirst("anon_inode:".count))"
        } else if facts.status.kind == .characterDevice || facts.status.kind == .blockDevice {
            kind = "devices with the numbers \(facts.status.representedMajor):\(facts.status.representedMinor)"
        } else {
            kind = "descriptors of this kind"
        }
        return Failure(
            .unsupported, "\(kind) can't be dumped yet", advice: "Close it before the dump, or see docs/unsupported.md")
    }
}
