//! Reads segments back after a restart, and tells a torn tail from corruption.
//!
//! A crash can lose or damage any part of what was written after the last sync, in any order. Every record carries how
//! much of its segment was durable when it was written (`synced`). So, when the record at some offset cannot be read:
//!
//! - a later record whose `synced` lies beyond that offset proves that the damaged place had been durable: corruption;
//! - so does another segment after this one, for a segment is synced before the next one is made;
//! - otherwise it is the torn tail of writes that nobody was told were safe: it is cut and zeroed.
//!
//! What this cannot tell apart is damage to the very last batch that was synced, when nothing was written after it.

use std::path::Path;

use crate::disk::File;
use crate::error::{LogError, Result};
use crate::format::{HEADER_BYTES, Header, Kind, RECORD_BYTES, Record, decode_header, decode_record, is_end, record_bytes};
use crate::index::{Index, Place};

/// What the records of a log add up to.
#[derive(Debug)]
pub(crate) struct State {
    pub first_index: u64,
    pub index: Index,
    pub term: u64,
    pub vote: Option<String>,
}

/// How one segment ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Offset after the last good record.
    pub end: u64,
    /// Offset after the last byte that is not zero; greater than `end` when there is a torn tail.
    pub dirty_end: u64,
}

impl State {
    pub(crate) fn new(header: &Header) -> Self {
        Self {
            first_index: header.first_index,
            index: Index::starting_at(header.next_index),
            term: header.term,
            vote: header.vote.clone(),
        }
    }

    /// Index of the next entry.
    pub(crate) fn next_index(&self) -> u64 {
        self.index.next()
    }

    /// Take one record in, or say why it cannot follow what came before.
    pub(crate) fn apply(&mut self, record: Record, payload: &[u8], place: Place) -> std::result::Result<(), String> {
        match record.kind {
            Kind::Entry => {
                let fits = record.index == self.next_index() || self.index.is_empty() && record.index >= self.first_index;
                if !fits {
                    return Err(format!("entry {} follows entry {}", record.index, self.next_index().wrapping_sub(1)));
                }
                if self.index.is_empty() {
                    self.first_index = self.first_index.max(record.index);
                }
                self.index.push(record.index, record.term, place);
            }
            Kind::TruncateSuffix => self.index.truncate_suffix(record.index),
            Kind::TruncatePrefix => {
                self.index.truncate_prefix(record.index);
                self.first_index = self.first_index.max(record.index);
            }
            Kind::HardState => {
                self.term = record.term;
                let vote = std::str::from_utf8(payload).map_err(|_| "the vote is not UTF-8".to_owned())?;
                self.vote = (!vote.is_empty()).then(|| vote.to_owned());
            }
        }
        Ok(())
    }
}

/// Read a segment whole; its first [`HEADER_BYTES`] are there.
pub(crate) fn read_segment(file: &impl File, path: &Path) -> Result<(Header, Vec<u8>)> {
    let operation = || format!("read {}", path.display());
    let len = file.len().map_err(LogError::io(operation()))?;
    let mut data = vec![0; usize::try_from(len).map_err(|_| corrupt(path, 0, "the file is too large"))?];
    file.read_at(&mut data, 0).map_err(LogError::io(operation()))?;
    let header = decode_header(&data).map_err(|problem| corrupt(path, 0, problem))?;
    Ok((header, data))
}

/// Apply every record of a segment to `state`; `last` when no segment comes after it.
///
/// # Errors
/// [`LogError::Corrupt`] naming the file and the offset.
pub(crate) fn replay(path: &Path, header: &Header, data: &[u8], last: bool, state: &mut State) -> Result<Tail> {
    if header.next_index != state.next_index() || header.first_index > state.first_index.max(header.next_index) {
        return Err(corrupt(path, 0, format!("begins at entry {}, not {}", header.next_index, state.next_index())));
    }
    let segment = header.number;
    let mut offset = HEADER_BYTES;
    while let Some((record, payload)) = decode_record(segment, &data[offset.min(data.len())..]) {
        #[allow(clippy::cast_possible_truncation, reason = "segments are smaller than 4 GiB")]
        let place = Place { segment: segment as u32, offset: offset as u32 };
        state.apply(record, payload, place).map_err(|problem| corrupt(path, offset, problem))?;
        offset += record_bytes(record.len as usize);
    }
    let offset = offset.min(data.len());
    let dirty_end = data.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1).max(offset);
    if dirty_end > offset {
        let what = if is_end(&data[offset..]) { "records are missing" } else { "a record is damaged" };
        if !last {
            return Err(corrupt(path, offset, format!("{what}, and another segment follows")));
        }
        if let Some(witness) = find_witness(segment, data, offset, dirty_end) {
            return Err(corrupt(path, offset, format!("{what} that was durable before the one at byte {witness}")));
        }
    }
    Ok(Tail { end: offset as u64, dirty_end: dirty_end as u64 })
}

/// Return the offset of a record that proves that the place at `bad` had been durable.
fn find_witness(segment: u64, data: &[u8], bad: usize, end: usize) -> Option<usize> {
    (bad + 8..end).step_by(8).find(|&offset| {
        let candidate = &data[offset..];
        candidate.len() >= RECORD_BYTES
            && !is_end(candidate)
            && u32::from_le_bytes([candidate[12], candidate[13], candidate[14], candidate[15]]) as usize > bad
            && decode_record(segment, candidate).is_some()
    })
}

pub(crate) fn corrupt(path: &Path, offset: usize, problem: impl Into<String>) -> LogError {
    LogError::Corrupt { file: path.to_owned(), offset: offset as u64, problem: problem.into() }
}
