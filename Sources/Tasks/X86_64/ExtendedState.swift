#if arch(x86_64)
    internal import Diagnostics
    internal import ImageMessages
    internal import Linux

    /// The xsave area in the kernel's standard layout, and its spelling in the image.
    enum ExtendedState {
        /// `NT_X86_XSTATE`.
        static let note = 0x202

        /// Where a component lies in the area, as CPUID tells.
        struct Component {
            let bit: Int
            let offset: Int
            let size: Int

            init?(_ bit: Int) {
                let words = CPU.cpuid(0xd, UInt32(bit))
                guard words[0] > 0, words[1] >= 576 else { return nil }
                self.bit = bit
                size = Int(words[0])
                offset = Int(words[1])
            }
        }

        /// Components that the image knows: 2 ymm, 3 and 4 bounds, 5 to 7 AVX-512, 9 protection keys.
        static let components: [Component] = [2, 3, 4, 5, 6, 7, 9].compactMap(Component.init)

        /// The image's message of an area.
        static func entry(_ area: [UInt8]) throws(Failure) -> UserX86FpregsEntry {
            guard area.count >= 576 else { throw Failure(.bug, "an xsave area of \(area.count) bytes") }
            func word(_ offset: Int) -> UInt32 { area.load(UInt32.self, at: offset) ?? 0 }
            func half(_ offset: Int) -> UInt32 { UInt32(area.load(UInt16.self, at: offset) ?? 0) }
            func long(_ offset: Int) -> UInt64 { area.load(UInt64.self, at: offset) ?? 0 }
            var entry = UserX86FpregsEntry()
            (entry.cwd, entry.swd, entry.twd, entry.fop) = (half(0), half(2), half(4), half(6))
            (entry.rip, entry.rdp) = (long(8), long(16))
            (entry.mxcsr, entry.mxcsrMask) = (word(24), word(28))
            entry.stSpace = (0..<32).map { word(32 + 4 * $0) }
            entry.xmmSpace = (0..<64).map { word(160 + 4 * $0) }
            var more = UserX86XsaveEntry()
            more.xstateBv = long(512)
            for part in components where part.offset + part.size <= area.count {
                let longs = (0..<(part.size / 8)).map { long(part.offset + 8 * $0) }
                switch part.bit {
                case 2: more.ymmhSpace = (0..<(part.size / 4)).map { word(part.offset + 4 * $0) }
                case 3: more.bndregState = longs
                case 4: more.bndcsrState = longs
                case 5: more.opmaskReg = longs
                case 6: more.zmmUpper = longs
                case 7: more.hi16Zmm = longs
                default: more.pkru = [word(part.offset), word(part.offset + 4)]
                }
            }
            entry.xsave = more
            return entry
        }

        /// The area of a message, laid out for this CPU.
        ///
        /// - Parameter template: an area of this CPU; what the message does not say keeps its initial state.
        static func area(_ entry: UserX86FpregsEntry, template: [UInt8]) throws(Failure) -> [UInt8] {
            var area = template
            guard area.count >= 576, entry.stSpace.count == 32, entry.xmmSpace.count == 64 else {
                throw Failure(.corruptImage, "the floating point registers are incomplete")
            }
            func put<T: BitwiseCopyable>(_ value: T, _ offset: Int) {
                let bytes = [UInt8](bytesOf: value)
                guard offset + bytes.count <= area.count else { return }
                area.replaceSubrange(offset..<(offset + bytes.count), with: bytes)
            }
            put(UInt16(truncatingIfNeeded: entry.cwd), 0)
            put(UInt16(truncatingIfNeeded: entry.swd), 2)
            put(UInt16(truncatingIfNeeded: entry.twd), 4)
            put(UInt16(truncatingIfNeeded: entry.fop), 6)
            put(entry.rip, 8)
            put(entry.rdp, 16)
            let mask = template.load(UInt32.self, at: 28) ?? 0xffff
            put(entry.mxcsr & (mask == 0 ? 0xffbf : mask), 24)
            for index in 0..<32 { put(entry.stSpace[index], 32 + 4 * index) }
            for index in 0..<64 { put(entry.xmmSpace[index], 160 + 4 * index) }
            var present: UInt64 = 3
            if entry.hasXsave {
                let more = entry.xsave
                present = more.xstateBv & 3
                for part in components where more.xstateBv >> UInt64(part.bit) & 1 == 1 {
                    let words: [UInt64]
                    switch part.bit {
                    case 2:
                        guard more.ymmhSpace.count * 4 == part.size else { continue }
                        for (index, word) in more.ymmhSpace.enumerated() { put(word, part.offset + 4 * index) }
                        present |= 1 << 2
                        continue
                    case 3: words = more.bndregState
                    case 4: words = more.bndcsrState
                    case 5: words = more.opmaskReg
                    case 6: words = more.zmmUpper
                    case 7: words = more.hi16Zmm
                    default:
                        guard let keys = more.pkru.first else { continue }
                        put(UInt64(keys), part.offset)
                        present |= 1 << UInt64(part.bit)
                        continue
                    }
                    guard words.count * 8 <= part.size, !words.isEmpty else { continue }
                    for (index, word) in words.enumerated() { put(word, part.offset + 8 * index) }
                    present |= 1 << UInt64(part.bit)
                }
            }
            put(present, 512)
            put(UInt64(0), 520)
            return area
        }
    }
#endif
