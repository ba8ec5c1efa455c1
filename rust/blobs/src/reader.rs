//! A blob that is read: nothing that does not match its hash is handed on.

use std::fs::File;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bao_tree::io::EncodeError;
use bao_tree::io::mixed::{EncodedItem, ReadBytesAt, Sender, traverse_ranges_validated};
use bao_tree::io::outboard::PostOrderOutboard;
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use bytes::{Bytes, BytesMut};

use crate::Hash;
use crate::disk::{self, tree_of};
use crate::error::{BlobError, Result};
use crate::store::{Hold, Store, Verdict};
use crate::tree::{BLOCK, GROUP_BYTES, tree_bytes};

/// Most that one read gives.
const MAX_READ_BYTES: u64 = 4 << 20;
const CHUNK_BYTES: u64 = 1 << 10;

/// A blob that is read. It is not deleted meanwhile.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    hash: Hash,
    size: u64,
    content: Content,
    _hold: Hold,
}

#[derive(Debug)]
enum Content {
    /// One group, verified when it was opened.
    Small(Bytes),
    Large {
        data: File,
        tree: File,
    },
}

impl Reader {
    /// Open a blob.
    ///
    /// # Errors
    /// When it is not here, is damaged, or the disk fails.
    pub fn open(store: &Store, hash: &Hash) -> Result<Self> {
        let (hold, stat) = store.hold(hash)?.ok_or(BlobError::NotFound(*hash))?;
        let path = store.places().blob(hash);
        let data = open(&path)?;
        let content = if stat.size <= GROUP_BYTES {
            let length = usize::try_from(stat.size).unwrap_or(usize::MAX);
            let bytes = data.read_bytes_at(0, length).map_err(BlobError::io("read", &path))?;
            if Hash::new(&bytes) != *hash {
                return Err(damaged(store, hash, "its bytes do not match"));
            }
            Content::Small(bytes)
        } else {
            let tree = tree_of(&path);
            if disk::length(&tree)? != Some(tree_bytes(stat.size)) {
                // A blob whose tree a crash took, or whose end is gone.
                if store.verify(hash)? == Verdict::Damaged {
                    return Err(damaged(store, hash, "its length is wrong"));
                }
            }
            Content::Large {
                data,
                tree: open(&tree)?,
            }
        };
        Ok(Self {
            store: store.clone(),
            hash: *hash,
            size: stat.size,
            content,
            _hold: hold,
        })
    }

    /// Its bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes from this place on, at most so many and at most 4 MiB; none at the end.
    ///
    /// # Errors
    /// When they do not match the hash, or the disk fails.
    pub fn read(&self, offset: u64, max_bytes: u64) -> Result<Bytes> {
        let end = offset.saturating_add(max_bytes.min(MAX_READ_BYTES)).min(self.size);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        match &self.content {
            Content::Small(bytes) => Ok(bytes.slice(place(offset)..place(end))),
            Content::Large { .. } => {
                let first = offset / GROUP_BYTES * GROUP_BYTES;
                let last = end.next_multiple_of(GROUP_BYTES);
                let ranges = ChunkRanges::from(ChunkNum(first / CHUNK_BYTES)..ChunkNum(last / CHUNK_BYTES));
                let mut collected = Collected(BytesMut::with_capacity(place(last - first)));
                at_once(self.walk(&ranges, &mut collected)).map_err(|error| self.explain(error))?;
                let mut bytes = collected.0.freeze();
                bytes.truncate(place(end - first));
                Ok(bytes.slice(place(offset - first)..))
            }
        }
    }

    /// Hand the hash pairs and the verified bytes of these chunks to somebody, in the order of iroh-blobs' protocol. What
    /// goes wrong here is handed on as well.
    pub(crate) async fn walk<S: Sender>(&self, ranges: &ChunkRanges, out: &mut S) -> std::result::Result<(), S::Error> {
        let tree = BaoTree::new(self.size, BLOCK);
        let root = blake3::Hash::from_bytes(*self.hash.as_bytes());
        match &self.content {
            Content::Small(bytes) => {
                let outboard = PostOrderOutboard {
                    root,
                    tree,
                    data: &[][..],
                };
                traverse_ranges_validated(bytes, outboard, ranges, out).await
            }
            Content::Large { data, tree: pairs } => {
                let outboard = PostOrderOutboard {
                    root,
                    tree,
                    data: pairs,
                };
                traverse_ranges_validated(Pread(data), outboard, ranges, out).await
            }
        }
    }

    /// What a walk ran into, after it was looked into.
    pub(crate) fn explain(&self, error: EncodeError) -> BlobError {
        match error {
            EncodeError::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                BlobError::io("read", &self.store.places().blob(&self.hash))(error)
            }
            wrong => damaged(&self.store, &self.hash, &wrong.to_string()),
        }
    }
}

/// The bytes of a walk.
struct Collected(BytesMut);

impl Sender for Collected {
    type Error = EncodeError;

    async fn send(&mut self, item: EncodedItem) -> std::result::Result<(), EncodeError> {
        match item {
            EncodedItem::Leaf(leaf) => self.0.extend_from_slice(&leaf.data),
            EncodedItem::Error(error) => return Err(error),
            EncodedItem::Size(_) | EncodedItem::Parent(_) | EncodedItem::Done => {}
        }
        Ok(())
    }
}

/// Positioned reads of a file.
struct Pread<'a>(&'a File);

impl ReadBytesAt for Pread<'_> {
    fn read_bytes_at(&self, offset: u64, size: usize) -> std::io::Result<Bytes> {
        self.0.read_bytes_at(offset, size)
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(BlobError::io("open", path))
}

/// A blob does not match its hash: have it examined, so that it is put aside or mended.
fn damaged(store: &Store, hash: &Hash, problem: &str) -> BlobError {
    let then = match store.verify(hash) {
        Ok(Verdict::Damaged | Verdict::Missing) => "it was put aside".to_owned(),
        Ok(Verdict::Sound | Verdict::Mended) => "it reads well again".to_owned(),
        Err(error) => error.to_string(),
    };
    BlobError::Corrupt {
        hash: *hash,
        problem: format!("{problem}; {then}"),
    }
}

/// The result of something that never waits.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(work).poll(&mut context) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("reading into memory does not wait"),
    }
}
