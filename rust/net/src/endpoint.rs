//! What an application calls. No call waits for the network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::endpoint::{PortmapperConfig, presets};
use iroh::{EndpointId, RelayMode};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::config::{Config, Limits, MAX_URGENT_BYTES, size};
use crate::counters::Counters;
use crate::error::{NetError, Result};
use crate::events::EventQueue;
use crate::framed::close;
use crate::others::{Dialler, OtherProtocol};
use crate::peer::{Peer, lock};
use crate::refusal::CODE_SHUTDOWN;
use crate::requests::Reply;
use crate::rules::admission::Handshakes;
use crate::shared::{Shared, refusal_limiter};
use crate::streams::Stream;
use crate::wire::Channel;
use crate::wire::hello::is_name;
use crate::{ALPN, accept, identity, messages, others, requests, streams};

/// How long the close of connections may take: peers that do not answer are left to their own timeouts.
const CLOSE_TIME: Duration = Duration::from_secs(2);

struct Running {
    runtime: Runtime,
    shared: Arc<Shared>,
}

/// A node's endpoint.
pub struct Endpoint {
    id: EndpointId,
    addresses: Vec<SocketAddr>,
    limits: Limits,
    events: Arc<EventQueue>,
    counters: Arc<Counters>,
    running: Mutex<Option<Running>>,
}

/// What is known of a peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its endpoint id.
    pub id: String,
    /// Its name; empty before the first connection.
    pub name: String,
    /// Whether messages to it are sent.
    pub up: bool,
    /// Bytes of messages that wait to be sent.
    pub outbox_bytes: usize,
    /// Own requests that it has not answered.
    pub pending_requests: u64,
}

/// A peer of another cluster.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// Its endpoint id.
    pub id: String,
    /// What its hello must name.
    pub cluster: String,
    /// Where it is dialled when something is asked of it.
    pub addresses: Vec<SocketAddr>,
}

/// An entry of the allowlist.
struct Allowed {
    id: EndpointId,
    addresses: Vec<SocketAddr>,
    cluster: Option<Arc<str>>,
}

impl Endpoint {
    /// Start an endpoint. It takes connections from its first allowlist on.
    ///
    /// # Errors
    /// When the key file cannot be used, a setting cannot be, or an address cannot be bound.
    pub fn start(config: Config) -> Result<Self> {
        config.check()?;
        let key = identity::load_or_create(&config.key_file)?;
        let failed = |error: &dyn std::fmt::Display| NetError::Start(error.to_string());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(size(config.limits.threads))
            .max_blocking_threads(2)
            .thread_name("jobs-net")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let endpoint = runtime.block_on(bind(&config, key))?;
        let events = Arc::new(EventQueue::new().map_err(|error| failed(&error))?);
        let counters = Arc::new(Counters::default());
        let limits = config.limits;
        let shared = Arc::new(Shared {
            handle: runtime.handle().clone(),
            incarnation: rand::random(),
            events: Arc::clone(&events),
            counters: Arc::clone(&counters),
            peers: RwLock::default(),
            handshakes: Mutex::new(Handshakes::new(
                size(limits.max_handshakes),
                size(limits.max_handshakes_per_source),
            )),
            limiters: Mutex::new(std::array::from_fn(|_| refusal_limiter())),
            started: Instant::now(),
            numbers: AtomicU64::new(1),
            calls: Mutex::default(),
            serving: Mutex::default(),
            streams: Mutex::default(),
            foreign_streams: Arc::new(Semaphore::new(size(limits.all_foreign_streams))),
            foreign_requests_in: Arc::new(Semaphore::new(size(limits.all_foreign_requests_in_bytes))),
            other: RwLock::default(),
            endpoint,
            config,
        });
        runtime.spawn(accept::accept(Arc::clone(&shared)));
        Ok(Self {
            id: shared.endpoint.id(),
            addresses: shared.endpoint.bound_sockets(),
            limits,
            events,
            counters,
            running: Mutex::new(Some(Running { runtime, shared })),
        })
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        let running = lock(&self.running);
        running
            .as_ref()
            .map(|running| Arc::clone(&running.shared))
            .ok_or(NetError::Closed)
    }

    /// This node's id: its public key.
    #[must_use]
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    /// Addresses that are bound.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What has come.
    #[must_use]
    pub fn events(&self) -> &EventQueue {
        &self.events
    }

