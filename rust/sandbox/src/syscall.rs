//! The system calls that no library offers safely: the only module of this crate with `unsafe`.
//!
//! Everything here that a child calls between clone and exec neither allocates nor takes a lock.
#![allow(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "what a call returns as a long is documented as an int: a pid or a descriptor"
)]

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd, retry_on_intr};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// One instruction of a seccomp filter.
pub use libc::sock_filter as Instruction;

/// Bytes of stack for a child made by [`vfork`].
pub const VFORK_STACK_BYTES: usize = 256 << 10;

/// Not libc's: it is too narrow there.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SIOCGSKNS: libc::Ioctl = 0x894C;

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    // SAFETY: the location of the calling thread's errno is always valid.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Ends the process at once, without running anything of the parent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Ends a child that panics before the panic could unwind into the parent's frames.
struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        exit_now(125);
    }
}

/// Takes what a file descriptor number names, as inherited from the process that started this one, and closes every other
/// but the three standard ones. To be called before anything else of this process holds a descriptor.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub fn adopt_only(fd: RawFd) -> Result<OwnedFd, Errno> {
    const KEPT: RawFd = 3;
    if fd != KEPT {
        // SAFETY: whatever has the number was inherited, and is in use by nobody.
        check(unsafe { libc::dup2(fd, KEPT) }.into())?;
    }
    close_from(KEPT as u32 + 1)?;
    fcntl_setfd(borrow_fd(KEPT), FdFlags::CLOEXEC)?;
    // SAFETY: it is open, as the line before has shown, and the caller was handed it for itself.
    Ok(unsafe { OwnedFd::from_raw_fd(KEPT) })
}

/// Clones this process into new namespaces (`CLONE_NEW*` flags) and, if given, a cgroup; the child runs `child` on a
/// copy of this process's memory, and ends the process there. Returns the child's pid and pidfd.
///
/// # Errors
/// What clone3 says.
pub fn fork(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce()) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain integers, for which zero means "not used".
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    }
    // SAFETY: without CLONE_VM this is a fork: the child goes on with its own copy of memory and stack. `args` lives
    // through the call and has the size that is passed. The process has one thread, so no lock is held by another.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of_val(&args)) })?;
    if pid == 0 {
        let _guard = ExitOnDrop;
        child();
        exit_now(125);
    }
    // SAFETY: the kernel has just put a fresh descriptor there, which nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((Pid::from_raw(pid as i32).ok_or(Errno::INVAL)?, pidfd))
}

/// Starts a child on this process's own memory and waits until it has executed a program or ended; `child` returns only
/// when it could not.
///
/// # Errors
/// What clone says.
pub fn vfork(stack: &mut [u8], child: &mut dyn FnMut()) -> Result<Pid, Errno> {
    extern "C" fn run(argument: *mut c_void) -> c_int {
        let _guard = ExitOnDrop;
        // SAFETY: `argument` is the pointer to the closure reference below, alive since its owner is suspended.
        let child = unsafe { &mut *argument.cast::<&mut dyn FnMut()>() };
        child();
        exit_now(127);
    }
    let mut child: &mut dyn FnMut() = child;
    let top = stack.as_mut_ptr_range().end;
    let top = top.wrapping_sub(top as usize % 16);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: CLONE_VFORK suspends this process until the child has replaced or left its memory, so that the child
    // has stack, closure and everything the closure borrows for itself meanwhile.
    let pid = check(unsafe { libc::clone(run, top.cast(), flags, ptr::from_mut(&mut child).cast()) }.into())?;
    Pid::from_raw(pid as i32).ok_or(Errno::INVAL)
}

/// Pointers to strings, ended by a null pointer, as exec takes them.
pub struct PointerList<'a> {
    pointers: Vec<*const libc::c_char>,
    _strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> PointerList<'a> {
    /// Lists `strings`.
    pub fn new(strings: impl IntoIterator<Item = &'a CStr>) -> Self {
        let pointers = strings.into_iter().map(CStr::as_ptr).chain([ptr::null()]).collect();
        Self {
            pointers,
            _strings: std::marker::PhantomData,
        }
    }
}

/// Replaces the program of this process; returns only the error when that fails.
pub fn execute(path: &CStr, argv: &PointerList<'_>, envp: &PointerList<'_>) -> Errno {
    // SAFETY: all strings end in NUL and outlive the call, both lists end in a null pointer.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    last_errno()
}

/// Leaves namespaces for new ones.
///
/// # Errors
/// What unshare says.
pub fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: the process has one thread and the file table is not among what callers unshare, so that no descriptor
    // changes its meaning for anyone.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Makes `fd` number `to`, without close-on-exec.
///
/// # Errors
/// What dup2 says.
pub fn duplicate_to(fd: BorrowedFd<'_>, to: RawFd) -> Result<(), Errno> {
    if fd.as_raw_fd() == to {
        return fcntl_setfd(fd, FdFlags::empty()); // dup2 would leave it as it is
    }
    // SAFETY: only called in a child that is about to close every descriptor but those it puts in place here.
    check(unsafe { libc::dup2(fd.as_raw_fd(), to) }.into())?;
    Ok(())
}

