internal import Linux
internal import Procfs

/// The vdso of this kernel, as this process sees it. It is the same in every task.
public enum OwnVdso {
    /// Its bytes up to the last that is not zero; nil if we have none.
    public static let image: [UInt8]? = {
        guard let mappings = try? VMA.readPlain(of: .current), let memory = try? TaskMemory(.current),
            let mapping = mappings.first(where: { $0.isNamed("[vdso]") }),
            let bytes = try? memory.read(mapping.range.start, count: Int(mapping.range.length))
        else { return nil }
        return Array(bytes[..<end(of: bytes)])
    }()

    /// Where an image ends in zeros for good.
    static func end(of image: [UInt8]) -> Int { image.lastIndex { $0 != 0 }.map { $0 + 1 } ?? 0 }
}
