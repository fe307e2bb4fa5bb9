#if arch(x86_64)
    internal import CLinux
    public import Diagnostics
    public import ImageFormat
    internal import ImageMessages
    public import Kinds
    internal import Linux

    /// The CPU's features: `cpuinfo.img` and its check.
    public enum CPU {
        /// The words of features that the image holds, in the kernel's order of `x86_capability` as far as CPUID tells them.
        private static let leaves: [(word: Int, leaf: UInt32, subleaf: UInt32, register: Int)] = [
            (0, 1, 0, 3), (1, 0x8000_0001, 0, 3), (4, 1, 0, 2), (6, 0x8000_0001, 0, 2), (9, 7, 0, 1), (10, 0xd, 1, 0),
            (11, 7, 0, 2), (12, 7, 1, 0), (13, 0x8000_0008, 0, 1), (17, 7, 0, 3),
        ]
        private static let words = 21

        /// One leaf of CPUID: eax, ebx, ecx, edx.
        static func cpuid(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> [UInt32] {
            var words: [UInt32] = [0, 0, 0, 0]
            unsafe words.withUnsafeMutableBufferPointer { buffer in
                if let base = buffer.baseAddress { unsafe clinux_cpuid(leaf, subleaf, base) }
            }
            return words
        }

        private static func present() -> CpuinfoX86Entry {
            var entry = CpuinfoX86Entry()
            let vendor = cpuid(0)
            let name = [vendor[1], vendor[3], vendor[2]].flatMap { [UInt8](bytesOf: $0) }
            entry.vendorID =
                name.elementsEqual("GenuineIntel".utf8)
                ? .intel : name.elementsEqual("AuthenticAMD".utf8) ? .amd : .unknown
            let signature = cpuid(1)[0]
            var family = signature >> 8 & 0xf
            var model = signature >> 4 & 0xf
            if family == 6 || family == 0xf { model |= (signature >> 16 & 0xf) << 4 }
            if family == 0xf { family += signature >> 20 & 0xff }
            (entry.cpuFamily, entry.model, entry.stepping, entry.capabilityVer) = (family, model, signature & 0xf, 2)
            var capability = [UInt32](repeating: 0, count: words)
            for leaf in leaves { capability[leaf.word] = cpuid(leaf.leaf, leaf.subleaf)[leaf.register] }
            // CPUID of the initial APIC and whether the system uses xsave vary from CPU to CPU and say nothing.
            entry.capability = capability
            entry.modelID = imageBytes(
                (0x8000_0002...0x8000_0004).flatMap { cpuid($0) }.flatMap { [UInt8](bytesOf: $0) }.prefix { $0 != 0 })
            let state = cpuid(0xd)
            entry.xfeaturesMask = UInt64(state[0]) | UInt64(state[3]) << 32
            (entry.xsaveSize, entry.xsaveSizeMax) = (state[1], state[2])
            return entry
        }

        /// Writes this machine's features.
        public static func dump(to images: ImageDirectory) throws(Failure) {
            var entry = CpuinfoEntry()
            entry.x86Entry = [present()]
            try images.write(.cpuInformation, [entry])
        }

        /// Compares this machine with the image.
        ///
        /// - Parameter capabilities: what to compare; if nothing, or if there is no image, all is well.
        public static func check(_ images: ImageSet, _ capabilities: CPUCapabilities) throws(Failure) {
            guard !capabilities.isDisjoint(with: .all), images.has(.cpuInformation) else { return }
            guard let image = try images.load(.cpuInformation, as: CpuinfoEntry.self).x86Entry.first else {
                throw Failure(.corruptImage, "cpuinfo.img describes no x86 CPU")
            }
            let here = present()
            let advice = "Restore on a CPU with all features of the old one, or pass --cpu-cap=none to try all the same"
            if !capabilities.isDisjoint(with: [.cpu, .instructions]) {
                guard image.vendorID == here.vendorID else {
                    throw Failure(.unsupported, "this CPU is of another vendor than the image's", advice: advice)
                }
                for leaf in leaves where image.capability.indices.contains(leaf.word) {
                    // OSXSAVE and APIC bits don't matter; others that are missing here may be in use.
                    let missing = image.capability[leaf.word] & ~here.capability[leaf.word]
                    if missing != 0 {
                        throw Failure(
                            .unsupported,
                            "this CPU lacks features of the image's: word \(leaf.word), bits \(String(missing, radix: 16))",
                            advice: advice)
                    }
                }
            }
            if !capabilities.isDisjoint(with: [.cpu, .fpu]) {
                let missing = image.xfeaturesMask & ~here.xfeaturesMask
                guard missing == 0 else {
                    throw Failure(
                        .unsupported, "this CPU lacks register sets of the image's: \(String(missing, radix: 16))",
                        advice: advice)
                }
            }
        }
    }
#endif
