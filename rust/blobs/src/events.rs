//! What is told of operations: how far they are, and how they ended. A descriptor is readable while something waits.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::BlobError;
use crate::fetch::Fetched;

/// How far an operation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are here.
    pub done_bytes: u64,
    /// Bytes of all blobs whose sizes are known.
    pub total_bytes: u64,
    /// Blobs that are here.
    pub done_blobs: u64,
    /// Blobs of which there is knowledge.
    pub total_blobs: u64,
}

/// Something told of an operation.
#[derive(Debug)]
pub enum OperationEvent {
    /// How far it is.
    Progress(u64, Progress),
    /// It ended; nothing more is told of it.
    Ended(u64, Result<Fetched, BlobError>),
}

#[derive(Debug)]
struct Inner {
    /// The newest of each operation.
    progress: BTreeMap<u64, Progress>,
    ended: VecDeque<(u64, Result<Fetched, BlobError>)>,
    readable: bool,
    descriptor: Option<OwnedFd>,
}

/// What waits to be told. Bounded by the number of operations.
#[derive(Debug)]
pub(crate) struct Events(Mutex<Inner>);

impl Events {
    pub fn new() -> std::io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Mutex::new(Inner {
            progress: BTreeMap::new(),
            ended: VecDeque::new(),
            readable: false,
            descriptor: Some(descriptor),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fileno(&self) -> Option<RawFd> {
        self.lock().descriptor.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub fn try_clone_descriptor(&self) -> Option<OwnedFd> {
        self.lock().descriptor.as_ref().and_then(|own| own.try_clone().ok())
    }

    pub fn progress(&self, number: u64, progress: Progress) {
        let mut inner = self.lock();
        inner.progress.insert(number, progress);
        inner.raise();
    }

    pub fn ended(&self, number: u64, result: Result<Fetched, BlobError>) {
        let mut inner = self.lock();
        inner.progress.remove(&number);
        inner.ended.push_back((number, result));
        inner.raise();
    }

    /// Nothing is told of this one any more.
    pub fn forget(&self, number: u64) {
        let mut inner = self.lock();
        inner.progress.remove(&number);
        inner.ended.retain(|(ended, _)| *ended != number);
    }

    /// Take all that waits.
    pub fn receive(&self) -> Vec<OperationEvent> {
        let mut inner = self.lock();
        if inner.readable {
            inner.readable = false;
            if let Some(descriptor) = &inner.descriptor {
                let _ = rustix::io::read(descriptor.as_fd(), &mut [0u8; 8]);
            }
        }
        let progress = std::mem::take(&mut inner.progress);
        let ended = std::mem::take(&mut inner.ended);
        drop(inner);
        let progress = progress
            .into_iter()
            .map(|(number, progress)| OperationEvent::Progress(number, progress));
        let ended = ended
            .into_iter()
            .map(|(number, result)| OperationEvent::Ended(number, result));
        progress.chain(ended).collect()
    }

    pub fn close(&self) {
        let mut inner = self.lock();
        inner.descriptor = None;
        inner.progress.clear();
        inner.ended.clear();
    }
}

impl Inner {
    fn raise(&mut self) {
        if self.readable {
            return;
        }
        if let Some(descriptor) = &self.descriptor {
            self.readable = true;
            // It cannot be full: one is written for each time that it was read.
            let _ = rustix::io::write(descriptor.as_fd(), &1u64.to_ne_bytes());
        }
    }
}
