//! The memory service: regions of 64 KiB pages, each sealed, checked and counted.
//!
//! **Authority it holds:** its own data directory, its kernel socket, its listening socket, and the
//! edges over which others hold *it*. It needs no edge to any other vat. **Authority it refuses:**
//! it opens no other path, keeps no tenant's bytes in plain text on disk (M1), and lets nobody at a
//! region through a name or number: only through a capability to it, or through `open` under a
//! capability to the tenant's own regions. A region opened by name allows no more than the
//! capability it was opened through (C1).
//!
//! **What it does not do:** it does not protect regions against whoever can read the node's disk as
//! root, since the regions' keys stand beside them; nor against an SSD that keeps overwritten
//! sectors: encrypt the device below for that. It does not detect that its whole directory was
//! replaced by an older copy. A write that failed with *unavailable* may still take effect.
//!
//! `state` decides, `log` and `sealed` say how things stand on disk, `store` orders writes and
//! syncs, `jobs` does the work of both, `server` checks capabilities.
#![forbid(unsafe_code)]

mod committer;
mod disk;
pub mod error;
mod jobs;
mod locks;
pub mod log;
mod recent;
mod sealed;
mod server;
mod state;
mod store;

use std::process::ExitCode;

pub use jobs::ReadNow;
pub use sealed::PageHash;
pub use server::start;
pub use state::Facts;
pub use store::{Limits, Store, Summary};

/// Runs the memory service until its kernel is gone. Setting `volatile_bytes` (default 268435456):
/// how many bytes all volatile regions of the node may have together, since they stand in memory.
pub fn run(boot: distos_rpc::boot::Boot) -> ExitCode {
    distos_rpc::run(boot, start)
}
