//! A look at what the disk holds of records that were good when they were written.

use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::File;
use crate::error::{LogError, Result};
use crate::format::{Seal, decode_record};
use crate::recovery::corrupt;

const PAGE_BYTES: usize = 4096;

/// Records of one segment that are to be looked at: away from the log, which can go on meanwhile, for what is written
/// stays what it is.
#[derive(Debug)]
pub struct Check<F> {
    pub(crate) file: Arc<F>,
    pub(crate) path: PathBuf,
    pub(crate) seal: Seal,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Index of the entry to go on with.
    pub(crate) next: u64,
}

impl<F: File> Check<F> {
    /// Read the records anew from the disk and verify them; return the entry to go on with, and how many bytes they are.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] naming the file and the offset; [`LogError::Io`].
    pub fn run(self) -> Result<(u64, u64)> {
        let bytes = self.end - self.start;
        let first = self.start / PAGE_BYTES * PAGE_BYTES;
        let past = self.end.next_multiple_of(PAGE_BYTES);
        self.file.forget_cached(first as u64, (past - first) as u64);
        let mut data = vec![0; bytes];
        self.file
            .read_at(&mut data, self.start as u64)
            .map_err(LogError::io(format!("read {}", self.path.display())))?;
        let mut at = 0;
        while at < bytes {
            let offset = self.start + at;
            let (head, _) = decode_record(self.seal, offset, &data[at..]).ok_or_else(|| {
                corrupt(
                    &self.path,
                    offset,
                    "the record is damaged that was good when the log was opened or written",
                )
            })?;
            at += head.record_bytes();
        }
        Ok((self.next, bytes as u64))
    }
}
