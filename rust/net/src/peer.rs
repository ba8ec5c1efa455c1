//! What is known of a peer on the allowlist.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iroh::EndpointId;
use iroh::endpoint::Connection;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use crate::config::{Limits, MAX_URGENT_BYTES, URGENT_COUNT, size};
use crate::dial::Dialer;
use crate::framed::close;
use crate::refusal::{CODE_REMOVED, CODE_RESTARTED, Refusal};
use crate::rules::admission::{Arrival, Newest};
use crate::rules::outbox::Outbox;
use crate::wire::Channel;

fn close_all(connections: &mut Vec<Connection>, code: u32, reason: &str) {
    for connection in connections.drain(..) {
        close(&connection, code, reason);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
pub(crate) struct PeerState {
    pub(crate) addresses: Vec<SocketAddr>,
    /// It is off the allowlist: nothing of it is handed on any more.
    pub(crate) retired: bool,
    pub(crate) up: bool,
    pub(crate) name: String,
    pub(crate) handshakes: u64,
    newest: [Newest; 3],
    incoming: [Option<Connection>; 3],
    /// It may not speak other protocols than this crate's.
    is_guest: bool,
    /// Connections of other protocols, whoever made them.
    others: Vec<Connection>,
    link_task: Option<AbortHandle>,
}

/// Requests to a peer that are not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: EndpointId,
    pub(crate) text: Arc<str>,
    /// The cluster of a foreign peer. It may ask and open streams; it has no messages and speaks no other protocols.
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) state: Mutex<PeerState>,
    pub(crate) outbox: Mutex<Outbox>,
    /// Something was put into the outbox.
    pub(crate) filled: Notify,
    /// What goes before all that waits in the other one; few and short.
    pub(crate) urgent: Mutex<Outbox>,
    pub(crate) urgent_filled: Notify,
    /// There is news: dial now.
    pub(crate) wake: Notify,
    pub(crate) dialers: [Dialer; 3],
    /// Budgets of what waits for the application, in bytes.
    pub(crate) inbox: Arc<Semaphore>,
    pub(crate) requests_in: Arc<Semaphore>,
    pub(crate) answers_in: Arc<Semaphore>,
    pub(crate) pending: Mutex<Pending>,
}

