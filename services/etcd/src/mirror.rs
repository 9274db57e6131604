//! What was last seen in the store, and what is to be written there. No I/O.
//!
//! Whoever may write to the store may write anything: what is at a name and cannot stand there counts as nothing, which
//! may be replaced.

use std::collections::{BTreeMap, BTreeSet};

use distos_abi::{LinkHash, NodeId};
use distos_identity::ClusterName;
use distos_membership::{
    Cast, Known, MAX_CONFIGURATION_BYTES, MAX_OF_HOME, MAX_VOTE_BYTES, MAX_VOTERS, Mark, Members,
    Offer, PAGE, Place, REVOCATIONS_PAGE, Revocations, Signed, Summary, digest,
};
use distos_types::{MAX_REVOCATION_BYTES, Revocation, Signer};

/// What the configuration is called, and what votes' and revocations' names begin with, behind the cluster's own prefix.
const CONFIGURATION: &str = "configuration";
const VOTE: &str = "vote/";
const REVOCATION: &str = "revocation/";
const ISSUER: &str = "issuer/";
const HOLDER: &str = "holder/";
/// Names of votes that are kept in mind: twice as many as voters say.
const MAX_VOTES: usize = 2 * MAX_VOTERS * 1536;
/// And of revocations for one home: twice as many as are kept.
const MAX_REVOCATIONS: usize = 2 * MAX_OF_HOME;
/// How far ahead of this clock nobody's is, in milliseconds: a day.
const STRANGE_MS: u64 = 24 * 3600 * 1000;

/// Something that is in the store.
#[derive(Clone, Debug)]
struct Entry<T> {
    /// The store's revision at which it was written.
    revision: i64,
    /// `None` if it cannot be what its name says.
    value: Option<T>,
    /// Whether whoever writes here has seen it: of what can be nothing, there is nothing to be seen.
    is_seen: bool,
}

impl<T: PartialEq> Entry<T> {
    /// What is there once this was written, where `known` was before.
    fn written(known: Option<&Entry<T>>, value: Option<T>, revision: i64) -> Entry<T> {
        let same = known.is_some_and(|known| known.value == value && known.is_seen);
        Entry { revision, is_seen: same || value.is_none(), value }
    }
}

/// What is to be written, if nothing has been written there meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) key: Vec<u8>,
    /// `None` to remove it.
    pub(crate) value: Option<Vec<u8>>,
    /// The revision of what is replaced; 0 if nothing is there.
    pub(crate) instead_of: i64,
}

/// What was seen of one cluster's state.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    prefix: String,
    configuration: Option<Entry<Signed>>,
    votes: BTreeMap<Place, Entry<Cast>>,
    revocations: BTreeMap<Mark, Entry<Revocation>>,
    /// Of others' revocations nothing is kept in mind.
    homes: BTreeSet<NodeId>,
    /// Whether there was more than is kept in mind.
    is_partial: bool,
    /// Whether there was, of revocations.
    has_dropped: bool,
}

impl Mirror {
    /// Of a cluster, and of revocations for these homes.
    pub(crate) fn new(cluster: &ClusterName, homes: BTreeSet<NodeId>) -> Mirror {
        let prefix = format!("/distos/{cluster}/");
        Mirror {
            prefix,
            configuration: None,
            votes: BTreeMap::new(),
            revocations: BTreeMap::new(),
            homes,
            is_partial: false,
            has_dropped: false,
        }
    }

    /// What all names of this cluster begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether there was more than is kept in mind: it is to be read again once there is less.
    pub(crate) fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// What the names of votes begin with, and those of revocations for these homes: others' are not even read.
    pub(crate) fn prefixes(&self) -> Vec<String> {
        let of_home =
            |home: &NodeId| [ISSUER, HOLDER].map(|kind| format!("{REVOCATION}{kind}{home}/"));
        let kinds = self.homes.iter().flat_map(of_home).chain([VOTE.to_owned()]);
        kinds.map(|kind| format!("{}{kind}", self.prefix)).collect()
    }

    /// Something useless was removed: what there was no room for is to be read again.
    pub(crate) fn make_room(&mut self) {
        self.is_partial |= self.has_dropped;
    }

    pub(crate) fn configuration_key(&self) -> Vec<u8> {
        format!("{}{CONFIGURATION}", self.prefix).into_bytes()
    }

