//! What a cluster agrees on, and what was revoked, behind one trait: kept by its nodes, which tell one another, or in a store that they
//! share. Whoever keeps it is trusted with nothing: it holds what the root, the voters and those have signed who revoke
//! something, and can at worst not tell it. No I/O.

use std::collections::BTreeMap;

use distos_abi::{Fault, LinkHash, NodeId};
use distos_identity::Bundle;
use distos_types::{Revocation, Signer};

use crate::configuration::Signed;
use crate::members::{Members, Place, Summary};
use crate::revocations::Mark;
use crate::vote::Cast;

/// Votes in one page.
pub const PAGE: usize = 256;
/// Revocations in one page.
pub const REVOCATIONS_PAGE: usize = 32;

/// What somebody has heard, in short, by voter, and by the home of what was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// All of it.
    pub summary: Summary,
    /// The digest of what each voter has said.
    pub digests: BTreeMap<NodeId, [u8; 32]>,
    /// The digest of what was revoked at each home.
    pub homes: BTreeMap<NodeId, [u8; 32]>,
}

/// What is left somewhere: at most a page of each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offer<'a> {
    /// The configuration, if it is to be left.
    pub configuration: Option<&'a Signed>,
    /// Votes.
    pub votes: &'a [Cast],
    /// Revocations.
    pub revocations: &'a [Revocation],
}

/// Who keeps what a cluster agrees on. None of it is to be believed before [`Members`] has taken it.
#[expect(async_fn_in_trait, reason = "whoever asks does so on one thread")]
pub trait ClusterState {
    /// What is there, in short.
    async fn known(&mut self) -> Result<Known, Fault>;

    /// The configuration that is there.
    async fn configuration(&mut self) -> Result<Option<Signed>, Fault>;

    /// Up to [`PAGE`] votes behind `after`, of voters of whom somebody who knows `known` has not heard the same; and
    /// where to go on, if there may be more.
    async fn votes(
        &mut self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Place>,
    ) -> Result<(Vec<Cast>, Option<Place>), Fault>;

    /// Up to [`REVOCATIONS_PAGE`] revocations behind `after`, for homes of which somebody who knows `known` has not heard
    /// the same; and where to go on, if there may be more.
    async fn revocations(
        &mut self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Mark>,
    ) -> Result<(Vec<Revocation>, Option<Mark>), Fault>;

    /// Leaves this there in place of what is older. Whoever calls it has seen what is there: of what has changed since,
    /// nothing is replaced.
    async fn leave(&mut self, offer: Offer<'_>) -> Result<(), Fault>;

    /// Resolves once what is there may differ from what was `seen`, or after some seconds. May be dropped at any time.
    async fn changed(&mut self, seen: &Summary) -> Result<(), Fault>;
}

/// Asks for all votes of which somebody who knows `known` may not have heard, page by page. What `take` makes of one
/// page says nothing about the others: the first fault that it tells is returned at the end.
///
/// # Errors
/// Whatever the state fails with; [`Fault::Malformed`] if its pages do not come to an end.
pub async fn all_votes(
    state: &mut impl ClusterState,
    known: &BTreeMap<NodeId, [u8; 32]>,
    mut take: impl AsyncFnMut(Vec<Cast>) -> Option<Fault>,
) -> Result<(), Fault> {
    let (mut after, mut wrong) = (None, None);
    loop {
        let (casts, next) = state.votes(known, after).await?;
        let fault = take(casts).await;
        wrong = wrong.or(fault);
        match next {
            None => return wrong.map_or(Ok(()), Err),
            Some(_) if next <= after => return Err(Fault::malformed("its votes go round")),
            _ => after = next,
        }
    }
}

/// The same of revocations, for homes that `wants` names: others' are passed over, however many there are.
///
/// # Errors
/// As those of [`all_votes`].
pub async fn all_revocations(
    state: &mut impl ClusterState,
    known: &BTreeMap<NodeId, [u8; 32]>,
    wants: impl Fn(&NodeId) -> bool,
    mut take: impl AsyncFnMut(Vec<Revocation>) -> Option<Fault>,
) -> Result<(), Fault> {
    let (mut after, mut wrong) = (None, None);
    loop {
        let (page, next) = state.revocations(known, after).await?;
        let fault = take(page).await;
        wrong = wrong.or(fault);
        let last = |next: Mark| match wants(&next.home) {
            true => next,
            false => Mark { link: LinkHash([0xff; 32]), signer: Signer::Holder, ..next },
        };
        let next = next.map(last);
        match next {
            None => return wrong.map_or(Ok(()), Err),
            Some(_) if next <= after => return Err(Fault::malformed("its revocations go round")),
            _ => after = next,
        }
    }
}

/// What came of looking at a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How much of it was new: votes, revocations, and a configuration.
    pub new: usize,
    /// What is wrong with something that is there, which was left alone.
    pub wrong: Option<Fault>,
}

