//! How the machine's tables lie in one ordered map, and their records as bytes. Numbers in keys are big-endian, so that
//! their order is the keys' order; those in values are MessagePack's, which take a byte each where they are small.
//!
//! | key | value |
//! |---|---|
//! | `m` | [`Meta`] |
//! | `k` key | newest version: [`Version`] and the value |
//! | `d` key | [`Point`] of the event that deleted it; kept as long as that event |
//! | `e` revision, number within it | [`Change`] |
//! | `l` lease | time to live in ms |
//! | `a` lease, key | (nothing): the key is attached |
//! | `r` or `s`, request id | what the request's transaction did |
//!
//! Request ids are remembered in two generations, each in a table of its own. A new id goes into the younger one. When
//! that is full, the older one is cleared and takes its turn as the younger.

use rmp::decode::read_int;
use rmp::encode::write_uint;

use crate::command::REQUEST_ID_BYTES;
use crate::error::KvError;

/// Version of everything in this file. Version 2 remembered no request ids; it is read, and written as this one.
pub const FORMAT_VERSION: u8 = 3;
const WITHOUT_REQUESTS: u8 = 2;

/// Key of the row that says where the machine stands.
pub const META: &[u8] = b"m";
pub(crate) const LATEST: u8 = b'k';
pub(crate) const DELETED: u8 = b'd';
pub(crate) const EVENTS: u8 = b'e';
pub(crate) const LEASES: u8 = b'l';
pub(crate) const ATTACHED: u8 = b'a';
pub(crate) const REQUESTS: [u8; 2] = [b'r', b's'];

/// Kinds of rows that a backend may keep apart: no range that is scanned holds more than one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any row that is not of another kind.
    State,
    /// Rows of history are only ever put behind all others of their kind.
    History,
    /// Rows of this generation of request ids all go at once.
    Requests(usize),
}

impl Kind {
    /// All, in the order in which a snapshot has them.
    pub const ALL: [Self; 4] = [Self::State, Self::History, Self::Requests(0), Self::Requests(1)];
}

/// Of what kind the row with a key is.
#[must_use]
pub fn kind_of(key: &[u8]) -> Kind {
    match key.first() {
        Some(&EVENTS) => Kind::History,
        Some(&table) => REQUESTS
            .iter()
            .position(|&requests| requests == table)
            .map_or(Kind::State, Kind::Requests),
        None => Kind::State,
    }
}

/// Values up to this size are kept in the event of their put; larger ones are found through the key.
pub(crate) const INLINE_BYTES: usize = 4 << 10;

/// Where the machine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Raft index of the last command applied.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Revision of the store.
    pub revision: u64,
    /// Oldest revision that can be read.
    pub compact_revision: u64,
    /// Changes in history, those included that compaction has yet to give back.
    pub events: u64,
    /// Bound of `events`; 0 for none.
    pub max_events: u64,
    /// Number of the younger generation of request ids: the even ones are in the first of their tables.
    pub generation: u64,
    /// Request ids in it.
    pub requests: u64,
}

/// A place in history: a revision and the number of the change within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub revision: u64,
    pub number: u32,
}

/// Everything about a version of a key but its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Puts since the key was created.
    pub puts: u64,
    pub created: u64,
    pub at: Point,
    pub lease: u64,
}

/// What stood there before a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing, as far as history goes back.
    Nothing,
    /// The key had been deleted by the change at that point.
    Deleted(Point),
    /// A version with its value.
    Live(Version, Vec<u8>),
}

/// What a change made of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Deleted,
    /// A put; the value itself where it is small.
    Live(Version, Option<Vec<u8>>),
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub key: Vec<u8>,
    pub after: After,
    pub before: Before,
}

pub(crate) fn latest_key(key: &[u8]) -> Vec<u8> {
    joined(&[&[LATEST], key])
}

pub(crate) fn deleted_key(key: &[u8]) -> Vec<u8> {
    joined(&[&[DELETED], key])
}

pub(crate) fn event_key(at: Point) -> Vec<u8> {
    joined(&[&[EVENTS], &at.revision.to_be_bytes(), &at.number.to_be_bytes()])
}

pub(crate) fn lease_key(lease: u64) -> Vec<u8> {
    joined(&[&[LEASES], &lease.to_be_bytes()])
}

pub(crate) fn attached_key(lease: u64, key: &[u8]) -> Vec<u8> {
    joined(&[&[ATTACHED], &lease.to_be_bytes(), key])
}

/// The row of a request id in a generation.
pub(crate) fn request_key(generation: u64, id: &[u8; REQUEST_ID_BYTES]) -> Vec<u8> {
    joined(&[&[request_table(generation)], id])
}

pub(crate) fn request_table(generation: u64) -> u8 {
    REQUESTS[usize::from(generation % 2 == 1)]
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

impl Meta {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = vec![FORMAT_VERSION];
        for field in [
            self.index,
            self.term,
            self.revision,
            self.compact_revision,
            self.events,
            self.max_events,
            self.generation,
            self.requests,
        ] {
            put_number(&mut out, field);
        }
        out
    }

    /// Decode the record at the key of the machine's state.
    ///
    /// # Errors
    /// [`KvError::Damaged`], also for a format version that this build does not know.
    pub fn decode<E>(data: &[u8]) -> Result<Self, KvError<E>> {
        let mut reader = Reader { data };
        let version = reader.byte()?;
        if !(WITHOUT_REQUESTS..=FORMAT_VERSION).contains(&version) {
            return Err(KvError::Damaged(format!(
                "format version {version}; this build knows {WITHOUT_REQUESTS} to {FORMAT_VERSION}"
            )));
        }
        let (index, term) = (reader.number()?, reader.number()?);
        let meta = Self {
            index,
            term,
            revision: reader.number()?,
            compact_revision: reader.number()?,
            events: reader.number()?,
            max_events: reader.number()?,
            ..Self::default()
        };
        if version == WITHOUT_REQUESTS {
            return Ok(meta);
        }
        Ok(Self {
            generation: reader.number()?,
            requests: reader.number()?,
            ..meta
        })
    }
}