    fn vote_key(&self, place: Place) -> Vec<u8> {
        let Place { voter, node } = place;
        format!("{}{VOTE}{voter}/{node}", self.prefix).into_bytes()
    }

    fn revocation_key(&self, Mark { home, link, signer }: Mark) -> Vec<u8> {
        let kind = match signer {
            Signer::Issuer => ISSUER,
            Signer::Holder => HOLDER,
        };
        format!("{}{REVOCATION}{kind}{home}/{}", self.prefix, hex::encode(link.0)).into_bytes()
    }

    /// Both parts of a name of this kind.
    fn parts(&self, kind: &str, key: &[u8]) -> Option<([u8; 32], [u8; 32])> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let (first, second) = rest.strip_prefix(kind)?.split_once('/')?;
        let read = |text: &str| -> Option<[u8; 32]> {
            let mut id = [0; 32];
            hex::decode_to_slice(text, &mut id).ok()?;
            Some(id)
        };
        Some((read(first)?, read(second)?))
    }

    /// Which revocation a name is of.
    fn mark(&self, key: &[u8]) -> Option<Mark> {
        let kinds = [(Signer::Issuer, ISSUER), (Signer::Holder, HOLDER)];
        let found = kinds.into_iter().find_map(|(signer, kind)| {
            let (home, link) = self.parts(&format!("{REVOCATION}{kind}"), key)?;
            Some(Mark { home: NodeId(home), link: LinkHash(link), signer })
        });
        found.filter(|mark| self.revocation_key(*mark) == key && self.homes.contains(&mark.home))
    }

    /// Which vote a name is of.
    fn place(&self, key: &[u8]) -> Option<Place> {
        let (voter, node) = self.parts(VOTE, key)?;
        let place = Place { voter: NodeId(voter), node: NodeId(node) };
        // One vote has one name.
        (self.vote_key(place) == key).then_some(place)
    }

    /// Something was written.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8], revision: i64) {
        if key == self.configuration_key() {
            let text = std::str::from_utf8(value).ok();
            let text = text.filter(|text| text.len() <= MAX_CONFIGURATION_BYTES);
            let value = text.and_then(|text| Signed::parse(text).ok());
            self.configuration = Some(Entry::written(self.configuration.as_ref(), value, revision));
        } else if let Some(place) = self.place(key) {
            let value = (value.len() <= MAX_VOTE_BYTES).then(|| Cast::decode(value).ok()).flatten();
            let value = value.filter(|cast| place_of(cast) == place);
            let entry = Entry::written(self.votes.get(&place), value, revision);
            match self.votes.len() < MAX_VOTES || self.votes.contains_key(&place) {
                true => drop(self.votes.insert(place, entry)),
                false => self.is_partial = true,
            }
        } else if let Some(mark) = self.mark(key) {
            let value = (value.len() <= MAX_REVOCATION_BYTES).then(|| Revocation::decode(value));
            let value = value.and_then(Result::ok).filter(|one| Mark::of(one) == mark);
            let entry = Entry::written(self.revocations.get(&mark), value, revision);
            let least = Mark { link: LinkHash([0; 32]), signer: Signer::Issuer, ..mark };
            let of_home = self.revocations.range(least..);
            let of_home = of_home.take_while(|(known, _)| known.home == mark.home).count();
            // What is too much is somebody's flood: what is right of it is written again by whoever has it.
            match of_home < MAX_REVOCATIONS || self.revocations.contains_key(&mark) {
                true => drop(self.revocations.insert(mark, entry)),
                false => self.has_dropped = true,
            }
        }
    }

    /// What this program has written itself, which it has seen.
    pub(crate) fn wrote(&mut self, write: &Write, revision: i64) {
        match &write.value {
            Some(value) => self.put(&write.key, value, revision),
            None => self.delete(&write.key),
        }
        if write.key == self.configuration_key() {
            self.configuration.iter_mut().for_each(|entry| entry.is_seen = true);
        } else if let Some(place) = self.place(&write.key) {
            self.votes.get_mut(&place).into_iter().for_each(|entry| entry.is_seen = true);
        } else if let Some(mark) = self.mark(&write.key) {
            self.revocations.get_mut(&mark).into_iter().for_each(|entry| entry.is_seen = true);
        }
    }

    /// Something was removed.
    pub(crate) fn delete(&mut self, key: &[u8]) {
        if key == self.configuration_key() {
            self.configuration = None;
        } else if let Some(place) = self.place(key) {
            self.votes.remove(&place);
        } else if let Some(mark) = self.mark(key) {
            self.revocations.remove(&mark);
        }
    }

    fn digests(&self) -> BTreeMap<NodeId, [u8; 32]> {
        let mut casts: BTreeMap<NodeId, Vec<&Cast>> = BTreeMap::new();
        for (place, entry) in &self.votes {
            if let Some(cast) = &entry.value {
                casts.entry(place.voter).or_default().push(cast);
            }
        }
        casts.into_iter().map(|(voter, casts)| (voter, digest(casts))).collect()
    }

    /// By home.
    fn homes(&self) -> BTreeMap<NodeId, [u8; 32]> {
        let mut found: BTreeMap<NodeId, Vec<&Revocation>> = BTreeMap::new();
        for (mark, entry) in &self.revocations {
            if let Some(revocation) = &entry.value {
                found.entry(mark.home).or_default().push(revocation);
            }
        }
        found.into_iter().map(|(home, all)| (home, Revocations::digest(all))).collect()
    }

    /// What is there, in short.
    pub(crate) fn known(&self) -> Known {
        let (digests, homes) = (self.digests(), self.homes());
        let signed = self.configuration.as_ref().and_then(|entry| entry.value.as_ref());
        let summary = Summary::of(signed, digests.clone(), homes.clone());
        Known { summary, digests, homes }
    }

    /// The configuration that is there, which is seen from now on.
    pub(crate) fn see_configuration(&mut self) -> Option<Signed> {
        let entry = self.configuration.as_mut()?;
        entry.is_seen = true;
        entry.value.clone()
    }

    /// A page of votes behind `after`, which are seen from now on; and where to go on.
    pub(crate) fn see_votes(
        &mut self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Place>,
    ) -> (Vec<Cast>, Option<Place>) {
        let same: BTreeSet<NodeId> = self
            .digests()
            .into_iter()
            .filter(|(voter, digest)| known.get(voter) == Some(digest))
            .map(|(voter, _)| voter)
            .collect();
        let mut page = Vec::new();
        for (place, entry) in &mut self.votes {
            if after.is_some_and(|after| *place <= after) {
                continue;
            }
            entry.is_seen = true;
            // Of this voter everything was heard.
            if same.contains(&place.voter) {
                continue;
            }
            page.extend(entry.value.clone());
            if page.len() == PAGE {
                return (page, Some(*place));
            }
        }
        (page, None)
    }

    /// A page of revocations behind `after`, which are seen from now on; and where to go on.
    pub(crate) fn see_revocations(
        &mut self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Mark>,
    ) -> (Vec<Revocation>, Option<Mark>) {
        let homes = self.homes();
        let mut page = Vec::new();
        for (mark, entry) in &mut self.revocations {
            if after.is_some_and(|after| *mark <= after) {
                continue;
            }
            entry.is_seen = true;
            if known.get(&mark.home).is_some_and(|known| homes.get(&mark.home) == Some(known)) {
                continue;
            }
            page.extend(entry.value.clone());
            if page.len() == REVOCATIONS_PAGE {
                return (page, Some(*mark));
            }
        }
        (page, None)
    }

    /// What is to be written in order to leave this there: nothing in place of what has not been seen.
    pub(crate) fn writes(&self, offer: Offer<'_>) -> Vec<Write> {
        let Offer { configuration, votes, revocations } = offer;
        let mut writes = Vec::new();
        for revocation in revocations {
            let mark = Mark::of(revocation);
            let entry = self.revocations.get(&mark);
            let is_there = entry.is_some_and(|entry| entry.value.as_ref() == Some(revocation));
            let (is_seen, instead_of) = entry.map_or((true, 0), |one| (one.is_seen, one.revision));
            if is_seen && !is_there {
                let value = Some(revocation.bytes().to_vec());
                writes.push(Write { key: self.revocation_key(mark), value, instead_of });
            }
        }
        if let Some(signed) = configuration {
            let entry = self.configuration.as_ref();
            let is_there = entry.is_some_and(|entry| entry.value.as_ref() == Some(signed));
            let (is_seen, instead_of) = entry.map_or((true, 0), |one| (one.is_seen, one.revision));
            if is_seen && !is_there {
                let value = Some(signed.to_json().into_bytes());
                writes.push(Write { key: self.configuration_key(), value, instead_of });
            }
        }
        for cast in votes {
            let entry = self.votes.get(&place_of(cast));
            let is_there = entry.is_some_and(|entry| entry.value.as_ref() == Some(cast));
            let (is_seen, instead_of) = entry.map_or((true, 0), |one| (one.is_seen, one.revision));
            if is_seen && !is_there {
                let value = Some(cast.bytes().to_vec());
                writes.push(Write { key: self.vote_key(place_of(cast)), value, instead_of });
            }
        }
        writes
    }

    /// Revocations that may be removed: those that are over or nobody's word, whoever reads them. That `members` does not
    /// keep one says nothing.
    pub(crate) fn useless_revocations(&self, members: &Members, now_ms: u64) -> Vec<Write> {
        let kept = members.revocations();
        let useless = self.revocations.iter().filter(|(_, entry)| {
            let is_useless = |one: &Revocation| {
                // Signed or not, whatever clock is right; and nobody's is so wrong.
                let is_signed = || one.verify(now_ms.min(one.made_ms())).is_ok();
                let is_strange = one.made_ms() > now_ms.saturating_add(STRANGE_MS);
                !kept.contains(one) && (one.is_over(now_ms) || is_strange || !is_signed())
            };
            entry.is_seen && entry.value.as_ref().is_none_or(is_useless)
        });
        let remove = |(mark, entry): (&Mark, &Entry<Revocation>)| Write {
            key: self.revocation_key(*mark),
            value: None,
            instead_of: entry.revision,
        };
        useless.map(remove).collect()
    }

    /// What may be removed: votes that nobody can count who goes by the configuration that is there, which is that of
    /// `members`. The configuration's revision with it: it has to be the same when they are removed.
    pub(crate) fn useless(&self, members: &Members) -> (i64, Vec<Write>) {
        let Some(configuration) = &self.configuration else { return (0, Vec::new()) };
        let there = configuration.value.as_ref().map(Signed::configuration);
        if there.is_none() || there != members.configuration() {
            return (0, Vec::new());
        }
        let useless = self.votes.iter().filter(|(_, entry)| {
            let counts = |cast: &Cast| members.check(cast).is_ok();
            entry.is_seen && !entry.value.as_ref().is_some_and(counts)
        });
        let remove = |(place, entry): (&Place, &Entry<Cast>)| Write {
            key: self.vote_key(*place),
            value: None,
            instead_of: entry.revision,
        };
        (configuration.revision, useless.map(remove).collect())
    }
}

