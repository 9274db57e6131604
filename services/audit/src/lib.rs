//! The audit service: pulls the kernel's outbox and keeps a signed, hash-chained log (L1).
//!
//! What it holds: the outbox (the image's power `outbox`), its own directory, and a signing key
//! that it made itself. What it serves: the log, to be read and verified. What it refuses: any
//! change to what is in the log; no method and no power can take an entry out. It never asks who a
//! caller is: a capability to the log with the right to read is all that reading needs.
//!
//! A record is acknowledged to the kernel only after it and a signed checkpoint over it are
//! durable. A full disk therefore stops the acknowledgements, fills the outbox and ends in the
//! kernel refusing increases of authority; nothing is lost. The service does not decide what is
//! recorded, and it does not notice by itself that its whole directory was put back to an older
//! state: keep a [`Checkpoint`] elsewhere and give it to [`verify_dir`].
#![forbid(unsafe_code)]

mod format;
mod intake;
mod keeper;
mod record;
mod server;
mod store;
mod walk;

/// Whoever switches this target on sees each step of the log, one event a line: `specs/audit` says
/// what they mean and checks them.
const TRACE: &str = "distos::trace::audit";

pub use format::{ChainHash, Checkpoint, entry_hash};
pub use server::run;
pub use store::{Incoming, OpenError, Store, Verification, verify_dir};
pub use walk::Damage;