impl Found {
    /// What is wrong with something that is there is no error of whoever reads it: it is not to be believed, and that the
    /// state says it is not its fault.
    fn note(&mut self, read: Result<(), Fault>) -> Result<(), Fault> {
        match read {
            Err(
                fault @ (Fault::Unauthenticated(_) | Fault::Malformed(_) | Fault::Denied { .. }),
            ) => {
                self.wrong.get_or_insert(fault);
                Ok(())
            }
            read => read,
        }
    }
}

/// Takes what is there and what `members` has not heard. If it is `believed`, what it goes by is taken without a root's
/// word: whoever has verified it may know a root that this bundle does not name any more.
///
/// # Errors
/// Whatever the state fails with. That something there is nobody's word is no error of whoever reads it.
pub async fn hear(
    members: &mut Members,
    state: &mut impl ClusterState,
    believed: bool,
    bundle: &Bundle,
    now_s: u64,
) -> Result<Found, Fault> {
    let mut found = Found::default();
    // What is kept beyond its time would be in the way of what is new.
    members.revocations_mut().expire(now_s.saturating_mul(1000));
    let theirs = state.known().await?.summary;
    if theirs == members.summary() {
        return Ok(found);
    }
    // Also one with a smaller number, so that whoever leaves ours there has seen what is replaced.
    if let Some(signed) = state.configuration().await?
        && signed.configuration().number >= members.number()
        && members.configuration() != Some(signed.configuration())
    {
        match members.configure(signed.clone(), bundle, now_s) {
            Ok(is_new) => found.new += usize::from(is_new),
            Err(_) if believed => {
                let revocations = std::mem::take(members.revocations_mut());
                *members = Members::restore(Some(signed), []);
                *members.revocations_mut() = revocations;
                found.new += 1;
            }
            Err(fault) => found.wrong = Some(fault),
        }
    }
    let known = members.digests().collect();
    let take = async |casts: Vec<Cast>| {
        let mut wrong = None;
        for cast in casts {
            match members.take(cast) {
                Ok(is_new) => found.new += usize::from(is_new),
                Err(fault) => wrong = Some(fault),
            }
        }
        wrong
    };
    let read = all_votes(state, &known, take).await;
    found.note(read)?;
    let (known, now_ms) = (members.known().homes, now_s.saturating_mul(1000));
    // Whoever is read tells of others' homes what is there, and those are not kept.
    let shown = members.revocations().clone();
    let take = async |page: Vec<Revocation>| {
        let mut wrong = None;
        for revocation in page {
            match members.revocations_mut().take(revocation, now_ms) {
                Ok(is_new) => found.new += usize::from(is_new),
                Err(fault) => wrong = Some(fault),
            }
        }
        wrong
    };
    let read = all_revocations(state, &known, |home| shown.shows(home), take).await;
    found.note(read)?;
    Ok(found)
}

/// What came of leaving something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// How much was tried: votes, revocations, and a configuration.
    pub new: usize,
    /// What stands in the way, or did: another configuration.
    pub other: Option<Other>,
    /// Why the state has not taken some of it.
    pub refused: Option<Fault>,
}

/// A configuration that is another one than ours, and not an older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// No root has signed it of which the bundle knows: it is somebody's forgery, or of a root that this bundle does not
    /// name yet.
    Unknown,
    /// A root has signed it, and `members` has not taken it: there are two of one number, or it names voters as older ones
    /// did.
    Known,
}

