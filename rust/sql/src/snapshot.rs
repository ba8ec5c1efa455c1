//! One revision of a store, and what queries have read of it.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use jobs_kv::KeyValue;
use jobs_store::{StoreError, StoreView};

use crate::ranges::after_prefix;
use crate::split::beyond_all;

/// Threads that read at once without waiting for each other.
const MAX_READERS: usize = 16;

/// One revision of a store, and what queries have read of it.
pub struct Snapshot {
    pub(crate) view: StoreView,
    bytes_read: AtomicU64,
    rows_read: AtomicU64,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Snapshot({})", self.view.revision())
    }
}

impl Snapshot {
    /// Open a store's directory at a revision; 0 is the newest.
    ///
    /// # Errors
    /// As [`StoreView::open`].
    pub fn open(directory: &Path, revision: u64) -> Result<Self, StoreError> {
        let readers = available_parallelism().map_or(1, usize::from).min(MAX_READERS);
        Ok(Self {
            view: StoreView::open(directory, revision, readers)?,
            bytes_read: AtomicU64::new(0),
            rows_read: AtomicU64::new(0),
        })
    }

    /// Revision that is seen.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.view.revision()
    }

    /// Bytes that scans have looked at: of keys, and of values as far as they were needed.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Rows of the store that scans have looked at.
    #[must_use]
    pub fn rows_read(&self) -> u64 {
        self.rows_read.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, rows: u64, bytes: u64) {
        self.rows_read.fetch_add(rows, Ordering::Relaxed);
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Read a key, whoever may.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        self.view.with(0, |access| access.get(key))
    }

    /// Read the first keys with a prefix, whoever may.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn scan(&self, prefix: &[u8], limit: usize) -> Result<Vec<KeyValue>, StoreError> {
        let end = after_prefix(prefix).unwrap_or_else(beyond_all);
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        self.view.with(0, |access| {
            access.visit((prefix, &end), |row| {
                found.push(row.to_key_value());
                if found.len() < limit {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        })?;
        Ok(found)
    }

    /// Let go of the store; scans that run fail at their next step, which is a few milliseconds away.
    pub fn close(&self) {
        self.view.close();
    }
}
