//! What this host has of what the sandbox needs.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::protocol::Level;
use crate::root;
use crate::syscall;

/// One thing that the sandbox uses of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Short name.
    pub name: &'static str,
    /// Whether this host has it.
    pub present: bool,
    /// Strongest level that is left when it is missing.
    pub without: Level,
    /// How it is used, or why it is missing.
    pub detail: String,
}

impl Feature {
    /// Whether level `strict` cannot do without it.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.without < Level::Strict
    }

    /// Its name, and what to say of it.
    #[must_use]
    pub fn words(&self) -> (&'static str, String) {
        let missing = if self.present { "" } else { "missing: " };
        (self.name, format!("{missing}{}", self.detail))
    }
}

const NAMESPACES: &[(&str, u64, Level)] = &[
    ("user namespace", libc::CLONE_NEWUSER as u64, Level::None),
    ("mount namespace", libc::CLONE_NEWNS as u64, Level::None),
    ("pid namespace", libc::CLONE_NEWPID as u64, Level::None),
    ("network namespace", libc::CLONE_NEWNET as u64, Level::Standard),
    ("ipc namespace", libc::CLONE_NEWIPC as u64, Level::Standard),
    ("uts namespace", libc::CLONE_NEWUTS as u64, Level::Standard),
    ("cgroup namespace", libc::CLONE_NEWCGROUP as u64, Level::Standard),
];

/// Flags of the namespaces that a job gets by its clone; the network is entered and the user namespace unshared later.
#[must_use]
pub fn job_namespaces(features: &[Feature]) -> u64 {
    let later = (libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as u64;
    let present = |name: &str| features.iter().any(|feature| feature.name == name && feature.present);
    NAMESPACES
        .iter()
        .filter(|(name, ..)| present(name))
        .fold(0, |flags, (_, flag, _)| flags | flag)
        & !later
}

/// Tries every feature; the cgroup in the directory that is configured, or else this process's own.
#[must_use]
pub fn probe(configured_cgroup: Option<&str>) -> Vec<Feature> {
    let mut features: Vec<Feature> = NAMESPACES
        .iter()
        .map(|(name, flag, without)| {
            let result = try_namespace(*flag);
            let detail = result.map_or_else(
                |errno| format!("clone3: {errno}"),
                |()| "a fresh one for every job".into(),
            );
            Feature {
                name,
                present: result.is_ok(),
                without: *without,
                detail,
            }
        })
        .collect();
    features.extend([
        seccomp(),
        landlock(),
        layers(),
        cgroup(find_cgroup(configured_cgroup).as_deref()),
    ]);
    features
}

/// Level that the features allow.
#[must_use]
pub fn level(features: &[Feature]) -> Level {
    features
        .iter()
        .filter(|feature| !feature.present)
        .map(|feature| feature.without)
        .min()
        .unwrap_or(Level::Strict)
}

fn try_namespace(flag: u64) -> Result<(), Errno> {
    let (_, pidfd) = syscall::fork(flag | libc::CLONE_NEWUSER as u64, None, || syscall::exit_now(0))?;
    syscall::reap(pidfd.as_fd()).map(|_| ())
}

fn seccomp() -> Feature {
    let present = syscall::has_seccomp_action(libc::SECCOMP_RET_KILL_PROCESS);
    let detail = if present {
        "a filter of system calls"
    } else {
        "the kernel has no SECCOMP_RET_KILL_PROCESS"
    };
    Feature {
        name: "seccomp",
        present,
        without: Level::Standard,
        detail: detail.into(),
    }
}

fn landlock() -> Feature {
    let version = syscall::landlock_version();
    let detail = version.map_or_else(
        || "the kernel has none, or it is switched off: the mount namespace is the only wall around files".into(),
        |version| format!("version {version}, a second wall around files"),
    );
    Feature {
        name: "landlock",
        present: version.is_some(),
        without: Level::Strict,
        detail,
    }
}

fn layers() -> Feature {
    let tried = root::try_layers();
    let detail = match &tried {
        Ok(()) => "a job may write to its root image, in a layer of its own".into(),
        Err(errno) => format!("overlay in a user namespace: {errno}: root images are read-only"),
    };
    Feature {
        name: "overlay",
        present: tried.is_ok(),
        without: Level::Strict,
        detail,
    }
}

fn cgroup(directory: Option<&Path>) -> Feature {
    let detail = directory.map_or_else(
        || "no delegated cgroup v2 directory with memory and pids: each process is limited by rlimits instead".into(),
        |directory| {
            format!(
                "limits of memory and processes of the whole job, in {}",
                directory.display()
            )
        },
    );
    Feature {
        name: "cgroup",
        present: directory.is_some(),
        without: Level::Strict,
        detail,
    }
}

/// Finds the cgroup v2 directory in which this process may make one for each job: `configured`, or its own where that
/// is delegated to it.
#[must_use]
pub fn find_cgroup(configured: Option<&str>) -> Option<PathBuf> {
    let directory = if let Some(path) = configured {
        PathBuf::from(path)
    } else {
        let own = own_cgroup(
            &fs::read_to_string("/proc/self/cgroup").ok()?,
            &fs::read_to_string("/proc/self/mounts").ok()?,
        )?;
        // The one above where this process is in a leaf already: of a launcher before it, or of `DelegateSubgroup=`. A
        // directory that is writable but not handed over (a root login's scope) has an owner who counts on it.
        let delegated = own.ancestors().take(2).find(|directory| is_delegated(directory));
        delegated?.to_owned()
    };
    let controllers = fs::read_to_string(directory.join("cgroup.controllers")).ok()?;
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    let writable = rustix::fs::access(directory.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
        && rustix::fs::access(&directory, rustix::fs::Access::WRITE_OK).is_ok();
    (has("memory") && has("pids") && writable).then_some(directory)
}

/// Whether systemd marked the directory as delegated (`Delegate=yes`).
fn is_delegated(directory: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        rustix::fs::getxattr(directory, *name, &mut value[..]).is_ok_and(|length| &value[..length] == b"1")
    })
}

/// Path of a process's cgroup v2 directory, from its /proc files `cgroup` and `mounts`.
fn own_cgroup(cgroup: &str, mounts: &str) -> Option<PathBuf> {
    let relative = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then_some(path)
    })?;
    Some(Path::new(root).join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_where_version_2_is_mounted() {
        let mounts = "cgroup /sys/fs/cgroup/pids cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = own_cgroup("4:memory:/x\n0::/system.slice/jobs.service\n", mounts);
        assert_eq!(
            found,
            Some(PathBuf::from("/sys/fs/cgroup/unified/system.slice/jobs.service"))
        );
        assert_eq!(own_cgroup("4:memory:/x\n", mounts), None);
        assert_eq!(own_cgroup("0::/\n", "proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn the_level_is_that_of_the_worst_thing_missing() {
        let feature = |present, without| Feature {
            name: "x",
            present,
            without,
            detail: String::new(),
        };
        assert_eq!(
            level(&[feature(true, Level::None), feature(false, Level::Strict)]),
            Level::Strict
        );
        assert_eq!(
            level(&[feature(false, Level::Standard), feature(false, Level::Strict)]),
            Level::Standard
        );
        assert_eq!(
            level(&[feature(false, Level::None), feature(false, Level::Standard)]),
            Level::None
        );
    }
}
