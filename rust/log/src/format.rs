//! Records and segment headers as bytes; little-endian, 8-byte aligned. Pure.
//!
//! A segment is a [`Header`] of 512 bytes and records up to the first zero length. A record:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | payload length |
//! | 4 | CRC-32C of the segment's number, the length, the fields below and the payload; never 0 |
//! | 4 | kind |
//! | 4 | `synced`: how much of this segment was durable when the record was written |
//! | 8 | index |
//! | 8 | term |
//! | n | payload, then zeros up to a multiple of 8 |
//!
//! The segment's number in the checksum keeps a record from being taken for one of another segment. `synced` tells a
//! torn tail from corruption: see [`crate::recovery`].

use crc32c::crc32c_append;

/// Version of everything in this file.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 512;
/// Bytes of a record before its payload.
pub const RECORD_BYTES: usize = 32;
/// Largest payload.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;
/// Longest name of a node that can be voted for.
pub const MAX_VOTE_BYTES: usize = 255;

const MAGIC: &[u8; 8] = b"JOBSLOG\0";

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// An entry: index, term, payload.
    Entry = 1,
    /// Entries from `index` on are no longer part of the log.
    TruncateSuffix = 2,
    /// Entries before `index` are no longer part of the log.
    TruncatePrefix = 3,
    /// The current term, and in the payload who got the vote (empty: nobody).
    HardState = 4,
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        [Self::Entry, Self::TruncateSuffix, Self::TruncatePrefix, Self::HardState]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: Kind,
    /// Bytes of this segment that were durable when it was written.
    pub synced: u32,
    /// Entry index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Bytes of the payload.
    pub len: u32,
}

/// State of the log at the beginning of a segment, so that older segments can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Number of the segment; they are consecutive.
    pub number: u64,
    /// Index of the log's oldest entry.
    pub first_index: u64,
    /// Index of the next entry.
    pub next_index: u64,
    /// Current term.
    pub term: u64,
    /// Who got the vote in it.
    pub vote: Option<String>,
}

/// Bytes a record takes with a payload of `len`.
#[must_use]
pub const fn record_bytes(len: usize) -> usize {
    RECORD_BYTES + len.next_multiple_of(8)
}

/// Append a record to `out`; `record.len` is ignored in favour of the payload's.
pub fn encode_record(out: &mut Vec<u8>, segment: u64, record: Record, payload: &[u8]) {
    let start = out.len();
    let len = u32::try_from(payload.len()).expect("payloads are bounded");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(record.kind as u32).to_le_bytes());
    out.extend_from_slice(&record.synced.to_le_bytes());
    out.extend_from_slice(&record.index.to_le_bytes());
    out.extend_from_slice(&record.term.to_le_bytes());
    let crc = checksum(segment, len, &out[start + 8..start + RECORD_BYTES], payload);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(start + record_bytes(payload.len()), 0);
}

/// Decode the record at the beginning of `data` and return it with its payload; `None` unless it is whole and right.
#[must_use]
pub fn decode_record(segment: u64, data: &[u8]) -> Option<(Record, &[u8])> {
    let len = u32_at(data, 0)?;
    let crc = u32_at(data, 4)?;
    let end = RECORD_BYTES.checked_add(usize::try_from(len).ok()?)?;
    if len as usize > MAX_PAYLOAD_BYTES || data.len() < end {
        return None;
    }
    let payload = &data[RECORD_BYTES..end];
    if checksum(segment, len, &data[8..RECORD_BYTES], payload) != crc {
        return None;
    }
    let record = Record {
        kind: Kind::of(u32_at(data, 8)?)?,
        synced: u32_at(data, 12)?,
        index: u64_at(data, 16)?,
        term: u64_at(data, 24)?,
        len,
    };
    Some((record, payload))
}

/// Whether the log ends here: the zeros of preallocation.
#[must_use]
pub fn is_end(data: &[u8]) -> bool {
    data.len() < 8 || data[..8] == [0; 8]
}

/// A segment's header as bytes.
#[must_use]
pub fn encode_header(header: &Header) -> Vec<u8> {
    let vote = header.vote.as_deref().unwrap_or("").as_bytes();
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&u32::try_from(vote.len()).expect("votes are bounded").to_le_bytes());
    for field in [header.number, header.first_index, header.next_index, header.term] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(vote);
    out.resize(HEADER_BYTES - 4, 0);
    let crc = crc32c_append(0, &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Decode a segment's header, or say what is wrong with it.
///
/// # Errors
/// A description of the first thing that is wrong.
pub fn decode_header(data: &[u8]) -> Result<Header, String> {
    if data.len() < HEADER_BYTES || &data[..8] != MAGIC {
        return Err("this is not a segment of a log".into());
    }
    let version = u32_at(data, 8).unwrap_or(0);
    if version != FORMAT_VERSION {
        return Err(format!("format version {version}; this build knows {FORMAT_VERSION}"));
    }
    if u32_at(data, HEADER_BYTES - 4) != Some(crc32c_append(0, &data[..HEADER_BYTES - 4])) {
        return Err("the header fails its checksum".into());
    }
    let vote_len = u32_at(data, 12).unwrap_or(0) as usize;
    let vote = data.get(48..48 + vote_len).filter(|_| vote_len <= MAX_VOTE_BYTES).ok_or("the vote is too long")?;
    let vote = std::str::from_utf8(vote).map_err(|_| "the vote is not UTF-8")?;
    let field = |number: usize| u64_at(data, 16 + 8 * number).unwrap_or(0);
    Ok(Header {
        number: field(0),
        first_index: field(1),
        next_index: field(2),
        term: field(3),
        vote: (!vote.is_empty()).then(|| vote.to_owned()),
    })
}

fn checksum(segment: u64, len: u32, fields: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32c_append(0, &segment.to_le_bytes());
    crc = crc32c_append(crc, &len.to_le_bytes());
    crc = crc32c_append(crc, fields);
    crc = crc32c_append(crc, payload);
    crc.max(1)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?))
}
