//! Fetch a blob, or what is missing of it, from one provider. Nothing that it says is believed: its bytes are verified
//! before they are kept, and the size with the last chunk before a file of that size is made.

use std::time::{Duration, Instant};

use bao_tree::io::BaoContentItem;
use bao_tree::io::fsm::{ResponseDecoder, ResponseDecoderNext};
use bao_tree::io::{DecodeError, Leaf};
use bao_tree::{BaoTree, ChunkRanges};
use iroh::endpoint::{Connection, RecvStream};
use iroh_blobs::protocol::{ChunkRangesExt, GetRequest, Request};
use iroh_blobs::util::RecvStreamAsyncStreamReader;
use tokio::task::block_in_place;
use tokio::time::timeout;

use crate::adding::Adding;
use crate::error::BlobError;
use crate::partial::Partial;
use crate::policy::Pace;
use crate::store::{Claim, Store};
use crate::tree::BLOCK;

/// Bytes that come with the proof of the size, before there is a file: a blob that is no larger is complete with them.
const FIRST_BYTES: u64 = 1 << 20;
/// Written at once.
const BATCH_BYTES: usize = 1 << 20;
/// Larger than any blob: the sizes of trees are reckoned without overflow up to here.
const MAX_BLOB_BYTES: u64 = 1 << 48;

type Response = ResponseDecoder<RecvStreamAsyncStreamReader<RecvStream>>;

/// Why a provider did not give all.
#[derive(Debug)]
pub(crate) enum Setback {
    /// It has not got this blob, or not all of it.
    Lacking(String),
    /// The blob is larger than is wanted, as it says.
    TooLarge(String),
    /// It is too slow: so many bytes a second.
    Slow(u64),
    /// It is of no use: it lies, does not answer, or has stopped.
    Useless(String),
    /// The fault is here, whoever gives the blob.
    Own(BlobError),
}

impl From<BlobError> for Setback {
    fn from(error: BlobError) -> Self {
        Self::Own(error)
    }
}

/// How a provider is held to its part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub max_bytes: u64,
    pub stall: Duration,
    pub window: Duration,
    pub min_bytes_per_s: u64,
}

/// One provider's try at one blob.
pub(crate) struct Attempt<'a> {
    pub store: &'a Store,
    pub connection: &'a Connection,
    pub claim: &'a Claim,
    pub terms: Terms,
    pub in_haste: bool,
    /// Told of verified bytes, and of the size when it is proven.
    pub told: &'a (dyn Fn(u64, Option<u64>) + Send + Sync),
}

