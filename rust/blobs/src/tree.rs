//! The tree of hashes of a blob: the hash pairs above its groups of 16 KiB, in post order, as they are known while the
//! bytes pass. So a blob is hashed once, whatever its size, in memory that grows with the logarithm of it.

use std::io::{self, Write};

use bao_tree::{BaoTree, BlockSize};
use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::Hash;

/// Bytes of a group: what is verified at once, and the block size of iroh-blobs' protocol.
pub(crate) const GROUP_BYTES: u64 = 16 << 10;
/// The same for the library.
pub(crate) const BLOCK: BlockSize = BlockSize::from_chunk_log(4);

/// Bytes of the tree of a blob of this size. One of a single group has none.
pub(crate) fn tree_bytes(size: u64) -> u64 {
    BaoTree::new(size, BLOCK).outboard_size()
}

/// Hashes bytes and writes the tree above them.
#[derive(Debug)]
pub(crate) struct TreeWriter<W> {
    out: W,
    group: Hasher,
    group_bytes: u64,
    /// Groups before this one.
    groups: u64,
    /// Complete subtrees on the left, larger ones first.
    stack: Vec<ChainingValue>,
}

impl<W: Write> TreeWriter<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            group: Hasher::new(),
            group_bytes: 0,
            groups: 0,
            stack: Vec::new(),
        }
    }

    /// Add bytes.
    pub fn update(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            if self.group_bytes == GROUP_BYTES {
                // More comes, so nothing up to here is the root.
                let value = self.group.finalize_non_root();
                self.push(value)?;
            }
            let room = usize::try_from(GROUP_BYTES - self.group_bytes).unwrap_or(usize::MAX);
            let (now, later) = data.split_at(room.min(data.len()));
            self.group.update(now);
            self.group_bytes += now.len() as u64;
            data = later;
        }
        Ok(())
    }

    /// The hash of all of it, and where the tree was written to.
    pub fn finish(mut self) -> io::Result<(Hash, W)> {
        if self.groups == 0 {
            let hash = self.group.finalize();
            return Ok((Hash::from(*hash.as_bytes()), self.out));
        }
        let mut right = self.group.finalize_non_root();
        while let Some(left) = self.stack.pop() {
            self.write(&left, &right)?;
            if self.stack.is_empty() {
                let root = merge_subtrees_root(&left, &right, Mode::Hash);
                return Ok((Hash::from(*root.as_bytes()), self.out));
            }
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        unreachable!("a group that is not the last leaves a subtree on the stack")
    }

    /// A group is complete, and not the last one.
    fn push(&mut self, mut value: ChainingValue) -> io::Result<()> {
        self.groups += 1;
        for _ in 0..self.groups.trailing_zeros() {
            let left = self
                .stack
                .pop()
                .expect("each pair of subtrees has its left one on the stack");
            self.write(&left, &value)?;
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
        }
        self.stack.push(value);
        self.group = Hasher::new();
        self.group.set_input_offset(self.groups * GROUP_BYTES);
        self.group_bytes = 0;
        Ok(())
    }

    fn write(&mut self, left: &ChainingValue, right: &ChainingValue) -> io::Result<()> {
        self.out.write_all(left)?;
        self.out.write_all(right)
    }
}

#[cfg(test)]
mod tests {
    use bao_tree::io::outboard::PostOrderMemOutboard;
    use proptest::prelude::*;

    use super::*;

    fn written(data: &[u8], part: usize) -> (Hash, Vec<u8>) {
        let mut tree = TreeWriter::new(Vec::new());
        for part in data.chunks(part) {
            tree.update(part).unwrap();
        }
        tree.finish().unwrap()
    }

    #[test]
    fn the_tree_is_the_librarys_at_every_edge() {
        let group = usize::try_from(GROUP_BYTES).unwrap();
        for groups in 0..20 {
            for around in [-1, 0, 1] {
                let size = (groups * group).saturating_add_signed(around);
                let data: Vec<u8> = (0..=250).cycle().take(size).collect();
                let (hash, tree) = written(&data, 1 << 20);
                assert_eq!(hash, Hash::new(&data), "{size}");
                assert_eq!(tree, PostOrderMemOutboard::create(&data, BLOCK).data, "{size}");
                assert_eq!(tree.len() as u64, tree_bytes(size as u64), "{size}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn how_the_bytes_are_cut_does_not_matter(data in proptest::collection::vec(any::<u8>(), 0..200_000), part in 1_usize..70_000) {
            let (hash, tree) = written(&data, part);
            prop_assert_eq!(hash, Hash::new(&data));
            prop_assert_eq!(tree, PostOrderMemOutboard::create(&data, BLOCK).data);
        }
    }
}
