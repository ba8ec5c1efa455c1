//! The writer: opens, recovers, applies, reads, takes snapshots.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use heed::RwTxn;
use jobs_failpoint::{Point, pass, reach};
use jobs_kv::command::REQUEST_ID_BYTES;
use jobs_kv::machine::{self, load, visit_state};
use jobs_kv::read::{self, Event, Page, RangeOptions};
use jobs_kv::{GENERATION_REQUESTS, KeyValue, KvError, Meta, Read};

use crate::digest::{self, Cursor, Pieces};
use crate::env::{Checked, DATA_FILE, Lmdb, Reading, Tables, Writing, check_rows, in_use, open, unseal, verify};
use crate::error::{Result, StoreError, no_room};
use crate::marker::{self, LastRun, boot_id, replace, sync_directory, sync_file};
use crate::snapshot;

const LOCK_FILE: &str = "lock.mdb";
const RESTORE_DIRECTORY: &str = "restore";
/// There while the data file is looked at, a byte for each look that has begun: LMDB follows pointers into nowhere, so
/// damage can end the process. A later one then knows.
const LOOKING_FILE: &str = "LOOKING";
/// So many looks without an end are no chance: once, the process may have been killed for another reason.
const MAX_LOOKS: usize = 2;
/// LMDB wants the map's size as whole pages.
const PAGE_BYTES: usize = 1 << 16;
/// Written to find out whether there is room; more than what a write that was broken off can have left.
const PROBE_FILE: &str = "room.probe";
const PROBE_BYTES: usize = 1 << 16;
const RESTORE_ROWS: usize = 100_000;
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

struct Open {
    env: Lmdb,
    tables: Tables,
}

/// The state machine on disk. Reads may run beside [`Store::apply`] on other threads.
pub struct Store {
    directory: PathBuf,
    boot_id: String,
    generation_requests: u64,
    recovered: Option<String>,
    open: Option<Open>,
    meta: Mutex<Meta>,
    writing: Mutex<()>,
    /// Raft index and term of the newest durable snapshot.
    snapshot: Mutex<(u64, u64)>,
    used: Mutex<(u32, u64)>,
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
        let mut recovered = Self::recover(directory, &boot_id, max_bytes)?;
        marker::write(directory, &boot_id, false)?;
        let (env, tables) = open(directory, max_bytes)?;
        if recovered.is_none() {
            recovered = finish_install(directory, &env, tables)?;
        }
        let meta = load_meta(&env, tables)?;
        let store = Self {
            directory: directory.to_owned(),
            boot_id,
            generation_requests: options.generation_requests,
            recovered,
            open: Some(Open { env, tables }),
            meta: Mutex::new(meta),
            writing: Mutex::new(()),
            snapshot: Mutex::new(snapshot::newest(directory, meta.index)?),
            used: Mutex::new((MEASURE_EVERY, 0)),
        };
        Ok(store)
    }

    fn recover(directory: &Path, boot_id: &str, max_bytes: usize) -> Result<Option<String>> {
        let there = directory.join(DATA_FILE).exists();
        let snapshots = snapshot::list(directory)?;
        let why = match marker::read(directory, boot_id)? {
            _ if !there && snapshots.is_empty() => return Ok(None),
            _ if !there => "the data file is gone".to_owned(),
            LastRun::Trusted => match damage(directory, max_bytes)? {
                None => return Ok(None),
                Some(damage) => format!("the data file is damaged: {damage}"),
            },
            LastRun::None | LastRun::Untrusted => "the operating system went down with the store open".to_owned(),
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
    pub fn apply(&self, entries: &[(u64, u64, &[u8])]) -> Result<Vec<Vec<u8>>> {
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

    fn apply_all(&self, entries: &[(u64, u64, &[u8])]) -> Result<Vec<Vec<u8>>> {
        let Open { env, tables } = self.opened()?;
        let mut meta = self.meta();
        let mut txn = env.write_txn()?;
        let mut writing = Writing {
            tables: *tables,
            txn: &mut txn,
        };
        let mut results = Vec::with_capacity(entries.len());
        for &(index, term, command) in entries {
            if index <= meta.index {
                results.push(Vec::new());
                continue;
            }
            let entry = (index, term, command);
            results.push(machine::apply(
                &mut writing,
                &mut meta,
                entry,
                self.generation_requests,
            )?);
        }
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
        let Open { env, tables } = self.opened()?;
        let txn = env.read_txn()?;
        Ok(check_rows(*tables, &txn, cursor, max_rows)?)
    }

    /// Bytes of the data file, and of those in it that hold nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn file_bytes(&self) -> Result<(u64, u64)> {
        let Open { env, tables } = self.opened()?;
        let txn = env.read_txn()?;
        let used = in_use(env, *tables, &txn)?;
        drop(txn);
        let file = env.real_disk_size()?;
        Ok((file, file.saturating_sub(used)))
    }

    /// Bytes of the pages in use; looked at every few commits.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn used_bytes(&self) -> Result<u64> {
        let mut used = lock(&self.used);
        if used.0 >= MEASURE_EVERY {
            let Open { env, tables } = self.opened()?;
            let txn = env.read_txn()?;
            *used = (0, in_use(env, *tables, &txn)?);
        }
        Ok(used.1)
    }

    /// Write a durable snapshot of now, delete older ones, and return its Raft index. [`Store::apply`] may go on
    /// meanwhile on another thread.
    ///
    /// # Errors
    /// [`StoreError`]; the former snapshots are still there then.
    pub fn snapshot(&self) -> Result<u64> {
        let Open { env, tables } = self.opened()?;
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
        let Open { env, tables } = self.opened()?;
        let (index, term) = snapshot::read(path, &mut |_, _| Ok(()))?;
        snapshot::check_ahead(index, self.meta().index)?;
        fail_at(Point::StoreInstallBefore, "install", path)?;
        let (txn, meta) = replace_rows(env, *tables, path).map_err(|error| self.explain(error))?;
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

    /// Sync and close. Later calls fail with [`StoreError::Closed`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn close(&mut self) -> Result<()> {
        let Some(Open { env, .. }) = self.open.take() else {
            return Ok(());
        };
        fail_at(Point::StoreCloseSyncBefore, "sync", &self.directory)?;
        env.force_sync()?;
        reach(Point::StoreCloseSyncAfter);
        env.prepare_for_closing().wait();
        marker::write(&self.directory, &self.boot_id, true)
    }

    fn opened(&self) -> Result<&Open> {
        self.open.as_ref().ok_or(StoreError::Closed)
    }

    fn reading<T>(&self, work: impl FnOnce(&Reading<'_>, &Meta) -> Result<T>) -> Result<T> {
        let Open { env, tables } = self.opened()?;
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

fn discard(directory: &Path) -> Result<()> {
    for name in [DATA_FILE, LOCK_FILE, LOOKING_FILE] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &path)(error));
            }
            _ => {}
        }
    }
    sync_directory(directory)
}

