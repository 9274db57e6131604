//! The words that the kernel and every vat share: identifiers, rights, caveats, faults.
//!
//! There is no I/O here and no decision beyond the order on rights and caveats (what it means for
//! one authority to be *no more than* another, promise C1). Everything is plain data, so that the
//! pure core, the table, the certificate chains and the services speak of the same things.
#![forbid(unsafe_code)]

mod caveats;
mod fault;
mod ids;
mod rights;

pub use caveats::{Authority, ByteRange, Caveats};
pub use fault::{Fault, Meter};
pub use ids::{
    CapId, Generation, HolderKey, Kind, LinkHash, NodeId, ObjectId, SessionId, SlotRef, TenantId,
    VatName,
};
pub use rights::Rights;

/// The deepest derivation that may be alive: a slot's walk to its root never exceeds this many
/// slots, which bounds both the check and the kernel's work.
pub const MAX_DEPTH: usize = 16;

/// The longest certificate chain, in links, that any decoder accepts.
pub const MAX_CHAIN_LINKS: usize = 8;
