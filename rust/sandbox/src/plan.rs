//! From a job's wishes and what the host has to what will be done; pure, so that every refusal can be tested.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::net::SocketAddr;

use crate::cgroup::Controllers;
use crate::protocol::{Level, Limits, NetworkKind, Reason, Spawn};
use crate::relay::MAX_TARGETS;

/// Where the job's own directory is, in its view.
pub const WORK_DIRECTORY: &str = "/work";
/// Where the directory of inputs is in the launcher's view; jobs do not see it.
pub const INPUTS_DIRECTORY: &str = "/.inputs";
/// Where a script given as text is, in the job's view.
pub const SCRIPT_PATH: &str = "/.job/script";
/// Where a job finds its secrets, in its view.
pub const SECRETS_DIRECTORY: &str = "/run/secrets";
/// The uid and gid a job has in its own user namespace.
pub const JOB_ID: u32 = 1000;
/// The descriptor through which a job tells of itself: where lines are written to.
pub const NOTES_FD: u32 = 3;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin";
const MAX_PATH_BYTES: usize = 1024;
const MAX_NAME_BYTES: usize = 255;
/// What one file system object in the job's memory file system is taken to cost, for its limit of inodes.
const BYTES_PER_INODE: u64 = 4096;
/// What a job's secrets may come to: they are looked for in all that it writes.
const MAX_SECRETS: usize = 64;
const MAX_SECRET_BYTES: usize = 128 << 10;
const PAGE_BYTES: u64 = 4096;
/// Kernel's own limit of one argument or environment string (`MAX_ARG_STRLEN`).
const MAX_STRING_BYTES: usize = 128 << 10;

/// What the launcher may use for its jobs on this host.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a thing that a host has or has not"
)]
#[derive(Clone, Debug)]
pub struct Means {
    /// Isolation of a job that asks for nothing weaker. At `none` there are no walls.
    pub level: Level,
    /// Weakest isolation that the operator accepts.
    pub accepted: Level,
    /// Whether the operator lets jobs use the host's network.
    pub allow_host_network: bool,
    /// What a cgroup bounds; none where resource limits of each process bound memory and processes instead.
    pub cgroup: Option<Controllers>,
    /// Whether the worker has named a directory of inputs.
    pub has_inputs: bool,
    /// Where jobs have their directories, at level `none`.
    pub directories: Option<String>,
    /// Names of the root images of the operator's.
    pub roots: BTreeSet<String>,
    /// Whether the worker has a directory of unpacked images.
    pub has_root_cache: bool,
    /// Whether the kernel can lay a memory file system over an image.
    pub has_layers: bool,
}

/// Why a job is not started.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The job model's name of it.
    pub reason: Reason,
    /// In words.
    pub message: String,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal {
        reason: Reason::InvalidPayload,
        message: message.into(),
    }
}

/// A place in the job's directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Directories on the way, outermost first.
    pub directories: Vec<CString>,
    /// Name in the innermost directory.
    pub name: CString,
}

/// A file to be put into the job's directory.
#[derive(Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Where.
    pub place: Place,
    /// Key in `Spawn::files`.
    pub key: String,
}

/// A file or directory to be shown in the job's directory, read-only.
#[derive(Debug, PartialEq, Eq)]
pub struct PlannedInput {
    /// Where.
    pub place: Place,
    /// Name in the directory of inputs.
    pub entry: CString,
    /// The same, as the launcher sees it.
    pub source: CString,
}

/// The memory file system of a job's secrets.
#[derive(Debug, PartialEq, Eq)]
pub struct PlannedSecrets {
    /// Names in it, which are the keys of `Spawn::secrets` in their order.
    pub names: Vec<CString>,
    /// Its size.
    pub bytes: u64,
}

/// A limit of the kernel for each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessLimit {
    AddressSpace,
    Processes,
    OpenFiles,
    FileSize,
    Cpu,
    Core,
}

