//! Level `none`: jobs are ordinary processes of the host, which see and reach what their uid does.
//!
//! What holds all the same: a uid of their own where the launcher may give them one, no way to gain rights, the limits,
//! and that nothing of them runs on. Without a pid namespace the last is done by the first process of each job: whatever
//! loses its parent becomes its child, and is killed. Whatever loses that one too becomes the launcher's.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, fchmod, fchown, mkdirat, openat};
use rustix::io::{Errno, read};
use rustix::process::{
    DumpableBehavior, Gid, Pid, Signal, Uid, getegid, geteuid, getgid, getpid, getuid, pidfd_send_signal,
    set_child_subreaper, set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, name, set_capabilities, set_name, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::child::{
    During, Ended, Outcome, Prepared, Report, Step, empty_capabilities, restrict_privileges, write_files, write_secrets,
};
use crate::copy::copy_inputs;
use crate::identity::{Identities, claim};
use crate::protocol::Configure;
use crate::syscall;

/// Tells the first process of a job to kill all of it; also sent by the kernel at the launcher's death.
const END: i32 = libc::SIGHUP;
/// The children of this process, of which it is the only thread.
const CHILDREN: &CStr = c"/proc/thread-self/children";
/// What the launcher needs to give jobs uids of their own, and to end them.
const NEEDED: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::CHOWN);

/// Directories that the launcher has for its jobs, found before it gives up any right.
#[derive(Debug)]
pub struct Directories {
    /// In which each job gets its own.
    jobs: Option<OwnedFd>,
    /// Of what they may be given.
    inputs: Option<OwnedFd>,
}

/// What the first process of a job without walls needs besides.
pub struct Bare<'a> {
    /// The job's directory; none for a rehearsal.
    pub directory: Option<BorrowedFd<'a>>,
    /// Directory of inputs.
    pub inputs: Option<BorrowedFd<'a>>,
    /// Whether the job gets a uid of its own.
    pub is_separate: bool,
}

/// Readies this process for starting jobs without walls.
///
/// # Errors
/// Names what could not be had.
pub fn enter(config: &Configure) -> io::Result<(Identities, Directories)> {
    let open = |path: Option<&str>| path.map(open_directory).transpose();
    let directories = Directories {
        jobs: open(config.directories.as_deref())?,
        inputs: open(config.inputs.as_deref())?,
    };
    open_children().map_err(|errno| named("list the children of a process", errno))?;
    set_child_subreaper(Some(getpid())).map_err(|errno| named("become the parent of orphans", errno))?;
    let held = capabilities(None)?;
    let is_separate = held.effective.contains(NEEDED);
    let kept = if is_separate { NEEDED } else { CapabilitySet::empty() };
    if is_separate {
        set_thread_groups(&[])?;
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    let identities = if is_separate {
        Identities::SlotsOnHost(claim(config)?)
    } else {
        Identities::LauncherOnHost(geteuid().as_raw())
    };
    Ok((identities, directories))
}

fn named(what: &str, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn open_directory(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| named(path, errno))
}

impl Directories {
    /// Makes the directory of a job, which is its uid's alone.
    ///
    /// # Errors
    /// What the kernel says; `ENOENT` without a directory for it.
    pub fn make(&self, name: &CStr, identities: Identities, identity: u32) -> Result<OwnedFd, Errno> {
        let jobs = self.jobs.as_ref().ok_or(Errno::NOENT)?;
        mkdirat(jobs, name, Mode::RWXU)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(jobs, name, flags, Mode::empty())?;
        if identities.are_separate() {
            fchown(&made, Some(Uid::from_raw(identity)), Some(Gid::from_raw(identity)))?;
        }
        Ok(made)
    }

    /// Directory of inputs.
    #[must_use]
    pub fn inputs(&self) -> Option<BorrowedFd<'_>> {
        self.inputs.as_ref().map(AsFd::as_fd)
    }
}

/// Takes the directory of a job that has ended back: the slot's next one has the same uid.
pub fn reclaim(directory: BorrowedFd<'_>) {
    // Where that fails, jobs have the launcher's uid, and the directory is its own already.
    let _ = fchown(directory, Some(geteuid()), Some(getegid())).and_then(|()| fchmod(directory, Mode::RWXU));
}

/// Has the first process of a job kill everything of it.
pub fn end(first: BorrowedFd<'_>) {
    // It may have been stopped, by a job of the same uid.
    for signal in [Signal::HUP, Signal::CONT] {
        let _ = pidfd_send_signal(first, signal);
    }
}

/// Sets up what there is to set up around a job; runs in its first process.
pub fn set_up(prepared: &Prepared<'_>, bare: &Bare<'_>) -> Outcome {
    // By another name than the launcher's: this one ends by itself once that is gone, and must not be killed before.
    rename().during(Step::Reaper)?;
    set_child_subreaper(Some(getpid())).during(Step::Reaper)?;
    if let Some(directory) = bare.directory {
        act_as(prepared.identity, bare).during(Step::Identity)?;
        let written = fill(prepared, bare, directory);
        act_as_oneself(bare).during(Step::Identity)?;
        written?;
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).during(Step::Privileges)?;
    set_parent_process_death_signal(Some(Signal::HUP)).during(Step::ParentDeath)?;
    let mut launcher = [PollFd::from_borrowed_fd(prepared.launcher, PollFlags::IN)];
    if poll(&mut launcher, Some(&Timespec::default())).during(Step::ParentDeath)? > 0 {
        syscall::exit_now(1);
    }
    Ok(())
}

