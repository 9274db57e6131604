//! Revocations that are on their way to capabilities' homes: what a node keeps of them, and tells others.
//!
//! Each proves by itself that whoever signed it may end what it names, so it does not matter from whom it comes. It is
//! kept until what it ends has ended by itself, and for thirty days at most: a home that does not hear for longer is
//! to be joined anew. What one signer says of a link replaces nothing that another says of it. What is kept is bounded,
//! and the same everywhere in whatever order it was heard: of what is too much, the earliest stay. So that nobody makes
//! theirs earlier than it is, whoever first takes one looks that it is from now.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use distos_abi::{Fault, LinkHash, NodeId};
use distos_types::{Revocation, Signer};

/// Revocations for one home.
pub const MAX_OF_HOME: usize = 256;
/// With so many none is accepted any more that is brought: what was accepted elsewhere meanwhile still has room.
const FULL: usize = 192;
/// Homes for which there are any: more than nodes that a cluster's voters speak of.
pub const MAX_HOMES: usize = 1536;

/// Where somebody who reads all revocations page by page goes on: behind this home's, of this link, by this signer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The home.
    pub home: NodeId,
    /// What is ended there.
    pub link: LinkHash,
    /// By whom.
    pub signer: Signer,
}

impl Mark {
    /// Where a revocation stands.
    pub fn of(revocation: &Revocation) -> Mark {
        Mark { home: revocation.home(), link: revocation.link(), signer: revocation.signer() }
    }
}

/// What is known of revocations, by home.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    homes: BTreeMap<NodeId, Home>,
    /// The homes of which others are told; `None`: all.
    shown: Option<BTreeSet<NodeId>>,
    /// How often those have changed.
    turn: u64,
}

#[derive(Clone, Debug, Default)]
struct Home {
    kept: BTreeMap<(LinkHash, Signer), Revocation>,
    digest: OnceCell<[u8; 32]>,
}

impl Home {
    fn digest(&self) -> [u8; 32] {
        *self.digest.get_or_init(|| Revocations::digest(self.kept.values()))
    }

    /// Keeps no more than so many: the earliest.
    fn bound(&mut self) {
        while self.kept.len() > MAX_OF_HOME {
            let last = self.kept.iter().max_by_key(|(_, one)| rank(one)).map(|(at, _)| *at);
            last.map(|at| self.kept.remove(&at));
        }
    }
}

fn at(revocation: &Revocation) -> (LinkHash, Signer) {
    (revocation.link(), revocation.signer())
}

/// Of two of one signer's that end the same, or of too many, the one with the smaller rank stays.
fn rank(revocation: &Revocation) -> (u64, [u8; 32]) {
    (revocation.made_ms(), *revocation.hash())
}

