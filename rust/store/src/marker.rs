//! How the last run ended: a small synced file, written when a store is opened and when it is closed.
//!
//! Unsynced pages reach the disk in any order, so after a power cut the LMDB file may be a mixture. The marker holds the
//! boot id of the run that had the store open, and whether it was closed (after a sync). Opened by another boot and not
//! closed means that the operating system died in between.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use jobs_failpoint::{Point, pass};

use crate::error::{Result, StoreError};

const FILE: &str = "OPEN";
/// Version 1 was of stores whose rows had no checksums: not understood, they begin from their snapshot.
const VERSION: &str = "2";

/// What the marker tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastRun {
    /// There was none.
    None,
    /// Closed and synced, or ended with the operating system still up.
    Trusted,
    /// The operating system died with the store open.
    Untrusted,
}

/// Identifier of this boot of the operating system.
///
/// # Errors
/// [`StoreError::Io`] where the kernel does not tell it.
pub fn boot_id() -> Result<String> {
    let file = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(file)
        .map(|text| text.trim().to_owned())
        .map_err(StoreError::io("read", file))
}

/// Read how the last run ended. A marker that cannot be understood counts as untrusted.
///
/// # Errors
/// [`StoreError::Io`].
pub fn read(directory: &Path, boot_id: &str) -> Result<LastRun> {
    let file = directory.join(FILE);
    match fs::read_to_string(&file) {
        Ok(text) => {
            let mut words = text.split_whitespace();
            let fields = (words.next(), words.next(), words.next());
            Ok(match fields {
                (Some(VERSION), Some(_), Some("closed")) => LastRun::Trusted,
                (Some(VERSION), Some(boot), Some("open")) if boot == boot_id => LastRun::Trusted,
                _ => LastRun::Untrusted,
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(LastRun::None),
        Err(error) => Err(StoreError::io("read", &file)(error)),
    }
}

/// Write the marker, durably.
///
/// # Errors
/// [`StoreError::Io`].
pub fn write(directory: &Path, boot_id: &str, closed: bool) -> Result<()> {
    let state = if closed { "closed" } else { "open" };
    replace(directory, FILE, |file| writeln!(file, "{VERSION} {boot_id} {state}"))
}

/// Write a file under another name and put it in place when it is durable.
pub(crate) fn replace(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
) -> Result<()> {
    write_beside(directory, name, write)?;
    put_in_place(directory, name)?;
    sync_directory(directory)
}

/// The name under which a file is written.
pub(crate) fn unfinished(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.new"))
}

/// Write a file under another name, durably.
pub(crate) fn write_beside(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
) -> Result<()> {
    let unfinished = unfinished(directory, name);
    let mut file = fs::File::create(&unfinished).map_err(StoreError::io("create", &unfinished))?;
    write(&mut file).map_err(StoreError::io("write", &unfinished))?;
    // The content before the name: a crash leaves the former file or this one, whole.
    pass(Point::StoreReplaceSyncBefore)
        .and_then(|()| file.sync_all())
        .map_err(StoreError::io("sync", &unfinished))
}

/// Put a file that was written under another name in its place.
pub(crate) fn put_in_place(directory: &Path, name: &str) -> Result<()> {
    let unfinished = unfinished(directory, name);
    pass(Point::StoreReplaceRenameBefore)
        .and_then(|()| fs::rename(&unfinished, directory.join(name)))
        .and_then(|()| pass(Point::StoreReplaceRenameAfter))
        .map_err(StoreError::io("rename", &unfinished))
}

pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    let synced = pass(Point::StoreDirectorySyncBefore)
        .and_then(|()| fs::File::open(directory))
        .and_then(|handle| handle.sync_all())
        .and_then(|()| pass(Point::StoreDirectorySyncAfter));
    synced.map_err(StoreError::io("sync", directory))
}

pub(crate) fn sync_file(path: &Path) -> Result<()> {
    let synced = fs::File::open(path).and_then(|file| file.sync_all());
    synced.map_err(StoreError::io("sync", path))
}
