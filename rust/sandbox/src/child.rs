//! A job's side of the start: from the fresh namespaces to the program, and the first process that stays behind.
//!
//! Everything here runs in a clone of the launcher, so it neither allocates nor drops; all it needs is in [`Prepared`].

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, chmod, chmodat, fchmod, fstat, mkdir, mkdirat, open, openat, statat,
    statfs,
};
use rustix::io::{Errno, write};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind, mount_remount, move_mount, open_tree,
    unmount,
};
use rustix::process::{
    DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, chdir, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit, setsid,
};
use rustix::system::sethostname;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags,
    clear_ambient_capability_set, move_into_link_name_space, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits, set_thread_res_gid, set_thread_res_uid,
};

use crate::bare::{self, Bare};
use crate::netns::raise_loopback;
use crate::plan::{JOB_ID, NOTES_FD, Place, PlannedFile, PlannedInput, PlannedRoot};
use crate::root;
use crate::syscall::{self, Instruction, PointerList, Usage};

/// Where the job's memory file system is mounted in its view; /work, /tmp and /dev/shm are parts of it.
pub const SCRATCH: &CStr = c"/.job";
/// Where the directory of inputs is mounted in the launcher's view.
pub const INPUTS: &CStr = c"/.inputs";
/// Where a job's secrets are mounted: [`crate::plan::SECRETS_DIRECTORY`].
const SECRETS: &CStr = c"/run/secrets";
const EXECUTABLE: Mode = Mode::from_raw_mode(0o755);
const OWNER_READS: Mode = Mode::from_raw_mode(0o400);
const OWNER_ENTERS: Mode = Mode::from_raw_mode(0o500);
/// The job's directory.
const WORK: &CStr = c"/work";
/// How deep the directories are that outputs are looked for in: as deep as they may be named (`MAX_OUTPUT_DEPTH`).
const MAX_OUTPUT_DEPTH: u32 = 64;
const HOST_NAME: &[u8] = b"job";
/// What /proc tells of the kernel that a job need not know, or lets it do: covered by /dev/null.
const MASKED: &[&CStr] = &[
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/timer_list",
    c"/proc/sysrq-trigger",
];
const READ_ONLY: &[&CStr] = &[c"/proc/sys"];
/// Number that the report's descriptor gets in the first process, which keeps no other.
const REPORT_FD: i32 = 0;
/// How many descriptors a job starts with: the last is [`NOTES_FD`].
pub const DESCRIPTORS: usize = NOTES_FD as usize + 1;

