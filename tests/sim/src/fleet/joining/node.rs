//! A node, as far as it matters who belongs to its cluster. What it has heard is on its disk.

use std::collections::BTreeMap;

use distos_abi::NodeId;
use distos_abi::{Authority, CapId, Kind, ObjectId, VatName};
use distos_membership::{Cast, Mark, Members, Place, REVOCATIONS_PAGE, Signed, Stance, Summary};
use distos_types::{Chain, HolderSecret, Revocation, Root};

use super::{BEGIN_US, World};
use crate::fleet::network::{Travels, flipped};
use crate::fleet::truth::Violation;
use crate::random::Random;

/// Votes in one answer, as in services/network.
const PAGE: usize = 256;
/// Nodes that are asked at one time for what this one has not heard.
const MAX_ASKED: usize = 4;
/// How long all answers may take, and how long one who was asked is not asked again: in vain, or not.
const ASK_US: u64 = 5_000_000;
const AGAIN_US: u64 = 5_000_000;
const AGAIN_IN_VAIN_US: u64 = 30_000_000;

/// What somebody has heard, by voter or by home.
pub(super) type Known = BTreeMap<NodeId, [u8; 32]>;

#[derive(Clone, Debug)]
pub(super) enum Message {
    /// It is there, has heard this, and votes so.
    Beat(Summary, Option<Vec<u8>>),
    /// What is answered to that.
    Answer(Summary),
    AskConfiguration,
    Configuration(Option<Signed>),
    AskVotes(Known, Option<Place>),
    Votes(Vec<Vec<u8>>, Option<Place>),
    AskRevocations(Known, Option<Mark>),
    Revocations(Vec<Vec<u8>>, Option<Mark>),
}

impl Message {
    /// Whether it is more than a heartbeat and its answer.
    pub(super) fn is_news(&self) -> bool {
        !matches!(self, Message::Beat(_, None) | Message::Answer(_))
    }
}

impl Travels for Message {
    /// Whoever takes a vote along may repeat and change it, now or much later.
    fn is_overheard(&self) -> bool {
        matches!(self, Message::Beat(_, Some(_)) | Message::Votes(..) | Message::Revocations(..))
    }

    fn changed(&self, random: &mut Random) -> Option<Message> {
        match self {
            Message::Beat(summary, Some(vote)) => {
                Some(Message::Beat(*summary, Some(flipped(vote, random))))
            }
            Message::Votes(votes, next) if !votes.is_empty() => {
                let mut votes = votes.clone();
                let place = random.below(votes.len() as u64) as usize;
                votes[place] = flipped(&votes[place], random);
                Some(Message::Votes(votes, *next))
            }
            Message::Revocations(revocations, next) if !revocations.is_empty() => {
                let mut revocations = revocations.clone();
                let place = random.below(revocations.len() as u64) as usize;
                revocations[place] = flipped(&revocations[place], random);
                Some(Message::Revocations(revocations, *next))
            }
            _ => None,
        }
    }

    fn is_repeated(&self) -> bool {
        true
    }
}

/// A node that was asked.
struct Asked {
    /// Until when it is not asked again.
    until_us: u64,
    /// What was known when it began, while it has not said all.
    known: Option<Known>,
}

pub(super) struct Node {
    pub(super) index: usize,
    pub(super) is_up: bool,
    /// Which of its lives it is.
    pub(super) life: u32,
    pub(super) members: Members,
    /// Who has invited it: whom it lets in before it knows anything.
    inviting: usize,
    asked: BTreeMap<usize, Asked>,
    secret: HolderSecret,
}

/// The key with which a node signs its votes.
pub(super) fn secret(index: usize) -> HolderSecret {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&index.to_le_bytes());
    HolderSecret::from_seed(seed)
}

pub(super) fn id(index: usize) -> NodeId {
    let mut node = [5; 32];
    node[..8].copy_from_slice(&index.to_le_bytes());
    NodeId(node)
}

/// The key of a node's kernel, by which it is the home of capabilities.
pub(super) fn kernel(index: usize) -> HolderSecret {
    let mut seed = [8; 32];
    seed[..8].copy_from_slice(&index.to_le_bytes());
    HolderSecret::from_seed(seed)
}