fn place_of(cast: &Cast) -> Place {
    Place { voter: cast.vote().voter, node: cast.vote().node }
}

#[cfg(test)]
mod tests {
    use distos_abi::{Authority, CapId, Kind, ObjectId, VatName};
    use distos_identity::{Bundle, KeyExchange, Root, Serial, Validity};
    use distos_membership::{Configuration, Stance, Vote, Voter, Voting};
    use distos_types::{Chain, HolderSecret};
    use proptest::prelude::*;

    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn cluster() -> ClusterName {
        ClusterName::new("demo").unwrap()
    }

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn signed(number: u64, voters: &[u8]) -> Signed {
        let voter = |n: &u8| (NodeId([*n; 32]), Voter { key: secret(*n).key(), since: 1 });
        let voters = voters.iter().map(voter).collect();
        let voting = Some(Voting { voters, admit: 1, remove: 1 });
        let key_exchange = KeyExchange::HybridPreferred;
        Configuration { cluster: cluster(), number, key_exchange, voting }.sign(&secret(1)).unwrap()
    }

    fn vote(voter: u8, about: u8, number: u64) -> Cast {
        let (voter, node) = (NodeId([voter; 32]), NodeId([about; 32]));
        let stance = Stance::Remove;
        let seed = voter.0[0];
        Vote { cluster: cluster(), voter, since: 1, node, number, stance }.sign(&secret(seed))
    }

