//! What a node has heard of its cluster's configuration and votes, and what follows from it.

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use distos_abi::{Fault, NodeId};
use distos_identity::{Bundle, KeyExchange};
use distos_types::HolderSecret;

use crate::configuration::{Configuration, Signed, Voter, Voting};
use crate::revocations::Revocations;
use crate::shared::Known;
use crate::vote::{Cast, Stance, Vote};

/// Of how many nodes a voter says something. Of one that has said more, the latest are heard: whatever order they
/// come in, they are the same everywhere.
const MAX_NODES: usize = 1536;

/// What a node has heard of its cluster's configuration, of its voters, and of revocations.
#[derive(Clone, Debug, Default)]
pub struct Members {
    configuration: Option<Signed>,
    /// By voter. Of those that the configuration names, and of nobody else.
    ballots: BTreeMap<NodeId, Ballot>,
    revocations: Revocations,
}

/// What one voter says, by the node of which it says it.
#[derive(Clone, Debug, Default)]
struct Ballot {
    casts: BTreeMap<NodeId, Cast>,
    digest: OnceCell<[u8; 32]>,
}

impl Ballot {
    fn digest(&self) -> [u8; 32] {
        *self.digest.get_or_init(|| digest(self.casts.values()))
    }

    /// Whether this one is new.
    fn take(&mut self, cast: Cast) -> bool {
        let node = cast.vote().node;
        match self.casts.entry(node) {
            Entry::Occupied(known) if !cast.is_after(known.get()) => return false,
            Entry::Occupied(mut known) => drop(known.insert(cast)),
            Entry::Vacant(place) => drop(place.insert(cast)),
        }
        if self.casts.len() > MAX_NODES {
            let rank = |cast: &Cast| (cast.vote().number, *cast.hash());
            let least = self.casts.iter().min_by_key(|(_, cast)| rank(cast)).map(|(node, _)| *node);
            least.map(|node| self.casts.remove(&node));
        }
        self.digest = OnceCell::new();
        self.casts.contains_key(&node)
    }
}

/// BLAKE3 of the BLAKE3 hashes of a voter's votes, which come in the order of the nodes that they speak of.
pub fn digest<'a>(casts: impl IntoIterator<Item = &'a Cast>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for cast in casts {
        hasher.update(cast.hash());
    }
    *hasher.finalize().as_bytes()
}

/// What somebody has heard, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The configuration's number; 0 without one.
    pub configuration: u64,
    /// BLAKE3 of the configuration's hash, the voters and their digests, in order.
    pub votes: [u8; 32],
    /// BLAKE3 of the homes of what was revoked and their digests, in order. Two who do not let the same nodes in never
    /// have heard the same.
    pub homes: [u8; 32],
}

impl Summary {
    /// Of a configuration, what each voter has said, in the voters' order, and what was revoked at each home, in theirs.
    pub fn of(
        configuration: Option<&Signed>,
        voters: impl IntoIterator<Item = (NodeId, [u8; 32])>,
        homes: impl IntoIterator<Item = (NodeId, [u8; 32])>,
    ) -> Summary {
        let mut hasher = blake3::Hasher::new();
        if let Some(signed) = configuration {
            hasher.update(&signed.hash());
        }
        for (voter, digest) in voters {
            hasher.update(&voter.0).update(&digest);
        }
        let mut revoked = blake3::Hasher::new();
        for (home, digest) in homes {
            revoked.update(&home.0).update(&digest);
        }
        let number = configuration.map_or(0, |signed| signed.configuration().number);
        let (votes, homes) = (*hasher.finalize().as_bytes(), *revoked.finalize().as_bytes());
        Summary { configuration: number, votes, homes }
    }
}

/// Where somebody who reads all votes page by page goes on: behind this voter's vote about this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The voter.
    pub voter: NodeId,
    /// The node.
    pub node: NodeId,
}

