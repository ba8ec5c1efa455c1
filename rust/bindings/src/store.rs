//! Python face of `jobs-kv` and `jobs-store`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use jobs_kv::command::REQUEST_ID_BYTES;
use jobs_kv::read::{self, Event, KeyValue, Page, RangeOptions};
use jobs_kv::{GENERATION_REQUESTS, KvError, Memory, Meta, Tentative, machine};
use jobs_store::digest::{self, Cursor, Piece, Pieces};
use jobs_store::env::Checked;
use jobs_store::{
    Compaction as CoreCompaction, Options, Store as CoreStore, StoreError, StoreReader as CoreReader, snapshot,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{memory_error, store_error};

/// Where nothing has been looked at yet.
const NO_CURSOR: &[u8] = &[];

type PyKeyValue = (Py<PyBytes>, Py<PyBytes>, u64, u64, u64, u64);
type PyPiece = (Py<PyBytes>, Py<PyBytes>, u64, u64);
type PyEvent = (u64, Py<PyBytes>, Option<Py<PyBytes>>, u64, u64, u64);

fn bytes(py: Python<'_>, data: &[u8]) -> Py<PyBytes> {
    PyBytes::new(py, data).unbind()
}

fn key_value(py: Python<'_>, kv: &KeyValue) -> PyKeyValue {
    (
        bytes(py, &kv.key),
        bytes(py, &kv.value),
        kv.version,
        kv.create_revision,
        kv.mod_revision,
        kv.lease,
    )
}

fn page(py: Python<'_>, page: &Page) -> (Vec<PyKeyValue>, bool) {
    (page.0.iter().map(|row| key_value(py, row)).collect(), page.1)
}

fn event(py: Python<'_>, event: &Event) -> PyEvent {
    let key = bytes(py, &event.key);
    match &event.put {
        None => (event.revision, key, None, 0, 0, 0),
        Some(kv) => (
            event.revision,
            key,
            Some(bytes(py, &kv.value)),
            kv.version,
            kv.create_revision,
            kv.lease,
        ),
    }
}

fn pieces(py: Python<'_>, (found, cursor): &Pieces) -> (Vec<PyPiece>, Py<PyBytes>) {
    let piece = |piece: &Piece| {
        (
            bytes(py, &piece.last_key),
            bytes(py, &piece.digest),
            piece.rows,
            piece.bytes,
        )
    };
    let cursor = cursor.as_ref().map(Cursor::encode).unwrap_or_default();
    (found.iter().map(piece).collect(), bytes(py, &cursor))
}

fn cursor_in(data: &[u8]) -> PyResult<Option<Cursor>> {
    if data.is_empty() {
        return Ok(None);
    }
    Cursor::decode(data)
        .map(Some)
        .ok_or_else(|| PyValueError::new_err("these bytes are no cursor"))
}

fn check_piece_rows(rows: u64) -> PyResult<()> {
    if rows.is_power_of_two() {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "pieces of {rows} rows: a power of two is possible"
    )))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// MVCC key-value store on LMDB.
#[pyclass(module = "jobs._native", frozen)]
struct Store {
    inner: RwLock<CoreStore>,
}