impl Point {
    fn encode_to(self, out: &mut Vec<u8>) {
        put_number(out, self.revision);
        put_number(out, self.number.into());
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12);
        self.encode_to(&mut out);
        out
    }

    pub(crate) fn decode<E>(data: &[u8]) -> Result<Self, KvError<E>> {
        Reader { data }.point()
    }

    /// The point in an event's key.
    pub(crate) fn of_event_key<E>(key: &[u8]) -> Result<Self, KvError<E>> {
        let bytes: [u8; 12] = key.get(1..).and_then(|rest| rest.try_into().ok()).ok_or_else(damaged)?;
        let (revision, number) = bytes.split_at(8);
        Ok(Self {
            revision: u64::from_be_bytes(revision.try_into().expect("8 bytes")),
            number: u32::from_be_bytes(number.try_into().expect("4 bytes")),
        })
    }
}

impl Version {
    fn encode_to(self, out: &mut Vec<u8>) {
        put_number(out, self.puts);
        put_number(out, self.created);
        self.at.encode_to(out);
        put_number(out, self.lease);
    }

    /// The record of a key's newest version.
    pub(crate) fn encode_with(self, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + value.len());
        self.encode_to(&mut out);
        out.extend_from_slice(value);
        out
    }

    #[inline]
    pub(crate) fn decode<E>(data: &[u8]) -> Result<(Self, &[u8]), KvError<E>> {
        let mut reader = Reader { data };
        let version = reader.version()?;
        Ok((version, reader.data))
    }
}

impl Change {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        put_bytes(&mut out, &self.key);
        match &self.after {
            After::Deleted => out.push(0),
            After::Live(version, None) => {
                out.push(1);
                version.encode_to(&mut out);
            }
            After::Live(version, Some(value)) => {
                out.push(2);
                version.encode_to(&mut out);
                put_bytes(&mut out, value);
            }
        }
        match &self.before {
            Before::Nothing => out.push(0),
            Before::Deleted(at) => {
                out.push(1);
                at.encode_to(&mut out);
            }
            Before::Live(version, value) => {
                out.push(2);
                version.encode_to(&mut out);
                put_bytes(&mut out, value);
            }
        }
        out
    }

    pub(crate) fn decode<E>(data: &[u8]) -> Result<Self, KvError<E>> {
        let mut reader = Reader { data };
        let key = reader.bytes()?.to_vec();
        let after = match reader.byte()? {
            0 => After::Deleted,
            1 => After::Live(reader.version()?, None),
            2 => After::Live(reader.version()?, Some(reader.bytes()?.to_vec())),
            _ => return Err(damaged()),
        };
        let before = match reader.byte()? {
            0 => Before::Nothing,
            1 => Before::Deleted(reader.point()?),
            2 => Before::Live(reader.version()?, reader.bytes()?.to_vec()),
            _ => return Err(damaged()),
        };
        Ok(Self { key, after, before })
    }
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    write_uint(out, number).expect("a vector takes everything");
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn damaged<E>() -> KvError<E> {
    KvError::Damaged("it ends early or holds an unknown tag".into())
}

struct Reader<'a> {
    data: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte<E>(&mut self) -> Result<u8, KvError<E>> {
        let (first, rest) = self.data.split_first().ok_or_else(damaged)?;
        self.data = rest;
        Ok(*first)
    }

    /// A number, if there is one. What most are comes without a look at all that MessagePack has, and without an error to
    /// carry: every row of a scan has five.
    #[inline]
    fn plain(&mut self) -> Option<u64> {
        match *self.data {
            [small @ 0..=0x7f, ref rest @ ..] => {
                self.data = rest;
                Some(small.into())
            }
            [0xcc, number, ref rest @ ..] => {
                self.data = rest;
                Some(number.into())
            }
            [0xcd, high, low, ref rest @ ..] => {
                self.data = rest;
                Some(u16::from_be_bytes([high, low]).into())
            }
            [0xce, a, b, c, d, ref rest @ ..] => {
                self.data = rest;
                Some(u32::from_be_bytes([a, b, c, d]).into())
            }
            _ => read_int(&mut self.data).ok(),
        }
    }

    #[inline]
    fn plain_point(&mut self) -> Option<Point> {
        Some(Point {
            revision: self.plain()?,
            number: u32::try_from(self.plain()?).ok()?,
        })
    }

    #[inline]
    fn plain_version(&mut self) -> Option<Version> {
        Some(Version {
            puts: self.plain()?,
            created: self.plain()?,
            at: self.plain_point()?,
            lease: self.plain()?,
        })
    }

    fn number<E>(&mut self) -> Result<u64, KvError<E>> {
        self.plain().ok_or_else(damaged)
    }

    fn point<E>(&mut self) -> Result<Point, KvError<E>> {
        self.plain_point().ok_or_else(damaged)
    }

    #[inline]
    fn version<E>(&mut self) -> Result<Version, KvError<E>> {
        self.plain_version().ok_or_else(damaged)
    }

    fn bytes<E>(&mut self) -> Result<&'a [u8], KvError<E>> {
        let len = usize::try_from(self.number()?).map_err(|_| damaged())?;
        let (head, rest) = self.data.split_at_checked(len).ok_or_else(damaged)?;
        self.data = rest;
        Ok(head)
    }
}
