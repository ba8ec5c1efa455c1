//! Errors of calls on an endpoint.

use thiserror::Error;

/// Why a call was not carried out.
#[derive(Debug, Error)]
pub enum NetError {
    /// The key file cannot be used.
    #[error("key file {0}")]
    Key(String),
    /// A setting or an argument cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The endpoint could not be started.
    #[error("endpoint: it cannot be started: {0}")]
    Start(String),
    /// The endpoint is closed.
    #[error("endpoint: it is closed")]
    Closed,
    /// No such peer is on the allowlist.
    #[error("peer {0}: it is not on the allowlist")]
    UnknownPeer(String),
    /// The peer does not answer, or does not speak to this node.
    #[error("{0}")]
    Unreachable(String),
    /// A limit is reached; nothing was done.
    #[error("{0}")]
    Limit(String),
}

/// Result of calls.
pub type Result<T> = std::result::Result<T, NetError>;
