//! A root image in place of the host's programs: shown read-only, below a layer of the job's own where the kernel can.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdir, mkdirat, open, openat, unlinkat};
use rustix::io::{Errno, read, write};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind, move_mount, open_tree, unmount,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{chdir, fchdir, getegid, geteuid, pivot_root};

use crate::child::{During, Outcome, Step};
use crate::plan::PlannedRoot;
use crate::syscall;
use crate::view::find_tree;

/// Where a job's root is put together: any directory of the launcher's view of which it keeps nothing.
pub const NEW_ROOT: &CStr = c"/home";
/// Where the images are, in the launcher's view.
pub const ROOTS: &CStr = c"/.roots";
/// In the job's memory file system: what it writes over the image.
const LAYER: &CStr = c"/.job/root";
const UPPER: &CStr = c"/.job/root/upper";
const WORK: &CStr = c"/.job/root/work";
const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What a job keeps of the launcher's view, and where it is in an image.
const KEPT: &[(&CStr, &[&CStr])] = &[
    (c"/proc", &[c"proc"]),
    (c"/dev", &[c"dev"]),
    (c"/.job", &[c".job"]),
    (c"/work", &[c"work"]),
    (c"/tmp", &[c"tmp"]),
];
const SECRETS: (&CStr, &[&CStr]) = (c"/run/secrets", &[c"run", c"secrets"]);

/// Images of the worker's, found while this process still has the worker's uid.
#[derive(Default)]
pub struct Roots {
    /// Path in the launcher's view, and the tree.
    pub trees: Vec<(String, OwnedFd)>,
}

impl Roots {
    /// Takes hold of the directories that the operator names, and of the one in which unpacked images are.
    ///
    /// # Errors
    /// Names the path, and why it cannot be shown.
    pub fn find(named: &BTreeMap<String, String>, cache: Option<&str>) -> io::Result<Self> {
        let mut trees = Vec::new();
        for (name, path) in named {
            trees.push((format!("/.roots/named/{name}"), find_tree(path)?));
        }
        if let Some(path) = cache {
            trees.push(("/.roots/cache".into(), find_tree(path)?));
        }
        Ok(Self { trees })
    }
}

/// Makes the image the root of the job, with what is the job's own in it. Everything of the job's has been put in its
/// place in the launcher's view before.
pub fn enter(root: &PlannedRoot, has_secrets: bool) -> Outcome {
    if root.is_writable {
        layer(root).during(Step::Root)?;
    } else {
        mount_bind(root.source.as_c_str(), NEW_ROOT).during(Step::Root)?;
    }
    let new = open(NEW_ROOT, DIRECTORY, Mode::empty()).during(Step::Root)?;
    for (from, path) in KEPT.iter().chain(has_secrets.then_some(&SECRETS)) {
        keep(from, path, &new, root.is_writable).during(Step::RootPlaces)?;
    }
    fchdir(&new).during(Step::Root)?;
    pivot_root(c".", c".").during(Step::Root)?;
    unmount(c".", UnmountFlags::DETACH).during(Step::Root)?;
    chdir(c"/").during(Step::Root)
}

fn layer(root: &PlannedRoot) -> Result<(), Errno> {
    for path in [LAYER, UPPER, WORK] {
        mkdir(path, Mode::from_raw_mode(0o755))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(c"root", NEW_ROOT, c"overlay", flags, Some(root.options.as_c_str()))?;
    // What the layer is made of must not change behind its back: from here on nobody can get there.
    mount(
        c"cover",
        LAYER,
        c"tmpfs",
        flags | MountFlags::RDONLY,
        Some(c"size=4k,mode=0"),
    )
}

/// Mounts what is at `from` in the view at `path` in the image, without following any link.
fn keep(from: &CStr, path: &[&CStr], new: &OwnedFd, is_writable: bool) -> Result<(), Errno> {
    let mut place = openat(new, c".", DIRECTORY, Mode::empty())?;
    for name in path {
        place = match openat(&place, *name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if is_writable => {
                match unlinkat(&place, *name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
                mkdirat(&place, *name, Mode::from_raw_mode(0o755))?;
                openat(&place, *name, DIRECTORY, Mode::empty())?
            }
            opened => opened?,
        };
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, from, flags)?;
    let by_descriptors = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, c"", &place, c"", by_descriptors)
}

/// Whether the kernel lets a user namespace lay a memory file system over a directory: tried in one.
///
/// # Errors
/// What the kernel says, or `EPERM` where the try says nothing.
pub fn try_layers() -> Result<(), Errno> {
    let (answer, done) = pipe_with(PipeFlags::CLOEXEC)?;
    let maps = [
        (c"/proc/self/setgroups", "deny".to_owned()),
        (c"/proc/self/gid_map", format!("0 {} 1\n", getegid().as_raw())),
        (c"/proc/self/uid_map", format!("0 {} 1\n", geteuid().as_raw())),
    ];
    let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as u64;
    let (_, pidfd) = syscall::fork(flags, None, || {
        let lay = || {
            for (path, content) in &maps {
                write(
                    open(*path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?,
                    content.as_bytes(),
                )?;
            }
            mount(c"try", c"/tmp", c"tmpfs", MountFlags::empty(), None)?;
            for path in [c"/tmp/lower", c"/tmp/upper", c"/tmp/work", c"/tmp/root"] {
                mkdir(path, Mode::RWXU)?;
            }
            let options = c"lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr";
            mount(c"root", c"/tmp/root", c"overlay", MountFlags::empty(), Some(options))?;
            mkdir(c"/tmp/root/made", Mode::RWXU)
        };
        let errno = lay().err().map_or(0, Errno::raw_os_error);
        let _ = write(&done, &errno.to_le_bytes());
        syscall::exit_now(0)
    })?;
    drop(done);
    let mut errno = Errno::PERM.raw_os_error().to_le_bytes();
    read(&answer, &mut errno)?;
    syscall::reap(pidfd.as_fd())?;
    match i32::from_le_bytes(errno) {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}