    /// What is counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Limits in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Replace the allowlist, with the addresses of each. Who is not on it any more is cut off before this returns:
    /// no message, request or new stream of theirs is handed on after it. Those among them who are `guests`, too, have
    /// no connections of other protocols; those who are `foreign` have no messages either.
    ///
    /// # Errors
    /// When an entry is none, or they are too many; the former list stays.
    pub fn set_peers(&self, peers: &[(String, Vec<SocketAddr>)], guests: &[String], foreign: &[Foreign]) -> Result<()> {
        let shared = self.shared()?;
        let wanted = self.allowlist(&shared.config.cluster, peers, foreign)?;
        let mut known = shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, peer| {
            // Who has come to be of another cluster is another peer.
            let stays = wanted.get(id).is_some_and(|entry| entry.cluster == peer.cluster);
            if !stays {
                peer.retire();
                shared.events.purge(&peer.text);
                messages::go_down(&shared, peer, "this node took its peer off the allowlist");
            }
            stays
        });
        for (text, entry) in wanted {
            let is_guest = guests.iter().any(|guest| **guest == *text);
            if let Some(peer) = known.get(&text) {
                peer.set_guest(is_guest);
                let mut state = peer.state();
                if state.addresses != entry.addresses {
                    state.addresses = entry.addresses;
                    drop(state);
                    peer.dialers.iter().for_each(crate::dial::Dialer::alive);
                    peer.wake.notify_one();
                }
                continue;
            }
            let peer = Arc::new(Peer::new(entry.id, entry.addresses, entry.cluster, &self.limits));
            peer.set_guest(is_guest);
            if peer.may_use(Channel::Messages) {
                let task = shared
                    .handle
                    .spawn(messages::keep_link(Arc::clone(&shared), Arc::clone(&peer)));
                peer.set_link_task(task.abort_handle());
            }
            known.insert(text, peer);
        }
        Ok(())
    }

    /// The entries of an allowlist by id, if it can be one.
    fn allowlist(
        &self,
        own_cluster: &str,
        peers: &[(String, Vec<SocketAddr>)],
        foreign: &[Foreign],
    ) -> Result<BTreeMap<Arc<str>, Allowed>> {
        let count = peers.len() + foreign.len();
        if count as u64 > self.limits.max_peers {
            let text = format!("{count} peers: at most {}", self.limits.max_peers);
            return Err(NetError::Limit(text));
        }
        let mut wanted = BTreeMap::new();
        for (id, addresses) in peers {
            let entry = self.entry(id, addresses, None)?;
            wanted.insert(Arc::<str>::from(entry.id.to_string()), entry);
        }
        for Foreign { id, cluster, addresses } in foreign {
            let invalid = |why: &str| NetError::Invalid(format!("foreign peer {id}: {why}"));
            if !is_name(cluster) {
                return Err(invalid(&format!("{cluster:?} is no cluster id")));
            }
            if cluster == own_cluster {
                return Err(invalid("its cluster is this node's own"));
            }
            let entry = self.entry(id, addresses, Some(cluster.as_str().into()))?;
            if wanted.insert(Arc::<str>::from(entry.id.to_string()), entry).is_some() {
                return Err(invalid("it is on the allowlist already"));
            }
        }
        Ok(wanted)
    }

    fn entry(&self, id: &str, addresses: &[SocketAddr], cluster: Option<Arc<str>>) -> Result<Allowed> {
        let id = parse_id(id)?;
        if id == self.id {
            return Err(NetError::Invalid(format!("peer {id}: that is this node itself")));
        }
        let addresses = addresses.to_vec();
        Ok(Allowed { id, addresses, cluster })
    }

    /// What is known of each peer.
    ///
    /// # Errors
    /// After the close.
    pub fn peers(&self) -> Result<Vec<PeerStatus>> {
        let shared = self.shared()?;
        let peers = shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let status = |peer: &Arc<Peer>| {
            let state = peer.state();
            PeerStatus {
                id: peer.text.to_string(),
                name: state.name.clone(),
                up: state.up,
                outbox_bytes: lock(&peer.outbox).bytes(),
                pending_requests: lock(&peer.pending).count,
            }
        };
        Ok(peers.values().map(status).collect())
    }

    /// Send a message, in order after those that were sent before. False: it was dropped, because the peer is not up
    /// or its queue is full.
    ///
    /// # Errors
    /// When the peer is not on the allowlist, or the message is too long.
    pub fn send(&self, peer: &str, message: Bytes) -> Result<bool> {
        let shared = self.shared()?;
        let peer = known(&shared, peer)?;
        check_size("message", message.len(), self.limits.max_message_bytes)?;
        let taken = lock(&peer.outbox).push(message);
        if taken {
            peer.filled.notify_one();
        } else {
            shared.counters.messages_dropped.increment();
        }
        Ok(taken)
    }

    /// Send a short message before all that wait to be sent; nothing is said of the order between it and those. False: it
    /// was dropped.
    ///
    /// # Errors
    /// When the peer is not on the allowlist, or the message is too long.
    pub fn send_urgent(&self, peer: &str, message: Bytes) -> Result<bool> {
        let shared = self.shared()?;
        let peer = known(&shared, peer)?;
        check_size("urgent message", message.len(), MAX_URGENT_BYTES)?;
        let taken = lock(&peer.urgent).push(message);
        if taken {
            peer.urgent_filled.notify_one();
        } else {
            shared.counters.messages_dropped.increment();
        }
        Ok(taken)
    }

    /// Begin a request; its number. What becomes of it comes as one event, unless it is cancelled.
    ///
    /// # Errors
    /// When the peer is not on the allowlist, the request is too long, or too many are not answered yet.
    pub fn request(&self, peer: &str, body: Bytes, wait: Duration) -> Result<u64> {
        let shared = self.shared()?;
        let peer = known(&shared, peer)?;
        check_size("request", body.len(), self.limits.max_request_bytes)?;
        let bytes = body.len() as u64;
        {
            let mut pending = lock(&peer.pending);
            let full = pending.count >= self.limits.max_pending_requests
                || pending.bytes + bytes > self.limits.max_pending_request_bytes;
            if full {
                let (count, bytes) = (pending.count, pending.bytes);
                let text = format!(
                    "requests to {}: {count} of {bytes} bytes wait, which is the limit",
                    peer.text
                );
                return Err(NetError::Limit(text));
            }
            pending.count += 1;
            pending.bytes += bytes;
        }
        Ok(requests::begin(&shared, peer, body, wait))
    }

    /// Give up a request: no event follows. Whether the peer may have carried it out; none when it has ended.
    ///
    /// # Errors
    /// After the close.
    pub fn cancel(&self, number: u64) -> Result<Option<bool>> {
        let call = lock(&self.shared()?.calls).remove(&number);
        Ok(call.map(|call| {
            call.task.abort();
            call.sent.load(Ordering::Acquire)
        }))
    }

    /// Answer a peer's request. False when nobody waits any more.
    ///
    /// # Errors
    /// When the answer is too long; the request can still be declined.
    pub fn respond(&self, number: u64, answer: Bytes) -> Result<bool> {
        check_size("answer", answer.len(), self.limits.max_answer_bytes)?;
        self.reply(number, Reply::Answer(answer))
    }

    /// Decline a peer's request, in words. `maybe_done`: it may have been carried out all the same.
    ///
    /// # Errors
    /// After the close.
    pub fn decline(&self, number: u64, reason: &str, maybe_done: bool) -> Result<bool> {
        self.reply(number, Reply::Declined(reason.into(), maybe_done))
    }

    fn reply(&self, number: u64, reply: Reply) -> Result<bool> {
        let waiting = lock(&self.shared()?.serving).remove(&number);
        Ok(waiting.is_some_and(|waiting| waiting.send(reply).is_ok()))
    }

    /// Open a stream to a peer; its number. It can be written to at once.
    ///
    /// # Errors
    /// When the peer is not on the allowlist, the header is too long, or there are too many streams.
    pub fn stream_open(&self, peer: &str, header: Bytes) -> Result<u64> {
        let shared = self.shared()?;
        let peer = known(&shared, peer)?;
        check_size("header of a stream", header.len(), self.limits.max_header_bytes)?;
        streams::open(&shared, peer, header)
            .ok_or_else(|| NetError::Limit(format!("streams: at most {}", self.limits.max_streams)))
    }

    /// Write to a stream. False: there is no room, and it is told when there is.
    ///
    /// # Errors
    /// When the stream is over or finished, or this is more than there ever is room for.
    pub fn stream_write(&self, number: u64, data: Bytes) -> Result<bool> {
        check_size("part of a stream", data.len(), self.limits.stream_out_bytes)?;
        let taken = self.stream(number)?.write(data);
        taken.ok_or_else(|| NetError::Invalid(format!("stream {number}: it is finished")))
    }

    /// Nothing more is written to a stream; the peer's side goes on.
    ///
    /// # Errors
    /// When the stream is over.
    pub fn stream_finish(&self, number: u64) -> Result<()> {
        self.stream(number)?.finish();
        Ok(())
    }

    /// The application has used so many bytes that came on a stream: there is room for more, unless the stream is over.
    ///
    /// # Errors
    /// After the close.
    pub fn stream_consumed(&self, number: u64, bytes: usize) -> Result<()> {
        if let Some(stream) = lock(&self.shared()?.streams).get(&number) {
            stream.consume(bytes);
        }
        Ok(())
    }

    /// Give a stream up, both ways: what was not sent is dropped. No event follows. False: it is over.
    ///
    /// # Errors
    /// After the close.
    pub fn stream_reset(&self, number: u64) -> Result<bool> {
        let stream = lock(&self.shared()?.streams).remove(&number);
        Ok(stream.is_some_and(|stream| {
            stream.give_up();
            true
        }))
    }

    fn stream(&self, number: u64) -> Result<Arc<Stream>> {
        let stream = lock(&self.shared()?.streams).get(&number).cloned();
        stream.ok_or_else(|| NetError::Invalid(format!("stream {number}: it is over")))
    }

    /// Speak another protocol, too, at this address; a former one is spoken no more.
    ///
    /// # Errors
    /// After the close.
    pub fn serve_other(&self, protocol: OtherProtocol) -> Result<Dialler> {
        let shared = self.shared()?;
        others::serve(&shared, protocol);
        Ok(Dialler::new(&shared))
    }

    /// Close every connection, end every task, join every thread. Again: nothing.
    pub fn close(&self) {
        let Some(Running { runtime, shared }) = lock(&self.running).take() else {
            return;
        };
        self.events.close();
        runtime.block_on(async {
            let peers = std::mem::take(&mut *shared.peers.write().unwrap_or_else(PoisonError::into_inner));
            for peer in peers.values() {
                for channel in Channel::ALL {
                    if let Some((link, _)) = peer.dialer(channel).link() {
                        close(&link, CODE_SHUTDOWN, "the node shuts down");
                    }
                }
                peer.close_incoming(CODE_SHUTDOWN, "the node shuts down");
                peer.close_others(CODE_SHUTDOWN, "the node shuts down");
            }
            // Peers that do not answer find out by themselves.
            let _ = tokio::time::timeout(CLOSE_TIME, shared.endpoint.close()).await;
        });
        drop(shared);
        runtime.shutdown_timeout(CLOSE_TIME);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close();
    }
}