impl Store {
    fn read(&self) -> RwLockReadGuard<'_, CoreStore> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&CoreStore) -> jobs_store::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| work(&self.read())).map_err(store_error)
    }
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (directory, *, max_bytes = 64 << 30, boot_id = None, generation_requests = GENERATION_REQUESTS))]
    fn new(
        py: Python<'_>,
        directory: &str,
        max_bytes: usize,
        boot_id: Option<String>,
        generation_requests: u64,
    ) -> PyResult<Self> {
        let options = Options {
            max_bytes,
            boot_id,
            generation_requests,
        };
        let opened = py.detach(|| CoreStore::open(Path::new(directory), options));
        Ok(Self {
            inner: RwLock::new(opened.map_err(store_error)?),
        })
    }

    #[getter]
    fn recovered(&self) -> Option<String> {
        self.read().recovered().map(str::to_owned)
    }

    #[getter]
    fn applied_index(&self) -> u64 {
        self.read().meta().index
    }

    #[getter]
    fn applied_term(&self) -> u64 {
        self.read().meta().term
    }

    #[getter]
    fn revision(&self) -> u64 {
        self.read().meta().revision
    }

    #[getter]
    fn compact_revision(&self) -> u64 {
        self.read().meta().compact_revision
    }

    #[getter]
    fn history_events(&self) -> u64 {
        self.read().meta().events
    }

    #[getter]
    fn max_history_events(&self) -> u64 {
        self.read().meta().max_events
    }

    #[getter]
    fn snapshot_index(&self) -> u64 {
        self.read().snapshot_index()
    }

    #[getter]
    fn snapshot_term(&self) -> u64 {
        self.read().snapshot_term()
    }

    fn snapshot_path(&self) -> Option<OsString> {
        self.read().snapshot_path().map(PathBuf::into_os_string)
    }

    fn install(&self, py: Python<'_>, path: &str) -> PyResult<()> {
        self.with(py, |store| store.install(Path::new(path)))
    }

    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python")]
    fn apply(&self, py: Python<'_>, entries: Vec<(u64, u64, Vec<u8>)>) -> PyResult<Vec<Py<PyBytes>>> {
        let borrowed: Vec<(u64, u64, &[u8])> = entries.iter().map(|entry| (entry.0, entry.1, &entry.2[..])).collect();
        let results = self.with(py, |store| store.apply(&borrowed))?;
        Ok(results.iter().map(|result| bytes(py, result)).collect())
    }

    #[pyo3(signature = (key, revision = 0))]
    fn get(&self, py: Python<'_>, key: &[u8], revision: u64) -> PyResult<Option<PyKeyValue>> {
        let found = self.with(py, |store| store.get(key, revision))?;
        Ok(found.map(|kv| key_value(py, &kv)))
    }

    #[pyo3(signature = (start, end, *, limit, revision = 0, reverse = false, keys_only = false, max_bytes = 8 << 20))]
    #[allow(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "Python's keyword arguments"
    )]
    fn range(
        &self,
        py: Python<'_>,
        start: &[u8],
        end: &[u8],
        limit: usize,
        revision: u64,
        reverse: bool,
        keys_only: bool,
        max_bytes: usize,
    ) -> PyResult<(Vec<PyKeyValue>, bool)> {
        let options = RangeOptions {
            limit,
            max_bytes,
            revision,
            reverse,
            keys_only,
        };
        Ok(page(py, &self.with(py, |store| store.range(start, end, &options))?))
    }

    #[pyo3(signature = (start, end, *, limit))]
    fn count(&self, py: Python<'_>, start: &[u8], end: &[u8], limit: u64) -> PyResult<u64> {
        self.with(py, |store| store.count(start, end, limit))
    }

    #[pyo3(signature = (after_revision, prefixes, *, limit, max_bytes = 4 << 20))]
    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python")]
    fn events(
        &self,
        py: Python<'_>,
        after_revision: u64,
        prefixes: Vec<Vec<u8>>,
        limit: usize,
        max_bytes: usize,
    ) -> PyResult<(Vec<PyEvent>, u64)> {
        let (events, seen) = self.with(py, |store| store.events(after_revision, &prefixes, limit, max_bytes))?;
        Ok((events.iter().map(|item| event(py, item)).collect(), seen))
    }

    #[pyo3(signature = (start, end, *, cursor = NO_CURSOR, revision = 0, strip = 0, content_only = false, rows = 4096, limit = 1024, max_rows = 200_000))]
    #[allow(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "Python's keyword arguments"
    )]
    fn digests(
        &self,
        py: Python<'_>,
        start: &[u8],
        end: &[u8],
        cursor: &[u8],
        revision: u64,
        strip: usize,
        content_only: bool,
        rows: u64,
        limit: usize,
        max_rows: usize,
    ) -> PyResult<(Vec<PyPiece>, Py<PyBytes>)> {
        check_piece_rows(rows)?;
        let options = digest::Options {
            revision,
            strip,
            content_only,
            rows,
            limit,
            max_rows,
        };
        let cursor = cursor_in(cursor)?;
        let found = self.with(py, |store| store.digests((start, end), cursor, &options))?;
        Ok(pieces(py, &found))
    }

    fn recall(&self, py: Python<'_>, request_id: [u8; REQUEST_ID_BYTES]) -> PyResult<Option<Py<PyBytes>>> {
        let found = self.with(py, |store| store.recall(&request_id))?;
        Ok(found.map(|results| bytes(py, &results)))
    }

    fn leases(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        self.with(py, CoreStore::leases)
    }

    fn lease_keys(&self, py: Python<'_>, lease: u64) -> PyResult<Vec<Py<PyBytes>>> {
        let keys = self.with(py, |store| store.lease_keys(lease))?;
        Ok(keys.iter().map(|key| bytes(py, key)).collect())
    }

    fn snapshot(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, CoreStore::snapshot)
    }

    fn state_hash(&self, py: Python<'_>) -> PyResult<Py<PyBytes>> {
        let hash = self.with(py, CoreStore::state_hash)?;
        Ok(bytes(py, &hash))
    }

    fn used_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, CoreStore::used_bytes)
    }

    fn file_bytes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.with(py, CoreStore::file_bytes)
    }

    #[pyo3(signature = (cursor = NO_CURSOR, *, max_rows = 50_000))]
    fn check_rows(
        &self,
        py: Python<'_>,
        cursor: &[u8],
        max_rows: usize,
    ) -> PyResult<(u64, u64, Py<PyBytes>, Vec<String>)> {
        let Checked {
            rows,
            bytes: looked_at,
            cursor,
            damaged,
        } = self.with(py, |store| store.check_rows(cursor, max_rows))?;
        Ok((rows, looked_at, bytes(py, &cursor.unwrap_or_default()), damaged))
    }

    #[pyo3(signature = (on_bytes = None))]
    fn begin_compaction(slf: &Bound<'_, Self>, on_bytes: Option<&Bound<'_, PyAny>>) -> PyResult<Compaction> {
        let (py, store) = (slf.py(), slf.get());
        let on_bytes = on_bytes.map(|told| told.clone().unbind());
        let mut raised = None;
        let begun = py.detach(|| {
            store.read().begin_compaction(|copied| {
                let Some(on_bytes) = &on_bytes else {
                    return ControlFlow::Continue(());
                };
                match Python::attach(|py| on_bytes.call1(py, (copied,)).map(drop)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        raised = Some(error);
                        ControlFlow::Break(())
                    }
                }
            })
        });
        match (begun, raised) {
            (_, Some(error)) => Err(error),
            (begun, None) => Ok(Compaction {
                store: slf.clone().unbind(),
                inner: Mutex::new(Some(begun.map_err(store_error)?)),
            }),
        }
    }

    #[staticmethod]
    fn check_snapshot_file(py: Python<'_>, path: PathBuf) -> PyResult<u64> {
        let (rows, _) = py.detach(move || snapshot::check(&path)).map_err(store_error)?;
        Ok(rows)
    }

    #[staticmethod]
    fn snapshot_revision(py: Python<'_>, path: PathBuf) -> PyResult<u64> {
        let (_, meta) = py.detach(move || snapshot::check(&path)).map_err(store_error)?;
        Ok(meta.revision)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.write().unwrap_or_else(PoisonError::into_inner).close())
            .map_err(store_error)
    }
}

