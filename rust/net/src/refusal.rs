//! Why somebody is refused, as a code on the wire, a counter and a word.

use crate::counters::{Counter, Counters};
use crate::wire::{FrameError, HelloError};

/// Kinds of refusals. The numbers are the wire's codes with which a connection or a stream is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Refusal {
    Stranger = 1,
    Cluster = 2,
    Version = 3,
    Malformed = 4,
    Truncated = 5,
    TooLarge = 6,
    Timeout = 7,
    Busy = 8,
    Superseded = 9,
    Tls = 10,
}

impl Refusal {
    pub(crate) const COUNT: usize = 11;

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Cluster => "cluster",
            Self::Version => "version",
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
            Self::Superseded => "superseded",
            Self::Tls => "tls",
        }
    }

    pub(crate) const fn counter(self, counters: &Counters) -> &Counter {
        match self {
            Self::Stranger => &counters.refused_stranger,
            Self::Cluster => &counters.refused_cluster,
            Self::Version => &counters.refused_version,
            Self::Malformed => &counters.refused_malformed,
            Self::Truncated => &counters.refused_truncated,
            Self::TooLarge => &counters.refused_too_large,
            Self::Timeout => &counters.refused_timeout,
            Self::Busy => &counters.refused_busy,
            Self::Superseded => &counters.refused_superseded,
            Self::Tls => &counters.refused_tls,
        }
    }
}

impl From<&FrameError> for Refusal {
    fn from(error: &FrameError) -> Self {
        match error {
            FrameError::Kind(_) => Self::Malformed,
            FrameError::TooLarge { .. } => Self::TooLarge,
            FrameError::Truncated { .. } => Self::Truncated,
        }
    }
}

impl From<&HelloError> for Refusal {
    fn from(error: &HelloError) -> Self {
        match error {
            HelloError::Malformed => Self::Malformed,
            HelloError::Version(_) => Self::Version,
            HelloError::Cluster { .. } | HelloError::Foreign { .. } => Self::Cluster,
        }
    }
}

/// Codes of closes and resets that are no refusals.
pub(crate) const CODE_REMOVED: u32 = 32;
pub(crate) const CODE_SHUTDOWN: u32 = 33;
pub(crate) const CODE_RESTARTED: u32 = 34;
pub(crate) const CODE_GIVEN_UP: u32 = 35;
