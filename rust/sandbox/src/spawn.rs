//! Starts one planned job: makes everything that its child will need, then clones.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, OFlags, SealFlags, SeekFrom, fchown, fcntl_add_seals, fcntl_setfl, memfd_create, seek};
use rustix::io::{Errno, read, write};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Pid, PidfdFlags, Resource, Rlimit, Uid, getpid, getrlimit, pidfd_open};

use crate::bare::{Bare, Directories};
use crate::cgroup::{JobCgroup, Subtree};
use crate::child::{self, DESCRIPTORS, Prepared, REPORT_BYTES, Report, Scratch, Secrets, Shared};
use crate::identity::Identities;
use crate::landlock::Rules;
use crate::netns::{Network, NetworkPool, Use};
use crate::plan::{Plan, PlannedFile, PlannedSecrets, ProcessLimit};
use crate::protocol::{NetworkKind, Secret, Spawn};
use crate::relay::Relay;
use crate::seccomp::{self, Layer};
use crate::syscall::{self, Instruction, PointerList, VFORK_STACK_BYTES};

/// Enough for what is on its way to this process at a time. Not a bound: the kernel lets each thread that is about to send
/// some add to what the user has under way.
const RESERVED_DESCRIPTORS: u64 = 256;

/// A job's processes and what this side holds of them.
pub struct Process {
    /// Of its first process, in the launcher's pid namespace.
    pub pid: Pid,
    /// Readable once nothing of the job runs any more.
    pub pidfd: OwnedFd,
    /// Where its first process reports.
    pub report: OwnedFd,
    /// Ends of stdout, stderr and the job's notes to read from, non-blocking; none once the job has closed its end.
    pub pipes: [Option<OwnedFd>; 3],
    /// Its cgroup, where there are cgroups.
    pub cgroup: Option<JobCgroup>,
    /// Its memory file system or directory, where the worker is to be given what is left in it.
    pub kept: Option<OwnedFd>,
    /// At level `none`: its directory.
    pub directory: Option<OwnedFd>,
    /// Its network namespace, where another job may have it afterwards.
    pub network: Option<Network>,
    /// What passes on for it; it ends with the job.
    pub _relay: Option<Relay>,
}

impl Process {
    /// Waits for the end of everything, reaps it and returns its report.
    ///
    /// # Errors
    /// What poll or waitid say.
    pub fn wait(self) -> Result<Option<Report>, Errno> {
        syscall::wait_readable(self.pidfd.as_fd())?;
        syscall::reap(self.pidfd.as_fd())?;
        Ok(self.read_report())
    }

    /// What the first process has reported so far.
    #[must_use]
    pub fn read_report(&self) -> Option<Report> {
        let mut bytes = [0; REPORT_BYTES];
        let count = read(&self.report, &mut bytes).unwrap_or(0);
        if count == REPORT_BYTES {
            Report::from_bytes(&bytes)
        } else {
            None
        }
    }
}

/// What the launcher has for all its jobs.
pub struct Basis {
    /// Whose uids jobs have.
    pub identities: Identities,
    /// A job's first process lets others read what its job has left: the worker that is given it is not root.
    pub opens_kept: bool,
    /// Flags of the namespaces that a job is cloned into.
    pub namespaces: u64,
    /// Network namespaces that lie ready; none where jobs have the host's.
    pub network: Option<NetworkPool>,
    /// Where the cgroups of jobs are made.
    pub cgroups: Option<Subtree>,
    /// What the launcher's view has of all jobs.
    pub shared: Shared,
    /// At level `none`: where jobs have their directories.
    pub directories: Option<Directories>,
    /// Whether the launcher has a filter of system calls, and jobs are to have the rest of it.
    pub has_seccomp: bool,
}

/// What is made once and used for every job.
pub struct Spawner {
    basis: Basis,
    landlock: Option<RuleSets>,
    seccomp: Option<Filters>,
    null: OwnedFd,
    launcher: OwnedFd,
    stack: Vec<u8>,
}

/// Jobs' own filters of system calls.
struct Filters {
    with_network: Vec<Instruction>,
    offline: Vec<Instruction>,
}

impl Filters {
    fn new() -> Self {
        Self {
            with_network: seccomp::compile(Layer::Job),
            offline: seccomp::compile(Layer::OfflineJob),
        }
    }

    fn of(&self, network: NetworkKind) -> &[Instruction] {
        if network == NetworkKind::None {
            &self.offline
        } else {
            &self.with_network
        }
    }
}

/// Landlock's rules, for jobs that see the launcher's view and for those that may write to their whole root.
struct RuleSets {
    view: Rules,
    own_root: Rules,
}