/// Build the data file from a snapshot beside the old one, and put it in place when all of the snapshot was good.
fn restore_file(directory: &Path, path: &Path, max_bytes: usize) -> Result<()> {
    let beside = directory.join(RESTORE_DIRECTORY);
    let _ = fs::remove_dir_all(&beside);
    fs::create_dir(&beside).map_err(StoreError::io("create", &beside))?;
    let (env, tables) = open(&beside, max_bytes)?;
    let loaded = load_rows(&env, tables, path);
    let synced = loaded
        .and_then(|()| fail_at(Point::StoreRestoreSyncBefore, "sync", &beside))
        .and_then(|()| Ok(env.force_sync()?));
    env.prepare_for_closing().wait();
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

/// What is wrong with a data file that ought to be whole.
fn damage(directory: &Path, max_bytes: usize) -> Result<Option<String>> {
    let looking = directory.join(LOOKING_FILE);
    let mut begun = fs::read(&looking).unwrap_or_default();
    if begun.len() >= MAX_LOOKS {
        return Ok(Some(format!("{MAX_LOOKS} looks at it ended the process")));
    }
    begun.push(b'x');
    // Without room for it there is only less help after the next crash.
    let _ = fs::write(&looking, &begun);
    let found = look_at(directory, max_bytes);
    let _ = fs::remove_file(&looking);
    found
}

fn look_at(directory: &Path, max_bytes: usize) -> Result<Option<String>> {
    let (env, tables) = match open(directory, max_bytes) {
        Err(StoreError::Lmdb(heed::Error::Mdb(error))) => return Ok(Some(error.to_string())),
        other => other?,
    };
    let txn = env.read_txn()?;
    let found = verify(tables, &txn);
    drop(txn);
    env.prepare_for_closing().wait();
    match found {
        Ok(()) => Ok(None),
        Err(error @ (heed::Error::Mdb(_) | heed::Error::Decoding(_))) => Ok(Some(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Take the newest good snapshot that is ahead of what is applied: its installation was interrupted.
fn finish_install(directory: &Path, env: &Lmdb, tables: Tables) -> Result<Option<String>> {
    let applied = load_meta(env, tables)?.index;
    let mut refused = String::new();
    for (index, path) in snapshot::list(directory)? {
        if index <= applied {
            break;
        }
        match replace_rows(env, tables, &path) {
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

/// Pass a failpoint as an operation on a file.
fn fail_at(point: Point, operation: &'static str, file: &Path) -> Result<()> {
    pass(point).map_err(|source| StoreError::io(operation, file)(source))
}

fn load_meta(env: &Lmdb, tables: Tables) -> Result<Meta> {
    let txn = env.read_txn()?;
    Ok(load(&Reading { tables, txn: &txn })?)
}

/// Begin a transaction in which a snapshot's rows take the place of all others.
fn replace_rows<'e>(env: &'e Lmdb, tables: Tables, path: &Path) -> Result<(RwTxn<'e>, Meta)> {
    let mut txn = env.write_txn()?;
    for table in tables.all() {
        table.clear(&mut txn)?;
    }
    let mut writing = Writing { tables, txn: &mut txn };
    let position = snapshot::read(path, &mut |key, value| Ok(writing.append(key, value)?))?;
    let meta = load(&writing)?;
    snapshot::check_position(path, position, &meta)?;
    Ok((txn, meta))
}

fn load_rows(env: &Lmdb, tables: Tables, path: &Path) -> Result<()> {
    let mut txn = Some(env.write_txn()?);
    let mut rows = 0;
    snapshot::read(path, &mut |key, value| {
        let open = txn.as_mut().expect("there is always one");
        Writing { tables, txn: open }.append(key, value)?;
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
