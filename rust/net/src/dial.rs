//! Own connections to a peer: one for each kind of traffic, made when it is needed.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iroh::endpoint::{AckFrequencyConfig, ConnectOptions, Connection, QuicTransportConfig, VarInt};
use iroh::{EndpointAddr, TransportAddr};
use tokio::time::timeout;

use crate::ALPN;
use crate::config::Limits;
use crate::framed::{Broken, FrameReader, FrameWriter, close};
use crate::peer::{Peer, lock};
use crate::refusal::{CODE_REMOVED, Refusal};
use crate::rules::backoff::Backoff;
use crate::shared::Shared;
use crate::wire::hello::MAX_HELLO_BYTES;
use crate::wire::{Channel, Kind};

/// Most of one stream that waits in the library to be read.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
/// So many packets are acknowledged by one, unless one is missing or 25 ms have passed. QUIC's usual two put half as many
/// packets on the way again: what is answered goes over a connection of its own, so acknowledgements ride on nothing.
const ACK_PACKETS: u32 = 10;
/// A connection that was up this long was a good one.
const LASTING: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) struct NoLink {
    pub(crate) text: String,
    /// The peer answered, and does not speak to this node.
    pub(crate) refused: bool,
}

#[derive(Debug)]
struct DialState {
    /// The connection, and the incarnation of the peer that it leads to.
    link: Option<(Connection, u64)>,
    backoff: Backoff,
    not_before: Option<Instant>,
    last: Option<NoLink>,
    retired: bool,
}

#[derive(Debug)]
pub(crate) struct Dialer {
    state: Mutex<DialState>,
    /// Held by the one that dials.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Dialer {
    pub(crate) fn new(limits: &Limits) -> Self {
        let ms = Duration::from_millis;
        Self {
            state: Mutex::new(DialState {
                link: None,
                backoff: Backoff::new(ms(limits.backoff_ms), ms(limits.backoff_cap_ms)),
                not_before: None,
                last: None,
                retired: false,
            }),
            turn: Arc::default(),
        }
    }

    /// The connection that there is.
    pub(crate) fn link(&self) -> Option<(Connection, u64)> {
        let state = lock(&self.state);
        state.link.clone().filter(|(link, _)| link.close_reason().is_none())
    }

    /// There is news of the peer: the next dial need not wait.
    pub(crate) fn alive(&self) {
        let mut state = lock(&self.state);
        state.backoff.reset();
        state.not_before = None;
    }

    /// A connection is over. One that did not last counts like a dial that failed: whoever closes each connection that
    /// it takes, as two nodes with one key do to each other, is not dialled without a pause.
    pub(crate) fn ended(&self, lasted: Duration, reason: &str) {
        let mut state = lock(&self.state);
        if lasted >= LASTING {
            state.backoff.reset();
            return;
        }
        let delay = state.backoff.failed(rand::random());
        state.not_before = Some(Instant::now() + delay);
        state.last = Some(NoLink {
            text: reason.into(),
            refused: false,
        });
    }