/// What the voters say of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Those who are for it.
    pub admit: BTreeSet<NodeId>,
    /// Those who are against it.
    pub remove: BTreeSet<NodeId>,
    /// Where its network service may be reached, as most of those who are for it say; if as many say something else,
    /// as the vote with the smallest number does.
    pub address: Option<SocketAddr>,
    /// Before when nothing counts that was signed for it, in seconds since the Unix epoch: from then on as many voters
    /// are for it as have to be. One alone cannot put a node out by inviting it.
    pub since_s: u64,
    /// Whether it belongs to the cluster.
    pub is_member: bool,
}

impl Members {
    /// As it was kept: what it had verified before.
    pub fn restore(
        configuration: Option<Signed>,
        casts: impl IntoIterator<Item = Cast>,
    ) -> Members {
        let mut members = Members { configuration, ..Members::default() };
        for cast in casts {
            let Vote { voter, since, .. } = *cast.vote();
            let known = members.voting().and_then(|voting| voting.voters.get(&voter));
            if known.is_some_and(|known| known.since == since) {
                members.ballots.entry(voter).or_default().take(cast);
            }
        }
        members
    }

    /// The configuration; `None` as long as none was taken.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.configuration.as_ref().map(Signed::configuration)
    }

    /// The same as its root has signed it.
    pub fn signed(&self) -> Option<&Signed> {
        self.configuration.as_ref()
    }

    /// The configuration's number; 0 without one.
    pub fn number(&self) -> u64 {
        self.configuration().map_or(0, |configuration| configuration.number)
    }

    /// How keys are agreed on.
    pub fn key_exchange(&self) -> KeyExchange {
        self.configuration().map_or_else(KeyExchange::default, |found| found.key_exchange)
    }

    /// Who votes, if anybody does.
    pub fn voting(&self) -> Option<&Voting> {
        self.configuration()?.voting.as_ref()
    }

    /// Goes by this configuration; whether it is another than before. Votes of those whom it does not name, or
    /// names anew or with another key, are forgotten.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if no root of the cluster has signed it; [`Fault::Malformed`] if it is another
    /// cluster's, older than the present one, another one with the same number, or names a voter as an older one did.
    pub fn configure(
        &mut self,
        signed: Signed,
        bundle: &Bundle,
        now_s: u64,
    ) -> Result<bool, Fault> {
        let number = signed.verify(bundle, now_s)?.number;
        let present = self.number();
        if self.configuration() == Some(signed.configuration()) {
            return Ok(false);
        }
        if number < present {
            return Err(Fault::malformed(format!(
                "this configuration is number {number}, and this node has number {present}"
            )));
        }
        if number == present && self.configuration.is_some() {
            return Err(Fault::malformed(format!(
                "this node has another configuration with number {number}: sign it with a greater one"
            )));
        }
        let named = |voter| self.voting().and_then(|voting| voting.voters.get(voter));
        let voters = signed.configuration().voting.iter().flat_map(|voting| &voting.voters);
        let mut older = voters.filter(|(node, voter)| {
            named(node).is_some_and(|known| known.key == voter.key && known.since > voter.since)
        });
        if let Some((node, _)) = older.next() {
            return Err(Fault::malformed(format!(
                "this configuration names node/{node} as an older one did: votes would count again that do not"
            )));
        }
        let before = std::mem::take(self);
        let key_before =
            |voter| before.voting().and_then(|voting| voting.voters.get(voter)).map(|v| v.key);
        let voters = signed.configuration().voting.iter().flat_map(|voting| &voting.voters);
        let same: BTreeSet<NodeId> = voters
            .filter(|(node, voter)| key_before(node) == Some(voter.key))
            .map(|(node, _)| *node)
            .collect();
        let casts = before.ballots.into_iter().filter(|(voter, _)| same.contains(voter));
        let casts = casts.flat_map(|(_, ballot)| ballot.casts.into_values());
        *self = Members::restore(Some(signed), casts);
        self.revocations = before.revocations;
        Ok(true)
    }

    /// The vote that this node casts with its key: later than whatever it has said before.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if this node has no vote, or not by this key, or has said too much.
    pub fn cast(
        &self,
        (voter, secret): (NodeId, &HolderSecret),
        node: NodeId,
        stance: Stance,
        now_us: u64,
    ) -> Result<Cast, Fault> {
        let configuration = self.configuration();
        let known = self.voting().and_then(|voting| voting.voters.get(&voter));
        let (Some(configuration), Some(known)) = (configuration, known) else {
            return Err(Fault::malformed("this node has no vote"));
        };
        if known.key != secret.key() {
            return Err(Fault::malformed(format!(
                "this node votes with key {}, by the cluster's configuration, and has {}",
                known.key,
                secret.key()
            )));
        }
        let said = self.ballots.get(&voter).map(|ballot| &ballot.casts);
        // It would be forgotten, or something else that was said.
        if said.is_some_and(|said| said.len() >= MAX_NODES && !said.contains_key(&node)) {
            return Err(Fault::malformed(format!("a voter speaks of {MAX_NODES} nodes at most")));
        }
        let last = said.into_iter().flat_map(BTreeMap::values).map(|cast| cast.vote().number).max();
        let Some(next) = last.unwrap_or(0).checked_add(1) else {
            let why = "no vote of this node can be later than its last: have the root name it anew";
            return Err(Fault::malformed(why));
        };
        let (cluster, since) = (configuration.cluster.clone(), known.since);
        let number = now_us.max(next);
        Ok(Vote { cluster, voter, since, node, number, stance }.sign(secret))
    }

    /// Takes a vote, from whomever it comes; whether it is new.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if it is not by a voter of the cluster, as this is named now; [`Fault::Malformed`]
    /// if it is another cluster's, or a voter's about itself.
    pub fn take(&mut self, cast: Cast) -> Result<bool, Fault> {
        let voter = cast.vote().voter;
        Ok(self.check(&cast)? && self.ballots.entry(voter).or_default().take(cast))
    }

    /// Whether a vote would be new. Fails as [`Members::take`] does.
    pub fn check(&self, cast: &Cast) -> Result<bool, Fault> {
        let vote = cast.vote();
        let configuration = self.configuration().ok_or_else(|| {
            Fault::Unauthenticated("this node has no configuration that names voters".into())
        })?;
        if vote.cluster != configuration.cluster {
            return Err(Fault::malformed(format!("this vote is of cluster {}", vote.cluster)));
        }
        let (voter, node) = (vote.voter, vote.node);
        if voter == node {
            return Err(Fault::malformed("nobody votes about itself"));
        }
        let named = configuration.voting.as_ref().and_then(|voting| voting.voters.get(&voter));
        let Voter { key, since } = *named.ok_or_else(|| {
            Fault::Unauthenticated(format!("node/{voter} has no vote in {}", vote.cluster))
        })?;
        if vote.since != since {
            let why =
                format!("node/{voter} was named anew as a voter, and this vote is not from then");
            return Err(Fault::Unauthenticated(why));
        }
        // What is known need not be looked at.
        let known = self.ballots.get(&voter);
        if known.and_then(|known| known.casts.get(&node)).is_some_and(|known| !cast.is_after(known))
        {
            return Ok(false);
        }
        cast.verify(key)?;
        Ok(true)
    }

    /// What was heard of revocations.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The same, to be changed.
    pub fn revocations_mut(&mut self) -> &mut Revocations {
        &mut self.revocations
    }

    /// What this voter says of this node, if it has ever said anything.
    pub fn said(&self, voter: NodeId, node: NodeId) -> Option<&Cast> {
        self.ballots.get(&voter)?.casts.get(&node)
    }

    /// What this voter thinks of this node.
    pub fn stance(&self, voter: NodeId, node: NodeId) -> Stance {
        self.said(voter, node).map_or(Stance::None, |cast| cast.vote().stance)
    }

    /// The voters, and all nodes of which they say something.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        let Some(voting) = self.voting() else { return BTreeSet::new() };
        let spoken_of = self.ballots.values().flat_map(|ballot| ballot.casts.keys());
        voting.voters.keys().chain(spoken_of).copied().collect()
    }

    /// What the voters say of a node.
    pub fn standing(&self, node: NodeId) -> Standing {
        let Some(voting) = self.voting() else { return Standing::default() };
        let (mut found, mut moments) = (Standing::default(), Vec::new());
        let mut said: BTreeMap<SocketAddr, (usize, Reverse<(u64, NodeId)>)> = BTreeMap::new();
        for (voter, ballot) in &self.ballots {
            let Some(vote) = ballot.casts.get(&node).map(Cast::vote) else { continue };
            match vote.stance {
                Stance::None => {}
                Stance::Remove => drop(found.remove.insert(*voter)),
                Stance::Admit(address) | Stance::Invite { address, .. } => {
                    found.admit.insert(*voter);
                    moments.push(match vote.stance {
                        Stance::Invite { since_s, .. } => since_s,
                        _ => 0,
                    });
                    if let Some(address) = address {
                        let since = Reverse((vote.number, *voter));
                        let (voters, first) = said.entry(address).or_insert((0, since));
                        (*voters, *first) = (*voters + 1, since.max(*first));
                    }
                }
            }
        }
        found.address = said.into_iter().max_by_key(|(_, rank)| *rank).map(|(at, _)| at);
        // Whom the root names as a voter belongs to the cluster without anybody's vote.
        let is_named = voting.voters.contains_key(&node);
        let is_in = is_named || found.admit.len() >= voting.admit as usize;
        if !is_named {
            moments.sort_unstable();
            let last = (voting.admit as usize).saturating_sub(1);
            found.since_s = moments.get(last).copied().unwrap_or(0);
        }
        found.is_member = is_in && found.remove.len() < voting.remove as usize;
        found
    }

    /// The same, with what they say.
    pub fn standings(&self) -> BTreeMap<NodeId, Standing> {
        self.nodes().into_iter().map(|node| (node, self.standing(node))).collect()
    }

    /// The votes of one voter, in the order in which they are kept.
    pub fn casts(&self, voter: NodeId) -> impl Iterator<Item = &Cast> {
        self.ballots.get(&voter).into_iter().flat_map(|ballot| ballot.casts.values())
    }

    // What two nodes say to one another in order to have heard the same.

    /// What was heard, in short: the same at two nodes that have heard the same.
    pub fn summary(&self) -> Summary {
        Summary::of(self.configuration.as_ref(), self.digests(), self.revocations.digests())
    }

    /// The same, by voter, and by home.
    pub fn known(&self) -> Known {
        let homes = self.revocations.digests().collect();
        Known { summary: self.summary(), digests: self.digests().collect(), homes }
    }

    /// Whether somebody with this summary may know a configuration or votes that are not known here, and is to be asked.
    /// Revocations are another matter: there the digests of `homes` are to be compared.
    pub fn is_behind(&self, theirs: &Summary) -> bool {
        let own = self.summary();
        theirs.configuration > own.configuration
            || (theirs.configuration == own.configuration && theirs.votes != own.votes)
    }

    /// The digest of what each voter has said.
    pub fn digests(&self) -> impl Iterator<Item = (NodeId, [u8; 32])> {
        let said = self.ballots.iter().filter(|(_, ballot)| !ballot.casts.is_empty());
        said.map(|(voter, ballot)| (*voter, ballot.digest()))
    }

    /// Up to `limit` votes behind `after` of those voters of whom somebody who knows `known` has not heard the
    /// same; and where to go on, if there may be more.
    pub fn page(
        &self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Place>,
        limit: usize,
    ) -> (Vec<&Cast>, Option<Place>) {
        let differs = |(voter, ballot): &(&NodeId, &Ballot)| {
            known.get(voter).is_none_or(|known| *known != ballot.digest())
        };
        let place = |cast: &Cast| Place { voter: cast.vote().voter, node: cast.vote().node };
        let first = after.map_or(NodeId([0; 32]), |after| after.voter);
        let found = self.ballots.range(first..).filter(differs);
        let casts = found.flat_map(|(_, ballot)| ballot.casts.values());
        let casts = casts.filter(|cast| after.is_none_or(|after| place(cast) > after));
        let page: Vec<&Cast> = casts.take(limit).collect();
        let next = page.last().filter(|_| page.len() == limit).map(|cast| place(cast));
        (page, next)
    }
}