/// A compact copy of a store that follows it.
#[pyclass(module = "jobs._native", frozen)]
struct Compaction {
    store: Py<Store>,
    inner: Mutex<Option<CoreCompaction>>,
}

impl Compaction {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Store, &mut CoreCompaction) -> jobs_store::Result<T> + Send,
    ) -> PyResult<T> {
        let store = self.store.get();
        py.detach(|| match lock(&self.inner).as_mut() {
            Some(compaction) => work(store, compaction),
            None => Err(StoreError::Closed),
        })
        .map_err(store_error)
    }
}

#[pymethods]
impl Compaction {
    #[getter]
    fn applied_index(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |_, compaction| Ok(compaction.meta().index))
    }

    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python")]
    fn apply(&self, py: Python<'_>, entries: Vec<(u64, u64, Vec<u8>)>) -> PyResult<()> {
        let borrowed: Vec<(u64, u64, &[u8])> = entries.iter().map(|entry| (entry.0, entry.1, &entry.2[..])).collect();
        self.with(py, |_, compaction| compaction.apply(&borrowed))
    }

    fn finish(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |store, compaction| store.read().finish_compaction(compaction))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.inner).take()));
    }
}

/// Read-only view for other processes.
#[pyclass(module = "jobs._native", frozen)]
struct StoreReader {
    inner: Mutex<CoreReader>,
}

