//! Python face of `jobs-log`.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jobs_log::{Log as CoreLog, LogError, Options, RealDisk};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::errors::{NativeError, log_error};

/// Segmented write-ahead log of Raft entries with term and vote.
#[pyclass(module = "jobs._native", frozen)]
struct Log {
    inner: Mutex<Option<CoreLog<RealDisk>>>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Option<CoreLog<RealDisk>>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run `work` on the open log, without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut CoreLog<RealDisk>) -> jobs_log::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| match self.lock().as_mut() {
            Some(log) => work(log).map_err(Some),
            None => Err(None),
        })
        .map_err(|error| error.map_or_else(|| NativeError::new_err("log: it is closed"), log_error))
    }

    /// Read something that is in memory.
    fn peek<T>(&self, read: impl FnOnce(&CoreLog<RealDisk>) -> T) -> PyResult<T> {
        self.lock().as_ref().map(read).ok_or_else(|| NativeError::new_err("log: it is closed"))
    }
}

fn entry_tuple(py: Python<'_>, entry: &jobs_log::Entry) -> PyResult<Py<PyTuple>> {
    Ok((PyBytes::new(py, &entry.payload), entry.index, entry.term).into_pyobject(py)?.unbind())
}

#[pymethods]
impl Log {
    #[new]
    #[pyo3(signature = (directory, *, segment_bytes = 64 << 20))]
    fn new(py: Python<'_>, directory: &str, segment_bytes: u64) -> PyResult<Self> {
        let path = Path::new(directory);
        let opened = py.detach(|| {
            let failed = |source| LogError::Io { operation: format!("open {}", path.display()), source };
            let disk = RealDisk::open(path).map_err(failed)?.ok_or_else(|| LogError::Locked(path.to_owned()))?;
            CoreLog::open(disk, Options { segment_bytes })
        });
        Ok(Self { inner: Mutex::new(Some(opened.map_err(log_error)?)) })
    }

    #[getter]
    fn recovered(&self) -> PyResult<Option<String>> {
        self.peek(|log| log.recovered().map(str::to_owned))
    }

    #[getter]
    fn first_index(&self) -> PyResult<u64> {
        self.peek(CoreLog::first_index)
    }

    #[getter]
    fn last_index(&self) -> PyResult<u64> {
        self.peek(CoreLog::last_index)
    }

    #[getter]
    fn durable_index(&self) -> PyResult<u64> {
        self.peek(CoreLog::durable_index)
    }

    #[getter]
    fn size_bytes(&self) -> PyResult<u64> {
        self.peek(CoreLog::size_bytes)
    }

    fn append(&self, py: Python<'_>, index: u64, term: u64, payload: &[u8]) -> PyResult<()> {
        self.with(py, |log| log.append(index, term, payload))
    }

    fn sync(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, CoreLog::sync)
    }

    fn get(&self, py: Python<'_>, index: u64) -> PyResult<Option<Py<PyTuple>>> {
        self.with(py, |log| log.get(index))?.map(|entry| entry_tuple(py, &entry)).transpose()
    }

    fn entries(&self, py: Python<'_>, index: u64, max_count: usize, max_bytes: usize) -> PyResult<Vec<Py<PyTuple>>> {
        let entries = self.with(py, |log| log.entries(index, max_count, max_bytes))?;
        entries.iter().map(|entry| entry_tuple(py, entry)).collect()
    }

    fn term_at(&self, index: u64) -> PyResult<Option<u64>> {
        self.peek(|log| log.term_at(index))
    }

    fn truncate_suffix(&self, py: Python<'_>, index: u64) -> PyResult<()> {
        self.with(py, |log| log.truncate_suffix(index))
    }

    fn truncate_prefix(&self, py: Python<'_>, index: u64) -> PyResult<()> {
        self.with(py, |log| log.truncate_prefix(index))
    }

    fn hard_state(&self) -> PyResult<(u64, Option<String>)> {
        self.peek(|log| {
            let (term, vote) = log.hard_state();
            (term, vote.map(str::to_owned))
        })
    }

    fn set_hard_state(&self, py: Python<'_>, term: u64, voted_for: Option<&str>) -> PyResult<()> {
        self.with(py, |log| log.set_hard_state(term, voted_for))
    }

    fn close(&self) {
        drop(self.lock().take());
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Log>()
}
