//! Fetches from several providers: each is tried, with what has come already; those that are slow, lie or stop are left
//! behind, and it is told why.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, block_in_place};

use crate::Hash;
use crate::attempt::{Attempt, Setback, Terms};
use crate::error::{BlobError, Result, Tried};
use crate::events::{Events, Progress};
use crate::links::Links;
use crate::partial::Partial;
use crate::policy::{Policy, Turn};
use crate::reader::Reader;
use crate::store::{Claim, Hold, Store};

/// Children of one sequence at most.
const MAX_CHILDREN: u64 = 1 << 17;
const HASH_BYTES: u64 = 32;
/// Children that are fetched at once.
const CHILDREN_AT_ONCE: usize = 8;
/// Between two tellings of how far a fetch is.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What is to be fetched, and how.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Ids of members that may have it, the best first.
    pub providers: Vec<String>,
    /// The blob is a sequence of hashes, and they are fetched as well.
    pub children: bool,
    /// Largest blob that is wanted.
    pub max_bytes: u64,
    /// A provider from which nothing comes for this long has stopped.
    pub stall: Duration,
    /// A provider that gives less than this is left behind while there are others.
    pub min_bytes_per_s: u64,
    /// Over which time that is measured.
    pub window: Duration,
}

/// What a fetch came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes of the blob, and of its children.
    pub size: u64,
    /// Blobs.
    pub blobs: u64,
    /// What came of each provider.
    pub tried: Vec<Tried>,
}

#[derive(Debug)]
struct Tally {
    progress: Progress,
    told: Option<Instant>,
    tried: Vec<Tried>,
    useless: Vec<bool>,
}

/// A fetch under way.
pub(crate) struct Run {
    pub number: u64,
    pub store: Store,
    pub links: Arc<Links>,
    pub events: Arc<Events>,
    options: FetchOptions,
    tally: Mutex<Tally>,
}