macro_rules! steps {
    ($($name:ident => $words:literal,)*) => {
        /// What the child was doing when it failed; `Ended` when it did not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Step { $($name,)* }

        impl Step {
            const ALL: &[Self] = &[$(Self::$name,)*];

            /// The step in words.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

steps! {
    Ended => "end",
    Reaper => "become the parent of what loses its own",
    Network => "enter the network namespace",
    HostName => "set the host name",
    Proc => "mount /proc",
    ProcMasks => "mask parts of /proc",
    Scratch => "mount the job's memory file system",
    Identity => "take the slot's uid and gid",
    Directories => "make the job's directories",
    Files => "write the job's files",
    Inputs => "show the job's inputs",
    Secrets => "give the job its secrets",
    Root => "show the job its root image",
    RootPlaces => "make room for the job's own in its root image",
    UserNamespace => "enter the user namespace",
    IdMaps => "map the job's uid and gid",
    Privileges => "drop capabilities",
    Landlock => "restrict the job by Landlock",
    Seccomp => "install the seccomp filter",
    ParentDeath => "bind the job's life to the launcher's",
    Fork => "start the job's process",
    Descriptors => "connect the job's descriptors",
    Limits => "set resource limits",
    WorkingDirectory => "enter the working directory",
    Execute => "execute",
}

/// What the first process reports through its pipe: one record, written at once. Nothing else of the job runs then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The job's program never ran: what failed, and how.
    Failed(Step, Errno),
    /// The job's main process ended.
    Ended(Ended),
}

/// How a job's main process ended, and what its first process knows of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Wait status of the main process.
    pub status: i32,
    /// What the whole job used.
    pub usage: Usage,
    /// Whether its memory file system had no room left at that moment.
    pub scratch_is_full: bool,
}

/// Size of a report.
pub const REPORT_BYTES: usize = 30;

impl Report {
    fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let (step, value, ended) = match self {
            Self::Failed(step, errno) => (step, errno.raw_os_error(), Ended::default()),
            Self::Ended(ended) => (Step::Ended, ended.status, ended),
        };
        let usage = ended.usage;
        let mut bytes = [0; REPORT_BYTES];
        bytes[0] = step as u8;
        bytes[1..5].copy_from_slice(&value.to_le_bytes());
        bytes[5..13].copy_from_slice(&usage.user_us.to_le_bytes());
        bytes[13..21].copy_from_slice(&usage.system_us.to_le_bytes());
        bytes[21..29].copy_from_slice(&usage.peak_bytes.to_le_bytes());
        bytes[29] = ended.scratch_is_full.into();
        bytes
    }

    /// Reads what `to_bytes` wrote.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; REPORT_BYTES]) -> Option<Self> {
        let value = i32::from_le_bytes(*bytes[1..].first_chunk()?);
        let number = |at: usize| Some(u64::from_le_bytes(*bytes[at..].first_chunk()?));
        match Step::ALL.get(usize::from(bytes[0]))? {
            Step::Ended => {
                let usage = Usage {
                    user_us: number(5)?,
                    system_us: number(13)?,
                    peak_bytes: number(21)?,
                };
                Some(Self::Ended(Ended {
                    status: value,
                    usage,
                    scratch_is_full: bytes[29] != 0,
                }))
            }
            step => Some(Self::Failed(*step, Errno::from_raw_os_error(value))),
        }
    }
}

/// What of a job's secrets the child needs.
pub struct Secrets<'a> {
    /// Mount options of their memory file system.
    pub options: CString,
    /// Names in it, and values.
    pub files: Vec<(&'a CStr, &'a [u8])>,
}

/// A memory file system that is made before the child, and outlives the job.
#[derive(Clone, Copy)]
pub struct Scratch<'a> {
    /// The file system.
    pub tree: BorrowedFd<'a>,
    /// Whether others are to read what is left in it.
    pub is_opened: bool,
}

/// What the launcher's view has of all jobs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared {
    /// A directory of inputs.
    pub inputs: bool,
    /// Root images.
    pub roots: bool,
}

/// All that the child needs, made before it is cloned.
pub struct Prepared<'a> {
    /// pidfd of the launcher.
    pub launcher: BorrowedFd<'a>,
    /// Network namespace to enter; none means the launcher's.
    pub network: Option<BorrowedFd<'a>>,
    /// Whether the loopback of that is to be up.
    pub has_loopback: bool,
    /// Whether it has a host name of its own.
    pub has_host_name: bool,
    /// Where the report goes.
    pub report: BorrowedFd<'a>,
    /// What the job has under the numbers from 0 on: stdin, stdout, stderr, its notes.
    pub descriptors: [BorrowedFd<'a>; DESCRIPTORS],
    /// uid and gid of the job, as the launcher's user namespace sees them.
    pub identity: u32,
    /// Content of the job's uid and gid map.
    pub id_map: &'a [u8],
    /// Mount options of the memory file system.
    pub scratch_options: &'a CStr,
    /// The memory file system, where it is made already because somebody else holds it too.
    pub scratch: Option<Scratch<'a>>,
    /// Content of the script, if there is one.
    pub script: Option<&'a [u8]>,
    /// Files with their content.
    pub files: &'a [(&'a PlannedFile, &'a [u8])],
    /// What is shown read-only.
    pub inputs: &'a [PlannedInput],
    /// What only the job may read, if there is anything.
    pub secrets: Option<&'a Secrets<'a>>,
    /// What the launcher's view has of which a job is to see its own only.
    pub shared: Shared,
    /// Limits of each process.
    pub limits: &'a [(Resource, Rlimit)],
    /// Landlock rules, if the kernel has it.
    pub landlock: Option<&'a crate::landlock::Rules>,
    /// The filter; none where the host has none.
    pub seccomp: Option<&'a [Instruction]>,
    /// Programs to try.
    pub candidates: &'a [CString],
    /// Arguments.
    pub argv: &'a PointerList<'a>,
    /// Environment.
    pub environment: &'a PointerList<'a>,
    /// Directory to start in.
    pub working_directory: &'a CStr,
    /// Its root image, in place of the launcher's view.
    pub root: Option<&'a PlannedRoot>,
    /// At level `none`: what there is instead of all walls.
    pub bare: Option<Bare<'a>>,
}