/// That somebody to whom a node's operator has given something ends what it has passed on.
pub(super) fn revocation(home: usize, number: u64) -> Revocation {
    let (operator, tenant) = (HolderSecret::from_seed([9; 32]), HolderSecret::from_seed([10; 32]));
    let root = Root {
        node: NodeId(kernel(home).key().0),
        key_epoch: 1,
        vat: VatName::new("memory").expect("a name"),
        kind: Kind(1),
        object: ObjectId(7),
        cap: CapId(1),
        holder: operator.key(),
        authority: Authority::FULL,
        nonce: [0; 16],
    };
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    let chain = Chain::issue(root, &kernel(home));
    let chain = chain.delegate(&operator, tenant.key(), Authority::FULL, [1; 16]);
    let chain =
        chain.and_then(|chain| chain.delegate(&tenant, tenant.key(), Authority::FULL, nonce));
    let revocation = Revocation::sign(&chain.expect("it may"), &tenant, BEGIN_US / 1000);
    revocation.expect("it signed the last link")
}

fn index_of(node: NodeId) -> usize {
    let first = node.0.first_chunk::<8>().copied().unwrap_or_default();
    usize::from_le_bytes(first)
}

impl Node {
    pub(super) fn new(index: usize, inviting: usize) -> Node {
        Node {
            index,
            is_up: true,
            life: 0,
            members: Members::default(),
            inviting,
            asked: BTreeMap::new(),
            secret: secret(index),
        }
    }

    pub(super) fn crash(&mut self) {
        self.is_up = false;
        self.life += 1;
        self.asked.clear();
    }

    fn lets_in(&self, other: usize) -> bool {
        match self.members.voting() {
            Some(_) => self.members.standing(id(other)).is_member,
            None => self.inviting == other,
        }
    }

    /// Whom it speaks to.
    fn others(&self) -> Vec<usize> {
        if self.members.voting().is_none() {
            return vec![self.inviting];
        }
        let standings = self.members.standings().into_iter();
        let members = standings.filter(|(_, standing)| standing.is_member);
        members.map(|(node, _)| index_of(node)).filter(|index| *index != self.index).collect()
    }

    /// Tells others of what is revoked at homes that it lets in, as services/network does whenever those change.
    fn show(&mut self, world: &World) {
        let homes = world.homes.iter().enumerate();
        let let_in = |index: usize| index == self.index || self.lets_in(index);
        let shown = homes.filter(|(index, _)| let_in(*index)).map(|(_, home)| *home).collect();
        self.members.revocations_mut().show(shown);
    }

    /// Takes revocations for homes that it lets in.
    pub(super) fn take_revocations(&mut self, revocations: &[Vec<u8>], world: &mut World) {
        for bytes in revocations {
            let Ok(read) = Revocation::decode(bytes) else {
                world.report.refused += 1;
                continue;
            };
            let home = world.homes.iter().position(|home| *home == read.home());
            if home.is_some_and(|home| home == self.index || self.lets_in(home)) {
                let taken = self.members.revocations_mut().take(read, BEGIN_US / 1000);
                world.report.refused += u64::from(taken.is_err());
            }
        }
    }

    fn spread(&mut self, vote: Option<&Cast>, world: &mut World) {
        self.show(world);
        let summary = self.members.summary();
        for other in self.others() {
            let vote = vote.map(|cast| cast.bytes().to_vec());
            world.send(self.index, other, Message::Beat(summary, vote));
        }
    }

    pub(super) fn beat(&mut self, world: &mut World) {
        self.spread(None, world);
    }

    pub(super) fn configure(&mut self, signed: Signed, world: &mut World) {
        let now_s = BEGIN_US / 1_000_000;
        if self.members.configure(signed, &world.bundle, now_s) == Ok(true) {
            self.spread(None, world);
        }
    }

