internal import CLinux

extension SystemCall {
    /// `read(2)`.
    public static let read = SystemCall(__NR_read)
    /// `write(2)`.
    public static let write = SystemCall(__NR_write)
    /// `open(2)`.
    public static let open = SystemCall(__NR_open)
    /// `close(2)`.
    public static let close = SystemCall(__NR_close)
    /// `stat(2)`.
    public static let stat = SystemCall(__NR_stat)
    /// `fstat(2)`.
    public static let fstat = SystemCall(__NR_fstat)
    /// `lstat(2)`.
    public static let lstat = SystemCall(__NR_lstat)
    /// `poll(2)`.
    public static let poll = SystemCall(__NR_poll)
    /// `lseek(2)`.
    public static let lseek = SystemCall(__NR_lseek)
    /// `mmap(2)`.
    public static let mmap = SystemCall(__NR_mmap)
    /// `mprotect(2)`.
    public static let mprotect = SystemCall(__NR_mprotect)
    /// `munmap(2)`.
    public static let munmap = SystemCall(__NR_munmap)
    /// `brk(2)`.
    public static let brk = SystemCall(__NR_brk)
    /// `rt_sigaction(2)`.
    public static let rt_sigaction = SystemCall(__NR_rt_sigaction)
    /// `rt_sigprocmask(2)`.
    public static let rt_sigprocmask = SystemCall(__NR_rt_sigprocmask)
    /// `rt_sigreturn(2)`.
    public static let rt_sigreturn = SystemCall(__NR_rt_sigreturn)
    /// `ioctl(2)`.
    public static let ioctl = SystemCall(__NR_ioctl)
    /// `pread64(2)`.
    public static let pread64 = SystemCall(__NR_pread64)
    /// `pwrite64(2)`.
    public static let pwrite64 = SystemCall(__NR_pwrite64)
    /// `readv(2)`.
    public static let readv = SystemCall(__NR_readv)
    /// `writev(2)`.
    public static let writev = SystemCall(__NR_writev)
    /// `access(2)`.
    public static let access = SystemCall(__NR_access)
    /// `pipe(2)`.
    public static let pipe = SystemCall(__NR_pipe)
    /// `select(2)`.
    public static let select = SystemCall(__NR_select)
    /// `sched_yield(2)`.
    public static let sched_yield = SystemCall(__NR_sched_yield)
    /// `mremap(2)`.
    public static let mremap = SystemCall(__NR_mremap)
    /// `msync(2)`.
    public static let msync = SystemCall(__NR_msync)
    /// `mincore(2)`.
    public static let mincore = SystemCall(__NR_mincore)
    /// `madvise(2)`.
    public static let madvise = SystemCall(__NR_madvise)
    /// `shmget(2)`.
    public static let shmget = SystemCall(__NR_shmget)
    /// `shmat(2)`.
    public static let shmat = SystemCall(__NR_shmat)
    /// `shmctl(2)`.
    public static let shmctl = SystemCall(__NR_shmctl)
    /// `dup(2)`.
    public static let dup = SystemCall(__NR_dup)
    /// `dup2(2)`.
    public static let dup2 = SystemCall(__NR_dup2)
    /// `pause(2)`.
    public static let pause = SystemCall(__NR_pause)
    /// `nanosleep(2)`.
    public static let nanosleep = SystemCall(__NR_nanosleep)
    /// `getitimer(2)`.
    public static let getitimer = SystemCall(__NR_getitimer)
    /// `alarm(2)`.
    public static let alarm = SystemCall(__NR_alarm)
    /// `setitimer(2)`.
    public static let setitimer = SystemCall(__NR_setitimer)
    /// `getpid(2)`.
    public static let getpid = SystemCall(__NR_getpid)
    /// `sendfile(2)`.
    public static let sendfile = SystemCall(__NR_sendfile)
    /// `socket(2)`.
    public static let socket = SystemCall(__NR_socket)
    /// `connect(2)`.
    public static let connect = SystemCall(__NR_connect)
    /// `accept(2)`.
    public static let accept = SystemCall(__NR_accept)
    /// `sendto(2)`.
    public static let sendto = SystemCall(__NR_sendto)
    /// `recvfrom(2)`.
    public static let recvfrom = SystemCall(__NR_recvfrom)
    /// `sendmsg(2)`.
    public static let sendmsg = SystemCall(__NR_sendmsg)
    /// `recvmsg(2)`.
    public static let recvmsg = SystemCall(__NR_recvmsg)
    /// `shutdown(2)`.
    public static let shutdown = SystemCall(__NR_shutdown)
    /// `bind(2)`.
    public static let bind = SystemCall(__NR_bind)
    /// `listen(2)`.
    public static let listen = SystemCall(__NR_listen)
    /// `getsockname(2)`.
    public static let getsockname = SystemCall(__NR_getsockname)
    /// `getpeername(2)`.
    public static let getpeername = SystemCall(__NR_getpeername)
    /// `socketpair(2)`.
    public static let socketpair = SystemCall(__NR_socketpair)
    /// `setsockopt(2)`.
    public static let setsockopt = SystemCall(__NR_setsockopt)
    /// `getsockopt(2)`.
    public static let getsockopt = SystemCall(__NR_getsockopt)
    /// `clone(2)`.
    public static let clone = SystemCall(__NR_clone)
    /// `fork(2)`.
    public static let fork = SystemCall(__NR_fork)
    /// `vfork(2)`.
    public static let vfork = SystemCall(__NR_vfork)
    /// `execve(2)`.
    public static let execve = SystemCall(__NR_execve)
    /// `exit(2)`.
    public static let exit = SystemCall(__NR_exit)
    /// `wait4(2)`.
    public static let wait4 = SystemCall(__NR_wait4)
    /// `kill(2)`.
    public static let kill = SystemCall(__NR_kill)
    /// `uname(2)`.
    public static let uname = SystemCall(__NR_uname)
    /// `semget(2)`.
    public static let semget = SystemCall(__NR_semget)
    /// `semop(2)`.
    public static let semop = SystemCall(__NR_semop)
    /// `semctl(2)`.
    public static let semctl = SystemCall(__NR_semctl)
    /// `shmdt(2)`.
    public static let shmdt = SystemCall(__NR_shmdt)
    /// `msgget(2)`.
    public static let msgget = SystemCall(__NR_msgget)
    /// `msgsnd(2)`.
    public static let msgsnd = SystemCall(__NR_msgsnd)
    /// `msgrcv(2)`.
    public static let msgrcv = SystemCall(__NR_msgrcv)
    /// `msgctl(2)`.
    public static let msgctl = SystemCall(__NR_msgctl)
    /// `fcntl(2)`.
    public static let fcntl = SystemCall(__NR_fcntl)
    /// `flock(2)`.
    public static let flock = SystemCall(__NR_flock)
    /// `fsync(2)`.
    public static let fsync = SystemCall(__NR_fsync)
    /// `fdatasync(2)`.
    public static let fdatasync = SystemCall(__NR_fdatasync)
    /// `truncate(2)`.
    public static let truncate = SystemCall(__NR_truncate)
    /// `ftruncate(2)`.
    public static let ftruncate = SystemCall(__NR_ftruncate)
    /// `getdents(2)`.
    public static let getdents = SystemCall(__NR_getdents)
    /// `getcwd(2)`.
    public static let getcwd = SystemCall(__NR_getcwd)
    /// `chdir(2)`.
    public static let chdir = SystemCall(__NR_chdir)
    /// `fchdir(2)`.
    public static let fchdir = SystemCall(__NR_fchdir)
    /// `rename(2)`.
    public static let rename = SystemCall(__NR_rename)
    /// `mkdir(2)`.
    public static let mkdir = SystemCall(__NR_mkdir)
    /// `rmdir(2)`.
    public static let rmdir = SystemCall(__NR_rmdir)
    /// `creat(2)`.
    public static let creat = SystemCall(__NR_creat)
    /// `link(2)`.
    public static let link = SystemCall(__NR_link)
    /// `unlink(2)`.
    public static let unlink = SystemCall(__NR_unlink)
    /// `symlink(2)`.
    public static let symlink = SystemCall(__NR_symlink)
    /// `readlink(2)`.
    public static let readlink = SystemCall(__NR_readlink)
    /// `chmod(2)`.
    public static let chmod = SystemCall(__NR_chmod)
    /// `fchmod(2)`.
    public static let fchmod = SystemCall(__NR_fchmod)
    /// `chown(2)`.
    public static let chown = SystemCall(__NR_chown)
    /// `fchown(2)`.
    public static let fchown = SystemCall(__NR_fchown)
    /// `lchown(2)`.
    public static let lchown = SystemCall(__NR_lchown)
    /// `umask(2)`.
    public static let umask = SystemCall(__NR_umask)
    /// `gettimeofday(2)`.
    public static let gettimeofday = SystemCall(__NR_gettimeofday)
    /// `getrlimit(2)`.
    public static let getrlimit = SystemCall(__NR_getrlimit)
    /// `getrusage(2)`.
    public static let getrusage = SystemCall(__NR_getrusage)
    /// `sysinfo(2)`.
    public static let sysinfo = SystemCall(__NR_sysinfo)
    /// `times(2)`.
    public static let times = SystemCall(__NR_times)
    /// `ptrace(2)`.
    public static let ptrace = SystemCall(__NR_ptrace)
    /// `getuid(2)`.
    public static let getuid = SystemCall(__NR_getuid)
    /// `syslog(2)`.
    public static let syslog = SystemCall(__NR_syslog)
    /// `getgid(2)`.
    public static let getgid = SystemCall(__NR_getgid)
    /// `setuid(2)`.
    public static let setuid = SystemCall(__NR_setuid)
    /// `setgid(2)`.
    public static let setgid = SystemCall(__NR_setgid)
    /// `geteuid(2)`.
    public static let geteuid = SystemCall(__NR_geteuid)
    /// `getegid(2)`.
    public static let getegid = SystemCall(__NR_getegid)
    /// `setpgid(2)`.
    public static let setpgid = SystemCall(__NR_setpgid)
    /// `getppid(2)`.
    public static let getppid = SystemCall(__NR_getppid)
    /// `getpgrp(2)`.
    public static let getpgrp = SystemCall(__NR_getpgrp)
    /// `setsid(2)`.
    public static let setsid = SystemCall(__NR_setsid)
    /// `setreuid(2)`.
    public static let setreuid = SystemCall(__NR_setreuid)
    /// `setregid(2)`.
    public static let setregid = SystemCall(__NR_setregid)
    /// `getgroups(2)`.
    public static let getgroups = SystemCall(__NR_getgroups)
    /// `setgroups(2)`.
    public static let setgroups = SystemCall(__NR_setgroups)
    /// `setresuid(2)`.
    public static let setresuid = SystemCall(__NR_setresuid)
    /// `getresuid(2)`.
    public static let getresuid = SystemCall(__NR_getresuid)
    /// `setresgid(2)`.
    public static let setresgid = SystemCall(__NR_setresgid)
    /// `getresgid(2)`.
    public static let getresgid = SystemCall(__NR_getresgid)
    /// `getpgid(2)`.
    public static let getpgid = SystemCall(__NR_getpgid)
    /// `setfsuid(2)`.
    public static let setfsuid = SystemCall(__NR_setfsuid)
    /// `setfsgid(2)`.
    public static let setfsgid = SystemCall(__NR_setfsgid)
    /// `getsid(2)`.
    public static let getsid = SystemCall(__NR_getsid)
    /// `capget(2)`.
    public static let capget = SystemCall(__NR_capget)
    /// `capset(2)`.
    public static let capset = SystemCall(__NR_capset)
    /// `rt_sigpending(2)`.
    public static let rt_sigpending = SystemCall(__NR_rt_sigpending)
    /// `rt_sigtimedwait(2)`.
    public static let rt_sigtimedwait = SystemCall(__NR_rt_sigtimedwait)
    /// `rt_sigqueueinfo(2)`.
    public static let rt_sigqueueinfo = SystemCall(__NR_rt_sigqueueinfo)
    /// `rt_sigsuspend(2)`.
    public static let rt_sigsuspend = SystemCall(__NR_rt_sigsuspend)
    /// `sigaltstack(2)`.
    public static let sigaltstack = SystemCall(__NR_sigaltstack)
    /// `utime(2)`.
    public static let utime = SystemCall(__NR_utime)
    /// `mknod(2)`.
    public static let mknod = SystemCall(__NR_mknod)
    /// `uselib(2)`.
    public static let uselib = SystemCall(__NR_uselib)
    /// `personality(2)`.
    public static let personality = SystemCall(__NR_personality)
    /// `ustat(2)`.
    public static let ustat = SystemCall(__NR_ustat)
    /// `statfs(2)`.
    public static let statfs = SystemCall(__NR_statfs)
    /// `fstatfs(2)`.
    public static let fstatfs = SystemCall(__NR_fstatfs)
    /// `sysfs(2)`.
    public static let sysfs = SystemCall(__NR_sysfs)
    /// `getpriority(2)`.
    public static let getpriority = SystemCall(__NR_getpriority)
    /// `setpriority(2)`.
    public static let setpriority = SystemCall(__NR_setpriority)
    /// `sched_setparam(2)`.
    public static let sched_setparam = SystemCall(__NR_sched_setparam)
    /// `sched_getparam(2)`.
    public static let sched_getparam = SystemCall(__NR_sched_getparam)
    /// `sched_setscheduler(2)`.
    public static let sched_setscheduler = SystemCall(__NR_sched_setscheduler)
    /// `sched_getscheduler(2)`.
    public static let sched_getscheduler = SystemCall(__NR_sched_getscheduler)
    /// `sched_get_priority_max(2)`.
    public static let sched_get_priority_max = SystemCall(__NR_sched_get_priority_max)
    /// `sched_get_priority_min(2)`.
    public static let sched_get_priority_min = SystemCall(__NR_sched_get_priority_min)
    /// `sched_rr_get_interval(2)`.
    public static let sched_rr_get_interval = SystemCall(__NR_sched_rr_get_interval)
    /// `mlock(2)`.
    public static let mlock = SystemCall(__NR_mlock)
    /// `munlock(2)`.
    public static let munlock = SystemCall(__NR_munlock)
    /// `mlockall(2)`.
    public static let mlockall = SystemCall(__NR_mlockall)
    /// `munlockall(2)`.
    public static let munlockall = SystemCall(__NR_munlockall)
    /// `vhangup(2)`.
    public static let vhangup = SystemCall(__NR_vhangup)
    /// `modify_ldt(2)`.
    public static let modify_ldt = SystemCall(__NR_modify_ldt)
    /// `pivot_root(2)`.
    public static let pivot_root = SystemCall(__NR_pivot_root)
    /// `_sysctl(2)`.
    public static let _sysctl = SystemCall(__NR__sysctl)
    /// `prctl(2)`.
    public static let prctl = SystemCall(__NR_prctl)
    /// `arch_prctl(2)`.
    public static let arch_prctl = SystemCall(__NR_arch_prctl)
    /// `adjtimex(2)`.
    public static let adjtimex = SystemCall(__NR_adjtimex)
    /// `setrlimit(2)`.
    public static let setrlimit = SystemCall(__NR_setrlimit)
    /// `chroot(2)`.
    public static let chroot = SystemCall(__NR_chroot)
    /// `sync(2)`.
    public static let sync = SystemCall(__NR_sync)
    /// `acct(2)`.
    public static let acct = SystemCall(__NR_acct)
    /// `settimeofday(2)`.
    public static let settimeofday = SystemCall(__NR_settimeofday)
    /// `mount(2)`.
    public static let mount = SystemCall(__NR_mount)
    /// `umount2(2)`.
    public static let umount2 = SystemCall(__NR_umount2)
    /// `swapon(2)`.
    public static let swapon = SystemCall(__NR_swapon)
    /// `swapoff(2)`.
    public static let swapoff = SystemCall(__NR_swapoff)
    /// `reboot(2)`.
    public static let reboot = SystemCall(__NR_reboot)
    /// `sethostname(2)`.
    public static let sethostname = SystemCall(__NR_sethostname)
    /// `setdomainname(2)`.
    public static let setdomainname = SystemCall(__NR_setdomainname)
    /// `iopl(2)`.
    public static let iopl = SystemCall(__NR_iopl)
    /// `ioperm(2)`.
    public static let ioperm = SystemCall(__NR_ioperm)
    /// `create_module(2)`.
    public static let create_module = SystemCall(__NR_create_module)
    /// `init_module(2)`.
    public static let init_module = SystemCall(__NR_init_module)
    /// `delete_module(2)`.
    public static let delete_module = SystemCall(__NR_delete_module)
    /// `get_kernel_syms(2)`.
    public static let get_kernel_syms = SystemCall(__NR_get_kernel_syms)
    /// `query_module(2)`.
    public static let query_module = SystemCall(__NR_query_module)
    /// `quotactl(2)`.
    public static let quotactl = SystemCall(__NR_quotactl)
    /// `nfsservctl(2)`.
    public static let nfsservctl = SystemCall(__NR_nfsservctl)
    /// `getpmsg(2)`.
    public static let getpmsg = SystemCall(__NR_getpmsg)
    /// `putpmsg(2)`.
    public static let putpmsg = SystemCall(__NR_putpmsg)
    /// `afs_syscall(2)`.
    public static let afs_syscall = SystemCall(__NR_afs_syscall)
    /// `tuxcall(2)`.
    public static let tuxcall = SystemCall(__NR_tuxcall)
    /// `security(2)`.
    public static let security = SystemCall(__NR_security)
    /// `gettid(2)`.
    public static let gettid = SystemCall(__NR_gettid)
    /// `readahead(2)`.
    public static let readahead = SystemCall(__NR_readahead)
    /// `setxattr(2)`.
    public static let setxattr = SystemCall(__NR_setxattr)
    /// `lsetxattr(2)`.
    public static let lsetxattr = SystemCall(__NR_lsetxattr)
    /// `fsetxattr(2)`.
    public static let fsetxattr = SystemCall(__NR_fsetxattr)
    /// `getxattr(2)`.
    public static let getxattr = SystemCall(__NR_getxattr)
    /// `lgetxattr(2)`.
    public static let lgetxattr = SystemCall(__NR_lgetxattr)
    /// `fgetxattr(2)`.
    public static let fgetxattr = SystemCall(__NR_fgetxattr)
    /// `listxattr(2)`.
    public static let listxattr = SystemCall(__NR_listxattr)
    /// `llistxattr(2)`.
    public static let llistxattr = SystemCall(__NR_llistxattr)
    /// `flistxattr(2)`.
    public static let flistxattr = SystemCall(__NR_flistxattr)
    /// `removexattr(2)`.
    public static let removexattr = SystemCall(__NR_removexattr)
    /// `lremovexattr(2)`.
    public static let lremovexattr = SystemCall(__NR_lremovexattr)
    /// `fremovexattr(2)`.
    public static let fremovexattr = SystemCall(__NR_fremovexattr)
    /// `tkill(2)`.
    public static let tkill = SystemCall(__NR_tkill)
    /// `time(2)`.
    public static let time = SystemCall(__NR_time)
    /// `futex(2)`.
    public static let futex = SystemCall(__NR_futex)
    /// `sched_setaffinity(2)`.
    public static let sched_setaffinity = SystemCall(__NR_sched_setaffinity)
    /// `sched_getaffinity(2)`.
    public static let sched_getaffinity = SystemCall(__NR_sched_getaffinity)
    /// `set_thread_area(2)`.
    public static let set_thread_area = SystemCall(__NR_set_thread_area)
    /// `io_setup(2)`.
    public static let io_setup = SystemCall(__NR_io_setup)
    /// `io_destroy(2)`.
    public static let io_destroy = SystemCall(__NR_io_destroy)
    /// `io_getevents(2)`.
    public static let io_getevents = SystemCall(__NR_io_getevents)
    /// `io_submit(2)`.
    public static let io_submit = SystemCall(__NR_io_submit)
    /// `io_cancel(2)`.
    public static let io_cancel = SystemCall(__NR_io_cancel)
    /// `get_thread_area(2)`.
    public static let get_thread_area = SystemCall(__NR_get_thread_area)
    /// `lookup_dcookie(2)`.
    public static let lookup_dcookie = SystemCall(__NR_lookup_dcookie)
    /// `epoll_create(2)`.
    public static let epoll_create = SystemCall(__NR_epoll_create)
    /// `epoll_ctl_old(2)`.
    public static let epoll_ctl_old = SystemCall(__NR_epoll_ctl_old)
    /// `epoll_wait_old(2)`.
    public static let epoll_wait_old = SystemCall(__NR_epoll_wait_old)
    /// `remap_file_pages(2)`.
    public static let remap_file_pages = SystemCall(__NR_remap_file_pages)
    /// `getdents64(2)`.
    public static let getdents64 = SystemCall(__NR_getdents64)
    /// `set_tid_address(2)`.
    public static let set_tid_address = SystemCall(__NR_set_tid_address)
    /// `restart_syscall(2)`.
    public static let restart_syscall = SystemCall(__NR_restart_syscall)
    /// `semtimedop(2)`.
    public static let semtimedop = SystemCall(__NR_semtimedop)
    /// `fadvise64(2)`.
    public static let fadvise64 = SystemCall(__NR_fadvise64)
    /// `timer_create(2)`.
    public static let timer_create = SystemCall(__NR_timer_create)
    /// `timer_settime(2)`.
    public static let timer_settime = SystemCall(__NR_timer_settime)
    /// `timer_gettime(2)`.
    public static let timer_gettime = SystemCall(__NR_timer_gettime)
    /// `timer_getoverrun(2)`.
    public static let timer_getoverrun = SystemCall(__NR_timer_getoverrun)
    /// `timer_delete(2)`.
    public static let timer_delete = SystemCall(__NR_timer_delete)
    /// `clock_settime(2)`.
    public static let clock_settime = SystemCall(__NR_clock_settime)
    /// `clock_gettime(2)`.
    public static let clock_gettime = SystemCall(__NR_clock_gettime)
    /// `clock_getres(2)`.
    public static let clock_getres = SystemCall(__NR_clock_getres)
    /// `clock_nanosleep(2)`.
    public static let clock_nanosleep = SystemCall(__NR_clock_nanosleep)
    /// `exit_group(2)`.
    public static let exit_group = SystemCall(__NR_exit_group)
    /// `epoll_wait(2)`.
    public static let epoll_wait = SystemCall(__NR_epoll_wait)
    /// `epoll_ctl(2)`.
    public static let epoll_ctl = SystemCall(__NR_epoll_ctl)
    /// `tgkill(2)`.
    public static let tgkill = SystemCall(__NR_tgkill)
    /// `utimes(2)`.
    public static let utimes = SystemCall(__NR_utimes)
    /// `vserver(2)`.
    public static let vserver = SystemCall(__NR_vserver)
    /// `mbind(2)`.
    public static let mbind = SystemCall(__NR_mbind)
    /// `set_mempolicy(2)`.
    public static let set_mempolicy = SystemCall(__NR_set_mempolicy)
    /// `get_mempolicy(2)`.
    public static let get_mempolicy = SystemCall(__NR_get_mempolicy)
    /// `mq_open(2)`.
    public static let mq_open = SystemCall(__NR_mq_open)
    /// `mq_unlink(2)`.
    public static let mq_unlink = SystemCall(__NR_mq_unlink)
    /// `mq_timedsend(2)`.
    public static let mq_timedsend = SystemCall(__NR_mq_timedsend)
    /// `mq_timedreceive(2)`.
    public static let mq_timedreceive = SystemCall(__NR_mq_timedreceive)
    /// `mq_notify(2)`.
    public static let mq_notify = SystemCall(__NR_mq_notify)
    /// `mq_getsetattr(2)`.
    public static let mq_getsetattr = SystemCall(__NR_mq_getsetattr)
    /// `kexec_load(2)`.
    public static let kexec_load = SystemCall(__NR_kexec_load)
    /// `waitid(2)`.
    public static let waitid = SystemCall(__NR_waitid)
    /// `add_key(2)`.
    public static let add_key = SystemCall(__NR_add_key)
    /// `request_key(2)`.
    public static let request_key = SystemCall(__NR_request_key)
    /// `keyctl(2)`.
    public static let keyctl = SystemCall(__NR_keyctl)
    /// `ioprio_set(2)`.
    public static let ioprio_set = SystemCall(__NR_ioprio_set)
    /// `ioprio_get(2)`.
    public static let ioprio_get = SystemCall(__NR_ioprio_get)
    /// `inotify_init(2)`.
    public static let inotify_init = SystemCall(__NR_inotify_init)
    /// `inotify_add_watch(2)`.
    public static let inotify_add_watch = SystemCall(__NR_inotify_add_watch)
    /// `inotify_rm_watch(2)`.
    public static let inotify_rm_watch = SystemCall(__NR_inotify_rm_watch)
    /// `migrate_pages(2)`.
    public static let migrate_pages = SystemCall(__NR_migrate_pages)
    /// `openat(2)`.
    public static let openat = SystemCall(__NR_openat)
    /// `mkdirat(2)`.
    public static let mkdirat = SystemCall(__NR_mkdirat)
    /// `mknodat(2)`.
    public static let mknodat = SystemCall(__NR_mknodat)
    /// `fchownat(2)`.
    public static let fchownat = SystemCall(__NR_fchownat)
    /// `futimesat(2)`.
    public static let futimesat = SystemCall(__NR_futimesat)
    /// `newfstatat(2)`.
    public static let newfstatat = SystemCall(__NR_newfstatat)
    /// `unlinkat(2)`.
    public static let unlinkat = SystemCall(__NR_unlinkat)
    /// `renameat(2)`.
    public static let renameat = SystemCall(__NR_renameat)
    /// `linkat(2)`.
    public static let linkat = SystemCall(__NR_linkat)
    /// `symlinkat(2)`.
    public static let symlinkat = SystemCall(__NR_symlinkat)
    /// `readlinkat(2)`.
    public static let readlinkat = SystemCall(__NR_readlinkat)
    /// `fchmodat(2)`.
    public static let fchmodat = SystemCall(__NR_fchmodat)
    /// `faccessat(2)`.
    public static let faccessat = SystemCall(__NR_faccessat)
    /// `pselect6(2)`.
    public static let pselect6 = SystemCall(__NR_pselect6)
    /// `ppoll(2)`.
    public static let ppoll = SystemCall(__NR_ppoll)
    /// `unshare(2)`.
    public static let unshare = SystemCall(__NR_unshare)
    /// `set_robust_list(2)`.
    public static let set_robust_list = SystemCall(__NR_set_robust_list)
    /// `get_robust_list(2)`.
    public static let get_robust_list = SystemCall(__NR_get_robust_list)
    /// `splice(2)`.
    public static let splice = SystemCall(__NR_splice)
    /// `tee(2)`.
    public static let tee = SystemCall(__NR_tee)
    /// `sync_file_range(2)`.
    public static let sync_file_range = SystemCall(__NR_sync_file_range)
    /// `vmsplice(2)`.
    public static let vmsplice = SystemCall(__NR_vmsplice)
    /// `move_pages(2)`.
    public static let move_pages = SystemCall(__NR_move_pages)
    /// `utimensat(2)`.
    public static let utimensat = SystemCall(__NR_utimensat)
    /// `epoll_pwait(2)`.
    public static let epoll_pwait = SystemCall(__NR_epoll_pwait)
    /// `signalfd(2)`.
    public static let signalfd = SystemCall(__NR_signalfd)
    /// `timerfd_create(2)`.
    public static let timerfd_create = SystemCall(__NR_timerfd_create)
    /// `eventfd(2)`.
    public static let eventfd = SystemCall(__NR_eventfd)
    /// `fallocate(2)`.
    public static let fallocate = SystemCall(__NR_fallocate)
    /// `timerfd_settime(2)`.
    public static let timerfd_settime = SystemCall(__NR_timerfd_settime)
    /// `timerfd_gettime(2)`.
    public static let timerfd_gettime = SystemCall(__NR_timerfd_gettime)
    /// `accept4(2)`.
    public static let accept4 = SystemCall(__NR_accept4)
    /// `signalfd4(2)`.
    public static let signalfd4 = SystemCall(__NR_signalfd4)
    /// `eventfd2(2)`.
    public static let eventfd2 = SystemCall(__NR_eventfd2)
    /// `epoll_create1(2)`.
    public static let epoll_create1 = SystemCall(__NR_epoll_create1)
    /// `dup3(2)`.
    public static let dup3 = SystemCall(__NR_dup3)
    /// `pipe2(2)`.
    public static let pipe2 = SystemCall(__NR_pipe2)
    /// `inotify_init1(2)`.
    public static let inotify_init1 = SystemCall(__NR_inotify_init1)
    /// `preadv(2)`.
    public static let preadv = SystemCall(__NR_preadv)
    /// `pwritev(2)`.
    public static let pwritev = SystemCall(__NR_pwritev)
    /// `rt_tgsigqueueinfo(2)`.
    public static let rt_tgsigqueueinfo = SystemCall(__NR_rt_tgsigqueueinfo)
    /// `perf_event_open(2)`.
    public static let perf_event_open = SystemCall(__NR_perf_event_open)
    /// `recvmmsg(2)`.
    public static let recvmmsg = SystemCall(__NR_recvmmsg)
    /// `fanotify_init(2)`.
    public static let fanotify_init = SystemCall(__NR_fanotify_init)
    /// `fanotify_mark(2)`.
    public static let fanotify_mark = SystemCall(__NR_fanotify_mark)
    /// `prlimit64(2)`.
    public static let prlimit64 = SystemCall(__NR_prlimit64)
    /// `name_to_handle_at(2)`.
    public static let name_to_handle_at = SystemCall(__NR_name_to_handle_at)
    /// `open_by_handle_at(2)`.
    public static let open_by_handle_at = SystemCall(__NR_open_by_handle_at)
    /// `clock_adjtime(2)`.
    public static let clock_adjtime = SystemCall(__NR_clock_adjtime)
    /// `syncfs(2)`.
    public static let syncfs = SystemCall(__NR_syncfs)
    /// `sendmmsg(2)`.
    public static let sendmmsg = SystemCall(__NR_sendmmsg)
    /// `setns(2)`.
    public static let setns = SystemCall(__NR_setns)
    /// `getcpu(2)`.
    public static let getcpu = SystemCall(__NR_getcpu)
    /// `process_vm_readv(2)`.
    public static let process_vm_readv = SystemCall(__NR_process_vm_readv)
    /// `process_vm_writev(2)`.
    public static let process_vm_writev = SystemCall(__NR_process_vm_writev)
    /// `kcmp(2)`.
    public static let kcmp = SystemCall(__NR_kcmp)
    /// `finit_module(2)`.
    public static let finit_module = SystemCall(__NR_finit_module)
    /// `sched_setattr(2)`.
    public static let sched_setattr = SystemCall(__NR_sched_setattr)
    /// `sched_getattr(2)`.
    public static let sched_getattr = SystemCall(__NR_sched_getattr)
    /// `renameat2(2)`.
    public static let renameat2 = SystemCall(__NR_renameat2)
    /// `seccomp(2)`.
    public static let seccomp = SystemCall(__NR_seccomp)
    /// `getrandom(2)`.
    public static let getrandom = SystemCall(__NR_getrandom)
    /// `memfd_create(2)`.
    public static let memfd_create = SystemCall(__NR_memfd_create)
    /// `kexec_file_load(2)`.
    public static let kexec_file_load = SystemCall(__NR_kexec_file_load)
    /// `bpf(2)`.
    public static let bpf = SystemCall(__NR_bpf)
    /// `execveat(2)`.
    public static let execveat = SystemCall(__NR_execveat)
    /// `userfaultfd(2)`.
    public static let userfaultfd = SystemCall(__NR_userfaultfd)
    /// `membarrier(2)`.
    public static let membarrier = SystemCall(__NR_membarrier)
    /// `mlock2(2)`.
    public static let mlock2 = SystemCall(__NR_mlock2)
    /// `copy_file_range(2)`.
    public static let copy_file_range = SystemCall(__NR_copy_file_range)
    /// `preadv2(2)`.
    public static let preadv2 = SystemCall(__NR_preadv2)
    /// `pwritev2(2)`.
    public static let pwritev2 = SystemCall(__NR_pwritev2)
    /// `pkey_mprotect(2)`.
    public static let pkey_mprotect = SystemCall(__NR_pkey_mprotect)
    /// `pkey_alloc(2)`.
    public static let pkey_alloc = SystemCall(__NR_pkey_alloc)
    /// `pkey_free(2)`.
    public static let pkey_free = SystemCall(__NR_pkey_free)
    /// `statx(2)`.
    public static let statx = SystemCall(__NR_statx)
    /// `io_pgetevents(2)`.
    public static let io_pgetevents = SystemCall(__NR_io_pgetevents)
    /// `rseq(2)`.
    public static let rseq = SystemCall(__NR_rseq)
    /// `pidfd_send_signal(2)`.
    public static let pidfd_send_signal = SystemCall(__NR_pidfd_send_signal)
    /// `io_uring_setup(2)`.
    public static let io_uring_setup = SystemCall(__NR_io_uring_setup)
    /// `io_uring_enter(2)`.
    public static let io_uring_enter = SystemCall(__NR_io_uring_enter)
    /// `io_uring_register(2)`.
    public static let io_uring_register = SystemCall(__NR_io_uring_register)
    /// `open_tree(2)`.
    public static let open_tree = SystemCall(__NR_open_tree)
    /// `move_mount(2)`.
    public static let move_mount = SystemCall(__NR_move_mount)
    /// `fsopen(2)`.
    public static let fsopen = SystemCall(__NR_fsopen)
    /// `fsconfig(2)`.
    public static let fsconfig = SystemCall(__NR_fsconfig)
    /// `fsmount(2)`.
    public static let fsmount = SystemCall(__NR_fsmount)
    /// `fspick(2)`.
    public static let fspick = SystemCall(__NR_fspick)
    /// `pidfd_open(2)`.
    public static let pidfd_open = SystemCall(__NR_pidfd_open)
    /// `clone3(2)`.
    public static let clone3 = SystemCall(__NR_clone3)
    /// `close_range(2)`.
    public static let close_range = SystemCall(__NR_close_range)
    /// `openat2(2)`.
    public static let openat2 = SystemCall(__NR_openat2)
    /// `pidfd_getfd(2)`.
    public static let pidfd_getfd = SystemCall(__NR_pidfd_getfd)
    /// `faccessat2(2)`.
    public static let faccessat2 = SystemCall(__NR_faccessat2)
    /// `process_madvise(2)`.
    public static let process_madvise = SystemCall(__NR_process_madvise)
    /// `epoll_pwait2(2)`.
    public static let epoll_pwait2 = SystemCall(__NR_epoll_pwait2)
    /// `mount_setattr(2)`.
    public static let mount_setattr = SystemCall(__NR_mount_setattr)
    /// `quotactl_fd(2)`.
    public static let quotactl_fd = SystemCall(__NR_quotactl_fd)
    /// `landlock_create_ruleset(2)`.
    public static let landlock_create_ruleset = SystemCall(__NR_landlock_create_ruleset)
    /// `landlock_add_rule(2)`.
    public static let landlock_add_rule = SystemCall(__NR_landlock_add_rule)
    /// `landlock_restrict_self(2)`.
    public static let landlock_restrict_self = SystemCall(__NR_landlock_restrict_self)
    /// `memfd_secret(2)`.
    public static let memfd_secret = SystemCall(__NR_memfd_secret)
    /// `process_mrelease(2)`.
    public static let process_mrelease = SystemCall(__NR_process_mrelease)
    /// `futex_waitv(2)`.
    public static let futex_waitv = SystemCall(__NR_futex_waitv)
    /// `set_mempolicy_home_node(2)`.
    public static let set_mempolicy_home_node = SystemCall(__NR_set_mempolicy_home_node)
}

