//! The writer: opens, recovers, applies, reads, takes snapshots.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use heed::RwTxn;
use jobs_failpoint::{Point, pass, reach};
use jobs_kv::command::REQUEST_ID_BYTES;
use jobs_kv::machine::{self, load, visit_state};
use jobs_kv::read::{self, Event, Page, RangeOptions};
use jobs_kv::{GENERATION_REQUESTS, KeyValue, KvError, Meta, Read};

use crate::compaction::{Compaction, Source};
use crate::digest::{self, Cursor, Pieces};
use crate::env::{Checked, Opened, Reading, Tables, Writing, check_rows, in_use, open, unseal};
use crate::error::{Result, StoreError, no_room};
use crate::marker::{self, boot_id, replace, sync_directory, sync_file};
use crate::{place, recovery, snapshot};

/// LMDB wants the map's size as whole pages.
const PAGE_BYTES: usize = 1 << 16;
/// Written to find out whether there is room; more than what a write that was broken off can have left.
const PROBE_FILE: &str = "room.probe";
const PROBE_BYTES: usize = 1 << 16;
/// Commits between two looks at how many pages are used.
const MEASURE_EVERY: u32 = 64;

/// How a store is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest size of the data file, which grows into it as needed; a command beyond that is refused whole.
    pub max_bytes: usize,
    /// Boot to take this one for; `None` asks the kernel. For tests of what a power cut leaves.
    pub boot_id: Option<String>,
    /// Request ids in a generation. Replicas must agree on it: it differs from the default only in tests.
    pub generation_requests: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            boot_id: None,
            generation_requests: GENERATION_REQUESTS,
        }
    }
}

/// Raft index, term and command.
pub type Entry<'a> = (u64, u64, &'a [u8]);

