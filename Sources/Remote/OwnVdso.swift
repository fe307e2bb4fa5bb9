public import Linux
public import Procfs

/// The vdso of this kernel, as this process sees it. It is the same in every task.
public enum OwnVdso {
    /// What the kernel made: [vvar], [vvar_vclock] and [vdso], as far as they exist.
    public static let mappings: [VMA] = ((try? VMA.readPlain(of: .current)) ?? []).filter(\.isOfKernel)

    /// Where the code is mapped here.
    public static let code: AddressRange? = mappings.first { $0.isNamed("[vdso]") }?.range

    /// Its bytes up to the last that is not zero; nil if we have none.
    public static let image: [UInt8]? = {
        guard let memory = try? TaskMemory(.current), let code,
            let bytes = try? memory.read(code.start, count: Int(code.length))
        else { return nil }
        return Array(bytes[..<end(of: bytes)])
    }()

    /// Where an image ends in zeros for good.
    static func end(of image: [UInt8]) -> Int { image.lastIndex { $0 != 0 }.map { $0 + 1 } ?? 0 }
}
