//! Content-addressed blobs of a node: a durable store of files, named by their BLAKE3 hashes, that members of the cluster
//! read from each other.
//!
//! What is acknowledged is on the disk: data and names are synced before a hash is told. What is read is verified, from
//! the own disk as from a peer: each 16 KiB are checked against the hash before they are handed on. The exchange is
//! iroh-blobs' protocol; its store is not used (docs/decisions/0023-blobs.md says why).
//!
//! - `hash`: hashes as text. `tree`: the tree of hashes of a blob, made while its bytes pass (pure).
//! - `disk`: names, syncs and moves of files. `store`: what is here; additions, reads, deletions, examinations.
//! - `adding`: a blob that comes. `reader`: one that is read. `partial`: one that is fetched in parts.
//! - `provide`: peers that fetch from here. `fetch`: fetches from peers, `attempt`: from one of them, `policy`: from
//!   which one next (pure).
//! - `service`: a store on a network, with fetches as operations. `events`: what is told of them.
#![forbid(unsafe_code)]

mod adding;
mod attempt;
mod disk;
mod error;
mod events;
mod fetch;
mod hash;
mod links;
mod partial;
mod policy;
mod provide;
mod reader;
mod service;
mod store;
mod tree;

pub use adding::{Added, Adding};
pub use error::{BlobError, Result, Tried};
pub use events::{OperationEvent, Progress};
pub use fetch::{FetchOptions, Fetched};
pub use hash::parse as parse_hash;
pub use iroh_blobs::Hash;
pub use reader::Reader;
pub use service::Service;
pub use store::{Deletion, Hold, Options, PartialStat, Stat, Store, Usage, Verdict};
