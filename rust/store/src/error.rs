//! What can go wrong, with the file named.

use std::io;
use std::path::{Path, PathBuf};

use jobs_kv::KvError;
use thiserror::Error;

const EIO: i32 = 5;

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why an operation of the store failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// LMDB failed.
    #[error("store: {0}")]
    Lmdb(#[from] heed::Error),
    /// The machine could not go on.
    #[error(transparent)]
    Machine(KvError<heed::Error>),
    /// A file operation failed.
    #[error("store: cannot {operation} {}: {source}", .file.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// With which file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("store {}: corrupt at byte {offset}: {problem}", .file.display())]
    Corrupt {
        /// File in question.
        file: PathBuf,
        /// Byte offset in it.
        offset: u64,
        /// What is wrong there.
        problem: String,
    },
    /// A snapshot that is not ahead of what is here already.
    #[error("store: the snapshot at entry {snapshot} is refused: entry {applied} is applied already")]
    Behind {
        /// Raft index of the snapshot.
        snapshot: u64,
        /// Raft index that the store stands at.
        applied: u64,
    },
    /// The disk was full in the middle of a write.
    #[error("store: no room for all of a write in {}", .0.display())]
    Full(PathBuf),
    /// A compact copy would leave the disk full.
    #[error(
        "store: no room to compact it: a copy takes up to {needed} bytes, and {free} are free in {}",
        .directory.display()
    )]
    NoRoomToCompact {
        /// Where it lies.
        directory: PathBuf,
        /// Bytes that have to be free.
        needed: u64,
        /// Bytes that are.
        free: u64,
    },
    /// There is one compact copy at a time.
    #[error("store: it is being compacted already")]
    Compacting,
    /// Who was told how far it is has ended it.
    #[error("store: broken off")]
    BrokenOff,
    /// A revision that this replica has not reached.
    #[error("store: revision {asked} has not been reached; this replica is at {reached}")]
    NotReached {
        /// Revision that was asked for.
        asked: u64,
        /// Revision of this replica.
        reached: u64,
    },
    /// The store is closed.
    #[error("store: it is closed")]
    Closed,
}

impl From<KvError<heed::Error>> for StoreError {
    fn from(error: KvError<heed::Error>) -> Self {
        match error {
            KvError::Backend(error) => Self::Lmdb(error),
            other => Self::Machine(other),
        }
    }
}

impl StoreError {
    pub(crate) fn io(operation: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io {
            operation,
            file,
            source,
        }
    }

    /// Whether LMDB had to break off a write: it calls that an input/output error, also when the disk just filled up.
    pub(crate) fn may_be_short_write(&self) -> bool {
        matches!(self, Self::Lmdb(heed::Error::Io(source)) if source.raw_os_error() == Some(EIO))
    }

    /// Whether the cause is that something is not what was written.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. }
                | Self::Lmdb(heed::Error::Decoding(_) | heed::Error::Mdb(heed::MdbError::Corrupted))
                | Self::Machine(KvError::Damaged(_) | KvError::Malformed { .. })
        )
    }

    /// Whether the cause is that there is no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full(_) | Self::NoRoomToCompact { .. } | Self::Lmdb(heed::Error::Mdb(heed::MdbError::MapFull)) => {
                true
            }
            Self::Lmdb(heed::Error::Io(source)) | Self::Io { source, .. } => no_room(source),
            _ => false,
        }
    }
}

/// Whether the system says that there is no room.
pub(crate) fn no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