fn rename() -> Result<(), Errno> {
    let name = name()?;
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.as_bytes()).for_each(|(to, from)| *to = *from);
    bytes[0] = bytes[0].to_ascii_uppercase();
    set_name(CStr::from_bytes_until_nul(&bytes).map_err(|_| Errno::INVAL)?)
}

/// Files are made as the job would make them: the directory is open to nobody else.
fn act_as(identity: u32, bare: &Bare<'_>) -> Result<(), Errno> {
    if bare.is_separate {
        set_thread_res_gid(getgid(), Gid::from_raw(identity), getgid())?;
        set_thread_res_uid(getuid(), Uid::from_raw(identity), getuid())?;
    }
    Ok(())
}

fn act_as_oneself(bare: &Bare<'_>) -> Result<(), Errno> {
    if bare.is_separate {
        set_thread_res_uid(getuid(), getuid(), getuid())?;
        set_thread_res_gid(getgid(), getgid(), getgid())?;
    }
    Ok(())
}

fn fill(prepared: &Prepared<'_>, bare: &Bare<'_>, directory: BorrowedFd<'_>) -> Outcome {
    let make = |name: &CStr| {
        mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(directory, name, flags, Mode::empty())
    };
    make(c"tmp").during(Step::Directories)?;
    let work = make(c"work").during(Step::Directories)?;
    write_files(prepared, directory, work.as_fd()).during(Step::Files)?;
    if let Some(secrets) = prepared.secrets {
        let place = make(c"secrets").during(Step::Secrets)?;
        write_secrets(secrets, place.as_fd()).during(Step::Secrets)?;
    }
    if let Some(inputs) = bare.inputs {
        let is_given_up = || syscall::is_pending(END);
        copy_inputs(prepared.inputs, inputs, work.as_fd(), &is_given_up).during(Step::Inputs)?;
    }
    Ok(())
}

/// What the process of the job's program gives up before it becomes that.
pub fn become_unprivileged(prepared: &Prepared<'_>, bare: &Bare<'_>) -> Outcome {
    if bare.is_separate {
        restrict_privileges().during(Step::Privileges)?;
        let (gid, uid) = (Gid::from_raw(prepared.identity), Uid::from_raw(prepared.identity));
        set_thread_res_gid(gid, gid, gid).during(Step::Identity)?;
        set_thread_res_uid(uid, uid, uid).during(Step::Identity)?;
    }
    empty_capabilities().during(Step::Privileges)?;
    // Should the first process be killed, at least this one goes at once.
    set_parent_process_death_signal(Some(Signal::KILL)).during(Step::ParentDeath)
}

/// Waits for the end of the job's main process, or the order to end all; then nothing of the job runs any more.
pub fn wait_for(main: Pid) -> Report {
    let main = main.as_raw_nonzero().get();
    loop {
        while let Some((pid, status)) = syscall::reap_any() {
            if pid == main {
                end_children(&|_| false, &mut |_, _| ());
                return ended(status);
            }
        }
        match syscall::wait_for_signal(&[libc::SIGCHLD, libc::SIGTERM, END]).0 {
            END => {
                let mut status = libc::SIGKILL;
                end_children(&|_| false, &mut |pid, ended| {
                    if pid == main {
                        status = ended;
                    }
                });
                return ended(status);
            }
            // To the group of the main process, and to whatever has lost its parent.
            libc::SIGTERM => {
                for signal in [libc::SIGTERM, libc::SIGCONT] {
                    syscall::signal(-main, signal);
                    each_child(&mut |pid| {
                        if pid != main {
                            syscall::signal(pid, signal);
                        }
                    });
                }
            }
            _ => {}
        }
    }
}

/// What there is to say of a job of which nothing runs any more; its files are where those of others are, too.
fn ended(status: i32) -> Report {
    Report::Ended(Ended {
        status,
        usage: syscall::usage_of_children(),
        scratch_is_full: false,
    })
}

/// Kills every child that is not spared, and every child that those leave, until there is none. `on_end` is told of
/// the pid and the wait status of each.
///
/// Those that have ended are reaped only once all others have: until then they count for the limit of processes, so
/// that a job that forks faster than this kills is out of processes in the end.
pub fn end_children(is_spared: &dyn Fn(i32) -> bool, on_end: &mut dyn FnMut(i32, i32)) {
    loop {
        let (mut any, mut all_ended) = (false, true);
        each_child(&mut |pid| {
            if !is_spared(pid) {
                any = true;
                syscall::signal(pid, libc::SIGKILL);
                all_ended &= syscall::has_ended(pid);
            }
        });
        if !any {
            return;
        }
        if !all_ended {
            // One of those that were just killed: its end is told after this began to wait for it.
            syscall::wait_for_signal(&[libc::SIGCHLD]);
            continue;
        }
        // What has come meanwhile has not ended, and is found by the next turn.
        each_child(&mut |pid| {
            if !is_spared(pid)
                && let Some(status) = syscall::reap_if_ended(pid)
            {
                on_end(pid, status);
            }
        });
    }
}

fn open_children() -> Result<OwnedFd, Errno> {
    openat(CWD, CHILDREN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Calls `visit` with the pid of each child. None can be missed: only this thread's own reaping takes one off the list.
fn each_child(visit: &mut dyn FnMut(i32)) {
    let Ok(list) = open_children() else { return };
    let (mut buffer, mut pid) = ([0; 4096], 0);
    while let Ok(count @ 1..) = read(&list, &mut buffer) {
        for byte in &buffer[..count] {
            if byte.is_ascii_digit() {
                pid = pid * 10 + i32::from(byte - b'0');
            } else {
                visit(std::mem::take(&mut pid));
            }
        }
    }
}
