internal import Diagnostics
internal import ImageFormat
internal import ImageMessages
internal import Kinds
internal import Linux
internal import Procfs

/// A file that a plugin dumps and makes again (docs/plugins.md).
enum PluginFile: FileKind {

    static func claims(_ facts: FileFacts) -> Bool { false }

    /// The plugin that knows a file.
    static func plugin(for facts: FileFacts, _ plugins: Plugins) -> Plugin? {
        if facts.statusFlags & UInt32(OpenFlags.path.rawValue) != 0 { return nil }
        return plugins.plugin(for: facts.status, link: facts.target)
    }

    static func dump(_ file: OpenFile, _ context: DumpContext) throws(Failure) -> FileEntry {
        guard let plugin = plugin(for: file.facts, context.plugins) else { throw Failure(.bug, "no plugin") }
        let facts = file.facts
        var entry = ExtFileEntry()
        entry.id = file.id
        entry.fown = try FileOwner.dump(file, context)
        entry.plugin = imageBytes(plugin.name.utf8)
        entry.flags = facts.statusFlags
        entry.pos = facts.information.position
        entry.path = imageBytes(facts.target)
        if facts.status.kind == .characterDevice || facts.status.kind == .blockDevice {
            entry.mode = facts.status.mode
            entry.rdev = facts.status.representedDevice
        }
        var request = request("dump", entry)
        request.add("task", "\(file.owner.id) \(file.owner.name)")
        if file.number >= 0 { request.add("number", "\(file.number)") }
        for line in facts.information.lines { request.add("fdinfo", line) }
        let (answer, descriptor) = try plugin.ask(request, descriptor: file.handle.number)
        if let descriptor {
            _ = try? systemCall(.close, Int(descriptor))
            throw plugin.broken("it sent a descriptor at a dump")
        }
        try context.images.hold(.pluginState(file.id), answer.state)
        var whole = FileEntry(.ext, file.id)
        whole.ext = entry
        return whole
    }

    private static func request(_ word: String, _ entry: ExtFileEntry) -> PluginMessage {
        var request = PluginMessage(word)
        request.add("file", "\(entry.id)")
        request.add("link", Array(entry.path))
        if entry.hasRdev {
            let status = FileStatus(mode: entry.mode, representedDevice: entry.rdev)
            let kind = status.kind == .blockDevice ? "b" : "c"
            request.add("device", "\(kind) \(status.representedMajor):\(status.representedMinor)")
        }
        request.add("flags", "0" + String(entry.flags, radix: 8))
        request.add("position", "\(entry.pos)")
        return request
    }

    static let lateSteps = LateSteps.none

    static func restores(_ entry: FileEntry) -> Bool {
        entry.type == UInt32(FdTypes.ext.rawValue) && entry.hasExt && entry.ext.hasPlugin
    }

    static func owner(_ entry: FileEntry) -> FownEntry? { entry.ext.fown }

    static func load(_ context: RestoreContext) throws(Failure) {
        for entry in context.entries(of: .ext) where restores(entry) {
            try during(.file(name(entry))) { () throws(Failure) in
                _ = try context.plugins.plugin(named: String(decoding: entry.ext.plugin, as: UTF8.self))
            }
        }
    }

    private static func name(_ entry: FileEntry) -> String { String(decoding: entry.ext.path, as: UTF8.self) }

    static func make(_ members: [FileEntry], _ context: RestoreContext) throws(Failure) {
        for member in members {
            try during(.file(name(member))) { () throws(Failure) in
                let plugin = try context.plugins.plugin(named: String(decoding: member.ext.plugin, as: UTF8.self))
                var request = request("restore", member.ext)
                let image = try context.images.open(.pluginState(member.id))
                request.state = try image.read(min(image.size, Plugin.mostState))
                guard let descriptor = try plugin.ask(request).descriptor else {
                    throw plugin.broken("it sent no descriptor at a restore")
                }
                let made = Descriptor(owning: descriptor)
                try attempt("set the flags of what the plugin \(plugin.name) made") { () throws(SystemCallError) in
                    try setStatusFlags(made.number, member.ext.flags)
                }
                try context.files.add(member.id, made)
            }
        }
    }
}