/// Everything that is done to start one job, as data.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Isolation that the job will have.
    pub level: Level,
    /// What network it has.
    pub network: NetworkKind,
    /// Addresses and ports that it may reach, by TCP.
    pub connect: Vec<SocketAddr>,
    /// Arguments, program name first.
    pub argv: Vec<CString>,
    /// `NAME=value`.
    pub environment: Vec<CString>,
    /// Programs to try to execute, in order.
    pub candidates: Vec<CString>,
    /// Absolute, in the job's view.
    pub working_directory: CString,
    /// Files of the job.
    pub files: Vec<PlannedFile>,
    /// What it is shown besides.
    pub inputs: Vec<PlannedInput>,
    /// Size of the memory file system.
    pub scratch_bytes: u64,
    /// Objects in it.
    pub scratch_inodes: u64,
    /// Limits of each process.
    pub limits: Vec<(ProcessLimit, u64)>,
    /// The job's secrets, if it has any.
    pub secrets: Option<PlannedSecrets>,
    /// Limits of the job's cgroup; all empty where there is none.
    pub cgroup: CgroupLimits,
    /// Name of its directory among those of others, at level `none`.
    pub directory: Option<CString>,
    /// Its root image.
    pub root: Option<PlannedRoot>,
}

/// The image that a job has as its root.
#[derive(Debug, PartialEq, Eq)]
pub struct PlannedRoot {
    /// In the launcher's view.
    pub source: CString,
    /// Whether a layer of the job's own lies over it.
    pub is_writable: bool,
    /// Mount options of that.
    pub options: CString,
}

/// What is written into a job's cgroup; what is not given stays as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Memory of all its processes and its file system together.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Thousandths of a core.
    pub cpu_milli: Option<u64>,
    /// Share of the processor against other jobs.
    pub cpu_weight: Option<u64>,
    /// Share of disks against other jobs.
    pub io_weight: Option<u64>,
}

/// Where a job finds what is its own.
struct Places {
    work: String,
    tmp: String,
    script: String,
    secrets: String,
}

impl Places {
    fn of(spawn: &Spawn, means: &Means) -> Result<(Self, Option<CString>), Refusal> {
        if means.level > Level::None {
            let places = Self {
                work: WORK_DIRECTORY.into(),
                tmp: "/tmp".into(),
                script: SCRIPT_PATH.into(),
                secrets: SECRETS_DIRECTORY.into(),
            };
            return Ok((places, None));
        }
        let name = match spawn.directory.as_deref() {
            Some(name) if name.contains('/') || matches!(name, "" | "." | "..") => {
                return Err(invalid(format!("directory: {name:?} is no name of one")));
            }
            name => name,
        };
        let top = format!(
            "{}/{}",
            means.directories.as_deref().unwrap_or_default(),
            name.unwrap_or_default()
        );
        let places = Self {
            work: format!("{top}/work"),
            tmp: format!("{top}/tmp"),
            script: format!("{top}/script"),
            secrets: format!("{top}/secrets"),
        };
        let directory = name.map(|name| c_string("directory", name.to_owned())).transpose()?;
        Ok((places, directory))
    }
}

/// Decides how `spawn` is run.
///
/// # Errors
/// [`Refusal`] when it cannot be run as asked.
pub fn plan(spawn: &Spawn, means: &Means) -> Result<Plan, Refusal> {
    let level = level_of(spawn, means)?;
    let (places, directory) = Places::of(spawn, means)?;
    let (argv, candidates) = command(spawn, &places)?;
    let scratch_bytes = spawn.limits.tmp_bytes;
    Ok(Plan {
        level,
        network: spawn.network,
        connect: connect(spawn)?,
        argv,
        environment: environment(spawn, &places)?,
        candidates,
        working_directory: working_directory(spawn.cwd.as_deref(), &places)?,
        files: spawn
            .files
            .keys()
            .map(|path| planned_file(path))
            .collect::<Result<_, _>>()?,
        inputs: inputs(spawn, means)?,
        scratch_bytes,
        scratch_inodes: (scratch_bytes / BYTES_PER_INODE).max(256),
        limits: process_limits(&spawn.limits, means),
        secrets: secrets(spawn)?,
        cgroup: cgroup_limits(&spawn.limits, means.cgroup)?,
        directory,
        root: root(spawn, means)?,
    })
}