#[pymethods]
impl StoreReader {
    #[new]
    fn new(py: Python<'_>, directory: &str) -> PyResult<Self> {
        let opened = py
            .detach(|| CoreReader::open(Path::new(directory)))
            .map_err(store_error)?;
        Ok(Self {
            inner: Mutex::new(opened),
        })
    }

    fn snapshot_revision(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| lock(&self.inner).revision()).map_err(store_error)
    }

    fn get(&self, py: Python<'_>, key: &[u8]) -> PyResult<Option<PyKeyValue>> {
        let found = py.detach(|| lock(&self.inner).get(key)).map_err(store_error)?;
        Ok(found.map(|kv| key_value(py, &kv)))
    }

    #[pyo3(signature = (start, end, *, limit, reverse = false, max_bytes = 8 << 20))]
    fn range(
        &self,
        py: Python<'_>,
        start: &[u8],
        end: &[u8],
        limit: usize,
        reverse: bool,
        max_bytes: usize,
    ) -> PyResult<(Vec<PyKeyValue>, bool, u64)> {
        let options = RangeOptions {
            limit,
            max_bytes,
            revision: 0,
            reverse,
            keys_only: false,
        };
        let (found, revision) = py
            .detach(|| lock(&self.inner).range(start, end, &options))
            .map_err(store_error)?;
        let (rows, more) = page(py, &found);
        Ok((rows, more, revision))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| lock(&self.inner).close());
    }
}

#[derive(Default)]
struct MemoryState {
    backend: Memory,
    meta: Meta,
    generation_requests: u64,
}

/// The same state machine over memory.
#[pyclass(module = "jobs._native", frozen)]
struct MemoryStore {
    inner: Mutex<MemoryState>,
}

impl MemoryStore {
    fn read<T>(&self, work: impl FnOnce(&Memory, &Meta) -> Result<T, KvError<Infallible>>) -> PyResult<T> {
        let state = lock(&self.inner);
        work(&state.backend, &state.meta).map_err(memory_error)
    }
}

#[pymethods]
impl MemoryStore {
    #[new]
    #[pyo3(signature = (*, generation_requests = GENERATION_REQUESTS))]
    fn new(generation_requests: u64) -> Self {
        Self {
            inner: Mutex::new(MemoryState {
                generation_requests,
                ..MemoryState::default()
            }),
        }
    }

    #[getter]
    fn applied_index(&self) -> u64 {
        lock(&self.inner).meta.index
    }

    #[getter]
    fn applied_term(&self) -> u64 {
        lock(&self.inner).meta.term
    }

    #[getter]
    fn revision(&self) -> u64 {
        lock(&self.inner).meta.revision
    }

    #[getter]
    fn compact_revision(&self) -> u64 {
        lock(&self.inner).meta.compact_revision
    }

    #[getter]
    fn history_events(&self) -> u64 {
        lock(&self.inner).meta.events
    }

    #[getter]
    fn max_history_events(&self) -> u64 {
        lock(&self.inner).meta.max_events
    }

    fn apply(&self, py: Python<'_>, entries: Vec<(u64, u64, Vec<u8>)>) -> PyResult<Vec<Py<PyBytes>>> {
        let mut state = lock(&self.inner);
        let MemoryState {
            backend,
            meta,
            generation_requests,
        } = &mut *state;
        // Like the store on disk: all of it or nothing.
        let (mut tentative, mut new_meta) = (Tentative::new(backend), *meta);
        let mut results = Vec::with_capacity(entries.len());
        for (index, term, command) in entries {
            if index <= new_meta.index {
                results.push(bytes(py, &[]));
                continue;
            }
            let entry = (index, term, &command[..]);
            match machine::apply(&mut tentative, &mut new_meta, entry, *generation_requests) {
                Ok(done) => results.push(bytes(py, &done)),
                Err(error) => {
                    tentative.roll_back();
                    return Err(memory_error(error));
                }
            }
        }
        *meta = new_meta;
        Ok(results)
    }

    fn export(&self, py: Python<'_>) -> PyResult<Py<PyBytes>> {
        let state = lock(&self.inner);
        let data = jobs_store::snapshot::of_memory(&state.backend, &state.meta).map_err(store_error)?;
        Ok(bytes(py, &data))
    }

