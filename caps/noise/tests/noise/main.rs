//! Whoever passes a session on reads nothing and changes nothing, and nobody is a vat or a holder that it is not.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

mod card;
mod handshake;
mod relay;
mod stream;
mod world;
