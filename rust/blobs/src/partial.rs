//! A blob that is fetched in parts: its bytes and hash pairs in files with holes. What of it is there is found by hashing,
//! never believed: so a kill or a loss of power at any time costs what had not come to the disk, and nothing else.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bao_tree::io::BaoContentItem;
use bao_tree::io::outboard::PostOrderOutboard;
use bao_tree::io::sync::valid_ranges;
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use jobs_failpoint::{Point, pass};

use crate::Hash;
use crate::disk::{self, tree_of};
use crate::error::{BlobError, Result};
use crate::store::{Claim, Store, part_of};
use crate::tree::{BLOCK, tree_bytes};

const CHUNK_BYTES: u64 = 1 << 10;

/// A part of a blob. Its size is proven: a part is made only when the last chunk has come.
#[derive(Debug)]
pub(crate) struct Partial {
    store: Store,
    hash: Hash,
    size: u64,
    path: PathBuf,
    data: File,
    tree: File,
    present: ChunkRanges,
}

impl Partial {
    /// The part that a former fetch has left. None when there is none. Hashes what is there.
    pub fn find(store: &Store, claim: &Claim) -> Result<Option<Self>> {
        let hash = claim.hash();
        let hex = hash.to_hex();
        for name in disk::names(&store.places().partial)? {
            if !name.starts_with(&hex) || name.ends_with(disk::TREE) {
                continue;
            }
            let Some((_, size)) = part_of(&name) else { continue };
            let mut part = Self::open(store, hash, size)?;
            part.present = part.valid()?;
            return Ok(Some(part));
        }
        Ok(None)
    }

    /// Begin, or go on with, the part of a blob of which so much is proven.
    pub fn begin(store: &Store, claim: &Claim, size: u64) -> Result<Self> {
        store.check_room(size.saturating_add(tree_bytes(size)))?;
        Self::open(store, claim.hash(), size)
    }

    fn open(store: &Store, hash: Hash, size: u64) -> Result<Self> {
        let path = store.places().part(&hash, size);
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.open(path).map_err(BlobError::io("open", path))
        };
        Ok(Self {
            store: store.clone(),
            hash,
            size,
            data: open(&path)?,
            tree: open(&tree_of(&path))?,
            path,
            present: ChunkRanges::empty(),
        })
    }

    fn geometry(&self) -> BaoTree {
        BaoTree::new(self.size, BLOCK)
    }

    /// Chunks that are there, whole groups of them, with the hash pairs above them.
    fn valid(&self) -> Result<ChunkRanges> {
        let outboard = PostOrderOutboard {
            root: blake3::Hash::from_bytes(*self.hash.as_bytes()),
            tree: self.geometry(),
            data: &self.tree,
        };
        let all = ChunkRanges::all();
        let mut present = ChunkRanges::empty();
        for range in valid_ranges(outboard, &self.data, &all) {
            present |= ChunkRanges::from(range.map_err(BlobError::io("read", &self.path))?);
        }
        Ok(present)
    }

    /// Bytes of the whole.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are there.
    pub fn present_bytes(&self) -> u64 {
        let bounds = self.present.boundaries();
        let end = |chunk: &ChunkNum| chunk.0.saturating_mul(CHUNK_BYTES).min(self.size);
        bounds
            .chunks(2)
            .map(|pair| pair.get(1).map_or(self.size, end) - end(&pair[0]))
            .sum()
    }

    /// Chunks that are not there.
    pub fn missing(&self) -> ChunkRanges {
        let all = ChunkRanges::from(ChunkNum(0)..ChunkNum::full_chunks(self.size.next_multiple_of(CHUNK_BYTES)));
        &all - &self.present
    }

    /// Write what was verified.
    pub fn write(&mut self, items: &[BaoContentItem]) -> Result<()> {
        let tree = self.geometry();
        let written = pass(Point::BlobsPartialWriteBefore).and_then(|()| {
            for item in items {
                match item {
                    BaoContentItem::Parent(parent) => {
                        let Some(place) = tree.post_order_offset(parent.node) else {
                            continue;
                        };
                        let mut pair = [0; 64];
                        pair[..32].copy_from_slice(parent.pair.0.as_bytes());
                        pair[32..].copy_from_slice(parent.pair.1.as_bytes());
                        self.tree.write_all_at(&pair, place.value() * 64)?;
                    }
                    BaoContentItem::Leaf(leaf) => self.data.write_all_at(&leaf.data, leaf.offset)?,
                }
            }
            Ok(())
        });
        written.map_err(BlobError::io("write", &self.path))?;
        for item in items {
            if let BaoContentItem::Leaf(leaf) = item {
                let first = ChunkNum::full_chunks(leaf.offset);
                let end = ChunkNum::chunks(leaf.offset + leaf.data.len() as u64);
                self.present |= ChunkRanges::from(first..end);
            }
        }
        Ok(())
    }

    /// All is there: give it its name.
    pub fn finish(self) -> Result<()> {
        disk::sync_content(&self.path, &self.data)?;
        disk::sync_content(&tree_of(&self.path), &self.tree)?;
        self.store.install(&self.hash, &self.path, self.size)?;
        Ok(())
    }

    /// Nothing of it is to be kept.
    pub fn discard(self) {
        disk::discard(&self.path);
    }
}
