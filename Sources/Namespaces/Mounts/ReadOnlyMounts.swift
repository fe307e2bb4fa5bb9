internal import Diagnostics
internal import Kinds
internal import Linux
internal import Remote

/// The mounts that are read-only in the end, but are written to by the restore.
final class ReadOnlyMounts {
    private struct Place {
        /// Ours.
        let number: Int32
        /// Whether the file system is read-only, and whether the mount is.
        let isWhole: Bool, isItself: Bool
    }

    private var places: [Place] = []

    deinit { for place in places { _ = try? systemCall(.close, Int(place.number)) } }

    /// Takes a copy of a task's descriptor of a mount.
    func add(_ mount: Int, of task: Puppet, isWhole: Bool, isItself: Bool) throws(Failure) {
        let number = try attempt("fetch a descriptor of a mount") { () throws(SystemCallError) in
            try task.fetch(mount).release()
        }
        places.append(Place(number: number, isWhole: isWhole, isItself: isItself))
    }

    /// Makes them read-only.
    func seal(_ context: RestoreContext) throws(Failure) {
        guard !places.isEmpty, let root = context.processes.first else { return }
        let places = places
        try attempt("make mounts read-only") { () throws(SystemCallError) in
            let namespace = try openFile("/proc/\(root.task.rawValue)/ns/mnt")
            try MountVisit.perform(in: namespace.number) { () throws(SystemCallError) in
                for place in places {
                    if place.isWhole { try MountVisit.makeReadOnly(fileSystemOf: place.number) }
                    if place.isItself { try MountVisit.makeReadOnly(place.number) }
                }
            }
        }
    }
}
