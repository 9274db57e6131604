//! Decides who may do what: a pure state machine over a derivation forest.
//!
//! [`Forest::apply`] takes a [`Command`] and the time and returns what came of it, which stores
//! the capability table needs, what the journal must hold, and which of the two comes first
//! (L2). [`Forest::replay`] rebuilds the durable part of the state from journaled records.
//!
//! What it does not do: read a clock, verify signatures, wait for quiescence, write anything
//! anywhere. A capability that this forest calls alive may still be refused by its home vat for
//! a missing right, a range or a meter; one that it calls dead is refused everywhere.
#![forbid(unsafe_code)]

mod durable;
mod forest;
#[cfg(feature = "inspect")]
pub mod inspect;
mod model;
mod rules;
mod view;

pub use forest::{Facts, Forest};
pub use model::{
    Applied, Command, Holder, Life, LinkClaim, NodeRecord, Order, Outcome, Reason, Record,
    RevokeRecord, TableOp, TenantRecord,
};
pub use view::{AncestorView, Counts, GrantView, TreeView};

/// Gifts that may wait for their receivers on this node.
pub const MAX_GIFTS: usize = 4096;
/// Gifts that may wait and are charged to one tenant.
pub const MAX_GIFTS_PER_TENANT: usize = 256;
/// Longest name of a tenant: `TEMPLATE/TENANT` has to be a vat's name.
pub const MAX_TENANT_NAME_BYTES: usize = 20;
/// Tenants of one node.
pub const MAX_TENANTS: usize = 4096;
/// For how long an unredeemed link can be asked to stay revoked: ten years, in milliseconds.
pub const MAX_TOMBSTONE_MS: u64 = 10 * 365 * 24 * 3600 * 1000;
/// Longest free text of an event, in bytes.
pub const MAX_EVENT_BYTES: usize = 256;
