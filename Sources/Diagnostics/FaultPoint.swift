internal import Linux

/// A named place where tests make an order fail or die, to prove that nothing is harmed.
public enum FaultPoint: String, CaseIterable, Sendable {
    /// Dump: all tasks are stopped.
    case dumpFrozen = "dump-frozen"
    /// Dump: all packets of the tree's own network namespace are held up.
    case dumpLocked = "dump-locked"
    /// Dump: the server's code is written into a task.
    case dumpPlanted = "dump-planted"
    /// Dump: the task runs the server.
    case dumpConnected = "dump-connected"
    /// Dump: the memory of a task is copied, the task still runs the server (`--live`).
    case dumpCopied = "dump-copied"
    /// Writes to shared memory are held up.
    case dumpHeld = "dump-held"
    /// Dump: all tasks are cured and rest in their stop.
    case dumpCured = "dump-cured"
    /// Dump: descriptors are dumped.
    case dumpFiles = "dump-files"
    /// Dump: pages are being written.
    case dumpPages = "dump-pages"
    /// Dump: everything but the inventory is written.
    case dumpCommit = "dump-commit"
    /// Dump: the tree ends with us, as it is about to live at another place.
    case dumpGivenUp = "dump-given-up"
    /// Restore: the plan is made.
    case restorePlanned = "restore-planned"
    /// Restore: the tree's own network namespace is filled.
    case restoreNetwork = "restore-network"
    /// Restore: the root task exists.
    case restoreSown = "restore-sown"
    /// Restore: all tasks exist.
    case restoreGrown = "restore-grown"
    /// Restore: memory is in place.
    case restoreMemory = "restore-memory"
    /// Restore: descriptors are in place.
    case restoreFiles = "restore-files"
    /// Restore: credentials are final, nothing released.
    case restoreSealed = "restore-sealed"
    /// Restore: the tree no longer dies with us, but nothing runs yet. Who dies here leaves a whole tree.
    case restoreReleasing = "restore-releasing"
    /// Unpack: the new files are beside the old ones.
    case unpackWritten = "unpack-written"
    /// Unpack: the inventory tells of no hashes.
    case unpackBare = "unpack-bare"
    /// Unpack: the inventory tells of new hashes, the old files are still there.
    case unpackSealed = "unpack-sealed"
}

/// Something that tests take away, to see that an order gets by without it.
public enum FaultSwitch: String, CaseIterable, Sendable {
    /// Restore: no vdso of an image is this kernel's.
    case foreignVdso = "foreign-vdso"
    /// Restore: the kernel can't be told the ids of timers.
    case withoutTimerIDs = "without-timer-ids"
}

/// The faults asked for by the environment variable `BRUMATE_FAULT=point[:fail|kill]`, or `BRUMATE_FAULT=switch`, and by
/// CRIU's numbers in `CRIU_FAULT`.
public struct Faults: Sendable {
    private let point: FaultPoint?
    private let kill: Bool
    private let lacking: FaultSwitch?

    /// No faults.
    public init() { self.init(environment: nil) }

    /// Reads the value of `BRUMATE_FAULT`, and of `CRIU_FAULT`, of whose numbers 127 is known: a foreign vdso. What is
    /// unknown is ignored.
    public init(environment value: String?, criu number: String? = nil) {
        let parts = (value ?? "").split(separator: ":")
        point = parts.first.flatMap { FaultPoint(rawValue: String($0)) }
        kill = parts.count > 1 && parts[1] == "kill"
        lacking = number == "127" ? .foreignVdso : value.flatMap { FaultSwitch(rawValue: $0) }
    }

    /// Whether something is to be done without.
    public func lacks(_ thing: FaultSwitch) -> Bool { lacking == thing }

    /// Fails or kills this process if this point was asked for.
    public func pass(_ here: FaultPoint) throws(Failure) {
        guard point == here else { return }
        if kill { _ = try? systemCall(.kill, Int(TaskID.current.rawValue), 9) }
        throw Failure(.denied, "the fault point \(here.rawValue) was asked for", advice: "Unset BRUMATE_FAULT")
    }
}