#[cfg(test)]
mod tests {
    use distos_identity::{ClusterName, Root, Serial, Validity};
    use proptest::prelude::*;

    use super::*;

    const NOW_S: u64 = 1_800_000_000;
    const NOW_US: u64 = NOW_S * 1_000_000;

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn cluster() -> ClusterName {
        ClusterName::new("demo").unwrap()
    }

    fn bundle() -> Bundle {
        let root = secret(1);
        let validity = Validity { from_s: NOW_S, until_s: NOW_S + 100 };
        let root = Root::new(cluster(), &root).certificate(validity, Serial([1; 16])).unwrap();
        Bundle::new(vec![root], 1).unwrap()
    }

    fn signed(number: u64, voters: &[u8], admit: u32, remove: u32) -> Signed {
        let voter = |n: &u8| (node(*n), Voter { key: secret(*n).key(), since: 1 });
        let voters = voters.iter().map(voter).collect();
        let voting = Some(Voting { voters, admit, remove });
        let key_exchange = KeyExchange::HybridPreferred;
        Configuration { cluster: cluster(), number, key_exchange, voting }.sign(&secret(1)).unwrap()
    }

    /// Nodes 10, 11 and 12 vote; two let somebody in, two put somebody out.
    fn members() -> Members {
        let mut members = Members::default();
        assert_eq!(members.configure(signed(1, &[10, 11, 12], 2, 2), &bundle(), NOW_S), Ok(true));
        members
    }

