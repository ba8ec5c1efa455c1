//! LMDB as a backend of the machine.
#![allow(unsafe_code, reason = "opening LMDB maps a file, which Rust cannot check")]

use std::ops::Bound;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, RwTxn, WithoutTls};
use jobs_kv::backend::Visit;
use jobs_kv::{Backend, Read, is_history};

use crate::error::{Result, StoreError};

/// File of the data in a store's directory.
pub const DATA_FILE: &str = "data.mdb";
/// Readers, in all processes together.
const MAX_READERS: u32 = 1024;

pub(crate) type Lmdb = Env<WithoutTls>;
type Table = Database<'static, Bytes, Bytes>;

/// Where the rows lie. History has a table of its own, because it only grows at its end: a row appended there needs no
/// search, and fills its page, where one put into the middle of a table leaves half a page free.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    state: Table,
    history: Table,
}

impl Tables {
    const NAMES: [&'static str; 2] = ["state", "history"];

    fn of(&self, key: &[u8]) -> Table {
        if is_history(key) { self.history } else { self.state }
    }

    /// Both, in the order in which a snapshot has them.
    pub fn all(&self) -> [Table; 2] {
        [self.state, self.history]
    }
}

/// Open for writing. Commits are not synced.
pub(crate) fn open(directory: &Path, max_bytes: usize) -> Result<(Lmdb, Tables)> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(max_bytes).max_readers(MAX_READERS).max_dbs(2);
    // SAFETY: the flags only weaken durability, which the Raft log provides (see the crate's first lines). The file is
    // written by this process alone: the log beside it is locked, and heed refuses to open a path twice in a process.
    let env = unsafe {
        options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_READ_AHEAD);
        options.open(directory)?
    };
    env.clear_stale_readers()?;
    let txn = env.write_txn()?;
    let (state, history) = env
        .create_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
            let [state, history] = Tables::NAMES;
            Ok(CommitOrAbort::<_, ()>::Commit((
                opener.create_database::<Bytes, Bytes>(txn, Some(state))?,
                opener.create_database::<Bytes, Bytes>(txn, Some(history))?,
            )))
        })?
        .unwrap_commit();
    let tables = Tables { state, history };
    Ok((env, tables))
}

/// Open for reading; `None` when there is nothing yet.
pub(crate) fn open_read_only(directory: &Path) -> Result<Option<(Lmdb, Tables)>> {
    let data = directory.join(DATA_FILE);
    let len = match std::fs::metadata(&data) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("look at", &data)(error)),
    };
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    // LMDB takes the map's size from the file where that is larger.
    options
        .map_size(usize::try_from(len).unwrap_or(usize::MAX).max(1 << 20))
        .max_readers(MAX_READERS)
        .max_dbs(2);
    // SAFETY: read-only, through LMDB's own lock file, so the writer keeps the pages that this reader sees.
    let env = unsafe {
        options.flags(EnvFlags::READ_ONLY);
        options.open(directory)?
    };
    let txn = env.read_txn()?;
    let (state, history) = env
        .open_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
            let [state, history] = Tables::NAMES;
            Ok(CommitOrAbort::<_, ()>::Commit((
                opener.open_database::<Bytes, Bytes>(txn, Some(state))?,
                opener.open_database::<Bytes, Bytes>(txn, Some(history))?,
            )))
        })?
        .unwrap_commit();
    let tables = state.zip(history).map(|(state, history)| Tables { state, history });
    Ok(tables.map(|tables| (env, tables)))
}

/// A read transaction.
pub(crate) struct Reading<'a> {
    pub tables: Tables,
    pub txn: &'a RoTxn<'a, WithoutTls>,
}

/// A write transaction.
pub(crate) struct Writing<'a, 'e> {
    pub tables: Tables,
    pub txn: &'a mut RwTxn<'e>,
}

impl Read for Reading<'_> {
    type Error = heed::Error;

    fn get(&self, key: &[u8]) -> heed::Result<Option<Vec<u8>>> {
        Ok(self.tables.of(key).get(self.txn, key)?.map(<[u8]>::to_vec))
    }

    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, visit: Visit<'_>) -> heed::Result<()> {
        scan(self.tables.of(start), self.txn, start, end, reverse, visit)
    }
}

impl Read for Writing<'_, '_> {
    type Error = heed::Error;

    fn get(&self, key: &[u8]) -> heed::Result<Option<Vec<u8>>> {
        Ok(self.tables.of(key).get(self.txn, key)?.map(<[u8]>::to_vec))
    }

    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, visit: Visit<'_>) -> heed::Result<()> {
        scan(self.tables.of(start), self.txn, start, end, reverse, visit)
    }
}

impl Writing<'_, '_> {
    /// Put a row behind all others of its table.
    pub fn append(&mut self, key: &[u8], value: &[u8]) -> heed::Result<()> {
        self.tables
            .of(key)
            .put_with_flags(self.txn, PutFlags::APPEND, key, value)
    }
}

impl Backend for Writing<'_, '_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> heed::Result<()> {
        if is_history(key) {
            // The machine's events come in order.
            return self.append(key, value);
        }
        self.tables.state.put(self.txn, key, value)
    }

    fn delete(&mut self, key: &[u8]) -> heed::Result<()> {
        self.tables.of(key).delete(self.txn, key).map(drop)
    }
}

fn scan(table: Table, txn: &RoTxn, start: &[u8], end: &[u8], reverse: bool, visit: Visit<'_>) -> heed::Result<()> {
    if start >= end {
        return Ok(());
    }
    let bounds = (Bound::Included(start), Bound::Excluded(end));
    if reverse {
        for row in table.rev_range(txn, &bounds)? {
            let (key, value) = row?;
            if visit(key, value).is_break() {
                break;
            }
        }
    } else {
        for row in table.range(txn, &bounds)? {
            let (key, value) = row?;
            if visit(key, value).is_break() {
                break;
            }
        }
    }
    Ok(())
}
