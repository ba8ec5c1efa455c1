//! A process that gives up everything but one directory: for programs that read what is hostile.
//!
//! Namespaces of its own and the directory for a root; no capability; Landlock where the kernel has it; the few system
//! calls that reading and writing files need; and limits, so that it costs no more than it may.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, chdir, getegid, geteuid, pivot_root, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit, umask,
};
use rustix::thread::{UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::child::drop_capabilities;
use crate::{landlock, seccomp, syscall};

/// What the process may use at most.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Of address space.
    pub memory_bytes: u64,
    /// Of one file.
    pub file_bytes: u64,
    /// Of processor time.
    pub cpu_s: u64,
}

/// Any directory that every host has: the directory is mounted there on its way to be the root.
const STAGE: &str = "/tmp";
const OPEN_FILES: u64 = 64;

/// What reads an archive and writes a tree, and what the library around it needs.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_readlinkat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_getdents64,
    libc::SYS_syncfs,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Gives up everything but the working directory, which is the root from then on, and what is open. `identity` is the
/// uid and gid to become, for a process of root's; the directory is theirs. It ends with the thread that started it.
///
/// # Errors
/// What could not be given up: then the process must not go on.
pub fn confine(identity: Option<u32>, costs: Costs) -> io::Result<()> {
    umask(Mode::empty());
    set_no_new_privs(true)?;
    let (uid, gid) = match identity {
        Some(id) => (Uid::from_raw(id), Gid::from_raw(id)),
        None => (geteuid(), getegid()),
    };
    if identity.is_some() {
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        // A change of uid makes /proc/self root's.
        set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    }
    // After the change of uid, which forgets it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The new namespace has its own mount of the working directory; a descriptor would stay with the old one's.
    syscall::unshare(
        UnshareFlags::NEWUSER
            | UnshareFlags::NEWNS
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS,
    )?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{0} {0} 1\n", gid.as_raw()))?;
    fs::write("/proc/self/uid_map", format!("{0} {0} 1\n", uid.as_raw()))?;
    let root = make_root()?;
    drop_capabilities()?;
    limit(costs)?;
    // Its first version lets nothing be linked from one directory to another.
    if let Some(version) = syscall::landlock_version().filter(|version| *version >= 2) {
        landlock::leave_files(version, root.as_fd())?;
    }
    syscall::set_seccomp_filter(&seccomp::compile_list(ALLOWED))?;
    Ok(())
}

fn make_root() -> io::Result<OwnedFd> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, c".", flags)?;
    let restrict =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    syscall::set_mount_attributes(tree.as_fd(), c"", u64::from(restrict.bits()), true)?;
    move_mount(&tree, c"", CWD, STAGE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    chdir(STAGE)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(openat(
        CWD,
        c"/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn limit(costs: Costs) -> Result<(), Errno> {
    for (resource, value) in [
        (Resource::As, costs.memory_bytes),
        (Resource::Fsize, costs.file_bytes),
        (Resource::Cpu, costs.cpu_s),
        (Resource::Nofile, OPEN_FILES),
        (Resource::Nproc, 0),
        (Resource::Core, 0),
    ] {
        let limit = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}
