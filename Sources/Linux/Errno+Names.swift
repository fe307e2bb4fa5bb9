extension Errno {
    /// `EPERM`: operation not permitted.
    public static let EPERM = Errno(rawValue: 1)
    /// `ENOENT`: no such file or directory.
    public static let ENOENT = Errno(rawValue: 2)
    /// `ESRCH`: no such process.
    public static let ESRCH = Errno(rawValue: 3)
    /// `EINTR`: interrupted system call.
    public static let EINTR = Errno(rawValue: 4)
    /// `EIO`: i/O error.
    public static let EIO = Errno(rawValue: 5)
    /// `ENXIO`: no such device or address.
    public static let ENXIO = Errno(rawValue: 6)
    /// `E2BIG`: argument list too long.
    public static let E2BIG = Errno(rawValue: 7)
    /// `ENOEXEC`: exec format error.
    public static let ENOEXEC = Errno(rawValue: 8)
    /// `EBADF`: bad file number.
    public static let EBADF = Errno(rawValue: 9)
    /// `ECHILD`: no child processes.
    public static let ECHILD = Errno(rawValue: 10)
    /// `EAGAIN`: try again.
    public static let EAGAIN = Errno(rawValue: 11)
    /// `ENOMEM`: out of memory.
    public static let ENOMEM = Errno(rawValue: 12)
    /// `EACCES`: permission denied.
    public static let EACCES = Errno(rawValue: 13)
    /// `EFAULT`: bad address.
    public static let EFAULT = Errno(rawValue: 14)
    /// `ENOTBLK`: block device required.
    public static let ENOTBLK = Errno(rawValue: 15)
    /// `EBUSY`: device or resource busy.
    public static let EBUSY = Errno(rawValue: 16)
    /// `EEXIST`: file exists.
    public static let EEXIST = Errno(rawValue: 17)
    /// `EXDEV`: cross-device link.
    public static let EXDEV = Errno(rawValue: 18)
    /// `ENODEV`: no such device.
    public static let ENODEV = Errno(rawValue: 19)
    /// `ENOTDIR`: not a directory.
    public static let ENOTDIR = Errno(rawValue: 20)
    /// `EISDIR`: is a directory.
    public static let EISDIR = Errno(rawValue: 21)
    /// `EINVAL`: invalid argument.
    public static let EINVAL = Errno(rawValue: 22)
    /// `ENFILE`: file table overflow.
    public static let ENFILE = Errno(rawValue: 23)
    /// `EMFILE`: too many open files.
    public static let EMFILE = Errno(rawValue: 24)
    /// `ENOTTY`: not a typewriter.
    public static let ENOTTY = Errno(rawValue: 25)
    /// `ETXTBSY`: text file busy.
    public static let ETXTBSY = Errno(rawValue: 26)
    /// `EFBIG`: file too large.
    public static let EFBIG = Errno(rawValue: 27)
    /// `ENOSPC`: no space left on device.
    public static let ENOSPC = Errno(rawValue: 28)
    /// `ESPIPE`: illegal seek.
    public static let ESPIPE = Errno(rawValue: 29)
    /// `EROFS`: read-only file system.
    public static let EROFS = Errno(rawValue: 30)
    /// `EMLINK`: too many links.
    public static let EMLINK = Errno(rawValue: 31)
    /// `EPIPE`: broken pipe.
    public static let EPIPE = Errno(rawValue: 32)
    /// `EDOM`: math argument out of domain of func.
    public static let EDOM = Errno(rawValue: 33)
    /// `ERANGE`: math result not representable.
    public static let ERANGE = Errno(rawValue: 34)
    /// `EDEADLK`: resource deadlock would occur.
    public static let EDEADLK = Errno(rawValue: 35)
    /// `ENAMETOOLONG`: file name too long.
    public static let ENAMETOOLONG = Errno(rawValue: 36)
    /// `ENOLCK`: no record locks available.
    public static let ENOLCK = Errno(rawValue: 37)
    /// `ENOSYS`: invalid system call number.
    public static let ENOSYS = Errno(rawValue: 38)
    /// `ENOTEMPTY`: directory not empty.
    public static let ENOTEMPTY = Errno(rawValue: 39)
    /// `ELOOP`: too many symbolic links encountered.
    public static let ELOOP = Errno(rawValue: 40)
    /// `ENOMSG`: no message of desired type.
    public static let ENOMSG = Errno(rawValue: 42)
    /// `EIDRM`: identifier removed.
    public static let EIDRM = Errno(rawValue: 43)
    /// `ECHRNG`: channel number out of range.
    public static let ECHRNG = Errno(rawValue: 44)
    /// `EL2NSYNC`: level 2 not synchronized.
    public static let EL2NSYNC = Errno(rawValue: 45)
    /// `EL3HLT`: level 3 halted.
    public static let EL3HLT = Errno(rawValue: 46)
    /// `EL3RST`: level 3 reset.
    public static let EL3RST = Errno(rawValue: 47)
    /// `ELNRNG`: link number out of range.
    public static let ELNRNG = Errno(rawValue: 48)
    /// `EUNATCH`: protocol driver not attached.
    public static let EUNATCH = Errno(rawValue: 49)
    /// `ENOCSI`: no CSI structure available.
    public static let ENOCSI = Errno(rawValue: 50)
    /// `EL2HLT`: level 2 halted.
    public static let EL2HLT = Errno(rawValue: 51)
    /// `EBADE`: invalid exchange.
    public static let EBADE = Errno(rawValue: 52)
    /// `EBADR`: invalid request descriptor.
    public static let EBADR = Errno(rawValue: 53)
    /// `EXFULL`: exchange full.
    public static let EXFULL = Errno(rawValue: 54)
    /// `ENOANO`: no anode.
    public static let ENOANO = Errno(rawValue: 55)
    /// `EBADRQC`: invalid request code.
    public static let EBADRQC = Errno(rawValue: 56)
    /// `EBADSLT`: invalid slot.
    public static let EBADSLT = Errno(rawValue: 57)
    /// `EBFONT`: bad font file format.
    public static let EBFONT = Errno(rawValue: 59)
    /// `ENOSTR`: device not a stream.
    public static let ENOSTR = Errno(rawValue: 60)
    /// `ENODATA`: no data available.
    public static let ENODATA = Errno(rawValue: 61)
    /// `ETIME`: timer expired.
    public static let ETIME = Errno(rawValue: 62)
    /// `ENOSR`: out of streams resources.
    public static let ENOSR = Errno(rawValue: 63)
    /// `ENONET`: machine is not on the network.
    public static let ENONET = Errno(rawValue: 64)
    /// `ENOPKG`: package not installed.
    public static let ENOPKG = Errno(rawValue: 65)
    /// `EREMOTE`: object is remote.
    public static let EREMOTE = Errno(rawValue: 66)
    /// `ENOLINK`: link has been severed.
    public static let ENOLINK = Errno(rawValue: 67)
    /// `EADV`: advertise error.
    public static let EADV = Errno(rawValue: 68)
    /// `ESRMNT`: srmount error.
    public static let ESRMNT = Errno(rawValue: 69)
    /// `ECOMM`: communication error on send.
    public static let ECOMM = Errno(rawValue: 70)
    /// `EPROTO`: protocol error.
    public static let EPROTO = Errno(rawValue: 71)
    /// `EMULTIHOP`: multihop attempted.
    public static let EMULTIHOP = Errno(rawValue: 72)
    /// `EDOTDOT`: rFS specific error.
    public static let EDOTDOT = Errno(rawValue: 73)
    /// `EBADMSG`: not a data message.
    public static let EBADMSG = Errno(rawValue: 74)
    /// `EOVERFLOW`: value too large for defined data type.
    public static let EOVERFLOW = Errno(rawValue: 75)
    /// `ENOTUNIQ`: name not unique on network.
    public static let ENOTUNIQ = Errno(rawValue: 76)
    /// `EBADFD`: file descriptor in bad state.
    public static let EBADFD = Errno(rawValue: 77)
    /// `EREMCHG`: remote address changed.
    public static let EREMCHG = Errno(rawValue: 78)
    /// `ELIBACC`: can not access a needed shared library.
    public static let ELIBACC = Errno(rawValue: 79)
    /// `ELIBBAD`: accessing a corrupted shared library.
    public static let ELIBBAD = Errno(rawValue: 80)
    /// `ELIBSCN`: .lib section in a.out corrupted.
    public static let ELIBSCN = Errno(rawValue: 81)
    /// `ELIBMAX`: attempting to link in too many shared libraries.
    public static let ELIBMAX = Errno(rawValue: 82)
    /// `ELIBEXEC`: cannot exec a shared library directly.
    public static let ELIBEXEC = Errno(rawValue: 83)
    /// `EILSEQ`: illegal byte sequence.
    public static let EILSEQ = Errno(rawValue: 84)
    /// `ERESTART`: interrupted system call should be restarted.
    public static let ERESTART = Errno(rawValue: 85)
    /// `ESTRPIPE`: streams pipe error.
    public static let ESTRPIPE = Errno(rawValue: 86)
    /// `EUSERS`: too many users.
    public static let EUSERS = Errno(rawValue: 87)
    /// `ENOTSOCK`: socket operation on non-socket.
    public static let ENOTSOCK = Errno(rawValue: 88)
    /// `EDESTADDRREQ`: destination address required.
    public static let EDESTADDRREQ = Errno(rawValue: 89)
    /// `EMSGSIZE`: message too long.
    public static let EMSGSIZE = Errno(rawValue: 90)
    /// `EPROTOTYPE`: protocol wrong type for socket.
    public static let EPROTOTYPE = Errno(rawValue: 91)
    /// `ENOPROTOOPT`: protocol not available.
    public static let ENOPROTOOPT = Errno(rawValue: 92)
    /// `EPROTONOSUPPORT`: protocol not supported.
    public static let EPROTONOSUPPORT = Errno(rawValue: 93)
    /// `ESOCKTNOSUPPORT`: socket type not supported.
    public static let ESOCKTNOSUPPORT = Errno(rawValue: 94)
    /// `EOPNOTSUPP`: operation not supported on transport endpoint.
    public static let EOPNOTSUPP = Errno(rawValue: 95)
    /// `EPFNOSUPPORT`: protocol family not supported.
    public static let EPFNOSUPPORT = Errno(rawValue: 96)
    /// `EAFNOSUPPORT`: address family not supported by protocol.
    public static let EAFNOSUPPORT = Errno(rawValue: 97)
    /// `EADDRINUSE`: address already in use.
    public static let EADDRINUSE = Errno(rawValue: 98)
    /// `EADDRNOTAVAIL`: cannot assign requested address.
    public static let EADDRNOTAVAIL = Errno(rawValue: 99)
    /// `ENETDOWN`: network is down.
    public static let ENETDOWN = Errno(rawValue: 100)
    /// `ENETUNREACH`: network is unreachable.
    public static let ENETUNREACH = Errno(rawValue: 101)
    /// `ENETRESET`: network dropped connection because of reset.
    public static let ENETRESET = Errno(rawValue: 102)
    /// `ECONNABORTED`: software caused connection abort.
    public static let ECONNABORTED = Errno(rawValue: 103)
    /// `ECONNRESET`: connection reset by peer.
    public static let ECONNRESET = Errno(rawValue: 104)
    /// `ENOBUFS`: no buffer space available.
    public static let ENOBUFS = Errno(rawValue: 105)
    /// `EISCONN`: transport endpoint is already connected.
    public static let EISCONN = Errno(rawValue: 106)
    /// `ENOTCONN`: transport endpoint is not connected.
    public static let ENOTCONN = Errno(rawValue: 107)
    /// `ESHUTDOWN`: cannot send after transport endpoint shutdown.
    public static let ESHUTDOWN = Errno(rawValue: 108)
    /// `ETOOMANYREFS`: too many references: cannot splice.
    public static let ETOOMANYREFS = Errno(rawValue: 109)
    /// `ETIMEDOUT`: connection timed out.
    public static let ETIMEDOUT = Errno(rawValue: 110)
    /// `ECONNREFUSED`: connection refused.
    public static let ECONNREFUSED = Errno(rawValue: 111)
    /// `EHOSTDOWN`: host is down.
    public static let EHOSTDOWN = Errno(rawValue: 112)
    /// `EHOSTUNREACH`: no route to host.
    public static let EHOSTUNREACH = Errno(rawValue: 113)
    /// `EALREADY`: operation already in progress.
    public static let EALREADY = Errno(rawValue: 114)
    /// `EINPROGRESS`: operation now in progress.
    public static let EINPROGRESS = Errno(rawValue: 115)
    /// `ESTALE`: stale file handle.
    public static let ESTALE = Errno(rawValue: 116)
    /// `EUCLEAN`: structure needs cleaning.
    public static let EUCLEAN = Errno(rawValue: 117)
    /// `ENOTNAM`: not a XENIX named type file.
    public static let ENOTNAM = Errno(rawValue: 118)
    /// `ENAVAIL`: no XENIX semaphores available.
    public static let ENAVAIL = Errno(rawValue: 119)
    /// `EISNAM`: is a named type file.
    public static let EISNAM = Errno(rawValue: 120)
    /// `EREMOTEIO`: remote I/O error.
    public static let EREMOTEIO = Errno(rawValue: 121)
    /// `EDQUOT`: quota exceeded.
    public static let EDQUOT = Errno(rawValue: 122)
    /// `ENOMEDIUM`: no medium found.
    public static let ENOMEDIUM = Errno(rawValue: 123)
    /// `EMEDIUMTYPE`: wrong medium type.
    public static let EMEDIUMTYPE = Errno(rawValue: 124)
    /// `ECANCELED`: operation Canceled.
    public static let ECANCELED = Errno(rawValue: 125)
    /// `ENOKEY`: required key not available.
    public static let ENOKEY = Errno(rawValue: 126)
    /// `EKEYEXPIRED`: key has expired.
    public static let EKEYEXPIRED = Errno(rawValue: 127)
    /// `EKEYREVOKED`: key has been revoked.
    public static let EKEYREVOKED = Errno(rawValue: 128)
    /// `EKEYREJECTED`: key was rejected by service.
    public static let EKEYREJECTED = Errno(rawValue: 129)
    /// `EOWNERDEAD`: owner died.
    public static let EOWNERDEAD = Errno(rawValue: 130)
    /// `ENOTRECOVERABLE`: state not recoverable.
    public static let ENOTRECOVERABLE = Errno(rawValue: 131)
    /// `ERFKILL`: operation not possible due to RF-kill.
    public static let ERFKILL = Errno(rawValue: 132)
    /// `EHWPOISON`: memory page has hardware error.
    public static let EHWPOISON = Errno(rawValue: 133)

    /// `ENOENT (2)`.
    public var description: String { Errno.names[rawValue].map { "\($0) (\(rawValue))" } ?? "error \(rawValue)" }

    static let names: [Int32: String] = [
        1: "EPERM",
        2: "ENOENT",
        3: "ESRCH",
        4: "EINTR",
        5: "EIO",
        6: "ENXIO",
        7: "E2BIG",
        8: "ENOEXEC",
        9: "EBADF",
        10: "ECHILD",
        11: "EAGAIN",
        12: "ENOMEM",
        13: "EACCES",
        14: "EFAULT",
        15: "ENOTBLK",
        16: "EBUSY",
        17: "EEXIST",
        18: "EXDEV",
        19: "ENODEV",
        20: "ENOTDIR",
        21: "EISDIR",
        22: "EINVAL",
        23: "ENFILE",
        24: "EMFILE",
        25: "ENOTTY",
        26: "ETXTBSY",
        27: "EFBIG",
        28: "ENOSPC",
        29: "ESPIPE",
        30: "EROFS",
        31: "EMLINK",
        32: "EPIPE",
        33: "EDOM",
        34: "ERANGE",
        35: "EDEADLK",
        36: "ENAMETOOLONG",
        37: "ENOLCK",
        38: "ENOSYS",
        39: "ENOTEMPTY",
        40: "ELOOP",
        42: "ENOMSG",
        43: "EIDRM",
        44: "ECHRNG",
        45: "EL2NSYNC",
        46: "EL3HLT",
        47: "EL3RST",
        48: "ELNRNG",
        49: "EUNATCH",
        50: "ENOCSI",
        51: "EL2HLT",
        52: "EBADE",
        53: "EBADR",
        54: "EXFULL",
        55: "ENOANO",
        56: "EBADRQC",
        57: "EBADSLT",
        59: "EBFONT",
        60: "ENOSTR",
        61: "ENODATA",
        62: "ETIME",
        63: "ENOSR",
        64: "ENONET",
        65: "ENOPKG",
        66: "EREMOTE",
        67: "ENOLINK",
        68: "EADV",
        69: "ESRMNT",
        70: "ECOMM",
        71: "EPROTO",
        72: "EMULTIHOP",
        73: "EDOTDOT",
        74: "EBADMSG",
        75: "EOVERFLOW",
        76: "ENOTUNIQ",
        77: "EBADFD",
        78: "EREMCHG",
        79: "ELIBACC",
        80: "ELIBBAD",
        81: "ELIBSCN",
        82: "ELIBMAX",
        83: "ELIBEXEC",
        84: "EILSEQ",
        85: "ERESTART",
        86: "ESTRPIPE",
        87: "EUSERS",
        88: "ENOTSOCK",
        89: "EDESTADDRREQ",
        90: "EMSGSIZE",
        91: "EPROTOTYPE",
        92: "ENOPROTOOPT",
        93: "EPROTONOSUPPORT",
        94: "ESOCKTNOSUPPORT",
        95: "EOPNOTSUPP",
        96: "EPFNOSUPPORT",
        97: "EAFNOSUPPORT",
        98: "EADDRINUSE",
        99: "EADDRNOTAVAIL",
        100: "ENETDOWN",
        101: "ENETUNREACH",
        102: "ENETRESET",
        103: "ECONNABORTED",
        104: "ECONNRESET",
        105: "ENOBUFS",
        106: "EISCONN",
        107: "ENOTCONN",
        108: "ESHUTDOWN",
        109: "ETOOMANYREFS",
        110: "ETIMEDOUT",
        111: "ECONNREFUSED",
        112: "EHOSTDOWN",
        113: "EHOSTUNREACH",
        114: "EALREADY",
        115: "EINPROGRESS",
        116: "ESTALE",
        117: "EUCLEAN",
        118: "ENOTNAM",
        119: "ENAVAIL",
        120: "EISNAM",
        121: "EREMOTEIO",
        122: "EDQUOT",
        123: "ENOMEDIUM",
        124: "EMEDIUMTYPE",
        125: "ECANCELED",
        126: "ENOKEY",
        127: "EKEYEXPIRED",
        128: "EKEYREVOKED",
        129: "EKEYREJECTED",
        130: "EOWNERDEAD",
        131: "ENOTRECOVERABLE",
        132: "ERFKILL",
        133: "EHWPOISON",
    ]
}