impl RuleSets {
    const fn new(version: u32) -> Self {
        Self {
            view: Rules::new(version),
            own_root: Rules::of_own_root(version),
        }
    }

    fn of(&self, plan: &Plan) -> &Rules {
        let has_own = plan.root.as_ref().is_some_and(|root| root.is_writable);
        if has_own { &self.own_root } else { &self.view }
    }
}

/// What could not be had, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct SpawnError {
    /// What could not be had.
    pub what: &'static str,
    /// Why.
    pub cause: io::Error,
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> SpawnError {
    move |cause| SpawnError {
        what,
        cause: cause.into(),
    }
}

/// What the kernel has of a job before there is a process of it.
struct Held {
    network: Option<Network>,
    relay: Option<Relay>,
    ends: Ends,
    cgroup: Option<JobCgroup>,
    directory: Option<OwnedFd>,
    kept: Option<OwnedFd>,
}

/// What a job is joined to the launcher by; this process's copies of the job's ends go once the job has them.
struct Ends {
    stdin: Option<OwnedFd>,
    /// Of stdout, stderr and its notes.
    ours: [OwnedFd; 3],
    theirs: [OwnedFd; 3],
    report: OwnedFd,
    report_theirs: OwnedFd,
}

impl Ends {
    /// What the job has under the numbers from 0 on.
    fn given<'a>(&'a self, null: BorrowedFd<'a>) -> [BorrowedFd<'a>; DESCRIPTORS] {
        let [stdout, stderr, notes] = self.theirs.each_ref().map(AsFd::as_fd);
        [self.stdin.as_ref().map_or(null, AsFd::as_fd), stdout, stderr, notes]
    }
}

/// What the child does once it is cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Run the program.
    Run,
    /// Only set up what a job would need.
    Rehearse,
}

