//! Records and segment headers as bytes; little-endian, 8-byte aligned. Pure.
//!
//! A segment is a [`Header`] of 512 bytes, then records up to the first zero or the end of the file. A record:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | CRC-32C of the log's salt, the segment's number and the 36 bytes that follow; never 0 |
//! | 4 | CRC-32C of the payload |
//! | 4 | payload length |
//! | 4 | kind |
//! | 4 | `synced`: how much of this segment was durable when the record was written |
//! | 4 | offset of this record in the segment |
//! | 8 | index |
//! | 8 | term |
//! | n | payload, then zeros up to a multiple of 8 |
//!
//! Salt, number and offset keep a record from being taken for one at another place, and bytes of a payload from being
//! taken for a record. The head has a checksum of its own so that `synced`, which tells a torn tail from corruption
//! (see [`crate::recovery`]), can be believed without reading the payload.

use crc32c::{crc32c, crc32c_append};

/// Version of everything in this file.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 512;
/// Bytes of a record before its payload.
pub const HEAD_BYTES: usize = 40;
/// Records begin at multiples of this.
pub const ALIGN_BYTES: usize = 8;
/// Largest payload.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;
/// Longest name of a node that can be voted for.
pub const MAX_VOTE_BYTES: usize = 255;

const MAGIC: &[u8; 8] = b"JOBSLOG\0";
const VOTE_AT: usize = 56;

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
    /// The log has no entries and goes on at `index`.
    Restart = 4,
    /// The current term, and in the payload who got the vote (empty: nobody).
    HardState = 5,
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        [
            Self::Entry,
            Self::TruncateSuffix,
            Self::TruncatePrefix,
            Self::Restart,
            Self::HardState,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == number)
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it says.
    pub kind: Kind,
    /// Bytes of this segment that were durable when it was written.
    pub synced: u32,
    /// Offset of the record in its segment.
    pub offset: u32,
    /// Entry index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Bytes of the payload.
    pub len: u32,
    payload_crc: u32,
}

impl Head {
    /// Bytes of the whole record.
    #[must_use]
    pub const fn record_bytes(&self) -> usize {
        record_bytes(self.len as usize)
    }
}

/// What all checksums of a segment start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal(u32);

impl Seal {
    /// The seal of a segment of a log.
    #[must_use]
    pub fn new(salt: u64, segment: u32) -> Self {
        Self(crc32c_append(crc32c(&salt.to_le_bytes()), &segment.to_le_bytes()))
    }

    /// Checksum of a head's bytes after the checksum itself; 0 is kept for "no record".
    fn checksum(self, head: &[u8]) -> u32 {
        crc32c_append(self.0, head).max(1)
    }
}

/// State of the log at the beginning of a segment, so that older segments can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Unpredictable number that every checksum of this log starts from.
    pub salt: u64,
    /// Number of the segment; they are consecutive.
    pub number: u32,
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
    HEAD_BYTES + len.next_multiple_of(ALIGN_BYTES)
}

/// Append a record to `out`. `synced` and `offset` are bytes of its segment.
pub fn encode_record(
    out: &mut Vec<u8>,
    seal: Seal,
    kind: Kind,
    (synced, offset): (u32, u32),
    (index, term): (u64, u64),
    payload: &[u8],
) {
    let start = out.len();
    let len = u32::try_from(payload.len()).expect("payloads are bounded");
    for field in [0, crc32c(payload), len, kind as u32, synced, offset] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&term.to_le_bytes());
    let crc = seal.checksum(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(start + record_bytes(payload.len()), 0);
}

/// Decode the head of the record at `offset` of its segment, whose bytes `data` begins with; `None` unless it is right.
#[must_use]
pub fn decode_head(seal: Seal, offset: usize, data: &[u8]) -> Option<Head> {
    let head = data.get(..HEAD_BYTES)?;
    if u32_at(head, 20) as usize != offset || u32_at(head, 0) != seal.checksum(&head[4..]) {
        return None;
    }
    let len = u32_at(head, 8);
    Some(Head {
        kind: Kind::of(u32_at(head, 12)).filter(|_| len as usize <= MAX_PAYLOAD_BYTES)?,
        synced: u32_at(head, 16),
        offset: u32_at(head, 20),
        index: u64_at(head, 24),
        term: u64_at(head, 32),
        len,
        payload_crc: u32_at(head, 4),
    })
}

/// Decode the record at `offset` of its segment with its payload; `None` unless `data` has all of it and it is right.
#[must_use]
pub fn decode_record(seal: Seal, offset: usize, data: &[u8]) -> Option<(Head, &[u8])> {
    let head = decode_head(seal, offset, data)?;
    let payload = data.get(HEAD_BYTES..HEAD_BYTES + head.len as usize)?;
    (crc32c(payload) == head.payload_crc).then_some((head, payload))
}

/// A segment's header as bytes.
#[must_use]
pub fn encode_header(header: &Header) -> Vec<u8> {
    let vote = header.vote.as_deref().unwrap_or("").as_bytes();
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&u32::try_from(vote.len()).expect("votes are bounded").to_le_bytes());
    for field in [
        header.salt,
        u64::from(header.number),
        header.first_index,
        header.next_index,
        header.term,
    ] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(vote);
    out.resize(HEADER_BYTES - 4, 0);
    let crc = crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Decode a segment's header, or say what is wrong with it.
///
/// # Errors
/// A description of the first thing that is wrong.
pub fn decode_header(data: &[u8]) -> Result<Header, String> {
    let data = data
        .get(..HEADER_BYTES)
        .filter(|data| &data[..8] == MAGIC)
        .ok_or("this is not a segment of a log")?;
    if u32_at(data, HEADER_BYTES - 4) != crc32c(&data[..HEADER_BYTES - 4]) {
        return Err("the header fails its checksum".into());
    }
    let version = u32_at(data, 8);
    if version != FORMAT_VERSION {
        return Err(format!("format version {version}; this build knows {FORMAT_VERSION}"));
    }
    let vote_len = u32_at(data, 12) as usize;
    if vote_len > MAX_VOTE_BYTES {
        return Err("the vote is too long".into());
    }
    let vote = std::str::from_utf8(&data[VOTE_AT..VOTE_AT + vote_len]).map_err(|_| "the vote is not UTF-8")?;
    Ok(Header {
        salt: u64_at(data, 16),
        number: u32::try_from(u64_at(data, 24)).map_err(|_| "the segment's number is too large")?,
        first_index: u64_at(data, 32),
        next_index: u64_at(data, 40),
        term: u64_at(data, 48),
        vote: (!vote.is_empty()).then(|| vote.to_owned()),
    })
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"))
}