/// Closes every descriptor from number `first` on.
///
/// # Errors
/// What `close_range` says.
pub fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: only called where none of them is in use: in a child of its own file table, or before anything is opened.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// Borrows descriptor `fd`, which the calling child has put in place itself.
#[must_use]
pub fn borrow_fd(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: such a child keeps it open until it ends.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Sets the mode bits, owner rules and signal state that a program expects of its start.
pub fn unblock_signals() {
    // SAFETY: both calls write and read the local set only.
    unsafe {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

/// Gives every signal its default disposition and blocks all of them: none may end this process or what it forks.
///
/// By the kernel's call, for the C library keeps signals 32 and 33 to itself, and a parent may have left them ignored.
pub fn block_signals() {
    // SAFETY: a zeroed kernel sigaction (handler, flags, restorer, mask: at most 4 words) is SIG_DFL without flags; the
    // calls read local values only. Signals that cannot be set are refused, which is as good.
    unsafe {
        let default = [0u64; 4];
        for signal in 1..=libc::SIGRTMAX() {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
    }
}

/// Waits for one of these signals, which must be blocked; returns it and its sender's pid, which is 0 for a sender
/// outside of the pid namespace.
pub fn wait_for_signal(signals: &[c_int]) -> (c_int, i32) {
    // SAFETY: set and info are local; sigwaitinfo fills info when it returns a signal, and it is zeroed otherwise.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        let mut info: libc::siginfo_t = mem::zeroed();
        let signal = libc::sigwaitinfo(set.as_ptr(), &raw mut info);
        (signal, info.si_pid())
    }
}

/// Sends `signal` to every process of the pid namespace but its first.
pub fn signal_everyone(signal: c_int) {
    // SAFETY: kill takes integers. Only called by the first process of a pid namespace.
    unsafe { libc::kill(-1, signal) };
}

/// Reaps one ended child if there is one: its pid and wait status.
#[must_use]
pub fn reap_any() -> Option<(i32, c_int)> {
    let mut status = 0;
    // SAFETY: waitpid writes the local status only.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Whether this process has a child, ended or not.
#[must_use]
pub fn has_child() -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the kernel takes a null pointer for a caller who does not want to know which.
    unsafe { libc::waitid(libc::P_ALL, 0, ptr::null_mut(), flags) == 0 }
}

/// Whether a blocked signal has been sent.
#[must_use]
pub fn is_pending(signal: c_int) -> bool {
    // SAFETY: both calls write and read the local set only.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigpending(set.as_mut_ptr()) == 0 && libc::sigismember(set.as_ptr(), signal) == 1
    }
}

/// Sends a signal to a child, or to the group with the negated number, neither of which can have gone unreaped.
pub fn signal(pid: i32, signal: c_int) {
    // SAFETY: kill takes integers.
    unsafe { libc::kill(pid, signal) };
}

/// Whether a child has ended; it stays to be reaped.
#[must_use]
pub fn has_ended(pid: i32) -> bool {
    // SAFETY: siginfo_t is plain data, which the kernel fills within its size, or leaves zeroed.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, pid.unsigned_abs(), &raw mut info, flags) != 0 || info.si_pid() == pid
    }
}

/// Reaps a child if it has ended, and returns its wait status.
#[must_use]
pub fn reap_if_ended(pid: i32) -> Option<c_int> {
    let mut status = 0;
    // SAFETY: waitpid writes the local status only.
    (unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == pid).then_some(status)
}

/// Waits until `fd` is readable; of a pidfd: until the process has ended.
///
/// # Errors
/// What poll says.
pub fn wait_readable(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut watched = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    retry_on_intr(|| poll(&mut watched, None)).map(|_| ())
}

/// Reaps every child until there is none; they must be ending.
pub fn reap_everyone() {
    // SAFETY: waitpid without a status writes nothing.
    while unsafe { libc::waitpid(-1, ptr::null_mut(), 0) } > 0 {}
}

/// What a process and its waited-for descendants used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Microseconds of CPU in user mode.
    pub user_us: u64,
    /// Microseconds of CPU in the kernel.
    pub system_us: u64,
    /// Largest resident set of any one of the processes.
    pub peak_bytes: u64,
}

impl From<libc::rusage> for Usage {
    fn from(usage: libc::rusage) -> Self {
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        let microseconds = |time: libc::timeval| number(time.tv_sec) * 1_000_000 + number(time.tv_usec);
        Self {
            user_us: microseconds(usage.ru_utime),
            system_us: microseconds(usage.ru_stime),
            peak_bytes: number(usage.ru_maxrss) * 1024,
        }
    }
}