impl Spawner {
    /// Makes what all jobs share.
    ///
    /// # Errors
    /// Names what could not be had.
    pub fn new(basis: Basis) -> Result<Self, SpawnError> {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        Ok(Self {
            landlock: syscall::landlock_version().map(RuleSets::new),
            seccomp: basis.has_seccomp.then(Filters::new),
            null: null.map_err(failed("open /dev/null"))?,
            launcher: pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed("pidfd"))?,
            stack: vec![0; VFORK_STACK_BYTES],
            basis,
        })
    }

    /// Starts the job in the slot.
    ///
    /// # Errors
    /// Names what could not be had.
    pub fn spawn(&mut self, spawn: &Spawn, plan: &Plan, slot: usize, mode: Mode) -> Result<Process, SpawnError> {
        let identity = self.basis.identities.of(slot);
        let held = self.make(spawn, plan, identity)?;
        let content = |file: &PlannedFile| spawn.files.get(&file.key).map_or(&[][..], |content| content.as_slice());
        let files: Vec<_> = plan.files.iter().map(|file| (file, content(file))).collect();
        let secrets = plan.secrets.as_ref().map(|planned| secrets(spawn, planned, identity));
        let argv = PointerList::new(plan.argv.iter().map(CString::as_c_str));
        let environment = PointerList::new(plan.environment.iter().map(CString::as_c_str));
        let prepared = Prepared {
            launcher: self.launcher.as_fd(),
            network: held.network.as_ref().map(Network::namespace),
            has_loopback: plan.network == NetworkKind::Loopback,
            has_host_name: self.basis.namespaces & libc::CLONE_NEWUTS as u64 != 0,
            report: held.ends.report_theirs.as_fd(),
            descriptors: held.ends.given(self.null.as_fd()),
            identity,
            id_map: &child::id_map(identity),
            scratch_options: &scratch_options(plan, identity),
            scratch: held.kept.as_ref().map(|kept| Scratch {
                tree: kept.as_fd(),
                is_opened: self.basis.opens_kept,
            }),
            script: spawn.script.as_ref().map(String::as_bytes),
            files: &files,
            inputs: &plan.inputs,
            secrets: secrets.as_ref(),
            shared: self.basis.shared,
            limits: &self.limits(plan),
            landlock: self.landlock.as_ref().map(|rules| rules.of(plan)),
            seccomp: self.seccomp.as_ref().map(|filters| filters.of(plan.network)),
            candidates: &plan.candidates,
            argv: &argv,
            environment: &environment,
            working_directory: &plan.working_directory,
            root: plan.root.as_ref(),
            bare: self.basis.directories.as_ref().map(|directories| Bare {
                directory: held.directory.as_ref().map(AsFd::as_fd),
                inputs: directories.inputs(),
                is_separate: self.basis.identities.are_separate(),
            }),
        };
        let stack = &mut self.stack;
        let run = || match mode {
            Mode::Run => child::run(&prepared, stack),
            Mode::Rehearse => child::rehearse(&prepared),
        };
        let group = held.cgroup.as_ref().map(JobCgroup::directory);
        let (pid, pidfd) = syscall::fork(self.basis.namespaces, group, run).map_err(failed("clone3"))?;
        Ok(Process {
            pid,
            pidfd,
            report: held.ends.report,
            pipes: held.ends.ours.map(Some),
            cgroup: held.cgroup,
            kept: held.kept,
            directory: held.directory,
            network: held.network.filter(|_| self.planned_use(plan) == Use::Again),
            _relay: held.relay,
        })
    }

    /// Makes what the kernel has of a job before there is a process of it.
    fn make(&mut self, spawn: &Spawn, plan: &Plan, identity: u32) -> Result<Held, SpawnError> {
        let network = self.take_network(plan)?;
        let relay = self
            .relay(plan, network.as_ref())
            .map_err(failed("the way to the addresses that it may reach"))?;
        let ends = self.ends(spawn, identity)?;
        let cgroup = self.basis.cgroups.as_ref().map(|subtree| subtree.job(plan)).transpose();
        let cgroup = cgroup.map_err(failed("cgroup"))?;
        let directory = self
            .make_directory(plan, identity)
            .map_err(failed("the job's directory"))?;
        let kept = match &directory {
            _ if !spawn.keep => Ok(None),
            Some(directory) => directory.try_clone().map(Some),
            None if self.is_bare() => Ok(None),
            None => made_scratch(plan, identity).map(Some).map_err(Into::into),
        };
        let kept = kept.map_err(failed("what the job leaves"))?;
        Ok(Held {
            network,
            relay,
            ends,
            cgroup,
            directory,
            kept,
        })
    }

    fn ends(&self, spawn: &Spawn, identity: u32) -> Result<Ends, SpawnError> {
        let stdin = spawn.stdin.as_ref().map(|content| sealed_file(content)).transpose();
        let stdin = stdin.map_err(failed("stdin"))?;
        let (stdout, stdout_theirs) = self.output_pipe(identity).map_err(failed("stdout"))?;
        let (stderr, stderr_theirs) = self.output_pipe(identity).map_err(failed("stderr"))?;
        let (notes, notes_theirs) = self.output_pipe(identity).map_err(failed("notes"))?;
        let (report, report_theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("pipe"))?;
        fcntl_setfl(&report, OFlags::NONBLOCK).map_err(failed("pipe"))?;
        Ok(Ends {
            stdin,
            ours: [stdout, stderr, notes],
            theirs: [stdout_theirs, stderr_theirs, notes_theirs],
            report,
            report_theirs,
        })
    }

    fn limits(&self, plan: &Plan) -> Vec<(Resource, Rlimit)> {
        let of_job = |(limit, value): &(ProcessLimit, u64)| {
            process_limit(*limit, value.saturating_add(self.others(*limit)), self.reserved(*limit))
        };
        plan.limits.iter().map(of_job).collect()
    }

    /// How much of what it may have this process does not let jobs have: descriptors on their way count by user.
    fn reserved(&self, limit: ProcessLimit) -> u64 {
        if limit == ProcessLimit::OpenFiles && !self.basis.identities.are_separate() {
            RESERVED_DESCRIPTORS
        } else {
            0
        }
    }

    /// Whether jobs have no walls.
    #[must_use]
    pub const fn is_bare(&self) -> bool {
        self.basis.directories.is_some()
    }

    fn make_directory(&self, plan: &Plan, identity: u32) -> Result<Option<OwnedFd>, Errno> {
        match (&self.basis.directories, &plan.directory) {
            (Some(directories), Some(name)) => directories.make(name, self.basis.identities, identity).map(Some),
            _ => Ok(None),
        }
    }

    /// How much of a limit others may use up: processes count by uid, and this one's may have any of those that run.
    fn others(&self, limit: ProcessLimit) -> u64 {
        let is_shared = self.is_bare() && !self.basis.identities.are_separate();
        if is_shared && limit == ProcessLimit::Processes {
            syscall::process_count().unwrap_or(u64::MAX)
        } else {
            0
        }
    }

    fn take_network(&mut self, plan: &Plan) -> Result<Option<Network>, SpawnError> {
        let planned = self.planned_use(plan);
        match &mut self.basis.network {
            Some(pool) if plan.network != NetworkKind::Host => {
                pool.take(planned).map(Some).map_err(failed("network namespace"))
            }
            _ => Ok(None),
        }
    }

    /// What becomes of the job's network namespace: without a filter it could do in it what it liked.
    fn planned_use(&self, plan: &Plan) -> Use {
        if self.seccomp.is_some() && plan.network == NetworkKind::None {
            Use::Again
        } else {
            Use::Once
        }
    }

    /// Takes back the network namespace of a job of which nothing runs any more.
    pub fn take_back(&mut self, network: Network) {
        if let Some(pool) = &mut self.basis.network {
            pool.give_back(network);
        }
    }

    /// Starts to listen for the job where it may reach anything.
    fn relay(&self, plan: &Plan, network: Option<&Network>) -> Result<Option<Relay>, Errno> {
        let filter = self.seccomp.as_ref().map(|filters| filters.of(plan.network));
        match network {
            _ if plan.connect.is_empty() || self.is_bare() => Ok(None),
            // Without a network of its own it would reach everything.
            None => Err(Errno::OPNOTSUPP),
            Some(network) => Relay::start(network.namespace(), &plan.connect, filter).map(Some),
        }
    }

    /// A pipe whose first end is ours; the job owns it, so that it can open /dev/stdout.
    fn output_pipe(&self, identity: u32) -> Result<(OwnedFd, OwnedFd), Errno> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&ours, OFlags::NONBLOCK)?;
        if self.basis.identities.are_separate() {
            fchown(&theirs, Some(Uid::from_raw(identity)), Some(Gid::from_raw(identity)))?;
        }
        Ok((ours, theirs))
    }
}

