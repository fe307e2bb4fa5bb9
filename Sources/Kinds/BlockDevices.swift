public import Diagnostics
internal import Linux
internal import SystemPackage

/// The machine's disks, which finish what a stopped tree has asked of them.
public final class BlockDevices {
    private var isSettled = false

    /// Those of a dump.
    public static func of(_ context: DumpContext) -> BlockDevices {
        context.state(BlockDevices.self) { BlockDevices() }
    }

    /// How long each may take until it is seen idle.
    private static let patience = Duration.seconds(5)

    /// Waits until each was seen without requests, once since the tree stands still: what it had asked for is done.
    ///
    /// - Parameter requests: what may be under way, for the message.
    public func settle(_ requests: String) throws(Failure) {
        guard !isSettled else { return }
        let deadline = ContinuousClock.now + BlockDevices.patience
        var busy = (try? listDirectory("/sys/block"))?.map(\.string) ?? []
        while true {
            busy.removeAll { name in
                guard let text = try? readWholeFile("/sys/block/\(name)/inflight") else { return true }
                return text.allSatisfy { $0 == 0x30 || $0 == 0x20 || $0 == 0x09 || $0 == 0x0a }
            }
            guard let first = busy.first else { break }
            guard ContinuousClock.now < deadline else {
                throw Failure(
                    .unsupported, "\(requests) may be in flight: the disk \(first) is never idle",
                    advice: "Try again when it has less to do")
            }
            pause(nanoseconds: 200_000)
        }
        // The last completions are still on their way from the device to the task.
        pause(nanoseconds: 5_000_000)
        isSettled = true
    }
}
