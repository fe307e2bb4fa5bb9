public import Diagnostics
public import Linux

/// One entry of an epoll.
public struct WatchedPlace: Sendable {
    /// Our descriptor of the epoll.
    public var epoll: Int32
    /// The number that the file was watched under.
    public var number: Int32
    /// Which of the entries with this number, in the order of fdinfo.
    public var index: UInt32

    /// Names an entry.
    public init(epoll: Int32, number: Int32, index: UInt32) {
        self.epoll = epoll
        self.number = number
        self.index = index
    }
}

/// Which kernel objects two tasks or descriptors have in common, by kcmp(2).
///
/// kcmp also orders objects (by hidden keys), so each bucket is kept sorted and searched in halves: thousands of
/// objects cost a handful of calls each.
public struct SharingIndex {
    /// What is compared: the type argument of kcmp.
    public enum Object: Int, Sendable {
        /// An open file description.
        case file = 0
        /// An address space.
        case memory = 1
        /// A descriptor table.
        case files = 2
        /// Working and root directory, umask.
        case fs = 3
        /// Signal dispositions.
        case signalHandlers = 4
        /// What System V semaphores are given back at the end (`SEM_UNDO`).
        case undo = 6
    }

    private struct Representative {
        let task: TaskID
        let number: Int32
        let id: UInt32
    }

    private let object: Object
    private var places: [[UInt64]: Int] = [:]
    private var buckets: [[Representative]] = []
    private var last: UInt32 = 0

    /// An empty index.
    public init(_ object: Object) { self.object = object }

    /// A number that no object of this index has.
    public mutating func newID() -> UInt32 {
        last += 1
        return last
    }

    /// The id of an object, and whether it is seen for the first time.
    ///
    /// - Parameters:
    ///   - task: a task that has it.
    ///   - number: for files, the descriptor number in the task.
    ///   - key: facts that are equal wherever the object is seen; objects of different keys are never compared.
    ///   - lasting: who has the object for as long as the index is used, if `task` will not.
    public mutating func id(
        of task: TaskID, _ number: Int32 = 0, like key: [UInt64] = [], lasting: (task: TaskID, number: Int32)? = nil
    ) throws(Failure) -> (id: UInt32, isNew: Bool) {
        let place: Int
        if let known = places[key] {
            place = known
        } else {
            place = buckets.count
            places[key] = place
            buckets.append([])
        }
        var low = 0
        var high = buckets[place].count
        while low < high {
            let middle = (low + high) / 2
            let other = buckets[place][middle]
            let order = try attempt("compare kernel objects of the tasks \(task) and \(other.task)") {
                () throws(SystemCallError) in
                try systemCall(
                    .kcmp, Int(task.rawValue), Int(other.task.rawValue), object.rawValue, Int(number), Int(other.number)
                )
            }
            switch order {
            case 0: return (other.id, false)
            case 1: high = middle
            case 2: low = middle + 1
            default: throw Failure(.kernelTooOld, "kcmp can't order kernel objects")
            }
        }
        let id = newID()
        let (holder, held) = lasting ?? (task, number)
        buckets[place].insert(Representative(task: holder, number: held, id: id), at: low)
        return (id, true)
    }

    /// Whether a thread has an undo list of System V semaphores at all; nil if that can't be told. All threads without one
    /// look as if they shared it.
    public static func hasUndoList(_ thread: TaskID) -> Bool? {
        // We need no list, and without one we look the same as those who have none.
        guard (try? systemCall(.unshare, 0x40000)) != nil, let own = try? systemCall(.gettid) else { return nil }
        return (try? systemCall(.kcmp, Int(thread.rawValue), own, Object.undo.rawValue)).map { $0 != 0 }
    }

    /// Whether a descriptor of a task is what an epoll of ours watches.
    public static func isWatched(_ task: TaskID, _ number: Int32, by place: WatchedPlace) throws(Failure) -> Bool {
        try compare(task, number, place) == 0
    }

    /// The id of what an epoll of ours watches, nil if no descriptor refers to it.
    ///
    /// - Parameter inode: its inode number; files with the inode at the second place of their key are tried first.
    public func id(of place: WatchedPlace, inode: UInt64) throws(Failure) -> UInt32? {
        for isLikely in [true, false] {
            for (key, index) in places where (key.count > 1 && key[1] == inode) == isLikely {
                let bucket = buckets[index]
                var low = 0
                var high = bucket.count
                while low < high {
                    let middle = (low + high) / 2
                    let other = bucket[middle]
                    switch try SharingIndex.compare(other.task, other.number, place) {
                    case 0: return other.id
                    case 1: low = middle + 1
                    case 2: high = middle
                    default: throw Failure(.kernelTooOld, "kcmp can't order kernel objects")
                    }
                }
            }
        }
        return nil
    }

    private static func compare(_ task: TaskID, _ number: Int32, _ place: WatchedPlace) throws(Failure) -> Int {
        var slot: (Int32, Int32, UInt32) = (place.epoll, place.number, place.index)  // struct kcmp_epoll_slot
        let own = Int(TaskID.current.rawValue)
        return try attempt("compare a file of task \(task) with what an epoll watches") { () throws(SystemCallError) in
            try withAddress(of: &slot) { (slot) throws(SystemCallError) in
                try systemCall(.kcmp, Int(task.rawValue), own, 7, Int(number), slot)  // KCMP_EPOLL_TFD
            }
        }
    }
}