    fn members(number: u64, voters: &[u8]) -> Members {
        let validity = Validity { from_s: NOW_S, until_s: NOW_S + 100 };
        let root = secret(1);
        let root = Root::new(cluster(), &root).certificate(validity, Serial([1; 16])).unwrap();
        let mut members = Members::default();
        let bundle = Bundle::new(vec![root], 1).unwrap();
        members.configure(signed(number, voters), &bundle, NOW_S).unwrap();
        members
    }

    /// Has the store take these writes, as one with this revision.
    fn written(mirror: &mut Mirror, writes: &[Write], revision: i64) {
        for write in writes {
            match &write.value {
                Some(value) => mirror.put(&write.key, value, revision),
                None => mirror.delete(&write.key),
            }
        }
    }

    fn offer<'a>(configuration: Option<&'a Signed>, votes: &'a [Cast]) -> Offer<'a> {
        Offer { configuration, votes, ..Offer::default() }
    }

    fn homes() -> BTreeSet<NodeId> {
        (50..53).map(|seed| NodeId(secret(seed).key().0)).collect()
    }

    /// That somebody ends what it had passed on, of a node's with this seed.
    fn revocation(home: u8, nonce: u8) -> Revocation {
        let (owner, all) = (secret(2), Authority::FULL);
        let root = distos_types::Root {
            node: NodeId(secret(home).key().0),
            key_epoch: 1,
            vat: VatName::new("memory").unwrap(),
            kind: Kind(1),
            object: ObjectId(7),
            cap: CapId(1),
            holder: owner.key(),
            authority: all,
            nonce: [0; 16],
        };
        let chain = Chain::issue(root, &secret(home));
        let chain = chain.delegate(&owner, secret(3).key(), all, [nonce; 16]).unwrap();
        Revocation::sign(&chain, &owner, NOW_S * 1000).unwrap()
    }

