//! What the transport decides by. Pure: no I/O, no clock, no randomness; both come as arguments.
//!
//! - `backoff`: when to dial again.
//! - `outbox`: what waits to be sent to a peer, bounded.
//! - `admission`: which handshakes may be under way, and which connection of a peer counts.
//! - `limiter`: how often something is told.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod admission;
pub mod backoff;
pub mod limiter;
pub mod outbox;
