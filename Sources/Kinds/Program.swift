public import Diagnostics
internal import Linux
public import SystemPackage

/// Runs a program with additions to our environment and waits for its end. Returns its exit status, or 128 and the
/// signal that ended it.
public func runProgram(_ path: FilePath, arguments: [String], environment: [String]) throws(Failure) -> Int32 {
    try attempt("run \(path.string)") { () throws(SystemCallError) in
        let id = try startProgram(path, arguments: arguments, environment: environment)
        return try waitForProgram(id) ?? 0
    }
}
