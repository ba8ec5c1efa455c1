//! What an endpoint is told, and its limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{NetError, Result};
use crate::wire::hello::is_name;

/// What an endpoint is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// File of the secret key; made when it is absent.
    pub key_file: PathBuf,
    /// Addresses to bind, at most one of IPv4 and one of IPv6.
    pub bind: Vec<SocketAddr>,
    /// Cluster of this node.
    pub cluster: String,
    /// Name of this node, for people.
    pub node: String,
    /// Limits.
    pub limits: Limits,
}

/// Bytes that an event costs beside its body.
pub(crate) const EVENT_BYTES: u64 = 256;
/// Longest message that may go before others, and how many of them wait.
pub(crate) const MAX_URGENT_BYTES: u64 = 1 << 10;
pub(crate) const URGENT_COUNT: usize = 64;
/// News of peers and refusals that may wait to be received.
pub(crate) const MAX_NOTICES: usize = 4_096;

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident = $default:expr, $least:expr, $most:expr;)+) => {
        /// Limits of an endpoint. All of memory that a peer can make it use is bounded by them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Limits { $($(#[doc = $doc])+ pub $name: u64,)+ }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl Limits {
            /// Set one by its name.
            ///
            /// # Errors
            /// When there is none of this name, or the value is out of its range.
            pub fn set(&mut self, name: &str, value: u64) -> Result<()> {
                let (field, least, most): (&mut u64, u64, u64) = match name {
                    $(stringify!($name) => (&mut self.$name, $least, $most),)+
                    _ => return Err(NetError::Invalid(format!("limit {name}: there is none of this name"))),
                };
                if !(least..=most).contains(&value) {
                    return Err(NetError::Invalid(format!("limit {name}: {value} is not in {least}..{most}")));
                }
                *field = value;
                Ok(())
            }
        }
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

limits! {
    /// Threads of the endpoint.
    threads = 2, 1, 64;
    /// Peers on the allowlist, foreign ones too.
    max_peers = 64, 1, 1_024;
    /// Handshakes under way at once, of all sources.
    max_handshakes = 64, 4, 4_096;
    /// Handshakes under way at once, of one source address and of one peer.
    max_handshakes_per_source = 16, 4, 4_096;
    /// Longest message.
    max_message_bytes = 4 * MIB, 1, 64 * MIB;
    /// Messages that wait to be sent to a peer.
    outbox_count = 4_096, 1, 1 << 20;
    /// Bytes of messages that wait to be sent to a peer.
    outbox_bytes = 8 * MIB, 1, 1 << 30;
    /// Bytes of messages of a peer that wait to be received by the application.
    inbox_bytes = 8 * MIB, 1, 1 << 30;
    /// Longest request.
    max_request_bytes = 16 * MIB, 1, 64 * MIB;
    /// Longest answer.
    max_answer_bytes = 16 * MIB, 1, 64 * MIB;
    /// Requests to a peer that are not answered yet.
    max_pending_requests = 16_384, 1, 1 << 20;
    /// Bytes of requests to a peer that are not answered yet.
    max_pending_request_bytes = 64 * MIB, 1, 1 << 30;
    /// Requests of a peer that are answered at once; more wait on its side.
    max_concurrent_requests = 1_024, 1, 65_536;
    /// Bytes of requests of a peer that are being answered.
    requests_in_bytes = 64 * MIB, 1, 1 << 30;
    /// Bytes of answers of a peer that wait to be received by the application.
    answers_in_bytes = 64 * MIB, 1, 1 << 30;
    /// Streams that one peer has opened; more wait on its side.
    max_streams_in = 512, 1, 65_536;
    /// Requests of a foreign peer that are answered at once.
    max_foreign_requests = 64, 1, 65_536;
    /// Bytes of requests of a foreign peer that are being answered.
    foreign_requests_in_bytes = 20 * MIB, 1, 1 << 30;
    /// And of all foreign peers together.
    all_foreign_requests_in_bytes = 128 * MIB, 1, 1 << 30;
    /// Streams that one foreign peer has opened.
    max_foreign_streams = 16, 1, 65_536;
    /// And all foreign peers together; fewer than there are of all peers, so that they leave some to the members.
    all_foreign_streams = 256, 1, 65_536;
    /// Streams of all peers, whoever opened them.
    max_streams = 1_024, 1, 65_536;
    /// Longest header of a stream.
    max_header_bytes = 64 * KIB, 1, MIB;
    /// Bytes of one stream that wait to be sent.
    stream_out_bytes = 256 * KIB, 64 * KIB, 64 * MIB;
    /// Bytes of one stream that the application has not consumed; 256 KiB more wait in the library.
    stream_in_bytes = 256 * KIB, 1, 64 * MIB;
    /// Time for a handshake, and for a dial as a whole.
    handshake_ms = 3_000, 10, 60_000;
    /// Without any sign of life a connection is given up after this.
    idle_ms = 8_000, 200, 14_000;
    /// First delay after a dial that failed.
    backoff_ms = 50, 1, 60_000;
    /// Longest delay after dials that failed.
    backoff_cap_ms = 1_000, 1, 600_000;
    /// A stream on which nothing moves in the middle of a body is given up after this.
    stall_ms = 60_000, 100, 3_600_000;
}