    /// How long until the next dial may be made.
    pub(crate) fn wait(&self) -> Duration {
        let not_before = lock(&self.state).not_before;
        not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn retire(&self) {
        let mut state = lock(&self.state);
        state.retired = true;
        if let Some((link, _)) = state.link.take() {
            close(&link, CODE_REMOVED, "this node took its peer off the allowlist");
        }
    }

    /// What stands against a dial at this time.
    fn obstacle(&self) -> Option<NoLink> {
        let state = lock(&self.state);
        if state.retired {
            return Some(NoLink {
                text: "the peer is off the allowlist".into(),
                refused: false,
            });
        }
        state
            .not_before
            .filter(|at| *at > Instant::now())
            .and(state.last.clone())
    }

    fn keep(&self, result: Result<(Connection, u64), NoLink>) -> Result<Connection, NoLink> {
        let mut state = lock(&self.state);
        match result {
            Ok((link, _)) if state.retired => {
                close(&link, CODE_REMOVED, "this node took its peer off the allowlist");
                Err(NoLink {
                    text: "the peer is off the allowlist".into(),
                    refused: false,
                })
            }
            Ok((link, incarnation)) => {
                // The backoff begins anew when the connection has proved to last.
                state.not_before = None;
                state.link = Some((link.clone(), incarnation));
                Ok(link)
            }
            Err(error) => {
                let delay = state.backoff.failed(rand::random());
                state.not_before = Some(Instant::now() + delay);
                state.last = Some(error.clone());
                Err(error)
            }
        }
    }
}

/// The connection to a peer for this kind of traffic; dialled if there is none. After a dial that failed it fails at
/// once until the time for the next one has come.
pub(crate) async fn link(shared: &Arc<Shared>, peer: &Arc<Peer>, channel: Channel) -> Result<Connection, NoLink> {
    let dialer = peer.dialer(channel);
    if let Some((link, _)) = dialer.link() {
        return Ok(link);
    }
    let turn = Arc::clone(&dialer.turn).lock_owned().await;
    if let Some((link, _)) = dialer.link() {
        return Ok(link);
    }
    if let Some(obstacle) = dialer.obstacle() {
        return Err(obstacle);
    }
    // A task of its own: a caller who gives up does not end the dial for the others.
    let (shared, peer) = (Arc::clone(shared), Arc::clone(peer));
    let task = shared.handle.clone().spawn(async move {
        let _turn = turn;
        let dialled = dial(&shared, &peer, channel).await;
        let counter = match &dialled {
            Ok(_) => &shared.counters.dials,
            Err(_) => &shared.counters.dials_failed,
        };
        counter.increment();
        peer.dialer(channel).keep(dialled)
    });
    task.await.unwrap_or_else(|_| {
        Err(NoLink {
            text: "the endpoint is closed".into(),
            refused: false,
        })
    })
}

async fn dial(shared: &Shared, peer: &Peer, channel: Channel) -> Result<(Connection, u64), NoLink> {
    let addresses = peer.state().addresses.clone();
    let unreachable = |text: String| NoLink { text, refused: false };
    if addresses.is_empty() {
        return Err(unreachable("no address of the peer is known".into()));
    }
    let address = EndpointAddr::from_parts(peer.id, addresses.into_iter().map(TransportAddr::Ip));
    let options = ConnectOptions::new().with_transport_config(transport(&shared.config.limits, channel));
    let mut connection = None;
    let work = async {
        let connecting = shared.endpoint.connect_with_opts(address, ALPN, options).await;
        let made = connecting.map_err(|error| Broken::Gone(error.to_string()))?.await;
        let made = connection.insert(made.map_err(|error| Broken::Gone(format!("no handshake: {error}")))?);
        greet(shared, peer, made, channel).await
    };
    let result = timeout(shared.config.limits.handshake(), work).await;
    let failed = match (result, &connection) {
        (Ok(Ok(incarnation)), Some(connection)) => return Ok((connection.clone(), incarnation)),
        (Ok(Err(Broken::Refused(refusal, text))), Some(connection)) => {
            close(connection, refusal as u32, &text);
            shared.refuse(&peer.text, refusal, &text);
            unreachable(text)
        }
        (Ok(Err(error)), _) => unreachable(error.to_string()),
        (Err(_), Some(connection)) => {
            close(connection, Refusal::Timeout as u32, "the handshake took too long");
            unreachable("the handshake took too long".into())
        }
        (Err(_) | Ok(Ok(_)), None) => unreachable("it does not answer".into()),
    };
    let reason = connection.as_ref().and_then(Connection::close_reason);
    let refused = matches!(reason, Some(iroh::endpoint::ConnectionError::ApplicationClosed(_)));
    Err(NoLink { refused, ..failed })
}

async fn greet(shared: &Shared, peer: &Peer, connection: &Connection, channel: Channel) -> Result<u64, Broken> {
    let (send, receive) = connection.open_bi().await?;
    let mut writer = FrameWriter::new(send);
    writer.frame(Kind::Hello, &shared.hello(channel).encode()).await?;
    let mut reader = FrameReader::new(receive, &[Kind::Welcome], MAX_HELLO_BYTES);
    let welcome = shared.read_hello(peer, &reader.need().await?.payload)?;
    if welcome.channel != channel {
        return Err(Broken::malformed("the welcome is for another kind of traffic"));
    }
    writer.frame(Kind::Go, &[]).await?;
    writer.finish();
    peer.state().name = welcome.node;
    Ok(welcome.incarnation)
}

/// The peer opens no streams on what this node dials.
fn transport(limits: &Limits, channel: Channel) -> QuicTransportConfig {
    let (stream, connection, send) = match channel {
        Channel::Messages => (64 << 10, 128 << 10, 4 << 20),
        Channel::Requests => (2 << 20, 32 << 20, 16 << 20),
        Channel::Streams => (STREAM_WINDOW, u64::from(STREAM_WINDOW) * limits.max_streams, 16 << 20),
    };
    base_transport(limits)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(stream))
        .receive_window(VarInt::from_u64(connection).unwrap_or(VarInt::MAX))
        .send_window(send)
        .build()
}

/// What connections of both directions have in common.
pub(crate) fn base_transport(limits: &Limits) -> iroh::endpoint::QuicTransportConfigBuilder {
    let idle = limits.idle();
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_PACKETS))
        .reordering_threshold(VarInt::from_u32(1));
    let builder = QuicTransportConfig::builder()
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .keep_alive_interval(idle / 4)
        .default_path_keep_alive_interval(idle / 4)
        .default_path_max_idle_timeout(idle)
        // So that a lost first packet does not cost a second where nodes are near each other.
        .initial_rtt(Duration::from_millis(50))
        .ack_frequency_config(Some(acks))
        .datagram_receive_buffer_size(None);
    match idle.try_into() {
        Ok(timeout) => builder.max_idle_timeout(Some(timeout)),
        Err(_) => builder,
    }
}