extension SystemCall {
    /// Names by number, for messages.
    static let names: [Int: String] = [
        Int(__NR_read): "read",
        Int(__NR_write): "write",
        Int(__NR_open): "open",
        Int(__NR_close): "close",
        Int(__NR_stat): "stat",
        Int(__NR_fstat): "fstat",
        Int(__NR_lstat): "lstat",
        Int(__NR_poll): "poll",
        Int(__NR_lseek): "lseek",
        Int(__NR_mmap): "mmap",
        Int(__NR_mprotect): "mprotect",
        Int(__NR_munmap): "munmap",
        Int(__NR_brk): "brk",
        Int(__NR_rt_sigaction): "rt_sigaction",
        Int(__NR_rt_sigprocmask): "rt_sigprocmask",
        Int(__NR_rt_sigreturn): "rt_sigreturn",
        Int(__NR_ioctl): "ioctl",
        Int(__NR_pread64): "pread64",
        Int(__NR_pwrite64): "pwrite64",
        Int(__NR_readv): "readv",
        Int(__NR_writev): "writev",
        Int(__NR_access): "access",
        Int(__NR_pipe): "pipe",
        Int(__NR_select): "select",
        Int(__NR_sched_yield): "sched_yield",
        Int(__NR_mremap): "mremap",
        Int(__NR_msync): "msync",
        Int(__NR_mincore): "mincore",
        Int(__NR_madvise): "madvise",
        Int(__NR_shmget): "shmget",
        Int(__NR_shmat): "shmat",
        Int(__NR_shmctl): "shmctl",
        Int(__NR_dup): "dup",
        Int(__NR_dup2): "dup2",
        Int(__NR_pause): "pause",
        Int(__NR_nanosleep): "nanosleep",
        Int(__NR_getitimer): "getitimer",
        Int(__NR_alarm): "alarm",
        Int(__NR_setitimer): "setitimer",
        Int(__NR_getpid): "getpid",
        Int(__NR_sendfile): "sendfile",
        Int(__NR_socket): "socket",
        Int(__NR_connect): "connect",
        Int(__NR_accept): "accept",
        Int(__NR_sendto): "sendto",
        Int(__NR_recvfrom): "recvfrom",
        Int(__NR_sendmsg): "sendmsg",
        Int(__NR_recvmsg): "recvmsg",
        Int(__NR_shutdown): "shutdown",
        Int(__NR_bind): "bind",
        Int(__NR_listen): "listen",
        Int(__NR_getsockname): "getsockname",
        Int(__NR_getpeername): "getpeername",
        Int(__NR_socketpair): "socketpair",
        Int(__NR_setsockopt): "setsockopt",
        Int(__NR_getsockopt): "getsockopt",
        Int(__NR_clone): "clone",
        Int(__NR_fork): "fork",
        Int(__NR_vfork): "vfork",
        Int(__NR_execve): "execve",
        Int(__NR_exit): "exit",
        Int(__NR_wait4): "wait4",
        Int(__NR_kill): "kill",
        Int(__NR_uname): "uname",
        Int(__NR_semget): "semget",
        Int(__NR_semop): "semop",
        Int(__NR_semctl): "semctl",
        Int(__NR_shmdt): "shmdt",
        Int(__NR_msgget): "msgget",
        Int(__NR_msgsnd): "msgsnd",
        Int(__NR_msgrcv): "msgrcv",
        Int(__NR_msgctl): "msgctl",
        Int(__NR_fcntl): "fcntl",
        Int(__NR_flock): "flock",
        Int(__NR_fsync): "fsync",
        Int(__NR_fdatasync): "fdatasync",
        Int(__NR_truncate): "truncate",
        Int(__NR_ftruncate): "ftruncate",
        Int(__NR_getdents): "getdents",
        Int(__NR_getcwd): "getcwd",
        Int(__NR_chdir): "chdir",
        Int(__NR_fchdir): "fchdir",
        Int(__NR_rename): "rename",
        Int(__NR_mkdir): "mkdir",
        Int(__NR_rmdir): "rmdir",
        Int(__NR_creat): "creat",
        Int(__NR_link): "link",
        Int(__NR_unlink): "unlink",
        Int(__NR_symlink): "symlink",
        Int(__NR_readlink): "readlink",
        Int(__NR_chmod): "chmod",
        Int(__NR_fchmod): "fchmod",
        Int(__NR_chown): "chown",
        Int(__NR_fchown): "fchown",
        Int(__NR_lchown): "lchown",
        Int(__NR_umask): "umask",
        Int(__NR_gettimeofday): "gettimeofday",
        Int(__NR_getrlimit): "getrlimit",
        Int(__NR_getrusage): "getrusage",
        Int(__NR_sysinfo): "sysinfo",
        Int(__NR_times): "times",
        Int(__NR_ptrace): "ptrace",
        Int(__NR_getuid): "getuid",
        Int(__NR_syslog): "syslog",
        Int(__NR_getgid): "getgid",
        Int(__NR_setuid): "setuid",
        Int(__NR_setgid): "setgid",
        Int(__NR_geteuid): "geteuid",
        Int(__NR_getegid): "getegid",
        Int(__NR_setpgid): "setpgid",
        Int(__NR_getppid): "getppid",
        Int(__NR_getpgrp): "getpgrp",
        Int(__NR_setsid): "setsid",
        Int(__NR_setreuid): "setreuid",
        Int(__NR_setregid): "setregid",
        Int(__NR_getgroups): "getgroups",
        Int(__NR_setgroups): "setgroups",
        Int(__NR_setresuid): "setresuid",
        Int(__NR_getresuid): "getresuid",
        Int(__NR_setresgid): "setresgid",
        Int(__NR_getresgid): "getresgid",
        Int(__NR_getpgid): "getpgid",
        Int(__NR_setfsuid): "setfsuid",
        Int(__NR_setfsgid): "setfsgid",
        Int(__NR_getsid): "getsid",
        Int(__NR_capget): "capget",
        Int(__NR_capset): "capset",
        Int(__NR_rt_sigpending): "rt_sigpending",
        Int(__NR_rt_sigtimedwait): "rt_sigtimedwait",
        Int(__NR_rt_sigqueueinfo): "rt_sigqueueinfo",
        Int(__NR_rt_sigsuspend): "rt_sigsuspend",
        Int(__NR_sigaltstack): "sigaltstack",
        Int(__NR_utime): "utime",
        Int(__NR_mknod): "mknod",
        Int(__NR_uselib): "uselib",
        Int(__NR_personality): "personality",
        Int(__NR_ustat): "ustat",
        Int(__NR_statfs): "statfs",
        Int(__NR_fstatfs): "fstatfs",
        Int(__NR_sysfs): "sysfs",
        Int(__NR_getpriority): "getpriority",
        Int(__NR_setpriority): "setpriority",
        Int(__NR_sched_setparam): "sched_setparam",
        Int(__NR_sched_getparam): "sched_getparam",
        Int(__NR_sched_setscheduler): "sched_setscheduler",
        Int(__NR_sched_getscheduler): "sched_getscheduler",
        Int(__NR_sched_get_priority_max): "sched_get_priority_max",
        Int(__NR_sched_get_priority_min): "sched_get_priority_min",
        Int(__NR_sched_rr_get_interval): "sched_rr_get_interval",
        Int(__NR_mlock): "mlock",
        Int(__NR_munlock): "munlock",
        Int(__NR_mlockall): "mlockall",
        Int(__NR_munlockall): "munlockall",
        Int(__NR_vhangup): "vhangup",
        Int(__NR_modify_ldt): "modify_ldt",
        Int(__NR_pivot_root): "pivot_root",
        Int(__NR__sysctl): "_sysctl",
        Int(__NR_prctl): "prctl",
        Int(__NR_arch_prctl): "arch_prctl",
        Int(__NR_adjtimex): "adjtimex",
        Int(__NR_setrlimit): "setrlimit",
        Int(__NR_chroot): "chroot",
        Int(__NR_sync): "sync",
        Int(__NR_acct): "acct",
        Int(__NR_settimeofday): "settimeofday",
        Int(__NR_mount): "mount",
        Int(__NR_umount2): "umount2",
        Int(__NR_swapon): "swapon",
        Int(__NR_swapoff): "swapoff",
        Int(__NR_reboot): "reboot",
        Int(__NR_sethostname): "sethostname",
        Int(__NR_setdomainname): "setdomainname",
        Int(__NR_iopl): "iopl",
        Int(__NR_ioperm): "ioperm",
        Int(__NR_create_module): "create_module",
        Int(__NR_init_module): "init_module",
        Int(__NR_delete_module): "delete_module",
        Int(__NR_get_kernel_syms): "get_kernel_syms",
        Int(__NR_query_module): "query_module",
        Int(__NR_quotactl): "quotactl",
        Int(__NR_nfsservctl): "nfsservctl",
        Int(__NR_getpmsg): "getpmsg",
        Int(__NR_putpmsg): "putpmsg",
        Int(__NR_afs_syscall): "afs_syscall",
        Int(__NR_tuxcall): "tuxcall",
        Int(__NR_security): "security",
        Int(__NR_gettid): "gettid",
        Int(__NR_readahead): "readahead",
        Int(__NR_setxattr): "setxattr",
        Int(__NR_lsetxattr): "lsetxattr",
        Int(__NR_fsetxattr): "fsetxattr",
        Int(__NR_getxattr): "getxattr",
        Int(__NR_lgetxattr): "lgetxattr",
        Int(__NR_fgetxattr): "fgetxattr",
        Int(__NR_listxattr): "listxattr",
        Int(__NR_llistxattr): "llistxattr",
        Int(__NR_flistxattr): "flistxattr",
        Int(__NR_removexattr): "removexattr",
        Int(__NR_lremovexattr): "lremovexattr",
        Int(__NR_fremovexattr): "fremovexattr",
        Int(__NR_tkill): "tkill",
        Int(__NR_time): "time",
        Int(__NR_futex): "futex",
        Int(__NR_sched_setaffinity): "sched_setaffinity",
        Int(__NR_sched_getaffinity): "sched_getaffinity",
        Int(__NR_set_thread_area): "set_thread_area",
        Int(__NR_io_setup): "io_setup",
        Int(__NR_io_destroy): "io_destroy",
        Int(__NR_io_getevents): "io_getevents",
        Int(__NR_io_submit): "io_submit",
        Int(__NR_io_cancel): "io_cancel",
        Int(__NR_get_thread_area): "get_thread_area",
        Int(__NR_lookup_dcookie): "lookup_dcookie",
        Int(__NR_epoll_create): "epoll_create",
        Int(__NR_epoll_ctl_old): "epoll_ctl_old",
        Int(__NR_epoll_wait_old): "epoll_wait_old",
        Int(__NR_remap_file_pages): "remap_file_pages",
        Int(__NR_getdents64): "getdents64",
        Int(__NR_set_tid_address): "set_tid_address",
        Int(__NR_restart_syscall): "restart_syscall",
        Int(__NR_semtimedop): "semtimedop",
        Int(__NR_fadvise64): "fadvise64",
        Int(__NR_timer_create): "timer_create",
        Int(__NR_timer_settime): "timer_settime",
        Int(__NR_timer_gettime): "timer_gettime",
        Int(__NR_timer_getoverrun): "timer_getoverrun",
        Int(__NR_timer_delete): "timer_delete",
        Int(__NR_clock_settime): "clock_settime",
        Int(__NR_clock_gettime): "clock_gettime",
        Int(__NR_clock_getres): "clock_getres",
        Int(__NR_clock_nanosleep): "clock_nanosleep",
        Int(__NR_exit_group): "exit_group",
        Int(__NR_epoll_wait): "epoll_wait",
        Int(__NR_epoll_ctl): "epoll_ctl",
        Int(__NR_tgkill): "tgkill",
        Int(__NR_utimes): "utimes",
        Int(__NR_vserver): "vserver",
        Int(__NR_mbind): "mbind",
        Int(__NR_set_mempolicy): "set_mempolicy",
        Int(__NR_get_mempolicy): "get_mempolicy",
        Int(__NR_mq_open): "mq_open",
        Int(__NR_mq_unlink): "mq_unlink",
        Int(__NR_mq_timedsend): "mq_timedsend",
        Int(__NR_mq_timedreceive): "mq_timedreceive",
        Int(__NR_mq_notify): "mq_notify",
        Int(__NR_mq_getsetattr): "mq_getsetattr",
        Int(__NR_kexec_load): "kexec_load",
        Int(__NR_waitid): "waitid",
        Int(__NR_add_key): "add_key",
        Int(__NR_request_key): "request_key",
        Int(__NR_keyctl): "keyctl",
        Int(__NR_ioprio_set): "ioprio_set",
        Int(__NR_ioprio_get): "ioprio_get",
        Int(__NR_inotify_init): "inotify_init",
        Int(__NR_inotify_add_watch): "inotify_add_watch",
        Int(__NR_inotify_rm_watch): "inotify_rm_watch",
        Int(__NR_migrate_pages): "migrate_pages",
        Int(__NR_openat): "openat",
        Int(__NR_mkdirat): "mkdirat",
        Int(__NR_mknodat): "mknodat",
        Int(__NR_fchownat): "fchownat",
        Int(__NR_futimesat): "futimesat",
        Int(__NR_newfstatat): "newfstatat",
        Int(__NR_unlinkat): "unlinkat",
        Int(__NR_renameat): "renameat",
        Int(__NR_linkat): "linkat",
        Int(__NR_symlinkat): "symlinkat",
        Int(__NR_readlinkat): "readlinkat",
        Int(__NR_fchmodat): "fchmodat",
        Int(__NR_faccessat): "faccessat",
        Int(__NR_pselect6): "pselect6",
        Int(__NR_ppoll): "ppoll",
        Int(__NR_unshare): "unshare",
        Int(__NR_set_robust_list): "set_robust_list",
        Int(__NR_get_robust_list): "get_robust_list",
        Int(__NR_splice): "splice",
        Int(__NR_tee): "tee",
        Int(__NR_sync_file_range): "sync_file_range",
        Int(__NR_vmsplice): "vmsplice",
        Int(__NR_move_pages): "move_pages",
        Int(__NR_utimensat): "utimensat",
        Int(__NR_epoll_pwait): "epoll_pwait",
        Int(__NR_signalfd): "signalfd",
        Int(__NR_timerfd_create): "timerfd_create",
        Int(__NR_eventfd): "eventfd",
        Int(__NR_fallocate): "fallocate",
        Int(__NR_timerfd_settime): "timerfd_settime",
        Int(__NR_timerfd_gettime): "timerfd_gettime",
        Int(__NR_accept4): "accept4",
        Int(__NR_signalfd4): "signalfd4",
        Int(__NR_eventfd2): "eventfd2",
        Int(__NR_epoll_create1): "epoll_create1",
        Int(__NR_dup3): "dup3",
        Int(__NR_pipe2): "pipe2",
        Int(__NR_inotify_init1): "inotify_init1",
        Int(__NR_preadv): "preadv",
        Int(__NR_pwritev): "pwritev",
        Int(__NR_rt_tgsigqueueinfo): "rt_tgsigqueueinfo",
        Int(__NR_perf_event_open): "perf_event_open",
        Int(__NR_recvmmsg): "recvmmsg",
        Int(__NR_fanotify_init): "fanotify_init",
        Int(__NR_fanotify_mark): "fanotify_mark",
        Int(__NR_prlimit64): "prlimit64",
        Int(__NR_name_to_handle_at): "name_to_handle_at",
        Int(__NR_open_by_handle_at): "open_by_handle_at",
        Int(__NR_clock_adjtime): "clock_adjtime",
        Int(__NR_syncfs): "syncfs",
        Int(__NR_sendmmsg): "sendmmsg",
        Int(__NR_setns): "setns",
        Int(__NR_getcpu): "getcpu",
        Int(__NR_process_vm_readv): "process_vm_readv",
        Int(__NR_process_vm_writev): "process_vm_writev",
        Int(__NR_kcmp): "kcmp",
        Int(__NR_finit_module): "finit_module",
        Int(__NR_sched_setattr): "sched_setattr",
        Int(__NR_sched_getattr): "sched_getattr",
        Int(__NR_renameat2): "renameat2",
        Int(__NR_seccomp): "seccomp",
        Int(__NR_getrandom): "getrandom",
        Int(__NR_memfd_create): "memfd_create",
        Int(__NR_kexec_file_load): "kexec_file_load",
        Int(__NR_bpf): "bpf",
        Int(__NR_execveat): "execveat",
        Int(__NR_userfaultfd): "userfaultfd",
        Int(__NR_membarrier): "membarrier",
        Int(__NR_mlock2): "mlock2",
        Int(__NR_copy_file_range): "copy_file_range",
        Int(__NR_preadv2): "preadv2",
        Int(__NR_pwritev2): "pwritev2",
        Int(__NR_pkey_mprotect): "pkey_mprotect",
        Int(__NR_pkey_alloc): "pkey_alloc",
        Int(__NR_pkey_free): "pkey_free",
        Int(__NR_statx): "statx",
        Int(__NR_io_pgetevents): "io_pgetevents",
        Int(__NR_rseq): "rseq",
        Int(__NR_pidfd_send_signal): "pidfd_send_signal",
        Int(__NR_io_uring_setup): "io_uring_setup",
        Int(__NR_io_uring_enter): "io_uring_enter",
        Int(__NR_io_uring_register): "io_uring_register",
        Int(__NR_open_tree): "open_tree",
        Int(__NR_move_mount): "move_mount",
        Int(__NR_fsopen): "fsopen",
        Int(__NR_fsconfig): "fsconfig",
        Int(__NR_fsmount): "fsmount",
        Int(__NR_fspick): "fspick",
        Int(__NR_pidfd_open): "pidfd_open",
        Int(__NR_clone3): "clone3",
        Int(__NR_close_range): "close_range",
        Int(__NR_openat2): "openat2",
        Int(__NR_pidfd_getfd): "pidfd_getfd",
        Int(__NR_faccessat2): "faccessat2",
        Int(__NR_process_madvise): "process_madvise",
        Int(__NR_epoll_pwait2): "epoll_pwait2",
        Int(__NR_mount_setattr): "mount_setattr",
        Int(__NR_quotactl_fd): "quotactl_fd",
        Int(__NR_landlock_create_ruleset): "landlock_create_ruleset",
        Int(__NR_landlock_add_rule): "landlock_add_rule",
        Int(__NR_landlock_restrict_self): "landlock_restrict_self",
        Int(__NR_memfd_secret): "memfd_secret",
        Int(__NR_process_mrelease): "process_mrelease",
        Int(__NR_futex_waitv): "futex_waitv",
        Int(__NR_set_mempolicy_home_node): "set_mempolicy_home_node",
    ]
}