    fn cast(members: &Members, voter: u8, about: u8, stance: Stance) -> Cast {
        members.cast((node(voter), &secret(voter)), node(about), stance, NOW_US).unwrap()
    }

    fn says(members: &mut Members, voter: u8, about: u8, stance: Stance) {
        let cast = cast(members, voter, about, stance);
        assert_eq!(members.take(cast), Ok(true));
    }

    fn is_member(members: &Members, number: u8) -> bool {
        members.standing(node(number)).is_member
    }

    const ADMIT: Stance = Stance::Admit(None);

    #[test]
    fn a_node_is_let_in_and_put_out_by_as_many_votes_as_the_root_has_said() {
        let mut members = members();
        assert!(is_member(&members, 10), "a voter");
        says(&mut members, 10, 50, ADMIT);
        assert!(!is_member(&members, 50), "one of two");
        let again = cast(&members, 10, 50, ADMIT);
        assert_eq!(members.take(again), Ok(true));
        assert!(!is_member(&members, 50), "the same voter twice");
        says(&mut members, 11, 50, ADMIT);
        assert!(is_member(&members, 50));
        says(&mut members, 12, 50, Stance::Remove);
        assert!(is_member(&members, 50), "one of two against it");
        says(&mut members, 11, 50, Stance::Remove);
        assert!(!is_member(&members, 50));
        // Who was put out comes back when they think better of it.
        says(&mut members, 11, 50, ADMIT);
        assert!(is_member(&members, 50));
        says(&mut members, 10, 50, Stance::None);
        assert!(!is_member(&members, 50));
        // Voters can put a voter out.
        says(&mut members, 10, 12, Stance::Remove);
        says(&mut members, 11, 12, Stance::Remove);
        assert!(!is_member(&members, 12) && is_member(&members, 11));
    }

