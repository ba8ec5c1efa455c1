//! The file tree that jobs see, built once in the launcher's mount namespace; each job gets a copy of the namespace and
//! adds /proc and its own memory file system.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use crate::plan::{INPUTS_DIRECTORY, JOB_ID, SECRETS_DIRECTORY};
use crate::root::Roots;
use crate::syscall;

/// Shown as they are on the host, where they are there: directories and files read-only, links as links.
const SYSTEM_PATHS: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/run/current-system",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
    "/etc/fonts",
    "/etc/localtime",
    "/etc/os-release",
];
/// The same, of `/etc`, whatever follows: where Java's security is configured.
const SYSTEM_PREFIXES: &[&str] = &["java-"];
/// Small files that are copied: they are the same for every job and need no mount.
const COPIED_FILES: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
    "/etc/debian_version",
];
const HOST_NETWORK_FILES: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];
const MAX_COPIED_BYTES: u64 = 4 << 20;
const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/var/tmp", "/tmp"),
    ("/var/run", "/run"),
    ("/etc/mtab", "/proc/self/mounts"),
];
const DIRECTORIES: &[&str] = &[
    "/dev/shm",
    "/etc",
    "/home",
    "/proc",
    "/root",
    "/run",
    SECRETS_DIRECTORY,
    "/tmp",
    "/var",
    "/work",
    "/.job",
];
/// Any directory that every host has: the tree is put together on it, out of everyone else's sight.
const STAGE: &str = "/tmp";

/// The worker's directory of inputs, found while this process still has the worker's uid: others cannot get there.
pub struct Inputs(OwnedFd);

impl Inputs {
    /// Takes hold of the directory, read-only.
    ///
    /// # Errors
    /// Names the path, and why it cannot be shown.
    pub fn find(path: &str) -> io::Result<Self> {
        find_tree(path).map(Self)
    }
}

/// Builds the view of a process that has just entered its own user and mount namespace, and moves it there: nothing
/// else of the host's files can be named from then on.
///
/// # Errors
/// Names the path that could not be shown, and why.
pub fn enter(read_only_paths: &[String], inputs: Option<Inputs>, roots: Roots, host_network: bool) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(at("make private", "/"))?;
    let mut plan = ViewPlan::default();
    if let Some(Inputs(tree)) = inputs {
        plan.mounts.push((PathBuf::from(INPUTS_DIRECTORY), true, tree));
    }
    plan.has_roots = !roots.trees.is_empty();
    for (path, tree) in roots.trees {
        plan.mounts.push((PathBuf::from(path), true, tree));
    }
    for path in SYSTEM_PATHS
        .iter()
        .copied()
        .chain(read_only_paths.iter().map(String::as_str))
    {
        plan.show(Path::new(path))
            .map_err(|error| named("show", path, &error))?;
    }
    for entry in fs::read_dir("/etc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        if SYSTEM_PREFIXES
            .iter()
            .any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
        {
            plan.show(&entry.path())?;
        }
    }
    for path in COPIED_FILES
        .iter()
        .chain(HOST_NETWORK_FILES.iter().filter(|_| host_network))
    {
        plan.copy(Path::new(path));
    }
    plan.bind_devices_and_proc()?;
    plan.build(host_network)
}

fn named(what: &str, path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {path} in the jobs' view: {error}"))
}

fn at(what: &'static str, path: &'static str) -> impl Fn(rustix::io::Errno) -> io::Error {
    move |errno| named(what, path, &errno.into())
}

#[derive(Default)]
struct ViewPlan {
    seen: BTreeSet<PathBuf>,
    links: Vec<(PathBuf, PathBuf)>,
    mounts: Vec<(PathBuf, bool, OwnedFd)>,
    copies: Vec<(PathBuf, Vec<u8>)>,
    has_roots: bool,
}

