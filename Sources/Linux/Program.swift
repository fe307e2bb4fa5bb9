internal import Glibc
public import SystemPackage

/// Starts a program with additions to our environment (`posix_spawn(3)`). The caller waits for its end.
///
/// - Parameter streams: which of our descriptors it gets, by the numbers that they have there. It gets no others but
///   the standard streams, as all of ours close on exec.
public func startProgram(
    _ path: FilePath, arguments: [String], environment: [String], streams: [Int32: Int32] = [:]
) throws(SystemCallError) -> TaskID {
    var pid: pid_t = 0
    var words: [UnsafeMutablePointer<CChar>?] = unsafe arguments.map { unsafe strdup($0) }
    unsafe words.append(nil)
    var variables: [UnsafeMutablePointer<CChar>?] = unsafe environment.map { unsafe strdup($0) }
    let taken = environment.map { String($0.prefix { $0 != "=" }) + "=" }
    var next = unsafe environ
    while let entry = unsafe next.pointee {
        let text = unsafe String(cString: entry)
        if !taken.contains(where: { text.hasPrefix($0) }) { unsafe variables.append(strdup(entry)) }
        unsafe next += 1
    }
    unsafe variables.append(nil)
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    for (number, ours) in streams.sorted(by: { $0.key < $1.key }) {
        unsafe posix_spawn_file_actions_adddup2(&actions, ours, number)
    }
    // We ignore it; programs are not used to that.
    var attributes = posix_spawnattr_t()
    unsafe posix_spawnattr_init(&attributes)
    var signals = sigset_t()
    unsafe sigemptyset(&signals)
    unsafe sigaddset(&signals, SIGPIPE)
    unsafe posix_spawnattr_setsigdefault(&attributes, &signals)
    unsafe posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGDEF))
    let error = RootVisit.outside {
        unsafe path.withPlatformString { unsafe posix_spawn(&pid, $0, &actions, &attributes, words, variables) }
    }
    unsafe posix_spawnattr_destroy(&attributes)
    unsafe posix_spawn_file_actions_destroy(&actions)
    unsafe (words + variables).forEach { unsafe free($0) }
    guard error == 0 else { throw SystemCallError(.execve, Errno(rawValue: error)) }
    return TaskID(pid)
}

/// Waits for the end of a child (`wait4(2)`). Returns its exit status, or 128 and the signal that ended it; nil if it has
/// not ended and we are not to wait.
public func waitForProgram(_ id: TaskID, waits: Bool = true) throws(SystemCallError) -> Int32? {
    var status: Int32 = 0
    let ended = try withAddress(of: &status) { (status) throws(SystemCallError) in
        try systemCall(.wait4, Int(id.rawValue), status, waits ? 0 : 1, 0)  // WNOHANG
    }
    guard ended != 0 else { return nil }
    return status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
}
