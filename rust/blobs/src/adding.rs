//! A blob that comes: written, hashed and, at its end, synced and named.

use std::fs::File;
use std::io::{BufWriter, IntoInnerError, Write};
use std::path::PathBuf;

use jobs_failpoint::{Point, pass};

use crate::Hash;
use crate::disk::{self, tree_of};
use crate::error::{BlobError, Result};
use crate::store::Store;
use crate::tree::{TreeWriter, tree_bytes};

/// Between two looks at how much room there is.
const LOOK_BYTES: u64 = 16 << 20;

/// A blob that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// Its hash.
    pub hash: Hash,
    /// Its bytes.
    pub size: u64,
    /// It was here before.
    pub existed: bool,
}

/// A blob that comes. Dropped before its end, nothing is kept of it.
#[derive(Debug)]
pub struct Adding {
    store: Store,
    draft: Draft,
    data: File,
    tree: Option<TreeWriter<BufWriter<File>>>,
    size: u64,
    unlooked_bytes: u64,
}

/// Its files, which go with it.
#[derive(Debug)]
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        disk::discard(&self.0);
    }
}

impl Adding {
    /// Begin.
    ///
    /// # Errors
    /// When there is no room, or the disk fails.
    pub fn begin(store: &Store) -> Result<Self> {
        store.check_room(0)?;
        let draft = Draft(store.places().draft());
        let data = disk::create(&draft.0)?;
        let tree = BufWriter::with_capacity(64 << 10, disk::create(&tree_of(&draft.0))?);
        Ok(Self {
            store: store.clone(),
            draft,
            data,
            tree: Some(TreeWriter::new(tree)),
            size: 0,
            unlooked_bytes: 0,
        })
    }

    /// Bytes so far.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Add bytes.
    ///
    /// # Errors
    /// When there is no room, or the disk fails; it cannot be gone on with after that.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.append(bytes);
        if written.is_err() {
            self.tree = None;
        }
        written
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.unlooked_bytes += bytes.len() as u64;
        if self.unlooked_bytes >= LOOK_BYTES {
            self.store.check_room(0)?;
            self.unlooked_bytes = 0;
        }
        let path = &self.draft.0;
        let tree = self.tree.as_mut().ok_or_else(failed)?;
        pass(Point::BlobsWriteBefore)
            .and_then(|()| self.data.write_all(bytes))
            .and_then(|()| tree.update(bytes))
            .map_err(BlobError::io("write", path))?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// It is complete: it has its name, and all of it is on the disk, when this returns.
    ///
    /// # Errors
    /// When there is no room, or the disk fails; nothing is kept.
    pub fn finish(self) -> Result<Added> {
        self.end(None)
    }

    /// As `finish`, for bytes that must have this hash.
    pub(crate) fn finish_as(self, hash: &Hash) -> Result<()> {
        self.end(Some(hash)).map(|_| ())
    }

    fn end(mut self, wanted: Option<&Hash>) -> Result<Added> {
        let path = &self.draft.0;
        let tree = self.tree.take().ok_or_else(failed)?;
        let finished = tree.finish().and_then(|(hash, out)| {
            let file = out.into_inner().map_err(IntoInnerError::into_error)?;
            Ok((hash, file))
        });
        let (hash, tree) = finished.map_err(BlobError::io("write", path))?;
        if let Some(wanted) = wanted.filter(|wanted| **wanted != hash) {
            return Err(BlobError::Corrupt {
                hash: *wanted,
                problem: "what came has another hash".into(),
            });
        }
        disk::sync_content(path, &self.data)?;
        if tree_bytes(self.size) > 0 {
            disk::sync_content(&tree_of(path), &tree)?;
        }
        let existed = self.store.install(&hash, path, self.size)?;
        Ok(Added {
            hash,
            size: self.size,
            existed,
        })
    }
}

fn failed() -> BlobError {
    BlobError::Invalid("this addition has failed, and cannot be gone on with".into())
}
