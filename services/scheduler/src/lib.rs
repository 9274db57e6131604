//! Queues jobs and places tasks, never without quota, policy and fresh attestation.
//!
//! A job maps a WASI program over the page ranges of an input region and, if asked, reduces what
//! the map tasks wrote. Jobs live as long as this process and the capability they were submitted
//! with.
//!
//! **Authority it holds.** "read" on the attestation service, the power to start a tenant's
//! executor, and an edge to each executor it started. It passes a job's two gift tickets on to
//! the tenant's executor unopened: the tickets are bound to that executor, so the scheduler never
//! reads or writes a tenant's region.
//!
//! **Authority it refuses.** A tenant sees and runs its own jobs only. No task is placed without
//! a decision of the policy, quota that was charged when its job was admitted, and evidence that
//! is good and fresh at that moment (S1, A2); each placement is reported to the audit log with
//! what it rests on. A job object inherits its queue's capability: `describe` on it speaks of the
//! queue, and revoking the queue ends the job.
//!
//! The decisions ([`cut`], [`policy`], [`setback`], [`state`]) are pure.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cut;
pub mod deploy;
mod job;
mod ledger;
pub mod orders;
pub mod policy;
mod server;
pub mod setback;
pub mod spec;
pub mod state;

use std::process::ExitCode;

use distos_rpc::boot::Boot;

/// Runs the scheduler until its kernel is gone. The image's `workers` says how many tasks of one
/// tenant run at the same time (2 if it does not; as many as its executor has workers), and
/// `node-tasks` how many of all tenants together (twice that).
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, server::Scheduler::start)
}
