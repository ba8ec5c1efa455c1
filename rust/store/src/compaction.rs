//! A compact copy of a store, made beside it and put in its place while it is used.
//!
//! What is deleted leaves pages of the data file free, which never gets smaller, and pages half empty. The copy has each
//! row in order, so its pages are full, and no others. Rows are copied from one revision; what is applied to the store
//! meanwhile is applied to the copy after it, and when it has caught up, it takes the store's place (see [`crate::place`]).

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heed::PutFlags;
use jobs_failpoint::{Point, pass, reach};
use jobs_kv::Meta;
use rustix::fs::statvfs;

use crate::env::{DATA_FILE, LOCK_FILE, Opened, in_use, open, unseal};
use crate::error::{Result, StoreError};
use crate::marker::sync_directory;
use crate::place;
use crate::store::{Entry, apply_entries, load_meta};

/// Rows are copied in transactions of about so many bytes.
const BATCH_BYTES: u64 = 4 << 20;
/// So often the copy is synced: the disk takes it in as it comes, not all at the end while others wait for it.
const SYNC_BYTES: u64 = 16 << 20;
/// Of the bytes to be copied, how much more the copy may take; what is applied meanwhile comes on top.
const ROOM_SHARE: u64 = 8;
/// What is left alone on the disk, for the log and all else.
const SPARE_BYTES: u64 = 64 << 20;

/// That a compaction goes on; there is one at a time.
struct Running(Arc<AtomicBool>);

