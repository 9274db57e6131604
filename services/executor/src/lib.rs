//! Runs one tenant's WASI programs, each task in a sandbox of its own.
//!
//! One executor process serves one tenant; an image declares it as a template, and only the
//! scheduler's spawn capability starts it.
//!
//! **Authority it holds.** An edge to the memory service, which by itself reaches no region: the
//! regions of a job arrive as one-shot gifts, and each task gets an attenuation to exactly its
//! bytes (C1). An edge to the secret broker, which by itself reads nothing: the secrets of a job arrive in the same way, and
//! each task has a lease of its own on each. On a node of a cluster, an edge to the network service and a UDP socket that lets nobody in,
//! by which it takes gifts at other nodes in its own name. No data directory, no listening socket. It may map
//! memory as executable, which compiled code needs.
//!
//! A job holds what it was given by a lease: it ends when the home of a region or secret says that it may not use it any
//! more, and five seconds after it last said that it may. A task ends when a lease on a secret of its own does.
//!
//! **Authority it refuses.** A program gets stdin, stdout, stderr, its arguments, and its job's secrets in a private
//! directory (`private.rs`). It has no other
//! file, no socket, no environment, no real clock and no true randomness (see `sandbox.rs`), and it
//! ends at its fuel, time, memory or output limit (S2). Nothing of a task is left for the next
//! one: each has its own store and memory. Compiled programs are kept for the tenant's next jobs;
//! they hold no task's state.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cache;
mod engine;
mod feed;
mod private;
mod program;
mod sandbox;
mod secrets;
mod server;
mod stdio;

use std::process::ExitCode;

pub use engine::{Engine, Program};
pub use private::{DIRECTORY, Secret};
pub use sandbox::{Limits, Outcome, Task};
pub use stdio::{Feed, Stdin, stdin};

use distos_rpc::boot::Boot;

/// Runs an executor until its kernel is gone. The image's `workers` says how many tasks run at
/// the same time (2 if it does not).
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, server::Executor::start)
}