/// A maximum that cannot be kept refuses the job; a share is one of what is there, and without a cgroup all are equal.
fn cgroup_limits(limits: &Limits, controllers: Option<Controllers>) -> Result<CgroupLimits, Refusal> {
    let shares = controllers.unwrap_or_default();
    if limits.cpu_milli.is_some() && !shares.cpu {
        return Err(Refusal {
            reason: Reason::SandboxUnavailable,
            message: "limits.cpu_milli: this worker has no cgroup with the controller cpu".into(),
        });
    }
    Ok(CgroupLimits {
        memory_bytes: limits.memory_bytes.filter(|_| controllers.is_some()),
        pids: limits.pids.filter(|_| controllers.is_some()),
        cpu_milli: limits.cpu_milli,
        cpu_weight: limits.cpu_weight.filter(|_| shares.cpu),
        io_weight: limits.io_weight.filter(|_| shares.io),
    })
}

fn level_of(spawn: &Spawn, means: &Means) -> Result<Level, Refusal> {
    if means.level == Level::None {
        // Asked for by name; every job has the host's network then, whatever it asks for.
        return Ok(Level::None);
    }
    let refuse = |message: String| {
        Err(Refusal {
            reason: Reason::SandboxUnavailable,
            message,
        })
    };
    let is_host = spawn.network == NetworkKind::Host;
    if is_host && !means.allow_host_network {
        return refuse("network `host`: the operator of this worker does not allow it".into());
    }
    let level = if is_host {
        means.level.min(Level::Standard)
    } else {
        means.level
    };
    // Allowing the host's network by name is the operator's word for the weaker level of exactly these jobs.
    if means.level < means.accepted {
        return refuse(format!(
            "this host offers level {}, the operator asks for {}",
            level.name(),
            means.accepted.name()
        ));
    }
    Ok(level)
}

