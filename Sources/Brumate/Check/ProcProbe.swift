internal import Linux
internal import SystemPackage

/// Probes of /proc and of programs.
enum ProcProbe {
    /// Whether a path exists.
    static func exists(_ path: FilePath) throws(SystemCallError) -> Bool {
        try withPath(path) { (address) throws(SystemCallError) in
            try systemCall(.faccessat, Int(currentDirectory), address, 0) == 0
        }
    }

    /// The text of a file.
    static func text(_ path: String) throws(SystemCallError) -> String {
        String(decoding: try readWholeFile(path), as: UTF8.self)
    }

    /// Whether /proc/self/status has a line of this key.
    static func statusHas(_ key: String) throws(SystemCallError) -> Bool {
        try text("/proc/self/status").split(separator: "\n").contains { $0.hasPrefix(key) }
    }

    /// Whether fdinfo names the mount of a file.
    static func hasMountIDs() throws(SystemCallError) -> Bool {
        let file = try openFile("/proc/self/status")
        return try information(of: file, has: "mnt_id:")
    }

    /// Whether fdinfo lists locks.
    static func showsLocks() throws(SystemCallError) -> Bool {
        let file = try MemoryProbe.memoryFile()
        try systemCall(.flock, Int(file.number), 2)  // LOCK_EX
        return try information(of: file, has: "lock:")
    }

    private static func information(of file: borrowing Descriptor, has key: String) throws(SystemCallError) -> Bool {
        try text("/proc/self/fdinfo/\(file.number)").split(separator: "\n").contains { $0.hasPrefix(key) }
    }

    /// Whether the expirations of a timerfd can be set (`TFD_IOC_SET_TICKS`): it must find our address wrong, not itself.
    static func setsTimerTicks() throws(SystemCallError) -> Bool {
        let timer = Descriptor(owning: Int32(try systemCall(.timerfd_create, 1, 0o2000000)))
        do {
            try systemCall(.ioctl, Int(timer.number), 0x4008_5400, 0)
            return true
        } catch {
            if error.errno == .EFAULT { return true }
            throw error
        }
    }

    /// Whether there are user namespaces, and the call that tasks in them need for their memory fields.
    static func hasUserNamespaces() throws(SystemCallError) -> Bool {
        guard try exists("/proc/self/ns/user") else { return false }
        return try MemoryProbe.setsMemoryMap()
    }

    /// Whether the login uid can be taken back. It is set to what it was.
    static func setsLoginUser() throws(SystemCallError) -> Bool {
        let before = try readWholeFile("/proc/self/loginuid")
        for value in [Array("4294967295".utf8), before] {
            let file = try openFile("/proc/self/loginuid", [.writeOnly])
            try writeAll(value, to: file.number)
        }
        return true
    }

    /// Whether the kernel knows a file system.
    static func hasFileSystem(_ name: String) throws(SystemCallError) -> Bool {
        try text("/proc/filesystems").split(separator: "\n").contains { $0.split(separator: "\t").last == name[...] }
    }

    /// Whether a program is installed where administrators' programs are.
    static func hasProgram(_ name: String) throws(SystemCallError) -> Bool {
        for folder in ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin", "/usr/local/bin"] {
            do { if try exists(FilePath("\(folder)/\(name)")) { return true } } catch { continue }
        }
        return false
    }
}
