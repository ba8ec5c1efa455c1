//! Segmented write-ahead log of Raft entries, with term and vote.
//!
//! Everything that has to survive goes through one stream of records: entries, the truncation of a suffix or a prefix,
//! term and vote. So there is one order of events, one place to sync, and a truncation is as atomic as the write of
//! one record. Bytes reach the disk through [`Disk`], which tests replace by one that fails.
//!
//! - `format`: records and segment headers as bytes.
//! - `recovery`: replays segments; tells a torn tail from corruption.
//! - `open`: finds the segments and repairs the end of the last.
//! - `segment`: one file.
//! - `index`: where each entry is.
//! - `log`: the log itself.
//! - `disk`: files.
//! - `sim`: a disk in memory that fails and forgets, for tests.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod check;
pub mod disk;
mod error;
pub mod format;
mod index;
pub mod log;
mod open;
mod recovery;
mod segment;
pub mod sim;

pub use disk::{Disk, RealDisk};
pub use error::{LogError, Result};
pub use log::{Entry, Log, Options};
