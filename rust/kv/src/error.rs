//! What can go wrong.

use thiserror::Error;

/// Why the machine could not go on; `E` is the backend's own error.
#[derive(Debug, Error)]
pub enum KvError<E> {
    /// The backend failed.
    #[error("store: {0}")]
    Backend(E),
    /// A command's bytes are not a command. Deterministic: every replica sees the same.
    #[error("command: {problem} at byte {offset}")]
    Malformed {
        /// Byte offset in the command.
        offset: usize,
        /// What is wrong there.
        problem: String,
    },
    /// What the backend holds cannot be read.
    #[error("store: damaged record: {0}")]
    Damaged(String),
    /// The history asked for is gone.
    #[error("revision {asked} is compacted; history begins at {kept}")]
    Compacted {
        /// Revision asked for.
        asked: u64,
        /// Oldest revision that can be read.
        kept: u64,
    },
}
