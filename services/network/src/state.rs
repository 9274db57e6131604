//! What this node knows about its cluster, and what may be done with it. No I/O; time is an argument.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use distos_abi::{Fault, HolderKey, NodeId, VatName};
use distos_identity::{
    Bundle, Home, Identity, Issuer, Peer, Peers, Serial, SpiffeId, Subject, Trust, Usage, Validity,
    verify_proof,
};
use distos_types::HolderSecret;
use serde::{Deserialize, Serialize};

/// The name of this service in ids: nodes find one another's by it.
pub(crate) const SERVICE: &str = "network";
/// How far clocks in a cluster may differ: an SVID holds from so long before it is signed.
const SKEW_S: u64 = 60;
/// Peers in the list.
const MAX_PEERS: usize = 4096;

/// What is kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// As SPIFFE has it.
    bundle: Option<String>,
    /// This service's SVID, DER.
    chain: Vec<Vec<u8>>,
    /// The certificate by which this node signs for others, DER.
    issuer: Option<Vec<u8>>,
    peers: BTreeMap<String, Option<SocketAddr>>,
}

/// Who somebody is until when.
pub(crate) struct Own {
    pub(crate) id: SpiffeId,
    pub(crate) from_s: u64,
    pub(crate) until_s: u64,
}

/// What this node knows about its cluster.
pub(crate) struct State {
    node: NodeId,
    /// The keys of this service's SVID, and of its issuer.
    keys: (HolderKey, HolderKey),
    bundle: Option<Bundle>,
    own: Option<(Vec<Vec<u8>>, Own)>,
    issuer: Option<Vec<u8>>,
    peers: BTreeMap<Peer, Option<SocketAddr>>,
}

impl State {
    /// In no cluster.
    pub(crate) fn new(node: NodeId, keys: (HolderKey, HolderKey)) -> State {
        State { node, keys, bundle: None, own: None, issuer: None, peers: BTreeMap::new() }
    }

    /// As it was kept. An SVID whose time is over is still this node's name.
    pub(crate) fn restore(
        node: NodeId,
        keys: (HolderKey, HolderKey),
        kept: Kept,
    ) -> Result<State, Fault> {
        let mut state = State::new(node, keys);
        state.bundle = kept.bundle.as_deref().map(Bundle::parse).transpose()?;
        state.issuer = kept.issuer;
        for (name, address) in kept.peers {
            state.peers.insert(name.parse()?, address);
        }
        if !kept.chain.is_empty() {
            state.own = state.read(&kept.chain).map(|own| (kept.chain, own));
        }
        Ok(state)
    }

    pub(crate) fn keep(&self) -> Kept {
        Kept {
            bundle: self.bundle.as_ref().map(Bundle::to_json),
            chain: self.own.as_ref().map(|(chain, _)| chain.clone()).unwrap_or_default(),
            issuer: self.issuer.clone(),
            peers: self.peers.iter().map(|(peer, at)| (peer.to_string(), *at)).collect(),
        }
    }

    /// This service's id, once it is in a cluster.
    pub(crate) fn id(&self) -> Result<SpiffeId, Fault> {
        self.id_of(VatName::new(SERVICE)?)
    }

    /// The id of a service of this node.
    pub(crate) fn id_of(&self, service: VatName) -> Result<SpiffeId, Fault> {
        let cluster = self.bundle()?.cluster().clone();
        Ok(SpiffeId { cluster, subject: Subject::Service { node: self.node, service } })
    }

    pub(crate) fn bundle(&self) -> Result<&Bundle, Fault> {
        self.bundle.as_ref().ok_or_else(|| {
            let why = "this node is in no cluster: join one with `distos network join`";
            Fault::unavailable(60_000, why)
        })
    }

    /// What an SVID of this service's says, at whatever time it holds.
    fn read(&self, chain: &[Vec<u8>]) -> Option<Own> {
        let bundle = self.bundle.as_ref()?;
        let at_s = distos_identity::since(chain.first()?)?;
        let found = Identity::verify(chain, bundle, at_s, Usage::Client).ok()?;
        let own = Own { id: found.id, from_s: found.from_s, until_s: found.until_s };
        (self.id().ok()? == own.id && found.key == self.keys.0).then_some(own)
    }

    /// This service's SVID.
    pub(crate) fn own(&self) -> Option<(&[Vec<u8>], &Own)> {
        self.own.as_ref().map(|(chain, own)| (chain.as_slice(), own))
    }

    pub(crate) fn issues(&self) -> bool {
        self.issuer.is_some()
    }

    /// Joins a cluster, or takes a newer bundle of it. [`Fault::Unauthenticated`] if the SVID is nobody's
    /// or another's; [`Fault::Malformed`] if the bundle is older than the present one or another
    /// cluster's.
    pub(crate) fn join(
        &mut self,
        bundle: Bundle,
        chain: Vec<Vec<u8>>,
        now_s: u64,
    ) -> Result<(), Fault> {
        if let Some(present) = &self.bundle {
            let (old, new) = (present.cluster(), bundle.cluster());
            if old != new {
                return Err(Fault::malformed(format!(
                    "this node is in cluster {old}, and this bundle is of {new}"
                )));
            }
            if bundle.sequence() < present.sequence() {
                return Err(Fault::malformed(format!(
                    "this bundle is number {}, and this node has number {}",
                    bundle.sequence(),
                    present.sequence()
                )));
            }
        }
        let id = SpiffeId {
            cluster: bundle.cluster().clone(),
            subject: Subject::Service { node: self.node, service: VatName::new(SERVICE)? },
        };
        let own = check(&bundle, &chain, &id, self.keys.0, now_s)?;
        self.bundle = Some(bundle);
        self.own = Some((chain, own));
        Ok(())
    }