fn connect(spawn: &Spawn) -> Result<Vec<SocketAddr>, Refusal> {
    if (spawn.network == NetworkKind::Listed) == spawn.connect.is_empty() {
        return Err(invalid(
            "connect: there are addresses exactly where the network is `listed`",
        ));
    }
    if spawn.connect.len() > MAX_TARGETS {
        let count = spawn.connect.len();
        return Err(invalid(format!("connect: {count} addresses, at most {MAX_TARGETS}")));
    }
    let mut targets: Vec<SocketAddr> = Vec::new();
    for text in &spawn.connect {
        let refuse = |what: &str| invalid(format!("connect: {text:?} {what}"));
        let target: SocketAddr = text.parse().map_err(|_| refuse("is no address and port"))?;
        if target.port() == 0 || target.ip().is_unspecified() || target.ip().is_multicast() {
            return Err(refuse("is no address of one service"));
        }
        if targets.contains(&target) {
            return Err(refuse("is there twice"));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn c_string(what: &str, text: String) -> Result<CString, Refusal> {
    CString::new(text).map_err(|_| invalid(format!("{what}: contains a NUL byte")))
}

fn command(spawn: &Spawn, places: &Places) -> Result<(Vec<CString>, Vec<CString>), Refusal> {
    let argv: Vec<String> = match (&spawn.script, spawn.argv.as_slice()) {
        (Some(_), []) => vec!["/bin/sh".into(), places.script.clone()],
        (None, [_, ..]) => spawn.argv.clone(),
        _ => return Err(invalid("exactly one of `argv` and `script` is needed")),
    };
    let program = argv[0].clone();
    if program.is_empty() {
        return Err(invalid("argv[0]: is empty"));
    }
    if let Some(index) = argv.iter().position(|argument| argument.len() >= MAX_STRING_BYTES) {
        return Err(invalid(format!(
            "argv[{index}]: longer than the kernel's {MAX_STRING_BYTES} bytes"
        )));
    }
    let candidates = if program.contains('/') {
        vec![c_string("argv[0]", program)?]
    } else {
        let path = spawn.env.get("PATH").map_or(PATH, String::as_str);
        let directories = path
            .split(':')
            .map(|directory| if directory.is_empty() { "." } else { directory });
        directories
            .map(|directory| c_string("PATH", format!("{directory}/{program}")))
            .collect::<Result<_, _>>()?
    };
    let argv = argv.into_iter().enumerate();
    let argv = argv.map(|(index, argument)| c_string(&format!("argv[{index}]"), argument));
    Ok((argv.collect::<Result<_, _>>()?, candidates))
}

fn environment(spawn: &Spawn, places: &Places) -> Result<Vec<CString>, Refusal> {
    let (attempt, notes_fd) = (spawn.attempt.to_string(), NOTES_FD.to_string());
    let mut environment: BTreeMap<&str, &str> = BTreeMap::from([
        ("PATH", PATH),
        ("HOME", places.work.as_str()),
        ("PWD", places.work.as_str()),
        ("LANG", "C.UTF-8"),
        ("TMPDIR", places.tmp.as_str()),
        ("USER", "job"),
        ("LOGNAME", "job"),
        ("JOBS_ID", spawn.job.as_str()),
        ("JOBS_ATTEMPT", attempt.as_str()),
        ("JOBS_FD", notes_fd.as_str()),
    ]);
    if !spawn.secrets.is_empty() {
        environment.insert("JOBS_SECRETS", &places.secrets);
    }
    for (name, value) in &spawn.env {
        if name.is_empty() || name.contains('=') {
            return Err(invalid(format!("env: {name:?} is no name of a variable")));
        }
        if name.len() + value.len() + 2 > MAX_STRING_BYTES {
            return Err(invalid(format!(
                "env.{name}: longer than the kernel's {MAX_STRING_BYTES} bytes"
            )));
        }
        environment.insert(name, value);
    }
    environment
        .into_iter()
        .map(|(name, value)| c_string("env", format!("{name}={value}")))
        .collect()
}

fn working_directory(cwd: Option<&str>, places: &Places) -> Result<CString, Refusal> {
    let path = match cwd {
        None => places.work.clone(),
        Some(cwd) if cwd.starts_with('/') => cwd.to_owned(),
        Some(cwd) => format!("{}/{cwd}", places.work),
    };
    if path.len() > MAX_PATH_BYTES {
        return Err(invalid(format!("cwd: longer than {MAX_PATH_BYTES} bytes")));
    }
    c_string("cwd", path)
}

fn planned_file(path: &str) -> Result<PlannedFile, Refusal> {
    let (place, key) = (place(path)?, path.to_owned());
    Ok(PlannedFile { place, key })
}

fn inputs(spawn: &Spawn, means: &Means) -> Result<Vec<PlannedInput>, Refusal> {
    if !means.has_inputs && !spawn.inputs.is_empty() {
        return Err(invalid("inputs: this worker has no directory of them"));
    }
    let input = |(path, entry): (&String, &String)| {
        if matches!(entry.as_str(), "" | "." | "..") || entry.contains('/') {
            return Err(invalid(format!("inputs: {entry:?} is no entry of a directory")));
        }
        let what = format!("inputs: {path:?}");
        Ok(PlannedInput {
            place: place(path)?,
            entry: c_string(&what, entry.clone())?,
            source: c_string(&what, format!("{INPUTS_DIRECTORY}/{entry}"))?,
        })
    };
    spawn.inputs.iter().map(input).collect()
}

fn secrets(spawn: &Spawn) -> Result<Option<PlannedSecrets>, Refusal> {
    if spawn.secrets.is_empty() {
        return Ok(None);
    }
    let sizes = || spawn.secrets.values().map(|secret| secret.value().len());
    if spawn.secrets.len() > MAX_SECRETS || sizes().sum::<usize>() > MAX_SECRET_BYTES {
        return Err(invalid(format!(
            "secrets: {} with {} bytes, at most {MAX_SECRETS} with {MAX_SECRET_BYTES}",
            spawn.secrets.len(),
            sizes().sum::<usize>()
        )));
    }
    let name = |name: &String| {
        if matches!(name.as_str(), "" | "." | "..") || name.contains('/') || name.len() > MAX_NAME_BYTES {
            return Err(invalid(format!("secrets: {name:?} is no name of a file")));
        }
        c_string("secrets", name.clone())
    };
    Ok(Some(PlannedSecrets {
        names: spawn.secrets.keys().map(name).collect::<Result<_, _>>()?,
        // Each file begins a page.
        bytes: sizes()
            .map(|size| (size as u64).next_multiple_of(PAGE_BYTES))
            .sum::<u64>()
            + PAGE_BYTES,
    }))
}

fn root(spawn: &Spawn, means: &Means) -> Result<Option<PlannedRoot>, Refusal> {
    let Some(wanted) = &spawn.root else {
        return Ok(None);
    };
    let refuse = |message: String| Refusal {
        reason: Reason::SandboxUnavailable,
        message,
    };
    if means.level == Level::None {
        return Err(refuse("root: at level none a job has the host's".into()));
    }
    let path = match wanted.split_once('/') {
        Some(("named", name)) if means.roots.contains(name) => format!("/.roots/named/{name}"),
        Some(("named", name)) => {
            return Err(refuse(format!("root: the operator of this worker names none {name:?}")));
        }
        Some(("cache", entry))
            if means.has_root_cache
                && !matches!(entry, "" | "." | "..")
                && entry.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.') =>
        {
            format!("/.roots/cache/{entry}/tree")
        }
        _ => return Err(invalid(format!("root: {wanted:?} is none"))),
    };
    let layers = "upperdir=/.job/root/upper,workdir=/.job/root/work,userxattr";
    Ok(Some(PlannedRoot {
        options: c_string("root", format!("lowerdir={path},{layers}"))?,
        source: c_string("root", path)?,
        is_writable: means.has_layers,
    }))
}

fn place(path: &str) -> Result<Place, Refusal> {
    let refuse = |what: &str| Err(invalid(format!("files: {path:?} {what}")));
    if path.len() > MAX_PATH_BYTES {
        return refuse("is too long");
    }
    if path.starts_with('/') {
        return refuse("is not relative to the job's directory");
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        if matches!(part, "" | "." | "..") {
            return refuse("is not a plain path: it has an empty part, `.` or `..`");
        }
        if part.len() > MAX_NAME_BYTES {
            return refuse("has a part that is too long");
        }
        parts.push(c_string(&format!("files: {path:?}"), part.to_owned())?);
    }
    let name = parts.pop().unwrap_or_default();
    Ok(Place {
        directories: parts,
        name,
    })
}

fn process_limits(limits: &Limits, means: &Means) -> Vec<(ProcessLimit, u64)> {
    let memory = limits.memory_bytes.filter(|_| means.cgroup.is_none());
    // One more than asked: the namespace's first process counts, and is ours. Without one it is not the job's user's.
    let first = u64::from(means.level > Level::None);
    // The kernel looks at this limit first, and only the cgroup tells afterwards that it was reached. It also counts a
    // process here before it is one: with every process of a full cgroup about to fork there are twice as many.
    let counted = if means.cgroup.is_some() { 2 } else { 1 };
    let pids = limits
        .pids
        .map(|pids| pids.saturating_add(first).saturating_mul(counted));
    [
        (ProcessLimit::AddressSpace, memory),
        (ProcessLimit::Processes, pids),
        (ProcessLimit::OpenFiles, Some(limits.open_files)),
        (ProcessLimit::FileSize, limits.file_bytes),
        (ProcessLimit::Cpu, limits.cpu_s),
        // 0 would not keep a core from a program that the host's core_pattern pipes it to, run there as root; 1 does.
        (ProcessLimit::Core, Some(1)),
    ]
    .into_iter()
    .filter_map(|(limit, value)| Some((limit, value?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Secret;

    const MEANS: Means = Means {
        level: Level::Strict,
        accepted: Level::Strict,
        allow_host_network: false,
        cgroup: None,
        has_inputs: true,
        directories: None,
        roots: BTreeSet::new(),
        has_root_cache: true,
        has_layers: true,
    };

    fn spawn() -> Spawn {
        Spawn {
            job: "01".into(),
            attempt: 1,
            argv: vec!["echo".into(), "hello".into()],
            script: None,
            env: BTreeMap::new(),
            cwd: None,
            stdin: None,
            files: BTreeMap::new(),
            inputs: BTreeMap::new(),
            keep: false,
            network: NetworkKind::None,
            connect: Vec::new(),
            timeout_s: None,
            heartbeat_s: None,
            grace_s: 5.0,
            limits: Limits {
                memory_bytes: Some(1 << 30),
                pids: Some(10),
                open_files: 64,
                file_bytes: None,
                tmp_bytes: 1 << 20,
                output_bytes: 1 << 20,
                cpu_s: None,
                cpu_milli: None,
                cpu_weight: None,
                io_weight: None,
            },
            secrets: BTreeMap::new(),
            directory: None,
            fail_on_output_limit: false,
            root: None,
        }
    }

    fn reason(spawn: &Spawn, means: &Means) -> Reason {
        plan(spawn, means).unwrap_err().reason
    }

    #[test]
    fn what_a_job_may_reach_is_named_one_by_one() {
        let asks = |addresses: &[&str]| {
            let mut job = spawn();
            job.network = NetworkKind::Listed;
            job.connect = addresses.iter().map(|text| (*text).to_owned()).collect();
            plan(&job, &MEANS)
        };
        let planned = asks(&["192.0.2.7:443", "[2001:db8::1]:80", "127.0.0.1:5432"]).unwrap();
        assert_eq!(planned.connect.len(), 3);
        assert_eq!(planned.level, Level::Strict);
        for wrong in [
            "192.0.2.7",
            "192.0.2.7:0",
            "0.0.0.0:80",
            "224.0.0.1:80",
            "example.org:80",
            "",
            "[::]:1",
        ] {
            assert_eq!(asks(&[wrong]).unwrap_err().reason, Reason::InvalidPayload, "{wrong}");
        }
        assert!(asks(&["192.0.2.7:443", "192.0.2.7:443"]).is_err());
        assert!(asks(&[]).is_err());
    }

    #[test]
    fn a_plain_command_is_looked_up_in_the_path_of_the_job() {
        let mut job = spawn();
        job.env.insert("PATH".into(), "/a::/b".into());
        let plan = plan(&job, &MEANS).unwrap();
        assert_eq!(plan.candidates, [c"/a/echo", c"./echo", c"/b/echo"].map(CString::from));
        assert!(plan.environment.contains(&c"PATH=/a::/b".into()));
        assert!(plan.environment.contains(&c"JOBS_ID=01".into()));
        assert!(plan.environment.contains(&c"JOBS_FD=3".into()));
        assert_eq!(plan.level, Level::Strict);
    }

    #[test]
    fn names_that_could_lead_out_of_the_directory_are_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a//b", ".", "..", "", "a/", "a\0b"] {
            let mut job = spawn();
            job.files.insert(path.into(), serde_bytes::ByteBuf::new());
            assert_eq!(reason(&job, &MEANS), Reason::InvalidPayload, "{path:?}");
        }
        let mut job = spawn();
        job.files.insert("a/b/..c".into(), serde_bytes::ByteBuf::new());
        let planned = plan(&job, &MEANS).unwrap().files.remove(0);
        assert_eq!(
            (planned.place.directories, planned.place.name),
            (vec![c"a".into(), c"b".into()], c"..c".into())
        );
    }

    #[test]
    fn an_input_is_an_entry_of_its_directory_and_is_shown_below_the_jobs_own() {
        let mut job = spawn();
        job.inputs.insert("a/b".into(), "cafe".into());
        let planned = plan(&job, &MEANS).unwrap().inputs.remove(0);
        assert_eq!(planned.source, CString::from(c"/.inputs/cafe"));
        assert_eq!(
            (planned.place.directories, planned.place.name),
            (vec![c"a".into()], c"b".into())
        );
        let without = Means {
            has_inputs: false,
            ..MEANS
        };
        assert_eq!(reason(&job, &without), Reason::InvalidPayload);
        for (path, entry) in [
            ("a", ".."),
            ("a", ""),
            ("a", "x/y"),
            ("a", "x\0"),
            ("../a", "x"),
            ("/a", "x"),
        ] {
            let mut job = spawn();
            job.inputs.insert(path.into(), entry.into());
            assert_eq!(reason(&job, &MEANS), Reason::InvalidPayload, "{path:?} {entry:?}");
        }
    }

    #[test]
    fn secrets_are_files_of_one_directory_and_their_values_are_in_no_debug_text() {
        let secret = |value: &str| -> Secret {
            rmp_serde::from_slice(&rmp_serde::to_vec(serde_bytes::Bytes::new(value.as_bytes())).unwrap()).unwrap()
        };
        let mut job = spawn();
        assert_eq!(plan(&job, &MEANS).unwrap().secrets, None);
        assert!(
            !plan(&job, &MEANS)
                .unwrap()
                .environment
                .contains(&c"JOBS_SECRETS=/run/secrets".into())
        );
        job.secrets.insert("token".into(), secret("hunter2hunter2"));
        assert!(!format!("{job:?}").contains("hunter2"));
        let planned = plan(&job, &MEANS).unwrap();
        assert!(planned.environment.contains(&c"JOBS_SECRETS=/run/secrets".into()));
        assert_eq!(planned.secrets.unwrap().names, [CString::from(c"token")]);
        for wrong in ["", ".", "..", "a/b", "/a", "a\0"] {
            let mut job = spawn();
            job.secrets.insert(wrong.into(), secret("x"));
            assert_eq!(reason(&job, &MEANS), Reason::InvalidPayload, "{wrong:?}");
        }
        let mut job = spawn();
        job.secrets
            .insert("large".into(), secret(&"x".repeat(MAX_SECRET_BYTES + 1)));
        assert_eq!(reason(&job, &MEANS), Reason::InvalidPayload);
    }

    #[test]
    fn exactly_one_of_argv_and_script() {
        let mut job = spawn();
        job.script = Some("true".into());
        assert_eq!(reason(&job, &MEANS), Reason::InvalidPayload);
        job.argv.clear();
        assert_eq!(
            plan(&job, &MEANS).unwrap().argv,
            [c"/bin/sh", c"/.job/script"].map(CString::from)
        );
        job.script = None;
        assert_eq!(reason(&job, &MEANS), Reason::InvalidPayload);
    }

    #[test]
    fn weaker_isolation_than_accepted_is_refused_and_a_weaker_one_is_recorded() {
        let mut job = spawn();
        job.network = NetworkKind::Host;
        assert_eq!(reason(&job, &MEANS), Reason::SandboxUnavailable);
        let allowed = Means {
            allow_host_network: true,
            ..MEANS
        };
        assert_eq!(plan(&job, &allowed).unwrap().level, Level::Standard);
        assert_eq!(
            reason(
                &spawn(),
                &Means {
                    level: Level::Standard,
                    ..MEANS
                }
            ),
            Reason::SandboxUnavailable
        );
    }

    #[test]
    fn a_cgroup_bounds_memory_where_there_is_one_and_each_process_otherwise() {
        let without = plan(&spawn(), &MEANS).unwrap();
        assert!(without.limits.contains(&(ProcessLimit::AddressSpace, 1 << 30)));
        assert_eq!(without.cgroup, CgroupLimits::default());
        let with = plan(
            &spawn(),
            &Means {
                cgroup: Some(Controllers::default()),
                ..MEANS
            },
        )
        .unwrap();
        assert!(
            !with
                .limits
                .iter()
                .any(|(limit, _)| *limit == ProcessLimit::AddressSpace)
        );
        assert_eq!((with.cgroup.memory_bytes, with.cgroup.pids), (Some(1 << 30), Some(10)));
        assert!(without.limits.contains(&(ProcessLimit::Processes, 11)));
        // The cgroup's, of 11, is reached before it, though all of them fork at once.
        assert!(with.limits.contains(&(ProcessLimit::Processes, 22)));
    }

    #[test]
    fn a_maximum_of_processor_time_is_kept_or_the_job_refused_but_a_share_is_given_where_it_can_be() {
        let mut job = spawn();
        (job.limits.cpu_weight, job.limits.io_weight) = (Some(200), Some(50));
        let with = |cpu, io| Means {
            cgroup: Some(Controllers { cpu, io }),
            ..MEANS
        };
        let shares = |means: &Means| plan(&job, means).map(|plan| (plan.cgroup.cpu_weight, plan.cgroup.io_weight));
        assert_eq!(shares(&MEANS), Ok((None, None)));
        assert_eq!(shares(&with(true, false)), Ok((Some(200), None)));
        assert_eq!(shares(&with(true, true)), Ok((Some(200), Some(50))));
        job.limits.cpu_milli = Some(500);
        assert_eq!(reason(&job, &MEANS), Reason::SandboxUnavailable);
        assert_eq!(reason(&job, &with(false, true)), Reason::SandboxUnavailable);
        assert_eq!(plan(&job, &with(true, false)).unwrap().cgroup.cpu_milli, Some(500));
    }

    #[test]
    fn nul_bytes_and_names_with_equal_signs_are_refused() {
        let mut job = spawn();
        job.argv[1] = "a\0b".into();
        assert_eq!(reason(&job, &MEANS), Reason::InvalidPayload);
        for name in ["", "A=B", "A\0"] {
            let mut job = spawn();
            job.env.insert(name.into(), "x".into());
            assert_eq!(reason(&job, &MEANS), Reason::InvalidPayload, "{name:?}");
        }
    }

    #[test]
    fn a_root_is_one_that_the_operator_names_or_one_that_was_unpacked() {
        let mut means = MEANS;
        means.roots.insert("debian".into());
        let asks = |means: &Means, root: &str| {
            let mut job = spawn();
            job.root = Some(root.into());
            plan(&job, means).map(|plan| plan.root.unwrap())
        };
        let named = asks(&means, "named/debian").unwrap();
        assert_eq!(named.source, CString::from(c"/.roots/named/debian"));
        assert!(named.is_writable);
        assert_eq!(
            asks(&means, "cache/00ff.w").unwrap().source,
            CString::from(c"/.roots/cache/00ff.w/tree")
        );
        assert_eq!(
            asks(&means, "named/other").unwrap_err().reason,
            Reason::SandboxUnavailable
        );
        for wrong in [
            "",
            "debian",
            "named",
            "cache/",
            "cache/..",
            "cache/a/b",
            "cache/a,b",
            "cache/a:b",
            "x/y",
        ] {
            assert_eq!(
                asks(&means, wrong).unwrap_err().reason,
                Reason::InvalidPayload,
                "{wrong:?}"
            );
        }
        means.level = Level::None;
        assert_eq!(
            asks(&means, "named/debian").unwrap_err().reason,
            Reason::SandboxUnavailable
        );
    }

    #[test]
    fn without_walls_a_job_has_a_directory_of_the_host_s() {
        let means = Means {
            level: Level::None,
            accepted: Level::None,
            directories: Some("/var/jobs".into()),
            ..MEANS
        };
        let mut job = spawn();
        job.argv.clear();
        job.script = Some("true".into());
        job.directory = Some("17".into());
        job.network = NetworkKind::Host;
        let plan = plan(&job, &means).unwrap();
        assert_eq!((plan.level, plan.directory), (Level::None, Some(c"17".into())));
        assert_eq!(plan.argv, [c"/bin/sh", c"/var/jobs/17/script"].map(CString::from));
        assert_eq!(plan.working_directory, CString::from(c"/var/jobs/17/work"));
        assert!(plan.environment.contains(&c"TMPDIR=/var/jobs/17/tmp".into()));
        assert!(plan.limits.contains(&(ProcessLimit::Processes, 10)));
        for wrong in ["", ".", "..", "a/b", "a\0"] {
            job.directory = Some(wrong.into());
            assert_eq!(reason(&job, &means), Reason::InvalidPayload, "{wrong:?}");
        }
    }
}
