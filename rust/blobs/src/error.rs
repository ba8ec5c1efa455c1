//! What can go wrong, with the blob or the file named.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::Hash;

/// Result of calls.
pub type Result<T> = std::result::Result<T, BlobError>;

/// What came of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Id of the provider.
    pub peer: String,
    /// Verified bytes that came from it.
    pub bytes: u64,
    /// Why it was left behind; empty when it was not.
    pub reason: String,
}

/// Why a call was not carried out.
#[derive(Debug, Error)]
pub enum BlobError {
    /// An argument cannot be.
    #[error("{0}")]
    Invalid(String),
    /// There is no such blob here.
    #[error("blob {0}: it is not here")]
    NotFound(Hash),
    /// What is on the disk is not what it should be; it was put aside.
    #[error("blob {hash}: damaged here: {problem}")]
    Corrupt {
        /// Blob in question.
        hash: Hash,
        /// What is wrong.
        problem: String,
    },
    /// There is no room; nothing of what was to come is kept.
    #[error("blobs: no room on the disk: {0}")]
    DiskFull(String),
    /// A limit is exceeded.
    #[error("{0}")]
    Limit(String),
    /// No provider had it whole.
    #[error("blob {hash}: no provider gave it: {}", told(.tried))]
    Unavailable {
        /// Blob in question.
        hash: Hash,
        /// What came of each.
        tried: Vec<Tried>,
    },
    /// The store is closed, or is not on a network.
    #[error("blobs: {0}")]
    Closed(&'static str),
    /// A file operation failed.
    #[error("blobs: cannot {operation} {}: {source}", .file.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// With which file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl BlobError {
    /// Its kind, as a word.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::NotFound(_) => "not_found",
            Self::Corrupt { .. } => "corrupt",
            Self::DiskFull(_) => "disk_full",
            Self::Limit(_) => "limit",
            Self::Unavailable { .. } => "unavailable",
            Self::Closed(_) => "closed",
            Self::Io { .. } => "io",
        }
    }

    /// An error of the system with a file; that there is no room has a name of its own.
    pub(crate) fn io(operation: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull(format!("cannot {operation} {}: {source}", file.display()))
            }
            _ => Self::Io {
                operation,
                file,
                source,
            },
        }
    }
}

fn told(tried: &[Tried]) -> String {
    if tried.is_empty() {
        return "none was named".into();
    }
    let one = |tried: &Tried| format!("{}: {}", tried.peer.get(..10).unwrap_or(&tried.peer), tried.reason);
    tried.iter().map(one).collect::<Vec<_>>().join("; ")
}
