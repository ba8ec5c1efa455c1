//! What a Raft entry carries: one version byte and a MessagePack array of transactions, each
//! `[compares, then, otherwise, request id]`; compares and operations are arrays whose first element is the tag.
//! Version 1 had no request ids. Decoding borrows from the bytes, believes no length, and is deterministic. Python's
//! side of this is `jobs/store.py`.

use rmp::decode::{read_array_len, read_bin_len, read_int};
use rmp::encode::{ValueWriteError, write_array_len, write_bin, write_bool, write_nil, write_str, write_uint};

use crate::error::KvError;
use crate::read::KeyValue;
use crate::{MAX_KEY_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES};

/// Version of the command's form. Logs may still hold older ones.
pub const COMMAND_VERSION: u8 = 2;
/// Bytes of a request id.
pub const REQUEST_ID_BYTES: usize = 16;

/// An atomic change: `then` when every compare holds, else `otherwise`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn<'a> {
    /// Conditions.
    pub compare: Vec<Compare<'a>>,
    /// Operations when all hold.
    pub then: Vec<Op<'a>>,
    /// Operations when one does not.
    pub otherwise: Vec<Op<'a>>,
    /// Names the request that asked for it: while that is remembered, the transaction is not applied again.
    pub request: Option<&'a [u8; REQUEST_ID_BYTES]>,
}

/// A condition on a key; one that is absent has zeros and an empty value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare<'a> {
    /// The key.
    pub key: &'a [u8],
    /// How to compare.
    pub operator: Operator,
    /// What with what.
    pub target: Target<'a>,
}

/// How to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// ==
    Equal,
    /// !=
    NotEqual,
    /// <
    Less,
    /// >
    Greater,
}

/// What is compared, with the right-hand side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Number of puts since the key was created.
    Version(u64),
    /// Revision of its creation.
    CreateRevision(u64),
    /// Revision of its last put.
    ModRevision(u64),
    /// Its lease, 0 for none.
    Lease(u64),
    /// Its value.
    Value(&'a [u8]),
}

/// One operation of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Set a key, attached to a lease unless that is 0.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// Lease or 0.
        lease: u64,
    },
    /// Delete a key, or all in `[key, end)` where `end` is not empty.
    Delete {
        /// First key.
        key: &'a [u8],
        /// End of the range.
        end: &'a [u8],
    },
    /// Read a key.
    Get {
        /// The key.
        key: &'a [u8],
    },
    /// Make or renew a lease.
    LeaseGrant {
        /// Its id, not 0.
        id: u64,
        /// Time to live in ms.
        ttl_ms: u64,
    },
    /// End a lease and delete its keys.
    LeaseRevoke {
        /// Its id.
        id: u64,
    },
    /// Forget history before a revision.
    Compact {
        /// Oldest revision that is kept.
        revision: u64,
    },
    /// Keep no more history than so many changes, from this command on.
    Keep {
        /// Changes; 0 sets no bound.
        events: u64,
    },
}

/// What one operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// Done; nothing to say.
    Nothing,
    /// Keys deleted.
    Deleted(u64),
    /// What a get found.
    Found(Option<KeyValue>),
}

/// What a transaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResult {
    /// Empty, or why nothing of it was applied.
    pub error: String,
    /// Whether every compare held.
    pub succeeded: bool,
    /// Revision of the store after it.
    pub revision: u64,
    /// One for each operation of the branch taken.
    pub results: Vec<OpResult>,
}

/// Decode a command.
///
/// # Errors
/// [`KvError::Malformed`] with the offset.
pub fn decode<E>(command: &[u8]) -> Result<Vec<Txn<'_>>, KvError<E>> {
    let mut reader = Reader { command, rest: command };
    reader.command().map_err(|problem| KvError::Malformed {
        offset: command.len() - reader.rest.len(),
        problem,
    })
}