impl Attempt<'_> {
    /// Fetch what is missing. What has come stays in `part` when this fails.
    pub async fn run(&self, part: &mut Option<Partial>) -> Result<(), Setback> {
        if part.is_none() {
            match self.begin().await? {
                Begun::Whole => return Ok(()),
                Begun::Part(begun) => *part = Some(begun),
            }
        }
        self.fill(part.as_mut().expect("it was begun")).await?;
        let whole = part.take().expect("it was begun");
        block_in_place(|| whole.finish())?;
        Ok(())
    }

    /// Learn the size, and fetch the first bytes.
    async fn begin(&self) -> Result<Begun, Setback> {
        let first = ChunkRanges::bytes(..FIRST_BYTES);
        let (size, mut response) = self.ask(&(first | ChunkRanges::last_chunk())).await?;
        self.check_size(size)?;
        let (mut items, mut bytes) = (Vec::new(), 0);
        while let Some(item) = self.next(&mut response).await? {
            if let BaoContentItem::Leaf(leaf) = &item {
                // The last chunk of a larger blob was the proof only; it comes once more with its group.
                if leaf.offset >= FIRST_BYTES {
                    continue;
                }
                bytes += leaf.data.len() as u64;
            }
            items.push(item);
        }
        (self.told)(bytes, Some(size));
        let begun = block_in_place(|| {
            if size <= FIRST_BYTES {
                self.keep_small(&items)?;
                return Ok(Begun::Whole);
            }
            let mut part = Partial::begin(self.store, self.claim, size)?;
            if let Err(error) = part.write(&items) {
                part.discard();
                return Err(error);
            }
            Ok(Begun::Part(part))
        });
        Ok(begun?)
    }

    fn keep_small(&self, items: &[BaoContentItem]) -> Result<(), BlobError> {
        let mut adding = Adding::begin(self.store)?;
        for item in items {
            if let BaoContentItem::Leaf(Leaf { data, .. }) = item {
                adding.write(data)?;
            }
        }
        adding.finish_as(&self.claim.hash())
    }

    async fn fill(&self, part: &mut Partial) -> Result<(), Setback> {
        let missing = part.missing();
        if missing.is_empty() {
            return Ok(());
        }
        let (size, mut response) = self.ask(&missing).await?;
        if size != part.size() {
            let text = format!("it says that there are {size} bytes, where {} are proven", part.size());
            return Err(Setback::Useless(text));
        }
        let begun = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, self.terms.window, self.terms.min_bytes_per_s);
        let mut batch = Batch::default();
        loop {
            let next = self.next(&mut response).await;
            let slow = match &next {
                Ok(Some(BaoContentItem::Leaf(leaf))) if self.in_haste => {
                    pace.came(begun.elapsed(), leaf.data.len() as u64)
                }
                _ => None,
            };
            let ended = !matches!(next, Ok(Some(_)));
            if let Ok(Some(item)) = &next {
                batch.bytes += item_bytes(item);
            }
            let result = next.map(|item| batch.items.extend(item));
            if ended || slow.is_some() || batch.bytes >= BATCH_BYTES {
                let items = std::mem::take(&mut batch).items;
                block_in_place(|| part.write(&items))?;
                (self.told)(items.iter().map(|item| leaf_bytes(item) as u64).sum(), None);
            }
            result?;
            if let Some(speed) = slow {
                return Err(Setback::Slow(speed));
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// Ask for chunks; the size that it claims.
    async fn ask(&self, ranges: &ChunkRanges) -> Result<(u64, Option<Response>), Setback> {
        let request = Request::Get(GetRequest::blob_ranges(self.claim.hash(), ranges.clone()));
        let request = postcard::to_stdvec(&request).map_err(|error| BlobError::Invalid(error.to_string()))?;
        let asked = async {
            let (mut send, mut receive) = self.connection.open_bi().await.map_err(|error| gone(&error))?;
            send.write_all(&request).await.map_err(|error| gone(&error))?;
            send.finish().map_err(|error| gone(&error))?;
            let mut size = [0; 8];
            match receive.read_exact(&mut size).await {
                Ok(()) => Ok((u64::from_le_bytes(size), receive)),
                Err(iroh::endpoint::ReadExactError::FinishedEarly(0)) => {
                    Err(Setback::Lacking("it does not have it".into()))
                }
                Err(iroh::endpoint::ReadExactError::FinishedEarly(_)) => Err(ended_early()),
                Err(error) => Err(gone(&error)),
            }
        };
        let (size, receive) = timeout(self.terms.stall, asked)
            .await
            .unwrap_or_else(|_| Err(self.stalled()))?;
        if size > MAX_BLOB_BYTES {
            return Err(Setback::Useless(format!("it says that there are {size} bytes")));
        }
        let root = blake3::Hash::from_bytes(*self.claim.hash().as_bytes());
        let reader = RecvStreamAsyncStreamReader::new(receive);
        let response = ResponseDecoder::new(root, ranges.clone(), BaoTree::new(size, BLOCK), reader);
        Ok((size, Some(response)))
    }

    /// The next verified item; none at the end.
    async fn next(&self, response: &mut Option<Response>) -> Result<Option<BaoContentItem>, Setback> {
        let Some(waiting) = response.take() else {
            return Ok(None);
        };
        let next = timeout(self.terms.stall, waiting.next()).await;
        match next.map_err(|_| self.stalled())? {
            ResponseDecoderNext::Done(_) => Ok(None),
            ResponseDecoderNext::More((_, Err(error))) => Err(broken(error)),
            ResponseDecoderNext::More((more, Ok(item))) => {
                *response = Some(more);
                Ok(Some(item))
            }
        }
    }

    fn check_size(&self, size: u64) -> Result<(), Setback> {
        if size > self.terms.max_bytes {
            let text = format!(
                "it says that there are {size} bytes: at most {} are wanted",
                self.terms.max_bytes
            );
            return Err(Setback::TooLarge(text));
        }
        Ok(())
    }

    fn stalled(&self) -> Setback {
        Setback::Useless(format!("nothing came for {} s", self.terms.stall.as_secs_f64()))
    }
}

enum Begun {
    Whole,
    Part(Partial),
}

#[derive(Default)]
struct Batch {
    items: Vec<BaoContentItem>,
    bytes: usize,
}

fn leaf_bytes(item: &BaoContentItem) -> usize {
    match item {
        BaoContentItem::Leaf(leaf) => leaf.data.len(),
        BaoContentItem::Parent(_) => 0,
    }
}

/// What an item takes while it waits to be written.
fn item_bytes(item: &BaoContentItem) -> usize {
    leaf_bytes(item) + 96
}

fn gone(error: &(dyn std::error::Error + 'static)) -> Setback {
    let mut text = format!("the connection is lost: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Setback::Useless(text)
}

fn ended_early() -> Setback {
    Setback::Lacking("it ended before all had come".into())
}

fn broken(error: DecodeError) -> Setback {
    match error {
        DecodeError::ParentHashMismatch(_) | DecodeError::LeafHashMismatch(_) => {
            Setback::Useless("it sent what does not match the hash".into())
        }
        DecodeError::ParentNotFound(_) | DecodeError::LeafNotFound(_) => ended_early(),
        // So the library says that a stream ended within what was to be read.
        DecodeError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => ended_early(),
        DecodeError::Io(error) => gone(&error),
    }
}
