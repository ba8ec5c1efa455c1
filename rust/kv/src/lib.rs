//! Multi-version key-value state machine. Pure: no I/O, no clock, no randomness.
//!
//! Every transaction that changes a key makes a new revision of the whole store. The newest version of each key is at
//! hand; each change is also an event that carries what it replaced, so a read at an older revision undoes changes
//! from the newest version backwards, a watch reads events forwards, and forgetting history is deleting events from the
//! oldest on, without a look at anything else.
//!
//! - [`command`]: what a Raft entry carries, and its results, as bytes.
//! - [`backend`]: the ordered map that the machine works on; [`Memory`] is one.
//! - [`machine`]: applies commands.
//! - [`read`]: reads, scans, events.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod backend;
pub mod command;
mod error;
mod layout;
pub mod machine;
pub mod read;

pub use backend::{Backend, Memory, Read, Tentative};
pub use error::KvError;
pub use layout::{Kind, META, Meta, kind_of};
pub use machine::apply;
pub use read::{Event, KeyValue, Page, RangeOptions};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1 << 10;
/// Largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Most compares and most operations of a branch in one transaction.
pub const MAX_TXN_OPS: usize = 1_000;
/// Most keys that one ranged delete may delete.
pub const MAX_DELETE_KEYS: usize = 10_000;
/// Request ids in a generation: the last so many are remembered, and at most twice as many. Replicas must agree on it.
pub const GENERATION_REQUESTS: u64 = 250_000;
/// Largest result that is remembered, as it is encoded; of a larger one only that the transaction was applied.
pub const MAX_REMEMBERED_BYTES: usize = 1 << 10;
