//! Python face of `jobs-blobs`. Every call that touches the disk releases the GIL.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jobs_blobs::{
    Adding, BlobError, Deletion, FetchOptions, Hash, OperationEvent, Options, Reader, Service, Tried, Verdict,
    parse_hash,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::errors::blob_error;
use crate::net::Endpoint;

type PyStat = (String, u64, u64);
type PyTried = (String, u64, String);
type PyBlobEvent = (u64, &'static str, u64, u64, u64, u64, String, Vec<PyTried>);

fn tried(tried: Vec<Tried>) -> Vec<PyTried> {
    tried
        .into_iter()
        .map(|tried| (tried.peer, tried.bytes, tried.reason))
        .collect()
}

/// (number, what, bytes, bytes of all, blobs, blobs of all, text, providers); `what` is progress, done, or a kind of error.
fn event(event: OperationEvent) -> PyBlobEvent {
    match event {
        OperationEvent::Progress(number, now) => {
            let (bytes, blobs) = ((now.done_bytes, now.total_bytes), (now.done_blobs, now.total_blobs));
            (
                number,
                "progress",
                bytes.0,
                bytes.1,
                blobs.0,
                blobs.1,
                String::new(),
                Vec::new(),
            )
        }
        OperationEvent::Ended(number, Ok(done)) => {
            let providers = tried(done.tried);
            (
                number,
                "done",
                done.size,
                done.size,
                done.blobs,
                done.blobs,
                String::new(),
                providers,
            )
        }
        OperationEvent::Ended(number, Err(error)) => {
            let (kind, text) = (error.kind(), error.to_string());
            let providers = match error {
                BlobError::Unavailable { tried: providers, .. } => tried(providers),
                _ => Vec::new(),
            };
            (number, kind, 0, 0, 0, 0, text, providers)
        }
    }
}

fn hash(text: &str) -> PyResult<Hash> {
    parse_hash(text).map_err(blob_error)
}

/// A node's blobs.
#[pyclass(module = "jobs._native", frozen)]
struct Blobs {
    inner: Service,
}

impl Blobs {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Service) -> jobs_blobs::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| work(&self.inner)).map_err(blob_error)
    }
}

#[pymethods]
impl Blobs {
    #[new]
    #[pyo3(signature = (directory, *, min_free_bytes = None))]
    fn new(py: Python<'_>, directory: &str, min_free_bytes: Option<u64>) -> PyResult<Self> {
        let mut options = Options::default();
        if let Some(bytes) = min_free_bytes {
            options.min_free_bytes = bytes;
        }
        let inner = py
            .detach(|| Service::open(Path::new(directory), options))
            .map_err(blob_error)?;
        Ok(Self { inner })
    }

    fn join(&self, py: Python<'_>, endpoint: &Endpoint) -> PyResult<()> {
        self.with(py, |service| service.join(&endpoint.inner))
    }

    fn add(&self, py: Python<'_>) -> PyResult<BlobWriter> {
        let adding = self.with(py, |service| Adding::begin(service.store()))?;
        Ok(BlobWriter {
            inner: Mutex::new(Some(adding)),
        })
    }

    fn open(&self, py: Python<'_>, blob: &str) -> PyResult<BlobReader> {
        let blob = hash(blob)?;
        let reader = self.with(py, |service| Reader::open(service.store(), &blob))?;
        Ok(BlobReader {
            size: reader.size(),
            inner: Mutex::new(Some(reader)),
        })
    }

    fn stat(&self, py: Python<'_>, blob: &str) -> PyResult<Option<(u64, u64)>> {
        let blob = hash(blob)?;
        let stat = self.with(py, |service| service.store().stat(&blob))?;
        Ok(stat.map(|stat| (stat.size, stat.added_ms)))
    }

    #[pyo3(signature = (after = None, *, max_count = 1_000))]
    fn page(&self, py: Python<'_>, after: Option<&str>, max_count: usize) -> PyResult<Vec<PyStat>> {
        let after = after.map(hash).transpose()?;
        let found = self.with(py, |service| service.store().list(after.as_ref(), max_count))?;
        Ok(found
            .into_iter()
            .map(|stat| (stat.hash.to_hex(), stat.size, stat.added_ms))
            .collect())
    }

    #[pyo3(signature = (blob, *, min_age_ms = 0))]
    fn delete(&self, py: Python<'_>, blob: &str, min_age_ms: u64) -> PyResult<(&'static str, u64)> {
        let blob = hash(blob)?;
        let deletion = self.with(py, |service| service.store().delete(&blob, min_age_ms))?;
        Ok(match deletion {
            Deletion::Deleted(bytes) => ("deleted", bytes),
            Deletion::Missing => ("missing", 0),
            Deletion::Held => ("held", 0),
            Deletion::Recent => ("recent", 0),
        })
    }