    /// Else one voter puts out whomever it likes, by inviting it from the end of time.
    #[test]
    fn what_was_signed_before_counts_while_enough_voters_are_for_it() {
        let mut members = members();
        let invite = |since_s| Stance::Invite { since_s, address: None };
        let since_s = |members: &Members| members.standing(node(50)).since_s;
        let admit = members.voting().unwrap().admit as usize;
        assert_eq!(admit, 2);
        says(&mut members, 10, 50, invite(u64::MAX));
        assert_eq!(since_s(&members), 0, "it is for nobody alone to say");
        says(&mut members, 11, 50, ADMIT);
        assert_eq!(since_s(&members), u64::MAX, "only with both it is let in");
        says(&mut members, 12, 50, invite(7));
        assert_eq!(since_s(&members), 7, "two are for it from then on");
        // Whom the root names needs nobody's vote.
        says(&mut members, 10, 12, invite(u64::MAX));
        says(&mut members, 11, 12, invite(u64::MAX));
        assert_eq!(members.standing(node(12)).since_s, 0);
    }

    #[test]
    fn nobodys_vote_counts_but_a_voters_in_its_own_cluster_about_others() {
        let mut members = members();
        let vote = |voter: u8, about: u8| Vote {
            cluster: cluster(),
            voter: node(voter),
            node: node(about),
            since: 1,
            number: 5,
            stance: ADMIT,
        };
        let refused = |members: &mut Members, cast: Cast| {
            let before = members.summary();
            assert!(members.take(cast).is_err());
            assert_eq!(members.summary(), before);
        };
        refused(&mut members, vote(50, 51).sign(&secret(50)));
        refused(&mut members, vote(10, 51).sign(&secret(50)));
        refused(&mut members, vote(10, 10).sign(&secret(10)));
        let other = ClusterName::new("other").unwrap();
        refused(&mut members, Vote { cluster: other, ..vote(10, 51) }.sign(&secret(10)));
        assert!(members.cast((node(50), &secret(50)), node(51), ADMIT, NOW_US).is_err());
        assert!(members.cast((node(10), &secret(50)), node(51), ADMIT, NOW_US).is_err());
        let mut alone = Members::default();
        refused(&mut alone, vote(10, 51).sign(&secret(10)));
        assert!(alone.standings().is_empty() && alone.voting().is_none());
    }