    fn install(&self, data: &[u8]) -> PyResult<()> {
        let mut state = lock(&self.inner);
        let (backend, meta) = jobs_store::snapshot::to_memory(data, state.meta.index).map_err(store_error)?;
        (state.backend, state.meta) = (backend, meta);
        Ok(())
    }

    #[pyo3(signature = (key, revision = 0))]
    fn get(&self, py: Python<'_>, key: &[u8], revision: u64) -> PyResult<Option<PyKeyValue>> {
        let found = self.read(|backend, meta| read::get(backend, meta, key, revision))?;
        Ok(found.map(|kv| key_value(py, &kv)))
    }

    #[pyo3(signature = (start, end, *, limit, revision = 0, reverse = false, keys_only = false, max_bytes = 8 << 20))]
    #[allow(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "Python's keyword arguments"
    )]
    fn range(
        &self,
        py: Python<'_>,
        start: &[u8],
        end: &[u8],
        limit: usize,
        revision: u64,
        reverse: bool,
        keys_only: bool,
        max_bytes: usize,
    ) -> PyResult<(Vec<PyKeyValue>, bool)> {
        let options = RangeOptions {
            limit,
            max_bytes,
            revision,
            reverse,
            keys_only,
        };
        Ok(page(
            py,
            &self.read(|backend, meta| read::range(backend, meta, start, end, &options))?,
        ))
    }

    #[pyo3(signature = (start, end, *, limit))]
    fn count(&self, start: &[u8], end: &[u8], limit: u64) -> PyResult<u64> {
        self.read(|backend, _| read::count(backend, start, end, limit))
    }

    #[pyo3(signature = (after_revision, prefixes, *, limit, max_bytes = 4 << 20))]
    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python")]
    fn events(
        &self,
        py: Python<'_>,
        after_revision: u64,
        prefixes: Vec<Vec<u8>>,
        limit: usize,
        max_bytes: usize,
    ) -> PyResult<(Vec<PyEvent>, u64)> {
        let (events, seen) =
            self.read(|backend, meta| read::events(backend, meta, after_revision, &prefixes, limit, max_bytes))?;
        Ok((events.iter().map(|item| event(py, item)).collect(), seen))
    }

    #[pyo3(signature = (start, end, *, cursor = NO_CURSOR, revision = 0, strip = 0, content_only = false, rows = 4096, limit = 1024, max_rows = 200_000))]
    #[allow(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "Python's keyword arguments"
    )]
    fn digests(
        &self,
        py: Python<'_>,
        start: &[u8],
        end: &[u8],
        cursor: &[u8],
        revision: u64,
        strip: usize,
        content_only: bool,
        rows: u64,
        limit: usize,
        max_rows: usize,
    ) -> PyResult<(Vec<PyPiece>, Py<PyBytes>)> {
        check_piece_rows(rows)?;
        let options = digest::Options {
            revision,
            strip,
            content_only,
            rows,
            limit,
            max_rows,
        };
        let cursor = cursor_in(cursor)?;
        let found = self.read(|backend, meta| digest::digests(backend, meta, (start, end), cursor, &options))?;
        Ok(pieces(py, &found))
    }

    fn recall(&self, py: Python<'_>, request_id: [u8; REQUEST_ID_BYTES]) -> PyResult<Option<Py<PyBytes>>> {
        let found = self.read(|backend, meta| read::recall(backend, meta, &request_id))?;
        Ok(found.map(|results| bytes(py, &results)))
    }

    fn leases(&self) -> PyResult<Vec<(u64, u64)>> {
        self.read(|backend, _| read::leases(backend))
    }

    fn lease_keys(&self, py: Python<'_>, lease: u64) -> PyResult<Vec<Py<PyBytes>>> {
        let keys = self.read(|backend, _| read::lease_keys(backend, lease))?;
        Ok(keys.iter().map(|key| bytes(py, key)).collect())
    }

    fn state_hash(&self, py: Python<'_>) -> PyResult<Py<PyBytes>> {
        let hash = self.read(jobs_store::store::hash_state)?;
        Ok(bytes(py, &hash))
    }

    #[allow(clippy::unused_self, reason = "part of the stores' common face")]
    fn used_bytes(&self) -> u64 {
        0
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Store>()?;
    module.add_class::<Compaction>()?;
    module.add_class::<StoreReader>()?;
    module.add_class::<MemoryStore>()
}
