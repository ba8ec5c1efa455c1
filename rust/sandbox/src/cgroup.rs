//! A cgroup v2 directory for each job, under one that was delegated to the launcher.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, unlinkat};
use rustix::io::{Errno, write};

use crate::plan::Plan;

const LAUNCHER: &str = "launcher";
const MAX_FILE_BYTES: usize = 4096;

/// The delegated directory.
pub struct Subtree {
    directory: OwnedFd,
    jobs: Cell<u64>,
}

/// One job's directory; removed when dropped.
pub struct JobCgroup {
    parent: OwnedFd,
    name: String,
    directory: OwnedFd,
}

/// What a job's cgroup knows after its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Most memory in use at one time.
    pub peak_bytes: Option<u64>,
    /// The kernel killed a process of it for lack of memory.
    pub out_of_memory: bool,
    /// A process was refused.
    pub out_of_pids: bool,
}

impl Subtree {
    /// Takes over the delegated `directory`: this process moves into a leaf of its own, and the controllers are given to
    /// the leaves. `owner` becomes its owner when this process is about to give up its own rights.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub fn take_over(directory: &Path, owner: Option<u32>) -> io::Result<Self> {
        let named = |what: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("cgroup {}: {what}: {error}", directory.display()))
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let subtree = Self {
            directory: openat(CWD, directory, flags, Mode::empty())?,
            jobs: Cell::new(0),
        };
        match mkdirat(&subtree.directory, LAUNCHER, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(named(LAUNCHER, errno.into())),
        }
        let leaf = openat(&subtree.directory, LAUNCHER, flags, Mode::empty())?;
        // Everything that is in the delegated directory itself: a cgroup with processes cannot hand controllers down.
        let processes =
            fs::read_to_string(directory.join("cgroup.procs")).map_err(|error| named("cgroup.procs", error))?;
        for process in processes.lines() {
            put(leaf.as_fd(), "cgroup.procs", process).map_err(|errno| named("cgroup.procs", errno.into()))?;
        }
        put(subtree.directory.as_fd(), "cgroup.subtree_control", "+memory +pids")
            .map_err(|errno| named("cgroup.subtree_control", errno.into()))?;
        if let Some(owner) = owner {
            for (place, name) in [
                (&subtree.directory, ""),
                (&subtree.directory, "cgroup.procs"),
                (&leaf, "cgroup.procs"),
            ] {
                let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
                chownat(
                    place,
                    name,
                    Some(Uid::from_raw(owner)),
                    Some(Gid::from_raw(owner)),
                    flags,
                )
                .map_err(|errno| named("owner", errno.into()))?;
            }
        }
        Ok(subtree)
    }

    /// Makes a directory for one job, with the plan's limits.
    ///
    /// # Errors
    /// When a limit cannot be set.
    pub fn job(&self, plan: &Plan) -> io::Result<JobCgroup> {
        let name = format!("job-{}-{}", std::process::id(), self.jobs.replace(self.jobs.get() + 1));
        mkdirat(&self.directory, &name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let directory = openat(&self.directory, &name, flags, Mode::empty())?;
        let job = JobCgroup {
            parent: self.directory.try_clone()?,
            name,
            directory,
        };
        for (file, limit) in limits(plan) {
            match put(job.directory.as_fd(), file, &limit) {
                // No swap is accounted where there is none.
                Err(Errno::NOENT) if file == "memory.swap.max" => {}
                result => result?,
            }
        }
        Ok(job)
    }
}

/// Files of a job's cgroup and what is written into them.
fn limits(plan: &Plan) -> Vec<(&'static str, String)> {
    let mut limits = vec![("memory.oom.group", "1".to_owned())];
    if let Some(bytes) = plan.cgroup_memory_bytes {
        limits.push(("memory.max", bytes.to_string()));
        limits.push(("memory.swap.max", "0".into()));
    }
    if let Some(pids) = plan.cgroup_pids {
        // One more than asked: the namespace's first process is ours.
        limits.push(("pids.max", pids.saturating_add(1).to_string()));
    }
    limits
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
        Account {
            peak_bytes: read("memory.peak").trim().parse().ok(),
            out_of_memory: count_of(&read("memory.events"), "oom_kill") > 0,
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
