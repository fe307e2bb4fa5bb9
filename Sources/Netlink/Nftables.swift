public import Linux

/// A transaction of netfilter's tables (`NFNL_SUBSYS_NFTABLES`), as far as a lock on connections needs.
public struct NftablesTransaction: Sendable {
    private var messages: [UInt8] = []
    private var next: UInt32 = 1
    private let table: String

    /// Expressions of a rule.
    public struct Rule: Sendable {
        fileprivate var bytes = NetlinkBytes()

        /// No expression yet.
        public init() {}

        private mutating func add(_ name: String, _ body: (inout NetlinkBytes) -> Void) {
            bytes.nest(1) { element in  // NFTA_LIST_ELEM
                element.append(1, text: name)  // NFTA_EXPR_NAME
                element.nest(2, body)  // NFTA_EXPR_DATA
            }
        }

        /// Loads a property of the packet: `NFT_META_MARK` 3, `NFT_META_NFPROTO` 15, `NFT_META_L4PROTO` 16.
        public mutating func load(meta key: UInt32, into register: UInt32) {
            add("meta") { (data) in
                data.append(1, number: register)
                data.append(2, number: key)
            }
        }

        /// Goes on only if a register holds these bytes.
        public mutating func require(_ register: UInt32, _ value: [UInt8]) {
            add("cmp") { (data) in
                data.append(1, number: register)
                data.append(2, number: 0)  // NFT_CMP_EQ
                data.nest(3) { $0.append(1, value) }
            }
        }

        /// Loads bytes of a header: the network's is 1, the transport's 2.
        public mutating func load(header: UInt32, offset: UInt32, length: UInt32, into register: UInt32) {
            add("payload") { (data) in
                data.append(1, number: register)
                data.append(2, number: header)
                data.append(3, number: offset)
                data.append(4, number: length)
            }
        }

        /// Goes on only if the registers from one on are in a set.
        public mutating func require(_ register: UInt32, in set: String, id: UInt32) {
            add("lookup") { (data) in
                data.append(1, text: set)
                data.append(2, number: register)
                data.append(4, number: id)
            }
        }

        /// Ends with a verdict: `NF_DROP` 0, `NF_ACCEPT` 1.
        public mutating func end(_ verdict: UInt32) {
            add("immediate") { (data) in
                data.append(1, number: 0)  // NFT_REG_VERDICT
                data.nest(2) { value in
                    value.nest(2) { $0.append(1, number: verdict) }  // NFTA_DATA_VERDICT
                }
            }
        }
    }

    /// Begins a transaction on a table of the `inet` family.
    public init(table: String) {
        self.table = table
        add(type: 16, flags: 1, family: 0, resource: 10, NetlinkBytes())  // NFNL_MSG_BATCH_BEGIN
    }

    private mutating func add(type: UInt16, flags: UInt16, family: UInt8, resource: UInt16, _ body: NetlinkBytes) {
        let header = [family, 0] + [UInt8](bytesOf: resource.bigEndian)
        messages += NetlinkBytes.message(type: type, flags: flags, sequence: next, header + body.bytes)
        next += 1
    }

    private mutating func add(_ operation: UInt16, creates: Bool, _ body: NetlinkBytes) {
        // NLM_F_REQUEST | NLM_F_ACK, NLM_F_CREATE | NLM_F_EXCL
        add(type: 10 << 8 | operation, flags: creates ? 0x605 : 5, family: 1, resource: 0, body)
    }

    /// Creates the table.
    ///
    /// - Parameter isOwned: it goes when the connection that makes it is closed, and nobody else may change it.
    public mutating func create(isOwned: Bool) {
        var body = NetlinkBytes()
        body.append(1, text: table)
        body.append(2, number: isOwned ? 2 : 0)  // NFT_TABLE_F_OWNER
        add(0, creates: true, body)
    }

