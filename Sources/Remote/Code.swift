internal import CRemote
internal import Linux

/// The bytes of the code that runs in other tasks.
enum Code {
    /// The loop of a puppet.
    static let loop = unsafe bytes(cremote_loop_start(), cremote_loop_end())
    /// The executable that a seed runs.
    static let seed = unsafe bytes(cremote_seed_start(), cremote_seed_end())
    /// The server of a live task.
    static let server = unsafe bytes(cremote_server_start(), cremote_server_end())
    /// Where a further thread enters the server.
    static let threadEntry = unsafe cremote_server_thread() - cremote_server_start()
    /// Where the server keeps the leader's state.
    static let leaderState = unsafe cremote_server_leader_state() - cremote_server_start()
    /// Where the server keeps a further thread's state.
    static let threadState = unsafe cremote_server_thread_state() - cremote_server_start()

    private static func bytes(_ start: UnsafePointer<UInt8>, _ end: UnsafePointer<UInt8>) -> [UInt8] {
        unsafe [UInt8](UnsafeBufferPointer(start: start, count: end - start))
    }
}
