public import Linux
public import Procfs

/// What the tasks of a tree are called in a pid namespace of the tree's own. Images hold these numbers. In ours, all have the
/// numbers that we know them by.
public struct TaskNumbers: Sendable {
    private var theirs: [TaskID: Int32]?
    private var ours: [Int32: TaskID] = [:]

    /// Of a tree in our pid namespace.
    public init() {}

    /// Whether the tree has a pid namespace of its own.
    public var isApart: Bool { theirs != nil }

    /// From now on, only those count that are noted.
    public mutating func part() { if theirs == nil { theirs = [:] } }

    /// Notes what a task, its group and its session are called.
    ///
    /// - Parameter stat: the same task's, in our numbers.
    public mutating func note(_ status: TaskStatus, _ stat: TaskStat, of task: TaskID) {
        guard isApart else { return }
        if let number = status.namespaceIDs.last { note(task, as: number) }
        if let number = status.namespaceGroups.last, number != 0 { note(stat.group, as: number) }
        if let number = status.namespaceSessions.last, number != 0 { note(stat.session, as: number) }
    }

    /// Notes what a task is called.
    public mutating func note(_ task: TaskID, as number: Int32) {
        theirs?[task] = number
        ours[number] = task
    }

    /// The number of a task in images; 0 for who is out of the tree's sight.
    public subscript(_ task: TaskID) -> Int32 {
        guard let theirs else { return task.rawValue }
        return theirs[task] ?? 0
    }

    /// The number in images of a task that the kernel has named to us.
    public func number(_ task: UInt32) -> UInt32 { UInt32(bitPattern: self[TaskID(Int32(bitPattern: task))]) }

    /// The task that an image calls so. Nil if none is known.
    public func task(_ number: Int32) -> TaskID? { isApart ? ours[number] : TaskID(number) }
}
