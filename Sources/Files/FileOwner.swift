internal import Diagnostics
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Logging

/// Who gets signals for a file (`F_SETOWN_EX`, `F_SETSIG`), common to all kinds.
enum FileOwner {
    /// No owner.
    static var nobody: FownEntry {
        var entry = FownEntry()
        (entry.uid, entry.euid, entry.signum, entry.pidType, entry.pid) = (0, 0, 0, 0, 0)
        return entry
    }

    /// Reads the owner through our copy of the descriptor. Descriptors opened with O_PATH have none.
    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FownEntry {
        var entry = nobody
        guard file.number >= 0, file.facts.statusFlags & UInt32(OpenFlags.path.rawValue) == 0 else { return entry }
        let number = Int(file.handle.number)
        let owner: FileOwnership
        if let known = file.facts.owner {
            owner = known
        } else {
            owner = try attempt("read the file's owner") { () throws(SystemCallError) in try ask(file.handle.number) }
        }
        entry.signum = owner.signal
        guard owner.id != 0 else { return entry }
        var ids: (uid: UInt32, euid: UInt32) = (0, 0)
        try attempt("read the file's owner") { () throws(SystemCallError) in
            try withAddress(of: &ids) { (address) throws(SystemCallError) in try systemCall(.fcntl, number, 17, address)
            }
        }
        // F_OWNER_TID is 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
        entry.pidType = UInt32(bitPattern: owner.type)
        entry.pid = UInt32(bitPattern: context.numbers[TaskID(owner.id)])
        (entry.uid, entry.euid) = (context.owners.user(ids.uid), context.owners.user(ids.euid))
        return entry
    }

    /// Asks a descriptor of ours that was not opened with O_PATH.
    static func ask(_ number: Int32) throws(SystemCallError) -> FileOwnership {
        var owner: (type: Int32, id: Int32) = (0, 0)
        try withAddress(of: &owner) { (address) throws(SystemCallError) in
            try systemCall(.fcntl, Int(number), 16, address)  // F_GETOWN_EX
        }
        var answer = FileOwnership()
        (answer.type, answer.id) = owner
        answer.signal = UInt32(try systemCall(.fcntl, Int(number), 11))  // F_GETSIG
        return answer
    }

    /// Sets the owner on a description that we hold. The owner must exist.
    static func restore(_ entry: FownEntry, on file: Int32, _ context: RestoreContext) throws(Failure) {
        guard entry.signum != 0 || entry.pid != 0 else { return }
        let number = Int(file)
        let task = context.numbers.task(Int32(bitPattern: entry.pid))
        if task == nil, entry.pid != 0 {
            context.log.warning("the owner \(entry.pid) of a file is gone: nobody gets its signals")
        }
        try attempt("set the file's owner") { () throws(SystemCallError) in
            if entry.signum != 0 { try systemCall(.fcntl, number, 10, Int(entry.signum)) }
            guard entry.pid != 0, let task else { return }
            // The kernel notes the caller's ids, to check later whether the signal is allowed.
            let changes = context.owners.isApart || entry.uid != 0 || entry.euid != 0
            if changes {
                try systemCall(.setresuid, context.owners.ourUser(entry.uid), context.owners.ourUser(entry.euid), -1)
            }
            var owner: (type: Int32, pid: Int32) = (Int32(entry.pidType), task.rawValue)
            let outcome = Result { () throws(SystemCallError) in
                try withAddress(of: &owner) { (address) throws(SystemCallError) in
                    try systemCall(.fcntl, number, 15, address)
                }
            }
            if changes {
                try systemCall(.setresuid, 0, 0, -1)
                try OwnerVisit.renew()
            }
            _ = try outcome.get()
        }
    }
}

extension FileEntry {
    /// An entry of a kind.
    init(_ type: FdTypes, _ id: UInt32) {
        self.init()
        self.type = UInt32(type.rawValue)
        self.id = id
    }
}