impl Run {
    pub fn new(number: u64, store: Store, links: Arc<Links>, events: Arc<Events>, options: FetchOptions) -> Self {
        let tried = |peer: &String| Tried {
            peer: peer.clone(),
            bytes: 0,
            reason: String::new(),
        };
        let tally = Tally {
            progress: Progress {
                total_blobs: 1,
                ..Progress::default()
            },
            told: None,
            tried: options.providers.iter().map(tried).collect(),
            useless: vec![false; options.providers.len()],
        };
        Self {
            number,
            store,
            links,
            events,
            options,
            tally: Mutex::new(tally),
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetch all.
    pub async fn all(self: Arc<Self>, hash: Hash) -> Result<Fetched> {
        let (hold, mut size) = self.blob(&hash).await?;
        let mut holds = vec![hold];
        let mut blobs = 1;
        if self.options.children {
            let children = block_in_place(|| children(&self.store, &hash))?;
            self.tell(|progress| progress.total_blobs += children.len() as u64);
            let mut children = children.into_iter();
            let mut under_way = JoinSet::new();
            loop {
                while under_way.len() < CHILDREN_AT_ONCE
                    && let Some(child) = children.next()
                {
                    let run = Arc::clone(&self);
                    under_way.spawn(async move { run.blob(&child).await });
                }
                let Some(done) = under_way.join_next().await else { break };
                let (hold, more) = done.map_err(|_| BlobError::Closed("a fetch broke off"))??;
                holds.push(hold);
                size += more;
                blobs += 1;
            }
        }
        let tried = std::mem::take(&mut self.tally().tried);
        Ok(Fetched { size, blobs, tried })
    }

    /// Fetch one blob; it is not deleted while it is held.
    async fn blob(&self, hash: &Hash) -> Result<(Hold, u64)> {
        let claim = loop {
            // Before the looks, so that an end between them is not missed.
            let mut ended = pin!(self.store.fetch_ended().notified());
            ended.as_mut().enable();
            if let Some((hold, stat)) = block_in_place(|| self.store.hold(hash))? {
                self.tell(|progress| {
                    progress.done_bytes += stat.size;
                    progress.total_bytes += stat.size;
                    progress.done_blobs += 1;
                });
                return Ok((hold, stat.size));
            }
            if let Some(claim) = self.store.claim(hash) {
                break claim;
            }
            // Another fetches it, maybe from others: what comes of that counts, or what it leaves is gone on with.
            ended.await;
        };
        let mut part = block_in_place(|| Partial::find(&self.store, &claim))?;
        if let Some(part) = &part {
            self.tell(|progress| {
                progress.done_bytes += part.present_bytes();
                progress.total_bytes += part.size();
            });
        }
        let mut policy = Policy::new(self.options.providers.len());
        let mut too_large = None;
        let mut reasons = self.options.providers.iter().map(|_| String::new()).collect::<Vec<_>>();
        while let Some(turn) = policy.next() {
            if self.tally().useless[turn.provider] {
                reasons[turn.provider].clone_from(&self.tally().tried[turn.provider].reason);
                continue;
            }
            let Err(setback) = self.attempt(&claim, &mut part, turn).await else {
                let (hold, stat) = block_in_place(|| self.store.hold(hash))?.ok_or(BlobError::NotFound(*hash))?;
                self.tell(|progress| progress.done_blobs += 1);
                return Ok((hold, stat.size));
            };
            let (reason, is_useless) = match setback {
                Setback::Own(error) => {
                    // A full disk is not kept full by what has come.
                    if let (BlobError::DiskFull(_), Some(part)) = (&error, part) {
                        part.discard();
                    }
                    return Err(error);
                }
                Setback::Slow(speed) => {
                    policy.was_slow(turn.provider, speed);
                    (format!("it is slow: {speed} bytes a second"), false)
                }
                Setback::TooLarge(text) => {
                    too_large = Some(text.clone());
                    (text, false)
                }
                Setback::Lacking(text) => (text, false),
                Setback::Useless(text) => (text, true),
            };
            let mut tally = self.tally();
            tally.tried[turn.provider].reason.clone_from(&reason);
            tally.useless[turn.provider] |= is_useless;
            reasons[turn.provider] = reason;
        }
        if let Some(text) = too_large {
            return Err(BlobError::Limit(format!("blob {hash}: {text}")));
        }
        let mut tried = self.tally().tried.clone();
        for (tried, reason) in tried.iter_mut().zip(reasons) {
            tried.reason = reason;
        }
        Err(BlobError::Unavailable { hash: *hash, tried })
    }

    async fn attempt(&self, claim: &Claim, part: &mut Option<Partial>, turn: Turn) -> std::result::Result<(), Setback> {
        let options = &self.options;
        let peer = &options.providers[turn.provider];
        let told = |bytes: u64, size: Option<u64>| {
            self.tally().tried[turn.provider].bytes += bytes;
            self.tell(|progress| {
                progress.done_bytes += bytes;
                progress.total_bytes += size.unwrap_or(0);
            });
        };
        loop {
            let (connection, is_new) = self.links.to(peer).await.map_err(Setback::Useless)?;
            let result = Attempt {
                store: &self.store,
                connection: &connection,
                claim,
                terms: Terms {
                    max_bytes: options.max_bytes,
                    stall: options.stall,
                    window: options.window,
                    min_bytes_per_s: options.min_bytes_per_s,
                },
                in_haste: turn.in_haste,
                told: &told,
            }
            .run(part)
            .await;
            match result {
                // It led to a former life of the provider, or was closed meanwhile: that says nothing about the provider.
                Err(Setback::Useless(_)) if !is_new && connection.close_reason().is_some() => {}
                result => return result,
            }
        }
    }

    /// Change how far it is, and tell it now and then.
    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        let mut tally = self.tally();
        change(&mut tally.progress);
        let now = Instant::now();
        if tally.told.is_none_or(|told| now - told >= TELL_EVERY) {
            tally.told = Some(now);
            self.events.progress(self.number, tally.progress);
        }
    }
}

/// The hashes that a blob holds.
fn children(store: &Store, hash: &Hash) -> Result<Vec<Hash>> {
    let reader = Reader::open(store, hash)?;
    let count = reader.size() / HASH_BYTES;
    if reader.size() % HASH_BYTES != 0 || count > MAX_CHILDREN {
        return Err(BlobError::Invalid(format!(
            "blob {hash}: {} bytes are no sequence of at most {MAX_CHILDREN} hashes",
            reader.size()
        )));
    }
    let mut children = Vec::new();
    let mut offset = 0;
    while offset < reader.size() {
        let bytes = reader.read(offset, 1 << 20)?;
        let hashes = bytes
            .chunks_exact(32)
            .filter_map(|bytes| <[u8; 32]>::try_from(bytes).ok());
        children.extend(hashes.map(Hash::from));
        offset += bytes.len() as u64;
    }
    // One that is in it twice is fetched once.
    children.sort_unstable();
    children.dedup();
    Ok(children)
}
