//! Peers that fetch from here: iroh-blobs' protocol, its get requests only. Nothing is taken from a peer, and nobody is
//! told what is here but by asking for it.

use std::sync::Arc;
use std::time::Duration;

use bao_tree::io::EncodeError;
use bao_tree::io::mixed::{EncodedItem, Sender};
use bytes::{BufMut, Bytes, BytesMut};
use iroh::endpoint::{Connection, RecvStream, SendStream};
use iroh_blobs::ALPN;
use iroh_blobs::protocol::{ERR_INTERNAL, ERR_LIMIT, ERR_PERMISSION, GetRequest, Request};
use jobs_net::OtherProtocol;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::Hash;
use crate::error::{BlobError, Result};
use crate::reader::Reader;
use crate::store::Store;

/// Requests that one connection may have under way; more wait on the peer's side.
const MAX_STREAMS: u32 = 32;
/// Requests of all peers that are answered at once; each has a thread.
pub(crate) const MAX_ANSWERS: usize = 32;
/// For a request to come, once its stream is open.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// A peer that takes nothing for this long is given up.
const STALL_TIME: Duration = Duration::from_mins(1);

/// Answers peers.
#[derive(Clone)]
struct Provider {
    store: Store,
    handle: Handle,
    answers: Arc<Semaphore>,
}

/// The protocol, answered in this runtime.
pub(crate) fn protocol(store: Store, handle: Handle) -> OtherProtocol {
    let provider = Provider {
        store,
        handle: handle.clone(),
        answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
    };
    OtherProtocol {
        alpn: ALPN,
        max_streams: MAX_STREAMS,
        take: Arc::new(move |caller| {
            handle.spawn(provider.clone().serve(caller.connection));
        }),
    }
}

impl Provider {
    async fn serve(self, connection: Connection) {
        while let Ok((send, receive)) = connection.accept_bi().await {
            let provider = self.clone();
            self.handle.spawn(provider.answer(send, receive));
        }
    }

    async fn answer(self, mut send: SendStream, mut receive: RecvStream) {
        let request = match timeout(REQUEST_TIME, Request::read_async(&mut receive)).await {
            Ok(Ok((Request::Get(request), _))) => request,
            Ok(Ok(_)) => {
                let _ = send.reset(ERR_PERMISSION);
                return;
            }
            Ok(Err(_)) | Err(_) => {
                let _ = send.reset(ERR_LIMIT);
                return;
            }
        };
        let Ok(_permit) = self.answers.acquire().await else {
            return;
        };
        // Reading and hashing take their time: a thread of its own.
        let (store, handle) = (self.store.clone(), self.handle.clone());
        let given = self
            .handle
            .spawn_blocking(move || handle.block_on(give(&store, &request, send)));
        let _ = given.await;
    }
}

/// Answer a request, as far as this store can; a blob that is not here ends the answer before it.
async fn give(store: &Store, request: &GetRequest, send: SendStream) {
    let mut outlet = Outlet {
        send,
        pending: BytesMut::new(),
    };
    let mut sequence = None;
    for (offset, ranges) in request.ranges.iter_non_empty_infinite() {
        let hash = match offset.checked_sub(1) {
            None => Ok(Some(request.hash)),
            Some(place) => child(store, &request.hash, &mut sequence, place),
        };
        let reader = match hash {
            Ok(Some(hash)) => Reader::open(store, &hash),
            Ok(None) | Err(BlobError::NotFound(_)) => break,
            Err(error) => Err(error),
        };
        let reader = match reader {
            Ok(reader) => reader,
            Err(BlobError::NotFound(_)) => break,
            Err(_) => return outlet.fail(),
        };
        match reader.walk(ranges, &mut outlet).await {
            Ok(()) => {}
            Err(Interrupted::Peer) => return outlet.fail(),
            Err(Interrupted::Here(error)) => {
                outlet.fail();
                // So that it is put aside.
                reader.explain(error);
                return;
            }
        }
    }
    outlet.finish().await;
}

/// A hash of a sequence; none past its end.
fn child(store: &Store, root: &Hash, sequence: &mut Option<Reader>, place: u64) -> Result<Option<Hash>> {
    let reader = match sequence {
        Some(reader) => reader,
        None => sequence.insert(Reader::open(store, root)?),
    };
    let bytes = reader.read(place.saturating_mul(32), 32)?;
    Ok(<[u8; 32]>::try_from(&bytes[..]).ok().map(Hash::from))
}

/// Why an answer broke off.
enum Interrupted {
    /// The peer is gone, or takes nothing.
    Peer,
    /// What is here is damaged, or the disk fails.
    Here(EncodeError),
}

/// The stream of an answer.
struct Outlet {
    send: SendStream,
    /// Hash pairs, which go with the next bytes.
    pending: BytesMut,
}

impl Outlet {
    async fn write(&mut self, bytes: Bytes) -> std::result::Result<(), Interrupted> {
        let mut parts = [self.pending.split().freeze(), bytes];
        match timeout(STALL_TIME, self.send.write_all_chunks(&mut parts)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Interrupted::Peer),
        }
    }

    fn fail(&mut self) {
        let _ = self.send.reset(ERR_INTERNAL);
    }

    async fn finish(&mut self) {
        if self.write(Bytes::new()).await.is_ok() {
            let _ = self.send.finish();
        }
    }
}

impl Sender for Outlet {
    type Error = Interrupted;

    async fn send(&mut self, item: EncodedItem) -> std::result::Result<(), Interrupted> {
        match item {
            EncodedItem::Size(size) => self.pending.put_u64_le(size),
            EncodedItem::Parent(parent) => {
                self.pending.put_slice(parent.pair.0.as_bytes());
                self.pending.put_slice(parent.pair.1.as_bytes());
            }
            EncodedItem::Leaf(leaf) => self.write(leaf.data).await?,
            EncodedItem::Error(error) => return Err(Interrupted::Here(error)),
            EncodedItem::Done => {}
        }
        Ok(())
    }
}