impl Running {
    fn begin(running: &Arc<AtomicBool>) -> Result<Self> {
        if running.swap(true, Ordering::AcqRel) {
            return Err(StoreError::Compacting);
        }
        Ok(Self(Arc::clone(running)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A compact copy that follows its store. When this is dropped, what is not the store's data file is removed: the copy, or
/// the file whose place it has taken.
pub struct Compaction {
    directory: PathBuf,
    place: PathBuf,
    opened: Option<Opened>,
    meta: Meta,
    generation_requests: u64,
    installed: u64,
    /// The file whose place it has taken.
    former: Option<Arc<Opened>>,
    _running: Running,
}

/// What a store says of itself to have a copy made.
pub(crate) struct Source<'a> {
    pub directory: &'a Path,
    pub opened: &'a Opened,
    pub max_bytes: usize,
    pub generation_requests: u64,
    pub running: &'a Arc<AtomicBool>,
    /// Snapshots of others that it has taken in.
    pub installed: u64,
}

impl Compaction {
    /// Copy what a store holds now. `on_bytes` is told now and then how many bytes of rows are copied; it can break it
    /// off.
    pub(crate) fn begin(source: &Source<'_>, mut on_bytes: impl FnMut(u64) -> ControlFlow<()>) -> Result<Self> {
        let running = Running::begin(source.running)?;
        check_room(source)?;
        let place = place::make_next(source.directory)?;
        let mut made = Self {
            directory: source.directory.to_owned(),
            place,
            opened: None,
            meta: Meta::default(),
            generation_requests: source.generation_requests,
            installed: source.installed,
            former: None,
            _running: running,
        };
        let opened = made.opened.insert(open(&made.place, source.max_bytes)?);
        copy_rights(&source.opened.place, &made.place)?;
        copy_rows(source.opened, opened, &mut on_bytes)?;
        made.meta = load_meta(opened)?;
        // The names before the one that points to them.
        sync_directory(&made.place)?;
        place::prepare(&made.directory, &made.place)?;
        Ok(made)
    }

    /// Where the copy stands.
    #[must_use]
    pub fn meta(&self) -> Meta {
        self.meta
    }

    /// Snapshots that the store had taken in when the copy was begun.
    pub(crate) fn installed(&self) -> u64 {
        self.installed
    }

    /// Apply entries that the store has applied, in order, from the one after [`Self::meta`]'s on.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the entries was applied then.
    pub fn apply(&mut self, entries: &[Entry<'_>]) -> Result<()> {
        let Opened { env, tables, .. } = self.opened.as_ref().ok_or(StoreError::Closed)?;
        let mut txn = env.write_txn()?;
        let (_, meta) = apply_entries(&mut txn, *tables, self.meta, self.generation_requests, entries)?;
        txn.commit()?;
        self.meta = meta;
        Ok(())
    }

    /// Let the copy be the store's data file. It lies where it lay when this fails.
    pub(crate) fn take_place(&mut self) -> Result<Opened> {
        let opened = self.opened.take().ok_or(StoreError::Closed)?;
        if let Err(error) = pass(Point::StoreCompactSwitchBefore)
            .map_err(StoreError::io("put in place", &self.place))
            .and_then(|()| place::switch(&self.directory))
        {
            self.opened = Some(opened);
            return Err(error);
        }
        Ok(opened)
    }

    /// Keep the file whose place it has taken, until this is dropped: that may take a while for a large one.
    pub(crate) fn keep(&mut self, former: Arc<Opened>) {
        self.former = Some(former);
    }
}

impl Drop for Compaction {
    fn drop(&mut self) {
        let left = match (self.opened.take(), self.former.take()) {
            // Reads that have begun may still be at it.
            (None, Some(former)) => former.place.clone(),
            (opened, _) => {
                if let Some(opened) = opened {
                    opened.close();
                }
                self.place.clone()
            }
        };
        // What cannot be removed now the next opener removes.
        let _ = place::clear(&self.directory, &left);
        reach(Point::StoreCompactRemoveAfter);
    }
}

/// Refuse to begin where the copy would leave the disk full: the log needs it too.
fn check_room(source: &Source<'_>) -> Result<()> {
    let used = in_use(source.opened, &source.opened.env.read_txn()?)?;
    let needed = used + used / ROOM_SHARE + SPARE_BYTES;
    let found = statvfs(source.directory).map_err(|error| StoreError::io("look at", source.directory)(error.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < needed {
        return Err(StoreError::NoRoomToCompact {
            directory: source.directory.to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}

/// Let whoever may read the one data file read the other: readers write to the lock file.
fn copy_rights(from: &Path, to: &Path) -> Result<()> {
    for name in ["", DATA_FILE, LOCK_FILE] {
        let (from, to) = (from.join(name), to.join(name));
        let copy = || -> io::Result<()> {
            let (known, made) = (fs::metadata(&from)?, fs::metadata(&to)?);
            if known.gid() != made.gid() {
                chown(&to, None, Some(known.gid()))?;
            }
            // A service may be forbidden to ask for what a directory has inherited (setgid).
            if known.permissions() == made.permissions() {
                return Ok(());
            }
            fs::set_permissions(&to, known.permissions())
        };
        copy().map_err(StoreError::io("give the same rights to", &to))?;
    }
    Ok(())
}

/// Copy every row of one revision, in order.
fn copy_rows(from: &Opened, to: &Opened, on_bytes: &mut impl FnMut(u64) -> ControlFlow<()>) -> Result<()> {
    // What a process saw that was killed as it read would be kept for good.
    from.env.clear_stale_readers()?;
    let reading = from.env.read_txn()?;
    let mut writing = to.env.write_txn()?;
    let (mut copied, mut batch, mut unsynced) = (0, 0, 0);
    for (source, target) in from.tables.all().into_iter().zip(to.tables.all()) {
        for row in source.iter(&reading)? {
            let (key, sealed) = row?;
            // Damage is not handed on.
            unseal(key, sealed)?;
            target.put_with_flags(&mut writing, PutFlags::APPEND, key, sealed)?;
            batch += (key.len() + sealed.len()) as u64;
            if batch < BATCH_BYTES {
                continue;
            }
            pass(Point::StoreCompactCopyBefore).map_err(StoreError::io("copy to", &to.place))?;
            writing.commit()?;
            copied += batch;
            unsynced += batch;
            batch = 0;
            if unsynced >= SYNC_BYTES {
                to.env.force_sync()?;
                unsynced = 0;
            }
            if on_bytes(copied).is_break() {
                return Err(StoreError::BrokenOff);
            }
            writing = to.env.write_txn()?;
        }
    }
    writing.commit()?;
    Ok(to.env.force_sync()?)
}
