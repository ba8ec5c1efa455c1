//! What goes over the wire, as bytes. Pure: no I/O, no clock, no randomness.
//!
//! - `frame`: a kind, a length, a payload; every length is checked before anything is kept for it.
//! - `hello`: who each side says it is, and whether the other goes on with it.
//! - `reason`: why something is refused, in words that may be shown.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod frame;
pub mod hello;
pub mod reason;

pub use frame::{Decoder, Frame, FrameError, Grammar, HEADER_BYTES, Header, Kind};
pub use hello::{Channel, Hello, HelloError, VERSION};
