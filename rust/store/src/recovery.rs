//! What opening does about what the last run left.

use std::fs;
use std::path::Path;

use jobs_failpoint::{Point, pass};

use crate::env::{DATA_FILE, Opened, Writing, open, verify};
use crate::error::{Result, StoreError};
use crate::marker::{self, LastRun, sync_directory};
use crate::store::{fail_at, load_meta, replace_rows};
use crate::{place, snapshot};

const RESTORE_DIRECTORY: &str = "restore";
/// There while the data file is looked at, a byte for each look that has begun: LMDB follows pointers into nowhere, so
/// damage can end the process. A later one then knows.
const LOOKING_FILE: &str = "LOOKING";
/// So many looks without an end are no chance: once, the process may have been killed for another reason.
const MAX_LOOKS: usize = 2;
const RESTORE_ROWS: usize = 100_000;

/// Put the data file back from the newest good snapshot where it cannot be trusted, and say why, in words.
///
/// # Errors
/// [`StoreError`].
pub(crate) fn recover(directory: &Path, boot_id: &str, max_bytes: usize) -> Result<Option<String>> {
    let snapshots = snapshot::list(directory)?;
    let last_run = marker::read(directory, boot_id)?;
    let place = match place::current(directory) {
        Err(error @ StoreError::Corrupt { .. }) => Err(error.to_string()),
        other => Ok(other?),
    };
    let why = match place {
        Ok(place) if place == directory && snapshots.is_empty() && !place.join(DATA_FILE).exists() => {
            return Ok(None);
        }
        Ok(place) => match untrusted(directory, &place, last_run, max_bytes)? {
            None => return Ok(None),
            Some(why) => why,
        },
        Err(damage) => damage,
    };
    let mut refused = String::new();
    for (index, path) in snapshots {
        match restore_file(directory, &path, max_bytes) {
            Ok(()) => {
                return Ok(Some(format!(
                    "{why}; restored the snapshot at entry {index}{refused}, the log tells the rest"
                )));
            }
            Err(error @ StoreError::Corrupt { .. }) => {
                refused = format!("{refused} (refused: {error})");
            }
            Err(error) => return Err(error),
        }
    }
    discard(directory)?;
    Ok(Some(format!("{why}; begun anew{refused}, the log tells everything")))
}

/// Build the data file from a snapshot beside the old one, and put it in place when all of the snapshot was good.
fn restore_file(directory: &Path, path: &Path, max_bytes: usize) -> Result<()> {
    let beside = directory.join(RESTORE_DIRECTORY);
    let _ = fs::remove_dir_all(&beside);
    fs::create_dir(&beside).map_err(StoreError::io("create", &beside))?;
    let opened = open(&beside, max_bytes)?;
    let loaded = load_rows(&opened, path);
    let synced = loaded
        .and_then(|()| fail_at(Point::StoreRestoreSyncBefore, "sync", &beside))
        .and_then(|()| Ok(opened.env.force_sync()?));
    opened.close();
    if let Err(error) = synced {
        let _ = fs::remove_dir_all(&beside);
        return Err(error);
    }
    discard(directory)?;
    let (from, to) = (beside.join(DATA_FILE), directory.join(DATA_FILE));
    pass(Point::StoreRestoreRenameBefore)
        .and_then(|()| fs::rename(&from, &to))
        .and_then(|()| pass(Point::StoreRestoreRenameAfter))
        .map_err(StoreError::io("rename", &from))?;
    fs::remove_dir_all(&beside).map_err(StoreError::io("remove", &beside))?;
    sync_directory(directory)
}

/// Why the data file at a place cannot be trusted, if so.
fn untrusted(directory: &Path, place: &Path, last_run: LastRun, max_bytes: usize) -> Result<Option<String>> {
    if !place.join(DATA_FILE).exists() {
        return Ok(Some("the data file is gone".into()));
    }
    match last_run {
        LastRun::Trusted => {
            let found = damage(directory, place, max_bytes)?;
            Ok(found.map(|damage| format!("the data file is damaged: {damage}")))
        }
        LastRun::None | LastRun::Untrusted => Ok(Some("the operating system went down with the store open".into())),
    }
}

/// What is wrong with a data file that ought to be whole.
fn damage(directory: &Path, place: &Path, max_bytes: usize) -> Result<Option<String>> {
    let looking = directory.join(LOOKING_FILE);
    let mut begun = fs::read(&looking).unwrap_or_default();
    if begun.len() >= MAX_LOOKS {
        return Ok(Some(format!("{MAX_LOOKS} looks at it ended the process")));
    }
    begun.push(b'x');
    // Without room for it there is only less help after the next crash.
    let _ = fs::write(&looking, &begun);
    let found = look_at(place, max_bytes);
    let _ = fs::remove_file(&looking);
    found
}

fn look_at(place: &Path, max_bytes: usize) -> Result<Option<String>> {
    let opened = match open(place, max_bytes) {
        Err(StoreError::Lmdb(heed::Error::Mdb(error))) => return Ok(Some(error.to_string())),
        other => other?,
    };
    let txn = opened.env.read_txn()?;
    let found = verify(opened.tables, &txn);
    drop(txn);
    opened.close();
    match found {
        Ok(()) => Ok(None),
        Err(error @ (heed::Error::Mdb(_) | heed::Error::Decoding(_))) => Ok(Some(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Take the newest good snapshot that is ahead of what is applied: its installation was interrupted.
pub(crate) fn finish_install(directory: &Path, opened: &Opened) -> Result<Option<String>> {
    let applied = load_meta(opened)?.index;
    let mut refused = String::new();
    for (index, path) in snapshot::list(directory)? {
        if index <= applied {
            break;
        }
        match replace_rows(opened, &path) {
            Ok((txn, _)) => {
                fail_at(Point::StoreInstallFinishBefore, "commit", &path)?;
                txn.commit()?;
                let text = format!("finished to install the snapshot at entry {index}{refused}");
                return Ok(Some(text));
            }
            Err(error @ StoreError::Corrupt { .. }) => refused = format!("{refused} (refused: {error})"),
            Err(error) => return Err(error),
        }
    }
    Ok((!refused.is_empty()).then(|| format!("passed over a snapshot{refused}")))
}

fn discard(directory: &Path) -> Result<()> {
    place::clear_all(directory)?;
    place::remove_file(&directory.join(LOOKING_FILE))?;
    sync_directory(directory)
}

fn load_rows(opened: &Opened, path: &Path) -> Result<()> {
    let Opened { env, tables, .. } = opened;
    let mut txn = Some(env.write_txn()?);
    let mut rows = 0;
    snapshot::read(path, &mut |key, value| {
        let open = txn.as_mut().expect("there is always one");
        let mut writing = Writing {
            tables: *tables,
            txn: open,
        };
        writing.append(key, value)?;
        rows += 1;
        if rows % RESTORE_ROWS == 0 {
            txn.take().expect("there is always one").commit()?;
            txn = Some(env.write_txn()?);
        }
        Ok(())
    })?;
    txn.take().expect("there is always one").commit()?;
    Ok(())
}