    #[test]
    fn an_earlier_vote_has_no_effect_again_however_late_it_comes() {
        let mut members = members();
        let first = cast(&members, 10, 50, ADMIT);
        says(&mut members, 10, 50, ADMIT);
        // The voter's clock was put back meanwhile.
        let early = members.cast((node(10), &secret(10)), node(50), Stance::Remove, 3).unwrap();
        assert!(early.vote().number > first.vote().number);
        assert_eq!(members.take(early), Ok(true));
        assert_eq!(members.take(first), Ok(false));
        assert_eq!(members.stance(node(10), node(50)), Stance::Remove);
    }

    #[test]
    fn an_older_an_unsigned_and_a_second_configuration_of_one_number_are_refused() {
        let mut members = Members::default();
        let mut take = |signed: Signed| members.configure(signed, &bundle(), NOW_S);
        assert_eq!(take(signed(5, &[10, 11], 1, 1)), Ok(true));
        assert_eq!(take(signed(5, &[10, 11], 1, 1)), Ok(false));
        assert!(take(signed(4, &[10, 11], 1, 1)).is_err(), "older");
        assert!(take(signed(5, &[10], 1, 1)).is_err(), "the same number");
        let other = signed(6, &[10], 1, 1).configuration().clone().sign(&secret(2)).unwrap();
        assert!(take(other).is_err(), "not the root's");
        assert_eq!(members.number(), 5);
        // It counts whose votes it names, and with which keys.
        says(&mut members, 10, 50, ADMIT);
        says(&mut members, 11, 51, ADMIT);
        assert!(is_member(&members, 50) && is_member(&members, 51));
        assert_eq!(members.configure(signed(6, &[10, 12], 1, 1), &bundle(), NOW_S), Ok(true));
        assert!(is_member(&members, 50) && !is_member(&members, 51));
        let mut other = signed(7, &[10], 1, 1).configuration().clone();
        let voters = other.voting.as_mut().unwrap();
        voters.voters.insert(node(10), Voter { key: secret(60).key(), since: 7 });
        members.configure(other.sign(&secret(1)).unwrap(), &bundle(), NOW_S).unwrap();
        assert!(!is_member(&members, 50), "it votes by another key now");
        // And one by which nobody votes.
        let without = Configuration {
            voting: None,
            number: 8,
            ..signed(7, &[10], 1, 1).configuration().clone()
        };
        members.configure(without.sign(&secret(1)).unwrap(), &bundle(), NOW_S).unwrap();
        assert!(members.voting().is_none() && members.standings().is_empty());
    }

