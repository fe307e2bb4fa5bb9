/// Which kind of file an entry of files.img is, as the fields of a message without `oneof` would tell.
extension FileEntry {
    /// Whether it is `reg`.
    public var hasReg: Bool { if case .reg = kind { true } else { false } }
    /// Whether it is `isk`.
    public var hasIsk: Bool { if case .isk = kind { true } else { false } }
    /// Whether it is `nsf`.
    public var hasNsf: Bool { if case .nsf = kind { true } else { false } }
    /// Whether it is `psk`.
    public var hasPsk: Bool { if case .psk = kind { true } else { false } }
    /// Whether it is `nlsk`.
    public var hasNlsk: Bool { if case .nlsk = kind { true } else { false } }
    /// Whether it is `efd`.
    public var hasEfd: Bool { if case .efd = kind { true } else { false } }
    /// Whether it is `epfd`.
    public var hasEpfd: Bool { if case .epfd = kind { true } else { false } }
    /// Whether it is `sgfd`.
    public var hasSgfd: Bool { if case .sgfd = kind { true } else { false } }
    /// Whether it is `tunf`.
    public var hasTunf: Bool { if case .tunf = kind { true } else { false } }
    /// Whether it is `tfd`.
    public var hasTfd: Bool { if case .tfd = kind { true } else { false } }
    /// Whether it is `ify`.
    public var hasIfy: Bool { if case .ify = kind { true } else { false } }
    /// Whether it is `ffy`.
    public var hasFfy: Bool { if case .ffy = kind { true } else { false } }
    /// Whether it is `ext`.
    public var hasExt: Bool { if case .ext = kind { true } else { false } }
    /// Whether it is `usk`.
    public var hasUsk: Bool { if case .usk = kind { true } else { false } }
    /// Whether it is `fifo`.
    public var hasFifo: Bool { if case .fifo = kind { true } else { false } }
    /// Whether it is `pipe`.
    public var hasPipe: Bool { if case .pipe = kind { true } else { false } }
    /// Whether it is `tty`.
    public var hasTty: Bool { if case .tty = kind { true } else { false } }
    /// Whether it is `memfd`.
    public var hasMemfd: Bool { if case .memfd = kind { true } else { false } }
    /// Whether it is `bpf`.
    public var hasBpf: Bool { if case .bpf = kind { true } else { false } }
    /// Whether it is `pidfd`.
    public var hasPidfd: Bool { if case .pidfd = kind { true } else { false } }
    /// Whether it is `io_uring`.
    public var hasIoUring: Bool { if case .ioUring = kind { true } else { false } }
    /// Whether it is `message_queue`.
    public var hasMessageQueue: Bool { if case .messageQueue = kind { true } else { false } }
    /// Whether it is `userfault`.
    public var hasUserfault: Bool { if case .userfault = kind { true } else { false } }
    /// Whether it is `vsk`.
    public var hasVsk: Bool { if case .vsk = kind { true } else { false } }
}
