//! The secret broker.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod barrier;
pub mod record;
pub mod shamir;
pub mod state;
pub mod store;
