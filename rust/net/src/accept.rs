//! Connections of peers: greeted, bounded, and refused with a reason.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use iroh::endpoint::{Connection, Incoming, IncomingAddr, QuicTransportConfig, RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use crate::config::Limits;
use crate::dial::{STREAM_WINDOW, base_transport};
use crate::framed::{Broken, FrameReader, FrameWriter, close};
use crate::peer::{Peer, lock};
use crate::refusal::Refusal;
use crate::rules::admission::{Arrival, Entry};
use crate::shared::Shared;
use crate::wire::hello::MAX_HELLO_BYTES;
use crate::wire::{Channel, Hello, Kind};
use crate::{ALPN, messages, others, requests, streams};

/// Most that the peer may have sent before it is known: its hello.
const GREETING_WINDOW: u32 = 64 << 10;

/// Before the greeting a peer may open one stream and send little on it.
pub(crate) fn transport(limits: &Limits) -> QuicTransportConfig {
    base_transport(limits)
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(GREETING_WINDOW))
        .send_window(16 << 20)
        .build()
}

/// Take connections until the endpoint is closed.
pub(crate) async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let address = incoming.remote_addr();
        let source = match &address {
            IncomingAddr::Ip(address) => address.ip(),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let proven = incoming.remote_addr_validated();
        let entry = lock(&shared.handshakes).begin(source, proven);
        match entry {
            Entry::Admit => {
                let task = serve(Arc::clone(&shared), incoming, source);
                shared.handle.spawn(task);
            }
            Entry::Prove => {
                // It was not validated, so this cannot fail.
                let _ = incoming.retry();
            }
            Entry::Refuse => {
                incoming.refuse();
                shared.refuse(&source.to_string(), Refusal::Busy, "too many handshakes at once");
            }
        }
    }
}

/// A connection that was greeted.
struct Greeted {
    peer: Arc<Peer>,
    hello: Hello,
    arrival: Arrival,
}

/// Whom a connection is with, by what it is for.
enum Met {
    Greeted(Greeted),
    Other(Arc<Peer>),
}

async fn serve(shared: Arc<Shared>, incoming: Incoming, source: IpAddr) {
    let mut connection = None;
    let greeted = timeout(
        shared.config.limits.handshake(),
        meet(&shared, incoming, &mut connection),
    )
    .await;
    lock(&shared.handshakes).end(source);
    let greeted =
        greeted.unwrap_or_else(|_| Err(Broken::Refused(Refusal::Timeout, "the handshake took too long".into())));
    let Some(connection) = connection else {
        if let Err(error) = greeted {
            shared.refuse(&source.to_string(), Refusal::Tls, &error.to_string());
        }
        return;
    };
    match greeted {
        Ok(Met::Greeted(greeted)) => serve_greeted(&shared, &connection, greeted).await,
        Ok(Met::Other(peer)) => others::hand_over(&shared, &peer, connection),
        Err(Broken::Refused(refusal, text)) => {
            close(&connection, refusal as u32, &text);
            shared.refuse(&format!("{} at {source}", connection.remote_id()), refusal, &text);
        }
        Err(Broken::Gone(_)) => {}
    }
}

async fn meet(shared: &Shared, incoming: Incoming, connection: &mut Option<Connection>) -> Result<Met, Broken> {
    let accepting = incoming.accept()?;
    let made = accepting.await.map_err(|error| Broken::Gone(error.to_string()))?;
    let made = connection.insert(made);
    let stranger = || Broken::Refused(Refusal::Stranger, "this endpoint id is not on the allowlist".into());
    let peer = shared.peer(&made.remote_id().to_string()).ok_or_else(stranger)?;
    let _place = HandshakePlace::take(Arc::clone(&peer), shared.config.limits.max_handshakes_per_source)?;
    if made.alpn() == ALPN {
        greet(shared, peer, made).await.map(Met::Greeted)
    } else {
        others::admit(&peer, made)?;
        Ok(Met::Other(peer))
    }
}