/// What came of the start, up to here.
pub type Outcome<T = ()> = Result<T, (Step, Errno)>;

/// Says what was done when a call failed.
pub trait During<T> {
    /// The result, with the step.
    ///
    /// # Errors
    /// The call's.
    fn during(self, step: Step) -> Outcome<T>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, step: Step) -> Outcome<T> {
        self.map_err(|errno| (step, errno))
    }
}

/// Sets up the job's world, starts its program, waits for its end, ends all that is left and reports. Being the first
/// process of the pid namespace, its own end makes the kernel kill whatever runs there, should it come early.
pub fn run(prepared: &Prepared<'_>, stack: &mut [u8]) -> ! {
    let wait = |main| match prepared.bare {
        Some(_) => bare::wait_for(main),
        None => wait_for(main, prepared.scratch.is_some_and(|scratch| scratch.is_opened)),
    };
    let report = start(prepared, stack).map_or_else(|(step, errno)| Report::Failed(step, errno), wait);
    // If nobody reads it any more, nobody needs it.
    let _ = write(syscall::borrow_fd(REPORT_FD), &report.to_bytes());
    syscall::exit_now(0)
}

/// Sets up the job's world without starting anything in it, and reports how that went.
pub fn rehearse(prepared: &Prepared<'_>) -> ! {
    let report = set_up(prepared).map_or_else(
        |(step, errno)| Report::Failed(step, errno),
        |()| Report::Ended(Ended::default()),
    );
    let _ = write(prepared.report, &report.to_bytes());
    syscall::exit_now(0)
}

fn start(prepared: &Prepared<'_>, stack: &mut [u8]) -> Outcome<Pid> {
    let result = set_up(prepared);
    let mut failure = None;
    let forked = result
        .and_then(|()| syscall::vfork(stack, &mut || failure = become_program(prepared).err()).during(Step::Fork));
    // Only now: the program's process has copies of the descriptors that it needs.
    let kept = syscall::duplicate_to(prepared.report, REPORT_FD).and_then(|()| syscall::close_from(1));
    kept.during(Step::Descriptors)?;
    let main = forked?;
    failure.map_or(Ok(main), Err)
}

fn wait_for(main: Pid, opens_scratch: bool) -> Report {
    loop {
        while let Some((pid, status)) = syscall::reap_any() {
            if pid == main.as_raw_nonzero().get() {
                // Before the others are gone, with the files that only they hold.
                let scratch_is_full = is_full(SCRATCH);
                // Not left to our own end: the report is to say that nothing runs any more. What has lost its parent is
                // our child: without any, there is nothing, and no need to have all processes of the host looked at.
                if syscall::has_child() {
                    syscall::signal_everyone(libc::SIGKILL);
                    syscall::reap_everyone();
                }
                if opens_scratch {
                    let _ = open_to_others();
                }
                return Report::Ended(Ended {
                    status,
                    usage: syscall::usage_of_children(),
                    scratch_is_full,
                });
            }
        }
        // SIGTERM from outside of the namespace is the launcher's; one from the job itself is the job's mistake.
        if syscall::wait_for_signal(&[libc::SIGCHLD, libc::SIGTERM]) == (libc::SIGTERM, 0) {
            syscall::signal_everyone(libc::SIGTERM);
            syscall::signal_everyone(libc::SIGCONT);
        }
    }
}