impl ViewPlan {
    /// Shows `path`; what does not exist is left out, what is below something shown is there already.
    fn show(&mut self, path: &Path) -> io::Result<()> {
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path"));
        }
        if path.ancestors().any(|ancestor| self.seen.contains(ancestor)) {
            return Ok(());
        }
        let Ok(metadata) = fs::symlink_metadata(path) else {
            return Ok(());
        };
        if metadata.is_symlink() {
            self.links.push((path.to_owned(), fs::read_link(path)?));
        } else {
            self.mounts
                .push((path.to_owned(), metadata.is_dir(), read_only_tree(path)?));
        }
        self.seen.insert(path.to_owned());
        Ok(())
    }

    fn copy(&mut self, path: &Path) {
        let small = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_COPIED_BYTES);
        if small && let Ok(content) = fs::read(path) {
            self.copies.push((path.to_owned(), content));
        }
    }

    fn bind_devices_and_proc(&mut self) -> io::Result<()> {
        for path in DEVICES {
            if Path::new(path).exists() {
                let tree = clone_tree(Path::new(path)).map_err(|error| named("show", path, &error))?;
                self.mounts.push((PathBuf::from(path), false, tree));
            }
        }
        // The kernel lets a user namespace mount its own /proc only where it can see a whole one; each job's own
        // covers this one before anything of the job runs.
        let tree = clone_tree(Path::new("/proc")).map_err(|error| named("show", "/proc", &error))?;
        self.mounts.push((PathBuf::from("/proc"), true, tree));
        Ok(())
    }

    fn build(self, host_network: bool) -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(c"view", STAGE, c"tmpfs", flags, Some(c"size=32m,mode=0755"))
            .map_err(at("mount a file system for", "/"))?;
        for path in DIRECTORIES {
            fs::create_dir_all(on_stage(Path::new(path)))?;
        }
        for (path, content) in synthetic_files(host_network).into_iter().chain(self.copies) {
            let path = on_stage(&path);
            fs::create_dir_all(path.parent().unwrap_or(Path::new(STAGE)))?;
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        let fixed = LINKS
            .iter()
            .map(|(path, target)| (PathBuf::from(path), PathBuf::from(target)));
        for (path, target) in self.links.into_iter().chain(fixed) {
            let path = on_stage(&path);
            fs::create_dir_all(path.parent().unwrap_or(Path::new(STAGE)))?;
            symlink(target, path)?;
        }
        if self.has_roots {
            // A mount of its own, so that a job lets go of all of them at once.
            let roots = on_stage(Path::new("/.roots"));
            fs::create_dir_all(&roots)?;
            mount(c"roots", &roots, c"tmpfs", flags, Some(c"size=1m,mode=0755"))
                .map_err(at("mount a file system for", "/.roots"))?;
        }
        for (path, is_directory, tree) in self.mounts {
            attach(&tree, &path, is_directory).map_err(|error| named("mount", &path.to_string_lossy(), &error))?;
        }
        move_in()
    }
}

fn on_stage(path: &Path) -> PathBuf {
    Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path))
}

fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// Takes hold of a directory of the host's, read-only.
///
/// # Errors
/// Names the path, and why it cannot be shown.
pub fn find_tree(path: &str) -> io::Result<OwnedFd> {
    read_only_tree(Path::new(path)).map_err(|error| named("show", path, &error))
}

fn read_only_tree(path: &Path) -> io::Result<OwnedFd> {
    let tree = clone_tree(path)?;
    let restrict =
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    syscall::set_mount_attributes(tree.as_fd(), c"", u64::from(restrict.bits()), true)?;
    Ok(tree)
}

fn attach(tree: &OwnedFd, path: &Path, is_directory: bool) -> io::Result<()> {
    let target = on_stage(path);
    if is_directory {
        fs::create_dir_all(&target)?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(Path::new(STAGE)))?;
        fs::write(&target, "")?;
    }
    let target = CString::new(target.as_os_str().as_bytes())?;
    move_mount(
        tree,
        c"",
        CWD,
        target.as_c_str(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Makes the stage the root, read-only, and forgets the old one.
fn move_in() -> io::Result<()> {
    chdir(STAGE)?;
    pivot_root(".", ".").map_err(at("pivot to", "/"))?;
    unmount(".", UnmountFlags::DETACH).map_err(at("detach the host's", "/"))?;
    chdir("/")?;
    let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    syscall::set_mount_attributes(CWD, c"/", read_only, false).map_err(at("make read-only", "/"))
}

fn synthetic_files(host_network: bool) -> Vec<(PathBuf, Vec<u8>)> {
    let passwd = format!(
        "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n\
         job:x:{JOB_ID}:{JOB_ID}:job:/work:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    );
    let group = format!("root:x:0:\njob:x:{JOB_ID}:\nnogroup:x:65534:\n");
    let mut files = vec![
        ("/etc/passwd", passwd),
        ("/etc/group", group),
        ("/etc/hostname", "job\n".into()),
    ];
    if !host_network {
        files.push(("/etc/hosts", "127.0.0.1 localhost job\n::1 localhost\n".into()));
        files.push((
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\n".into(),
        ));
    }
    files
        .into_iter()
        .map(|(path, content)| (PathBuf::from(path), content.into_bytes()))
        .collect()
}
