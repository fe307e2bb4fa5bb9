public import Diagnostics
internal import Files
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
public import Logging
internal import Memory
internal import Pages
internal import Procfs
internal import Remote
public import SystemPackage
internal import Tasks

/// Writes the memory of a tree that runs on, ahead of a dump that refers to it. Returns the figures.
///
/// The tree stands still only while its pages are found. Whatever it writes from then on is noted, so the images may hold
/// what is newer than that: the next dump has all of it anew.
public func preDump(_ request: DumpRequest, log: Logger) throws(Failure) -> Statistics {
    raiseDescriptorLimit()
    let images = try newImages(request)
    let context = DumpContext(policy: request.policy, images: images, log: log, faults: request.faults)
    do throws(Failure) {
        try Preflight.checkTree(request.root)
        try Preflight.findNamespaces(request.root, context)
        let tracking = try MemoryTracking(
            request.root, continues: true, previous: request.previous, images: images,
            waitsForRequests: false, log: log)
        tracking.serve(context)
        images.previous = tracking.parent
        images.tracksSharedMemory = true
        try images.connect(to: request.pageServer)
        Server.prepare()
        Heap.reserve(512 << 10)
        try request.scripts.run(.preDump, images: images.directory.number, root: request.root)
        let foresight = Foresight(request.root)
        let started = ContinuousClock.now
        while true {
            let tree = try FrozenTree.freeze(request.root, deadline: started + request.timeout)
            context.statistics[.freezing] = ContinuousClock.now - started
            let order = DumpOrder(context: context, tree: tree.processes, files: FileDump(context))
            do throws(Failure) {
                try order.collect(foresight, onlyMemory: true)
                if !order.isHealing {
                    try order.findPages()
                    tree.thaw(.running)
                    break
                }
            } catch {
                tree.thaw(.running)
                throw error
            }
            tree.thaw(.running)
            try awaitHealing(request, started)
            context.processes = []
        }
        context.statistics[.frozen] = ContinuousClock.now - started
        try MemoryDump.writePages(context)
        try MemoryDump.writeSharedMemory(context)
        try images.pageReceiver?.finish()
        try images.writeOut()
        try context.faults.pass(.dumpCommit)
        var inventory = InventoryEntry()
        (inventory.imgVersion, inventory.fdinfoPerID, inventory.nsPerID) = (2, true, true)
        inventory.lsmtype = .noLsm
        inventory.preDumpMode = request.readsPages ? 2 : 1
        if let root = context.processes.first { inventory.rootIds = ObjectSharing.ownIDs(like: root.ids) }
        tracking.describe(&inventory)
        try images.commit(inventory, sync: request.isSynced ? .best() : .none)
        try images.write(.dumpStatistics, [statisticsEntry(dump: context.statistics)])
        try images.writeOut()
        tracking.keep(request.root)
        if request.deduplicates { try deduplicate(request.images, log: log) }
        return context.statistics
    } catch {
        images.discard()
        throw error
    }
}

/// Takes pages out of the parents of the images in a directory that these, or those between, have anew.
public func deduplicate(_ images: FilePath, log: Logger) throws(Failure) {
    var deduplication = try Deduplication(try ImageSet(images))
    let freed = try deduplication.run()
    for name in deduplication.packed {
        log.warning("nothing is taken out of \(name), because it is packed: run 'brumate unpack' there first")
    }
    log.notice("took \(freed >> 10) KiB out of the parents of \(images)")
}

/// The word that makes our program hold what was tracked of a tree's memory until the next order.
public let trackingHolderOrder = TrackingHolder.order

/// Holds it. Returns the exit status.
public func holdTracking() -> Int32 { TrackingHolder.hold() }

extension DumpOrder {
    /// Finds the pages of all processes.
    fileprivate func findPages() throws(Failure) {
        var sharing = ObjectSharing(context)
        for process in context.processes { try sharing.identify(process) }
        let tracking = MemoryTracking.of(context)
        for process in context.processes {
            try during(.dumping(process.id, process.name)) { () throws(Failure) in
                if tracking.needsDescriptor(process, context) {
                    if let leader = process.threads.first { try TaskDump.prepare(leader) }
                    let server = try startServer(process, context)
                    let outcome: Result<Void, Failure>
                    do throws(Failure) { outcome = .success(try tracking.open(process, server)) } catch {
                        outcome = .failure(error)
                    }
                    try server.cure(memory: process.memory)
                    try outcome.get()
                }
                try MemoryDump.notePages(process, context)
            }
        }
    }
}
