//! Duplex streams: a header, then bytes both ways until each side has finished, or one of them gives it up.
//!
//! What is held for a stream is bounded on each side: the sender's calls say when there is no room, and the receiver
//! reads on as its application consumes. So a stream that stands still costs its own room and nobody else's time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use iroh::endpoint::{ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use crate::config::{Limits, size};
use crate::dial::link;
use crate::events::{Event, What};
use crate::framed::{Broken, FrameReader, FrameWriter, explain};
use crate::peer::{Peer, lock};
use crate::refusal::Refusal;
use crate::rules::admission::Arrival;
use crate::rules::outbox::Outbox;
use crate::shared::Shared;
use crate::wire::{Channel, Kind};

/// Most that is read or written at once.
const BATCH_BYTES: usize = 64 << 10;
/// Writes that wait to be sent.
const MAX_WRITES: usize = 1_024;
/// Parts of a stream that wait for the application to take them; what comes meanwhile becomes one part.
const MAX_PARTS: usize = 4;

/// A stream, as the application's calls reach it.
#[derive(Debug)]
pub(crate) struct Stream {
    out: Mutex<Out>,
    /// Something was written, or it was finished.
    filled: Notify,
    /// Bytes handed on and not consumed.
    unconsumed: AtomicUsize,
    consumed: Notify,
    given_up: Notify,
}

#[derive(Debug)]
struct Out {
    outbox: Outbox,
    finished: bool,
    /// A write found no room: tell when there is some.
    wanted: bool,
}

impl Stream {
    fn new(limits: &Limits) -> Self {
        let mut outbox = Outbox::new(MAX_WRITES, size(limits.stream_out_bytes));
        outbox.open();
        Self {
            out: Mutex::new(Out {
                outbox,
                finished: false,
                wanted: false,
            }),
            filled: Notify::new(),
            unconsumed: AtomicUsize::new(0),
            consumed: Notify::new(),
            given_up: Notify::new(),
        }
    }

    /// Add to what is sent. False: there is no room; none: it is finished.
    pub(crate) fn write(&self, data: Bytes) -> Option<bool> {
        let mut out = lock(&self.out);
        if out.finished {
            return None;
        }
        let taken = data.is_empty() || out.outbox.push(data);
        out.wanted |= !taken;
        self.filled.notify_one();
        Some(taken)
    }

    /// Nothing more is written.
    pub(crate) fn finish(&self) {
        lock(&self.out).finished = true;
        self.filled.notify_one();
    }

    /// The application has used so many bytes; never more than it was given.
    pub(crate) fn consume(&self, bytes: usize) {
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let less = |unconsumed: usize| Some(unconsumed.saturating_sub(bytes));
        let _ = self.unconsumed.fetch_update(order.0, order.1, less);
        self.consumed.notify_one();
    }

    pub(crate) fn give_up(&self) {
        self.given_up.notify_one();
    }

    /// Wait until the application may be handed more; how much.
    async fn room(&self, max_bytes: usize) -> usize {
        loop {
            let room = max_bytes.saturating_sub(self.unconsumed.load(Ordering::Acquire));
            if room > 0 {
                return room;
            }
            self.consumed.notified().await;
        }
    }
}

/// How a stream ended before its end.
struct Cut {
    kind: &'static str,
    detail: String,
}

fn cut(kind: &'static str, detail: impl Into<String>) -> Cut {
    Cut {
        kind,
        detail: detail.into(),
    }
}

fn cut_by_peer(code: VarInt) -> Cut {
    if code == (Refusal::Busy as u32).into() {
        return cut("busy", "the peer has too many streams");
    }
    cut("reset", "the peer gave it up")
}

impl From<ReadError> for Cut {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => cut_by_peer(code),
            ReadError::ConnectionLost(error) => cut("closed", explain(&error)),
            other => cut("closed", other.to_string()),
        }
    }
}