/// A memory file with the content, which nobody can change.
fn sealed_file(content: &[u8]) -> Result<OwnedFd, Errno> {
    let file = memfd_create(c"stdin", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = content;
    while !rest.is_empty() {
        rest = &rest[write(&file, rest)?..];
    }
    seek(&file, SeekFrom::Start(0))?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(file)
}

fn scratch_parameters(plan: &Plan, identity: u32) -> [(&'static str, String); 5] {
    [
        ("size", plan.scratch_bytes.to_string()),
        ("nr_inodes", plan.scratch_inodes.to_string()),
        ("mode", "0700".into()),
        ("uid", identity.to_string()),
        ("gid", identity.to_string()),
    ]
}

fn scratch_options(plan: &Plan, identity: u32) -> CString {
    let options = scratch_parameters(plan, identity).map(|(name, value)| format!("{name}={value}"));
    CString::new(options.join(",")).unwrap_or_default()
}

fn secrets<'a>(spawn: &'a Spawn, planned: &'a PlannedSecrets, identity: u32) -> Secrets<'a> {
    let values = spawn.secrets.values().map(Secret::value);
    Secrets {
        options: secrets_options(planned, identity),
        files: planned.names.iter().map(CString::as_c_str).zip(values).collect(),
    }
}

/// Mount options of the memory file system of a job's secrets.
fn secrets_options(planned: &PlannedSecrets, identity: u32) -> CString {
    let (bytes, inodes) = (planned.bytes, planned.names.len() + 1);
    let options = format!("size={bytes},nr_inodes={inodes},mode=0700,uid={identity},gid={identity}");
    CString::new(options).unwrap_or_default()
}

/// The memory file system, which outlives the job for as long as somebody holds this; the child mounts it.
fn made_scratch(plan: &Plan, identity: u32) -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in scratch_parameters(plan, identity) {
        fsconfig_set_string(context.as_fd(), name, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Seconds after SIGXCPU in which a process that has a handler for it can end by itself.
const CPU_GRACE_S: u64 = 1;

/// The limit as the kernel takes it; never above what the launcher itself is bound to.
fn process_limit(limit: ProcessLimit, value: u64, reserved: u64) -> (Resource, Rlimit) {
    let resource = match limit {
        ProcessLimit::AddressSpace => Resource::As,
        ProcessLimit::Processes => Resource::Nproc,
        ProcessLimit::OpenFiles => Resource::Nofile,
        ProcessLimit::FileSize => Resource::Fsize,
        ProcessLimit::Cpu => Resource::Cpu,
        ProcessLimit::Core => Resource::Core,
    };
    let most = getrlimit(resource).maximum;
    let bound = |value: u64| Some(most.map_or(value, |most| most.saturating_sub(reserved).min(value)));
    // At the second of the two the kernel kills without a word, so that the first is not seen where they are equal.
    let maximum = if limit == ProcessLimit::Cpu {
        value.saturating_add(CPU_GRACE_S)
    } else {
        value
    };
    let (current, maximum) = (bound(value), bound(maximum));
    (resource, Rlimit { current, maximum })
}
