public import Diagnostics
internal import Glibc
internal import Linux
public import SystemPackage

/// Runs a program with additions to our environment and waits for its end. Returns its exit status, or 128 and the
/// signal that ended it.
public func runProgram(_ path: FilePath, arguments: [String], environment: [String]) throws(Failure) -> Int32 {
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
    let error = unsafe path.withPlatformString { unsafe posix_spawn(&pid, $0, nil, nil, words, variables) }
    unsafe (words + variables).forEach { unsafe free($0) }
    guard error == 0 else {
        throw Failure(.denied, "can't run \(path.string)", cause: SystemCallError(.execve, Errno(rawValue: error)))
    }
    var status: Int32 = 0
    while unsafe waitpid(pid, &status, 0) < 0 {}
    return status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
}
