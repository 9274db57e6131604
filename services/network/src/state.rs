//! What this node knows about its cluster, and what may be done with it. No I/O; time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use distos_abi::{Fault, HolderKey, NodeId, ObjectId, VatName};
use distos_identity::{
    Bundle, Heard, Identity, MAX_SVID_LIFETIME_S, Peer, Peers, SpiffeId, Statement, Subject,
    TenantName, Trust, Usage,
};
use distos_membership::{Cast, Mark, Members, Signed, Stance};
use distos_types::{HolderSecret, Revocation};
use serde::{Deserialize, Serialize};

use crate::life::Bound;
use crate::standing::{Change, Judgement, Past, Standing, Standings};

mod issuing;

pub(crate) use issuing::{Request, validity};

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
    /// Nodes that were invited and have not come yet, and until when they may.
    #[serde(default)]
    invited: BTreeMap<String, u64>,
    /// Nodes that its operator has put out, whoever votes for them.
    #[serde(default)]
    banned: BTreeSet<String>,
    /// The cluster's configuration, as its root has signed it. Votes are kept elsewhere.
    #[serde(default)]
    configuration: Option<String>,
    /// Tenants whose agents get SVIDs here.
    #[serde(default)]
    tenants: Vec<String>,
    /// Nodes that were put out, and when, in seconds since the Unix epoch.
    #[serde(default)]
    put_out: BTreeMap<String, u64>,
    /// Peers that were invited, and since when, likewise.
    #[serde(default)]
    since: BTreeMap<String, u64>,
    /// From when SVIDs of this node's services are to be.
    #[serde(default)]
    fresh_s: u64,
    /// What was said of nodes' evidence.
    #[serde(default)]
    judged: BTreeMap<String, Past>,
}

/// Who somebody is until when.
#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) id: SpiffeId,
    pub(crate) from_s: u64,
    pub(crate) until_s: u64,
}

/// What this node knows about its cluster.
#[derive(Clone)]
pub(crate) struct State {
    node: NodeId,
    /// The keys of this service's SVID, and of its issuer.
    keys: (HolderKey, HolderKey),
    bundle: Option<Bundle>,
    own: Option<(Vec<Vec<u8>>, Own)>,
    issuer: Option<Vec<u8>>,
    peers: BTreeMap<Peer, Option<SocketAddr>>,
    /// Of these peers, those that were invited and have not come yet, and until when they may.
    invited: BTreeMap<Peer, u64>,
    /// Where the cluster votes on its nodes: those that this node lets in in no case.
    banned: BTreeSet<NodeId>,
    members: Members,
    /// Those whose agents get SVIDs here, each by the number of the object that stands for them.
    tenants: BTreeMap<ObjectId, TenantName>,
    /// Nodes that were let in and are not, or were not for a time: since when, in seconds since the Unix epoch. Nothing
    /// that is signed for them later says that it holds from before.
    put_out: BTreeMap<NodeId, u64>,
    /// Of the peers, those that were invited: since when, likewise. What was signed for them before is of no use to them
    /// any more: they come back with what they are given then.
    since: BTreeMap<Peer, u64>,
    /// From when SVIDs of this node's services are to be: they are asked for anew when it joins once more.
    fresh_s: u64,
    /// What this node's verifier says of nodes.
    standings: Standings,
}

/// What follows from judgements.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// Nodes that are put out for them, and why.
    pub(crate) out: Vec<(NodeId, String)>,
    /// What this node says against those, where the cluster votes.
    pub(crate) casts: Vec<Cast>,
    /// Whether something is to be kept that was not.
    pub(crate) is_new: bool,
    /// Whose evidence has turned bad where it is demanded, also if it is good again by now: what they hold is of an epoch before
    /// this one, and has ended.
    pub(crate) turned: Vec<(NodeId, u64)>,
    /// What is wrong with one of them, or could not be done. The others count all the same.
    pub(crate) wrong: Option<Fault>,
}

