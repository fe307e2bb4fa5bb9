internal import Diagnostics
internal import Kinds
internal import Linux
internal import Remote

/// The mounts that are read-only in the end, but are written to by the restore.
final class ReadOnlyMounts {
    private struct Place {
        /// Ours.
        let number: Int32
        /// In which of the tree's namespaces.
        let space: Int
        /// Whether the file system is read-only, and whether the mount is.
        let isWhole: Bool, isItself: Bool
    }

    private var places: [Place] = []

    deinit { for place in places { _ = try? systemCall(.close, Int(place.number)) } }

    /// Takes a copy of a task's descriptor of a mount.
    func add(_ mount: Int, of task: Puppet, _ space: Int, isWhole: Bool, isItself: Bool) throws(Failure) {
        let number = try attempt("fetch a descriptor of a mount") { () throws(SystemCallError) in
            try task.fetch(mount).release()
        }
        places.append(Place(number: number, space: space, isWhole: isWhole, isItself: isItself))
    }

    /// Makes them read-only.
    func seal(_ context: RestoreContext) throws(Failure) {
        let known = context.view.mounts
        for space in 0..<known.count {
            let places = places.filter { $0.space == space }
            guard !places.isEmpty else { continue }
            let namespace = known.handle(space)
            try attempt("make mounts read-only") { () throws(SystemCallError) in
                try MountVisit.perform(in: namespace) { () throws(SystemCallError) in
                    for place in places {
                        if place.isWhole { try MountVisit.makeReadOnly(fileSystemOf: place.number) }
                        if place.isItself { try MountVisit.makeReadOnly(place.number) }
                    }
                }
            }
        }
    }
}