    /// Takes a newer SVID of this service's.
    pub(crate) fn renew(&mut self, chain: Vec<Vec<u8>>, now_s: u64) -> Result<(), Fault> {
        let own = check(self.bundle()?, &chain, &self.id()?, self.keys.0, now_s)?;
        self.own = Some((chain, own));
        Ok(())
    }

    /// Takes an SVID for another key, which is this service's from now on.
    pub(crate) fn rotate(
        &mut self,
        chain: Vec<Vec<u8>>,
        key: HolderKey,
        now_s: u64,
    ) -> Result<(), Fault> {
        let own = check(self.bundle()?, &chain, &self.id()?, key, now_s)?;
        self.keys.0 = key;
        self.own = Some((chain, own));
        Ok(())
    }

    /// Makes this node an issuer for others, by the root's certificate for the issuer's key.
    pub(crate) fn certify(
        &mut self,
        certificate: Vec<u8>,
        secret: &HolderSecret,
        now_s: u64,
        serial: Serial,
    ) -> Result<(), Fault> {
        let issuer = Issuer::new(certificate.clone(), secret)?;
        if issuer.home() != Home::Node(self.node) {
            let home = issuer.home();
            return Err(Fault::malformed(format!(
                "this issuer's home is {home}, and this node is node/{}",
                self.node
            )));
        }
        // Whether the cluster's root stands behind it shows in what it signs.
        let node = NodeId(self.node.0.map(|byte| !byte));
        let id =
            SpiffeId { cluster: self.bundle()?.cluster().clone(), subject: Subject::Node(node) };
        let validity = Validity { from_s: now_s, until_s: now_s.saturating_add(1) };
        let chain = issuer.issue(&id, self.keys.0, validity, serial)?;
        check(self.bundle()?, &chain, &id, self.keys.0, now_s)?;
        self.issuer = Some(certificate);
        Ok(())
    }

    /// An SVID for a service of the node that asks, which the connection has authenticated.
    pub(crate) fn sign(
        &self,
        secret: &HolderSecret,
        asks: &Request<'_>,
        lifetime_s: u64,
        now_s: u64,
        serial: Serial,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let certificate = self
            .issuer
            .clone()
            .ok_or_else(|| Fault::unavailable(60_000, "this node is no issuer: ask another one"))?;
        if !self.peers.contains_key(&Peer::Node(asks.node)) {
            return Err(Fault::Unauthenticated("this node is no peer any more".into()));
        }
        let service = VatName::new(asks.service)?;
        let subject = Subject::Service { node: asks.node, service };
        verify_proof(&subject, asks.key, asks.proof)?;
        let issuer = Issuer::new(certificate, secret)?;
        let id = SpiffeId { cluster: issuer.cluster().clone(), subject };
        let validity = Validity {
            from_s: now_s.saturating_sub(SKEW_S),
            until_s: now_s.saturating_add(lifetime_s),
        };
        issuer.issue(&id, asks.key, validity, serial)
    }

    /// Whom to let in.
    pub(crate) fn trust(&self) -> Result<Trust, Fault> {
        let mut peers = Peers::default();
        for peer in self.peers.keys() {
            match peer {
                Peer::Node(node) => drop(peers.nodes.insert(*node)),
                Peer::Tenant(tenant) => drop(peers.tenants.insert(tenant.clone())),
            }
        }
        Ok(Trust { bundle: self.bundle()?.clone(), peers })
    }

    pub(crate) fn peers(&self) -> &BTreeMap<Peer, Option<SocketAddr>> {
        &self.peers
    }

    /// Nodes that can be asked for an SVID.
    pub(crate) fn reachable(&self) -> Vec<(NodeId, SocketAddr)> {
        let reachable = self.peers.iter().filter_map(|(peer, at)| match (peer, at) {
            (Peer::Node(node), Some(at)) => Some((*node, *at)),
            _ => None,
        });
        reachable.collect()
    }

    pub(crate) fn add(&mut self, peer: Peer, address: Option<SocketAddr>) -> Result<(), Fault> {
        if peer == Peer::Node(self.node) {
            return Err(Fault::malformed("a node is no peer of its own"));
        }
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            return Err(Fault::malformed(format!("a node has {MAX_PEERS} peers at most")));
        }
        self.peers.insert(peer, address);
        Ok(())
    }

    pub(crate) fn remove(&mut self, peer: &Peer) -> Result<(), Fault> {
        let found = self.peers.remove(peer);
        found.map(drop).ok_or_else(|| Fault::not_found(format!("{peer} is no peer")))
    }
}

/// What a network service asks another node's for.
pub(crate) struct Request<'a> {
    pub(crate) node: NodeId,
    pub(crate) service: &'a str,
    pub(crate) key: HolderKey,
    pub(crate) proof: &'a [u8],
}

/// Whether `chain` says that `id` has `key`, on both sides of a connection.
pub(crate) fn check(
    bundle: &Bundle,
    chain: &[Vec<u8>],
    id: &SpiffeId,
    key: HolderKey,
    now_s: u64,
) -> Result<Own, Fault> {
    Identity::verify(chain, bundle, now_s, Usage::Server)?;
    let found = Identity::verify(chain, bundle, now_s, Usage::Client)?;
    if found.id != *id {
        return Err(Fault::Unauthenticated(format!(
            "this SVID is of {}, and not of {id}",
            found.id
        )));
    }
    if found.key != key {
        return Err(Fault::Unauthenticated(format!(
            "this SVID is for key {}, and {id} has {key}",
            found.key
        )));
    }
    Ok(Own { id: found.id, from_s: found.from_s, until_s: found.until_s })
}