async fn greet(shared: &Shared, peer: Arc<Peer>, made: &Connection) -> Result<Greeted, Broken> {
    let (send, receive) = made.accept_bi().await?;
    let mut reader = FrameReader::new(receive, &[Kind::Hello], MAX_HELLO_BYTES);
    let payload = reader.need().await?.payload;
    let hello = shared.read_hello(&peer, &payload)?;
    let arrival = peer.hello(hello.channel);
    let mut writer = FrameWriter::new(send);
    writer
        .frame(Kind::Welcome, &shared.hello(hello.channel).encode())
        .await?;
    writer.finish();
    reader.expect(&[Kind::Go], 0);
    reader.need().await?;
    if !peer.install(hello.channel, arrival, made, hello.incarnation) {
        return Err(Broken::Refused(
            Refusal::Superseded,
            "a later connection takes its place".into(),
        ));
    }
    Ok(Greeted { peer, hello, arrival })
}

/// One of the handshakes that a peer may have under way.
struct HandshakePlace(Arc<Peer>);

impl HandshakePlace {
    fn take(peer: Arc<Peer>, max_count: u64) -> Result<Self, Broken> {
        let mut state = peer.state();
        if state.handshakes >= max_count {
            return Err(Broken::Refused(
                Refusal::Busy,
                "too many handshakes of one peer at once".into(),
            ));
        }
        state.handshakes += 1;
        drop(state);
        Ok(Self(peer))
    }
}

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        self.0.state().handshakes -= 1;
    }
}

async fn serve_greeted(shared: &Arc<Shared>, connection: &Connection, greeted: Greeted) {
    let Greeted { peer, hello, arrival } = greeted;
    shared.counters.accepted.increment();
    let limits = &shared.config.limits;
    let count = |limit: u64| VarInt::from_u32(u32::try_from(limit).unwrap_or(u32::MAX));
    let served = match hello.channel {
        Channel::Messages => {
            connection.set_receive_window(VarInt::from_u32(8 << 20));
            // One for those in order, one for those that go before them.
            connection.set_max_concurrent_uni_streams(VarInt::from_u32(2));
            messages::receive(shared, &peer, connection, arrival).await
        }
        Channel::Requests => {
            // Whoever is of another cluster is less trusted: what it takes leaves enough for the members.
            let (requests, window) = match peer.cluster {
                Some(_) => (limits.max_foreign_requests, 8 << 20),
                None => (limits.max_concurrent_requests, 32 << 20),
            };
            connection.set_receive_window(VarInt::from_u32(window));
            connection.set_max_concurrent_bi_streams(count(requests));
            each_stream(shared, &peer, connection, arrival, requests::answer).await
        }
        Channel::Streams => {
            let streams = match peer.cluster {
                Some(_) => limits.max_foreign_streams,
                None => limits.max_streams_in,
            };
            // Room for all of them, so that those whose readers stand still do not hold up the others.
            let room = u64::from(STREAM_WINDOW) * streams;
            connection.set_receive_window(VarInt::from_u64(room).unwrap_or(VarInt::MAX));
            connection.set_max_concurrent_bi_streams(count(streams));
            each_stream(shared, &peer, connection, arrival, streams::take).await
        }
    };
    peer.uninstall(hello.channel, arrival);
    if let Err(Broken::Refused(refusal, text)) = served {
        shared.violated(&peer, connection, refusal, &text);
    }
}

/// Take the streams that one connection of a peer brings, each in a task of its own.
async fn each_stream<W>(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    connection: &Connection,
    arrival: Arrival,
    take: impl Fn(Arc<Shared>, Arc<Peer>, Arrival, SendStream, RecvStream) -> W,
) -> Result<(), Broken>
where
    W: Future<Output = Result<(), Broken>> + Send + 'static,
{
    loop {
        let (send, receive) = connection.accept_bi().await?;
        let taking = take(Arc::clone(shared), Arc::clone(peer), arrival, send, receive);
        let (shared, peer, connection) = (Arc::clone(shared), Arc::clone(peer), connection.clone());
        shared.handle.clone().spawn(async move {
            if let Err(Broken::Refused(refusal, text)) = taking.await {
                shared.violated(&peer, &connection, refusal, &text);
            }
        });
    }
}
