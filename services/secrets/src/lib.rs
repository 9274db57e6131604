//! The secret broker: keeps tenants' secrets encrypted, and gives them out to holders of capabilities, sealed to the
//! reader's key, under leases.
//!
//! **Authority it holds:** its own data directory, its kernel socket, its listening socket, and, if the image gives it,
//! an edge to the attestation service by which it reads that one's verdict and has the TPM keep a key. Of the root key, under
//! which all that it keeps is encrypted, it holds nothing in the clear when it starts: the TPM opens it, if this node
//! booted what it had booted when that was agreed, or operators give shares of it ([`shamir`]); and it has it in memory
//! until it is sealed or ends. **Authority it refuses:** it gives no secret to anybody for a name or a number, only by a capability to it
//! or to its tenant's secrets; none in the clear, not even to whoever is connected, but sealed to a key that the holder has
//! signed ([`distos_delivery`]); and none at all while it is sealed, or while something that was ended could not be
//! recorded (L2).
//!
//! **What it does not do:** it does not tell an update that was wanted from one that was not: after either, the TPM opens
//! nothing, and operators have to be there. It does not
//! protect what a reader does with a secret that it has got, nor a fixed secret's value after its lease has ended: whoever has
//! read it has it, and only a rotation makes that worthless. It does not notice that its whole directory was replaced by an
//! older copy. Its log has the names of secrets and the keys of their readers in the clear, and what was dropped, encrypted,
//! until the log is rewritten. Memory: the root key and the keys of parcels are in locked pages; a value, or a
//! share of the root key, is in ordinary memory while it is used, and erased then: what libraries and messages free, by the
//! allocator that the node's binary has (`distos_erasing`). The log's frames are chained by a hash that has no key: whoever can write the
//! directory can say anything of leases, epochs and times, and which version is the newest; not another value, nor another
//! name or other terms for one.
//!
//! [`state`] decides, [`record`] says how changes are written, [`store`] writes them, [`barrier`] encrypts, `material` makes
//! what readings of dynamic secrets give, `server` checks capabilities.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod barrier;
mod material;
pub mod record;
mod server;
pub mod shamir;
pub mod state;
pub mod store;

pub use server::{run, start};
