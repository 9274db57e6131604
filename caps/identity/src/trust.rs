//! Whom one lets in: those whose certificates the cluster stands behind **and** whom its operator has
//! named. A certificate alone opens nothing (N2).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use distos_abi::{Fault, NodeId};

use crate::bundle::Bundle;
use crate::id::{Subject, TenantName};
use crate::profile::Home;
use crate::svid::{Checked, Identity, Refusal, Usage};

/// What the list names, and what limits are counted by: whoever has many ids is one all the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// A node with all its services.
    Node(NodeId),
    /// A tenant with all its agents.
    Tenant(TenantName),
}

impl Peer {
    /// What this one is part of.
    pub fn of(subject: &Subject) -> Peer {
        match subject {
            Subject::Node(node) | Subject::Service { node, .. } => Peer::Node(*node),
            Subject::Agent { tenant, .. } => Peer::Tenant(tenant.clone()),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Node(node) => write!(f, "node/{node}"),
            Peer::Tenant(tenant) => write!(f, "tenant/{tenant}"),
        }
    }
}

impl FromStr for Peer {
    type Err = Fault;

    /// Reads what `Display` writes, and nothing else.
    fn from_str(text: &str) -> Result<Peer, Fault> {
        match text.strip_prefix("tenant/") {
            Some(tenant) => Ok(Peer::Tenant(TenantName::new(tenant)?)),
            None => match text.parse()? {
                Subject::Node(node) => Ok(Peer::Node(node)),
                _ => Err(Fault::malformed("a peer is node/N or tenant/T, with all that it is")),
            },
        }
    }
}

/// Who is let in, by the cluster's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Nodes.
    pub nodes: BTreeSet<NodeId>,
    /// Tenants.
    pub tenants: BTreeSet<TenantName>,
    /// Of nodes that were invited, since when, in seconds since the Unix epoch: whoever was let in before and comes back
    /// comes with new SVIDs.
    pub since_s: BTreeMap<NodeId, u64>,
    /// The attestation epochs of nodes, whether or not they are let in, as far as they are not the first: what was given to
    /// one in an earlier epoch, or opened by it, is over.
    pub epochs: BTreeMap<NodeId, u64>,
}

impl Peers {
    /// Whether the list names what `subject` is part of.
    pub fn name(&self, subject: &Subject) -> bool {
        match Peer::of(subject) {
            Peer::Node(node) => self.nodes.contains(&node),
            Peer::Tenant(tenant) => self.tenants.contains(&tenant),
        }
    }

    /// The attestation epoch of what `subject` is part of.
    pub fn epoch(&self, subject: &Subject) -> u64 {
        match Peer::of(subject) {
            Peer::Node(node) => self.epochs.get(&node).copied().unwrap_or(0),
            Peer::Tenant(_) => 0,
        }
    }

    /// Before when nothing counts that was signed for what `subject` is part of.
    fn since_s(&self, subject: &Subject) -> u64 {
        match Peer::of(subject) {
            Peer::Node(node) => self.since_s.get(&node).copied().unwrap_or(0),
            Peer::Tenant(_) => 0,
        }
    }
}

/// How the keys of a connection are agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyExchange {
    /// X25519 with ML-KEM-768, which holds against quantum computers too; X25519 alone with a peer
    /// that has nothing else.
    #[default]
    HybridPreferred,
    /// X25519 with ML-KEM-768, or no connection.
    HybridOnly,
}

/// What decides whom one lets in.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The cluster's roots.
    pub bundle: Bundle,
    /// The cluster's list.
    pub peers: Peers,
    /// The node that this is, if it is one: its own issuer may vouch for its peers.
    pub own: Option<NodeId>,
    /// How they have to agree on keys.
    pub exchange: KeyExchange,
}

impl Trust {
    /// Who presents these certificates, as [`Identity::verify`] has it, if it is let in.
    /// [`Refusal::Stranger`] if it is somebody, and nobody's peer; [`Refusal::Former`] if its node was invited since
    /// this was signed; [`Refusal::Vouched`] if the issuer of
    /// somebody who connects runs on a node that is not in the list: who was taken off it does not come
    /// back under a name that its own issuer has signed.
    pub fn admit<T: AsRef<[u8]>>(
        &self,
        chain: &[T],
        now_s: u64,
        usage: Usage,
    ) -> Result<Identity, Refusal> {
        self.admit_once(chain, now_s, usage, &Checked::new(NonZeroUsize::MIN))
    }

    /// The same for whoever sees the same certificates again and again, as [`Identity::verify_once`] has it.
    pub fn admit_once<T: AsRef<[u8]>>(
        &self,
        chain: &[T],
        now_s: u64,
        usage: Usage,
        checked: &Checked,
    ) -> Result<Identity, Refusal> {
        let found = Identity::verify_once(chain, &self.bundle, now_s, usage, checked)?;
        if !self.peers.name(&found.id.subject) {
            return Err(Refusal::Stranger);
        }
        let since_s = self.peers.since_s(&found.id.subject);
        if found.from_s < since_s {
            return Err(Refusal::Former { since_s });
        }
        match (usage, found.home) {
            (Usage::Client, Home::Node(home))
                if self.own != Some(home) && !self.peers.nodes.contains(&home) =>
            {
                Err(Refusal::Vouched(home))
            }
            _ => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_whole_node_or_a_whole_tenant() {
        let node = Peer::Node(NodeId([0xab; 32]));
        assert_eq!(node.to_string().parse::<Peer>().unwrap(), node);
        let red = Peer::Tenant(TenantName::new("red").unwrap());
        assert_eq!(red.to_string().parse::<Peer>().unwrap(), red);
        for text in ["", "red", "tenant/", "node/1", &format!("{node}/service/memory")] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }
}
