//! One revision of the store, read by several threads of a process that need not be the one that writes.
//!
//! A view holds LMDB read transactions from its beginning to its end. As long as it is open, the writer cannot use again
//! the pages that the view may see: a file under heavy writes grows for as long. So views are for work of bounded length.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use heed::{Error, RoTxn, WithoutTls, env_closing_event};
use jobs_kv::machine::load;
use jobs_kv::read::{self, RangeOptions, Row};
use jobs_kv::{KeyValue, Meta};

use crate::env::{Opened, Reading, Tables, open_read_only};
use crate::error::{Result, StoreError};
use crate::place::{self, Identity};

/// How often transactions are begun anew to see one revision, while another process commits between them.
const TRIES: usize = 1_000;
/// How long a former view of this process may take to let go of the files.
const CLOSING: Duration = Duration::from_secs(5);

type Txn = RoTxn<'static, WithoutTls>;

/// The files of a store as they are open in this process; LMDB allows that once.
struct Shared {
    identity: Identity,
    opened: Opened,
}

/// What is open, and where; what no view has any more is about to be closed.
static REGISTRY: Mutex<Vec<(PathBuf, Weak<Shared>)>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A transaction, and the files that it is of.
struct Reader {
    txn: Txn,
    _shared: Arc<Shared>,
}

/// One revision of a store.
pub struct StoreView {
    tables: Tables,
    /// Transactions of one revision, each for one thread at a time.
    readers: Vec<Mutex<Option<Reader>>>,
    meta: Meta,
    revision: u64,
}

/// Reads of one view by one thread.
pub struct Access<'a> {
    reading: Reading<'a>,
    meta: &'a Meta,
    revision: u64,
}

impl StoreView {
    /// Open a store at a revision, 0 for the newest, for so many threads at once. There may be fewer `readers` where
    /// other processes commit without a pause.
    ///
    /// # Errors
    /// [`StoreError::NotReached`], `KvError::Compacted`, [`StoreError::Io`] when there is no store, and
    /// [`StoreError::Lmdb`], also when this process has it open in another way.
    pub fn open(directory: &Path, revision: u64, readers: usize) -> Result<Self> {
        let shared = share(directory)?;
        // Of processes that were killed: what they saw would be kept for good.
        shared.opened.env.clear_stale_readers()?;
        let (readers, meta) = begin(&shared, readers.max(1))?;
        if revision > meta.revision {
            return Err(StoreError::NotReached {
                asked: revision,
                reached: meta.revision,
            });
        }
        let reader = |txn| Reader {
            txn,
            _shared: Arc::clone(&shared),
        };
        let view = Self {
            tables: shared.opened.tables,
            readers: readers.into_iter().map(|txn| Mutex::new(Some(reader(txn)))).collect(),
            meta,
            revision: if revision == 0 { meta.revision } else { revision },
        };
        // Tells whether the revision is still kept.
        view.with(0, |access| access.get(b"/"))?;
        Ok(view)
    }

    /// Revision that is seen.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many threads can read at once.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.readers.len()
    }

    /// About how many keys there are: those of leases and of deletes that are still known are counted too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn entries(&self) -> Result<u64> {
        let guard = lock(&self.readers[0]);
        let reader = guard.as_ref().ok_or(StoreError::Closed)?;
        Ok(self.tables.all()[0].len(&reader.txn)?)
    }

    /// Read as one of the `readers`; another thread that is the same one waits.
    ///
    /// # Errors
    /// [`StoreError::Closed`], and what `work` says.
    pub fn with<T>(&self, reader: usize, work: impl FnOnce(&Access<'_>) -> Result<T>) -> Result<T> {
        let guard = lock(&self.readers[reader % self.readers.len()]);
        let reader = guard.as_ref().ok_or(StoreError::Closed)?;
        work(&Access {
            reading: Reading {
                tables: self.tables,
                txn: &reader.txn,
            },
            meta: &self.meta,
            revision: self.revision,
        })
    }

    /// Let go of what is seen; reads after it fail with [`StoreError::Closed`]. Waits for reads that go on.
    pub fn close(&self) {
        for reader in &self.readers {
            drop(lock(reader).take());
        }
    }
}