impl From<WriteError> for Cut {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => cut_by_peer(code),
            WriteError::ConnectionLost(error) => cut("closed", explain(&error)),
            other => cut("closed", other.to_string()),
        }
    }
}

/// Open a stream; its number. None: there are too many.
pub(crate) fn open(shared: &Arc<Shared>, peer: Arc<Peer>, header: Bytes) -> Option<u64> {
    let (number, stream) = register(shared)?;
    shared.counters.streams_opened.increment();
    let shared = Arc::clone(shared);
    shared.handle.clone().spawn(async move {
        let work = async {
            let (writer, incoming) = greet(&shared, &peer, &header).await?;
            carry(&shared, &peer, number, &stream, writer, Bytes::new(), incoming).await
        };
        run(&shared, &peer, number, &stream, work).await;
    });
    Some(number)
}

fn register(shared: &Shared) -> Option<(u64, Arc<Stream>)> {
    let limits = &shared.config.limits;
    let mut streams = lock(&shared.streams);
    if streams.len() as u64 >= limits.max_streams {
        return None;
    }
    let (number, stream) = (shared.next_number(), Arc::new(Stream::new(limits)));
    streams.insert(number, Arc::clone(&stream));
    Some((number, stream))
}

/// Run a stream to its end, and tell how it ended unless the application gave it up.
async fn run(shared: &Shared, peer: &Peer, number: u64, stream: &Stream, work: impl Future<Output = Result<(), Cut>>) {
    let ended = tokio::select! {
        biased;
        () = stream.given_up.notified() => return,
        ended = work => ended,
    };
    if lock(&shared.streams).remove(&number).is_some() {
        shared.tell(match ended {
            Ok(()) => Event::new(What::StreamClosed, &peer.text).number(number),
            Err(cut) => Event::new(What::StreamBroken, &peer.text)
                .number(number)
                .text(cut.kind)
                .detail(cut.detail),
        });
    }
}

async fn greet(shared: &Arc<Shared>, peer: &Arc<Peer>, header: &[u8]) -> Result<(FrameWriter, RecvStream), Cut> {
    let connection = link(shared, peer, Channel::Streams)
        .await
        .map_err(|no_link| cut(if no_link.refused { "refused" } else { "unreachable" }, no_link.text))?;
    let opening = async {
        let (send, incoming) = connection.open_bi().await.map_err(|error| explain(&error))?;
        let mut writer = FrameWriter::new(send);
        let written = writer.frame(Kind::Open, header).await;
        written.map_err(|error| error.to_string())?;
        Ok((writer, incoming))
    };
    match timeout(shared.config.limits.stall(), opening).await {
        Ok(opened) => opened.map_err(|text: String| cut("closed", text)),
        Err(_) => Err(cut("busy", "the peer takes no more streams")),
    }
}

/// Carry bytes both ways. What fails on the way drops both ends, which resets them.
async fn carry(
    shared: &Shared,
    peer: &Peer,
    number: u64,
    stream: &Stream,
    mut writer: FrameWriter,
    first: Bytes,
    incoming: RecvStream,
) -> Result<(), Cut> {
    let sending = send(shared, peer, number, stream, &mut writer);
    let receiving = receive(shared, peer, number, stream, first, incoming);
    tokio::try_join!(sending, receiving).map(|_| ())
}

