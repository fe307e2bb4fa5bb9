import Diagnostics
import Linux
import Remote
import Testing

@testable import Memory

@Suite struct `The functions of a vdso` {
    private let own: [UInt8]

    init() throws { own = try #require(OwnVdso.image) }

    /// Whatever the bytes are: an error, or offsets that lie in them.
    private func survives(_ bytes: [UInt8]) -> Bool {
        guard let functions = try? VdsoFunctions(bytes).offsets else { return true }
        return functions.values.allSatisfy { $0 >= 0 && $0 < bytes.count }
    }

    /// The place of an entry of the dynamic section.
    private func entry(_ tag: UInt64) throws -> Int {
        let headers = Int(try #require(own.load(UInt64.self, at: 32)))
        let count = Int(try #require(own.load(UInt16.self, at: 56)))
        let header = try #require(
            (0..<count).map { headers + $0 * 56 }.first { own.load(UInt32.self, at: $0) == 2 })
        let start = Int(try #require(own.load(UInt64.self, at: header + 8)))
        return try #require((0..<64).map { start + $0 * 16 }.first { own.load(UInt64.self, at: $0) == tag })
    }

    @Test func `of this kernel are found`() throws {
        let functions = try VdsoFunctions(own).offsets
        let clock = try #require(functions["__vdso_clock_gettime"])
        #expect(functions["clock_gettime"] == clock)
        #expect(functions["__vdso_getcpu"] != nil)
        #expect(functions.keys.allSatisfy { !$0.hasPrefix("LINUX") })
    }

    @Test(arguments: [UInt64(4), 0x6fff_fef5]) func `are found by either hash table`(_ tag: UInt64) throws {
        let functions = try VdsoFunctions(own).offsets
        // A kernel may have only one of the two.
        guard let place = try? entry(tag), (try? entry(tag ^ 4 ^ 0x6fff_fef5)) != nil else { return }
        var bytes = own
        bytes.replaceSubrange(place..<(place + 8), with: [UInt8](bytesOf: UInt64(0x7000_0000)))
        #expect(try VdsoFunctions(bytes).offsets == functions)
    }

    @Test func `are found in a vdso that was linked to another address`() throws {
        var bytes = own
        let functions = try VdsoFunctions(own).offsets
        let base: UInt64 = 0xffff_ffff_ff70_0000
        func move(_ place: Int) throws {
            let now = try #require(bytes.load(UInt64.self, at: place))
            bytes.replaceSubrange(place..<(place + 8), with: [UInt8](bytesOf: now &+ base))
        }
        let headers = Int(try #require(own.load(UInt64.self, at: 32)))
        let load = try #require((0..<4).map { headers + $0 * 56 }.first { own.load(UInt32.self, at: $0) == 1 })
        try move(load + 16)
        for tag in [UInt64(4), 5, 6, 0x6fff_fef5] { if let place = try? entry(tag) { try move(place + 8) } }
        let table = Int(try #require(own.load(UInt64.self, at: try entry(6) + 8)))
        let names = Int(try #require(own.load(UInt64.self, at: try entry(5) + 8)))
        for symbol in stride(from: table, to: names - 23, by: 24) { try move(symbol + 8) }
        #expect(try VdsoFunctions(bytes).offsets == functions)
    }

    @Test func `every truncation`() {
        for length in 0..<own.count { #expect(survives(Array(own[..<length]))) }
        #expect(throws: Failure.self) { try VdsoFunctions([]) }
        #expect(throws: Failure.self) { try VdsoFunctions([UInt8](repeating: 0, count: 8192)) }
        #expect(throws: Failure.self) { try VdsoFunctions(own + [UInt8](repeating: 0, count: 1 << 20)) }
    }

    @Test func `every changed bit and extreme word`() throws {
        // Everything that is parsed lies before the code.
        let end = try #require(try VdsoFunctions(own).offsets.values.min())
        for index in 0..<end {
            for bit in 0..<8 {
                var bytes = own
                bytes[index] ^= 1 << UInt8(bit)
                #expect(survives(bytes))
            }
            for (width, value) in [(2, UInt8(0xff)), (4, 0xff), (4, 0x7f), (8, 0xff), (8, 0x7f), (8, 0)] {
                var bytes = own
                bytes.replaceSubrange(index..<(index + width), with: repeatElement(value, count: width))
                #expect(survives(bytes))
            }
        }
    }

    @Test func `garbage`() throws {
        let end = try #require(try VdsoFunctions(own).offsets.values.min())
        var state: UInt64 = 20261124
        for _ in 0..<20_000 {
            var bytes = own
            for _ in 0..<6 {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                bytes[Int(state >> 33) % end] = UInt8(truncatingIfNeeded: state >> 25)
            }
            #expect(survives(bytes))
        }
    }

    @Test func `a jump is told from other code`() {
        let code = [0x90] + Jump.code(to: Address(0x7fff_1234_5678)) + [0x90]
        #expect(code.count == Jump.length + 2)
        #expect(Jump.target(in: code, at: 1) == Address(0x7fff_1234_5678))
        for place in [-1, 0, 2, 3, 100, Int.max] { #expect(Jump.target(in: code, at: place) == nil) }
        #expect(Jump.target(in: Array(code.dropLast(2)), at: 1) == nil)
    }
}
