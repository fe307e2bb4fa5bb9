internal import Diagnostics
internal import Kinds
internal import Linux
internal import Procfs
internal import Remote

/// Asks each thread about the io_urings of its process. Nothing is changed, but completions that wait for the thread to
/// look are posted.
enum Rings: TaskPart {
    struct Question {
        var rings:
            [(number: Int32, eventfd: Batch.Slot, polling: Batch.Slot, entered: Batch.Slot, groups: [Batch.Slot])] =
                []
        var handles: [Batch.Slot] = []
    }

    /// An address where nothing can be.
    private static let nowhere = Batch.Argument.bits(0xffff_ffff_ffff_f000)
    /// How many rings of a process, and groups of buffers of each, a thread is asked for; and all indices of handles.
    private static let mostRings = 32, mostGroups = 32, mostHandles = 16

    static func ask(_ thread: DumpedThread, _ batch: inout Batch) throws(Failure) -> Question {
        var question = Question()
        let process = thread.process
        guard process.hasRings else { return question }
        let folder = "/proc/\(process.id.rawValue)/fd"
        for number in (try? listNumbers(folder)) ?? [] where question.rings.count < mostRings {
            guard let link = try? readLink("\(folder)/\(number)").bytes,
                link.elementsEqual("anon_inode:[io_uring]".utf8)
            else { continue }
            let ring = Batch.Argument.value(Int(number))
            let eventfd = batch.add(
                .io_uring_register, ring, .value(4), nowhere, .value(1), doing: "ask for an eventfd", mayFail: true)
            let polling = batch.add(
                .io_uring_register, ring, .value(27), nowhere, .value(1), doing: "ask for polling", mayFail: true)
            let entered = batch.add(
                .io_uring_enter, ring, .value(0), .value(0), .value(1), .value(0), .value(0), doing: "look at a ring",
                mayFail: true)
            var groups: [Batch.Slot] = []
            for group in 0..<mostGroups {
                let status = batch.place([UInt8](bytesOf: UInt32(group)) + [UInt8](repeating: 0, count: 36))
                groups.append(
                    batch.add(
                        .io_uring_register, ring, .value(26), .buffer(status), .value(1), doing: "ask for buffers",
                        mayFail: true))
            }
            question.rings.append((number, eventfd, polling, entered, groups))
        }
        for index in 0..<mostHandles {
            // GETEVENTS | REGISTERED_RING
            question.handles.append(
                batch.add(
                    .io_uring_enter, .value(index), .value(0), .value(0), .value(17), .value(0), .value(0),
                    doing: "look at a registered ring", mayFail: true))
        }
        return question
    }

    static func dump(
        _ question: Question, _ results: Results, _ thread: DumpedThread, _ context: DumpContext
    ) throws(Failure) {
        let answers = RingAnswers.of(context)
        for ring in question.rings {
            // ENOENT: no such group. A kernel that can't tell says EINVAL to all; else that is a group of an older kind.
            let canTell = ring.groups.contains { results[$0] == -2 }
            answers.add(
                RingAnswers.Answer(
                    thread: thread.tracee.id, eventfd: results[ring.eventfd], polling: results[ring.polling],
                    entered: results[ring.entered],
                    groups: canTell
                        ? ring.groups.indices.filter {
                            results[ring.groups[$0]] != -2 && results[ring.groups[$0]] != -17
                        } : []),
                ring.number, of: thread.process.id)
        }
        // EBADF and EINVAL: no such handle.
        for (index, slot) in question.handles.enumerated() where results[slot] != -9 && results[slot] != -22 {
            answers.handles[thread.process.id, default: []].append((thread.tracee.id, index))
        }
    }
}