/// Why a transaction breaks a limit, if it does.
#[must_use]
pub fn limit_problem(txn: &Txn<'_>, branch: &[Op<'_>]) -> Option<String> {
    let longest = txn.compare.len().max(txn.then.len()).max(txn.otherwise.len());
    if longest > MAX_TXN_OPS {
        return Some(format!(
            "limit: {longest} operations in a transaction; {MAX_TXN_OPS} are possible"
        ));
    }
    let compared = txn.compare.iter().map(|compare| compare.key);
    let operated = branch.iter().filter_map(|op| match op {
        Op::Put { key, .. } | Op::Delete { key, .. } | Op::Get { key } => Some(*key),
        _ => None,
    });
    if let Some(key) = compared
        .chain(operated)
        .find(|key| key.is_empty() || key.len() > MAX_KEY_BYTES)
    {
        return Some(format!(
            "limit: a key of {} bytes; 1 to {MAX_KEY_BYTES} are possible",
            key.len()
        ));
    }
    branch.iter().find_map(|op| match op {
        Op::Put { value, .. } if value.len() > MAX_VALUE_BYTES => Some(format!(
            "limit: a value of {} bytes; {MAX_VALUE_BYTES} are possible",
            value.len()
        )),
        Op::LeaseGrant { id: 0, .. } => Some("limit: lease 0 means no lease".into()),
        _ => None,
    })
}

/// The results of a command as they go out: an array with one result for each transaction, `[error, succeeded,
/// revision, results]`, and a `true` behind these where the transaction was applied before, by an earlier command.
pub(crate) struct Results(Vec<u8>);

impl Results {
    pub fn of(txns: usize) -> Self {
        let mut out = Vec::with_capacity(16 + 32 * txns);
        array(&mut out, txns).expect(IN_MEMORY);
        Self(out)
    }

    /// Add what a transaction did now.
    pub fn add(&mut self, fields: &[u8]) {
        array(&mut self.0, 4).expect(IN_MEMORY);
        self.0.extend_from_slice(fields);
    }

