internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging
internal import Procfs
internal import Remote

/// User and group ids, capabilities, secure bits, no_new_privs; and what changing them resets: the death signal.
enum Credentials: TaskPart {
    struct Question {
        let secureBits: Batch.Slot
        let deathSignal: Batch.Buffer
    }

    static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
        let secureBits = batch.add(.prctl, .value(27), doing: "read the secure bits")
        let deathSignal = batch.reserve(4)
        batch.add(.prctl, .value(2), .buffer(deathSignal), doing: "read the death signal")
        return Question(secureBits: secureBits, deathSignal: deathSignal)
    }

    static func dump(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext
    ) throws(Failure) {
        let status = thread.status
        let (uids, gids) = (status.uids.map(context.owners.user), status.gids.map(context.owners.group))
        guard uids.count == 4, gids.count == 4 else { throw Failure(.bug, "/proc/PID/status has no ids") }
        var entry = CredsEntry()
        (entry.uid, entry.euid, entry.suid, entry.fsuid) = (uids[0], uids[1], uids[2], uids[3])
        (entry.gid, entry.egid, entry.sgid, entry.fsgid) = (gids[0], gids[1], gids[2], gids[3])
        entry.capInh = words(status.inheritableCapabilities)
        entry.capPrm = words(status.permittedCapabilities)
        entry.capEff = words(status.effectiveCapabilities)
        entry.capBnd = words(status.boundingCapabilities)
        entry.capAmb = words(status.ambientCapabilities)
        entry.secbits = UInt32(truncatingIfNeeded: results[question.secureBits])
        entry.groups = status.groups.map(context.owners.group)
        entry.noNewPrivs = status.noNewPrivileges ? 1 : 0
        thread.core.threadCore.creds = entry
        thread.core.threadCore.pdeathSig = results.value(UInt32.self, question.deathSignal)
    }

    private static func words(_ set: UInt64) -> [UInt32] { [UInt32(truncatingIfNeeded: set), UInt32(set >> 32)] }
    private static func set(_ words: [UInt32]) -> UInt64 {
        UInt64(words.first ?? 0) | UInt64(words.dropFirst().first ?? 0) << 32
    }

    private static let keepIDs = 1 << 2  // SECBIT_NO_SETUID_FIXUP: capabilities stay when the ids change

    static func recreate(
        _ thread: RestoredThread, _ stage: Stage, _ batch: inout Batch, _ context: RestoreContext
    ) throws(Failure) {
        guard stage == .seal, thread.core.threadCore.hasCreds else { return }
        let creds = thread.core.threadCore.creds
        let ours = try ownBounds(context)
        let bounding = set(creds.capBnd)
        let lacking = (bounding | set(creds.capPrm)) & ~ours
        guard lacking == 0 else {
            throw Failure(
                .denied, "it has the capabilities \(String(lacking, radix: 16)), which we lack",
                advice: "Run brumate with all capabilities of the image")
        }
        let groups = batch.place(creds.groups.flatMap { [UInt8](bytesOf: $0) })
        batch.add(.setgroups, .value(creds.groups.count), .buffer(groups), doing: "set the groups")
        batch.add(
            .setresgid, .bits(UInt64(creds.gid)), .bits(UInt64(creds.egid)), .bits(UInt64(creds.sgid)),
            doing: "set the group ids")
        batch.add(.setfsgid, .bits(UInt64(creds.fsgid)), doing: "set the group id for files")
        batch.add(.prctl, .value(28), .value(keepIDs), .value(0), .value(0), .value(0), doing: "keep capabilities")
        batch.add(
            .setresuid, .bits(UInt64(creds.uid)), .bits(UInt64(creds.euid)), .bits(UInt64(creds.suid)),
            doing: "set the user ids")
        batch.add(.setfsuid, .bits(UInt64(creds.fsuid)), doing: "set the user id for files")
        // The bounding set and the inheritable set can be changed only with CAP_SETPCAP, which goes last.
        for bit in 0..<64 where ours >> UInt64(bit) & 1 == 1 && bounding >> UInt64(bit) & 1 == 0 {
            batch.add(
                .prctl, .value(24), .value(bit), .value(0), .value(0), .value(0), doing: "drop a capability for good")
        }
        let header = batch.place(value: (UInt32(0x2008_0522), UInt32(0)))
        let inheritable = set(creds.capInh)
        let all = place(effective: ours, permitted: ours, inheritable: inheritable, &batch)
        batch.add(.capset, .buffer(header), .buffer(all), doing: "set the inheritable capabilities")
        let ambient = set(creds.capAmb)
        batch.add(
            .prctl, .value(47), .value(4), .value(0), .value(0), .value(0), doing: "clear the ambient capabilities")
        for bit in 0..<64 where ambient >> UInt64(bit) & 1 == 1 {
            batch.add(
                .prctl, .value(47), .value(2), .value(bit), .value(0), .value(0), doing: "set an ambient capability")
        }
        batch.add(
            .prctl, .value(28), .bits(UInt64(creds.secbits)), .value(0), .value(0), .value(0),
            doing: "set the secure bits")
        let header2 = batch.place(value: (UInt32(0x2008_0522), UInt32(0)))
        let final = place(
            effective: set(creds.capEff), permitted: set(creds.capPrm), inheritable: inheritable, &batch)
        batch.add(.capset, .buffer(header2), .buffer(final), doing: "set the capabilities")
        if creds.noNewPrivs != 0 {
            batch.add(.prctl, .value(38), .value(1), .value(0), .value(0), .value(0), doing: "set no_new_privs")
        }
        var deathSignal = thread.core.threadCore.pdeathSig
        if deathSignal != 0, thread.process.parent == nil, context.policy.isDetached {
            context.log.warning(
                "thread \(thread.id): no death signal (\(deathSignal)), as its parent is brumate, which ends now")
            deathSignal = 0
        }
        batch.add(
            .prctl, .value(1), .bits(UInt64(deathSignal)), .value(0), .value(0), .value(0),
            doing: "set the death signal")
        if thread.process.threads.last === thread, let memory = thread.process.plan.memory, memory.hasDumpable,
            memory.dumpable < 2
        {
            batch.add(
                .prctl, .value(4), .value(Int(memory.dumpable)), .value(0), .value(0), .value(0),
                doing: "set whether it is dumpable")
        }
    }

    private static func place(effective: UInt64, permitted: UInt64, inheritable: UInt64, _ batch: inout Batch)
        -> Batch.Buffer
    {
        let sets = [effective, permitted, inheritable]
        let low = sets.flatMap { [UInt8](bytesOf: UInt32(truncatingIfNeeded: $0)) }
        let high = sets.flatMap { [UInt8](bytesOf: UInt32($0 >> 32)) }
        return batch.place(low + high)
    }

    private final class OwnBounds {
        var set: UInt64?
    }

    /// The capabilities that puppets start with.
    private static func ownBounds(_ context: RestoreContext) throws(Failure) -> UInt64 {
        let known = context.state(OwnBounds.self) { OwnBounds() }
        if let set = known.set { return set }
        // In a user namespace of the tree, its first task has all that there are.
        let task = context.owners.isApart ? context.processes.first?.task : nil
        let status = try TaskStatus.read(of: task ?? .current)
        let set = status.boundingCapabilities & status.permittedCapabilities
        known.set = set
        return set
    }
}
