//! The launcher's own user and mount namespace: from here on it has no more rights on the host than an ordinary user.
//! And the uids and gids that its jobs have outside: their own, where this process may give any.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::io::{Errno, read, write};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Signal, Uid, getegid, geteuid, getpid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags, capabilities, clear_ambient_capability_set,
    no_new_privs, set_capabilities, set_capabilities_secure_bits, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::protocol::Configure;
use crate::syscall;

/// Whose ids the jobs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identities {
    /// Each slot has its own.
    OfSlots,
    /// All have the launcher's.
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

    /// For whom the kernel counts what a job uses.
    #[must_use]
    pub const fn sharers(self) -> &'static str {
        if self.are_separate() {
            "each job"
        } else {
            "all jobs together"
        }
    }
}

/// What came of [`enter`].
pub struct Entered<T> {
    /// Whose ids the jobs have.
    pub identities: Identities,
    /// Whether the worker may read whatever a job has left: it is root.
    pub worker_reads: bool,
    /// In words.
    pub detail: String,
    /// What was done in between.
    pub done: T,
}

/// The ids that this process gives to its jobs, and by what right.
pub struct Ids {
    way: Way,
    slots: u32,
    /// Whose the unpacked root images are, for a worker of root's; those of another are its user's.
    images: u32,
}

enum Way {
    /// From the first on, of which root's launcher is one itself.
    Root(u32),
    /// With the two capabilities that it takes to become anybody.
    Capable(u32),
    /// By the setuid programs of shadow, which know what belongs to whom: the first uid and the first gid.
    Programs(u32, u32),
    /// By none, and why.
    None(String),
}

impl Ids {
    /// Finds out what this process may give, and takes it for itself.
    ///
    /// # Errors
    /// When others have all that there is.
    pub fn choose(config: &Configure) -> io::Result<Self> {
        let way = if geteuid().is_root() {
            Way::Root(claim(config)?)
        } else if capabilities(None)?.effective.contains(NEEDED) {
            Way::Capable(claim(config)?)
        } else if let Some(ids) = config.subordinate {
            if no_new_privs()? {
                Way::None("no_new_privs keeps newuidmap from working".into())
            } else {
                let first = claim_of(ids.uid, ids.count, config.slots + 1)?;
                Way::Programs(first, ids.gid + (first - ids.uid))
            }
        } else {
            Way::None("the worker's user has no subordinate uids and gids".into())
        };
        Ok(Self {
            way,
            slots: config.slots,
            images: owner_of_images(config),
        })
    }

    /// Who this process becomes, when it is not who it was.
    #[must_use]
    pub const fn owner(&self) -> Option<u32> {
        match self.way {
            Way::Root(first) => Some(first),
            _ => None,
        }
    }

    /// Root's launcher becomes the first of the ids; another one stays what it is, as what it was given is its user's.
    /// Whoever has root images is mapped as well: without, the kernel lays nothing over them.
    fn maps(&self, (uid, gid): (u32, u32)) -> Maps {
        let slots = self.slots;
        match self.way {
            Way::Root(first) => {
                let all = vec![(0, first, slots + 1), (slots + 1, self.images, 1)];
                Maps {
                    uids: all.clone(),
                    gids: all,
                }
            }
            Way::Capable(first) | Way::Programs(first, _) => Maps {
                uids: vec![(0, uid, 1), (1, first + 1, slots)],
                gids: vec![(0, self.first_gid(first), slots + 1), (slots + 1, gid, 1)],
            },
            Way::None(_) => Maps::default(),
        }
    }

    const fn first_gid(&self, first: u32) -> u32 {
        match self.way {
            Way::Programs(_, gid) => gid,
            _ => first,
        }
    }
}

/// What it takes to become anybody.
const NEEDED: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);

/// Ids in the new namespace, those outside, and how many.
type Extent = (u32, u32, u32);

#[derive(Default)]
struct Maps {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
}