impl Access<'_> {
    /// Read a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        Ok(read::get(&self.reading, self.meta, key, self.revision)?)
    }

    /// Visit the keys in `[start, end)` in order, until the visitor breaks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn visit(&self, (start, end): (&[u8], &[u8]), each: impl FnMut(Row<'_>) -> ControlFlow<()>) -> Result<()> {
        Ok(read::visit(
            &self.reading,
            self.meta,
            (start, end),
            self.revision,
            each,
        )?)
    }

    /// Whether what is seen is the newest revision.
    #[must_use]
    pub fn is_newest(&self) -> bool {
        self.revision >= self.meta.revision
    }

    /// Visit the keys in `[start, end)` in order as they are in the newest revision, until the visitor breaks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn visit_keys(&self, range: (&[u8], &[u8]), each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<()> {
        Ok(read::visit_keys(&self.reading, range, each)?)
    }

    /// First key in `[start, end)`, of the newest revision.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn first_key(&self, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        self.visit_keys((start, end), |key| {
            found = Some(key.to_vec());
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Last key in `[start, end)`, of the newest revision.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_key(&self, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>> {
        let options = RangeOptions {
            limit: 1,
            max_bytes: usize::MAX,
            revision: 0,
            reverse: true,
            keys_only: true,
        };
        let (rows, _) = read::range(&self.reading, self.meta, start, end, &options)?;
        Ok(rows.into_iter().next().map(|row| row.key))
    }

    /// Time to live in ms that a lease has now, whatever the revision; `None` when it is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lease_ttl_ms(&self, lease: u64) -> Result<Option<u64>> {
        Ok(read::lease_ttl_ms(&self.reading, lease)?)
    }
}

/// Find the files among those that are open, or open them.
fn share(directory: &Path) -> Result<Arc<Shared>> {
    let directory = directory
        .canonicalize()
        .map_err(StoreError::io("open the store in", directory))?;
    let mut registry = lock(&REGISTRY);
    let (_, shared) = place::open_with(&directory, |found| share_found(&mut registry, found))?;
    Ok(shared)
}

fn share_found(registry: &mut Vec<(PathBuf, Weak<Shared>)>, found: &Identity) -> Result<Option<Arc<Shared>>> {
    let mut known = registry.iter().filter_map(|(_, shared)| shared.upgrade());
    if let Some(shared) = known.find(|shared| shared.identity == *found) {
        return Ok(Some(shared));
    }
    let ours = registry.iter().any(|(of, _)| *of == found.place);
    let opened = match open_read_only(&found.place) {
        // The last view of it is just going, or of a file that has been replaced.
        Err(StoreError::Lmdb(Error::EnvAlreadyOpened)) if ours => {
            if let Some(closing) = env_closing_event(&found.place) {
                closing.wait_timeout(CLOSING);
            }
            open_read_only(&found.place)
        }
        opened => opened,
    };
    let Some(opened) = opened? else {
        return Ok(None);
    };
    let shared = Arc::new(Shared {
        identity: found.clone(),
        opened,
    });
    registry.retain(|(_, known)| known.strong_count() > 0);
    registry.push((found.place.clone(), Arc::downgrade(&shared)));
    Ok(Some(shared))
}

/// Begin transactions that all see the same.
fn begin(shared: &Shared, wanted: usize) -> Result<(Vec<Txn>, Meta)> {
    let begin_one = || -> Result<(Txn, Meta)> {
        let txn = shared.opened.env.clone().static_read_txn()?;
        let meta = load(&Reading {
            tables: shared.opened.tables,
            txn: &txn,
        })?;
        Ok((txn, meta))
    };
    let (first, mut meta) = begin_one()?;
    let mut txns = vec![first];
    for _ in 0..TRIES {
        if txns.len() == wanted {
            break;
        }
        let (txn, seen) = begin_one()?;
        if seen != meta {
            txns.clear();
            meta = seen;
        }
        txns.push(txn);
    }
    Ok((txns, meta))
}