    /// Or somebody could bring up what it had said, and taken back meanwhile.
    #[test]
    fn what_a_voter_had_said_before_it_was_left_out_is_never_heard_again() {
        let mut members = members();
        says(&mut members, 10, 50, ADMIT);
        says(&mut members, 11, 50, ADMIT);
        let old = members.casts(node(11)).next().unwrap().clone();
        let mut later = signed(2, &[10, 11, 12], 2, 2).configuration().clone();
        let voters = &mut later.voting.as_mut().unwrap().voters;
        voters.insert(node(11), Voter { key: secret(11).key(), since: 2 });
        members.configure(later.sign(&secret(1)).unwrap(), &bundle(), NOW_S).unwrap();
        assert!(!is_member(&members, 50), "one of two");
        assert!(members.take(old.clone()).is_err() && !is_member(&members, 50));
        // Not even the root names it as it was named before.
        let back = signed(3, &[10, 11, 12], 2, 2);
        assert!(members.configure(back, &bundle(), NOW_S).is_err());
        let restored = Members::restore(members.signed().cloned(), [old]);
        assert_eq!(restored.standing(node(50)), Standing::default());
        // What it says now counts.
        says(&mut members, 11, 50, ADMIT);
        assert!(is_member(&members, 50));
    }

    #[test]
    fn a_nodes_address_is_what_most_say_and_else_what_was_said_first() {
        let mut members = members();
        let at = |port: u16| Some(SocketAddr::from(([10, 0, 0, 7], port)));
        says(&mut members, 10, 50, Stance::Admit(at(1)));
        says(&mut members, 11, 50, ADMIT);
        assert_eq!(members.standing(node(50)).address, at(1));
        let says = |members: &mut Members, voter: u8, port: u16| {
            let later = (node(voter), &secret(voter));
            let stance = Stance::Admit(at(port));
            let later = members.cast(later, node(50), stance, NOW_US + u64::from(port)).unwrap();
            members.take(later).unwrap();
        };
        says(&mut members, 11, 2);
        assert_eq!(members.standing(node(50)).address, at(1));
        says(&mut members, 12, 2);
        assert_eq!(members.standing(node(50)).address, at(2));
        let mut members = members.clone();
        let mut cast = |voter: u8, stance: Stance| {
            let cast = members.cast((node(voter), &secret(voter)), node(50), stance, NOW_US + 9);
            members.take(cast.unwrap()).unwrap();
        };
        cast(12, Stance::Remove);
        cast(11, Stance::Remove);
        assert_eq!(members.standing(node(50)).address, at(1));
    }

    /// Asks as long as there is more, as a node does.
    fn hear_all(members: &mut Members, of: &Members) -> usize {
        let known: BTreeMap<_, _> = members.digests().collect();
        let (mut after, mut pages) = (None, 0);
        loop {
            let (page, next) = of.page(&known, after, 3);
            pages += 1;
            let page: Vec<Cast> = page.into_iter().cloned().collect();
            for cast in page {
                members.take(cast).unwrap();
            }
            match next {
                Some(_) => after = next,
                None => return pages,
            }
        }
    }

