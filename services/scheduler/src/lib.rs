//! Queues jobs and places tasks, never without quota, policy and fresh attestation.
//!
//! A job maps a WASI program over the page ranges of an input region and, if asked, reduces what
//! the map tasks wrote. Jobs live as long as this process and the capability they were submitted
//! with; those that were deployed ([`deploy`]) by a signed order need no connection meanwhile.
//!
//! **Authority it holds.** "read" on the attestation service, the power to start a tenant's
//! executor, an edge to each executor it started, and a directory with the orders that it carried
//! out lately and the deployments that have not ended. While a deployment runs, it holds the
//! capability to its own queue that the order was signed with, in a session of its own, and nothing
//! else of the tenant's. It passes a job's two gift tickets on to the tenant's executor unopened:
//! the tickets are bound to that executor, so the scheduler never reads or writes a tenant's region.
//!
//! **Authority it refuses.** A tenant sees and runs its own jobs only. No task is placed without
//! a decision of the policy, quota that was charged when its job was admitted, and evidence that
//! is good and fresh at that moment (S1, A2); each placement is reported to the audit log with
//! what it rests on. A job object inherits its queue's capability: `describe` on it speaks of the
//! queue, and revoking the queue ends the job. An order is carried out once, for the vat, the job and
//! the time that its owner has signed (N3): it is on disk before it has an effect. After a restart
//! nothing is run again, as the gifts went with the executor and the scheduler has no way to the
//! regions; whoever deployed a job that is lost so is told.
//!
//! When the node's evidence fails, everything that runs here ends at once, and with its executor all that it was given; when
//! evidence has expired, once what runs has had a bounded time to end by itself (A3).
//!
//! The decisions ([`cut`], [`orders`], [`policy`], [`setback`], [`standing`], [`state`]) are pure.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cut;
pub mod deploy;
mod fencing;
mod job;
mod ledger;
pub mod orders;
pub mod policy;
mod server;
pub mod setback;
pub mod spec;
pub mod standing;
pub mod state;

use std::process::ExitCode;

use distos_rpc::boot::Boot;

/// Runs the scheduler until its kernel is gone. The image's `workers` says how many tasks of one
/// tenant run at the same time (2 if it does not; as many as its executor has workers), and
/// `node-tasks` how many of all tenants together (twice that); `drain_ms`, for how long what runs may go on when evidence has
/// expired (a minute).
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, server::Scheduler::start)
}
