public import Diagnostics
public import Kinds

/// Dumps System V semaphores and message queues, as far as they are the tree's. Segments are the memory's.
public enum IPCDump {
    /// Looks at what there is, once the tree is collected, and who shares an undo list.
    public static func collect(_ context: DumpContext) throws(Failure) {
        let semaphores = SemaphoreDump.of(context)
        try semaphores.collect(context)
        try semaphores.identify(context)
    }

    /// What a thread has to be asked, nil if nothing.
    public static func search(_ thread: DumpedThread, _ context: DumpContext) -> UndoSearch? {
        SemaphoreDump.of(context).search(thread)
    }

    /// Takes what a search has found.
    public static func take(_ search: UndoSearch, _ thread: DumpedThread, _ context: DumpContext) {
        SemaphoreDump.of(context).take(search, thread, context)
    }

    /// Writes the images.
    public static func finish(_ context: DumpContext) throws(Failure) {
        if context.namespaces.apart.contains(.ipc) { try IPCSettings.dump(NamespaceKind.ipc.treeID, context) }
        try SemaphoreDump.of(context).finish(context)
        try QueueDump.dump(context)
    }
}