/// Write what the application writes, as fast as the peer takes it.
async fn send(shared: &Shared, peer: &Peer, number: u64, stream: &Stream, writer: &mut FrameWriter) -> Result<(), Cut> {
    let stall = shared.config.limits.stall();
    loop {
        let (mut batch, finished, wanted) = {
            let mut out = lock(&stream.out);
            let batch = out.outbox.take(BATCH_BYTES);
            let wanted = !batch.is_empty() && std::mem::take(&mut out.wanted);
            (batch, out.finished, wanted)
        };
        if wanted {
            shared.tell(Event::new(What::StreamWritable, &peer.text).number(number));
        }
        if batch.is_empty() {
            if finished {
                writer.finish();
            }
            tokio::select! {
                stopped = writer.stopped() => return match stopped {
                    // All has come.
                    Ok(None) => Ok(()),
                    Ok(Some(code)) => Err(cut_by_peer(code)),
                    Err(StoppedError::ConnectionLost(error)) => Err(cut("closed", explain(&error))),
                    Err(error) => Err(cut("closed", error.to_string())),
                },
                () = stream.filled.notified(), if !finished => {}
            }
        }
        let mut rest = &mut batch[..];
        while !rest.is_empty() {
            match timeout(stall, writer.stream().write_many_chunks(&mut rest)).await {
                Ok(written) => shared.counters.stream_bytes_sent.add(written? as u64),
                Err(_) => return Err(cut("stalled", "the peer takes nothing any more")),
            }
        }
    }
}

/// Hand on what comes, as fast as the application consumes it.
async fn receive(
    shared: &Shared,
    peer: &Peer,
    number: u64,
    stream: &Stream,
    mut first: Bytes,
    mut incoming: RecvStream,
) -> Result<(), Cut> {
    let max_bytes = size(shared.config.limits.stream_in_bytes);
    let parts = Arc::new(Semaphore::new(MAX_PARTS));
    let mut buffer = vec![0; BATCH_BYTES];
    loop {
        // Before the room: what comes while the application takes nothing becomes one part.
        let Ok(permit) = Arc::clone(&parts).acquire_owned().await else {
            return Ok(());
        };
        let room = stream.room(max_bytes).await.min(BATCH_BYTES);
        let part = if first.is_empty() {
            let Some(length) = incoming.read(&mut buffer[..room]).await? else {
                break;
            };
            Bytes::copy_from_slice(&buffer[..length])
        } else {
            first.split_to(room.min(first.len()))
        };
        stream.unconsumed.fetch_add(part.len(), Ordering::AcqRel);
        shared.counters.stream_bytes_received.add(part.len() as u64);
        let event = Event::new(What::StreamData, &peer.text).number(number);
        shared.tell(event.body(part, Some(permit)));
    }
    shared.tell(Event::new(What::StreamEnd, &peer.text).number(number));
    Ok(())
}

/// Take a stream that a peer has opened.
pub(crate) async fn take(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    arrival: Arrival,
    send: SendStream,
    receive: RecvStream,
) -> Result<(), Broken> {
    let mut writer = FrameWriter::new(send);
    let mut reader = FrameReader::new(receive, &[Kind::Open], size(shared.config.limits.max_header_bytes));
    // Too slow: both ends are dropped, which resets them.
    let Ok(frame) = timeout(shared.config.limits.handshake(), reader.need()).await else {
        return Ok(());
    };
    let header = frame?.payload;
    let (first, mut incoming) = reader.into_raw();
    let place = match peer.cluster {
        Some(_) => Arc::clone(&shared.foreign_streams).try_acquire_owned().map(Some),
        None => Ok(None),
    };
    let registered = place.ok().and_then(|place| Some((place, register(&shared)?)));
    let Some((_place, (number, stream))) = registered else {
        let code = Refusal::Busy as u32;
        let _ = incoming.stop(code.into());
        writer.reset(code);
        shared.refuse(&peer.text, Refusal::Busy, "too many streams");
        return Ok(());
    };
    let event = Event::new(What::Stream, &peer.text).number(number).body(header, None);
    let tell = || {
        shared.counters.streams_taken.increment();
        shared.tell(event);
    };
    if peer.if_current(Channel::Streams, arrival, tell).is_none() {
        lock(&shared.streams).remove(&number);
        return Ok(());
    }
    let work = carry(&shared, &peer, number, &stream, writer, first, incoming);
    run(&shared, &peer, number, &stream, work).await;
    Ok(())
}