    #[test]
    fn revocations_are_written_read_page_by_page_and_removed_if_they_are_nobodys_word() {
        let mut mirror = Mirror::new(&cluster(), homes());
        let mut members = Members::default();
        let all: Vec<Revocation> = (0..40).map(|n| revocation(50 + n % 3, n)).collect();
        for one in &all {
            members.revocations_mut().take(one.clone(), NOW_S * 1000).unwrap();
        }
        for page in all.chunks(REVOCATIONS_PAGE) {
            let writes = mirror.writes(Offer { revocations: page, ..Offer::default() });
            written(&mut mirror, &writes, 3);
        }
        assert_eq!(mirror.known(), members.known());
        let (first, next) = mirror.see_revocations(&BTreeMap::new(), None);
        let (second, end) = mirror.see_revocations(&BTreeMap::new(), next);
        assert_eq!((first.len() + second.len(), end), (40, None));
        assert_eq!(mirror.see_revocations(&members.known().homes, None), (Vec::new(), None));
        assert_eq!(mirror.useless_revocations(&members, NOW_S * 1000), []);
        // Somebody writes another one in its place, and one that is none.
        let (at, strange) = (Mark::of(&all[0]), mirror.revocation_key(Mark::of(&all[1])));
        let mut forged = all[0].bytes().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        mirror.put(&mirror.revocation_key(at), &forged, 9);
        mirror.put(&strange, b"nothing", 9);
        let again = mirror.writes(Offer { revocations: &all[..2], ..Offer::default() });
        assert_eq!(again.len(), 1, "what is there was not seen");
        mirror.see_revocations(&BTreeMap::new(), None);
        assert_eq!(mirror.useless_revocations(&members, NOW_S * 1000).len(), 2);
        let again = mirror.writes(Offer { revocations: &all[..2], ..Offer::default() });
        assert!(again.len() == 2 && again.iter().all(|write| write.instead_of == 9));
        written(&mut mirror, &again, 10);
        assert_eq!(mirror.known(), members.known());
        // One that this node has not kept, or not yet, may be right; a home that it does not let in is nobody here.
        let (right, other) = (revocation(50, 99), revocation(60, 1));
        for one in [&right, &other] {
            mirror.put(&mirror.revocation_key(Mark::of(one)), one.bytes(), 11);
        }
        assert_eq!(mirror.see_revocations(&members.known().homes, None).0.len(), 15);
        assert_eq!(mirror.useless_revocations(&members, NOW_S * 1000), []);
        // Ahead of this clock, and signed: it may be this clock that is wrong, but not by days; or not signed at all.
        let mut ahead = revocation(51, 98).bytes().to_vec();
        ahead[..8].copy_from_slice(&(NOW_S * 1000 + 3_600_000).to_le_bytes());
        let ahead = Revocation::decode(&ahead).unwrap();
        mirror.put(&mirror.revocation_key(Mark::of(&ahead)), ahead.bytes(), 12);
        mirror.see_revocations(&BTreeMap::new(), None);
        let next = mirror.see_revocations(&BTreeMap::new(), None).1;
        mirror.see_revocations(&BTreeMap::new(), next);
        assert_eq!(mirror.useless_revocations(&members, NOW_S * 1000).len(), 1);
        mirror.delete(&mirror.revocation_key(Mark::of(&ahead)));
        let over_ms = right.until_ms() + 300_000;
        members.revocations_mut().expire(over_ms);
        assert_eq!(mirror.useless_revocations(&members, over_ms - 1).len(), 0);
        assert_eq!(mirror.useless_revocations(&members, over_ms).len(), 41);
    }