impl State {
    /// In no cluster.
    pub(crate) fn new(node: NodeId, keys: (HolderKey, HolderKey)) -> State {
        State {
            node,
            keys,
            bundle: None,
            own: None,
            issuer: None,
            peers: BTreeMap::new(),
            invited: BTreeMap::new(),
            banned: BTreeSet::new(),
            members: Members::default(),
            tenants: BTreeMap::new(),
            put_out: BTreeMap::new(),
            since: BTreeMap::new(),
            fresh_s: 0,
            standings: Standings::default(),
        }
    }

    /// Whether nodes have to show evidence.
    pub(crate) fn requires_evidence(&self) -> bool {
        self.standings.is_required()
    }

    /// Demands it from now on.
    pub(crate) fn require_evidence(&mut self) {
        self.standings.require();
    }

    /// As it was kept, with the votes and revocations that were. An SVID whose time is over is still this node's name.
    pub(crate) fn restore(
        node: NodeId,
        keys: (HolderKey, HolderKey),
        kept: Kept,
        votes: Votes<'_>,
        revocations: Vec<Revocation>,
    ) -> Result<State, Fault> {
        let mut state = State::new(node, keys);
        state.bundle = kept.bundle.as_deref().map(Bundle::parse).transpose()?;
        state.issuer = kept.issuer;
        for (name, address) in kept.peers {
            state.peers.insert(name.parse()?, address);
        }
        for (name, until_s) in kept.invited {
            state.invited.insert(name.parse()?, until_s);
        }
        for name in kept.banned {
            match name.parse()? {
                Peer::Node(node) => drop(state.banned.insert(node)),
                Peer::Tenant(_) => return Err(Fault::malformed("a tenant is not voted on")),
            }
        }
        if let Some(configuration) = kept.configuration.as_deref().map(Signed::parse).transpose()? {
            let voting = configuration.configuration().voting.as_ref();
            let voters = voting.map(|voting| voting.voters.values().map(|voter| voter.key));
            let casts: Result<Vec<_>, Fault> = voters.into_iter().flatten().map(votes).collect();
            let casts = casts?.into_iter().flatten();
            state.members = Members::restore(Some(configuration), casts);
        }
        for (name, at_s) in kept.put_out {
            match name.parse()? {
                Peer::Node(node) => drop(state.put_out.insert(node, at_s)),
                Peer::Tenant(_) => return Err(Fault::malformed("tenants come back as they were")),
            }
        }
        for (name, at_s) in kept.since {
            state.since.insert(name.parse()?, at_s);
        }
        state.fresh_s = kept.fresh_s;
        for (name, past) in kept.judged {
            match name.parse()? {
                Peer::Node(node) => state.standings.restore(node, past),
                Peer::Tenant(_) => return Err(Fault::malformed("a tenant has no evidence")),
            }
        }
        for name in kept.tenants {
            state.serve_agents_of(&TenantName::new(&name)?)?;
        }
        for revocation in revocations {
            state.members.revocations_mut().keep(revocation);
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
            invited: self.invited.iter().map(|(peer, at)| (peer.to_string(), *at)).collect(),
            banned: self.banned.iter().map(|node| Peer::Node(*node).to_string()).collect(),
            configuration: self.members.signed().map(Signed::to_json),
            tenants: self.tenants.values().map(|tenant| tenant.as_str().to_owned()).collect(),
            put_out: self
                .put_out
                .iter()
                .map(|(node, at_s)| (Peer::Node(*node).to_string(), *at_s))
                .collect(),
            since: self.since.iter().map(|(peer, at_s)| (peer.to_string(), *at_s)).collect(),
            fresh_s: self.fresh_s,
            judged: self
                .standings
                .keep()
                .map(|(node, past)| (Peer::Node(node).to_string(), past))
                .collect(),
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

    /// Joins a cluster, or takes a newer bundle of it; with the SVID that it has if `chain` is empty.
    /// [`Fault::Unauthenticated`] if the SVID is nobody's or another's; [`Fault::Malformed`] if the bundle is older than the present one or another
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
        let (chain, is_new) = match &self.own {
            Some((own, _)) if chain.is_empty() => (own.clone(), false),
            _ => (chain, true),
        };
        let own = check(&bundle, &chain, &id, self.keys.0, now_s)?;
        if is_new {
            // Whoever lets it in once more takes nothing that is older.
            self.fresh_s = own.from_s;
        }
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

    /// What this node's vote for a peer says.
    pub(crate) fn for_it(&self, node: NodeId, address: Option<SocketAddr>) -> Stance {
        match self.since.get(&Peer::Node(node)) {
            Some(since_s) => Stance::Invite { since_s: *since_s, address },
            None => Stance::Admit(address),
        }
    }

    /// Notes that a node has come; until when it was invited, if it was.
    pub(crate) fn came(&mut self, node: NodeId) -> Option<u64> {
        self.invited.remove(&Peer::Node(node))
    }

    /// Takes back that a node has come.
    pub(crate) fn not_come(&mut self, node: NodeId, until_s: u64) {
        self.invited.insert(Peer::Node(node), until_s);
    }

    /// Takes off the list whoever was invited and has not come by now.
    pub(crate) fn expire(&mut self, now_s: u64) -> Vec<Peer> {
        let late = self.invited.iter().filter(|(_, until_s)| **until_s <= now_s);
        let late: Vec<Peer> = late.map(|(peer, _)| peer.clone()).collect();
        for peer in &late {
            self.invited.remove(peer);
            self.peers.remove(peer);
            self.since.remove(peer);
        }
        late
    }

    /// How many vote on the cluster's nodes, and how many of them this node hears: itself, and those of whom `heard`
    /// says so.
    pub(crate) fn contact(&self, heard: impl Fn(NodeId) -> bool) -> (u32, u32) {
        let Some(voting) = self.members.voting() else { return (0, 0) };
        // Nobody hears whoever was put out, or is to.
        let counts = |node: &&NodeId| {
            self.members.standing(**node).is_member && !self.banned.contains(*node)
        };
        let voters: Vec<NodeId> = voting.voters.keys().filter(counts).copied().collect();
        let heard = voters.iter().filter(|node| **node == self.node || heard(**node)).count();
        // If all are put out there is still a cluster, and nobody in it to be heard.
        (voters.len().max(1) as u32, heard as u32)
    }

    /// Whether this node's operator has put it out.
    pub(crate) fn is_banned(&self, node: NodeId) -> bool {
        self.banned.contains(&node)
    }

    /// Takes judgements of nodes. What follows from them holds at once: where evidence is demanded, nodes that have
    /// failed are put out, as this node's operator would.
    pub(crate) fn judge(
        &mut self,
        secret: &HolderSecret,
        judgements: Vec<Judgement>,
        now_us: u64,
    ) -> Judged {
        let (mut judged, now_s) = (Judged::default(), now_us / 1_000_000);
        for judgement in judgements {
            let (node, own) = (judgement.node, judgement.node == self.node);
            let is_in = self.place(node, now_s).is_some();
            // Whoever judges may not know yet that it is gone; and there is no room for whatever may be called a node.
            if !own && !is_in && !self.standings.knows(node) {
                continue;
            }
            let has_failed = judgement.standing == Standing::Failed;
            let epoch = self.standings.epoch(node);
            match self.standings.judge(judgement, now_s) {
                Ok(is_new) => judged.is_new |= is_new,
                Err(fault) => {
                    judged.wrong = Some(fault);
                    continue;
                }
            }
            let has_turned = self.standings.epoch(node) > epoch;
            if has_turned && self.standings.is_required() {
                judged.turned.push((node, self.standings.epoch(node)));
            }
            if own || !is_in || !has_failed || !self.standings.is_required() {
                continue;
            }
            // It is there: it is let in.
            let _ = self.remove(&Peer::Node(node));
            judged.is_new = true;
            match self.vote(secret, node, Stance::Remove, now_us) {
                Ok(cast) => judged.casts.extend(cast),
                Err(fault) => judged.wrong = Some(fault),
            }
            judged.out.push((node, self.standings.reason(node)));
        }
        judged
    }

    /// The attestation epoch of a node, as far as it is known.
    pub(crate) fn epoch(&self, node: NodeId) -> u64 {
        self.standings.epoch(node)
    }

    /// Whether a node's evidence is good, and bound to another key than this.
    pub(crate) fn is_bound_to_another(&self, node: NodeId, by: HolderKey, now_s: u64) -> bool {
        self.standings.is_bound_to_another(node, by, now_s)
    }

    /// What was told of nodes' epochs before something was taken back holds.
    pub(crate) fn raise_epochs(&mut self, told: &State) {
        self.standings.raise(&told.standings);
    }

    /// Whether a node is to be asked again at once, because whoever has come for it is another than answered.
    pub(crate) fn asks_again(&mut self, node: NodeId, by: Bound, now_s: u64) -> bool {
        self.standings.asks_again(node, by, now_s)
    }

    /// What this node's verifier says of a node, if anything.
    pub(crate) fn standing(&self, node: NodeId, now_s: u64) -> Option<Standing> {
        self.standings.of(node, now_s)
    }

    /// Whose standing has changed since it was asked last.
    pub(crate) fn review_standings(&mut self, now_s: u64) -> Vec<Change> {
        let let_in = self.nodes(now_s).into_keys().collect();
        self.standings.review(self.node, &let_in, now_s)
    }

    /// Whether somebody was invited and has not come in time.
    pub(crate) fn has_late(&self, now_s: u64) -> bool {
        self.invited.values().any(|until_s| *until_s <= now_s)
    }

    /// Until when a peer may come that was invited and has not.
    pub(crate) fn invited_s(&self, peer: &Peer) -> Option<u64> {
        self.invited.get(peer).copied()
    }

    /// Whom to let in.
    pub(crate) fn trust(&self, now_s: u64) -> Result<Trust, Fault> {
        let tenants = self.peers.keys().filter_map(|peer| match peer {
            Peer::Tenant(tenant) => Some(tenant.clone()),
            Peer::Node(_) => None,
        });
        let nodes: BTreeSet<NodeId> = self.nodes(now_s).into_keys().collect();
        let since_s = nodes.iter().map(|node| (*node, self.since_s(*node)));
        let since_s = since_s.filter(|(_, since_s)| *since_s > 0).collect();
        let epochs = self.standings.epochs().collect();
        let peers = Peers { nodes, tenants: tenants.collect(), since_s, epochs };
        let (bundle, exchange) = (self.bundle()?.clone(), self.members.key_exchange());
        Ok(Trust { bundle, peers, own: Some(self.node), exchange })
    }

    /// The nodes that are let in, and where their network services listen: those of this node's own list or,
    /// where the cluster votes on its nodes, those that were voted in and that its operator has not put out.
    pub(crate) fn nodes(&self, now_s: u64) -> BTreeMap<NodeId, Option<SocketAddr>> {
        let listed = self.peers.keys().filter_map(|peer| match peer {
            Peer::Node(node) => Some(*node),
            Peer::Tenant(_) => None,
        });
        let known: BTreeSet<NodeId> = listed.chain(self.members.nodes()).collect();
        known.into_iter().filter_map(|node| Some((node, self.place(node, now_s)?))).collect()
    }

    /// Notes those who were let in `before` and are not any more; whether there are any. What they were given is of an epoch that
    /// is over. Where voters are against one, it
    /// is since the last of them has said so, which is the same at all nodes.
    pub(crate) fn note_put_out(&mut self, before: &BTreeSet<NodeId>, now_s: u64) -> bool {
        let now = self.nodes(now_s);
        let mut any = false;
        for node in before.iter().filter(|node| !now.contains_key(*node)) {
            let against = self.members.standing(*node).remove.into_iter();
            let said = against.filter_map(|voter| self.members.said(voter, *node));
            let last_s = said.map(|cast| cast.vote().number / 1_000_000).max();
            let at_s = last_s.unwrap_or(now_s).min(now_s);
            let known = self.put_out.entry(*node).or_insert(at_s);
            *known = at_s.max(*known);
            self.standings.put_out(*node);
            any = true;
        }
        // What was signed before that is over anyway.
        self.put_out.retain(|_, at_s| now_s <= at_s.saturating_add(MAX_SVID_LIFETIME_S + SKEW_S));
        any
    }

    /// Before when nothing counts that was signed for a node: as this node's operator has it or, where the cluster votes,
    /// as the voters have.
    fn since_s(&self, node: NodeId) -> u64 {
        let own = self.since.get(&Peer::Node(node)).copied().unwrap_or(0);
        own.max(self.members.standing(node).since_s)
    }

    /// From when SVIDs of this node's services are to be.
    pub(crate) fn fresh_s(&self) -> u64 {
        self.fresh_s
    }

    /// Where a node's network service listens, if that is known; `None` if the node is not let in.
    pub(crate) fn place(&self, node: NodeId, now_s: u64) -> Option<Option<SocketAddr>> {
        let peer = Peer::Node(node);
        if self.invited.get(&peer).is_some_and(|until_s| *until_s <= now_s) {
            return None;
        }
        let listed = self.peers.get(&peer).copied();
        if self.members.voting().is_none() {
            return listed;
        }
        if node == self.node || self.banned.contains(&node) {
            return None;
        }
        let standing = self.members.standing(node);
        standing.is_member.then(|| listed.flatten().or(standing.address))
    }

    /// What was heard of the cluster's configuration and of its voters.
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    /// Takes votes that were heard, from whomever; how many of them are new. Whatever is wrong with one says nothing
    /// about the others.
    pub(crate) fn take(&mut self, casts: impl IntoIterator<Item = Cast>) -> (usize, Option<Fault>) {
        let (mut new, mut wrong) = (0, None);
        for cast in casts {
            match self.members.take(cast) {
                Ok(is_new) => new += usize::from(is_new),
                Err(fault) => wrong = Some(fault),
            }
        }
        (new, wrong)
    }

    /// Takes revocations, from wherever they come; how many are new, and what is wrong with one of the others. One for a
    /// home that is not let in is passed over: others may let it in, and there is no room here for whatever somebody may
    /// call a node.
    pub(crate) fn take_revocations(
        &mut self,
        revocations: impl IntoIterator<Item = Revocation>,
        now_ms: u64,
    ) -> (usize, Option<Fault>) {
        let (mut new, mut wrong) = (0, None);
        self.show_revocations(now_ms / 1000);
        for revocation in revocations {
            match self.members.revocations_mut().take(revocation, now_ms) {
                Ok(is_new) => new += usize::from(is_new),
                Err(fault) => wrong = Some(fault),
            }
        }
        (new, wrong)
    }

    /// The same of one that is brought here, and to be carried on; whether it is new. It is to be from now: whatever is
    /// earlier than others stays when there is too much.
    pub(crate) fn bring(&mut self, revocation: Revocation, now_ms: u64) -> Result<bool, Fault> {
        let (home, mark) = (revocation.home(), Mark::of(&revocation));
        if home != self.node && self.place(home, now_ms / 1000).is_none() {
            return Err(Fault::not_found(format!("this node does not let node/{home} in")));
        }
        // Said already, by the same signer.
        if self.members.revocations().get(&mark).is_some() {
            return revocation.verify(now_ms).map(|()| false);
        }
        if revocation.is_old(now_ms) {
            let why = "this revocation was made more than five minutes ago: sign it anew";
            return Err(Fault::Unauthenticated(why.into()));
        }
        if self.members.revocations().is_full(home) {
            let why = "too much is kept for that home already: revoke it there";
            return Err(Fault::unavailable(60_000, why));
        }
        self.show_revocations(now_ms / 1000);
        match self.members.revocations_mut().take(revocation, now_ms)? {
            true => Ok(true),
            // Here one whose time is over says so.
            false => Err(Fault::Expired { at_ms: now_ms }),
        }
    }

    /// Tells others of revocations for homes that are let in now, and this one; whether those are others than before.
    pub(crate) fn show_revocations(&mut self, now_s: u64) -> bool {
        let homes = self.nodes(now_s).into_keys().chain([self.node]).collect();
        self.members.revocations_mut().show(homes)
    }

    /// Forgets revocations whose time is over; whether there were any.
    pub(crate) fn expire_revocations(&mut self, now_ms: u64) -> bool {
        self.members.revocations_mut().expire(now_ms)
    }

    /// Goes by this configuration; whether it is another than before. A voter says at once what its operator has
    /// said so far: it is for those in the list, and against those who were put out.
    pub(crate) fn configure(
        &mut self,
        signed: Signed,
        secret: &HolderSecret,
        now_us: u64,
    ) -> Result<bool, Fault> {
        let bundle = self.bundle()?.clone();
        let is_new = self.members.configure(signed, &bundle, now_us / 1_000_000)?;
        let listed = self.peers.iter().filter_map(|(peer, address)| match peer {
            Peer::Node(node) => Some((*node, self.for_it(*node, *address))),
            Peer::Tenant(_) => None,
        });
        let out = self.banned.iter().map(|node| (*node, Stance::Remove));
        let said: Vec<(NodeId, Stance)> = out.chain(listed).collect();
        for (node, stance) in said {
            if is_new && self.members.stance(self.node, node) == Stance::None {
                // Of more nodes than a voter may speak of, some stay unsaid.
                let _ = self.vote(secret, node, stance, now_us);
            }
        }
        Ok(is_new)
    }

    /// What this node says of another from now on, as its own vote, which others are to be told, also if it has said
    /// so before; `None` if it has no vote, or nothing to take back.
    pub(crate) fn vote(
        &mut self,
        secret: &HolderSecret,
        node: NodeId,
        stance: Stance,
        now_us: u64,
    ) -> Result<Option<Cast>, Fault> {
        let named = self.members.voting().and_then(|voting| voting.voters.get(&self.node));
        if named.is_none_or(|voter| voter.key != secret.key()) {
            return Ok(None);
        }
        let said = self.members.said(self.node, node);
        if self.members.stance(self.node, node) == stance {
            return Ok(said.cloned());
        }
        let cast = self.members.cast((self.node, secret), node, stance, now_us)?;
        self.members.take(cast.clone())?;
        Ok(Some(cast))
    }

    /// This node's vote for one that was invited and has not come, taken back if nobody else is for it.
    pub(crate) fn take_back(
        &mut self,
        secret: &HolderSecret,
        node: NodeId,
        now_us: u64,
    ) -> Result<Option<Cast>, Fault> {
        let alone = self.members.standing(node).admit.iter().all(|voter| *voter == self.node);
        match alone && self.members.said(self.node, node).is_some() {
            true => self.vote(secret, node, Stance::None, now_us),
            false => Ok(None),
        }
    }

    pub(crate) fn peers(&self) -> &BTreeMap<Peer, Option<SocketAddr>> {
        &self.peers
    }

    /// The nodes that are let in and have come.
    pub(crate) fn watched(&self, now_s: u64) -> Vec<NodeId> {
        let nodes = self.nodes(now_s).into_keys();
        nodes.filter(|node| !self.invited.contains_key(&Peer::Node(*node))).collect()
    }

    /// Of these, those whose address is known.
    pub(crate) fn askable(&self, now_s: u64) -> Vec<NodeId> {
        let nodes = self.nodes(now_s).into_iter().filter(|(_, address)| address.is_some());
        let nodes = nodes.map(|(node, _)| node);
        nodes.filter(|node| !self.invited.contains_key(&Peer::Node(*node))).collect()
    }

    /// What a node says to this one and signs, if its network service is let in and this was not heard before
    /// (N3). It is to be noted before it has an effect.
    pub(crate) fn hears(
        &self,
        heard: &Heard,
        bytes: &[u8],
        signature: &[u8],
        chain: &[Vec<u8>],
        now_us: u64,
    ) -> Result<Statement, Fault> {
        let now_s = now_us / 1_000_000;
        let sender = self.trust(now_s)?.admit(chain, now_s, Usage::Client)?;
        match &sender.id.subject {
            Subject::Service { service, .. } if service.as_str() == SERVICE => {}
            other => return Err(Fault::Unauthenticated(format!("{other} is no network service"))),
        }
        let from = (&sender.id.subject, sender.key);
        let said = Statement::verify(bytes, signature, from, &self.id()?.subject)?;
        heard.check(&said.from, said.at_us, now_us)?;
        Ok(said)
    }

    /// Where a node's network service listens.
    pub(crate) fn address(&self, node: NodeId, now_s: u64) -> Result<SocketAddr, Fault> {
        let found = self.place(node, now_s);
        let address = found.ok_or_else(|| Fault::not_found(format!("node/{node} is no peer")))?;
        address.ok_or_else(|| {
            Fault::not_found(format!(
                "the list has no address of node/{node}: `distos peers add node/{node} --at ADDRESS`"
            ))
        })
    }

    /// Nodes that can be asked for an SVID.
    pub(crate) fn reachable(&self, now_s: u64) -> Vec<NodeId> {
        let nodes = self.nodes(now_s).into_iter();
        nodes.filter_map(|(node, at)| at.map(|_| node)).collect()
    }

    pub(crate) fn add(&mut self, peer: Peer, address: Option<SocketAddr>) -> Result<(), Fault> {
        if peer == Peer::Node(self.node) {
            return Err(Fault::malformed("a node is no peer of its own"));
        }
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            return Err(Fault::malformed(format!("a node has {MAX_PEERS} peers at most")));
        }
        // Whoever is named is no longer only invited, nor put out.
        self.invited.remove(&peer);
        if let Peer::Node(node) = &peer {
            self.banned.remove(node);
            self.standings.admitted(*node);
        }
        self.peers.insert(peer, address);
        Ok(())
    }

    pub(crate) fn remove(&mut self, peer: &Peer) -> Result<(), Fault> {
        self.invited.remove(peer);
        self.since.remove(peer);
        let mut found = self.peers.remove(peer).is_some();
        if let Peer::Node(node) = peer
            && *node != self.node
            && (found || self.members.voting().is_some())
        {
            // Whoever votes for it, now or later. If they are too many, one is forgotten that nobody wants.
            found = true;
            self.banned.insert(*node);
            if self.banned.len() > MAX_PEERS {
                let unwanted = |banned: &&NodeId| {
                    *banned != node && self.members.standing(**banned).admit.is_empty()
                };
                let unwanted = self.banned.iter().find(unwanted).copied();
                unwanted.map(|unwanted| self.banned.remove(&unwanted));
            }
        }
        found.then_some(()).ok_or_else(|| Fault::not_found(format!("{peer} is no peer")))
    }
}

/// The votes that were kept of whoever votes with this key.
pub(crate) type Votes<'a> = &'a dyn Fn(HolderKey) -> Result<Vec<Cast>, Fault>;

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

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
