//! Digests of the pieces of a range, by which two sides find out where they differ without showing each other the rows.
//!
//! A piece ends behind a key whose hash says so, or at the end of the range. So the ends depend on the keys alone, an
//! insert or a delete moves one end at most, and the ends of larger pieces are among those of smaller ones: two sides
//! compare coarsely first, and then finely what differs. The digest of a piece is a chain, row by row, so that the work
//! can be broken off behind any key and gone on with from a few bytes.

use std::ops::ControlFlow;

use jobs_kv::read::{self, Row};
use jobs_kv::{KvError, Meta, Read};

const HASH_BYTES: usize = blake3::OUT_LEN;
/// Keys and values that one call looks at, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// What to compare, and how much of it at a time.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Revision to read at; 0 for the newest.
    pub revision: u64,
    /// Bytes at the beginning of each key that do not count: the two sides may have different prefixes.
    pub strip: usize,
    /// Keys and values alone count: not versions, revisions and leases.
    pub content_only: bool,
    /// Rows of a piece on average, a power of two.
    pub rows: u64,
    /// Most pieces of a call.
    pub limit: usize,
    /// Most keys that a call looks at; one at least.
    pub max_rows: usize,
}

/// A piece of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its last key.
    pub last_key: Vec<u8>,
    /// Digest of its rows.
    pub digest: [u8; HASH_BYTES],
    /// How many there are.
    pub rows: u64,
    /// Bytes of their keys, as far as those count, and values.
    pub bytes: u64,
}

/// Where to go on: behind a key, with what there is of a piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Of the piece, as if it ended here.
    piece: Piece,
    /// Key that was looked at last, of the piece or not.
    key: Vec<u8>,
}

impl Default for Piece {
    fn default() -> Self {
        Self {
            last_key: Vec::new(),
            digest: [0; HASH_BYTES],
            rows: 0,
            bytes: 0,
        }
    }
}

impl Piece {
    /// Add a row; `scratch` is used over and over: of short rows, most of the time would go into making a hasher.
    fn add(&mut self, key: &[u8], row: &Row<'_>, content_only: bool, scratch: &mut Vec<u8>) {
        scratch.clear();
        scratch.extend_from_slice(&self.digest);
        for part in [key, row.value] {
            scratch.extend_from_slice(&(part.len() as u64).to_le_bytes());
            scratch.extend_from_slice(part);
        }
        if !content_only {
            for number in [row.version, row.create_revision, row.mod_revision, row.lease] {
                scratch.extend_from_slice(&number.to_le_bytes());
            }
        }
        self.digest = *blake3::hash(scratch).as_bytes();
        self.rows += 1;
        self.bytes += (key.len() + row.value.len()) as u64;
        self.last_key.clear();
        self.last_key.extend_from_slice(row.key);
    }
}

impl Cursor {
    /// As bytes, which say nothing to anybody else.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Piece {
            digest,
            rows,
            bytes,
            last_key,
        } = &self.piece;
        let length = (last_key.len() as u64).to_le_bytes();
        [
            digest,
            &rows.to_le_bytes()[..],
            &bytes.to_le_bytes(),
            &length,
            last_key,
            &self.key,
        ]
        .concat()
    }

    /// The cursor in bytes; `None` when there is none in them.
    #[must_use]
    pub fn decode(data: &[u8]) -> Option<Self> {
        let (digest, rest) = data.split_first_chunk()?;
        let (rows, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (last_key, key) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        Some(Self {
            piece: Piece {
                last_key: last_key.to_vec(),
                digest: *digest,
                rows: u64::from_le_bytes(*rows),
                bytes: u64::from_le_bytes(*bytes),
            },
            key: key.to_vec(),
        })
    }
}

/// Whole pieces, and where to go on; `None` at the end of the range.
pub type Pieces = (Vec<Piece>, Option<Cursor>);

