public import Diagnostics
public import Linux
public import Logging
public import SystemPackage

/// The plugins of an order.
public final class Plugins {
    /// Where they are when the user does not say.
    public static let directory = FilePath("/usr/lib/brumate")

    private let directory: FilePath?
    private let names: [String]
    private let order: String
    private let log: Logger?
    private var running: [Plugin] = []

    /// No plugins.
    public init() { (directory, names, order, log) = (nil, [], "", nil) }

    /// Looks for plugins; none is started yet.
    ///
    /// - Parameter directory: where the user says that they are (`--libdir`); there must be such a directory.
    public init(in directory: FilePath?, order: String, log: Logger) throws(Failure) {
        let place = directory ?? Plugins.directory
        (self.directory, self.order, self.log) = (place, order, log)
        do throws(SystemCallError) {
            names = try listDirectory(place).map(\.string).filter { Plugins.isPlugin($0, in: place, log) }.sorted()
        } catch {
            names = []
            guard directory == nil, error.errno == .ENOENT else {
                throw Failure(
                    .denied, "can't look for plugins in \(place.string)",
                    advice: "Pass another directory with --libdir",
                    cause: error)
            }
        }
    }

    /// Programs are; CRIU's plugins, which are shared objects, are not.
    private static func isPlugin(_ name: String, in directory: FilePath, _ log: Logger) -> Bool {
        guard !name.hasPrefix("."), !name.hasSuffix(".so"), !name.hasSuffix("~"),
            let status = try? FileStatus.read(directory.appending(name).string, in: currentDirectory),
            status.kind == .regular, status.mode & 0o111 != 0
        else { return false }
        let own = (try? systemCall(.geteuid)).map { UInt32($0) } ?? 0
        guard status.uid == 0 || status.uid == own, status.mode & 0o022 == 0 else {
            log.warning("the plugin \(name) is not started: others than root may have written it")
            return false
        }
        return true
    }

    /// Starts all plugins and asks what they know, before anything is stopped.
    public func startAll(root: TaskID) throws(Failure) {
        guard let directory else { return }
        var started: [Plugin] = []
        for name in names { started.append(try Plugin(name, in: directory)) }
        for plugin in started { try plugin.greet(order, root: root) }
        running = started
        if !names.isEmpty { log?.info("plugins: \(names.joined(separator: ", "))") }
    }

    /// The first that knows a file.
    public func plugin(for status: FileStatus, link: [UInt8]) -> Plugin? { running.first { $0.knows(status, link) } }

    /// A plugin that an image names; it is started if need be.
    public func plugin(named name: String) throws(Failure) -> Plugin {
        if let known = running.first(where: { $0.name == name }) { return known }
        guard let directory, names.contains(name) else {
            throw Failure(
                .unsupported,
                "the plugin \(name) dumped it, which is not in \((directory ?? Plugins.directory).string)",
                advice: "Put it there, or pass its directory with --libdir")
        }
        let plugin = try Plugin(name, in: directory)
        try plugin.greet(order, root: nil)
        running.append(plugin)
        log?.info("plugin: \(name)")
        return plugin
    }

    /// Lets all go.
    public func end() {
        for plugin in running { plugin.end() }
        running = []
    }

    /// Tells all that the order is done.
    public func finish(_ values: [(name: String, value: String)]) throws(Failure) {
        var message = PluginMessage("finish")
        for (name, value) in values { message.add(name, value) }
        for plugin in running {
            if let number = try plugin.ask(message).descriptor { _ = try? systemCall(.close, Int(number)) }
        }
    }
}
