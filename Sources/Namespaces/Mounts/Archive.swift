internal import Diagnostics
internal import Linux
internal import SystemPackage

/// Packs and unpacks what a directory holds, by tar and gzip, which is what images keep of a file system in memory.
enum Archive {
    /// The most bytes of an archive.
    static let largest = 1 << 30

    private static let packing = [
        "--create", "--gzip", "--no-unquote", "--no-wildcards", "--one-file-system", "--check-links",
        "--preserve-permissions", "--sparse", "--numeric-owner", "--xattrs", "--xattrs-include=*",
        "--directory", "/proc/self/fd/3", ".",
    ]
    private static let unpacking = [
        "--extract", "--gzip", "--no-unquote", "--no-wildcards", "--preserve-permissions", "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*", "--directory", "/proc/self/fd/3",
    ]

    /// Everything in a directory.
    ///
    /// - Parameter task: one whose user namespace tells what the owners are called, if that is not ours.
    static func pack(_ directory: borrowing Descriptor, as task: TaskID?) throws(Failure) -> [UInt8] {
        let directory = directory.number
        return try attempt("archive what it holds", advice: "Install tar and gzip") { () throws(SystemCallError) in
            let nothing = try memoryFile("nothing")
            let output = try memoryFile("archive")
            try run(packing, as: task, [0: nothing.number, 1: output.number, 3: directory])
            guard try systemCall(.lseek, Int(output.number), 0, 2) <= largest else {
                throw SystemCallError(.lseek, .EFBIG)
            }
            try systemCall(.lseek, Int(output.number), 0, 0)
            return try readToEnd(output)
        }
    }

    /// Puts everything back.
    static func unpack(
        _ bytes: [UInt8], into directory: borrowing Descriptor, as task: TaskID?
    ) throws(Failure) {
        let directory = directory.number
        try attempt("unpack what it held", advice: "Install tar and gzip") { () throws(SystemCallError) in
            let input = try memoryFile("archive", holding: bytes)
            try run(unpacking, as: task, [0: input.number, 3: directory])
        }
    }

    private static func run(
        _ arguments: [String], as task: TaskID?, _ streams: [Int32: Int32]
    ) throws(SystemCallError) {
        let inside = task.map { ["nsenter", "--user=/proc/\($0.rawValue)/ns/user", "--setuid=0", "--setgid=0"] } ?? []
        let program = try startProgram(
            "/bin/sh", arguments: ["sh", "-c", #"exec "$@""#, "tar"] + inside + ["tar"] + arguments, environment: [],
            streams: streams)
        guard try waitForProgram(program) == 0 else { throw SystemCallError(.execve, .EIO) }
    }
}