    fn verify(&self, py: Python<'_>, blob: &str) -> PyResult<&'static str> {
        let blob = hash(blob)?;
        let verdict = self.with(py, |service| service.store().verify(&blob))?;
        Ok(match verdict {
            Verdict::Sound => "sound",
            Verdict::Mended => "mended",
            Verdict::Damaged => "damaged",
            Verdict::Missing => "missing",
        })
    }

    fn partials(&self, py: Python<'_>) -> PyResult<Vec<(String, u64, u64, u64)>> {
        let parts = self.with(py, |service| service.store().partials())?;
        let row = |part: jobs_blobs::PartialStat| (part.hash.to_hex(), part.size, part.stored_bytes, part.changed_ms);
        Ok(parts.into_iter().map(row).collect())
    }

    #[pyo3(signature = (*, min_age_ms = 0))]
    fn discard_partials(&self, py: Python<'_>, min_age_ms: u64) -> PyResult<u64> {
        self.with(py, |service| service.store().discard_partials(min_age_ms))
    }

    fn usage(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        let usage = self.with(py, |service| service.store().usage())?;
        let dict = PyDict::new(py);
        for (name, value) in [
            ("blobs", usage.blobs),
            ("bytes", usage.bytes),
            ("tree_bytes", usage.tree_bytes),
            ("partial_bytes", usage.partial_bytes),
            ("quarantined", usage.quarantined),
            ("damages", usage.damages),
            ("free_bytes", usage.free_bytes),
            ("disk_bytes", usage.disk_bytes),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict.unbind())
    }

    #[pyo3(signature = (
        blob, providers, *, children = false, max_bytes = 1 << 40, stall_ms = 10_000, min_bytes_per_s = 64 << 10,
        window_ms = 10_000
    ))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn fetch(
        &self,
        py: Python<'_>,
        blob: &str,
        providers: Vec<String>,
        children: bool,
        max_bytes: u64,
        stall_ms: u64,
        min_bytes_per_s: u64,
        window_ms: u64,
    ) -> PyResult<u64> {
        let blob = hash(blob)?;
        let options = FetchOptions {
            providers,
            children,
            max_bytes,
            stall: Duration::from_millis(stall_ms),
            min_bytes_per_s,
            window: Duration::from_millis(window_ms),
        };
        self.with(py, |service| service.fetch(blob, options))
    }

    fn cancel(&self, number: u64) -> bool {
        self.inner.cancel(number)
    }

    fn fileno(&self) -> PyResult<RawFd> {
        let closed = || blob_error(BlobError::Closed("the store is closed"));
        self.inner.fileno().ok_or_else(closed)
    }

    fn receive(&self) -> Vec<PyBlobEvent> {
        self.inner.receive().into_iter().map(event).collect()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

/// A blob that is being added.
#[pyclass(module = "jobs._native", frozen)]
struct BlobWriter {
    inner: Mutex<Option<Adding>>,
}

impl BlobWriter {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Adding) -> jobs_blobs::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut adding = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            work(adding.as_mut().ok_or(BlobError::Closed("this addition is over"))?)
        })
        .map_err(blob_error)
    }

    fn take(&self) -> Option<Adding> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl BlobWriter {
    fn write(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        self.with(py, |adding| adding.write(data))
    }

    fn finish(&self, py: Python<'_>) -> PyResult<(String, u64, bool)> {
        let added = py.detach(|| self.take().ok_or(BlobError::Closed("this addition is over"))?.finish());
        let added = added.map_err(blob_error)?;
        Ok((added.hash.to_hex(), added.size, added.existed))
    }

    fn abandon(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }
}

/// A blob that is being read.
#[pyclass(module = "jobs._native", frozen)]
struct BlobReader {
    size: u64,
    inner: Mutex<Option<Reader>>,
}

impl BlobReader {
    fn with<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&Reader) -> jobs_blobs::Result<T> + Send) -> PyResult<T> {
        py.detach(|| {
            let reader = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            work(reader.as_ref().ok_or(BlobError::Closed("this reader is closed"))?)
        })
        .map_err(blob_error)
    }
}

#[pymethods]
impl BlobReader {
    #[getter]
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, py: Python<'_>, offset: u64, max_bytes: u64) -> PyResult<Py<PyBytes>> {
        let bytes = self.with(py, |reader| reader.read(offset, max_bytes))?;
        Ok(PyBytes::new(py, &bytes).unbind())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.inner.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Blobs>()?;
    module.add_class::<BlobWriter>()?;
    module.add_class::<BlobReader>()
}