    /// Whether there is a table of the `inet` family with a name in the network namespace that we are in.
    public static func has(table: String) -> Bool {
        var body = NetlinkBytes()
        body.append(1, text: table)
        let header: [UInt8] = [1, 0, 0, 0]  // NFPROTO_INET
        do throws(SystemCallError) {
            try NetlinkConnection(12).change(10 << 8 | 1, header + body.bytes)  // NFT_MSG_GETTABLE
            return true
        } catch { return false }
    }

    /// Deletes the table.
    public mutating func delete() {
        var body = NetlinkBytes()
        body.append(1, text: table)
        add(2, creates: false, body)
    }

    /// Adds a base chain of the type filter, with the priority 0.
    ///
    /// - Parameters:
    ///   - hook: `NF_INET_LOCAL_IN` 1, `NF_INET_LOCAL_OUT` 3.
    ///   - policy: what becomes of packets that no rule decides on: `NF_DROP` 0, `NF_ACCEPT` 1.
    public mutating func add(chain: String, hook: UInt32, policy: UInt32 = 1) {
        var body = NetlinkBytes()
        body.append(1, text: table)
        body.append(3, text: chain)
        body.nest(4) { place in
            place.append(1, number: hook)
            place.append(2, number: 0)
        }
        body.append(5, number: policy)
        body.append(7, text: "filter")
        add(3, creates: true, body)
    }

    /// Adds a rule at the end of a chain.
    public mutating func add(_ rule: Rule, to chain: String) {
        var body = NetlinkBytes()
        body.append(1, text: table)
        body.append(2, text: chain)
        body.append(4 | 0x8000, rule.bytes.bytes)
        // NLM_F_CREATE | NLM_F_APPEND
        add(type: 10 << 8 | 6, flags: 0xc05, family: 1, resource: 0, body)
    }

    /// Adds a set of keys.
    ///
    /// - Parameter type: how programs are to show the keys.
    public mutating func add(set: String, id: UInt32, keyLength: UInt32, type: UInt32) {
        var body = NetlinkBytes()
        body.append(1, text: table)
        body.append(2, text: set)
        body.append(3, number: 0)
        body.append(4, number: type)
        body.append(5, number: keyLength)
        body.append(10, number: id)
        add(9, creates: true, body)
    }

    /// Adds keys to a set.
    ///
    /// - Parameter length: how many bytes each key has, a multiple of four.
    public mutating func add(_ keys: [UInt8], of length: Int, to set: String, id: UInt32) {
        // NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE: each the only attribute in the one before.
        var heads: [UInt8] = []
        for (depth, attribute) in [1, 1, 1].enumerated() {
            heads += [UInt8](bytesOf: UInt16(12 - 4 * depth + length))
            heads += [UInt8](bytesOf: UInt16(attribute) | (depth < 2 ? 0x8000 : 0))
        }
        for start in stride(from: 0, to: keys.count, by: 500 * length) {
            let end = min(start + 500 * length, keys.count)
            var elements = NetlinkBytes()
            for key in stride(from: start, to: end, by: length) {
                elements.append(heads)
                elements.append(keys[key..<min(key + length, end)])
            }
            var body = NetlinkBytes()
            body.append(1, text: table)
            body.append(2, text: set)
            body.append(4, number: id)
            body.append(3 | 0x8000, elements.bytes)
            // NLM_F_CREATE without EXCL: the same connection may be named twice.
            add(type: 10 << 8 | 12, flags: 0x405, family: 1, resource: 0, body)
        }
    }

    /// Does it all, or nothing.
    public consuming func commit(_ kernel: borrowing NetlinkConnection) throws(SystemCallError) {
        add(type: 17, flags: 1, family: 0, resource: 10, NetlinkBytes())  // NFNL_MSG_BATCH_END
        try kernel.send(messages)
        var failure: Errno?
        // The answers are there when the call has returned: one for each message, with its number.
        while true {
            do throws(SystemCallError) {
                for answer in try kernel.receive(waits: false) where failure == nil { failure = answer.error }
            } catch {
                if error.errno == .EAGAIN { break }
                throw error
            }
        }
        if let failure { throw SystemCallError(.sendto, failure) }
    }
}
