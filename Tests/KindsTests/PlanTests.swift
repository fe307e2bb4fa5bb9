import Diagnostics
import ImageMessages
import Kinds
import Linux
import Testing

@Suite struct `The plan of births` {
    private func process(_ id: Int32, parent: Int32?, group: Int32, session: Int32, zombie: Bool = false)
        -> PlannedProcess
    {
        var core = CoreEntry()
        core.mtype = .x8664
        return PlannedProcess(
            id: TaskID(id), parent: parent.map { TaskID($0) }, session: TaskID(session), group: TaskID(group),
            threads: [TaskID(id)], cores: [core], ids: TaskKobjIdsEntry(), isZombie: zombie)
    }

    /// Carries out the steps on paper and compares every process's parent, session and group with the image.
    private func check(_ processes: [PlannedProcess]) throws {
        let plan = try RestorePlan.make(processes, mappings: [], shellJob: false)
        struct Task {
            var parent: TaskID?, session: TaskID, group: TaskID
        }
        var tasks: [TaskID: Task] = [:]
        for step in plan.births {
            switch step {
            case .sow(let id): tasks[id] = Task(parent: nil, session: TaskID(0), group: TaskID(0))
            case .build(let id): #expect(tasks[id] != nil)
            case .clone(let creator, let child), .cloneStandIn(let creator, let child):
                let parent = try #require(tasks[creator])
                tasks[child] = Task(parent: creator, session: parent.session, group: parent.group)
            case .cloneSibling(let creator, let child):
                let sibling = try #require(tasks[creator])
                tasks[child] = Task(parent: sibling.parent, session: sibling.session, group: sibling.group)
            case .startSession(let id):
                tasks[id]?.session = id
                tasks[id]?.group = id
            case .startGroup(let id): tasks[id]?.group = id
            case .joinGroup(let id, let group):
                let leader = try #require(tasks[group])
                #expect(leader.session == tasks[id]?.session)
                tasks[id]?.group = group
            case .orphan(let creator, let child):
                let from = try #require(tasks[creator])
                let planned = try #require(processes.first { $0.id == child })
                tasks[child] = Task(parent: planned.parent, session: from.session, group: from.group)
            case .dismiss(let id): tasks[id] = nil
            }
        }
        for process in processes {
            let made = try #require(tasks[process.id], "task \(process.id) is never born")
            #expect(made.parent == process.parent)
            #expect(made.session == process.session, "session of \(process.id)")
            #expect(made.group == process.group, "group of \(process.id)")
        }
        #expect(tasks.count == processes.count)
    }

    @Test func `a chain in one session`() throws {
        try check([
            process(10, parent: nil, group: 10, session: 10), process(11, parent: 10, group: 10, session: 10),
            process(12, parent: 11, group: 11, session: 10).with(group: 10),
        ])
    }

    @Test func `a child of the old session under a leader of a new one`() throws {
        try check([
            process(10, parent: nil, group: 10, session: 10), process(11, parent: 10, group: 11, session: 11),
            process(12, parent: 11, group: 10, session: 10), process(13, parent: 11, group: 11, session: 11),
        ])
    }

    @Test func `groups with a leader that is no more`() throws {
        try check([
            process(10, parent: nil, group: 10, session: 10), process(12, parent: 10, group: 11, session: 10),
            process(13, parent: 10, group: 11, session: 10),
        ])
    }

    @Test func `a session with a leader that is no more`() throws {
        try check([
            process(10, parent: nil, group: 10, session: 10), process(12, parent: 10, group: 11, session: 11),
            process(13, parent: 10, group: 11, session: 11),
        ])
    }

    @Test func `a zombie that led its group`() throws {
        try check([
            process(10, parent: nil, group: 10, session: 10),
            process(11, parent: 10, group: 11, session: 10, zombie: true),
            process(12, parent: 10, group: 11, session: 10),
        ])
    }

    @Test func `hostile trees are refused`() {
        let root = process(10, parent: nil, group: 10, session: 10)
        for others in [
            [process(11, parent: 99, group: 10, session: 10)], [process(10, parent: 10, group: 10, session: 10)],
            [process(11, parent: 12, group: 10, session: 10), process(12, parent: 11, group: 10, session: 10)],
            [process(-4, parent: 10, group: 10, session: 10)], [process(11, parent: nil, group: 10, session: 10)],
        ] {
            #expect(throws: Failure.self) { try RestorePlan.make([root] + others, mappings: [], shellJob: false) }
        }
    }

    @Test func `the runway lies where no process has memory`() throws {
        let taken = [AddressRange(0x100_0000_0000, 0x100_4000_0000), AddressRange(0x100_4000_1000, 0x101_0000_0000)]
        let hole = try RestorePlan.hole(in: taken, size: 1 << 24)
        #expect(hole.length == 1 << 24 && taken.allSatisfy { !$0.overlaps(hole) })
    }
}

extension PlannedProcess {
    fileprivate func with(group: Int32) -> PlannedProcess {
        var copy = self
        copy.group = TaskID(group)
        return copy
    }
}
