//! Requests: bytes for bytes, each on a stream of its own, with a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use iroh::endpoint::{RecvStream, SendStream};
use jobs_failpoint::{Point, reach};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::{EVENT_BYTES, size};
use crate::dial::link;
use crate::events::{Event, What};
use crate::framed::{Broken, FrameReader, FrameWriter};
use crate::peer::{Peer, lock};
use crate::refusal::Refusal;
use crate::rules::admission::Arrival;
use crate::shared::Shared;
use crate::wire::reason::{clean_reason, cut_reason};
use crate::wire::{Channel, Kind};

/// Bytes before a request's body: how long the caller waits.
const REQUEST_BYTES: usize = 4;
/// So long after its caller's deadline a request is given up: the caller's own clock tells it of the deadline.
const AFTER_DEADLINE: Duration = Duration::from_secs(1);

/// An own request that is not answered.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) task: AbortHandle,
    pub(crate) sent: Arc<AtomicBool>,
}

/// What the application says to a request.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Bytes),
    /// In words; whether it may have been carried out.
    Declined(String, bool),
}

/// How an own request failed.
struct Failed {
    kind: &'static str,
    detail: String,
    /// Known by the peer's word; otherwise it is whether the request was sent.
    maybe_done: Option<bool>,
}

impl Failed {
    fn new(kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            maybe_done: None,
        }
    }
}

impl From<Broken> for Failed {
    fn from(error: Broken) -> Self {
        match error {
            Broken::Refused(Refusal::TooLarge, text) => Self::new("too_large", text),
            other => Self::new("closed", other.to_string()),
        }
    }
}

/// Gives back what a request takes of its peer's room.
struct Room {
    peer: Arc<Peer>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut pending = lock(&self.peer.pending);
        pending.count -= 1;
        pending.bytes -= self.bytes;
    }
}

/// Begin a request; what becomes of it is told as an event. The room has been checked and taken.
pub(crate) fn begin(shared: &Arc<Shared>, peer: Arc<Peer>, body: Bytes, wait: Duration) -> u64 {
    let number = shared.next_number();
    let sent = Arc::new(AtomicBool::new(false));
    let room = Room {
        bytes: body.len() as u64,
        peer: Arc::clone(&peer),
    };
    shared.counters.requests_sent.increment();
    let work = {
        let (shared, sent) = (Arc::clone(shared), Arc::clone(&sent));
        async move {
            let _room = room;
            let outcome = timeout_at(Instant::now() + wait, exchange(&shared, &peer, body, wait, &sent)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(Failed::new("timeout", "the deadline has passed")));
            // Not there any more: it was cancelled, and nobody waits.
            if lock(&shared.calls).remove(&number).is_some() {
                finish(&shared, &peer, number, outcome, sent.load(Ordering::Acquire));
            }
        }
    };
    // The lock is held until the call is kept, so that the task cannot end before.
    let mut calls = lock(&shared.calls);
    let task = shared.handle.spawn(work).abort_handle();
    calls.insert(number, Call { task, sent });
    number
}

type Answer = (Bytes, tokio::sync::OwnedSemaphorePermit);

fn finish(shared: &Shared, peer: &Peer, number: u64, outcome: Result<Answer, Failed>, sent: bool) {
    match outcome {
        Ok((body, permit)) => {
            shared.tell(
                Event::new(What::Answer, &peer.text)
                    .number(number)
                    .body(body, Some(permit)),
            );
        }
        Err(failed) => {
            shared.counters.requests_failed.increment();
            let maybe_done = failed.maybe_done.unwrap_or(sent);
            let event = Event::new(What::Failure, &peer.text).number(number).text(failed.kind);
            shared.tell(event.detail(failed.detail).extra(u64::from(maybe_done)));
        }
    }
}

async fn exchange(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    body: Bytes,
    wait: Duration,
    sent: &AtomicBool,
) -> Result<Answer, Failed> {
    let connection = link(shared, peer, Channel::Requests).await;
    let connection = connection.map_err(|no_link| {
        let kind = if no_link.refused { "refused" } else { "unreachable" };
        Failed::new(kind, no_link.text)
    })?;
    let opened = connection.open_bi().await;
    let (outgoing, incoming) = opened.map_err(|error| Failed::new("unreachable", crate::framed::explain(&error)))?;
    let mut writer = FrameWriter::new(outgoing);
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    reach(Point::NetRequestSendBefore);
    write_request(&mut writer, wait_ms, body, sent).await?;
    reach(Point::NetRequestSendAfter);
    writer.finish();
    read_answer(shared, peer, incoming).await
}

/// Write a request. The peer acts on whole ones only, so until its last part is written it is not carried out.
async fn write_request(
    writer: &mut FrameWriter,
    wait_ms: u32,
    mut body: Bytes,
    sent: &AtomicBool,
) -> Result<(), Broken> {
    let length = u32::try_from(REQUEST_BYTES + body.len()).map_err(|_| Broken::malformed("a body over 4 GiB"))?;
    let mut head = crate::wire::frame::encode_header(Kind::Request, length).to_vec();
    head.extend_from_slice(&wait_ms.to_le_bytes());
    if body.len() <= 1_024 {
        head.extend_from_slice(&body);
        sent.store(true, Ordering::Release);
        return writer.raw(head.into()).await;
    }
    let last = body.split_off(body.len() - 1);
    writer.raw(head.into()).await?;
    writer.raw(body).await?;
    sent.store(true, Ordering::Release);
    writer.raw(last).await
}

