//! LMDB as a backend of the machine.
//!
//! LMDB trusts what it reads, so each row carries a checksum of its key and value: a row that the disk has changed is never
//! served. [`verify`] looks at all of them, and at what LMDB itself says of its tables.
#![allow(unsafe_code, reason = "opening LMDB maps a file, which Rust cannot check")]

use std::fs::{self, Permissions};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, RwTxn, WithoutTls};
use jobs_kv::backend::Visit;
use jobs_kv::{Backend, Kind, Read, kind_of};

use crate::error::{Result, StoreError};
use crate::seal::{SEAL_BYTES, seal};

/// File of the data, and the one in which LMDB keeps who reads what of it.
pub(crate) const DATA_FILE: &str = "data.mdb";
pub(crate) const LOCK_FILE: &str = "lock.mdb";
/// Readers, in all processes together.
const MAX_READERS: u32 = 1024;

/// Of a directory that hands its group on to what is made in it, and lets that group in.
const SHARED: u32 = 0o2050;
/// Pages at a data file's beginning that name the others.
const META_PAGES: u64 = 2;
/// Bytes of rows that are checked in one go.
const CHECK_BYTES: u64 = 64 << 20;
/// Damaged rows that are told of in one go.
const MAX_DAMAGED: usize = 100;

pub(crate) type Lmdb = Env<WithoutTls>;
type Table = Database<'static, Bytes, Bytes>;

/// Where the rows lie. History has a table of its own, because it only grows at its end: a row appended there needs no
/// search, and fills its page, where one put into the middle of a table leaves half a page free. So has each generation
/// of request ids: a table is cleared page by page, not row by row.
#[derive(Clone, Copy)]
pub(crate) struct Tables([Table; Kind::ALL.len()]);

/// Names of the tables, in the order of [`Kind::ALL`].
const NAMES: [&str; Kind::ALL.len()] = ["state", "history", "requests-0", "requests-1"];
#[allow(clippy::cast_possible_truncation, reason = "there are few")]
const MAX_TABLES: u32 = NAMES.len() as u32;

impl Tables {
    fn of(&self, kind: Kind) -> Table {
        match kind {
            Kind::State => self.0[0],
            Kind::History => self.0[1],
            Kind::Requests(generation) => self.0[2 + generation],
        }
    }

    fn with(&self, key: &[u8]) -> Table {
        self.of(kind_of(key))
    }

    /// All, in the order in which a snapshot has them.
    pub fn all(&self) -> [Table; NAMES.len()] {
        self.0
    }
}

/// A data file that is open.
pub(crate) struct Opened {
    /// Directory that it lies in.
    pub place: PathBuf,
    pub env: Lmdb,
    pub tables: Tables,
}

impl Opened {
    /// Close it; nobody else may have it.
    pub fn close(self) {
        self.env.prepare_for_closing().wait();
    }
}

/// Open for writing the data file in a directory. Commits are not synced.
pub(crate) fn open(place: &Path, max_bytes: usize) -> Result<Opened> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(max_bytes).max_readers(MAX_READERS).max_dbs(MAX_TABLES);
    // SAFETY: the flags only weaken durability, which the Raft log provides (see the crate's first lines). The file is
    // written by this process alone: the log beside it is locked, and heed refuses to open a path twice in a process.
    let env = unsafe {
        options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_READ_AHEAD);
        options.open(place)?
    };
    share(place).map_err(StoreError::io("let its group read", place))?;
    env.clear_stale_readers()?;
    let txn = env.write_txn()?;
    let tables = env
        .create_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
            let made = NAMES.map(|name| opener.create_database::<Bytes, Bytes>(txn, Some(name)));
            let [state, history, even, odd] = made;
            Ok(CommitOrAbort::<_, ()>::Commit([state?, history?, even?, odd?]))
        })?
        .unwrap_commit();
    Ok(Opened {
        place: place.to_owned(),
        env,
        tables: Tables(tables),
    })
}

