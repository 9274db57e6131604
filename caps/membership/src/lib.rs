//! Who belongs to a cluster, where its operators decide that together.
//!
//! The cluster's root signs a numbered [`Configuration`]. It may name **voters**, nodes of the cluster with a key
//! each, and how many of them it takes to let a node in and to put it out. A voter says what it thinks of a node by a
//! signed [`Vote`], and a later one replaces an earlier. [`Members`] is what one node has heard of both, and of
//! [`Revocations`] that are on their way to capabilities' homes.
//!
//! All of it is signed by whoever decides it, and of each decision only the latest counts. So two nodes that have
//! heard the same agree, in whatever order and from whomever they have heard it, and whoever passes it on can
//! withhold something and change nothing. Nobody has to agree on an order. [`ClusterState`] is whoever keeps it for
//! others: a node, or a store that nodes share.
//!
//! No I/O, no clock, no randomness: bytes and time are arguments.
#![forbid(unsafe_code)]

mod configuration;
mod members;
mod revocations;
mod shared;
mod vote;

pub use configuration::{
    Configuration, MAX_CONFIGURATION_BYTES, MAX_VOTERS, Signed, Voter, Voting,
};
pub use members::{Members, Place, Standing, Summary, digest};
pub use revocations::{MAX_HOMES, MAX_OF_HOME, Mark, Revocations};
pub use shared::{
    ClusterState, Found, Known, Left, Offer, Other, PAGE, REVOCATIONS_PAGE, all_revocations,
    all_votes, hear, leave,
};
pub use vote::{Cast, MAX_VOTE_BYTES, Stance, Vote};
