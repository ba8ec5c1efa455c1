//! The system calls that a job may make, in groups with the reason for each, and what their arguments have to be; what
//! is in no group is not there for it.

/// System calls for which one reason holds.
pub struct Group {
    /// Why they are allowed, or what they would do.
    pub reason: &'static str,
    /// Their names in libc, and their numbers on this architecture.
    pub calls: &'static [(&'static str, libc::c_long)],
}

macro_rules! group {
    ($reason:literal: $($call:ident)*) => {
        Group { reason: $reason, calls: &[$((stringify!($call), libc::$call)),*] }
    };
}

/// What programs are made of. Some are judged by their arguments as well: [`CONDITIONS`].
pub const ALLOWED: &[Group] = &[
    group!("read and write what is open":
        SYS_read SYS_write SYS_pread64 SYS_pwrite64 SYS_readv SYS_writev SYS_preadv SYS_pwritev SYS_preadv2
        SYS_pwritev2 SYS_lseek SYS_close SYS_close_range SYS_dup SYS_dup3 SYS_fcntl SYS_flock SYS_fsync SYS_fdatasync
        SYS_sync_file_range SYS_fallocate SYS_fadvise64 SYS_readahead SYS_ftruncate SYS_sendfile SYS_splice
        SYS_tee SYS_vmsplice SYS_copy_file_range SYS_pipe2 SYS_ioctl),
    group!("files by name, within the job's view of them":
        SYS_openat SYS_openat2 SYS_mkdirat SYS_mknodat SYS_unlinkat SYS_renameat2 SYS_linkat SYS_symlinkat
        SYS_readlinkat SYS_faccessat SYS_faccessat2 SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat
        SYS_truncate SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_umask SYS_statfs SYS_fstatfs SYS_fstat SYS_statx
        SYS_name_to_handle_at SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch),
    group!("attributes of files": SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr
        SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr),
    group!("the process's own memory":
        SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_msync SYS_mincore SYS_madvise SYS_mlock SYS_mlock2
        SYS_munlock SYS_mlockall SYS_munlockall SYS_remap_file_pages SYS_memfd_create SYS_pkey_alloc SYS_pkey_free
        SYS_pkey_mprotect SYS_mbind SYS_get_mempolicy SYS_set_mempolicy SYS_membarrier SYS_rseq),
    group!("processes and threads, within the job's own pid namespace (`clone` without namespaces)":
        SYS_clone SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid
        SYS_gettid SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_set_tid_address SYS_set_robust_list
        SYS_get_robust_list SYS_futex SYS_futex_waitv SYS_sched_yield SYS_prctl SYS_personality SYS_pidfd_open
        SYS_pidfd_send_signal SYS_process_mrelease SYS_restart_syscall),
    group!("signals, among the job's own processes":
        SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending
        SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sigaltstack SYS_signalfd4),
    group!("waiting and time":
        SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2
        SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_timer_create SYS_timer_settime SYS_timer_gettime
        SYS_timer_getoverrun SYS_timer_delete SYS_nanosleep SYS_clock_nanosleep SYS_clock_gettime SYS_clock_getres
        SYS_gettimeofday SYS_setitimer SYS_getitimer SYS_times),
    group!("sockets, of the families that namespaces hold (`socket` and `socketpair` by family and protocol)":
        SYS_socket SYS_socketpair SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname
        SYS_getpeername SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_shutdown
        SYS_setsockopt SYS_getsockopt),
    group!("shared memory, semaphores and queues of the job's own ipc namespace":
        SYS_shmget SYS_shmat SYS_shmctl SYS_shmdt SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_msgget SYS_msgsnd
        SYS_msgrcv SYS_msgctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify
        SYS_mq_getsetattr),
    group!("who the process is; without a capability it changes to nobody else":
        SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_setuid SYS_setgid
        SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid SYS_setfsgid SYS_capget
        SYS_capset),
    group!("how it runs: only downwards, and within its limits":
        SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set SYS_sched_getaffinity SYS_sched_setaffinity
        SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler SYS_sched_setscheduler SYS_sched_getattr
        SYS_sched_setattr SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_getcpu
        SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage),
    group!("about the machine, which is told anyway": SYS_uname SYS_sysinfo SYS_getrandom),
    group!("further walls of its own": SYS_seccomp SYS_landlock_create_ruleset SYS_landlock_add_rule
        SYS_landlock_restrict_self),
];

