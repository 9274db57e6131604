//! Runs the core on a real machine: journal, capability table, process spawner, RPC.
#![deny(unsafe_code)]

mod control;
pub mod events;
mod filter;
pub mod journal;
mod kernel;
mod outbox;
pub mod pidns;
pub mod plan;
pub mod sandbox;
mod server;
pub mod spawn;
pub mod start;
mod sys;
mod vats;