impl Revocations {
    /// BLAKE3 of the hashes of revocations that come in the order of their marks.
    pub fn digest<'a>(revocations: impl IntoIterator<Item = &'a Revocation>) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for revocation in revocations {
            hasher.update(revocation.hash());
        }
        *hasher.finalize().as_bytes()
    }

    /// Takes a revocation, from whomever it comes; whether it is new. One whose time is over is not, nor is one for a home
    /// of which others are not told.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] or [`Fault::Denied`] if whoever signed it may not end that.
    pub fn take(&mut self, revocation: Revocation, now_ms: u64) -> Result<bool, Fault> {
        let known = self.homes.get(&revocation.home());
        let known = known.and_then(|home| home.kept.get(&at(&revocation)));
        if !self.shows(&revocation.home()) {
            return Ok(false);
        }
        // What is known need not be looked at.
        if known.is_some_and(|known| rank(known) <= rank(&revocation)) {
            return Ok(false);
        }
        match revocation.verify(now_ms) {
            Err(Fault::Expired { .. }) => return Ok(false),
            checked => checked?,
        }
        Ok(self.keep(revocation))
    }

    /// Keeps one that was verified before; whether it is kept.
    pub fn keep(&mut self, revocation: Revocation) -> bool {
        let (home, at, hash) = (revocation.home(), at(&revocation), *revocation.hash());
        if self.homes.len() >= MAX_HOMES && !self.homes.contains_key(&home) {
            return false;
        }
        let home = self.homes.entry(home).or_default();
        home.kept.insert(at, revocation);
        home.bound();
        home.digest = OnceCell::new();
        home.kept.get(&at).is_some_and(|kept| *kept.hash() == hash)
    }

    /// Whether another one for this home is not to be accepted.
    pub fn is_full(&self, home: NodeId) -> bool {
        match self.homes.get(&home) {
            Some(home) => home.kept.len() >= FULL,
            None => self.homes.len() >= MAX_HOMES,
        }
    }

    /// What is kept there.
    pub fn get(&self, mark: &Mark) -> Option<&Revocation> {
        self.homes.get(&mark.home)?.kept.get(&(mark.link, mark.signer))
    }

    /// Forgets those whose time is over; whether there were any.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let mut any = false;
        for home in self.homes.values_mut() {
            let before = home.kept.len();
            home.kept.retain(|_, one| now_ms < one.until_ms());
            if home.kept.len() < before {
                home.digest = OnceCell::new();
                any = true;
            }
        }
        self.homes.retain(|_, home| !home.kept.is_empty());
        any
    }

    /// Whether this very one is kept.
    pub fn contains(&self, revocation: &Revocation) -> bool {
        self.get(&Mark::of(revocation)) == Some(revocation)
    }

    /// Those for one home, in the order of their marks.
    pub fn of(&self, home: NodeId) -> impl Iterator<Item = &Revocation> {
        self.homes.get(&home).into_iter().flat_map(|home| home.kept.values())
    }

    /// The homes for which there are any.
    pub fn homes(&self) -> BTreeSet<NodeId> {
        self.homes.keys().copied().collect()
    }

    /// Tells others of what is kept for these homes alone from now on; whether that is another set than before. Whoever
    /// does not let a home in takes nothing that is for it, and would ask for it without end. What is kept stays: the home may
    /// be let in again.
    pub fn show(&mut self, homes: BTreeSet<NodeId>) -> bool {
        let is_new = self.shown.as_ref() != Some(&homes);
        self.shown = Some(homes);
        self.turn += u64::from(is_new);
        is_new
    }

    /// How often the homes have changed of which others are told: whoever has told all before may have more since.
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// Whether others are told of what is kept for this home.
    pub fn shows(&self, home: &NodeId) -> bool {
        self.shown.as_ref().is_none_or(|shown| shown.contains(home))
    }

    /// The digest of what is kept for each home, shown or not.
    pub fn kept(&self) -> impl Iterator<Item = (NodeId, [u8; 32])> {
        self.homes.iter().map(|(home, kept)| (*home, kept.digest()))
    }

    /// The digest of what is kept for each home of which others are told.
    pub fn digests(&self) -> impl Iterator<Item = (NodeId, [u8; 32])> {
        self.kept().filter(|(home, _)| self.shows(home))
    }

    /// Up to `limit` behind `after`, for those homes of which somebody who knows `known` has not heard the same; and
    /// where to go on, if there may be more.
    pub fn page(
        &self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Mark>,
        limit: usize,
    ) -> (Vec<&Revocation>, Option<Mark>) {
        let first = after.map_or(NodeId([0; 32]), |after| after.home);
        let differs = |(home, kept): &(&NodeId, &Home)| {
            known.get(home).is_none_or(|known| *known != kept.digest())
        };
        let found = self.homes.range(first..).filter(|(home, _)| self.shows(home));
        let found = found.filter(differs);
        let found = found.flat_map(|(_, home)| home.kept.values());
        let found = found.filter(|one| after.is_none_or(|after| Mark::of(one) > after));
        let page: Vec<&Revocation> = found.take(limit).collect();
        let next = page.last().filter(|_| page.len() == limit).map(|last| Mark::of(last));
        (page, next)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use distos_abi::{Authority, CapId, Kind, ObjectId, VatName};
    use distos_types::{Chain, HolderSecret, REVOCATION_LASTS_MS, Root};
    use proptest::prelude::*;

    use super::*;

    pub(crate) const NOW_MS: u64 = 1_800_000_000_000;

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    /// That `tenant`, to whom the operator of node `home` gave something, ends its own delegation number `nonce`.
    pub(crate) fn revocation(home: u8, tenant: u8, nonce: u8, made_ms: u64) -> Revocation {
        let root = Root {
            node: NodeId(secret(home).key().0),
            key_epoch: 1,
            vat: VatName::new("memory").unwrap(),
            kind: Kind(1),
            object: ObjectId(7),
            cap: CapId(1),
            holder: secret(1).key(),
            authority: Authority::FULL,
            nonce: [0; 16],
        };
        let (tenant, all) = (secret(tenant), Authority::FULL);
        let chain = Chain::issue(root, &secret(home));
        let chain = chain.delegate(&secret(1), tenant.key(), all, [1; 16]).unwrap();
        let chain = chain.delegate(&tenant, secret(5).key(), all, [nonce; 16]).unwrap();
        Revocation::sign(&chain, &tenant, made_ms).unwrap()
    }

    fn links(kept: &Revocations, home: u8) -> Vec<LinkHash> {
        kept.of(NodeId(secret(home).key().0)).map(Revocation::link).collect()
    }

    #[test]
    fn each_is_kept_once_and_one_that_is_nobody_s_word_is_not() {
        let mut kept = Revocations::default();
        let one = revocation(100, 2, 1, NOW_MS);
        assert_eq!(kept.take(one.clone(), NOW_MS), Ok(true));
        assert_eq!(kept.take(one.clone(), NOW_MS), Ok(false));
        // The same link, ended again later: what was said first stays.
        assert_eq!(kept.take(revocation(100, 2, 1, NOW_MS + 5), NOW_MS), Ok(false));
        assert_eq!(kept.take(revocation(100, 2, 1, NOW_MS - 5), NOW_MS), Ok(true));
        assert!(!kept.contains(&one) && links(&kept, 100).len() == 1);
        let mut bytes = revocation(100, 2, 2, NOW_MS).bytes().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let forged = Revocation::decode(&bytes).unwrap();
        assert!(matches!(kept.take(forged, NOW_MS), Err(Fault::Unauthenticated(_))));
        assert_eq!(links(&kept, 100).len(), 1);
    }

    #[test]
    fn whose_time_is_over_is_forgotten_and_not_taken_again() {
        let mut kept = Revocations::default();
        let (old, new) = (revocation(100, 2, 1, NOW_MS), revocation(101, 2, 2, NOW_MS + 1));
        kept.take(old.clone(), NOW_MS).unwrap();
        kept.take(new.clone(), NOW_MS).unwrap();
        let over_ms = NOW_MS + REVOCATION_LASTS_MS;
        assert!(!kept.expire(over_ms - 1) && kept.expire(over_ms));
        assert!(!kept.contains(&old) && kept.contains(&new));
        assert_eq!(kept.homes().len(), 1);
        assert_eq!(kept.take(old, over_ms), Ok(false));
    }

    /// Whoever ends things without end, and dates them back, must not have what others have ended forgotten: the earliest
    /// stay, and who takes one first looks that it is from now.
    #[test]
    fn a_flood_displaces_nothing_that_was_there_before_it() {
        let mut kept = Revocations::default();
        let quiet = revocation(100, 3, 0, NOW_MS);
        kept.take(quiet.clone(), NOW_MS).unwrap();
        for tenant in 10..30 {
            for nonce in 0..20 {
                kept.take(revocation(100, tenant, nonce, NOW_MS + 1), NOW_MS).unwrap();
            }
        }
        assert_eq!(links(&kept, 100).len(), MAX_OF_HOME);
        assert!(kept.contains(&quiet) && kept.is_full(quiet.home()));
        assert_eq!(kept.take(revocation(100, 3, 1, NOW_MS + 2), NOW_MS), Ok(false));
        let elsewhere = revocation(101, 3, 0, NOW_MS);
        assert!(
            !kept.is_full(elsewhere.home()) && kept.take(elsewhere.clone(), NOW_MS) == Ok(true)
        );
        for nonce in 1..FULL as u8 {
            assert!(!kept.is_full(elsewhere.home()));
            kept.take(revocation(101, 3, nonce, NOW_MS), NOW_MS).unwrap();
        }
        assert!(kept.is_full(elsewhere.home()));
    }

    /// Whose it was to give up could otherwise have what ends it forgotten.
    #[test]
    fn what_a_holder_says_of_its_link_replaces_nothing_that_its_issuer_says() {
        let mut kept = Revocations::default();
        let chain = {
            let issued = revocation(100, 2, 1, NOW_MS);
            kept.take(issued.clone(), NOW_MS).unwrap();
            issued.by().delegate(&secret(2), secret(5).key(), Authority::FULL, [1; 16]).unwrap()
        };
        let early_ms = NOW_MS - REVOCATION_LASTS_MS + 10_000;
        let given_up = Revocation::sign(&chain, &secret(5), early_ms).unwrap();
        assert_eq!(given_up.link(), revocation(100, 2, 1, NOW_MS).link());
        assert_eq!(kept.take(given_up, NOW_MS), Ok(true));
        assert_eq!(links(&kept, 100).len(), 2);
        assert!(kept.expire(NOW_MS + 10_000));
        assert!(kept.contains(&revocation(100, 2, 1, NOW_MS)));
    }

    /// Or nodes that have it and nodes that may not take it would ask one another for ever; and what was left would be
    /// lost while its home is out.
    #[test]
    fn of_a_home_that_is_out_nobody_is_told_until_it_is_back() {
        let mut kept = Revocations::default();
        let (one, other) = (revocation(100, 2, 1, NOW_MS), revocation(101, 2, 2, NOW_MS));
        kept.take(one.clone(), NOW_MS).unwrap();
        let before: Vec<_> = kept.digests().collect();
        kept.take(other.clone(), NOW_MS).unwrap();
        assert!(kept.show([one.home()].into()));
        assert_eq!(kept.digests().collect::<Vec<_>>(), before);
        assert_eq!(kept.page(&BTreeMap::new(), None, 9).0, [&one]);
        assert_eq!(kept.kept().count(), 2);
        // Nor is more taken for it.
        assert_eq!(kept.take(revocation(101, 2, 3, NOW_MS), NOW_MS), Ok(false));
        assert!(!kept.show([one.home()].into()) && kept.show([one.home(), other.home()].into()));
        assert_eq!(kept.page(&BTreeMap::new(), None, 9).0.len(), 2);
    }

    #[test]
    fn all_are_read_page_by_page_and_of_what_is_known_nothing() {
        let mut kept = Revocations::default();
        for (home, nonce) in [(100, 1), (100, 2), (101, 3), (102, 4), (102, 5)] {
            kept.take(revocation(home, 2, nonce, NOW_MS), NOW_MS).unwrap();
        }
        let all: BTreeMap<_, _> = kept.digests().collect();
        assert_eq!(kept.page(&all, None, 9).0.len(), 0);
        for limit in 1..7 {
            let (mut read, mut after) = (0, None);
            loop {
                let (page, next) = kept.page(&BTreeMap::new(), after, limit);
                read += page.len();
                match next {
                    None => break,
                    Some(_) => after = next,
                }
            }
            assert_eq!(read, 5, "{limit}");
        }
        let mut some = all;
        some.retain(|home, _| *home == NodeId(secret(102).key().0));
        assert_eq!(kept.page(&some, None, 9).0.len(), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4))]
        /// Or nodes would ask one another for ever.
        #[test]
        fn in_whatever_order_they_are_heard_the_same_is_kept(
            order in Just((0..300u16).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let (mut one, mut other) = (Revocations::default(), Revocations::default());
            let made = |n: u16| {
                let made_ms = NOW_MS + u64::from(n) * 7 % 13;
                revocation(100, 2 + (n % 2) as u8, (n / 2 % 140) as u8, made_ms)
            };
            (0..300).for_each(|n| drop(one.take(made(n), NOW_MS)));
            order.iter().for_each(|n| drop(other.take(made(*n), NOW_MS)));
            prop_assert_eq!(one.digests().collect::<Vec<_>>(), other.digests().collect::<Vec<_>>());
        }
    }
}
