//! The key-value state machine on disk: `jobs-kv` over LMDB, with the applied index in the same transaction.
//!
//! LMDB is not synced: the Raft log is what is durable, and what LMDB loses the log tells again. The death of the process
//! loses nothing, for the page cache survives it. After the death of the operating system the LMDB file is not trusted
//! (see [`marker`]), and the newest snapshot takes its place.
//!
//! - [`env`]: LMDB as a backend of the machine; `unsafe` is here and in `seal` alone.
//! - `seal`: the checksum of a row.
//! - [`marker`]: how the last run ended; `recovery`: what opening does about that.
//! - `place`: where the data file lies.
//! - [`compaction`]: a compact copy that takes the store's place.
//! - [`snapshot`]: the snapshot file.
//! - [`store`]: the writer.
//! - [`reader`]: consistent reads for other processes.
//! - [`digest`]: by what two sides compare a range.
//! - [`view`]: one revision, read by several threads of another process.

pub mod compaction;
pub mod digest;
pub mod env;
mod error;
pub mod marker;
mod place;
pub mod reader;
mod recovery;
mod seal;
pub mod snapshot;
pub mod store;
pub mod view;

pub use compaction::Compaction;
pub use error::{Result, StoreError};
pub use reader::StoreReader;
pub use store::{Options, Store};
pub use view::StoreView;