impl Left {
    /// Leaves this there. What is wrong with some of it says nothing about the rest.
    async fn put(&mut self, state: &mut impl ClusterState, offer: Offer<'_>) -> Result<(), Fault> {
        let Offer { configuration, votes, revocations } = offer;
        self.new += votes.len() + revocations.len() + usize::from(configuration.is_some());
        match state.leave(offer).await {
            Err(fault @ (Fault::Unauthenticated(_) | Fault::Malformed(_))) => {
                self.refused.get_or_insert(fault);
                Ok(())
            }
            done => done,
        }
    }
}

/// Leaves there what `members` has heard and the state has not. It has to have been heard before.
///
/// Nothing is left beside a configuration that is not older than ours: others may go by it, and would remove what
/// does not count by it. Only if it is [`Other::Unknown`], and with `may_mend`, ours is left in its place: whoever has the older
/// bundle undoes what others have said, until they say it again.
///
/// # Errors
/// Whatever the state fails with. What it refuses is told in [`Left::refused`].
pub async fn leave(
    members: &Members,
    state: &mut impl ClusterState,
    bundle: &Bundle,
    now_s: u64,
    may_mend: bool,
) -> Result<Left, Fault> {
    let mut left = Left::default();
    let known = state.known().await?;
    if known.summary == members.summary() {
        return Ok(left);
    }
    if let Some(own) = members.signed() {
        let theirs = state.configuration().await?;
        let is_same = theirs.as_ref().map(Signed::configuration) == members.configuration();
        let newer = theirs.filter(|theirs| theirs.configuration().number >= members.number());
        left.other = newer.filter(|_| !is_same).map(|other| match other.verify(bundle, now_s) {
            Ok(_) => Other::Known,
            Err(_) => Other::Unknown,
        });
        match left.other {
            Some(Other::Known) => return Ok(left),
            Some(Other::Unknown) if !may_mend => return Ok(left),
            _ if is_same => {}
            _ => {
                let configuration = Some(own);
                left.put(state, Offer { configuration, ..Offer::default() }).await?;
            }
        }
    }
    let mut after = None;
    loop {
        let (page, next) = members.page(&known.digests, after, PAGE);
        let page: Vec<Cast> = page.into_iter().cloned().collect();
        if !page.is_empty() {
            left.put(state, Offer { votes: &page, ..Offer::default() }).await?;
        }
        match next {
            None => break,
            Some(_) => after = next,
        }
    }
    let mut after = None;
    loop {
        let (page, next) = members.revocations().page(&known.homes, after, REVOCATIONS_PAGE);
        let page: Vec<Revocation> = page.into_iter().cloned().collect();
        if !page.is_empty() {
            left.put(state, Offer { revocations: &page, ..Offer::default() }).await?;
        }
        match next {
            None => return Ok(left),
            Some(_) => after = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use distos_abi::HolderKey;
    use distos_identity::{ClusterName, KeyExchange, Root, Serial, Validity};
    use distos_types::HolderSecret;
    use proptest::prelude::*;

    use super::*;
    use crate::revocations::tests::revocation;
    use crate::{Configuration, Revocations, Stance, Vote, Voter, Voting, digest};

    const NOW_S: u64 = 1_800_000_000;

    /// A state that believes whatever is left there, and is away now and then.
    #[derive(Default)]
    struct Board {
        configuration: Option<Signed>,
        votes: BTreeMap<(NodeId, NodeId), Cast>,
        revocations: BTreeMap<Mark, Revocation>,
        is_away: bool,
        /// After so many things were left, it is away.
        away_after: Option<usize>,
    }

    impl Board {
        fn here(&self) -> Result<(), Fault> {
            match self.is_away {
                true => Err(Fault::unavailable(1, "away")),
                false => Ok(()),
            }
        }

        fn put(&mut self, cast: Cast) {
            self.votes.insert((cast.vote().voter, cast.vote().node), cast);
        }
    }

    impl ClusterState for Board {
        async fn known(&mut self) -> Result<Known, Fault> {
            self.here()?;
            let mut by_voter: BTreeMap<NodeId, Vec<&Cast>> = BTreeMap::new();
            for ((voter, _), cast) in &self.votes {
                by_voter.entry(*voter).or_default().push(cast);
            }
            let digests: BTreeMap<_, _> =
                by_voter.into_iter().map(|(voter, casts)| (voter, digest(casts))).collect();
            let mut by_home: BTreeMap<NodeId, Vec<&Revocation>> = BTreeMap::new();
            for (mark, revocation) in &self.revocations {
                by_home.entry(mark.home).or_default().push(revocation);
            }
            let homes: BTreeMap<_, _> =
                by_home.into_iter().map(|(home, all)| (home, Revocations::digest(all))).collect();
            let summary = Summary::of(self.configuration.as_ref(), digests.clone(), homes.clone());
            Ok(Known { summary, digests, homes })
        }

        async fn configuration(&mut self) -> Result<Option<Signed>, Fault> {
            self.here()?;
            Ok(self.configuration.clone())
        }

        async fn votes(
            &mut self,
            _: &BTreeMap<NodeId, [u8; 32]>,
            after: Option<Place>,
        ) -> Result<(Vec<Cast>, Option<Place>), Fault> {
            self.here()?;
            let after = after.map(|after| (after.voter, after.node));
            let rest = self.votes.iter().filter(|(place, _)| Some(**place) > after);
            let page: Vec<_> = rest.take(2).collect();
            let last = page.last().filter(|_| page.len() == 2);
            let next = last.map(|((voter, node), _)| Place { voter: *voter, node: *node });
            Ok((page.into_iter().map(|(_, cast)| cast.clone()).collect(), next))
        }

        async fn revocations(
            &mut self,
            _: &BTreeMap<NodeId, [u8; 32]>,
            after: Option<Mark>,
        ) -> Result<(Vec<Revocation>, Option<Mark>), Fault> {
            self.here()?;
            let rest = self.revocations.iter().filter(|(mark, _)| Some(**mark) > after);
            let page: Vec<_> = rest.take(2).collect();
            let next = page.last().filter(|_| page.len() == 2).map(|(mark, _)| **mark);
            Ok((page.into_iter().map(|(_, one)| one.clone()).collect(), next))
        }

        async fn leave(&mut self, offer: Offer<'_>) -> Result<(), Fault> {
            let Offer { configuration, votes, revocations } = offer;
            self.here()?;
            let all = revocations.iter().map(|one| (Mark::of(one), one.clone()));
            self.revocations.extend(all);
            self.configuration = configuration.cloned().or(self.configuration.take());
            for cast in votes {
                if self.away_after == Some(0) {
                    self.is_away = true;
                    self.here()?;
                }
                self.away_after = self.away_after.map(|left| left - 1);
                self.put(cast.clone());
            }
            Ok(())
        }

        async fn changed(&mut self, _: &Summary) -> Result<(), Fault> {
            self.here()
        }
    }

    /// Nothing here waits.
    fn now<T>(future: impl Future<Output = T>) -> T {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it waits"),
        }
    }

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn key(seed: u8) -> HolderKey {
        secret(seed).key()
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

    fn signed(number: u64, by: u8) -> Signed {
        let voter = |n: u8| (NodeId([n; 32]), Voter { key: key(n), since: 1 });
        let voters = [10, 11, 12].map(voter).into_iter().collect();
        let voting = Some(Voting { voters, admit: 2, remove: 1 });
        let key_exchange = KeyExchange::HybridPreferred;
        Configuration { cluster: cluster(), number, key_exchange, voting }
            .sign(&secret(by))
            .unwrap()
    }

    fn vote(voter: u8, about: u8, number: u64, stance: Stance, by: u8) -> Cast {
        let (voter, node) = (NodeId([voter; 32]), NodeId([about; 32]));
        Vote { cluster: cluster(), voter, since: 1, node, number, stance }.sign(&secret(by))
    }

    fn members() -> Members {
        let mut members = Members::default();
        members.configure(signed(1, 1), &bundle(), NOW_S).unwrap();
        members
    }

    /// Hears what is there, and leaves there what it has heard.
    fn meet(members: &mut Members, board: &mut Board) -> Result<(Found, usize), Fault> {
        let found = now(hear(members, board, false, &bundle(), NOW_S))?;
        Ok((found, now(leave(members, board, &bundle(), NOW_S, true))?.new))
    }

    const ADMIT: Stance = Stance::Admit(None);

    #[test]
    fn nodes_that_meet_nowhere_else_agree_by_what_they_leave_there() {
        let (mut board, mut one, mut other) = (Board::default(), members(), Members::default());
        for about in 50..55 {
            one.take(vote(10, about, 1, ADMIT, 10)).unwrap();
        }
        assert_eq!(meet(&mut one, &mut board).unwrap().1, 6);
        assert_eq!(meet(&mut other, &mut board).unwrap(), (Found { new: 6, wrong: None }, 0));
        assert_eq!(other.summary(), one.summary());
        assert_eq!(meet(&mut one, &mut board).unwrap(), (Found::default(), 0), "all is said");
        // Each has something to say; a newer configuration comes with it.
        one.take(vote(10, 50, 2, Stance::Remove, 10)).unwrap();
        other.configure(signed(2, 1), &bundle(), NOW_S).unwrap();
        other.take(vote(11, 50, 1, ADMIT, 11)).unwrap();
        meet(&mut one, &mut board).unwrap();
        meet(&mut other, &mut board).unwrap();
        meet(&mut one, &mut board).unwrap();
        assert_eq!((one.summary(), one.number()), (other.summary(), 2));
    }

    #[test]
    fn what_nobody_has_signed_is_believed_by_nobody_and_in_nobodys_way() {
        let (mut board, mut one) = (Board::default(), members());
        one.take(vote(10, 50, 5, ADMIT, 10)).unwrap();
        one.take(vote(11, 50, 5, Stance::Remove, 11)).unwrap();
        meet(&mut one, &mut board).unwrap();
        let before = one.summary();
        // A configuration of somebody else's, a vote in another's name, one of nobody's, and one from before.
        board.configuration = Some(signed(u64::MAX, 2));
        board.put(vote(10, 50, u64::MAX, Stance::Remove, 66));
        board.put(vote(66, 50, 1, ADMIT, 66));
        board.put(vote(11, 50, 4, ADMIT, 11));
        // It may be that others know a root that this node does not.
        let left = now(leave(&one, &mut board, &bundle(), NOW_S, false));
        let nothing = Left { other: Some(Other::Unknown), ..Left::default() };
        assert_eq!(left, Ok(nothing));
        let (found, left) = meet(&mut one, &mut board).unwrap();
        assert!(matches!(found, Found { new: 0, wrong: Some(Fault::Unauthenticated(_)) }));
        assert_eq!((one.summary(), left), (before, 3));
        let mut other = Members::default();
        meet(&mut other, &mut board).unwrap();
        assert_eq!(other.summary(), before);
        // Or all of it is lost.
        board = Board::default();
        meet(&mut one, &mut board).unwrap();
        let mut third = Members::default();
        meet(&mut third, &mut board).unwrap();
        assert_eq!(third.summary(), before);
    }

    /// Or one side would remove what the other one leaves there, without end.
    #[test]
    fn beside_another_configuration_that_a_root_has_signed_nothing_is_left() {
        let (mut board, mut one) = (Board::default(), members());
        one.take(vote(10, 50, 1, ADMIT, 10)).unwrap();
        let mut other = signed(1, 1).configuration().clone();
        other.voting.as_mut().unwrap().admit = 1;
        board.configuration = Some(other.sign(&secret(1)).unwrap());
        let (found, _) = meet(&mut one, &mut board).unwrap();
        assert!(matches!(found.wrong, Some(Fault::Malformed(_))), "{found:?}");
        let left = now(leave(&one, &mut board, &bundle(), NOW_S, true)).unwrap();
        assert_eq!((left.new, left.other), (0, Some(Other::Known)));
        assert!(board.votes.is_empty());
    }

    /// Its root may have run out meanwhile, or be named no more.
    #[test]
    fn what_a_node_goes_by_is_carried_also_if_its_root_is_named_no_more() {
        let (mut node, mut board) = (Board::default(), Board::default());
        node.configuration = Some(signed(1, 2));
        node.put(vote(10, 50, 1, ADMIT, 10));
        let mut one = Members::default();
        let found = now(hear(&mut one, &mut node, true, &bundle(), NOW_S)).unwrap();
        assert_eq!(found, Found { new: 2, wrong: None });
        // Somebody who knows the root has left it there, and another vote.
        board.configuration = Some(signed(1, 2));
        board.put(vote(11, 50, 1, ADMIT, 11));
        meet(&mut one, &mut board).unwrap();
        assert_eq!(board.votes.len(), 2);
        now(leave(&one, &mut node, &bundle(), NOW_S, false)).unwrap();
        assert_eq!(node.votes, board.votes);
        // The same, signed once more, is no other one.
        assert_eq!(node.configuration, Some(signed(1, 2)));
    }

    #[test]
    fn pages_that_go_round_come_to_an_end() {
        struct Round;
        impl ClusterState for Round {
            async fn known(&mut self) -> Result<Known, Fault> {
                Ok(members().known())
            }
            async fn configuration(&mut self) -> Result<Option<Signed>, Fault> {
                Ok(None)
            }
            async fn votes(
                &mut self,
                _: &BTreeMap<NodeId, [u8; 32]>,
                _: Option<Place>,
            ) -> Result<(Vec<Cast>, Option<Place>), Fault> {
                let place = Place { voter: NodeId([1; 32]), node: NodeId([1; 32]) };
                Ok((Vec::new(), Some(place)))
            }
            async fn revocations(
                &mut self,
                _: &BTreeMap<NodeId, [u8; 32]>,
                _: Option<Mark>,
            ) -> Result<(Vec<Revocation>, Option<Mark>), Fault> {
                let link = distos_abi::LinkHash([1; 32]);
                let signer = distos_types::Signer::Issuer;
                let mark = Mark { home: NodeId([1; 32]), link, signer };
                Ok((Vec::new(), Some(mark)))
            }
            async fn leave(&mut self, _: Offer<'_>) -> Result<(), Fault> {
                Ok(())
            }
            async fn changed(&mut self, _: &Summary) -> Result<(), Fault> {
                Ok(())
            }
        }
        let all = now(all_votes(&mut Round, &BTreeMap::new(), async |_| None));
        assert!(matches!(all, Err(Fault::Malformed(_))), "{all:?}");
        let all = now(all_revocations(&mut Round, &BTreeMap::new(), |_| true, async |_| None));
        assert!(matches!(all, Err(Fault::Malformed(_))), "{all:?}");
    }

    proptest! {
        /// Whoever votes, whenever the state is away, and whatever is lost there or forged: once it is back and
        /// everybody has been there twice, all have heard what any of them had, and nothing else.
        #[test]
        fn whatever_becomes_of_the_state_all_come_to_hear_the_same(
            steps in proptest::collection::vec((0usize..3, 0u8..9, 50u8..53, 0usize..3), 1..60),
        ) {
            let mut board = Board::default();
            let mut nodes = [members(), members(), members()];
            let mut all = members();
            for (number, (at, what, about, size)) in (1u64..).zip(steps) {
                match what {
                    0..=2 => {
                        let stance = [Stance::None, ADMIT, Stance::Remove][usize::from(what)];
                        let voter = 10 + at as u8;
                        let cast = vote(voter, about, number, stance, voter);
                        nodes[at].take(cast.clone()).unwrap();
                        all.take(cast).unwrap();
                    }
                    3 => board.is_away = !board.is_away,
                    4 => board = Board::default(),
                    5 => board.put(vote(10, about, u64::MAX, ADMIT, 66)),
                    6 => board.away_after = Some(size),
                    7 => {
                        let one = revocation(100 + about, 2, number as u8, NOW_S * 1000);
                        nodes[at].revocations_mut().take(one.clone(), NOW_S * 1000).unwrap();
                        all.revocations_mut().take(one, NOW_S * 1000).unwrap();
                    }
                    _ => drop(meet(&mut nodes[at], &mut board)),
                }
            }
            (board.is_away, board.away_after) = (false, None);
            for _ in 0..2 {
                for node in &mut nodes {
                    meet(node, &mut board).unwrap();
                }
            }
            for node in &nodes {
                prop_assert_eq!(node.summary(), all.summary());
            }
        }
    }
}
