//! What the launcher was started with and its jobs must not profit from, and what the kernel counts for the launcher's
//! user and its jobs together: there each job gets a share, so that neither a neighbour nor the host goes short.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getpriority_process, getrlimit, setpriority_process, setrlimit};

use crate::identity::Identities;
use crate::syscall;

/// Fewest inotify instances of a job, however many jobs there are.
const MIN_INOTIFY_INSTANCES: u64 = 4;
/// Fewest files that a job may watch by inotify.
const MIN_INOTIFY_WATCHES: u64 = 1024;
/// What jobs may have together, as a part of what their user may have.
const JOBS_PART: u64 = 2;
/// Limits that the kernel counts by user, of all namespaces that the user has made as well, and what they usually are.
const COUNTED_BY_USER: &[(Resource, u64)] = &[
    (Resource::Memlock, 8 << 20),
    (Resource::Msgqueue, 819_200),
    (Resource::Sigpending, 1 << 15),
];

/// Gives up what goes before others: precedence for the processor, the disk and memory, and the limits that would let a
/// job ask for it. What the operator made slower or narrower stays so.
///
/// # Errors
/// What the kernel says; all of this is a right of everybody.
pub fn give_up_precedence() -> io::Result<()> {
    if getpriority_process(None)? < 0 {
        setpriority_process(None, 0)?;
    }
    syscall::schedule_as_others()?;
    let score = fs::read_to_string("/proc/self/oom_score_adj")?;
    if score.trim().parse::<i32>().is_ok_and(|score| score < 0) {
        fs::write("/proc/self/oom_score_adj", "0")?;
    }
    for resource in [Resource::Nice, Resource::Rtprio] {
        limit(resource, 0)?;
    }
    // A user namespace that is made from here on has these as its bounds for all that is in it.
    for (resource, usual) in COUNTED_BY_USER {
        let most = getrlimit(*resource).maximum.map_or(*usual, |most| most.min(*usual));
        limit(*resource, most / JOBS_PART)?;
    }
    Ok(())
}

/// Lets this process have as many descriptors as it may. They count for those on their way through sockets, too, of which the
/// kernel counts all of one user's together: jobs that have the launcher's uid are not to keep it from being sent any.
///
/// # Errors
/// What the kernel says.
pub fn use_all_descriptors() -> io::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Divides what the launcher's user namespace may have among its jobs.
///
/// # Errors
/// What the kernel says.
pub fn share_limits(slots: u32) -> io::Result<()> {
    for (resource, usual) in COUNTED_BY_USER {
        let most = getrlimit(*resource).maximum.unwrap_or(*usual);
        limit(*resource, share(most, slots, 1))?;
    }
    Ok(())
}

fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let value = Some(value);
    setrlimit(
        resource,
        Rlimit {
            current: value,
            maximum: value,
        },
    )?;
    Ok(())
}

/// What one of so many jobs may have.
fn share(most: u64, slots: u32, least: u64) -> u64 {
    (most / u64::from(slots.max(1))).max(least)
}

/// Bounds what jobs use of inotify, in the launcher's user namespace: the kernel counts it for the user who made that as
/// well, who is root where root started the launcher. Tells how much a job may have.
///
/// # Errors
/// When the kernel has no such bound, or it cannot be set here.
pub fn bound_inotify(identities: Identities, slots: u32) -> io::Result<u64> {
    // Of one user all jobs are counted together, so that they share what the user leaves them.
    let sharers = if identities.are_separate() { slots } else { 1 };
    let bound = |of_user: &str, of_namespace: &str, least: u64| {
        let most = fs::read_to_string(format!("/proc/sys/fs/inotify/{of_user}"))?;
        let most: u64 = most.trim().parse().map_err(|_| io::Error::from(Errno::INVAL))?;
        let bound = share(most / JOBS_PART, sharers, least);
        fs::write(format!("/proc/sys/user/{of_namespace}"), bound.to_string())?;
        io::Result::Ok(bound)
    };
    bound("max_user_watches", "max_inotify_watches", MIN_INOTIFY_WATCHES)?;
    bound("max_user_instances", "max_inotify_instances", MIN_INOTIFY_INSTANCES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_share_alike_and_each_has_something() {
        assert_eq!(share(64, 4, 4), 16);
        assert_eq!(share(64, 1, 4), 64);
        assert_eq!(share(64, 4096, 4), 4);
        assert_eq!(share(0, 0, 1), 1);
    }
}