/// Let the group of a directory read the data file in it, where the directory says so: LMDB makes its files for their
/// owner alone. Readers write to the lock file.
fn share(place: &Path) -> io::Result<()> {
    if fs::metadata(place)?.permissions().mode() & SHARED != SHARED {
        return Ok(());
    }
    for (file, mode) in [(DATA_FILE, 0o640), (LOCK_FILE, 0o660)] {
        fs::set_permissions(place.join(file), Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Open for reading the data file in a directory; `None` when there is nothing yet.
pub(crate) fn open_read_only(place: &Path) -> Result<Option<Opened>> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    // LMDB takes the map's size from the file: it is the writer's, up to which the file may grow while this is open.
    options.max_readers(MAX_READERS).max_dbs(MAX_TABLES);
    // SAFETY: read-only, through LMDB's own lock file, so the writer keeps the pages that this reader sees.
    let env = unsafe {
        options.flags(EnvFlags::READ_ONLY);
        options.open(place)?
    };
    let txn = env.read_txn()?;
    let [state, history, even, odd] = env
        .open_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
            let [state, history, even, odd] = NAMES.map(|name| opener.open_database::<Bytes, Bytes>(txn, Some(name)));
            Ok(CommitOrAbort::<_, ()>::Commit([state?, history?, even?, odd?]))
        })?
        .unwrap_commit();
    let (Some(state), Some(history), Some(even), Some(odd)) = (state, history, even, odd) else {
        return Ok(None);
    };
    Ok(Some(Opened {
        place: place.to_owned(),
        env,
        tables: Tables([state, history, even, odd]),
    }))
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
        get(self.tables.with(key), self.txn, key)
    }

    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, visit: impl Visit) -> heed::Result<()> {
        scan(self.tables.with(start), self.txn, start, end, reverse, visit)
    }

    fn scan_keys(&self, start: &[u8], end: &[u8], mut visit: impl FnMut(&[u8]) -> ControlFlow<()>) -> heed::Result<()> {
        if start >= end {
            return Ok(());
        }
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        for row in self.tables.with(start).range(self.txn, &bounds)? {
            if visit(row?.0).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Read for Writing<'_, '_> {
    type Error = heed::Error;

    fn get(&self, key: &[u8]) -> heed::Result<Option<Vec<u8>>> {
        get(self.tables.with(key), self.txn, key)
    }

    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, visit: impl Visit) -> heed::Result<()> {
        scan(self.tables.with(start), self.txn, start, end, reverse, visit)
    }
}

impl Writing<'_, '_> {
    /// Put a row behind all others of its table.
    pub fn append(&mut self, key: &[u8], value: &[u8]) -> heed::Result<()> {
        self.put_sealed(self.tables.with(key), PutFlags::APPEND, key, value)
    }

    fn put_sealed(&mut self, table: Table, flags: PutFlags, key: &[u8], value: &[u8]) -> heed::Result<()> {
        table.put_with_flags(self.txn, flags, key, &[value, &seal(key, value)[..]].concat())
    }
}

impl Backend for Writing<'_, '_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> heed::Result<()> {
        match kind_of(key) {
            // The machine's events come in order.
            Kind::History => self.append(key, value),
            kind => self.put_sealed(self.tables.of(kind), PutFlags::empty(), key, value),
        }
    }

    fn delete(&mut self, key: &[u8]) -> heed::Result<()> {
        self.tables.with(key).delete(self.txn, key).map(drop)
    }

    fn clear(&mut self, kind: Kind) -> heed::Result<()> {
        self.tables.of(kind).clear(self.txn)
    }
}

/// The value of a row as it lies in a table, without its checksum.
///
/// # Errors
/// [`heed::Error::Decoding`] when the row is not what was written.
#[inline]
pub(crate) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> heed::Result<&'a [u8]> {
    match sealed.split_last_chunk::<SEAL_BYTES>() {
        Some((value, found)) if *found == seal(key, value) => Ok(value),
        _ => Err(changed(key)),
    }
}