/// Digests of the next pieces of `[start, end)` from a cursor on.
///
/// # Errors
/// [`KvError::Compacted`], and what the backend says.
pub fn digests<B: Read>(
    backend: &B,
    meta: &Meta,
    (start, end): (&[u8], &[u8]),
    cursor: Option<Cursor>,
    options: &Options,
) -> Result<Pieces, KvError<B::Error>> {
    let from = cursor.as_ref().map(|cursor| [&cursor.key[..], &[0]].concat());
    let from = from.as_deref().map_or(start, |from| from.max(start));
    let mut cursor = cursor.unwrap_or_default();
    let (mut pieces, mut scratch) = (Vec::new(), Vec::new());
    let (mut looked_at, mut looked_bytes, mut broken_off) = (0, 0, false);
    read::look(backend, meta, (from, end), options.revision, |key, row| {
        looked_at += 1;
        if let Some(row) = row {
            let counted = key.get(options.strip..).unwrap_or_default();
            cursor.piece.add(counted, &row, options.content_only, &mut scratch);
            looked_bytes += (key.len() + row.value.len()) as u64;
            if ends_piece(counted, options.rows) {
                pieces.push(std::mem::take(&mut cursor.piece));
            }
        }
        broken_off = pieces.len() >= options.limit || looked_at >= options.max_rows || looked_bytes >= MAX_BYTES;
        if broken_off {
            cursor.key.clear();
            cursor.key.extend_from_slice(key);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    if broken_off {
        return Ok((pieces, Some(cursor)));
    }
    if cursor.piece.rows > 0 {
        pieces.push(cursor.piece);
    }
    Ok((pieces, None))
}

/// Whether a piece of so many rows on average ends behind a key.
fn ends_piece(key: &[u8], rows: u64) -> bool {
    let hash = blake3::hash(key);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash is longer");
    u64::from_le_bytes(*first) & (rows - 1) == 0
}

#[cfg(test)]
mod tests {
    use jobs_kv::Memory;
    use jobs_kv::machine::{apply, load};

    use super::*;

    const OPTIONS: Options = Options {
        revision: 0,
        strip: 0,
        content_only: false,
        rows: 16,
        limit: 1_000,
        max_rows: 100_000,
    };

    /// Set keys by the bytes that Python would send.
    fn put(memory: &mut Memory, rows: &[(String, String)]) {
        let mut meta = load(memory).unwrap();
        for (key, value) in rows {
            let mut command = vec![2, 0x91, 0x94, 0x90, 0x91, 0x94, 0];
            for part in [key, value] {
                command.extend([0xc4, u8::try_from(part.len()).unwrap()]);
                command.extend(part.bytes());
            }
            command.extend([0, 0x90, 0xc4, 0]);
            let index = meta.index + 1;
            apply(memory, &mut meta, (index, 1, &command), 1_000).unwrap();
        }
    }

    fn all(memory: &Memory, prefix: &str, options: &Options) -> Vec<Piece> {
        let (start, end) = (prefix.as_bytes(), [prefix.as_bytes(), b"\xff"].concat());
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let meta = load(memory).unwrap();
            let (pieces, next) = digests(memory, &meta, (start, &end), cursor, options).unwrap();
            found.extend(pieces);
            match next {
                None => return found,
                Some(next) => cursor = Some(Cursor::decode(&next.encode()).unwrap()),
            }
        }
    }

    fn numbered(prefix: &str, count: u32) -> Vec<(String, String)> {
        (0..count)
            .map(|number| (format!("{prefix}{number:05}"), format!("value {number}")))
            .collect()
    }

    #[test]
    fn a_digest_is_the_chain_of_its_rows() {
        let mut memory = Memory::default();
        put(
            &mut memory,
            &[
                ("a/1".into(), "x".into()),
                ("a/2".into(), "yy".into()),
                ("a/2".into(), "zz".into()),
            ],
        );
        let mut chain = [0; 32];
        for (key, value, numbers) in [("1", "x", [1_u64, 1, 1, 0]), ("2", "zz", [2, 2, 3, 0])] {
            let mut bytes = chain.to_vec();
            for part in [key, value] {
                bytes.extend((part.len() as u64).to_le_bytes());
                bytes.extend(part.bytes());
            }
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            chain = *blake3::hash(&bytes).as_bytes();
        }
        let options = Options {
            strip: 2,
            rows: 1 << 40,
            ..OPTIONS
        };
        let whole = Piece {
            last_key: b"a/2".to_vec(),
            digest: chain,
            rows: 2,
            bytes: 5,
        };
        assert_eq!(all(&memory, "a/", &options), [whole]);
    }

    #[test]
    fn the_same_rows_under_another_prefix_have_the_same_content_and_a_change_moves_one_piece() {
        let mut memory = Memory::default();
        put(&mut memory, &numbered("one/", 2_000));
        put(&mut memory, &numbered("another/", 2_000));
        let options = |strip| Options {
            strip,
            content_only: true,
            ..OPTIONS
        };
        let told = |pieces: Vec<Piece>, strip: usize| -> Vec<_> {
            pieces
                .into_iter()
                .map(|piece| (piece.last_key[strip..].to_vec(), piece.digest))
                .collect()
        };
        let one = told(all(&memory, "one/", &options(4)), 4);
        assert!((60..250).contains(&one.len()), "{}", one.len());
        assert_eq!(told(all(&memory, "another/", &options(8)), 8), one);
        // The revisions differ.
        let exact = Options {
            content_only: false,
            ..options(8)
        };
        assert_ne!(told(all(&memory, "another/", &exact), 8), one);
        // When a row changes, one piece does.
        put(&mut memory, &[("another/01234".into(), "other".into())]);
        let other = told(all(&memory, "another/", &options(8)), 8);
        assert_eq!(other.len(), one.len());
        assert_eq!(other.iter().zip(&one).filter(|(here, there)| here != there).count(), 1);
    }

    #[test]
    fn a_piece_is_the_same_however_often_the_work_is_broken_off() {
        let mut memory = Memory::default();
        put(&mut memory, &numbered("k", 500));
        for max_rows in [1, 2, 7, 100] {
            for limit in [1, 3] {
                let bounded = Options {
                    limit,
                    max_rows,
                    ..OPTIONS
                };
                assert_eq!(all(&memory, "k", &bounded), all(&memory, "k", &OPTIONS));
            }
        }
        let whole = Options {
            rows: 1 << 62,
            max_rows: 3,
            ..OPTIONS
        };
        assert_eq!(all(&memory, "k", &whole).len(), 1);
    }

    #[test]
    fn bytes_that_are_no_cursor_are_refused() {
        let cursor = Cursor {
            piece: Piece {
                last_key: b"abc".to_vec(),
                ..Piece::default()
            },
            key: b"abcd".to_vec(),
        };
        let good = cursor.encode();
        assert_eq!(Cursor::decode(&good), Some(cursor));
        for length in 0..good.len() - 4 {
            assert_eq!(Cursor::decode(&good[..length]), None, "{length}");
        }
        assert_eq!(Cursor::decode(&[0xff; 70]), None);
    }
}
