//! Consistent reads for other processes than the one that writes.

use std::path::Path;

use jobs_kv::machine::load;
use jobs_kv::read::{Page, RangeOptions, get, range};
use jobs_kv::{KeyValue, Meta};

use crate::env::{Lmdb, Reading, Tables, open_read_only};
use crate::error::{Result, StoreError};

/// A store's directory, opened for reading while another process may be writing.
pub struct StoreReader {
    opened: Option<(Lmdb, Tables)>,
}

impl StoreReader {
    /// Open a directory.
    ///
    /// # Errors
    /// [`StoreError::Lmdb`], also when this process has the directory open already; [`StoreError::Io`] when there is no
    /// store.
    pub fn open(directory: &Path) -> Result<Self> {
        let opened = open_read_only(directory)?;
        if opened.is_none() {
            let source = std::io::ErrorKind::NotFound.into();
            return Err(StoreError::Io {
                operation: "open the store in",
                file: directory.to_owned(),
                source,
            });
        }
        Ok(Self { opened })
    }

    /// Revision that a read would see now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn revision(&self) -> Result<u64> {
        self.with(|_, meta| Ok(meta.revision))
    }

    /// Read a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        self.with(|reading, meta| Ok(get(reading, meta, key, 0)?))
    }

    /// Read a range, and the revision that it is of.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn range(&self, start: &[u8], end: &[u8], options: &RangeOptions) -> Result<(Page, u64)> {
        self.with(|reading, meta| Ok((range(reading, meta, start, end, options)?, meta.revision)))
    }

    /// Let go of the files.
    pub fn close(&mut self) {
        self.opened = None;
    }

    fn with<T>(&self, read: impl FnOnce(&Reading<'_>, &Meta) -> Result<T>) -> Result<T> {
        let (env, tables) = self.opened.as_ref().ok_or(StoreError::Closed)?;
        let txn = env.read_txn()?;
        let reading = Reading {
            tables: *tables,
            txn: &txn,
        };
        let meta = load(&reading)?;
        read(&reading, &meta)
    }
}
