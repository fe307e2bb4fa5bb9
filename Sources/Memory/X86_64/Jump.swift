#if arch(x86_64)
    internal import Linux

    /// A jump from anywhere to anywhere that changes no register but one that no function expects anything in.
    enum Jump {
        /// `e_machine` of this architecture's ELF files.
        static let machine: UInt16 = 62

        // movabs $target, %rax; jmp *%rax
        private static let load: [UInt8] = [0x48, 0xb8], go: [UInt8] = [0xff, 0xe0]

        /// Bytes of code.
        static let length = 12

        /// The code.
        static func code(to target: Address) -> [UInt8] { load + [UInt8](bytesOf: target.rawValue) + go }

        /// Where the jump at a place of some code leads, nil if there is none.
        static func target(in code: [UInt8], at place: Int) -> Address? {
            guard place >= 0, place <= code.count - length, code[place...].starts(with: load),
                code[(place + 10)...].starts(with: go)
            else { return nil }
            return code.load(UInt64.self, at: place + 2).map { Address($0) }
        }
    }
#endif