/// What all children that this process has reaped used, with theirs.
#[must_use]
pub fn usage_of_children() -> Usage {
    // SAFETY: rusage is plain data, which the kernel fills within its size.
    unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage.into()
    }
}

/// Reaps the child of `pidfd`, which has ended, and returns what it used.
///
/// # Errors
/// What waitid says.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Usage, Errno> {
    // SAFETY: siginfo_t and rusage are plain data; the kernel fills them within their size.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        let mut usage: libc::rusage = mem::zeroed();
        check(libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            &raw mut info,
            libc::WEXITED,
            &raw mut usage,
        ))?;
        Ok(usage.into())
    }
}

/// Leaves real-time scheduling of processor and disk, if this process was started with it.
///
/// # Errors
/// What the kernel says.
pub fn schedule_as_others() -> Result<(), Errno> {
    const REAL_TIME_DISK: libc::c_long = 1;
    // SAFETY: sched_param is plain data, which the kernel reads; all other arguments are integers.
    unsafe {
        let parameter: libc::sched_param = mem::zeroed();
        if matches!(
            libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK,
            libc::SCHED_FIFO | libc::SCHED_RR
        ) {
            check(libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameter).into())?;
        }
        if check(libc::syscall(libc::SYS_ioprio_get, 1, 0))? >> 13 == REAL_TIME_DISK {
            check(libc::syscall(libc::SYS_ioprio_set, 1, 0, 0))?;
        }
    }
    Ok(())
}

/// Installs a seccomp filter for this process and all that it starts.
///
/// # Errors
/// What seccomp says.
pub fn set_seccomp_filter(filter: &[Instruction]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the `len` instructions that `filter` points to, and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })?;
    Ok(())
}

/// Tells whether the kernel knows the filter action `action`.
#[must_use]
pub fn has_seccomp_action(action: u32) -> bool {
    // SAFETY: the kernel reads one integer.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes (`MOUNT_ATTR_*`) on the mount at `path` under `directory`, and on all below it if `recursive`.
///
/// # Errors
/// What `mount_setattr` says.
pub fn set_mount_attributes(directory: BorrowedFd<'_>, path: &CStr, set: u64, recursive: bool) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set,
        clear: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the structure has the kernel's layout and the size that is passed; the path ends in NUL.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })?;
    Ok(())
}

/// Brings up the loopback interface of the network namespace of `socket`.
///
/// # Errors
/// What the ioctl says.
pub fn raise_loopback(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: ifreq is plain data, for which zero is a value; the kernel reads name and flags of it.
    unsafe {
        let mut request: libc::ifreq = mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        check(
            libc::ioctl(
                socket.as_raw_fd(),
                libc::SIOCSIFFLAGS as libc::Ioctl,
                &raw const request,
            )
            .into(),
        )?;
    }
    Ok(())
}

/// Opens the network namespace of `socket`.
///
/// # Errors
/// What the ioctl says.
pub fn network_namespace(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: SIOCGSKNS takes no argument and returns a fresh descriptor.
    unsafe {
        let fd = check(libc::ioctl(socket.as_raw_fd(), SIOCGSKNS).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Number of processes and threads of the whole host, as far as this one can see it.
#[must_use]
pub fn process_count() -> Option<u64> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

/// Number of threads of this process.
///
/// # Errors
/// When /proc cannot be read.
pub fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

#[repr(C)]
struct LandlockRuleset {
    file_system: u64,
    network: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct LandlockPath {
    access: u64,
    parent: c_int,
}

/// Version of the kernel's Landlock; none when it has none or it is switched off.
#[must_use]
pub fn landlock_version() -> Option<u32> {
    // SAFETY: with a null pointer, no size and the flag 1 the call only returns the version.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<c_void>(), 0, 1) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// Makes a Landlock ruleset that denies the `file_system` accesses but where a rule allows them, and `scoped` actions.
///
/// # Errors
/// What the kernel says.
pub fn landlock_ruleset(file_system: u64, scoped: u64) -> Result<OwnedFd, Errno> {
    let ruleset = LandlockRuleset {
        file_system,
        network: 0,
        scoped,
    };
    // SAFETY: the structure has the kernel's layout and size; a fresh descriptor is returned.
    unsafe {
        let size = size_of::<LandlockRuleset>();
        let fd = check(libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size,
            0,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Allows `access` beneath `parent`.
///
/// # Errors
/// What the kernel says.
pub fn landlock_allow(ruleset: BorrowedFd<'_>, parent: BorrowedFd<'_>, access: u64) -> Result<(), Errno> {
    let rule = LandlockPath {
        access,
        parent: parent.as_raw_fd(),
    };
    // SAFETY: the structure has the kernel's layout for rule type 1 (path beneath).
    check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), 1, &raw const rule, 0) })?;
    Ok(())
}

/// Puts this process and all that it starts under the ruleset.
///
/// # Errors
/// What the kernel says.
pub fn landlock_restrict(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the call takes integers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
    Ok(())
}
