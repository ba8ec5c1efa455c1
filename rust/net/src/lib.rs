//! Transport between nodes: QUIC (iroh) between keys that know each other.
//!
//! A node is its key. It speaks only to the keys on its allowlist, both ways, at the addresses that it is told; relays,
//! discovery and port mapping are off. All of them are of its own cluster, but those that are told to be foreign: these
//! are of the cluster that is told, may ask and open streams, and are dialled when something is asked of them. Each kind of traffic has connections of its own, so that none waits for another:
//! messages (small, ordered, dropped rather than delayed), requests (bytes for bytes, with a deadline) and duplex streams
//! (bytes both ways, as fast as each side takes them). A node dials for what it sends and accepts for what it receives.
//!
//! Calls never block and never call back: what comes is an [`Event`], taken from a queue whose descriptor an event loop
//! watches.
//!
//! - [`wire`]: frames and greetings as bytes (pure).
//! - [`rules`]: backoff, queues, admission (pure).
//! - `identity`: the key file. `config`: settings and limits. `counters`, `events`: what is told.
//! - `endpoint`: what an application calls. `shared`: what its tasks share. `peer`: what is known of each peer.
//! - `dial`: own connections. `accept`: those of peers.
//! - `others`: connections of protocols that are not this crate's, with the same peers.
//! - `messages`, `requests`, `streams`: the traffic. `framed`: frames over QUIC. `refusal`: why somebody is refused.
#![forbid(unsafe_code)]

mod accept;
mod config;
mod counters;
mod dial;
mod endpoint;
mod error;
mod events;
mod framed;
mod identity;
mod messages;
mod others;
mod peer;
mod refusal;
mod requests;
pub mod rules;
mod shared;
mod streams;
pub mod wire;

pub use config::{Config, Limits};
pub use counters::{Counter, Counters};
pub use endpoint::{Endpoint, Foreign, PeerStatus};
pub use error::{NetError, Result};
pub use events::{Event, EventQueue, What};
pub use identity::generate as generate_key;
pub use others::{Caller, Dialler, OtherProtocol};

/// Protocol of every connection, in the TLS handshake. The version is told in the hello, so that it can be named.
pub const ALPN: &[u8] = b"jobs-net";

/// Cases of a property test: more in the long campaigns.
#[cfg(test)]
pub(crate) fn test_cases() -> u32 {
    let scale = std::env::var("JOBS_TEST_SCALE").ok().and_then(|text| text.parse().ok());
    256u32.saturating_mul(scale.unwrap_or(1))
}
