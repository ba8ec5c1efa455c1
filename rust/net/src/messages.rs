//! Ordered frames, and short ones that go before those. They are dropped rather than delayed: whoever sends them repeats
//! what matters.
//!
//! The two have a stream each in one connection, and the urgent one the higher priority: however much waits in the other,
//! what is in the network before it is no more than that stream's window.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, RecvStream};
use jobs_failpoint::{Point, reach};
use tokio::sync::Notify;

use crate::config::{EVENT_BYTES, size};
use crate::dial::link;
use crate::events::{Event, What};
use crate::framed::{Broken, FrameReader, FrameWriter, explain};
use crate::peer::{Peer, lock};
use crate::refusal::Refusal;
use crate::rules::admission::Arrival;
use crate::rules::outbox::Outbox;
use crate::shared::Shared;
use crate::wire::frame::encode_header;
use crate::wire::{Channel, Kind};

/// Most that is written at once.
const BATCH_BYTES: usize = 256 << 10;

/// Priority of the stream of urgent messages; that of the other one is 0.
const URGENT: i32 = 1;

/// Keep a connection to this peer up, and send what is put into its outbox.
pub(crate) async fn keep_link(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut told = None;
    loop {
        match link(&shared, &peer, Channel::Messages).await {
            Ok(connection) => {
                told = None;
                let started = Instant::now();
                let reason = send(&shared, &peer, &connection).await;
                peer.dialer(Channel::Messages).ended(started.elapsed(), &reason);
                go_down(&shared, &peer, &reason);
            }
            Err(no_link) => {
                // Told once, not with each try.
                if no_link.refused && told.as_ref() != Some(&no_link.text) {
                    shared.tell(
                        Event::new(What::Refused, &peer.text)
                            .text("by_peer")
                            .detail(&no_link.text),
                    );
                    told = Some(no_link.text);
                }
                let has_address = !peer.state().addresses.is_empty();
                tokio::select! {
                    () = tokio::time::sleep(peer.dialer(Channel::Messages).wait()), if has_address => {}
                    () = peer.wake.notified() => {}
                }
            }
        }
    }
}

/// Drop what waits and tell that the peer is down, if it was up.
pub(crate) fn go_down(shared: &Shared, peer: &Peer, reason: &str) {
    let mut state = peer.state();
    let dropped = peer.close_outboxes();
    shared.counters.messages_dropped.add(dropped as u64);
    if std::mem::take(&mut state.up) {
        shared.tell(Event::new(What::Down, &peer.text).detail(reason));
    }
}

/// Send until the connection is gone; tells why it is.
async fn send(shared: &Shared, peer: &Peer, connection: &Connection) -> String {
    let stream = tokio::select! {
        stream = connection.open_uni() => stream,
        error = connection.closed() => Err(error),
    };
    let writer = match stream {
        Ok(stream) => FrameWriter::new(stream),
        Err(error) => return explain(&error),
    };
    {
        let mut state = peer.state();
        if state.retired {
            return "the peer is off the allowlist".into();
        }
        state.up = true;
        peer.open_outboxes();
        shared.tell(Event::new(What::Up, &peer.text).text(&state.name));
    }
    for channel in [Channel::Requests, Channel::Streams] {
        peer.dialer(channel).alive();
    }
    let work = async {
        tokio::try_join!(
            empty(shared, &peer.outbox, &peer.filled, writer),
            send_urgent(shared, peer, connection)
        )
    };
    tokio::select! {
        result = work => {
            let reason = result.map_or_else(|error| error.to_string(), |(never, _)| match never {});
            crate::framed::close(connection, crate::refusal::CODE_GIVEN_UP, "the stream of messages is broken");
            reason
        }
        error = connection.closed() => explain(&error),
    }
}

/// The urgent ones have a stream once there is one of them.
async fn send_urgent(shared: &Shared, peer: &Peer, connection: &Connection) -> Result<Infallible, Broken> {
    while lock(&peer.urgent).is_empty() {
        peer.urgent_filled.notified().await;
    }
    let stream = connection.open_uni().await?;
    // It fails for a stream that is over, which writing tells.
    let _ = stream.set_priority(URGENT);
    empty(shared, &peer.urgent, &peer.urgent_filled, FrameWriter::new(stream)).await
}

/// Write what is put into an outbox, until that fails.
async fn empty(
    shared: &Shared,
    outbox: &Mutex<Outbox>,
    filled: &Notify,
    mut writer: FrameWriter,
) -> Result<Infallible, Broken> {
    loop {
        let batch = lock(outbox).take(BATCH_BYTES);
        if batch.is_empty() {
            filled.notified().await;
            continue;
        }
        reach(Point::NetMessageSendBefore);
        writer.raw(join(&batch)).await?;
        reach(Point::NetMessageSendAfter);
        shared.counters.messages_sent.add(batch.len() as u64);
    }
}

fn join(frames: &[Bytes]) -> Bytes {
    let mut joined = BytesMut::with_capacity(frames.iter().map(|frame| frame.len() + 5).sum());
    for frame in frames {
        let length = u32::try_from(frame.len()).expect("messages are far shorter than 4 GiB");
        joined.extend_from_slice(&encode_header(Kind::Message, length));
        joined.extend_from_slice(frame);
    }
    joined.freeze()
}

/// Hand on the messages of one connection of a peer, those of each stream in order, as fast as the application takes
/// them.
pub(crate) async fn receive(
    shared: &Shared,
    peer: &Peer,
    connection: &Connection,
    arrival: Arrival,
) -> Result<(), Broken> {
    let first = connection.accept_uni().await?;
    let second = async { receive_stream(shared, peer, arrival, connection.accept_uni().await?).await };
    let Err(broken) = tokio::try_join!(receive_stream(shared, peer, arrival, first), second);
    Err(broken)
}

async fn receive_stream(
    shared: &Shared,
    peer: &Peer,
    arrival: Arrival,
    stream: RecvStream,
) -> Result<Infallible, Broken> {
    let mut reader = FrameReader::new(stream, &[Kind::Message], size(shared.config.limits.max_message_bytes));
    while let Some(header) = reader.header().await? {
        let cost = u32::try_from(header.payload_bytes as u64 + EVENT_BYTES).unwrap_or(u32::MAX);
        let permit = Arc::clone(&peer.inbox).acquire_many_owned(cost).await;
        let permit = permit.map_err(|error| Broken::Gone(error.to_string()))?;
        let payload = reader.need().await?.payload;
        reach(Point::NetMessageReceiveAfter);
        let event = Event::new(What::Message, &peer.text).body(payload, Some(permit));
        if peer
            .if_current(Channel::Messages, arrival, || shared.tell(event))
            .is_none()
        {
            return Err(Broken::Gone("a later connection takes its place".into()));
        }
        shared.counters.messages_received.increment();
    }
    Err(Broken::Refused(
        Refusal::Malformed,
        "the stream of messages has an end".into(),
    ))
}