impl Peer {
    pub(crate) fn new(id: EndpointId, addresses: Vec<SocketAddr>, cluster: Option<Arc<str>>, limits: &Limits) -> Self {
        let requests_in_bytes = match cluster {
            Some(_) => limits.foreign_requests_in_bytes,
            None => limits.requests_in_bytes,
        };
        let budget = |bytes: u64| Arc::new(Semaphore::new(size(bytes)));
        Self {
            id,
            text: id.to_string().into(),
            cluster,
            state: Mutex::new(PeerState {
                addresses,
                ..PeerState::default()
            }),
            outbox: Mutex::new(Outbox::new(size(limits.outbox_count), size(limits.outbox_bytes))),
            filled: Notify::new(),
            urgent: Mutex::new(Outbox::new(URGENT_COUNT, URGENT_COUNT * size(MAX_URGENT_BYTES))),
            urgent_filled: Notify::new(),
            wake: Notify::new(),
            dialers: std::array::from_fn(|_| Dialer::new(limits)),
            inbox: budget(limits.inbox_bytes),
            requests_in: budget(requests_in_bytes),
            answers_in: budget(limits.answers_in_bytes),
            pending: Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, PeerState> {
        lock(&self.state)
    }

    pub(crate) const fn dialer(&self, channel: Channel) -> &Dialer {
        &self.dialers[channel.index()]
    }

    /// Whether there may be such a connection with it, whoever makes it.
    pub(crate) const fn may_use(&self, channel: Channel) -> bool {
        self.cluster.is_none() || !matches!(channel, Channel::Messages)
    }

    /// Keep the handle of the task that keeps the messages' link up.
    pub(crate) fn set_link_task(&self, task: AbortHandle) {
        self.state().link_task = Some(task);
    }

    /// A hello came from this peer.
    pub(crate) fn hello(&self, channel: Channel) -> Arrival {
        self.state().newest[channel.index()].hello()
    }

    /// Its sender goes on: the connection takes the place of a former one, unless a later one has.
    pub(crate) fn install(
        &self,
        channel: Channel,
        arrival: Arrival,
        connection: &Connection,
        incarnation: u64,
    ) -> bool {
        let mut state = self.state();
        if state.retired || !state.newest[channel.index()].go(arrival) {
            return false;
        }
        if let Some(former) = state.incoming[channel.index()].replace(connection.clone()) {
            close(
                &former,
                Refusal::Superseded as u32,
                "a later connection takes its place",
            );
        }
        drop(state);
        // The peer lives. If it lives anew, what was dialled in its former life leads nowhere.
        for dialer in &self.dialers {
            dialer.alive();
            if let Some((link, theirs)) = dialer.link()
                && theirs != incarnation
            {
                close(&link, CODE_RESTARTED, "the peer has been restarted");
            }
        }
        self.wake.notify_one();
        true
    }

    /// Run this if the connection still counts. Nothing of a former connection is handed on after a later one counts.
    pub(crate) fn if_current<T>(&self, channel: Channel, arrival: Arrival, work: impl FnOnce() -> T) -> Option<T> {
        let state = self.state();
        (!state.retired && state.newest[channel.index()].is_current(arrival)).then(work)
    }

    /// The connection is over.
    pub(crate) fn uninstall(&self, channel: Channel, arrival: Arrival) {
        let mut state = self.state();
        if state.newest[channel.index()].is_current(arrival) {
            state.incoming[channel.index()] = None;
        }
    }

    /// Close what the peer has dialled.
    pub(crate) fn close_incoming(&self, code: u32, reason: &str) {
        for connection in self.state().incoming.iter_mut().filter_map(Option::take) {
            close(&connection, code, reason);
        }
    }

    /// Whether it may speak this crate's protocol only.
    pub(crate) fn set_guest(&self, is_guest: bool) {
        let mut state = self.state();
        state.is_guest = is_guest;
        if is_guest {
            close_all(&mut state.others, CODE_REMOVED, "this node takes its peer for a guest");
        }
    }

    /// Whether connections of other protocols may be had with it.
    pub(crate) fn may_speak_others(&self) -> bool {
        let state = self.state();
        !state.retired && self.speaks_others(&state)
    }

    const fn speaks_others(&self, state: &PeerState) -> bool {
        self.cluster.is_none() && !state.is_guest
    }

    /// Keep a connection of another protocol, to be closed with the rest of them.
    pub(crate) fn add_other(&self, connection: &Connection, max_count: usize) -> Result<(), Refusal> {
        let mut state = self.state();
        if state.retired || !self.speaks_others(&state) {
            return Err(Refusal::Stranger);
        }
        state.others.retain(|other| other.close_reason().is_none());
        if state.others.len() >= max_count {
            return Err(Refusal::Busy);
        }
        state.others.push(connection.clone());
        Ok(())
    }

    /// Close the connections of other protocols.
    pub(crate) fn close_others(&self, code: u32, reason: &str) {
        close_all(&mut self.state().others, code, reason);
    }

    /// It is off the allowlist: cut it off.
    pub(crate) fn retire(&self) {
        let mut state = self.state();
        state.retired = true;
        close_all(
            &mut state.others,
            CODE_REMOVED,
            "this node took its peer off the allowlist",
        );
        if let Some(task) = state.link_task.take() {
            task.abort();
        }
        drop(state);
        self.close_incoming(CODE_REMOVED, "this node took its peer off the allowlist");
        for dialer in &self.dialers {
            dialer.retire();
        }
        self.close_outboxes();
    }

    /// There is a connection: take messages.
    pub(crate) fn open_outboxes(&self) {
        lock(&self.outbox).open();
        lock(&self.urgent).open();
    }

    /// The connection is gone: forget what waits. Tells how many.
    pub(crate) fn close_outboxes(&self) -> usize {
        lock(&self.outbox).close() + lock(&self.urgent).close()
    }
}