/// The same by their older names and ways, which this architecture still has.
#[cfg(target_arch = "x86_64")]
pub const ALLOWED_HERE: &[Group] = &[group!("older forms of what is allowed above":
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_newfstatat SYS_access SYS_pipe SYS_dup2 SYS_poll SYS_select SYS_fork
    SYS_vfork SYS_rename SYS_renameat SYS_mkdir SYS_rmdir SYS_link SYS_unlink SYS_symlink SYS_readlink SYS_chmod
    SYS_chown SYS_lchown SYS_mknod SYS_utime SYS_utimes SYS_futimesat SYS_getdents SYS_pause SYS_alarm SYS_getpgrp
    SYS_time SYS_signalfd SYS_eventfd SYS_epoll_create SYS_epoll_wait SYS_inotify_init SYS_arch_prctl
    SYS_set_thread_area SYS_get_thread_area)];
#[cfg(not(target_arch = "x86_64"))]
pub const ALLOWED_HERE: &[Group] = &[group!("older forms of what is allowed above": SYS_newfstatat SYS_renameat)];

/// Calls that libc has no name for yet: `cachestat`, `fchmodat2`, `map_shadow_stack`, `futex_wake`, `futex_wait`,
/// `futex_requeue`, `mseal`.
pub const ALLOWED_NUMBERS: &[libc::c_long] = &[451, 452, 453, 454, 455, 456, 462];

/// What is answered with EPERM: programs know what it means. All else that is not allowed is ENOSYS.
pub const DENIED: &[Group] = &[
    group!("would make namespaces, or enter others'": SYS_unshare SYS_setns),
    group!("would change what is mounted, or the root": SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_open_tree
        SYS_move_mount SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_mount_setattr),
    group!("would read or drive another process": SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev
        SYS_pidfd_getfd SYS_kcmp SYS_process_madvise SYS_move_pages SYS_migrate_pages),
    group!("large parts of the kernel that few programs need, with a history of holes": SYS_bpf SYS_perf_event_open
        SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_fanotify_init
        SYS_fanotify_mark SYS_memfd_secret),
    group!("asynchronous reads and writes of the older kind: the machine has so many for all (`fs.aio-max-nr`)":
        SYS_io_setup SYS_io_destroy SYS_io_submit SYS_io_cancel SYS_io_getevents),
    group!("keys are not kept apart by namespaces": SYS_add_key SYS_request_key SYS_keyctl),
    group!("would change the kernel or the machine": SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load
        SYS_kexec_file_load SYS_reboot SYS_swapon SYS_swapoff SYS_acct SYS_syslog SYS_sethostname SYS_setdomainname
        SYS_settimeofday SYS_clock_settime SYS_adjtimex SYS_clock_adjtime SYS_vhangup SYS_quotactl SYS_quotactl_fd
        SYS_lookup_dcookie SYS_nfsservctl),
    group!("opens files past the checks of their directories": SYS_open_by_handle_at),
];

/// The same of this architecture.
#[cfg(target_arch = "x86_64")]
pub const DENIED_HERE: &[Group] = &[group!("would change the kernel, the machine or the processor's tables":
    SYS__sysctl SYS_iopl SYS_ioperm SYS_modify_ldt SYS_uselib SYS_ustat)];
#[cfg(not(target_arch = "x86_64"))]
pub const DENIED_HERE: &[Group] = &[];

/// What the launcher builds a job's world with, of what no job may call. All else is denied to the launcher, too.
pub const BUILDING: &[libc::c_long] = &[
    libc::SYS_clone3,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
];

/// Answered with success, and nothing is done: a job's files are in memory, and its wait would be for everybody's.
pub const PRETENDED: Group = group!("would write everybody's files to the disks": SYS_sync SYS_syncfs);

/// What an argument has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// It has none of the bits.
    NoBits(u32),
    /// It is none of the values.
    NoneOf(&'static [u32]),
    /// It is one of the values.
    OneOf(&'static [u32]),
}

/// A condition of a call: its argument is as it has to be, or it is refused with the errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its place among the arguments, from 0 on.
    pub argument: u32,
    /// What it has to be.
    pub test: Test,
    /// What the call is answered with otherwise.
    pub errno: i32,
}

impl Check {
    const fn new(argument: u32, test: Test, errno: i32) -> Self {
        Self { argument, test, errno }
    }
}

