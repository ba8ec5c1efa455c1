//! Reads segments back after a restart, and tells a torn tail from corruption. Pure.
//!
//! A crash can lose or damage any part of what was written after the last sync, in any order. Every record carries how
//! much of its segment was durable when it was written (`synced`). So, when the record at some offset cannot be read:
//!
//! - a later record whose `synced` lies beyond that offset proves that the damaged place had been durable: corruption;
//! - so does another segment after this one, for a segment is synced before the next one is made;
//! - otherwise it is the torn tail of writes that nobody was told were safe: it is cut and zeroed.
//!
//! What this cannot tell apart is damage to the very last batch that was synced, when nothing was written after it: it
//! is cut as a torn tail, and said to be in [`crate::Log::recovered`].

use std::path::Path;

use crate::error::{LogError, Result};
use crate::format::{ALIGN_BYTES, HEADER_BYTES, Head, Header, Kind, Seal, decode_head, decode_record};
use crate::index::{Index, Place};

/// What the records of a log add up to.
#[derive(Debug)]
pub(crate) struct State {
    /// Index of the oldest entry. While segments are replayed it may lie before `index`, whose older entries were then
    /// in segments that are gone; at the end it must not.
    pub first_index: u64,
    pub index: Index,
    pub term: u64,
    pub vote: Option<String>,
}

/// How one segment ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Offset after the last good record; a file that was shortened can end before, in the record's padding.
    pub end: usize,
    /// Offset up to which a sync is known to have succeeded.
    pub synced: usize,
    /// Offset after the last byte that is not zero; greater than `end` when there is a torn tail.
    pub dirty_end: usize,
}

impl State {
    /// The state that a segment begins with.
    pub(crate) fn new(header: &Header) -> Self {
        Self {
            first_index: header.first_index,
            index: Index::starting_at(header.next_index),
            term: header.term,
            vote: header.vote.clone(),
        }
    }

    /// The header of a segment that begins with this state.
    pub(crate) fn header(&self, salt: u64, number: u32) -> Header {
        Header {
            salt,
            number,
            first_index: self.first_index,
            next_index: self.next_index(),
            term: self.term,
            vote: self.vote.clone(),
        }
    }

    /// Index of the next entry.
    pub(crate) fn next_index(&self) -> u64 {
        self.index.next()
    }

    /// Take one record in, or say why it cannot follow what came before.
    pub(crate) fn apply(&mut self, segment: u32, head: &Head, payload: &[u8]) -> std::result::Result<(), String> {
        let next = self.next_index();
        match head.kind {
            Kind::Entry if head.index != next => return Err(format!("is entry {}, not {next}", head.index)),
            Kind::TruncateSuffix | Kind::TruncatePrefix if !(self.first_index..=next).contains(&head.index) => {
                return Err(format!("cuts at {}, outside {}..={next}", head.index, self.first_index));
            }
            Kind::Entry => self.index.push(
                head.term,
                Place {
                    segment,
                    offset: head.offset,
                },
            ),
            Kind::TruncateSuffix => self.index.truncate_suffix(head.index),
            Kind::TruncatePrefix => {
                self.index.truncate_prefix(head.index);
                self.first_index = head.index;
            }
            Kind::Restart => {
                self.index = Index::starting_at(head.index);
                self.first_index = head.index;
            }
            Kind::HardState => {
                self.term = head.term;
                let vote = std::str::from_utf8(payload).map_err(|_| "has a vote that is not UTF-8".to_owned())?;
                self.vote = (!vote.is_empty()).then(|| vote.to_owned());
            }
        }
        Ok(())
    }
}

/// Apply every record of a segment to `state`; `last` when no segment comes after it.
///
/// # Errors
/// [`LogError::Corrupt`] naming the file and the offset.
pub(crate) fn replay(path: &Path, header: &Header, data: &[u8], last: bool, state: &mut State) -> Result<Tail> {
    let expected = state.header(header.salt, header.number);
    if *header != expected {
        return Err(corrupt(
            path,
            0,
            format!("begins as {header:?}, but the segment before ends as {expected:?}"),
        ));
    }
    let seal = Seal::new(header.salt, header.number);
    let (mut end, mut synced) = (HEADER_BYTES, HEADER_BYTES);
    while let Some((head, payload)) = data.get(end..).and_then(|rest| decode_record(seal, end, rest)) {
        state
            .apply(header.number, &head, payload)
            .map_err(|problem| corrupt(path, end, format!("the record {problem}")))?;
        synced = synced.max(head.synced as usize);
        end += head.record_bytes();
    }
    let dirty_end = end.max(used_bytes(data));
    if dirty_end > end {
        if !last {
            return Err(corrupt(path, end, "the record is damaged, and another segment follows"));
        }
        if let Some(witness) = find_witness(seal, &data[..dirty_end], end) {
            let problem =
                format!("the record is damaged that was durable before the one at byte {witness} was written");
            return Err(corrupt(path, end, problem));
        }
    }
    Ok(Tail { end, synced, dirty_end })
}

/// Offset after the last byte that is not zero.
fn used_bytes(data: &[u8]) -> usize {
    const BLOCK: [u8; 4096] = [0; 4096];
    let mut end = data.len();
    for block in data.rchunks(BLOCK.len()) {
        // Compared as a whole first: almost all of a fresh segment is zeros.
        if *block != BLOCK[..block.len()] {
            return end - block.len() + block.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        }
        end -= block.len();
    }
    0
}

/// Return the offset of a record that proves that the place at `bad` had been durable.
fn find_witness(seal: Seal, data: &[u8], bad: usize) -> Option<usize> {
    let begin = bad.next_multiple_of(ALIGN_BYTES);
    (begin..data.len())
        .step_by(ALIGN_BYTES)
        .find(|&offset| decode_head(seal, offset, &data[offset..]).is_some_and(|head| head.synced as usize > bad))
}

pub(crate) fn corrupt(path: &Path, offset: usize, problem: impl Into<String>) -> LogError {
    LogError::Corrupt {
        file: path.to_owned(),
        offset: offset as u64,
        problem: problem.into(),
    }
}
