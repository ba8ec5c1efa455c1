//! Python face of `jobs-log`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use jobs_log::{Log as CoreLog, Options, RealDisk, Result};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::errors::{NativeError, log_error};
use crate::sim::{AnyDisk, SimDisk};

type Opened = Option<CoreLog<AnyDisk>>;

/// Segmented write-ahead log of Raft entries with term and vote.
#[pyclass(module = "jobs._native", frozen)]
struct Log {
    inner: Mutex<Opened>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Opened> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run `work` on the open log, without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut CoreLog<AnyDisk>) -> Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| self.lock().as_mut().map(work))
            .ok_or_else(closed)?
            .map_err(log_error)
    }

    /// Read something that is in memory: with the GIL, unless another thread is at work on the log.
    fn peek<T: Send>(&self, py: Python<'_>, read: impl FnOnce(&CoreLog<AnyDisk>) -> T + Send) -> PyResult<T> {
        match self.inner.try_lock() {
            Ok(log) => log.as_ref().map(read),
            Err(TryLockError::Poisoned(error)) => error.into_inner().as_ref().map(read),
            Err(TryLockError::WouldBlock) => py.detach(|| self.lock().as_ref().map(read)),
        }
        .ok_or_else(closed)
    }
}

fn closed() -> PyErr {
    NativeError::new_err("log: it is closed")
}

fn entry_tuple(py: Python<'_>, entry: &jobs_log::Entry) -> PyResult<Py<PyTuple>> {
    Ok((PyBytes::new(py, &entry.payload), entry.index, entry.term)
        .into_pyobject(py)?
        .unbind())
}

#[pymethods]
impl Log {
    #[new]
    #[pyo3(signature = (directory, *, segment_bytes = 64 << 20))]
    fn new(py: Python<'_>, directory: &str, segment_bytes: usize) -> PyResult<Self> {
        let salt = RandomState::new().build_hasher().finish();
        let options = Options { segment_bytes, salt };
        let opened = py.detach(|| CoreLog::open(AnyDisk::Real(RealDisk::open(Path::new(directory))?), options));
        Ok(Self {
            inner: Mutex::new(Some(opened.map_err(log_error)?)),
        })
    }

    #[staticmethod]
    #[pyo3(signature = (disk, *, segment_bytes = 64 << 10))]
    fn on(py: Python<'_>, disk: &SimDisk, segment_bytes: usize) -> PyResult<Self> {
        let (disk, salt) = disk.opened();
        let opened = py.detach(|| CoreLog::open(disk, Options { segment_bytes, salt }));
        Ok(Self {
            inner: Mutex::new(Some(opened.map_err(log_error)?)),
        })
    }

    #[getter]
    fn recovered(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.peek(py, |log| log.recovered().map(str::to_owned))
    }

    #[getter]
    fn first_index(&self, py: Python<'_>) -> PyResult<u64> {
        self.peek(py, CoreLog::first_index)
    }

    #[getter]
    fn last_index(&self, py: Python<'_>) -> PyResult<u64> {
        self.peek(py, CoreLog::last_index)
    }

    #[getter]
    fn durable_index(&self, py: Python<'_>) -> PyResult<u64> {
        self.peek(py, CoreLog::durable_index)
    }

    #[getter]
    fn size_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.peek(py, CoreLog::size_bytes)
    }

    fn append(&self, py: Python<'_>, index: u64, term: u64, payload: &[u8]) -> PyResult<()> {
        self.with(py, |log| log.append(index, term, payload))
    }

    fn sync(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, CoreLog::sync)
    }

    fn get(&self, py: Python<'_>, index: u64) -> PyResult<Option<Py<PyTuple>>> {
        self.with(py, |log| log.get(index))?
            .map(|entry| entry_tuple(py, &entry))
            .transpose()
    }

    fn entries(&self, py: Python<'_>, index: u64, max_count: usize, max_bytes: usize) -> PyResult<Vec<Py<PyTuple>>> {
        let entries = self.with(py, |log| log.entries(index, max_count, max_bytes))?;
        entries.iter().map(|entry| entry_tuple(py, entry)).collect()
    }

    fn term_at(&self, py: Python<'_>, index: u64) -> PyResult<Option<u64>> {
        self.peek(py, |log| log.term_at(index))
    }

    fn truncate_suffix(&self, py: Python<'_>, index: u64) -> PyResult<()> {
        self.with(py, |log| log.truncate_suffix(index))
    }

    fn truncate_prefix(&self, py: Python<'_>, index: u64) -> PyResult<()> {
        self.with(py, |log| log.truncate_prefix(index))
    }

    fn hard_state(&self, py: Python<'_>) -> PyResult<(u64, Option<String>)> {
        self.peek(py, |log| {
            let (term, vote) = log.hard_state();
            (term, vote.map(str::to_owned))
        })
    }

    fn set_hard_state(&self, py: Python<'_>, term: u64, voted_for: Option<&str>) -> PyResult<()> {
        self.with(py, |log| log.set_hard_state(term, voted_for))
    }

    #[pyo3(signature = (index, *, max_bytes = 8 << 20))]
    fn check(&self, py: Python<'_>, index: u64, max_bytes: usize) -> PyResult<(u64, u64)> {
        match self.with(py, |log| log.check(index, max_bytes))? {
            None => Ok((index, 0)),
            // Without the lock: writes need not wait for the disk to be read.
            Some(check) => py.detach(|| check.run()).map_err(log_error),
        }
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.lock().take()));
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Log>()
}
