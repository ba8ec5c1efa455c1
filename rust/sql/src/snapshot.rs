//! One revision of a store, and what queries have read of it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;
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
    rows_expected: AtomicU64,
    lease_ends: OnceLock<LeaseEnds>,
}

/// When leases run out unless they are kept, as who lets their time pass knew it at a moment. In ms since 1970.
#[derive(Debug)]
pub struct LeaseEnds {
    /// That moment.
    pub at_ms: i64,
    /// Of every lease that there was.
    pub ends_ms: HashMap<u64, i64>,
}

impl LeaseEnds {
    /// When a lease runs out; one that there was not is as old as that moment at most.
    pub(crate) fn end_ms(&self, lease: u64, ttl_ms: i64) -> i64 {
        let known = self.ends_ms.get(&lease).copied();
        known.unwrap_or_else(|| self.at_ms.saturating_add(ttl_ms))
    }
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
            rows_expected: AtomicU64::new(0),
            lease_ends: OnceLock::new(),
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

    /// About how many rows of the store there are in the scans that have begun.
    #[must_use]
    pub fn rows_expected(&self) -> u64 {
        self.rows_expected.load(Ordering::Relaxed)
    }

    pub(crate) fn expect(&self, rows: u64) {
        self.rows_expected.fetch_add(rows, Ordering::Relaxed);
    }

    /// Be told when leases run out, which the store does not say; only the first time counts.
    pub fn know_leases(&self, ends: LeaseEnds) {
        let _ = self.lease_ends.set(ends);
    }

    pub(crate) fn lease_ends(&self) -> Option<&LeaseEnds> {
        self.lease_ends.get()
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