async fn bind(config: &Config, key: iroh::SecretKey) -> Result<iroh::Endpoint> {
    // Nothing but the addresses given: no relays, no look-up, no port mapping.
    let mut builder = iroh::Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .portmapper_config(PortmapperConfig::Disabled)
        .clear_ip_transports()
        .secret_key(key)
        .alpns(vec![ALPN.to_vec()])
        .transport_config(accept::transport(&config.limits));
    for address in &config.bind {
        let bound = builder.bind_addr(*address);
        builder = bound.map_err(|error| NetError::Start(format!("{address}: {error}")))?;
    }
    builder.bind().await.map_err(|error| NetError::Start(error.to_string()))
}

fn parse_id(text: &str) -> Result<EndpointId> {
    text.parse()
        .map_err(|_| NetError::Invalid(format!("peer {text:?}: it is no endpoint id")))
}

fn known(shared: &Shared, id: &str) -> Result<Arc<Peer>> {
    shared.peer(id).ok_or_else(|| NetError::UnknownPeer(id.into()))
}

fn check_size(what: &str, bytes: usize, max_bytes: u64) -> Result<()> {
    if bytes as u64 > max_bytes {
        return Err(NetError::Limit(format!("{what} of {bytes} bytes: at most {max_bytes}")));
    }
    Ok(())
}