/// Enters a new user and mount namespace in which this process is root, mapped to a uid of its own when it was root
/// before and to itself otherwise, with more ids for the slots where they can be had.
///
/// `before` is done in between: in the new namespaces, with the uid that the process had.
///
/// # Errors
/// When a namespace cannot be had or the ids cannot be mapped; the text says which. What `before` says.
pub fn enter<T>(ids: &Ids, before: impl FnOnce() -> io::Result<T>) -> io::Result<Entered<T>> {
    // Within, before there is a map, they are nobody's.
    let own = (geteuid().as_raw(), getegid().as_raw());
    let maps = ids.maps(own);
    let (identities, detail) = match &ids.way {
        Way::None(why) => {
            unshare()?;
            map_alone(own)?;
            (Identities::OfLauncher, shared(why))
        }
        Way::Root(first) | Way::Capable(first) => {
            enter_mapped(&|parent| write_maps(parent, &maps))?;
            (Identities::OfSlots, words(*first, ids.slots))
        }
        Way::Programs(first, _) => match enter_mapped(&|parent| run_programs(parent, &maps)) {
            Ok(()) => (Identities::OfSlots, words(*first, ids.slots)),
            // Nothing is mapped yet: this process may still map its own.
            Err(error) if fs::read_to_string("/proc/self/uid_map")?.is_empty() => {
                map_alone(own)?;
                (Identities::OfLauncher, shared(&error.to_string()))
            }
            Err(error) => return Err(error),
        },
    };
    let done = before()?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    if identities == Identities::OfSlots {
        set_thread_groups(&[])?;
    }
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    // Jobs' processes inherit both: capabilities outlive the change to the slot's uid, and no program can add any.
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    set_no_new_privs(true)?;
    Ok(Entered {
        identities,
        worker_reads: matches!(ids.way, Way::Root(_)),
        detail,
        done,
    })
}

/// Gives up the capabilities that a worker which is not root was started with: its launcher has used them.
///
/// # Errors
/// What the kernel says.
pub fn give_up_capabilities() -> Result<(), Errno> {
    if geteuid().is_root() {
        return Ok(());
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let nothing = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, nothing)
}

fn words(first: u32, slots: u32) -> String {
    format!("each job has its own, of {} to {}", first + 1, first + slots)
}

fn shared(why: &str) -> String {
    format!("all jobs have the worker's: {why}")
}

/// Ids that are claimed together.
const GRANULE: u32 = 64;

/// Takes ids of those that launchers share for the slots, and one more.
///
/// # Errors
/// When others have all that there is.
pub fn claim(config: &Configure) -> io::Result<u32> {
    claim_of(config.uid_base, config.uid_count.saturating_sub(1), config.slots + 1)
}

/// The last of the ids that launchers share is no job's.
const fn owner_of_images(config: &Configure) -> u32 {
    config.uid_base.saturating_add(config.uid_count.saturating_sub(1))
}

/// Takes `wanted` of the ids for as long as this process lives, so that no two workers of this machine give the same;
/// returns the first. The names of the claims are abstract sockets': the kernel gives them back, however this ends.
fn claim_of(first: u32, count: u32, wanted: u32) -> io::Result<u32> {
    let mut start = first;
    while count.saturating_sub(start - first) >= wanted && start.checked_add(wanted).is_some() {
        if let Some(held) = claim_from(start, wanted)? {
            std::mem::forget(held);
            return Ok(start);
        }
        start = start.saturating_add(GRANULE);
    }
    Err(io::Error::other(format!(
        "uids: other workers of this machine have those from {first} on, of which there are {count}"
    )))
}

fn claim_from(start: u32, wanted: u32) -> io::Result<Option<Vec<OwnedFd>>> {
    let mut held = Vec::new();
    for granule in (start..start.saturating_add(wanted)).step_by(GRANULE as usize) {
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let name = SocketAddrUnix::new_abstract_name(format!("jobs-sandbox-uids-{granule}").as_bytes())?;
        match bind(&socket, &name) {
            Ok(()) => held.push(socket),
            Err(Errno::ADDRINUSE) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Some(held))
}

fn unshare() -> io::Result<()> {
    syscall::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(|errno| {
        io::Error::new(
            io::Error::from(errno).kind(),
            format!("user and mount namespace: {errno}"),
        )
    })
}

/// Maps this process's own ids, which everybody may.
fn map_alone((uid, gid): (u32, u32)) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))
}