/// What has to be so of a call's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// All of it.
    If(&'static [Check]),
    /// The same for each value of the first argument; with another one it is refused with the errno.
    ByFirst(&'static [(u32, &'static [Check])], i32),
}

/// `CLONE_NEW*` flags of clone's first argument, `CLONE_NEWTIME` included.
const NAMESPACE_FLAGS: u32 = 0x7E02_0080;
/// ioctl requests that push input into or reprogram a terminal, or reach what no namespace holds.
const DENIED_IOCTLS: &[u32] = &[
    0x5412, /* TIOCSTI */
    0x541C, /* TIOCLINUX */
    0x541D, /* TIOCCONS */
    0x5423, /* TIOCSETD */
    // Of any socket, and of the machine's bridges, virtual networks and the like: the kernel loads their modules.
    0x8940, /* SIOCGIFBR */
    0x8941, /* SIOCSIFBR */
    0x8980, /* SIOCADDDLCI */
    0x8981, /* SIOCDELDLCI */
    0x8982, /* SIOCGIFVLAN */
    0x8983, /* SIOCSIFVLAN */
    0x89a0, /* SIOCBRADDBR */
    0x89a1, /* SIOCBRDELBR */
];
/// Socket families a job may use (others such as vsock know no network namespace), and what of each: the kernel loads
/// the module of any other protocol for whoever asks for a socket of it.
const FAMILIES: &[(u32, &[Check])] = &[
    (libc::AF_UNIX as u32, &[]),
    (libc::AF_INET as u32, INTERNET),
    (libc::AF_INET6 as u32, INTERNET),
    // Of netlink only what tells of interfaces and routes (`NETLINK_ROUTE`).
    (
        libc::AF_NETLINK as u32,
        &[Check::new(2, Test::OneOf(&[0]), libc::EPROTONOSUPPORT)],
    ),
];
/// What a job without a network has not of those: nothing else of it can leave a trace in its network namespace once its
/// sockets are gone, so that another job can have the namespace then. The errno is what programs tell their users.
pub const OFFLINE: Condition = Condition::If(&[Check::new(
    0,
    Test::NoneOf(&[libc::AF_INET as u32, libc::AF_INET6 as u32]),
    libc::ENETUNREACH,
)]);
/// Streams, datagrams, raw, and not the type that stands for packet sockets; and by its number whatever is usual, ICMP,
/// TCP, UDP, and ICMP of version 6.
const INTERNET: &[Check] = &[
    Check::new(1, Test::NoBits(0b1100), libc::ESOCKTNOSUPPORT),
    Check::new(2, Test::OneOf(&[0, 1, 6, 17, 58]), libc::EPROTONOSUPPORT),
];
/// personality values that change no protection: Linux, query.
const ALLOWED_PERSONALITIES: &[u32] = &[0, 0xFFFF_FFFF];
/// The first process of the job's pid namespace, which is ours: it ends what is left of the job.
const FIRST: &[u32] = &[1];
/// Of all processes of the job's uid the first process is one.
const PRIO_USER: &[u32] = &[2];
const IOPRIO_WHO_USER: &[u32] = &[3];
/// What a process may ask of itself by prctl. Not among it: a processor's core for itself (`PR_SCHED_CORE`), tables of
/// futexes, which no limit counts (`PR_FUTEX_HASH`), sharing pages with whoever has the same (`PR_SET_MEMORY_MERGE`), what
/// takes a capability, and whatever is newer than this table.
#[rustfmt::skip] // two of a name, to set and to get, on a line
const PRCTL_OPTIONS: &[u32] = &[
    1, 2, /* PDEATHSIG */
    3, 4, /* DUMPABLE */
    7, 8, /* KEEPCAPS */
    15, 16, /* NAME */
    21, 22, /* SECCOMP */
    23, 24, /* CAPBSET */
    25, 26, /* TSC */
    27, 28, /* SECUREBITS */
    29, 30, /* TIMERSLACK */
    33, 34, /* MCE_KILL */
    36, 37, /* CHILD_SUBREAPER */
    38, 39, /* NO_NEW_PRIVS */
    40, /* TID_ADDRESS */
    41, 42, /* THP_DISABLE */
    47, /* CAP_AMBIENT */
    50, 51, /* SVE */
    52, 53, /* SPECULATION_CTRL */
    54, 60, 61, /* PAC */
    55, 56, /* TAGGED_ADDR */
    59, /* SYSCALL_USER_DISPATCH */
    63, 64, /* SME */
    65, 66, /* MDWE */
    0x4155_5856, /* AUXV */
    0x5356_4d41, /* VMA */
    0x5961_6d61, /* PTRACER */
];
/// Would take pages that all are shown out of memory, for everybody (`POSIX_FADV_DONTNEED`).
const DONT_NEED: &[u32] = &[4];
/// Pages of a stock that is the whole machine's, and that no limit of a job counts.
const HUGE_PAGES: Test = Test::NoBits(libc::MAP_HUGETLB as u32);

