//! The network service: who this node is in its cluster, and whom its services let in.
//!
//! What it holds: a directory with two keys, the cluster's bundle, its own SVID, an issuer's certificate if
//! this node has one, and the list of peers; a UDP socket, if the image gives it one; no other service and no
//! tenant's data. What it serves: [`Network`](distos_schemas::network_capnp::network) to the operator, who
//! joins a cluster and names peers; [`Agents`](distos_schemas::network_capnp::agents) to tenants, whose agents get SVIDs
//! and tokens by it; [`Credentials`](distos_schemas::network_capnp::credentials) to the
//! services of this node, which ask for SVIDs in their own names and hear at once whom to let in; and
//! [`Member`](distos_schemas::network_capnp::member) to network services of other nodes, whose SVIDs it signs, whom
//! it tells where this node's services listen, and whose statements it hears.
//! What it refuses: to sign for its own node, to sign for another node anything but what that one may be (its
//! operator may invite whom they like), a bundle that is older or another cluster's; and, where evidence is demanded, to
//! sign for a node whose evidence is not fresh, or if its own node's has failed.
//!
//! It is not on the path of any call: each service that is reached over the network has a socket and an SVID of
//! its own, whose key never leaves it. While this service is away nobody new is let in or refused, and SVIDs
//! run out.
//!
//! Nodes say to one another that they are there, in signed statements that are heard once (N3). Whoever is not heard
//! is suspect, and sooner if nobody reaches it; that is told, and where the scheduler asks, such a voter does not count as
//! heard. It makes nobody a member and puts nobody out.
//!
//! Revocations that somebody has signed who does not reach a capability's home it keeps, tells other nodes, and brings to
//! the vats of this node, which verify and obey them: it could not end anything itself.
//!
//! Evidence it carries and does not look at: what another node's verifier asks goes to this node's attestation service, and
//! what that service says of other nodes decides, where the image demands evidence, whom this one signs for, and puts out
//! who has failed.
//!
//! What it does not do yet: agree with others on the list of peers where the cluster does not vote. What a removed
//! tenant holds is revoked by the operator's command, at the services
//! where it lives: this service has no right to.
#![forbid(unsafe_code)]

mod agents;
mod alive;
mod asked;
mod beats;
mod credentials;
mod evidence;
mod heard;
mod inviting;
mod keys;
mod life;
mod mesh;
mod probes;
mod questions;
mod revocations;
mod server;
mod standing;
mod state;
mod swim;
mod votes;

/// Where it writes down what becomes of nodes by their evidence (`specs/attestation`).
const TRACE: &str = "distos::trace::attestation";

pub use heard::NodeState;
pub use server::{run, start};
