//! What is counted.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Numbers that only grow.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: Counter,)+ }

        impl Counters {
            /// All of them, by name.
            #[must_use]
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)+]
            }
        }
    };
}

counters! {
    /// Messages written to a connection.
    messages_sent,
    /// Messages dropped because the peer's queue was full or there was no connection.
    messages_dropped,
    /// Messages handed to the application.
    messages_received,
    /// Requests begun.
    requests_sent,
    /// Requests that failed, for whatever reason.
    requests_failed,
    /// Requests of peers handed to the application.
    requests_received,
    /// Streams opened.
    streams_opened,
    /// Streams of peers handed to the application.
    streams_taken,
    /// Bytes written to streams.
    stream_bytes_sent,
    /// Bytes of streams handed to the application.
    stream_bytes_received,
    /// Dials that led to a connection.
    dials,
    /// Dials that failed.
    dials_failed,
    /// Connections of peers that were taken.
    accepted,
    /// Refused: not on the allowlist.
    refused_stranger,
    /// Refused: of another cluster than the one that is expected of the peer.
    refused_cluster,
    /// Refused: of an unknown version.
    refused_version,
    /// Refused: bytes that are no frame, or a frame out of its place.
    refused_malformed,
    /// Refused: a stream that ended inside a frame.
    refused_truncated,
    /// Refused: a length over its limit.
    refused_too_large,
    /// Refused: too slow.
    refused_timeout,
    /// Refused: too many at once.
    refused_busy,
    /// Refused: a later connection of the same peer counts.
    refused_superseded,
    /// Refused: no handshake of QUIC and TLS with a key of ours.
    refused_tls,
    /// News left out because the application did not receive them.
    notices_dropped,
}

/// One number.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
