//! A cgroup v2 directory for each job, under one that was delegated to the launcher.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Gid, Mode, OFlags, Uid, chownat, flock, mkdirat, openat, unlinkat,
};
use rustix::io::{Errno, retry_on_intr, write};

use crate::plan::Plan;

const LAUNCHER: &str = "launcher";
/// What the directories of jobs are called, up to what tells them apart.
const JOB: &str = "job-";
const MAX_FILE_BYTES: usize = 4096;
/// Processes that fork while they are moved leave children behind: those are moved in the next round.
const MOVING_ROUNDS: usize = 64;
/// How long a killed process of a former life may take to go.
const LEFTOVER_WAIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// The share of the processor that supervision has against the jobs, each of which has 100 by default: it needs little,
/// but at once.
const LAUNCHER_CPU_WEIGHT: &str = "10000";
/// What `cpu.max` counts in: microseconds that a job may run in this many.
const CPU_PERIOD_US: u64 = 100_000;
const US_PER_MILLI: u64 = CPU_PERIOD_US / 1000;

/// The delegated directory.
pub struct Subtree {
    directory: OwnedFd,
    controllers: Controllers,
    jobs: Cell<u64>,
}

/// What jobs' cgroups bound besides memory and processes, which they all do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controllers {
    /// Shares and maxima of processor time.
    pub cpu: bool,
    /// Shares of disks.
    pub io: bool,
}

/// One job's directory; removed when dropped.
pub struct JobCgroup {
    parent: OwnedFd,
    name: String,
    directory: OwnedFd,
}

/// What there was too little memory in when the kernel killed a job's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The job's own limit.
    Own,
    /// The machine, or what the worker as a whole may use.
    Around,
}

/// What a job's cgroup knows after its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Most memory in use at one time.
    pub peak_bytes: Option<u64>,
    /// Microseconds of CPU of all its processes, in user mode and in the kernel.
    pub cpu_us: Option<(u64, u64)>,
    /// The kernel killed a process of it for lack of memory.
    pub out_of_memory: Option<Shortage>,
    /// A process was refused.
    pub out_of_pids: bool,
}

const fn directory_flags() -> OFlags {
    OFlags::DIRECTORY
        .union(OFlags::RDONLY)
        .union(OFlags::CLOEXEC)
        .union(OFlags::NOFOLLOW)
}

impl Subtree {
    /// Takes over the delegated `directory`: this process moves into a leaf of its own with what else is there, what a
    /// former life left is removed, and the controllers are given to the leaves. `owner` becomes its owner when this
    /// process is about to give up its own rights.
    ///
    /// # Errors
    /// Names the file that could not be written. Another launcher that has the directory.
    pub fn take_over(directory: &Path, owner: Option<u32>) -> io::Result<Self> {
        let named = |what: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("cgroup {}: {what}: {error}", directory.display()))
        };
        let root = openat(CWD, directory, directory_flags(), Mode::empty())?;
        // Held for this process's life: what is in the directory is ended below as a former life's.
        flock(&root, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => named("lock", io::Error::other("another launcher has it")),
            errno => named("lock", errno.into()),
        })?;
        match mkdirat(&root, LAUNCHER, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(named(LAUNCHER, errno.into())),
        }
        let leaf = openat(&root, LAUNCHER, directory_flags(), Mode::empty())?;
        move_processes(directory, leaf.as_fd()).map_err(|error| named("cgroup.procs", error))?;
        remove_leftovers(root.as_fd()).map_err(|error| named("what a former life left", error))?;
        put(root.as_fd(), "cgroup.subtree_control", "+memory +pids")
            .map_err(|errno| named("cgroup.subtree_control", errno.into()))?;
        let controllers = hand_down_shares(root.as_fd(), leaf.as_fd());
        if let Some(owner) = owner {
            for (place, name) in [(&root, ""), (&root, "cgroup.procs"), (&leaf, "cgroup.procs")] {
                let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
                let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
                chownat(place, name, Some(uid), Some(gid), flags).map_err(|errno| named("owner", errno.into()))?;
            }
        }
        Ok(Self {
            directory: root,
            controllers,
            jobs: Cell::new(0),
        })
    }

    /// What jobs' cgroups bound besides memory and processes.
    #[must_use]
    pub const fn controllers(&self) -> Controllers {
        self.controllers
    }

    /// Makes a directory for one job, with the plan's limits.
    ///
    /// # Errors
    /// When a limit cannot be set.
    pub fn job(&self, plan: &Plan) -> io::Result<JobCgroup> {
        let name = format!("{JOB}{}-{}", std::process::id(), self.jobs.replace(self.jobs.get() + 1));
        mkdirat(&self.directory, &name, Mode::from_raw_mode(0o755))?;
        let directory = openat(&self.directory, &name, directory_flags(), Mode::empty())?;
        let job = JobCgroup {
            parent: self.directory.try_clone()?,
            name,
            directory,
        };
        for (file, limit) in limits(plan) {
            match put(job.directory.as_fd(), file, &limit) {
                Ok(()) => {}
                Err(Errno::NOENT) if MAY_BE_MISSING.contains(&file) => {}
                Err(errno) => {
                    return Err(io::Error::new(
                        io::Error::from(errno).kind(),
                        format!("{file}: {errno}"),
                    ));
                }
            }
        }
        Ok(job)
    }
}

