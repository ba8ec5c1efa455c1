//! The launcher's own user and mount namespace: from here on it has no more rights on the host than an ordinary user.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid, getegid, geteuid, getpid};
use rustix::thread::{
    CapabilitiesSecureBits, UnshareFlags, set_capabilities_secure_bits, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::syscall;

/// Whose ids the jobs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identities {
    /// Each slot has its own; started as root.
    OfSlots,
    /// All have the launcher's; started as an ordinary user.
    OfLauncher,
    /// Each slot has its own, from the one after this on, and there is no namespace.
    SlotsOnHost(u32),
    /// All have the launcher's, which is this, and there is no namespace.
    LauncherOnHost(u32),
}

impl Identities {
    /// uid and gid of a slot, in the launcher's user namespace.
    #[must_use]
    pub fn of(self, slot: usize) -> u32 {
        let slot = u32::try_from(slot).expect("slots are few");
        match self {
            Self::OfSlots => slot + 1,
            Self::SlotsOnHost(base) => base + slot + 1,
            Self::OfLauncher => 0,
            Self::LauncherOnHost(own) => own,
        }
    }

    /// Whether no two slots have the same.
    #[must_use]
    pub const fn are_separate(self) -> bool {
        matches!(self, Self::OfSlots | Self::SlotsOnHost(_))
    }
}

/// Enters a new user and mount namespace in which this process is root, mapped to `uid_base` when it was root before
/// (with `slots` more ids after it for the jobs) and to itself otherwise.
///
/// `before` is done in between: in the new namespaces, with the uid that the process had.
///
/// # Errors
/// When a namespace cannot be had or the ids cannot be mapped; the text says which. What `before` says.
pub fn enter<T>(uid_base: u32, slots: u32, before: impl FnOnce() -> io::Result<T>) -> io::Result<(Identities, T)> {
    let identities = if geteuid().is_root() {
        Identities::OfSlots
    } else {
        Identities::OfLauncher
    };
    if identities.are_separate() {
        enter_mapped_by_helper(uid_base, slots + 1)?;
    } else {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        unshare()?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
    }
    let done = before()?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    if identities == Identities::OfSlots {
        set_thread_groups(&[])?;
    }
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    // Jobs' processes inherit both: capabilities outlive the change to the slot's uid, and no program can add any.
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    set_no_new_privs(true)?;
    Ok((identities, done))
}

fn unshare() -> io::Result<()> {
    syscall::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(|errno| {
        io::Error::new(
            io::Error::from(errno).kind(),
            format!("user and mount namespace: {errno}"),
        )
    })
}

/// Only a process of the old namespace may map more than one id, so a child that stays there does it.
fn enter_mapped_by_helper(first: u32, count: u32) -> io::Result<()> {
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC)?;
    let (answer, done) = pipe_with(PipeFlags::CLOEXEC)?;
    let parent = getpid().as_raw_nonzero();
    let (_, pidfd) = syscall::fork(0, None, || {
        let map = format!("0 {first} {count}\n");
        let write_maps = || -> io::Result<()> {
            read(&wait, &mut [0])?;
            for name in ["gid_map", "uid_map"] {
                fs::OpenOptions::new()
                    .write(true)
                    .open(format!("/proc/{parent}/{name}"))?
                    .write_all(map.as_bytes())?;
            }
            Ok(())
        };
        let errno = write_maps().err().and_then(|error| error.raw_os_error()).unwrap_or(0);
        let _ = write(&done, &errno.to_le_bytes());
        syscall::exit_now(0)
    })?;
    unshare()?;
    write(&go, b"g")?;
    let mut errno = [0; 4];
    retry_on_intr(|| read(&answer, &mut errno))?;
    syscall::reap(pidfd.as_fd())?;
    match i32::from_le_bytes(errno) {
        0 => Ok(()),
        errno => {
            let errno = Errno::from_raw_os_error(errno);
            Err(io::Error::other(format!(
                "map uids and gids {first} to {}: {errno}",
                first.saturating_add(count - 1)
            )))
        }
    }
}