impl Limits {
    /// Whether they fit each other.
    ///
    /// # Errors
    /// When one makes another one impossible.
    pub(crate) fn check(&self) -> Result<()> {
        let pairs = [
            (
                "max_message_bytes",
                self.max_message_bytes,
                "outbox_bytes",
                self.outbox_bytes,
            ),
            (
                "max_message_bytes",
                self.max_message_bytes + EVENT_BYTES,
                "inbox_bytes",
                self.inbox_bytes,
            ),
            (
                "max_request_bytes",
                self.max_request_bytes,
                "max_pending_request_bytes",
                self.max_pending_request_bytes,
            ),
            (
                "max_request_bytes",
                self.max_request_bytes + EVENT_BYTES,
                "requests_in_bytes",
                self.requests_in_bytes,
            ),
            (
                "max_request_bytes",
                self.max_request_bytes + EVENT_BYTES,
                "foreign_requests_in_bytes",
                self.foreign_requests_in_bytes,
            ),
            (
                "max_request_bytes",
                self.max_request_bytes + EVENT_BYTES,
                "all_foreign_requests_in_bytes",
                self.all_foreign_requests_in_bytes,
            ),
            (
                "max_answer_bytes",
                self.max_answer_bytes + EVENT_BYTES,
                "answers_in_bytes",
                self.answers_in_bytes,
            ),
            ("backoff_ms", self.backoff_ms, "backoff_cap_ms", self.backoff_cap_ms),
        ];
        for (small, least, large, value) in pairs {
            if value < least {
                return Err(NetError::Invalid(format!(
                    "limit {large}: {value} is too little for {small} ({least})"
                )));
            }
        }
        Ok(())
    }

    pub(crate) const fn handshake(&self) -> Duration {
        Duration::from_millis(self.handshake_ms)
    }

    pub(crate) const fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }

    pub(crate) const fn stall(&self) -> Duration {
        Duration::from_millis(self.stall_ms)
    }
}

impl Config {
    /// Whether it can be.
    ///
    /// # Errors
    /// When a name or a limit cannot be.
    pub(crate) fn check(&self) -> Result<()> {
        for (what, name) in [("cluster id", &self.cluster), ("node name", &self.node)] {
            if !is_name(name) {
                let text = format!("{what} {name:?}: 1 to 64 letters, digits, dots, underscores or hyphens are right");
                return Err(NetError::Invalid(text));
            }
        }
        if self.bind.is_empty() {
            return Err(NetError::Invalid("bind: an address is needed".into()));
        }
        self.limits.check()
    }
}

/// A limit of bytes or counts as a size of this machine.
pub(crate) fn size(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_set_by_name_within_their_ranges() {
        let mut limits = Limits::default();
        limits.check().unwrap();
        limits.set("idle_ms", 500).unwrap();
        assert_eq!(limits.idle(), Duration::from_millis(500));
        assert!(
            limits
                .set("idle_ms", 1)
                .unwrap_err()
                .to_string()
                .contains("not in 200..14000")
        );
        assert!(limits.set("nonsense", 1).is_err());
        limits.set("inbox_bytes", 4 << 20).unwrap();
        assert!(limits.check().unwrap_err().to_string().contains("inbox_bytes"));
    }
}