/// The state machine on disk. Reads may run beside [`Store::apply`] on other threads.
pub struct Store {
    directory: PathBuf,
    boot_id: String,
    max_bytes: usize,
    generation_requests: u64,
    recovered: Option<String>,
    /// The data file. A read that has begun goes on with the one it has, should another take its place.
    open: Mutex<Option<Arc<Opened>>>,
    meta: Mutex<Meta>,
    writing: Mutex<()>,
    /// Raft index and term of the newest durable snapshot.
    snapshot: Mutex<(u64, u64)>,
    used: Mutex<(u32, u64)>,
    compacting: Arc<AtomicBool>,
    /// Snapshots of others that were taken in: a copy from before cannot follow.
    installed: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Open a directory, making it if it is not there. What the last run left is taken unless the operating system died
    /// with it, or a row of it is not what was written; then the newest good snapshot takes its place.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(directory: &Path, options: Options) -> Result<Self> {
        fs::create_dir_all(directory).map_err(StoreError::io("create", directory))?;
        let boot_id = options.boot_id.map_or_else(boot_id, Ok)?;
        let max_bytes = options.max_bytes.next_multiple_of(PAGE_BYTES);
        let mut recovered = recovery::recover(directory, &boot_id, max_bytes)?;
        marker::write(directory, &boot_id, false)?;
        let place = place::current(directory)?;
        place::clear_others(directory, &place)?;
        let opened = open(&place, max_bytes)?;
        if recovered.is_none() {
            recovered = recovery::finish_install(directory, &opened)?;
        }
        let meta = load_meta(&opened)?;
        let store = Self {
            directory: directory.to_owned(),
            boot_id,
            max_bytes,
            generation_requests: options.generation_requests,
            recovered,
            open: Mutex::new(Some(Arc::new(opened))),
            meta: Mutex::new(meta),
            writing: Mutex::new(()),
            snapshot: Mutex::new(snapshot::newest(directory, meta.index)?),
            used: Mutex::new((MEASURE_EVERY, 0)),
            compacting: Arc::default(),
            installed: AtomicU64::new(0),
        };
        Ok(store)
    }

    /// What opening had to do, in words.
    #[must_use]
    pub fn recovered(&self) -> Option<&str> {
        self.recovered.as_deref()
    }

    /// Where the machine stands.
    #[must_use]
    pub fn meta(&self) -> Meta {
        *lock(&self.meta)
    }

    /// Raft index of the newest durable snapshot; 0 without one.
    #[must_use]
    pub fn snapshot_index(&self) -> u64 {
        lock(&self.snapshot).0
    }

    /// Its term.
    #[must_use]
    pub fn snapshot_term(&self) -> u64 {
        lock(&self.snapshot).1
    }

    /// Its file. A newer snapshot removes it; who has it open can go on reading.
    #[must_use]
    pub fn snapshot_path(&self) -> Option<PathBuf> {
        let index = self.snapshot_index();
        (index > 0).then(|| self.directory.join(snapshot::file_name(index)))
    }

    /// Apply entries in order in one LMDB transaction; those at or below the applied index are passed over. Returns the
    /// encoded results of each entry, empty for those without a command.
    ///
    /// # Errors
    /// [`StoreError`], also when there is no room; nothing of the entries was applied then.
    pub fn apply(&self, entries: &[Entry<'_>]) -> Result<Vec<Vec<u8>>> {
        let _alone = lock(&self.writing);
        fail_at(Point::StoreApplyBefore, "apply to", &self.directory)?;
        self.apply_all(entries).map_err(|error| self.explain(error))
    }

    /// Tell a write that was broken off for want of room by that name.
    fn explain(&self, error: StoreError) -> StoreError {
        if error.may_be_short_write() && !has_room(&self.directory) {
            StoreError::Full(self.directory.clone())
        } else {
            error
        }
    }

    fn apply_all(&self, entries: &[Entry<'_>]) -> Result<Vec<Vec<u8>>> {
        let opened = self.opened()?;
        let mut txn = opened.env.write_txn()?;
        let (results, meta) = apply_entries(&mut txn, opened.tables, self.meta(), self.generation_requests, entries)?;
        fail_at(Point::StoreApplyCommitBefore, "commit to", &self.directory)?;
        txn.commit()?;
        reach(Point::StoreApplyCommitAfter);
        *lock(&self.meta) = meta;
        lock(&self.used).0 += 1;
        Ok(results)
    }

    /// Read a key; revision 0 is the newest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, key: &[u8], revision: u64) -> Result<Option<KeyValue>> {
        self.reading(|reading, meta| Ok(read::get(reading, meta, key, revision)?))
    }

    /// What the transaction of a request did, encoded as the results of a command with it alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn recall(&self, request: &[u8; REQUEST_ID_BYTES]) -> Result<Option<Vec<u8>>> {
        self.reading(|reading, meta| Ok(read::recall(reading, meta, request)?))
    }

    /// Read a range.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn range(&self, start: &[u8], end: &[u8], options: &RangeOptions) -> Result<Page> {
        self.reading(|reading, meta| Ok(read::range(reading, meta, start, end, options)?))
    }

    /// Count keys up to a limit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn count(&self, start: &[u8], end: &[u8], limit: u64) -> Result<u64> {
        self.reading(|reading, _| Ok(read::count(reading, start, end, limit)?))
    }

    /// Read events; see [`read::events`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events(
        &self,
        after: u64,
        prefixes: &[Vec<u8>],
        limit: usize,
        max_bytes: usize,
    ) -> Result<(Vec<Event>, u64)> {
        self.reading(|reading, meta| Ok(read::events(reading, meta, after, prefixes, limit, max_bytes)?))
    }

    /// Every lease with its time to live in ms.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn leases(&self) -> Result<Vec<(u64, u64)>> {
        self.reading(|reading, _| Ok(read::leases(reading)?))
    }

    /// Keys attached to a lease.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lease_keys(&self, lease: u64) -> Result<Vec<Vec<u8>>> {
        self.reading(|reading, _| Ok(read::lease_keys(reading, lease)?))
    }

    /// BLAKE3 of everything that replicas must agree on after the last entry.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn state_hash(&self) -> Result<[u8; 32]> {
        self.reading(|reading, meta| Ok(hash_state(reading, meta)?))
    }

    /// Digests of the pieces of a range; see [`digest::digests`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn digests(&self, range: (&[u8], &[u8]), cursor: Option<Cursor>, options: &digest::Options) -> Result<Pieces> {
        self.reading(|reading, meta| {
            if options.revision > meta.revision {
                return Err(StoreError::NotReached {
                    asked: options.revision,
                    reached: meta.revision,
                });
            }
            Ok(digest::digests(reading, meta, range, cursor, options)?)
        })
    }

    /// Look at the checksums of the next rows from a cursor on, an empty one for the beginning.
    ///
    /// # Errors
    /// [`StoreError`], also where LMDB cannot find its way.
    pub fn check_rows(&self, cursor: &[u8], max_rows: usize) -> Result<Checked> {
        let opened = self.opened()?;
        let txn = opened.env.read_txn()?;
        Ok(check_rows(opened.tables, &txn, cursor, max_rows)?)
    }

    /// Bytes of the data file, and of those in it that hold nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn file_bytes(&self) -> Result<(u64, u64)> {
        let opened = self.opened()?;
        let used = in_use(&opened, &opened.env.read_txn()?)?;
        let file = opened.env.real_disk_size()?;
        Ok((file, file.saturating_sub(used)))
    }

    /// Bytes of the pages in use; looked at every few commits.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn used_bytes(&self) -> Result<u64> {
        let mut used = lock(&self.used);
        if used.0 >= MEASURE_EVERY {
            let opened = self.opened()?;
            *used = (0, in_use(&opened, &opened.env.read_txn()?)?);
        }
        Ok(used.1)
    }

    /// Write a durable snapshot of now, delete older ones, and return its Raft index. [`Store::apply`] may go on
    /// meanwhile on another thread.
    ///
    /// # Errors
    /// [`StoreError`]; the former snapshots are still there then.
    pub fn snapshot(&self) -> Result<u64> {
        let Opened { env, tables, .. } = &*self.opened()?;
        // What a process saw that was killed as it read would be kept for good.
        env.clear_stale_readers()?;
        let txn = env.read_txn()?;
        let meta = load(&Reading {
            tables: *tables,
            txn: &txn,
        })?;
        if meta.index == 0 || meta.index == self.snapshot_index() {
            return Ok(meta.index);
        }
        fail_at(Point::StoreSnapshotBefore, "take a snapshot in", &self.directory)?;
        let mut failed = None;
        replace(&self.directory, &snapshot::file_name(meta.index), |file| {
            let mut writer = snapshot::Writer::new(file, meta.index, meta.term)?;
            let mut write_rows = || -> Result<()> {
                for table in tables.all() {
                    for row in table.iter(&txn)? {
                        let (key, sealed) = row?;
                        writer
                            .row(key, unseal(key, sealed)?)
                            .map_err(StoreError::io("write", &self.directory))?;
                    }
                }
                Ok(())
            };
            if let Err(error) = write_rows() {
                failed = Some(error);
                return Err(std::io::ErrorKind::Other.into());
            }
            writer.finish()
        })
        .map_err(|error| failed.unwrap_or(error))?;
        self.on_snapshot((meta.index, meta.term))?;
        Ok(meta.index)
    }

    /// Take the content of a snapshot file of another member in place of what is here. The file, which is verified whole
    /// before anything is touched, becomes this store's newest snapshot: it is renamed into the store's directory, with
    /// which it must share a file system. Needs room for what is here and what comes at once. Whoever reads meanwhile
    /// sees the one or the other; so does the next opener after a crash at any moment.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]; [`StoreError::Behind`] unless the snapshot is ahead of what is applied; any other
    /// [`StoreError`]. Nothing is changed then, and the file is where it was.
    pub fn install(&self, path: &Path) -> Result<()> {
        let _alone = lock(&self.writing);
        let opened = self.opened()?;
        let (index, term) = snapshot::read(path, &mut |_, _| Ok(()))?;
        snapshot::check_ahead(index, self.meta().index)?;
        fail_at(Point::StoreInstallBefore, "install", path)?;
        let (txn, meta) = replace_rows(&opened, path).map_err(|error| self.explain(error))?;
        let place = self.directory.join(snapshot::file_name(index));
        // The moment from which on the new state counts: opening finishes what a crash interrupts after it. So the
        // content has to be durable before the name, and the name before anybody is told.
        fail_at(Point::StoreInstallSyncBefore, "sync", path)?;
        sync_file(path)?;
        pass(Point::StoreInstallRenameBefore)
            .and_then(|()| fs::rename(path, &place))
            .map_err(StoreError::io("rename", path))?;
        reach(Point::StoreInstallRenameAfter);
        let committed = sync_directory(&self.directory)
            .and_then(|()| fail_at(Point::StoreInstallCommitBefore, "commit", &place))
            .and_then(|()| Ok(txn.commit()?));
        if let Err(error) = committed {
            // Should this fail too, the next opener finds the new state, which is as right as the old one.
            let _ = fs::rename(&place, path);
            return Err(self.explain(error));
        }
        reach(Point::StoreInstallCommitAfter);
        self.installed.fetch_add(1, Ordering::Relaxed);
        *lock(&self.meta) = meta;
        lock(&self.used).0 = MEASURE_EVERY;
        self.on_snapshot((index, term))
    }

    /// A durable snapshot is in place: older ones can go.
    fn on_snapshot(&self, position: (u64, u64)) -> Result<()> {
        // One that was begun before another was installed ends after it.
        let newest = {
            let mut newest = lock(&self.snapshot);
            *newest = position.max(*newest);
            newest.0
        };
        for (index, path) in snapshot::list(&self.directory)? {
            if index < newest {
                pass(Point::StoreSnapshotRemoveBefore)
                    .and_then(|()| fs::remove_file(&path))
                    .map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Copy what the store holds now into a file beside its own, in full pages and no others. [`Store::apply`] may go on
    /// meanwhile. `on_bytes` is told now and then how many bytes of rows are copied, and can break it off. The copy is to
    /// apply what the store applies after it, and takes the store's place by [`Store::finish_compaction`].
    ///
    /// # Errors
    /// [`StoreError::Compacting`] when there is a copy already, [`StoreError::NoRoomToCompact`],
    /// [`StoreError::BrokenOff`], and any other [`StoreError`]; nothing is left of it then.
    pub fn begin_compaction(&self, on_bytes: impl FnMut(u64) -> ControlFlow<()>) -> Result<Compaction> {
        // Known before anything is copied: what is taken in after that counts.
        let installed = self.installed.load(Ordering::Relaxed);
        let opened = self.opened()?;
        let source = Source {
            directory: &self.directory,
            opened: &opened,
            max_bytes: self.max_bytes,
            generation_requests: self.generation_requests,
            running: &self.compacting,
            installed,
        };
        Compaction::begin(&source, on_bytes)
    }

    /// Put a compact copy in the place of the data file, unless it has yet to apply something: then nothing changes, and
    /// the answer is no. Reads that have begun go on with the former file, here and in other processes; so does who has
    /// it open there until it looks for the next time. After the death of this process the next opener finds the one
    /// file or the other, which are equal.
    ///
    /// # Errors
    /// [`StoreError`]; nothing has changed then.
    pub fn finish_compaction(&self, compaction: &mut Compaction) -> Result<bool> {
        let _alone = lock(&self.writing);
        let mut open = lock(&self.open);
        let current = open.as_mut().ok_or(StoreError::Closed)?;
        let stands_here = compaction.meta() == self.meta();
        if !stands_here || compaction.installed() != self.installed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        // Not synced here: should the operating system die before the store is closed, neither file is trusted.
        let former = std::mem::replace(current, Arc::new(compaction.take_place()?));
        compaction.keep(former);
        reach(Point::StoreCompactSwitchAfter);
        lock(&self.used).0 = MEASURE_EVERY;
        Ok(true)
    }

    /// Sync and close. Later calls fail with [`StoreError::Closed`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn close(&mut self) -> Result<()> {
        let Some(opened) = lock(&self.open).take() else {
            return Ok(());
        };
        fail_at(Point::StoreCloseSyncBefore, "sync", &self.directory)?;
        opened.env.force_sync()?;
        reach(Point::StoreCloseSyncAfter);
        Arc::into_inner(opened).expect("nobody reads any more").close();
        marker::write(&self.directory, &self.boot_id, true)
    }

    fn opened(&self) -> Result<Arc<Opened>> {
        lock(&self.open).clone().ok_or(StoreError::Closed)
    }

    fn reading<T>(&self, work: impl FnOnce(&Reading<'_>, &Meta) -> Result<T>) -> Result<T> {
        let Opened { env, tables, .. } = &*self.opened()?;
        let txn = env.read_txn()?;
        let reading = Reading {
            tables: *tables,
            txn: &txn,
        };
        // Of the same transaction: `apply` may commit at any moment.
        let meta = load(&reading)?;
        work(&reading, &meta)
    }
}

/// Apply entries in order in a transaction, passing over those at or below the index of `meta`; return their results and
/// where the machine stands then.
pub(crate) fn apply_entries(
    txn: &mut RwTxn<'_>,
    tables: Tables,
    mut meta: Meta,
    generation_requests: u64,
    entries: &[Entry<'_>],
) -> Result<(Vec<Vec<u8>>, Meta)> {
    let mut writing = Writing { tables, txn };
    let mut results = Vec::with_capacity(entries.len());
    for &entry in entries {
        results.push(if entry.0 <= meta.index {
            Vec::new()
        } else {
            machine::apply(&mut writing, &mut meta, entry, generation_requests)?
        });
    }
    Ok((results, meta))
}

/// Try whether a directory's disk takes anything more.
fn has_room(directory: &Path) -> bool {
    let probe = directory.join(PROBE_FILE);
    let written = fs::write(&probe, vec![0; PROBE_BYTES]);
    // What is left of it is overwritten by the next one.
    let _ = fs::remove_file(&probe);
    !matches!(written, Err(error) if no_room(&error))
}

/// BLAKE3 of everything that replicas must agree on after one entry.
///
/// # Errors
/// What the backend says.
pub fn hash_state<B: Read>(backend: &B, meta: &Meta) -> std::result::Result<[u8; 32], KvError<B::Error>> {
    let mut hash = blake3::Hasher::new();
    for number in [meta.revision, meta.generation] {
        hash.update(&number.to_le_bytes());
    }
    visit_state(backend, &mut |key, value| {
        for part in [key, value] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    })?;
    Ok(*hash.finalize().as_bytes())
}

/// Pass a failpoint as an operation on a file.
pub(crate) fn fail_at(point: Point, operation: &'static str, file: &Path) -> Result<()> {
    pass(point).map_err(|source| StoreError::io(operation, file)(source))
}

pub(crate) fn load_meta(Opened { env, tables, .. }: &Opened) -> Result<Meta> {
    let txn = env.read_txn()?;
    Ok(load(&Reading {
        tables: *tables,
        txn: &txn,
    })?)
}

/// Begin a transaction in which a snapshot's rows take the place of all others.
pub(crate) fn replace_rows<'e>(opened: &'e Opened, path: &Path) -> Result<(RwTxn<'e>, Meta)> {
    let mut txn = opened.env.write_txn()?;
    for table in opened.tables.all() {
        table.clear(&mut txn)?;
    }
    let mut writing = Writing {
        tables: opened.tables,
        txn: &mut txn,
    };
    let position = snapshot::read(path, &mut |key, value| Ok(writing.append(key, value)?))?;
    let meta = load(&writing)?;
    snapshot::check_position(path, position, &meta)?;
    Ok((txn, meta))
}