#[cold]
fn changed(key: &[u8]) -> heed::Error {
    let key = String::from_utf8_lossy(key);
    heed::Error::Decoding(format!("the row of key {key:?} fails its checksum").into())
}

/// Look at every row.
///
/// # Errors
/// What is wrong with the first one that is not what was written, or what LMDB says of its pages.
pub(crate) fn verify(tables: Tables, txn: &RoTxn) -> heed::Result<()> {
    for (table, name) in tables.all().into_iter().zip(NAMES) {
        let (mut rows, mut before) = (0, Vec::new());
        for row in table.iter(txn)? {
            let (key, sealed) = row?;
            unseal(key, sealed)?;
            if rows > 0 && key <= &before[..] {
                return Err(heed::Error::Decoding(format!("table {name} is out of order").into()));
            }
            before.clear();
            before.extend_from_slice(key);
            rows += 1;
        }
        let known = table.len(txn)?;
        if rows != known {
            return Err(heed::Error::Decoding(
                format!("table {name} has {rows} rows of {known}").into(),
            ));
        }
    }
    Ok(())
}

/// What a look at some rows has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Rows looked at.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Where to go on; `None` at the end.
    pub cursor: Option<Vec<u8>>,
    /// What is wrong with those that are not what was written.
    pub damaged: Vec<String>,
}

/// Look at the next rows from a cursor on, an empty one for the beginning. A cursor is the number of a table and the key
/// that was looked at last.
pub(crate) fn check_rows(tables: Tables, txn: &RoTxn, cursor: &[u8], max_rows: usize) -> heed::Result<Checked> {
    let (first, mut after) = match cursor.split_first() {
        Some((&table, key)) => (usize::from(table), Bound::Excluded(key)),
        None => (0, Bound::Unbounded),
    };
    let mut checked = Checked::default();
    for (number, (table, name)) in (0..).zip(tables.all().into_iter().zip(NAMES)).skip(first) {
        for row in table.range(txn, &(after, Bound::Unbounded))? {
            let (key, sealed) = row?;
            checked.rows += 1;
            checked.bytes += (key.len() + sealed.len()) as u64;
            if let Err(error) = unseal(key, sealed) {
                checked.damaged.push(format!("table {name}: {error}"));
            }
            let full = checked.rows >= max_rows as u64 || checked.bytes >= CHECK_BYTES;
            if full || checked.damaged.len() >= MAX_DAMAGED {
                checked.cursor = Some([&[number], key].concat());
                return Ok(checked);
            }
        }
        after = Bound::Unbounded;
    }
    Ok(checked)
}

/// Bytes of the pages in use.
pub(crate) fn in_use(Opened { env, tables, .. }: &Opened, txn: &RoTxn<WithoutTls>) -> heed::Result<u64> {
    let names = env.unnamed_database_stat();
    let page_bytes = u64::from(names.page_size);
    let stats = tables.all().map(|table| table.stat(txn));
    let mut pages = META_PAGES;
    for stat in stats.into_iter().chain([Ok(names)]) {
        let stat = stat?;
        pages += (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64;
    }
    Ok(pages * page_bytes)
}

fn get(table: Table, txn: &RoTxn, key: &[u8]) -> heed::Result<Option<Vec<u8>>> {
    let sealed = table.get(txn, key)?;
    sealed.map(|sealed| Ok(unseal(key, sealed)?.to_vec())).transpose()
}

fn scan(table: Table, txn: &RoTxn, start: &[u8], end: &[u8], reverse: bool, mut visit: impl Visit) -> heed::Result<()> {
    if start >= end {
        return Ok(());
    }
    let bounds = (Bound::Included(start), Bound::Excluded(end));
    if reverse {
        for row in table.rev_range(txn, &bounds)? {
            let (key, sealed) = row?;
            if visit(key, unseal(key, sealed)?).is_break() {
                break;
            }
        }
    } else {
        for row in table.range(txn, &bounds)? {
            let (key, sealed) = row?;
            if visit(key, unseal(key, sealed)?).is_break() {
                break;
            }
        }
    }
    Ok(())
}