    #[test]
    fn what_a_node_has_missed_it_hears_from_any_other() {
        let mut known = members();
        for about in 50..60 {
            says(&mut known, 10, about, ADMIT);
            says(&mut known, 12, about, Stance::Remove);
        }
        let mut behind = members();
        assert_eq!(hear_all(&mut behind, &known), 7, "20 votes, three a page");
        assert_eq!(behind.summary(), known.summary());
        assert_eq!(hear_all(&mut behind, &known), 1, "there is nothing to be said");
        // Of two that each know what the other does not.
        says(&mut known, 10, 70, ADMIT);
        says(&mut behind, 11, 71, ADMIT);
        hear_all(&mut behind, &known);
        hear_all(&mut known, &behind);
        assert_eq!(behind.summary(), known.summary());
        let casts = [10, 11, 12].map(node).into_iter().flat_map(|voter| known.casts(voter));
        let restored = Members::restore(known.signed().cloned(), casts.cloned());
        assert_eq!(restored.summary(), known.summary());
        assert_eq!(restored.standings(), known.standings());
    }

    /// Or two nodes that hear more than they keep could differ for ever.
    #[test]
    fn of_a_voter_that_says_too_much_the_latest_is_heard_in_whatever_order_it_comes() {
        let vote = |number: usize| {
            let mut about = [0; 32];
            about[..8].copy_from_slice(&number.to_be_bytes());
            let (cluster, voter, number) = (cluster(), node(10), number as u64);
            let vote =
                Vote { cluster, voter, since: 1, node: NodeId(about), number, stance: ADMIT };
            vote.sign(&secret(10))
        };
        let votes: Vec<Cast> = (1..=MAX_NODES + 3).map(vote).collect();
        let (mut one, mut other) = (members(), members());
        for cast in &votes {
            one.take(cast.clone()).unwrap();
        }
        for cast in votes.iter().rev().chain(&votes[..9]) {
            other.take(cast.clone()).unwrap();
        }
        assert_eq!(one.summary(), other.summary());
        assert_eq!(one.casts(node(10)).count(), MAX_NODES);
        // Its own node does not let it say so much, and lets it say something else of those.
        let own = (node(10), &secret(10));
        assert!(one.cast(own, node(99), ADMIT, NOW_US).is_err());
        assert!(one.cast(own, votes[9].vote().node, Stance::Remove, NOW_US).is_ok());
        // Whoever has its key cannot silence it without an error.
        let last = Vote { number: u64::MAX, ..votes[9].vote().clone() }.sign(&secret(10));
        assert_eq!(one.take(last), Ok(true));
        assert!(one.cast(own, votes[9].vote().node, Stance::Remove, NOW_US).is_err());
    }

    proptest! {
        /// In whatever order votes come, and however often, what was heard is the same.
        #[test]
        fn two_nodes_that_have_heard_the_same_agree(
            votes in proptest::collection::vec((10u8..13, 50u8..54, 1u64..5, 0u8..3), 1..40),
            order in any::<u64>(),
        ) {
            let cast = |(voter, about, number, stance): &(u8, u8, u64, u8)| {
                let stance = [Stance::None, ADMIT, Stance::Remove][usize::from(*stance)];
                Vote {
                    cluster: cluster(), voter: node(*voter), since: 1, node: node(*about), number: *number, stance,
                }.sign(&secret(*voter))
            };
            let (mut one, mut other) = (members(), members());
            for vote in &votes {
                one.take(cast(vote)).unwrap();
            }
            let mut shuffled = votes.clone();
            shuffled.sort_by_key(|vote| blake3::hash(format!("{order}{vote:?}").as_bytes()).as_bytes().to_vec());
            for vote in shuffled.iter().chain(&votes[..votes.len() / 2]) {
                other.take(cast(vote)).unwrap();
            }
            prop_assert_eq!(one.summary(), other.summary());
            prop_assert_eq!(one.standings(), other.standings());
        }
    }
}
