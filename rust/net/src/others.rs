//! Connections of another protocol with the peers of this endpoint: the same keys, allowlist and address. What goes over
//! them is not this crate's business; that they end with the peer's place on the allowlist is.

use std::sync::{Arc, PoisonError, Weak};

use iroh::endpoint::{ConnectOptions, Connection, VarInt};
use iroh::{EndpointAddr, TransportAddr};
use tokio::time::timeout;

use crate::ALPN;
use crate::config::Limits;
use crate::dial::base_transport;
use crate::error::{NetError, Result};
use crate::framed::{Broken, close};
use crate::peer::Peer;
use crate::refusal::{CODE_GIVEN_UP, Refusal};
use crate::shared::Shared;

/// Connections of other protocols that there may be with one peer, both ways together.
const MAX_OTHERS: usize = 8;
/// Most of one answer that waits in the library to be read. No more than this: of the packets in flight every second one
/// may be lost, and the library ends a connection whose stream has more than 1,024 gaps, which are then 2,400 bytes apart.
const STREAM_WINDOW: u32 = 2 << 20;
/// And of all answers on a connection.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Most of all requests on a connection that waits in the library to be read.
const REQUEST_WINDOW: u32 = 2 << 20;

/// A connection that a peer has made.
#[derive(Debug)]
pub struct Caller {
    /// Id of the peer.
    pub peer: Arc<str>,
    /// What it made.
    pub connection: Connection,
}

/// Another protocol that is spoken at this address.
#[derive(Clone)]
pub struct OtherProtocol {
    /// Its name in the TLS handshake.
    pub alpn: &'static [u8],
    /// Streams that a peer may have open at once on one connection.
    pub max_streams: u32,
    /// Takes a connection over; it is called within the endpoint's runtime and must not wait.
    pub take: Arc<dyn Fn(Caller) + Send + Sync>,
}

/// Take connections of this protocol from now on.
pub(crate) fn serve(shared: &Shared, protocol: OtherProtocol) {
    let alpn = protocol.alpn.to_vec();
    *shared.other.write().unwrap_or_else(PoisonError::into_inner) = Some(protocol);
    shared.endpoint.set_alpns(vec![ALPN.to_vec(), alpn]);
}

/// Whether the peer may have this connection.
pub(crate) fn admit(peer: &Peer, connection: &Connection) -> std::result::Result<(), Broken> {
    peer.add_other(connection, MAX_OTHERS).map_err(|refusal| {
        let text = match refusal {
            Refusal::Busy => "too many connections of one peer at once",
            _ => "guests and peers of other clusters may not have such a connection",
        };
        Broken::Refused(refusal, text.into())
    })
}

/// Hand a connection on that was admitted.
pub(crate) fn hand_over(shared: &Shared, peer: &Peer, connection: Connection) {
    let protocol = shared.other.read().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(protocol) = protocol else {
        close(&connection, CODE_GIVEN_UP, "the protocol is not spoken here");
        return;
    };
    shared.counters.accepted.increment();
    connection.set_receive_window(VarInt::from_u32(REQUEST_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(protocol.max_streams));
    let peer = Arc::clone(&peer.text);
    (protocol.take)(Caller { peer, connection });
}

/// Makes connections of another protocol to peers on the allowlist, as long as the endpoint is open.
#[derive(Clone)]
pub struct Dialler {
    shared: Weak<Shared>,
}

impl Dialler {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
        }
    }

    /// Make a connection. The work on it is done in the caller's runtime.
    ///
    /// # Errors
    /// When the peer is not a member on the allowlist, does not answer or refuses, or the endpoint is closed.
    pub async fn connect(&self, peer: &str, alpn: &'static [u8]) -> Result<Connection> {
        let shared = self.shared.upgrade().ok_or(NetError::Closed)?;
        let known = shared.peer(peer).filter(|known| known.may_speak_others());
        let known = known.ok_or_else(|| NetError::UnknownPeer(peer.into()))?;
        let addresses = known.state().addresses.clone();
        if addresses.is_empty() {
            return Err(NetError::Unreachable("no address of the peer is known".into()));
        }
        let address = EndpointAddr::from_parts(known.id, addresses.into_iter().map(TransportAddr::Ip));
        let options = ConnectOptions::new().with_transport_config(transport(&shared.config.limits));
        let work = async {
            let connecting = shared.endpoint.connect_with_opts(address, alpn, options).await;
            let connecting = connecting.map_err(|error| NetError::Unreachable(error.to_string()))?;
            connecting
                .await
                .map_err(|error| NetError::Unreachable(format!("no handshake: {error}")))
        };
        let made = timeout(shared.config.limits.handshake(), work).await;
        let made = made.unwrap_or_else(|_| Err(NetError::Unreachable("it does not answer".into())))?;
        match known.add_other(&made, MAX_OTHERS) {
            Ok(()) => Ok(made),
            Err(refusal) => {
                close(&made, CODE_GIVEN_UP, "not wanted any more");
                Err(match refusal {
                    Refusal::Busy => NetError::Limit(format!("connections with {peer}: at most {MAX_OTHERS}")),
                    _ => NetError::UnknownPeer(peer.into()),
                })
            }
        }
    }
}

/// The peer opens no streams on what this node dials; large answers come on it.
fn transport(limits: &Limits) -> iroh::endpoint::QuicTransportConfig {
    base_transport(limits)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(2 << 20)
        .build()
}
