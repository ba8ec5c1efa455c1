//! Python face of `jobs-net`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jobs_net::{Config, Endpoint as CoreEndpoint, Event, Foreign, Limits};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::errors::{NativeError, net_error};

type PyEvent = (
    &'static str,
    Py<PyString>,
    u64,
    Py<PyBytes>,
    Py<PyString>,
    Py<PyString>,
    u64,
);
type PyPeer = (String, String, bool, usize, u64);

fn event(py: Python<'_>, event: &Event) -> PyEvent {
    let text = |text: &str| PyString::new(py, text).unbind();
    (
        event.what.name(),
        text(&event.peer),
        event.number,
        PyBytes::new(py, &event.body).unbind(),
        text(&event.text),
        text(&event.detail),
        event.extra,
    )
}

fn addresses(texts: &[String]) -> PyResult<Vec<SocketAddr>> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|_| NativeError::new_err(format!("address {text:?}: IP:PORT or [IPv6]:PORT is right")))
    };
    texts.iter().map(parse).collect()
}

/// A node's endpoint for the other nodes of its cluster.
#[pyclass(module = "jobs._native", frozen)]
pub(crate) struct Endpoint {
    pub(crate) inner: CoreEndpoint,
}

#[pymethods]
impl Endpoint {
    #[new]
    #[pyo3(signature = (key_file, *, bind, cluster, node, limits = None))]
    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python")]
    fn new(
        py: Python<'_>,
        key_file: &str,
        bind: Vec<String>,
        cluster: String,
        node: String,
        limits: Option<BTreeMap<String, u64>>,
    ) -> PyResult<Self> {
        let mut set = Limits::default();
        for (name, value) in limits.unwrap_or_default() {
            set.set(&name, value).map_err(net_error)?;
        }
        let config = Config {
            key_file: key_file.into(),
            bind: addresses(&bind)?,
            cluster,
            node,
            limits: set,
        };
        let inner = py.detach(|| CoreEndpoint::start(config)).map_err(net_error)?;
        Ok(Self { inner })
    }

    #[staticmethod]
    fn generate_key() -> (String, String) {
        jobs_net::generate_key()
    }

    #[getter]
    fn id(&self) -> String {
        self.inner.id()
    }

    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.inner.addresses().iter().map(ToString::to_string).collect()
    }

    fn fileno(&self) -> PyResult<RawFd> {
        self.inner
            .events()
            .fileno()
            .ok_or_else(|| net_error(jobs_net::NetError::Closed))
    }

    #[pyo3(signature = (max_count = 1024))]
    fn receive(&self, py: Python<'_>, max_count: usize) -> Vec<PyEvent> {
        // Taking them is a move of a few words each; the copies are made for Python.
        let events = self.inner.events().receive(max_count);
        events.iter().map(|item| event(py, item)).collect()
    }

    #[pyo3(signature = (peers, guests = Vec::new(), foreign = Vec::new()))]
    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python")]
    fn set_peers(
        &self,
        py: Python<'_>,
        peers: Vec<(String, Vec<String>)>,
        guests: Vec<String>,
        foreign: Vec<(String, String, Vec<String>)>,
    ) -> PyResult<()> {
        let parsed = peers
            .into_iter()
            .map(|(id, texts)| Ok((id, addresses(&texts)?)))
            .collect::<PyResult<Vec<_>>>()?;
        let foreign = foreign
            .into_iter()
            .map(|(id, cluster, texts)| {
                let addresses = addresses(&texts)?;
                Ok(Foreign { id, cluster, addresses })
            })
            .collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.inner.set_peers(&parsed, &guests, &foreign))
            .map_err(net_error)
    }

    fn peers(&self) -> PyResult<Vec<PyPeer>> {
        let peers = self.inner.peers().map_err(net_error)?;
        let row = |peer: jobs_net::PeerStatus| (peer.id, peer.name, peer.up, peer.outbox_bytes, peer.pending_requests);
        Ok(peers.into_iter().map(row).collect())
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.inner.counters().read().into_iter().collect()
    }

    fn send(&self, peer: &str, message: &[u8]) -> PyResult<bool> {
        self.inner
            .send(peer, Bytes::copy_from_slice(message))
            .map_err(net_error)
    }

    fn send_urgent(&self, peer: &str, message: &[u8]) -> PyResult<bool> {
        self.inner
            .send_urgent(peer, Bytes::copy_from_slice(message))
            .map_err(net_error)
    }

    fn request(&self, peer: &str, body: &[u8], wait_ms: u32) -> PyResult<u64> {
        let wait = Duration::from_millis(wait_ms.into());
        self.inner
            .request(peer, Bytes::copy_from_slice(body), wait)
            .map_err(net_error)
    }

    fn cancel(&self, number: u64) -> PyResult<Option<bool>> {
        self.inner.cancel(number).map_err(net_error)
    }

    fn respond(&self, number: u64, answer: &[u8]) -> PyResult<bool> {
        self.inner
            .respond(number, Bytes::copy_from_slice(answer))
            .map_err(net_error)
    }

    #[pyo3(signature = (number, reason, *, maybe_done = false))]
    fn decline(&self, number: u64, reason: &str, maybe_done: bool) -> PyResult<bool> {
        self.inner.decline(number, reason, maybe_done).map_err(net_error)
    }

    fn stream_open(&self, peer: &str, header: &[u8]) -> PyResult<u64> {
        self.inner
            .stream_open(peer, Bytes::copy_from_slice(header))
            .map_err(net_error)
    }

    fn stream_write(&self, number: u64, data: &[u8]) -> PyResult<bool> {
        self.inner
            .stream_write(number, Bytes::copy_from_slice(data))
            .map_err(net_error)
    }

    fn stream_finish(&self, number: u64) -> PyResult<()> {
        self.inner.stream_finish(number).map_err(net_error)
    }

    fn stream_consumed(&self, number: u64, size_bytes: usize) -> PyResult<()> {
        self.inner.stream_consumed(number, size_bytes).map_err(net_error)
    }

    fn stream_reset(&self, number: u64) -> PyResult<bool> {
        self.inner.stream_reset(number).map_err(net_error)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

/// A BLAKE3 hash that is fed in parts.
#[pyclass(module = "jobs._native", frozen)]
struct Blake3 {
    inner: Mutex<blake3::Hasher>,
}

#[pymethods]
impl Blake3 {
    #[new]
    fn new() -> Self {
        Self {
            inner: Mutex::new(blake3::Hasher::new()),
        }
    }

    fn update(&self, py: Python<'_>, data: &[u8]) {
        py.detach(|| {
            let mut hasher = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            hasher.update(data);
        });
    }

    fn digest(&self, py: Python<'_>) -> Py<PyBytes> {
        let hasher = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        PyBytes::new(py, hasher.finalize().as_bytes()).unbind()
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Endpoint>()?;
    module.add_class::<Blake3>()
}
