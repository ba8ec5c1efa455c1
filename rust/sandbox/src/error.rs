//! Why the launcher cannot work, or had to stop.

use rustix::io::Errno;

use crate::protocol::ProtocolError;

/// Why the launcher cannot work, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// The calling process has other threads, which a clone would lose.
    #[error("the launcher needs a process of one thread, this one has {0}")]
    Threads(usize),
    /// Something of the host or of the configuration does not allow it.
    #[error("{0}")]
    Host(String),
    /// The worker's end sent nonsense.
    #[error("the worker sent a {0}")]
    Protocol(#[from] ProtocolError),
    /// A call that has no reason to fail.
    #[error("{operation}: {errno}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// How it failed.
        errno: Errno,
    },
}

/// Names the operation that failed.
pub fn system(operation: &'static str) -> impl FnOnce(Errno) -> LauncherError {
    move |errno| LauncherError::System { operation, errno }
}

/// Takes over the words of an error of the host.
#[expect(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
pub fn host(error: impl ToString) -> LauncherError {
    LauncherError::Host(error.to_string())
}
