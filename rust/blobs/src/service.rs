//! A store on a network: it is served to peers, and fetches are operations that are told of.

use std::collections::HashMap;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jobs_net::Endpoint;
use tokio::runtime::{Handle, Runtime};
use tokio::task::AbortHandle;

use crate::Hash;
use crate::error::{BlobError, Result};
use crate::events::{Events, OperationEvent};
use crate::fetch::{FetchOptions, Run};
use crate::links::Links;
use crate::provide::{self, MAX_ANSWERS};
use crate::store::{Options, Store};

/// Fetches at once at most; the callers queue the others.
const MAX_FETCHES: usize = 256;
/// Providers of one fetch.
const MAX_PROVIDERS: usize = 64;
/// How long threads may take to end.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// A node's store, its providing and its fetches.
pub struct Service {
    store: Store,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
    links: Arc<Links>,
    events: Arc<Events>,
    fetches: Arc<Mutex<HashMap<u64, AbortHandle>>>,
    numbers: AtomicU64,
}

impl Service {
    /// Open the store in this folder.
    ///
    /// # Errors
    /// When another process has it open, or the disk fails.
    pub fn open(root: &Path, options: Options) -> Result<Self> {
        let store = Store::open(root, options)?;
        let events = Events::new().map_err(BlobError::io("watch", root))?;
        // Its own: hashing and waiting for the disk are nothing for the threads that carry messages.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(MAX_ANSWERS + 2 * MAX_FETCHES)
            .thread_name("jobs-blobs")
            .enable_all()
            .build()
            .map_err(BlobError::io("start threads for", root))?;
        Ok(Self {
            store,
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            links: Arc::default(),
            events: Arc::new(events),
            fetches: Arc::default(),
            numbers: AtomicU64::new(1),
        })
    }

    /// What is here.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    fn fetches(&self) -> MutexGuard<'_, HashMap<u64, AbortHandle>> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_open(&self) -> Result<()> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        runtime
            .as_ref()
            .map(|_| ())
            .ok_or(BlobError::Closed("the store is closed"))
    }

    /// Serve the blobs to the members that an endpoint knows, and fetch from them.
    ///
    /// # Errors
    /// When either is closed.
    pub fn join(&self, endpoint: &Endpoint) -> Result<()> {
        self.check_open()?;
        let protocol = provide::protocol(self.store.clone(), self.handle.clone());
        let dialler = endpoint.serve_other(protocol);
        let dialler = dialler.map_err(|_| BlobError::Closed("the endpoint is closed"))?;
        self.links.set_dialler(Some(dialler));
        Ok(())
    }

    /// Begin a fetch; its number.
    ///
    /// # Errors
    /// When an option cannot be, or too many are under way.
    pub fn fetch(&self, hash: Hash, options: FetchOptions) -> Result<u64> {
        self.check_open()?;
        if options.providers.len() > MAX_PROVIDERS {
            return Err(BlobError::Limit(format!(
                "providers of a fetch: at most {MAX_PROVIDERS}"
            )));
        }
        let mut fetches = self.fetches();
        if fetches.len() >= MAX_FETCHES {
            return Err(BlobError::Limit(format!("fetches at once: at most {MAX_FETCHES}")));
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (links, events) = (Arc::clone(&self.links), Arc::clone(&self.events));
        let run = Arc::new(Run::new(number, self.store.clone(), links, events, options));
        let work = self.handle.spawn(run.all(hash));
        fetches.insert(number, work.abort_handle());
        let (events, under_way) = (Arc::clone(&self.events), Arc::clone(&self.fetches));
        self.handle.spawn(async move {
            let result = work.await;
            let wanted = under_way
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&number)
                .is_some();
            if wanted {
                let broke_off = |_| Err(BlobError::Closed("a fetch broke off"));
                events.ended(number, result.unwrap_or_else(broke_off));
            }
        });
        Ok(number)
    }

    /// Give up a fetch; nothing is told of it any more, and what has come stays for the next. False: it has ended.
    pub fn cancel(&self, number: u64) -> bool {
        let work = self.fetches().remove(&number);
        let is_under_way = work.is_some();
        if let Some(work) = work {
            work.abort();
        }
        self.events.forget(number);
        is_under_way
    }

    /// A descriptor that is readable while something is to be told; none after the close.
    #[must_use]
    pub fn fileno(&self) -> Option<RawFd> {
        self.events.fileno()
    }

    /// A descriptor of the caller's own that is readable at the same times; none after the close.
    #[must_use]
    pub fn try_clone_descriptor(&self) -> Option<OwnedFd> {
        self.events.try_clone_descriptor()
    }

    /// What is to be told.
    #[must_use]
    pub fn receive(&self) -> Vec<OperationEvent> {
        self.events.receive()
    }

    /// End every fetch and every answer, and join the threads. Again: nothing.
    pub fn close(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(runtime) = runtime else { return };
        self.links.set_dialler(None);
        for (_, work) in self.fetches().drain() {
            work.abort();
        }
        self.events.close();
        runtime.shutdown_timeout(CLOSE_TIME);
        self.store.close();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.close();
    }
}
