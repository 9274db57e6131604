//! What the findings about a node's devices are worth, by signed policies, and the results that say so.
//!
//! Verifying evidence says what holds ([`Findings`](distos_evidence::findings::Findings)). Whether a device of which
//! that holds may be trusted is for [`Policies`]: Cedar, in files that an operator has signed. [`appraise`] asks them
//! about each device of a node and about the node as a whole, and an [`Ear`] carries the answer, signed, for minutes.
//!
//! What no policy can do, because it is decided here: affirm a device with a check that failed; affirm one without
//! any check; pass over a check that was not made unless it names that check; accept a TPM that is not known to be
//! hardware unless it says so by name. Without policies everything is [`Tier::None`]. The whole is never better than
//! its worst part.
//!
//! Everything here is a function of its arguments: time, keys and bytes are among them. What this room does not do:
//! verify evidence, keep results, and decide what follows from them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod decision;
mod kind;
mod policy;
mod result;
mod tier;

pub use decision::{Appraisal, Appraised, Device, MAX_SUBMODS, appraise};
pub use kind::Kind;
pub use policy::{Edition, MAX_POLICIES, MAX_POLICY_BYTES, POLICY, Policies};
pub use result::{
    Bound, Ear, MAX_EAR_BYTES, MAX_EAR_LIFETIME_S, PROFILE, Refusal, Submod, VerifierId,
};
pub use tier::{Facet, Tier, Vector};
