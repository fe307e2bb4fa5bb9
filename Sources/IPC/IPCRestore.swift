public import Diagnostics
internal import ImageFormat
internal import ImageMessages
public import Kinds

/// Restores System V semaphores and message queues.
public enum IPCRestore {
    /// Reads and checks the images, before anything is created.
    public static func load(_ context: RestoreContext) throws(Failure) {
        try SemaphoreRestore.of(context).load(context)
        try QueueRestore.of(context).load(context)
    }

    /// Sets the limits of a namespace of the tree's own, before anything is made in there.
    public static func prepare(_ context: RestoreContext) throws(Failure) {
        guard let id = context.ownNamespaces[.ipc] else { return }
        IPCSettings.restore(try context.images.load(.settingsOfIPC(id), as: IpcVarEntry.self), context)
    }

    /// Makes what is gone, and gives everything its contents, once all threads exist: who operated last, and what a task's
    /// end gives back, only the tasks themselves can say.
    public static func restore(_ context: RestoreContext) throws(Failure) {
        try SemaphoreRestore.of(context).restore(context)
        try QueueRestore.of(context).restore(context)
    }

    /// Sets which ids the next objects get, once all are made.
    public static func settle(_ context: RestoreContext) throws(Failure) {
        guard let id = context.ownNamespaces[.ipc] else { return }
        IPCSettings.restoreNext(try context.images.load(.settingsOfIPC(id), as: IpcVarEntry.self), context)
    }

    /// Takes back what a failed restore has made.
    public static func abandon(_ context: RestoreContext) {
        SemaphoreRestore.of(context).abandon()
        QueueRestore.of(context).abandon()
    }
}