/// Enters the namespaces, and has a child that stays in the old ones map ids: only from there more than one can be.
fn enter_mapped(map: &dyn Fn(i32) -> io::Result<()>) -> io::Result<()> {
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC)?;
    let (answer, done) = pipe_with(PipeFlags::CLOEXEC)?;
    let parent = getpid().as_raw_nonzero().get();
    let (_, pidfd) = syscall::fork(0, None, || {
        let mapped = set_parent_process_death_signal(Some(Signal::KILL))
            .and_then(|()| read(&wait, &mut [0]))
            .map_err(io::Error::from)
            .and_then(|_| map(parent));
        if let Err(error) = mapped {
            let _ = write(&done, error.to_string().as_bytes());
        }
        syscall::exit_now(0)
    })?;
    unshare()?;
    write(&go, b"g")?;
    drop(done);
    let mut error = String::new();
    fs::File::from(answer).read_to_string(&mut error)?;
    syscall::reap(pidfd.as_fd())?;
    if error.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(error))
    }
}

fn write_maps(process: i32, maps: &Maps) -> io::Result<()> {
    for (name, extents) in [("gid_map", &maps.gids), ("uid_map", &maps.uids)] {
        let lines: Vec<_> = extents
            .iter()
            .map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"))
            .collect();
        // At once, as the kernel takes it.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{process}/{name}"))
            .and_then(|mut file| file.write_all(lines.concat().as_bytes()));
        written.map_err(|error| io::Error::other(format!("{name} {:?}: {error}", lines.concat())))?;
    }
    Ok(())
}

/// Where the setuid programs are, on this or that system.
const PROGRAM_DIRECTORIES: [&str; 4] = ["/usr/bin", "/run/wrappers/bin", "/usr/local/bin", "/bin"];

fn run_programs(process: i32, maps: &Maps) -> io::Result<()> {
    for (name, extents) in [("newuidmap", &maps.uids), ("newgidmap", &maps.gids)] {
        let path = PROGRAM_DIRECTORIES
            .iter()
            .map(|directory| format!("{directory}/{name}"));
        let path = path
            .into_iter()
            .find(|path| fs::exists(path).unwrap_or(false))
            .ok_or_else(|| io::Error::other(format!("{name} is not installed")))?;
        let numbers = extents.iter().flat_map(|extent| [extent.0, extent.1, extent.2]);
        let ended = Command::new(path)
            .arg(process.to_string())
            .args(numbers.map(|number| number.to_string()))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| io::Error::other(format!("{name}: {error}")))?;
        if !ended.status.success() {
            let said = String::from_utf8_lossy(&ended.stderr);
            let line = said.lines().next().unwrap_or_default();
            return Err(io::Error::other(format!("{name}: {}, {line:?}", ended.status)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_given_once_and_as_many_as_there_are() {
        // Ids that no worker on the machine of the tests has.
        let first = 0x6000_0000 + std::process::id() * 1024;
        assert_eq!(claim_of(first, 1000, 5).unwrap(), first);
        assert_eq!(claim_of(first, 1000, 65).unwrap(), first + GRANULE);
        assert_eq!(claim_of(first, 1000, 1).unwrap(), first + 3 * GRANULE);
        assert!(claim_of(first, 3 * GRANULE + 1, 2).is_err());
        assert!(claim_of(u32::MAX - 1, 8, 4).is_err());
    }

    #[test]
    fn what_is_claimed_is_free_when_its_holder_has_gone() {
        let first = 0x5000_0000 + std::process::id() * 1024;
        let held = claim_from(first, 10).unwrap().unwrap();
        assert!(claim_from(first, 1).unwrap().is_none());
        drop(held);
        assert!(claim_from(first, 1).unwrap().is_some());
    }
}