async fn read_answer(shared: &Shared, peer: &Peer, stream: RecvStream) -> Result<Answer, Failed> {
    let max_bytes = size(shared.config.limits.max_answer_bytes);
    let mut reader = FrameReader::new(stream, &[Kind::Answer, Kind::Declined], max_bytes);
    let closed = || Failed::new("closed", "the peer ended the stream without an answer");
    let header = reader.header().await?.ok_or_else(closed)?;
    let cost = u32::try_from(header.payload_bytes as u64 + EVENT_BYTES).unwrap_or(u32::MAX);
    let permit = Arc::clone(&peer.answers_in).acquire_many_owned(cost).await;
    let permit = permit.map_err(|error| Failed::new("closed", error.to_string()))?;
    let payload = reader.need().await?.payload;
    if header.kind == Kind::Answer {
        return Ok((payload, permit));
    }
    let (maybe_done, reason) = match payload.split_first() {
        Some((0, reason)) => (false, reason),
        Some((_, reason)) => (true, reason),
        None => (true, &[][..]),
    };
    Err(Failed {
        maybe_done: Some(maybe_done),
        ..Failed::new(if maybe_done { "failed" } else { "refused" }, clean_reason(reason))
    })
}

/// Take a request of a peer.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    arrival: Arrival,
    send: SendStream,
    receive: RecvStream,
) -> Result<(), Broken> {
    let limits = &shared.config.limits;
    let mut writer = FrameWriter::new(send);
    let max_bytes = size(limits.max_request_bytes) + REQUEST_BYTES;
    let mut reader = FrameReader::new(receive, &[Kind::Request], max_bytes);
    let reading = async {
        let Some(header) = reader.header().await? else {
            return Ok(None);
        };
        let cost = u32::try_from(header.payload_bytes as u64 + EVENT_BYTES).unwrap_or(u32::MAX);
        let take = async |room: &Arc<Semaphore>| {
            let permit = Arc::clone(room).acquire_many_owned(cost).await;
            permit.map_err(|error| Broken::Gone(error.to_string()))
        };
        let own = take(&peer.requests_in).await?;
        let among_foreign = match peer.cluster {
            Some(_) => Some(take(&shared.foreign_requests_in).await?),
            None => None,
        };
        Ok::<_, Broken>(Some((reader.need().await?.payload, (own, among_foreign))))
    };
    let stopped = writer.stopped();
    let read = tokio::select! {
        read = timeout(limits.stall(), reading) => read,
        _ = stopped => return Ok(()),
    };
    // Too slow: the stream is reset by the writer's end.
    let Some((mut payload, permit)) = read.unwrap_or(Ok(None))? else {
        return Ok(());
    };
    if payload.len() < REQUEST_BYTES {
        return Err(Broken::malformed("a request without its deadline"));
    }
    let wait_ms = payload.get_u32_le();
    reach(Point::NetRequestReceiveAfter);
    let (number, decision) = (shared.next_number(), oneshot::channel());
    let serving = Serving {
        shared: &shared,
        number,
    };
    lock(&shared.serving).insert(number, decision.0);
    let event = Event::new(What::Request, &peer.text).number(number).body(payload, None);
    if peer
        .if_current(Channel::Requests, arrival, || shared.tell(event.extra(wait_ms.into())))
        .is_none()
    {
        return Ok(());
    }
    shared.counters.requests_received.increment();
    let gone = |reason: &str| shared.tell(Event::new(What::RequestGone, &peer.text).number(number).detail(reason));
    let reply = tokio::select! {
        reply = decision.1 => reply.ok(),
        _ = writer.stopped() => { gone("nobody waits for the answer any more"); None }
        () = tokio::time::sleep(Duration::from_millis(wait_ms.into()) + AFTER_DEADLINE) => { gone("its deadline has passed"); None }
    };
    drop(serving);
    let Some(reply) = reply else { return Ok(()) };
    drop(permit);
    // An answer that is not taken is given up; that is no violation.
    let _ = timeout(limits.stall(), write_reply(&mut writer, reply)).await;
    Ok(())
}

/// A request of a peer as long as the application may answer it.
struct Serving<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        lock(&self.shared.serving).remove(&self.number);
    }
}

async fn write_reply(writer: &mut FrameWriter, reply: Reply) -> Result<(), Broken> {
    reach(Point::NetAnswerSendBefore);
    match reply {
        Reply::Answer(body) => writer.large(Kind::Answer, &[], body).await?,
        Reply::Declined(reason, maybe_done) => {
            let payload = [&[u8::from(maybe_done)], cut_reason(&reason).as_bytes()].concat();
            writer.frame(Kind::Declined, &payload).await?;
        }
    }
    writer.finish();
    reach(Point::NetAnswerSendAfter);
    Ok(())
}