    /// Add what it did before.
    pub fn add_remembered(&mut self, fields: &[u8]) {
        array(&mut self.0, 5).expect(IN_MEMORY);
        self.0.extend_from_slice(fields);
        write_bool(&mut self.0, true).expect(IN_MEMORY);
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

const IN_MEMORY: &str = "writing to memory cannot fail";

/// Encode the fields of a result, without the array around them.
pub(crate) fn encode_fields(result: &TxnResult) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    encode_fields_to(&mut out, result).expect(IN_MEMORY);
    out
}

fn encode_fields_to(out: &mut Vec<u8>, result: &TxnResult) -> Result<(), ValueWriteError> {
    write_str(out, &result.error)?;
    write_bool(out, result.succeeded).map_err(ValueWriteError::InvalidMarkerWrite)?;
    write_uint(out, result.revision)?;
    array(out, result.results.len())?;
    for item in &result.results {
        match item {
            OpResult::Nothing | OpResult::Found(None) => {
                write_nil(out).map_err(ValueWriteError::InvalidMarkerWrite)?;
            }
            OpResult::Deleted(count) => write_uint(out, *count).map(drop)?,
            OpResult::Found(Some(found)) => {
                array(out, 6)?;
                write_bin(out, &found.key)?;
                write_bin(out, &found.value)?;
                for number in [found.version, found.create_revision, found.mod_revision, found.lease] {
                    write_uint(out, number)?;
                }
            }
        }
    }
    Ok(())
}

fn array(out: &mut Vec<u8>, len: usize) -> Result<(), ValueWriteError> {
    write_array_len(out, u32::try_from(len).expect("results are bounded")).map(drop)
}

struct Reader<'a> {
    command: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn command(&mut self) -> Result<Vec<Txn<'a>>, String> {
        let (&version, rest) = self.command.split_first().ok_or("it is empty")?;
        self.rest = rest;
        let txns = match version {
            1 => self.list(|reader| reader.txn(3))?,
            COMMAND_VERSION => self.list(|reader| reader.txn(4))?,
            _ => return Err(format!("version {version}; this build knows 1 to {COMMAND_VERSION}")),
        };
        if self.rest.is_empty() {
            Ok(txns)
        } else {
            Err("there is something after the end".into())
        }
    }

    fn txn(&mut self, fields: usize) -> Result<Txn<'a>, String> {
        self.fields(fields)?;
        Ok(Txn {
            compare: self.list(Self::compare)?,
            then: self.list(Self::op)?,
            otherwise: self.list(Self::op)?,
            request: if fields > 3 { self.request()? } else { None },
        })
    }

    /// A request id; no bytes for none.
    fn request(&mut self) -> Result<Option<&'a [u8; REQUEST_ID_BYTES]>, String> {
        match self.bytes()? {
            [] => Ok(None),
            id => id
                .try_into()
                .map(Some)
                .map_err(|_| format!("a request id of {} bytes, not {REQUEST_ID_BYTES}", id.len())),
        }
    }

    fn compare(&mut self) -> Result<Compare<'a>, String> {
        self.fields(4)?;
        let tag = self.number()?;
        let key = self.bytes()?;
        let operator = match self.number()? {
            0 => Operator::Equal,
            1 => Operator::NotEqual,
            2 => Operator::Less,
            3 => Operator::Greater,
            other => return Err(format!("operator {other} is not known")),
        };
        let target = match tag {
            0 => Target::Version(self.number()?),
            1 => Target::CreateRevision(self.number()?),
            2 => Target::ModRevision(self.number()?),
            3 => Target::Lease(self.number()?),
            4 => Target::Value(self.bytes()?),
            other => return Err(format!("compare {other} is not known")),
        };
        Ok(Compare { key, operator, target })
    }

    fn op(&mut self) -> Result<Op<'a>, String> {
        let count = self.array()?;
        let tag = self.number()?;
        let wanted = match tag {
            0 => 4,
            1 | 3 => 3,
            2 | 4 | 5 | 6 => 2,
            other => return Err(format!("operation {other} is not known")),
        };
        if count != wanted {
            return Err(format!("operation {tag} has {count} fields, not {wanted}"));
        }
        Ok(match tag {
            0 => Op::Put {
                key: self.bytes()?,
                value: self.bytes()?,
                lease: self.number()?,
            },
            1 => Op::Delete {
                key: self.bytes()?,
                end: self.bytes()?,
            },
            2 => Op::Get { key: self.bytes()? },
            3 => Op::LeaseGrant {
                id: self.number()?,
                ttl_ms: self.number()?,
            },
            4 => Op::LeaseRevoke { id: self.number()? },
            5 => Op::Compact {
                revision: self.number()?,
            },
            _ => Op::Keep { events: self.number()? },
        })
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let count = self.array()?;
        // Each item takes a byte at least, so a larger count is a lie; nothing is allocated on its word.
        if count > self.rest.len() {
            return Err(format!("{count} items in {} bytes", self.rest.len()));
        }
        let mut items = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn fields(&mut self, wanted: usize) -> Result<(), String> {
        let count = self.array()?;
        if count == wanted {
            Ok(())
        } else {
            Err(format!("{count} fields, not {wanted}"))
        }
    }

    fn array(&mut self) -> Result<usize, String> {
        read_array_len(&mut self.rest)
            .map(|len| len as usize)
            .map_err(|error| format!("no array: {error}"))
    }

    fn number(&mut self) -> Result<u64, String> {
        read_int(&mut self.rest).map_err(|error| format!("no number: {error}"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let len = read_bin_len(&mut self.rest).map_err(|error| format!("no bytes: {error}"))? as usize;
        let (bytes, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| format!("{len} bytes where there are fewer"))?;
        self.rest = rest;
        Ok(bytes)
    }
}
