//! What has come, for the application: a queue and a descriptor that is readable while something is in it.
//!
//! Bodies hold a permit of the budget that they were read under, until the application takes them; so what waits here is
//! bounded by the budgets of the peers.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::OwnedSemaphorePermit;

use crate::config::MAX_NOTICES;

/// What an event tells. `number`, `body`, `text`, `detail` and `extra` of the event mean what is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Messages to the peer are sent from now on. text: its name.
    Up,
    /// Messages to the peer are dropped from now on. detail: why.
    Down,
    /// Somebody was refused, or refused us. text: kind; detail: why; extra: how many of the kind were left out before.
    Refused,
    /// A message came. body.
    Message,
    /// A request came. number; body; extra: milliseconds that the caller waits.
    Request,
    /// Nobody waits for the answer any more. number; detail: why.
    RequestGone,
    /// The answer to an own request. number; body.
    Answer,
    /// An own request failed. number; text: kind; detail: why; extra: 1 when it may have been carried out.
    Failure,
    /// A peer opened a stream. number; body: its header.
    Stream,
    /// Bytes came on a stream. number; body.
    StreamData,
    /// The peer has finished its side of a stream. number.
    StreamEnd,
    /// There is room again for what is written. number.
    StreamWritable,
    /// Both sides of a stream have finished, and all that was written has reached the peer. number.
    StreamClosed,
    /// A stream is over before its end. number; text: kind; detail: why.
    StreamBroken,
}

impl What {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Refused => "refused",
            Self::Message => "message",
            Self::Request => "request",
            Self::RequestGone => "request_gone",
            Self::Answer => "answer",
            Self::Failure => "failure",
            Self::Stream => "stream",
            Self::StreamData => "stream_data",
            Self::StreamEnd => "stream_end",
            Self::StreamWritable => "stream_writable",
            Self::StreamClosed => "stream_closed",
            Self::StreamBroken => "stream_broken",
        }
    }

    const fn is_notice(self) -> bool {
        matches!(self, Self::Up | Self::Down | Self::Refused)
    }

    /// Something that a peer began: it is not handed on once the peer is off the allowlist.
    const fn is_unasked(self) -> bool {
        matches!(self, Self::Message | Self::Request | Self::Stream)
    }
}

/// One thing that has come.
#[derive(Debug)]
pub struct Event {
    /// What it tells.
    pub what: What,
    /// Id of the peer; of somebody refused, what is known of them.
    pub peer: Arc<str>,
    /// Request or stream that it belongs to.
    pub number: u64,
    /// Content.
    pub body: Bytes,
    /// A name or a kind.
    pub text: String,
    /// For people.
    pub detail: String,
    /// A count.
    pub extra: u64,
    /// Gives its room back when the event is dropped.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Event {
    pub(crate) fn new(what: What, peer: &Arc<str>) -> Self {
        Self {
            what,
            peer: Arc::clone(peer),
            number: 0,
            body: Bytes::new(),
            text: String::new(),
            detail: String::new(),
            extra: 0,
            _permit: None,
        }
    }

    pub(crate) fn number(self, number: u64) -> Self {
        Self { number, ..self }
    }

    pub(crate) fn body(self, body: Bytes, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            body,
            _permit: permit,
            ..self
        }
    }

    pub(crate) fn text(self, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..self
        }
    }

    pub(crate) fn detail(self, detail: impl Into<String>) -> Self {
        Self {
            detail: detail.into(),
            ..self
        }
    }

    pub(crate) fn extra(self, extra: u64) -> Self {
        Self { extra, ..self }
    }
}

#[derive(Debug)]
struct Inner {
    waiting: VecDeque<Event>,
    notices: usize,
    readable: bool,
    descriptor: Option<OwnedFd>,
}

/// Events that wait, and the descriptor.
#[derive(Debug)]
pub struct EventQueue {
    inner: Mutex<Inner>,
}