/// Moves this process and everything that is in the delegated directory itself into the leaf: a cgroup with processes
/// cannot hand controllers down.
fn move_processes(directory: &Path, leaf: BorrowedFd<'_>) -> io::Result<()> {
    put(leaf, "cgroup.procs", "0")?;
    for _ in 0..MOVING_ROUNDS {
        let processes = fs::read_to_string(directory.join("cgroup.procs"))?;
        if processes.is_empty() {
            return Ok(());
        }
        for process in processes.lines() {
            match put(leaf, "cgroup.procs", process) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Err(io::Error::other("processes come faster than they can be moved"))
}

/// Ends and removes the jobs of a launcher that was killed.
fn remove_leftovers(root: BorrowedFd<'_>) -> io::Result<()> {
    for entry in Dir::read_from(root)? {
        let entry = entry?;
        if !entry.file_name().to_bytes().starts_with(JOB.as_bytes()) {
            continue;
        }
        let directory = openat(root, entry.file_name(), directory_flags(), Mode::empty())?;
        put(directory.as_fd(), "cgroup.kill", "1")?;
        wait_empty(directory.as_fd())?;
        unlinkat(root, entry.file_name(), AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Waits until no process is in the cgroup.
fn wait_empty(directory: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let events = openat(directory, "cgroup.events", flags, Mode::empty())?;
    loop {
        let mut content = [0; 256];
        let count = rustix::io::pread(&events, &mut content, 0)?;
        if count_of(&String::from_utf8_lossy(&content[..count]), "populated") == 0 {
            return Ok(());
        }
        let mut watched = [PollFd::new(&events, PollFlags::PRI)];
        if retry_on_intr(|| poll(&mut watched, Some(&LEFTOVER_WAIT)))? == 0 {
            return Err(io::Error::other("a process of it cannot be ended"));
        }
    }
}

/// Gives the leaves what shares processor and disks, where this host lets it, and says what that is.
fn hand_down_shares(root: BorrowedFd<'_>, leaf: BorrowedFd<'_>) -> Controllers {
    let cpu = put(root, "cgroup.subtree_control", "+cpu").is_ok();
    // The controller alone does not share: that takes a policy, which the kernel may not have.
    let io =
        put(root, "cgroup.subtree_control", "+io").is_ok() && IO_WEIGHTS.iter().any(|name| get(leaf, name).is_ok());
    if cpu {
        let _ = put(leaf, "cpu.weight", LAUNCHER_CPU_WEIGHT);
    }
    Controllers { cpu, io }
}

/// Where a share of disks is written: of the controller's own policy, and of the scheduler BFQ.
const IO_WEIGHTS: [&str; 2] = ["io.weight", "io.bfq.weight"];
/// Files that a kernel may lack without a limit being lost: there is no swap, or one of the two policies.
const MAY_BE_MISSING: [&str; 3] = ["memory.swap.max", IO_WEIGHTS[0], IO_WEIGHTS[1]];

/// Files of a job's cgroup and what is written into them.
fn limits(plan: &Plan) -> Vec<(&'static str, String)> {
    let mut limits = vec![
        ("memory.oom.group", "1".to_owned()),
        ("cgroup.max.descendants", "0".into()),
    ];
    if let Some(bytes) = plan.cgroup.memory_bytes {
        limits.push(("memory.max", bytes.to_string()));
        limits.push(("memory.swap.max", "0".into()));
    }
    if let Some(pids) = plan.cgroup.pids {
        // One more than asked: the namespace's first process is ours.
        limits.push(("pids.max", pids.saturating_add(1).to_string()));
    }
    if let Some(milli) = plan.cgroup.cpu_milli {
        limits.push((
            "cpu.max",
            format!("{} {CPU_PERIOD_US}", milli.saturating_mul(US_PER_MILLI)),
        ));
    }
    if let Some(weight) = plan.cgroup.cpu_weight {
        limits.push(("cpu.weight", weight.to_string()));
    }
    if let Some(weight) = plan.cgroup.io_weight {
        limits.push((IO_WEIGHTS[0], weight.to_string()));
        limits.push((IO_WEIGHTS[1], bfq_weight(weight).to_string()));
    }
    limits
}

/// The weight on BFQ's scale, which ends at 1,000 instead of 10,000, with 100 in common.
const fn bfq_weight(weight: u64) -> u64 {
    if weight <= 100 {
        weight
    } else {
        100 + (weight - 100) * 900 / 9900
    }
}

impl JobCgroup {
    /// Where the job's first process is cloned into.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Kills everything in it.
    pub fn kill(&self) {
        // Kernels before 5.14 lack the file; the end of the pid namespace kills all the same.
        let _ = put(self.directory.as_fd(), "cgroup.kill", "1");
    }

    /// Reads what it knows.
    #[must_use]
    pub fn account(&self) -> Account {
        let read = |name| get(self.directory.as_fd(), name).unwrap_or_default();
        let (memory, cpu) = (read("memory.events"), read("cpu.stat"));
        let shortage = if count_of(&memory, "oom") > 0 {
            Shortage::Own
        } else {
            Shortage::Around
        };
        Account {
            peak_bytes: read("memory.peak").trim().parse().ok(),
            cpu_us: (!cpu.is_empty()).then(|| (count_of(&cpu, "user_usec"), count_of(&cpu, "system_usec"))),
            out_of_memory: (count_of(&memory, "oom_kill") > 0).then_some(shortage),
            out_of_pids: count_of(&read("pids.events"), "max") > 0,
        }
    }
}

impl Drop for JobCgroup {
    fn drop(&mut self) {
        // The job's processes are gone; should the kernel still hold the directory, an empty one stays behind.
        let _ = unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

fn count_of(events: &str, name: &str) -> u64 {
    let count = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    events.lines().find_map(count).unwrap_or(0)
}

fn put(directory: BorrowedFd<'_>, name: &str, content: &str) -> Result<(), Errno> {
    let file = openat(
        directory,
        name,
        OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    write(&file, content.as_bytes())?;
    Ok(())
}

fn get(directory: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let file = openat(
        directory,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    let mut content = String::new();
    fs::File::from(file)
        .take(MAX_FILE_BYTES as u64)
        .read_to_string(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_disks_is_the_same_on_the_scale_of_bfq_where_both_have_it() {
        assert_eq!([1, 100, 101, 10_000].map(bfq_weight), [1, 100, 100, 1000]);
    }

    #[test]
    fn events_are_counted_by_their_whole_name() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(
            (
                count_of(events, "oom_kill"),
                count_of(events, "oom"),
                count_of(events, "oo")
            ),
            (2, 3, 0)
        );
    }
}