    fn all(mirror: &mut Mirror, known: &BTreeMap<NodeId, [u8; 32]>) -> Vec<Cast> {
        let (page, next) = mirror.see_votes(known, None);
        assert_eq!(next, None);
        page
    }

    #[test]
    fn what_was_written_is_read_and_is_the_same_as_what_whoever_wrote_it_has_heard() {
        let (mut mirror, mut members) = (Mirror::new(&cluster(), homes()), members(1, &[10, 11]));
        let votes = [vote(10, 50, 1), vote(11, 50, 1), vote(11, 51, 2)];
        for cast in &votes {
            members.take(cast.clone()).unwrap();
        }
        let writes = mirror.writes(offer(members.signed(), &votes));
        assert!(writes.iter().all(|write| write.instead_of == 0 && write.value.is_some()));
        written(&mut mirror, &writes, 7);
        assert_eq!(mirror.known(), members.known());
        assert_eq!(mirror.see_configuration().as_ref(), members.signed());
        assert_eq!(all(&mut mirror, &BTreeMap::new()), votes);
        assert_eq!(all(&mut mirror, &members.known().digests), []);
        assert_eq!(mirror.writes(offer(members.signed(), &votes)), [], "it is there");
        // The same names belong to another cluster behind another prefix.
        let mut other = Mirror::new(&ClusterName::new("demo2").unwrap(), homes());
        written(&mut other, &writes, 7);
        assert_eq!(other.known(), Members::default().known());
    }

    #[test]
    fn nothing_is_replaced_that_was_not_seen_but_what_this_program_has_written() {
        let mut mirror = Mirror::new(&cluster(), homes());
        let first = mirror.writes(offer(Some(&signed(1, &[10])), &[vote(10, 50, 1)]));
        written(&mut mirror, &first, 3);
        let newer = (signed(2, &[10]), vote(10, 50, 2));
        assert_eq!(mirror.writes(offer(Some(&newer.0), std::slice::from_ref(&newer.1))), []);
        mirror.see_configuration();
        all(&mut mirror, &BTreeMap::new());
        let writes = mirror.writes(offer(Some(&newer.0), std::slice::from_ref(&newer.1)));
        assert_eq!(writes.iter().map(|write| write.instead_of).collect::<Vec<_>>(), [3, 3]);
        for write in &writes {
            mirror.wrote(write, 4);
        }
        // It is told, too.
        written(&mut mirror, &writes, 4);
        let newest = vote(10, 50, 3);
        assert_eq!(mirror.writes(offer(None, std::slice::from_ref(&newest)))[0].instead_of, 4);
        // Somebody else has written meanwhile.
        written(&mut mirror, &first, 5);
        assert_eq!(mirror.writes(offer(Some(&newer.0), &[newer.1, newest])), []);
    }

    #[test]
    fn what_cannot_be_what_its_name_says_counts_as_nothing_and_may_be_replaced() {
        let mut mirror = Mirror::new(&cluster(), homes());
        let cast = vote(10, 50, 1);
        let key = mirror.vote_key(place_of(&cast));
        let other = vote(10, 51, 1);
        let strange: [&[u8]; 3] = [b"nothing", other.bytes(), &[7; 100_000]];
        for (revision, value) in (1..).zip(strange) {
            mirror.put(&key, value, revision);
            assert_eq!(all(&mut mirror, &BTreeMap::new()), []);
            assert_eq!(mirror.known(), Members::default().known());
            let writes = mirror.writes(offer(None, std::slice::from_ref(&cast)));
            assert_eq!(writes[0].instead_of, revision);
        }
        mirror.put(&mirror.configuration_key(), b"{}", 9);
        assert_eq!(mirror.see_configuration(), None);
        assert_eq!(mirror.writes(offer(Some(&signed(1, &[10])), &[]))[0].instead_of, 9);
        // A name in another form is no name of that vote.
        let upper = String::from_utf8(key.clone()).unwrap().replace("0a", "0A");
        let longer = [&key[..], b"/x"].concat();
        for name in [upper.as_bytes(), &longer, b"/distos/demo/vote/", b"/distos/demo/", b"\xff"] {
            mirror.put(name, cast.bytes(), 10);
        }
        assert_eq!(all(&mut mirror, &BTreeMap::new()), []);
    }

