//! What can go wrong, with the operation and the file named.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Result of a log operation.
pub type Result<T> = std::result::Result<T, LogError>;

/// Why an operation of the log failed.
#[derive(Debug, Error)]
pub enum LogError {
    /// The disk holds something that no crash can have left there: data that was durable is damaged.
    #[error("log {}: corrupt at byte {offset}: {problem}", .file.display())]
    Corrupt {
        /// File in question.
        file: PathBuf,
        /// Byte offset in it.
        offset: u64,
        /// What is wrong there.
        problem: String,
    },
    /// No room for another segment; nothing was changed.
    #[error("log: no room to {operation}: {source}")]
    DiskFull {
        /// What was being done.
        operation: String,
        /// The system's error.
        source: io::Error,
    },
    /// The disk refused an operation. After a failed write or sync the log is poisoned.
    #[error("log: cannot {operation}: {source}")]
    Io {
        /// What was being done.
        operation: String,
        /// The system's error.
        source: io::Error,
    },
    /// An earlier write or sync failed, so what is on disk is unknown until the log is opened again.
    #[error("log: refused, because an earlier operation failed: cannot {0}")]
    Poisoned(String),
    /// Somebody has the log open.
    #[error("log {}: it is open already, here or in another process", .0.display())]
    Locked(PathBuf),
    /// The caller broke the order of entries, or asked for what cannot be.
    #[error("log: {0}")]
    Invalid(String),
    /// The caller exceeded a limit.
    #[error("log: {what} of {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
}

impl LogError {
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }
}
