//! Whom one lets in: those whose certificates the cluster stands behind **and** whom its operator has
//! named. A certificate alone opens nothing (N2).

use std::collections::BTreeSet;

use distos_abi::NodeId;

use crate::bundle::Bundle;
use crate::id::{Subject, TenantName};
use crate::svid::{Identity, Refusal, Usage};

/// Who is let in, by the cluster's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Nodes, with all their services.
    pub nodes: BTreeSet<NodeId>,
    /// Tenants, with all their agents.
    pub tenants: BTreeSet<TenantName>,
}

impl Peers {
    /// Whether the list names `subject`, or what it is part of.
    pub fn name(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Node(node) | Subject::Service { node, .. } => self.nodes.contains(node),
            Subject::Agent { tenant, .. } => self.tenants.contains(tenant),
        }
    }
}

/// What decides whom one lets in.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The cluster's roots.
    pub bundle: Bundle,
    /// The cluster's list.
    pub peers: Peers,
}

impl Trust {
    /// Who presents these certificates, as [`Identity::verify`] has it, if it is let in.
    /// [`Refusal::Stranger`] if it is somebody, and nobody's peer.
    pub fn admit<T: AsRef<[u8]>>(
        &self,
        chain: &[T],
        now_s: u64,
        usage: Usage,
    ) -> Result<Identity, Refusal> {
        let found = Identity::verify(chain, &self.bundle, now_s, usage)?;
        if self.peers.name(&found.id.subject) {
            return Ok(found);
        }
        Err(Refusal::Stranger)
    }
}