    #[test]
    fn votes_are_removed_if_they_count_for_nobody_who_goes_by_the_configuration_that_is_there() {
        let (mut mirror, members) = (Mirror::new(&cluster(), homes()), members(2, &[10]));
        let old =
            mirror.writes(offer(Some(&signed(1, &[10, 11])), &[vote(10, 50, 1), vote(11, 50, 1)]));
        written(&mut mirror, &old, 3);
        mirror.see_configuration();
        all(&mut mirror, &BTreeMap::new());
        assert_eq!(mirror.useless(&members), (0, Vec::new()), "others may go by it");
        let newer = mirror.writes(offer(members.signed(), &[]));
        written(&mut mirror, &newer, 4);
        let (revision, useless) = mirror.useless(&members);
        let gone = mirror.vote_key(place_of(&vote(11, 50, 1)));
        assert_eq!(revision, 4);
        assert_eq!(useless, [Write { key: gone, value: None, instead_of: 3 }]);
        written(&mut mirror, &useless, 5);
        assert_eq!(mirror.useless(&members), (4, Vec::new()));
        assert_eq!(all(&mut mirror, &BTreeMap::new()), [vote(10, 50, 1)]);
    }

    /// Or a flood of them would hide what voters say.
    #[test]
    fn what_is_nothing_is_removed_and_more_than_is_kept_in_mind_is_noticed() {
        let (mut mirror, members) = (Mirror::new(&cluster(), homes()), members(1, &[10]));
        let configured = mirror.writes(offer(members.signed(), &[]));
        written(&mut mirror, &configured, 1);
        mirror.see_configuration();
        let name = |number: usize| {
            let mut about = [0; 32];
            about[..8].copy_from_slice(&number.to_be_bytes());
            Place { voter: NodeId([9; 32]), node: NodeId(about) }
        };
        for number in 0..MAX_VOTES {
            mirror.put(&mirror.vote_key(name(number)), b"x", 2);
        }
        assert!(!mirror.is_partial());
        let real = vote(10, 50, 1);
        mirror.put(&mirror.vote_key(place_of(&real)), real.bytes(), 3);
        assert!(mirror.is_partial());
        assert_eq!(mirror.useless(&members).1.len(), MAX_VOTES);
    }

    #[test]
    fn many_votes_are_read_page_by_page() {
        let mut mirror = Mirror::new(&cluster(), homes());
        let casts: Vec<Cast> = (0..=255).map(|about| vote(10, about, 1)).collect();
        let writes = mirror.writes(offer(None, &casts));
        written(&mut mirror, &writes, 1);
        let writes = mirror.writes(offer(None, &[vote(11, 50, 1)]));
        written(&mut mirror, &writes, 2);
        let (page, next) = mirror.see_votes(&BTreeMap::new(), None);
        assert_eq!((page.len(), next.is_some()), (PAGE, true));
        let (page, next) = mirror.see_votes(&BTreeMap::new(), next);
        assert_eq!((page, next), (vec![vote(11, 50, 1)], None));
    }

    proptest! {
        #[test]
        fn whatever_is_written_to_a_store_is_taken_or_left(
            name in "/distos/(demo|other)/(configuration|vote/[0-9a-f]{0,64}/[0-9a-f]{64}|.{0,20})",
            value in proptest::collection::vec(any::<u8>(), 0..700),
            revision in any::<i64>(),
        ) {
            let mut mirror = Mirror::new(&cluster(), homes());
            mirror.put(name.as_bytes(), &value, revision);
            let known = mirror.known();
            let (page, next) = mirror.see_votes(&BTreeMap::new(), None);
            prop_assert_eq!((page.len(), next), (known.digests.len(), None));
            mirror.delete(name.as_bytes());
            prop_assert_eq!(mirror.known(), Members::default().known());
        }
    }
}
