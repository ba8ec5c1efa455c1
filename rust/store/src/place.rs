//! Where the data file of a store lies: in the store's directory, or, since it was compacted, in the directory in there
//! that the file `CURRENT` names.
//!
//! LMDB keeps in its lock file who reads what, so a reader must never have one data file open with the lock file of
//! another. Each data file therefore lies in a directory of its own with the lock file that belongs to it, and one
//! rename, of `CURRENT`, puts another in its place for whoever looks from then on. Who has the former one open reads what
//! it held then: nobody writes to it any more.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::env::{DATA_FILE, LOCK_FILE, Opened, open_read_only};
use crate::error::{Result, StoreError};
use crate::marker::{put_in_place, unfinished, write_beside};

/// How often a data file is looked for that is replaced as it is opened.
const TRIES: usize = 100;
const FILE: &str = "CURRENT";
const VERSION: &str = "1";
const PREFIX: &str = "compact-";

/// Which data file is a store's: another one after it was compacted, or put back from a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Directory that it lies in.
    pub place: PathBuf,
    device: u64,
    inode: u64,
}

/// A store's data file, open for reading.
pub(crate) struct Found {
    pub identity: Identity,
    pub opened: Opened,
}

/// Directory in which a store's data file lies, if there is one.
///
/// # Errors
/// [`StoreError::Corrupt`] when `CURRENT` names none, [`StoreError::Io`].
pub(crate) fn current(directory: &Path) -> Result<PathBuf> {
    let file = directory.join(FILE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(directory.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
        Err(error) => return Err(StoreError::io("read", &file)(error)),
    };
    let name = text.strip_prefix(VERSION).map(str::trim);
    match name.filter(|name| number(name).is_some()) {
        Some(name) => Ok(directory.join(name)),
        None => Err(StoreError::Corrupt {
            file,
            offset: 0,
            problem: "it names no place of a data file".into(),
        }),
    }
}

/// A store's data file; `None` where there is none.
///
/// # Errors
/// As [`current`].
pub(crate) fn identity(directory: &Path) -> Result<Option<Identity>> {
    let mut place = current(directory)?;
    loop {
        let data = place.join(DATA_FILE);
        match fs::metadata(&data) {
            Ok(found) => {
                return Ok(Some(Identity {
                    place,
                    device: found.dev(),
                    inode: found.ino(),
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("look at", &data)(error)),
        }
        // Another may have taken its place just now.
        let now = current(directory)?;
        if now == place {
            return Ok(None);
        }
        place = now;
    }
}

/// Open a store's data file for reading, as `open_it` does that of a place.
///
/// # Errors
/// [`StoreError::Io`] when there is no store, and any other [`StoreError`].
pub(crate) fn open_with<T>(
    directory: &Path,
    mut open_it: impl FnMut(&Identity) -> Result<Option<T>>,
) -> Result<(Identity, T)> {
    let none = || StoreError::io("open the store in", directory)(io::ErrorKind::NotFound.into());
    let mut found = identity(directory)?.ok_or_else(none)?;
    for _ in 0..TRIES {
        let opened = open_it(&found);
        let now = identity(directory)?.ok_or_else(none)?;
        if now == found {
            return Ok((found, opened?.ok_or_else(none)?));
        }
        // It was replaced as it was opened, and may have been gone.
        found = now;
    }
    Err(none())
}

/// Open a store's data file for reading.
///
/// # Errors
/// As [`open_with`].
pub(crate) fn open(directory: &Path) -> Result<Found> {
    let (identity, opened) = open_with(directory, |found| open_read_only(&found.place))?;
    Ok(Found { identity, opened })
}

/// Make the directory of a data file that may become the store's.
///
/// # Errors
/// [`StoreError::Io`].
pub(crate) fn make_next(directory: &Path) -> Result<PathBuf> {
    let numbers = others(directory)?
        .into_iter()
        .filter_map(|path| number(path.file_name()?.to_str()?));
    let next = directory.join(format!("{PREFIX}{}", numbers.max().map_or(1, |number| number + 1)));
    fs::create_dir(&next).map_err(StoreError::io("create", &next))?;
    Ok(next)
}

/// Write down, durably, that the data file is to lie at a place; [`switch`] lets it.
///
/// # Errors
/// [`StoreError::Io`].
pub(crate) fn prepare(directory: &Path, place: &Path) -> Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    write_beside(directory, FILE, |file| writeln!(file, "{VERSION} {name}"))
}

/// Let the data file lie where [`prepare`] said. Durable once the directory is synced.
///
/// # Errors
/// [`StoreError::Io`]; it lies where it lay then.
pub(crate) fn switch(directory: &Path) -> Result<()> {
    put_in_place(directory, FILE)
}

/// Remove what is at a place, which is the store's own directory or one in it.
///
/// # Errors
/// [`StoreError::Io`].
pub(crate) fn clear(directory: &Path, place: &Path) -> Result<()> {
    if place != directory {
        return match fs::remove_dir_all(place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", place)(error)),
            _ => Ok(()),
        };
    }
    remove_file(&directory.join(DATA_FILE))?;
    remove_file(&directory.join(LOCK_FILE))
}

/// Remove every data file but the one at a place.
///
/// # Errors
/// [`StoreError::Io`].
pub(crate) fn clear_others(directory: &Path, place: &Path) -> Result<()> {
    remove_file(&unfinished(directory, FILE))?;
    for other in others(directory)?.iter().map(PathBuf::as_path).chain([directory]) {
        if other != place {
            clear(directory, other)?;
        }
    }
    Ok(())
}

/// Remove every data file; without one the next opener begins from a snapshot.
///
/// # Errors
/// [`StoreError::Io`].
pub(crate) fn clear_all(directory: &Path) -> Result<()> {
    clear_others(directory, directory)?;
    clear(directory, directory)?;
    // Last: what is not named is left over, and no data file that is left over may be taken for the store's.
    remove_file(&directory.join(FILE))
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Directories in a store's that are of data files.
fn others(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(StoreError::io("list", directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", directory))?;
        if entry.file_name().to_str().and_then(number).is_some() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}
