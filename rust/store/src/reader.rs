//! Consistent reads for other processes than the one that writes.

use std::path::{Path, PathBuf};

use jobs_kv::machine::load;
use jobs_kv::read::{Page, RangeOptions, get, range};
use jobs_kv::{KeyValue, Meta};

use crate::env::{Opened, Reading};
use crate::error::{Result, StoreError};
use crate::place::{self, Found};

/// A store's directory, opened for reading while another process may be writing.
pub struct StoreReader {
    directory: PathBuf,
    opened: Option<Found>,
    closed: bool,
}

impl StoreReader {
    /// Open a directory.
    ///
    /// # Errors
    /// [`StoreError::Lmdb`], also when this process has the directory open already; [`StoreError::Io`] when there is no
    /// store.
    pub fn open(directory: &Path) -> Result<Self> {
        let mut reader = Self {
            directory: directory.to_owned(),
            opened: None,
            closed: false,
        };
        reader.opened()?;
        Ok(reader)
    }

    /// Revision that a read would see now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn revision(&mut self) -> Result<u64> {
        self.with(|_, meta| Ok(meta.revision))
    }

    /// Read a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&mut self, key: &[u8]) -> Result<Option<KeyValue>> {
        self.with(|reading, meta| Ok(get(reading, meta, key, 0)?))
    }

    /// Read a range, and the revision that it is of.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn range(&mut self, start: &[u8], end: &[u8], options: &RangeOptions) -> Result<(Page, u64)> {
        self.with(|reading, meta| Ok((range(reading, meta, start, end, options)?, meta.revision)))
    }

    /// Let go of the files.
    pub fn close(&mut self) {
        self.opened = None;
        self.closed = true;
    }

    fn with<T>(&mut self, read: impl FnOnce(&Reading<'_>, &Meta) -> Result<T>) -> Result<T> {
        let Opened { env, tables, .. } = self.opened()?;
        let txn = env.read_txn()?;
        let reading = Reading {
            tables: *tables,
            txn: &txn,
        };
        let meta = load(&reading)?;
        read(&reading, &meta)
    }

    /// The store's data file as it is open here; another one is opened when it has taken that one's place.
    fn opened(&mut self) -> Result<&Opened> {
        if self.closed {
            return Err(StoreError::Closed);
        }
        let known = match self.opened.take() {
            Some(known) if place::identity(&self.directory)?.as_ref() == Some(&known.identity) => known,
            former => {
                drop(former);
                place::open(&self.directory)?
            }
        };
        Ok(&self.opened.insert(known).opened)
    }
}
