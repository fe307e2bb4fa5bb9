public import Diagnostics
internal import Linux
public import Remote

/// Finds out what the end of a thread would add to semaphores, by questions that change nothing.
public struct UndoSearch {
    /// A semaphore with bounds of its adjustment.
    private struct Cell {
        let set: Int, number: Int
        var low = Adjustment.least, high = Semaphores.most
        var isFound: Bool { low == high }

        /// What is asked next: the sign first, then powers of two, since most adjustments are small.
        var thresholds: [Int] {
            if low < 0, high > 0 { return [0, -1] }
            let offsets = (0..<16).map { 1 << $0 - 1 }.filter { $0 < high - low }
            return high > 0 ? offsets.map { low + $0 } : offsets.map { high - 1 - $0 }
        }
    }

    private struct Question {
        let cell: Int, threshold: Int
        let slot: Batch.Slot
    }

    private let thread: TaskID
    private let sets: [UInt32]
    private var values: [[UInt16]]
    private var cells: [Cell] = []
    private var open: [Int] = []
    private var asked: [Question] = []
    private var unread: Set<Int> = []
    private var tries = 0

    /// Most cells in a batch, and how often a set is asked anew that others keep changing.
    private static let mostCells = 256, mostTries = 1000

    init(_ thread: TaskID, _ sets: [(id: UInt32, count: Int)]) {
        self.thread = thread
        self.sets = sets.map(\.id)
        values = sets.map { [UInt16](repeating: 0, count: $0.count) }
        for (index, set) in sets.enumerated() {
            for number in 0..<set.count { cells.append(Cell(set: index, number: number)) }
        }
        open = Array(cells.indices.reversed())
    }

    /// Whether everything is known.
    public var isFinished: Bool { open.isEmpty }

    /// What the thread has to be asked next.
    public mutating func ask() throws(Failure) -> Batch {
        var batch = Batch()
        asked = []
        let batchCells = open.suffix(UndoSearch.mostCells)
        for set in Set(batchCells.map { cells[$0].set }) {
            // A set that vanishes has no adjustments.
            values[set] = (try? Semaphores.values(sets[set], count: values[set].count)) ?? values[set]
        }
        for index in batchCells {
            let cell = cells[index]
            for threshold in cell.thresholds {
                let operations = Adjustment.question(
                    cell.number, value: Int(values[cell.set][cell.number]), above: threshold)
                let buffer = batch.place(SemaphoreOperation.bytes(operations))
                let slot = batch.add(
                    .semop, .value(Int(sets[cell.set])), .buffer(buffer), .value(operations.count),
                    doing: "ask for what its end gives back of a semaphore", mayFail: true)
                asked.append(Question(cell: index, threshold: threshold, slot: slot))
            }
        }
        return batch
    }

    /// Takes the answers to what was asked.
    public mutating func take(_ results: Results) throws(Failure) {
        // Others may use a set as well. What they changed meanwhile is asked again.
        var steady: [Int: Bool] = [:]
        for set in Set(asked.map { cells[$0.cell].set }) {
            let now = try? Semaphores.values(sets[set], count: values[set].count)
            steady[set] = now == nil || now == values[set]
        }
        if steady.values.contains(false) {
            tries += 1
            guard tries < UndoSearch.mostTries else {
                throw Failure(
                    .unsupported,
                    "semaphores change too fast to find out what the end of thread \(thread) would give back",
                    advice: "Try again when others use them less")
            }
        }
        for question in asked where steady[cells[question.cell].set] == true { try take(question, results) }
        open = open.filter { !cells[$0].isFound }
    }

    private mutating func take(_ question: Question, _ results: Results) throws(Failure) {
        let id = sets[cells[question.cell].set]
        let isBeyond: Bool
        switch -results[question.slot] {
        case 34: isBeyond = true  // ERANGE
        case 11: isBeyond = false  // EAGAIN
        case 13:  // EACCES
            unread.insert(cells[question.cell].set)
            (cells[question.cell].low, cells[question.cell].high) = (0, 0)
            return
        case 22, 43:  // EINVAL, EIDRM: it was removed
            (cells[question.cell].low, cells[question.cell].high) = (0, 0)
            return
        case let other:
            throw Failure(
                .denied, "can't find out what the end of thread \(thread) would give back of the semaphore set \(id)",
                advice: "See /proc/sys/kernel/sem: a call needs 5 operations",
                cause: SystemCallError(.semop, Errno(rawValue: Int32(clamping: other))))
        }
        let isAbove = question.threshold >= 0 ? isBeyond : !isBeyond
        if isAbove {
            cells[question.cell].low = max(cells[question.cell].low, question.threshold + 1)
        } else {
            cells[question.cell].high = min(cells[question.cell].high, question.threshold)
        }
        guard cells[question.cell].low <= cells[question.cell].high else {
            throw Failure(
                .vanished, "the semaphore set \(id) changed while thread \(thread) was asked for it",
                advice: "Try again")
        }
    }

    /// Sets whose adjustments can't be told: the thread may not change them.
    var unreadable: [UInt32] { unread.sorted().map { sets[$0] } }

    /// Adjustments other than 0, by set and number.
    var found: [UInt32: [(number: Int, adjustment: Int)]] {
        var found: [UInt32: [(number: Int, adjustment: Int)]] = [:]
        for cell in cells where cell.low != 0 {
            found[sets[cell.set], default: []].append((cell.number, cell.low))
        }
        return found
    }
}