impl EventQueue {
    pub(crate) fn new() -> std::io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inner = Inner {
            waiting: VecDeque::new(),
            notices: 0,
            readable: false,
            descriptor: Some(descriptor),
        };
        Ok(Self {
            inner: Mutex::new(inner),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor's number; none after the close.
    #[must_use]
    pub fn fileno(&self) -> Option<RawFd> {
        self.lock().descriptor.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// A descriptor of the caller's own that is readable at the same times; none after the close.
    #[must_use]
    pub fn try_clone_descriptor(&self) -> Option<OwnedFd> {
        self.lock().descriptor.as_ref().and_then(|own| own.try_clone().ok())
    }

    /// Add one; false when it is news for which there is no room.
    pub(crate) fn push(&self, event: Event) -> bool {
        let mut inner = self.lock();
        if inner.descriptor.is_none() {
            return true;
        }
        if event.what.is_notice() {
            if inner.notices >= MAX_NOTICES {
                return false;
            }
            inner.notices += 1;
        }
        inner.waiting.push_back(event);
        if !inner.readable {
            inner.readable = true;
            if let Some(descriptor) = &inner.descriptor {
                // It cannot be full: one is written for each time that it was read.
                let _ = rustix::io::write(descriptor.as_fd(), &1u64.to_ne_bytes());
            }
        }
        true
    }

    /// Take the oldest, up to this many.
    pub fn receive(&self, max_count: usize) -> Vec<Event> {
        let mut inner = self.lock();
        let count = inner.waiting.len().min(max_count);
        let taken: Vec<Event> = inner.waiting.drain(..count).collect();
        inner.notices -= taken.iter().filter(|event| event.what.is_notice()).count();
        if inner.waiting.is_empty() && inner.readable {
            inner.readable = false;
            if let Some(descriptor) = &inner.descriptor {
                let _ = rustix::io::read(descriptor.as_fd(), &mut [0u8; 8]);
            }
            inner.waiting.shrink_to(4_096);
        }
        taken
    }

    /// Forget what this peer began.
    pub(crate) fn purge(&self, peer: &str) {
        let mut inner = self.lock();
        inner
            .waiting
            .retain(|event| !(event.what.is_unasked() && *event.peer == *peer));
    }

    /// Forget everything; nothing comes any more.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.descriptor = None;
        inner.waiting = VecDeque::new();
        inner.notices = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(queue: &EventQueue) -> bool {
        let inner = queue.lock();
        let mut fds = [PollFd::new(inner.descriptor.as_ref().unwrap(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn the_descriptor_is_readable_as_long_as_something_waits() {
        let queue = EventQueue::new().unwrap();
        let peer: Arc<str> = "p".into();
        assert!(!readable(&queue));
        for number in 0..3 {
            queue.push(Event::new(What::Answer, &peer).number(number));
        }
        assert!(readable(&queue));
        assert_eq!(queue.receive(2).len(), 2);
        assert!(readable(&queue));
        assert_eq!(queue.receive(2)[0].number, 2);
        assert!(!readable(&queue));
        assert!(queue.receive(2).is_empty());
        queue.push(Event::new(What::Answer, &peer));
        assert!(readable(&queue));
        queue.close();
        assert!(queue.receive(2).is_empty() && queue.fileno().is_none());
    }

    #[test]
    fn news_are_bounded_and_what_a_former_peer_began_is_forgotten() {
        let queue = EventQueue::new().unwrap();
        let (peer, other): (Arc<str>, Arc<str>) = ("p".into(), "q".into());
        queue.push(Event::new(What::Message, &peer));
        queue.push(Event::new(What::Answer, &peer));
        queue.push(Event::new(What::Message, &other));
        queue.purge("p");
        for _ in 0..MAX_NOTICES {
            assert!(queue.push(Event::new(What::Refused, &peer)));
        }
        assert!(!queue.push(Event::new(What::Refused, &peer)));
        let whats: Vec<What> = queue.receive(3).iter().map(|event| event.what).collect();
        assert_eq!(whats, [What::Answer, What::Message, What::Refused]);
        assert!(queue.push(Event::new(What::Refused, &peer)));
    }
}