/// Whether there is no room for one more block or file.
fn is_full(path: &CStr) -> bool {
    statfs(path).is_ok_and(|room| room.f_bavail == 0 || room.f_ffree == 0)
}

/// Lets others read the job's directory, as far down as outputs are looked for. Nothing of the job runs any more: what
/// has been looked at is what is changed. What cannot be changed is found to be unreadable by whoever wants it.
fn open_to_others() -> Result<(), Errno> {
    chmod(WORK, Mode::from_raw_mode(0o755))?;
    chmod(SCRATCH, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let work = openat(CWD, WORK, flags, Mode::empty())?;
    let device = fstat(&work)?.st_dev;
    open_entries(&work, device, MAX_OUTPUT_DEPTH)
}

fn open_entries(directory: &OwnedFd, device: u64, depth: u32) -> Result<(), Errno> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(status) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        // Inputs are mounts of their own, and readable.
        if status.st_dev != device {
            continue;
        }
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {
                let _ = chmodat(
                    directory,
                    name,
                    Mode::from_raw_mode(status.st_mode | 0o444),
                    AtFlags::empty(),
                );
            }
            FileType::Directory if depth > 0 => {
                let _ = chmodat(directory, name, Mode::from_raw_mode(0o755), AtFlags::empty());
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if let Ok(below) = openat(directory, name, flags, Mode::empty()) {
                    let _ = open_entries(&below, device, depth - 1);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn set_up(prepared: &Prepared<'_>) -> Outcome {
    if let Some(bare) = &prepared.bare {
        return bare::set_up(prepared, bare);
    }
    if let Some(network) = prepared.network {
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network)).during(Step::Network)?;
        if prepared.has_loopback {
            raise_loopback().during(Step::Network)?;
        }
    }
    if prepared.has_host_name {
        sethostname(HOST_NAME).during(Step::HostName)?;
    }
    mount_views(prepared)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let work = open(WORK, flags, Mode::empty()).during(Step::Files)?;
    let scratch = open(SCRATCH, flags, Mode::empty()).during(Step::Files)?;
    write_files(prepared, scratch.as_fd(), work.as_fd()).during(Step::Files)?;
    show_inputs(prepared, work.as_fd()).during(Step::Inputs)?;
    give_secrets(prepared).during(Step::Secrets)?;
    if let Some(root) = prepared.root {
        root::enter(root, prepared.secrets.is_some())?;
    } else if prepared.shared.roots {
        unmount(root::ROOTS, UnmountFlags::DETACH).during(Step::Root)?;
    }
    become_unprivileged(prepared)?;
    if let Some(rules) = prepared.landlock {
        let opened = [(SCRATCH, scratch.as_fd()), (WORK, work.as_fd())];
        rules.apply(&opened).during(Step::Landlock)?;
    }
    // Cleared by every change of identity, so it comes after the last; then the launcher may be gone already.
    set_parent_process_death_signal(Some(Signal::KILL)).during(Step::ParentDeath)?;
    let mut launcher = [PollFd::from_borrowed_fd(prepared.launcher, PollFlags::IN)];
    if poll(&mut launcher, Some(&Timespec::default())).during(Step::ParentDeath)? > 0 {
        syscall::exit_now(1);
    }
    let filtered = prepared.seccomp.map_or(Ok(()), syscall::set_seccomp_filter);
    filtered.during(Step::Seccomp)
}

fn mount_views(prepared: &Prepared<'_>) -> Outcome {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"proc", c"/proc", c"proc", flags, Some(c"hidepid=2")).during(Step::Proc)?;
    mask_proc(flags).during(Step::ProcMasks)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    match prepared.scratch {
        Some(made) => move_mount(made.tree, c"", CWD, SCRATCH, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH),
        None => mount(c"job", SCRATCH, c"tmpfs", flags, Some(prepared.scratch_options)),
    }
    .during(Step::Scratch)?;
    set_thread_res_gid(
        Gid::from_raw(prepared.identity),
        Gid::from_raw(prepared.identity),
        Gid::from_raw(prepared.identity),
    )
    .during(Step::Identity)?;
    set_thread_res_uid(
        Uid::from_raw(prepared.identity),
        Uid::from_raw(prepared.identity),
        Uid::from_raw(prepared.identity),
    )
    .during(Step::Identity)?;
    for (part, target, mode) in [
        (c"/.job/work", c"/work", 0o755),
        (c"/.job/tmp", c"/tmp", 0o1777),
        (c"/.job/shm", c"/dev/shm", 0o1777),
    ] {
        mkdir(part, Mode::from_raw_mode(mode)).during(Step::Directories)?;
        mount_bind(part, target).during(Step::Directories)?;
    }
    Ok(())
}

fn mask_proc(flags: MountFlags) -> Result<(), Errno> {
    for path in MASKED {
        match mount_bind(c"/dev/null", *path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    for path in READ_ONLY {
        mount_bind(*path, *path)?;
        mount_remount(*path, flags | MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}

/// Writes the job's script into one directory, and its files into another.
///
/// # Errors
/// What the kernel says.
pub fn write_files(prepared: &Prepared<'_>, scratch: BorrowedFd<'_>, work: BorrowedFd<'_>) -> Result<(), Errno> {
    if let Some(script) = prepared.script {
        write_file(scratch, c"script", script, EXECUTABLE)?;
    }
    for (file, content) in prepared.files {
        write_file(
            directory_of(work, &file.place)?.as_fd(),
            &file.place.name,
            content,
            EXECUTABLE,
        )?;
    }
    Ok(())
}

/// Opens the directory that a place in the job's is in, which is made where it is not there.
///
/// # Errors
/// What the kernel says.
pub fn directory_of(work: BorrowedFd<'_>, place: &Place) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = openat(work, c".", flags, Mode::empty())?;
    for name in &place.directories {
        match mkdirat(&directory, name.as_c_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        directory = openat(&directory, name.as_c_str(), flags, Mode::empty())?;
    }
    Ok(directory)
}

/// Mounts each input at its place, as read-only as the directory that they are in, and lets go of that: a job sees its
/// own and no other's.
fn show_inputs(prepared: &Prepared<'_>, work: BorrowedFd<'_>) -> Result<(), Errno> {
    for input in prepared.inputs {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let tree = open_tree(CWD, input.source.as_c_str(), flags)?;
        let (directory, name) = (directory_of(work, &input.place)?, input.place.name.as_c_str());
        match FileType::from_raw_mode(fstat(&tree)?.st_mode) {
            FileType::Directory => mkdirat(&directory, name, Mode::from_raw_mode(0o755))?,
            FileType::RegularFile => write_file(directory.as_fd(), name, &[], EXECUTABLE)?,
            _ => return Err(Errno::INVAL),
        }
        move_mount(tree, c"", &directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    if prepared.shared.inputs {
        unmount(INPUTS, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Writes the job's secrets to a memory file system of their own, which nobody can write to from then on and which goes
/// with the job.
fn give_secrets(prepared: &Prepared<'_>) -> Result<(), Errno> {
    let Some(secrets) = prepared.secrets else {
        return Ok(());
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"secrets", SECRETS, c"tmpfs", flags, Some(secrets.options.as_c_str()))?;
    let directory = open(
        SECRETS,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    write_secrets(secrets, directory.as_fd())?;
    mount_remount(SECRETS, flags | MountFlags::BIND | MountFlags::RDONLY, c"")
}

/// Writes secrets into a directory, which is its owner's alone afterwards.
///
/// # Errors
/// What the kernel says.
pub fn write_secrets(secrets: &Secrets<'_>, directory: BorrowedFd<'_>) -> Result<(), Errno> {
    for (name, value) in &secrets.files {
        write_file(directory, name, value, OWNER_READS)?;
    }
    let directory = openat(
        directory,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    fchmod(&directory, OWNER_ENTERS)
}

fn write_file(directory: BorrowedFd<'_>, name: &CStr, mut content: &[u8], mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, mode)?;
    while !content.is_empty() {
        content = &content[write(&file, content)?..];
    }
    Ok(())
}

fn become_unprivileged(prepared: &Prepared<'_>) -> Outcome {
    // A change of uid makes /proc/self root's, who is not us.
    set_dumpable_behavior(DumpableBehavior::Dumpable).during(Step::UserNamespace)?;
    syscall::unshare(UnshareFlags::NEWUSER).during(Step::UserNamespace)?;
    for (path, content) in [
        (c"/proc/self/setgroups", b"deny".as_slice()),
        (c"/proc/self/gid_map", prepared.id_map),
        (c"/proc/self/uid_map", prepared.id_map),
    ] {
        let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).during(Step::IdMaps)?;
        write(&file, content).during(Step::IdMaps)?;
    }
    // No other process of the job may look into this one; exec gives the program its own answer.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).during(Step::Privileges)?;
    drop_capabilities().during(Step::Privileges)
}

/// Gives up every capability, for good.
///
/// # Errors
/// What the kernel says.
pub fn drop_capabilities() -> Result<(), Errno> {
    restrict_privileges()?;
    empty_capabilities()
}

/// Sees to it that no capability can be gained any more, and that those that are there are not lost by another uid.
///
/// # Errors
/// What the kernel says.
pub fn restrict_privileges() -> Result<(), Errno> {
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    clear_ambient_capability_set()?;
    let ambient_locked = CapabilitiesSecureBits::from_bits_retain(0b1100_0000);
    set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | ambient_locked,
    )
}

/// Gives up every capability that there is.
///
/// # Errors
/// What the kernel says.
pub fn empty_capabilities() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
}

/// Becomes the job's program; returns only if that fails.
fn become_program(prepared: &Prepared<'_>) -> Outcome<Infallible> {
    setsid().during(Step::Fork)?;
    if let Some(bare) = &prepared.bare {
        bare::become_unprivileged(prepared, bare)?;
    }
    for (fd, number) in prepared.descriptors.iter().zip(0..) {
        syscall::duplicate_to(*fd, number).during(Step::Descriptors)?;
    }
    syscall::close_from(NOTES_FD + 1).during(Step::Descriptors)?;
    chdir(prepared.working_directory).during(Step::WorkingDirectory)?;
    for (resource, limit) in prepared.limits {
        setrlimit(*resource, *limit).during(Step::Limits)?;
    }
    syscall::unblock_signals();
    let mut errno = Errno::NOENT;
    for path in prepared.candidates {
        match syscall::execute(path, prepared.argv, prepared.environment) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => errno = Errno::ACCESS,
            other => return Err((Step::Execute, other)),
        }
    }
    Err((Step::Execute, errno))
}

/// Content of a uid or gid map that gives the one id of the launcher's namespace to the job.
#[must_use]
pub fn id_map(identity: u32) -> Vec<u8> {
    format!("{JOB_ID} {identity} 1\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let usage = Usage {
            user_us: 1,
            system_us: u64::MAX,
            peak_bytes: 3,
        };
        for report in [
            Report::Ended(Ended {
                usage,
                ..Ended::default()
            }),
            Report::Ended(Ended {
                status: 0x8b,
                usage,
                scratch_is_full: true,
            }),
            Report::Failed(Step::Execute, Errno::NOENT),
        ] {
            assert_eq!(Report::from_bytes(&report.to_bytes()), Some(report));
        }
        assert_eq!(Report::from_bytes(&[200; REPORT_BYTES]), None);
    }
}