    /// Its operator says what it thinks of a node.
    pub(super) fn vote(
        &mut self,
        about: usize,
        stance: Stance,
        world: &mut World,
    ) -> Result<(), Violation> {
        if self.members.stance(id(self.index), id(about)) == stance {
            return Ok(());
        }
        let own = (id(self.index), &self.secret);
        let cast = self.members.cast(own, id(about), stance, BEGIN_US + world.now_us);
        // It may not have heard yet that it votes, or not know that it does not any more.
        let Ok(cast) = cast else { return Ok(()) };
        self.take(&[cast.bytes().to_vec()], world);
        world.has_cast(&cast)?;
        self.spread(Some(&cast), world);
        Ok(())
    }

    fn take(&mut self, votes: &[Vec<u8>], world: &mut World) {
        for vote in votes {
            let taken = Cast::decode(vote).and_then(|cast| self.members.take(cast));
            world.report.taken += u64::from(taken == Ok(true));
            world.report.refused += u64::from(taken.is_err());
        }
    }

    fn compare(&mut self, with: usize, theirs: &Summary, world: &mut World) {
        let now_us = world.now_us;
        self.asked.retain(|_, asked| now_us < asked.until_us);
        let late = |asked: &Asked| now_us + AGAIN_IN_VAIN_US >= asked.until_us;
        let busy = self.asked.values().filter(|asked| asked.known.is_some() && !late(asked));
        let differs = theirs.homes != self.members.summary().homes;
        if !(self.members.is_behind(theirs) || differs)
            || busy.count() >= MAX_ASKED
            || self.asked.contains_key(&with)
        {
            return;
        }
        let until_us = now_us + ASK_US + AGAIN_IN_VAIN_US;
        self.asked.insert(with, Asked { until_us, known: Some(Known::new()) });
        world.send(self.index, with, Message::AskConfiguration);
    }

    pub(super) fn receive(
        &mut self,
        from: usize,
        message: Message,
        world: &mut World,
    ) -> Result<(), Violation> {
        if !self.lets_in(from) {
            return Ok(());
        }
        world.lets_in(&self.members, self.index, id(from))?;
        let answer = match message {
            Message::Beat(theirs, vote) => {
                self.take(vote.as_slice(), world);
                self.compare(from, &theirs, world);
                Some(Message::Answer(self.members.summary()))
            }
            Message::Answer(theirs) => {
                self.compare(from, &theirs, world);
                None
            }
            Message::AskConfiguration => {
                Some(Message::Configuration(self.members.signed().cloned()))
            }
            Message::Configuration(signed) => {
                if let Some(signed) = signed {
                    self.configure(signed, world);
                }
                // Whom it lets in now may be others.
                let known: Known = self.members.digests().collect();
                let asked = self.asked.get_mut(&from).filter(|asked| asked.known.is_some());
                asked.map(|asked| {
                    asked.known = Some(known.clone());
                    Message::AskVotes(known, None)
                })
            }
            Message::AskVotes(known, after) => {
                let (page, next) = self.members.page(&known, after, PAGE);
                let page = page.into_iter().map(|cast| cast.bytes().to_vec()).collect();
                Some(Message::Votes(page, next))
            }
            Message::Votes(votes, next) => {
                self.take(&votes, world);
                self.show(world);
                let homes = self.members.known().homes;
                self.asked.get_mut(&from).and_then(|asked| match next {
                    Some(next) => Some(Message::AskVotes(asked.known.clone()?, Some(next))),
                    None => Some(Message::AskRevocations(homes, None)),
                })
            }
            Message::AskRevocations(known, after) => {
                let kept = self.members.revocations();
                let (page, next) = kept.page(&known, after, REVOCATIONS_PAGE);
                let page = page.into_iter().map(|one| one.bytes().to_vec()).collect();
                Some(Message::Revocations(page, next))
            }
            Message::Revocations(revocations, next) => {
                let homes = self.members.known().homes;
                self.take_revocations(&revocations, world);
                let again_us = world.now_us + AGAIN_US;
                self.asked.get_mut(&from).and_then(|asked| match next {
                    Some(next) => Some(Message::AskRevocations(homes, Some(next))),
                    None => {
                        *asked = Asked { until_us: again_us, known: None };
                        None
                    }
                })
            }
        };
        if let Some(answer) = answer {
            world.send(self.index, from, answer);
        }
        Ok(())
    }
}