/// Allowed calls that are judged by their arguments.
pub const CONDITIONS: &[(&[libc::c_long], Condition)] = &[
    (
        &[libc::SYS_clone],
        Condition::If(&[Check::new(0, Test::NoBits(NAMESPACE_FLAGS), libc::EPERM)]),
    ),
    (
        &[libc::SYS_ioctl],
        Condition::If(&[Check::new(1, Test::NoneOf(DENIED_IOCTLS), libc::EPERM)]),
    ),
    (
        &[libc::SYS_socket, libc::SYS_socketpair],
        Condition::ByFirst(FAMILIES, libc::EAFNOSUPPORT),
    ),
    // Out-of-band data: nobody uses it, and its code has been a way into the kernel.
    (
        &[libc::SYS_sendto, libc::SYS_sendmmsg],
        Condition::If(&[Check::new(3, Test::NoBits(libc::MSG_OOB as u32), libc::EOPNOTSUPP)]),
    ),
    (
        &[libc::SYS_sendmsg],
        Condition::If(&[Check::new(2, Test::NoBits(libc::MSG_OOB as u32), libc::EOPNOTSUPP)]),
    ),
    // Of the process itself: the first process of the job runs as the same user.
    (
        &[libc::SYS_prlimit64],
        Condition::If(&[Check::new(0, Test::OneOf(&[0]), libc::EPERM)]),
    ),
    // One that hardly runs would let the job run on after its end.
    (
        &[
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_setattr,
            libc::SYS_sched_setparam,
            libc::SYS_sched_setscheduler,
        ],
        Condition::If(&[Check::new(0, Test::NoneOf(FIRST), libc::EPERM)]),
    ),
    (
        &[libc::SYS_setpriority],
        Condition::If(&[
            Check::new(0, Test::NoneOf(PRIO_USER), libc::EPERM),
            Check::new(1, Test::NoneOf(FIRST), libc::EPERM),
        ]),
    ),
    (
        &[libc::SYS_ioprio_set],
        Condition::If(&[
            Check::new(0, Test::NoneOf(IOPRIO_WHO_USER), libc::EPERM),
            Check::new(1, Test::NoneOf(FIRST), libc::EPERM),
        ]),
    ),
    (
        &[libc::SYS_personality],
        Condition::If(&[Check::new(0, Test::OneOf(ALLOWED_PERSONALITIES), libc::EPERM)]),
    ),
    (
        &[libc::SYS_prctl],
        // As a kernel says that does not know the option.
        Condition::If(&[Check::new(0, Test::OneOf(PRCTL_OPTIONS), libc::EINVAL)]),
    ),
    // It is told that it is done.
    (
        &[libc::SYS_fadvise64],
        Condition::If(&[Check::new(3, Test::NoneOf(DONT_NEED), 0)]),
    ),
    (
        &[libc::SYS_mmap],
        Condition::If(&[Check::new(3, HUGE_PAGES, libc::EPERM)]),
    ),
    (
        &[libc::SYS_memfd_create],
        Condition::If(&[Check::new(1, Test::NoBits(libc::MFD_HUGETLB), libc::EPERM)]),
    ),
    (
        &[libc::SYS_shmget],
        Condition::If(&[Check::new(2, Test::NoBits(libc::SHM_HUGETLB as u32), libc::EPERM)]),
    ),
];

/// Every group: what becomes of its calls (`allowed`, `EPERM`, `nothing`), and the group.
pub fn groups() -> impl Iterator<Item = (&'static str, &'static Group)> {
    let allowed = ALLOWED.iter().chain(ALLOWED_HERE).map(|group| ("allowed", group));
    let denied = DENIED.iter().chain(DENIED_HERE).map(|group| ("EPERM", group));
    allowed.chain(denied).chain([("nothing", &PRETENDED)])
}
