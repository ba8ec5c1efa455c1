//! What the tasks of an endpoint share.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use iroh::endpoint::Connection;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use crate::config::Config;
use crate::counters::Counters;
use crate::events::{Event, EventQueue, What};
use crate::framed::{Broken, close};
use crate::others::OtherProtocol;
use crate::peer::{Peer, lock};
use crate::refusal::Refusal;
use crate::requests::{Call, Reply};
use crate::rules::admission::Handshakes;
use crate::rules::limiter::Limiter;
use crate::streams::Stream;
use crate::wire::{Channel, Hello};

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) endpoint: iroh::Endpoint,
    pub(crate) handle: Handle,
    pub(crate) incarnation: u64,
    pub(crate) events: Arc<EventQueue>,
    pub(crate) counters: Arc<Counters>,
    /// By their ids as text: making a key of text takes longer than sending a message.
    pub(crate) peers: RwLock<BTreeMap<Arc<str>, Arc<Peer>>>,
    pub(crate) handshakes: Mutex<Handshakes>,
    pub(crate) limiters: Mutex<[Limiter; Refusal::COUNT]>,
    pub(crate) started: Instant,
    pub(crate) numbers: AtomicU64,
    /// Own requests that are not answered.
    pub(crate) calls: Mutex<HashMap<u64, Call>>,
    /// Requests of peers that the application has not answered.
    pub(crate) serving: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
    pub(crate) streams: Mutex<HashMap<u64, Arc<Stream>>>,
    /// What all foreign peers together may take: streams, and bytes of requests.
    pub(crate) foreign_streams: Arc<Semaphore>,
    pub(crate) foreign_requests_in: Arc<Semaphore>,
    /// What else is spoken at this address.
    pub(crate) other: RwLock<Option<OtherProtocol>>,
}

/// A few refusals of a kind are told at once, then one each second.
pub(crate) const fn refusal_limiter() -> Limiter {
    Limiter::new(8, Duration::from_secs(1))
}

impl Shared {
    pub(crate) fn peer(&self, id: &str) -> Option<Arc<Peer>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(id).cloned()
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// What this node says of itself.
    pub(crate) fn hello(&self, channel: Channel) -> Hello {
        Hello {
            channel,
            incarnation: self.incarnation,
            cluster: self.config.cluster.clone(),
            node: self.config.node.clone(),
        }
    }

    /// What a peer says of itself on a connection, if that is right.
    pub(crate) fn read_hello(&self, peer: &Peer, payload: &[u8]) -> Result<Hello, Broken> {
        let read = Hello::decode(payload).and_then(|hello| {
            match &peer.cluster {
                None => hello.check_cluster(&self.config.cluster)?,
                Some(cluster) => hello.check_foreign(cluster)?,
            }
            Ok(hello)
        });
        let hello = read.map_err(|error| Broken::Refused((&error).into(), error.to_string()))?;
        if peer.may_use(hello.channel) {
            return Ok(hello);
        }
        let text = "a peer of another cluster may not send messages";
        Err(Broken::Refused(Refusal::Stranger, text.into()))
    }

    /// Tell the application; news for which there is no room is counted.
    pub(crate) fn tell(&self, event: Event) {
        if !self.events.push(event) {
            self.counters.notices_dropped.increment();
        }
    }

    /// Somebody was refused: count it, and tell it unless much of this kind was told just now.
    pub(crate) fn refuse(&self, who: &str, refusal: Refusal, detail: &str) {
        refusal.counter(&self.counters).increment();
        let left_out = lock(&self.limiters)[refusal as usize].admit(self.started.elapsed());
        if let Some(left_out) = left_out {
            let event = Event::new(What::Refused, &who.into());
            self.tell(event.text(refusal.name()).detail(detail).extra(left_out));
        }
    }

    /// A peer does not keep to the protocol: close its connection with the reason.
    pub(crate) fn violated(&self, peer: &Peer, connection: &Connection, refusal: Refusal, detail: &str) {
        close(connection, refusal as u32, detail);
        self.refuse(&peer.text, refusal, detail);
    }
}
