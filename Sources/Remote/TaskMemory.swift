internal import CLinux
public import Diagnostics
public import Linux

/// Another task's memory through `/proc/PID/mem`, which also writes where the task itself may not.
public struct TaskMemory: ~Copyable, Sendable {
    /// Whose memory.
    public let task: TaskID
    private let file: Descriptor

    /// Opens a task's memory.
    public init(_ task: TaskID) throws(Failure) {
        self.task = task
        file = try attempt("open the memory of task \(task)") { () throws(SystemCallError) in
            try openFile("/proc/\(task.rawValue)/mem", .readWrite)
        }
    }

    /// The descriptor, for reading in other threads.
    public var number: Int32 { file.number }

    /// Reads bytes, all or an error.
    public borrowing func read(_ address: Address, count: Int) throws(SystemCallError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let number = file.number
        try bytes.withAddress { (buffer, count) throws(SystemCallError) in
            let got = try readFully(number, into: buffer, count: count, at: address.rawValue)
            if got < count { throw SystemCallError(.pread64, .EFAULT) }
        }
        return bytes
    }

    /// Reads a trivial value.
    public borrowing func read<T: BitwiseCopyable>(_ type: T.Type, at address: Address) throws(SystemCallError) -> T {
        let bytes = try read(address, count: MemoryLayout<T>.size)
        guard let value = bytes.load(type) else { throw SystemCallError(.pread64, .EFAULT) }
        return value
    }

    /// Writes bytes, all or an error.
    public borrowing func write(_ bytes: [UInt8], at address: Address) throws(SystemCallError) {
        let number = file.number
        try bytes.withConstantAddress { (buffer, count) throws(SystemCallError) in
            try writeFully(number, from: buffer, count: count, at: address.rawValue)
        }
    }
}
