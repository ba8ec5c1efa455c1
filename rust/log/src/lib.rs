//! Segmented write-ahead log of Raft entries, with term and vote.
//!
//! Everything that has to survive goes through one stream of records: entries, the truncation of a suffix, the new
//! beginning after a snapshot, term and vote. So there is one order of events, one place to sync, and a truncation is
//! as atomic as the write of one record. Bytes reach the disk through [`Disk`], which tests replace by one that fails.
//!
//! - [`format`]: records and segment headers as bytes.
//! - [`recovery`]: reads segments back; tells a torn tail from corruption.
//! - [`log`]: the log itself.
//! - [`disk`]: files.
#![forbid(unsafe_code)]

pub mod disk;
mod error;
pub mod format;
mod index;
pub mod log;
pub mod recovery;

pub use disk::{Disk, RealDisk};
pub use error::{LogError, Result};
pub use log::{Entry, Log, Options};
