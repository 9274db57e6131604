//! Whom other nodes reach: each asks one other each second, has a few more ask who does not answer, and tells along
//! the way whom nobody reached. So it is noticed sooner than by silence that a node is gone, and by all.
//!
//! What is said here nobody has signed, and a peer may say it of whom it likes: it is a reason to look oneself, and
//! no more. It makes nobody a member and puts nobody out.
//!
//! Source: SWIM (Das, Gupta, Motivala 2002) with suspicion and piggybacked updates, by the crate `foca`. No I/O; time and
//! randomness are arguments.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::num::{NonZeroU8, NonZeroUsize};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BufMut};
use distos_abi::{Fault, NodeId};
use foca::{
    AccumulatingRuntime, Codec, Config, Foca, Header, Identity, Member, Message, NoCustomBroadcast,
    PeriodicParams, PostcardCodec, State, Timer,
};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

/// The longest message, in bytes.
pub(crate) const MAX_BYTES: usize = 4096;
/// What may be noted to be done later by one node's word; whoever says more than leads to that is not heard for a
/// while, and the others are.
const MAX_DUE: usize = 256;
/// How long a node that has begun anew does not do so again.
const RENEWED_MS: u64 = 5000;
/// How often it is tried again to reach those who take no part yet.
const ANNOUNCE_MS: u64 = 5000;

/// A node that takes part, and since when: whoever comes back is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Who {
    node: [u8; 32],
    since: u64,
}

impl Identity for Who {
    type Addr = [u8; 32];

    fn renew(&self) -> Option<Who> {
        Some(Who { since: self.since.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> [u8; 32] {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Who) -> bool {
        self.since > adversary.since
    }
}

/// What is known of the others, beside what they tell of one another.
struct Known {
    /// This node, as it takes part now.
    own: Who,
    nodes: BTreeSet<NodeId>,
    /// Since when each takes part, as it has said itself: nobody else can say that it is another one.
    since: BTreeMap<NodeId, u64>,
    now_ms: u64,
    /// When this node last began anew because somebody said that it was gone.
    renewed_ms: Option<u64>,
}

impl Known {
    /// Whether somebody may say this: whoever is spoken of is remembered.
    fn allows(&self, said: &Member<Who>) -> bool {
        let who = said.id();
        if who.node == self.own.node {
            return said.state() != State::Down || self.may_renew();
        }
        let since = self.since.get(&NodeId(who.node)).copied();
        self.nodes.contains(&NodeId(who.node)) && since.is_some_and(|since| who.since <= since)
    }

    /// Whether this node may begin anew: whoever says without end that it is gone must not have it tell the others
    /// without end that it is not.
    fn may_renew(&self) -> bool {
        let rested = |at_ms: u64| self.now_ms.saturating_sub(at_ms) >= RENEWED_MS;
        self.renewed_ms.is_none_or(rested)
    }
}

/// Reads messages, and in them nothing of those of whom nobody may speak.
struct Ours {
    codec: PostcardCodec,
    known: Rc<RefCell<Known>>,
}

impl Codec<Who> for Ours {
    type Error = <PostcardCodec as Codec<Who>>::Error;

    fn encode_header(
        &mut self,
        header: &Header<Who>,
        into: impl BufMut,
    ) -> Result<(), Self::Error> {
        self.codec.encode_header(header, into)
    }

    fn decode_header(&mut self, from: impl Buf) -> Result<Header<Who>, Self::Error> {
        self.codec.decode_header(from)
    }

    fn encode_member(
        &mut self,
        member: &Member<Who>,
        into: impl BufMut,
    ) -> Result<(), Self::Error> {
        self.codec.encode_member(member, into)
    }

    fn decode_member(&mut self, from: impl Buf) -> Result<Member<Who>, Self::Error> {
        let said: Member<Who> = self.codec.decode_member(from)?;
        let known = self.known.borrow();
        match known.allows(&said) {
            true => Ok(said),
            // That we are there, which we know.
            false => Ok(Member::new(known.own, 0, State::Alive)),
        }
    }
}

/// What is to be done later. Of two at one time, the order is theirs.
#[derive(PartialEq, Eq)]
struct Due {
    at_ms: u64,
    number: u64,
    timer: Timer<Who>,
    /// Whose message has led to it; this node, if none has.
    by: NodeId,
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at_ms, &self.timer, self.number).cmp(&(other.at_ms, &other.timer, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// What one node takes part in.
pub(crate) struct Swim {
    foca: Foca<Who, Ours, SmallRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Who>,
    own: NodeId,
    known: Rc<RefCell<Known>>,
    due: BinaryHeap<Reverse<Due>>,
    /// How much of that each has led to.
    counts: BTreeMap<NodeId, usize>,
    number: u64,
    announce_ms: u64,
}

/// Messages, by whom they are for.
pub(crate) type Messages = Vec<(NodeId, Vec<u8>)>;

fn config() -> Config {
    let some = |count: usize| NonZeroUsize::MIN.saturating_add(count - 1);
    let every = |ms: u64, members: usize| {
        Some(PeriodicParams { frequency: Duration::from_millis(ms), num_members: some(members) })
    };
    Config {
        probe_period: Duration::from_secs(1),
        probe_rtt: Duration::from_millis(500),
        num_indirect_probes: some(3),
        max_transmissions: NonZeroU8::MIN.saturating_add(9),
        suspect_to_down_after: Duration::from_secs(3),
        remove_down_after: Some(Duration::from_secs(60)),
        max_packet_size: some(MAX_BYTES),
        notify_down_members: true,
        periodic_announce: every(30_000, 1),
        periodic_announce_to_down_members: every(10_000, 2),
        periodic_gossip: every(500, 3),
    }
}

impl Swim {
    /// A node that begins at `since_us` by its clock.
    pub(crate) fn new(own: NodeId, since_us: u64, seed: u64) -> Swim {
        let who = Who { node: own.0, since: since_us };
        let known = Known {
            own: who,
            nodes: BTreeSet::new(),
            since: BTreeMap::new(),
            now_ms: 0,
            renewed_ms: None,
        };
        let known = Rc::new(RefCell::new(known));
        let codec = Ours { codec: PostcardCodec, known: known.clone() };
        Swim {
            foca: Foca::new(who, config(), SmallRng::seed_from_u64(seed), codec),
            runtime: AccumulatingRuntime::new(),
            own,
            known,
            due: BinaryHeap::new(),
            counts: BTreeMap::new(),
            number: 0,
            announce_ms: 0,
        }
    }

    /// Does what is due at `now_ms`, with these nodes and no others.
    pub(crate) fn look(&mut self, nodes: &[NodeId], now_ms: u64) -> Messages {
        {
            let known = &mut *self.known.borrow_mut();
            known.nodes = nodes.iter().copied().collect();
            known.since.retain(|node, _| known.nodes.contains(node));
        }
        while self.due.peek().is_some_and(|Reverse(due)| due.at_ms <= now_ms) {
            let Some(Reverse(due)) = self.due.pop() else { break };
            match self.counts.get_mut(&due.by) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.counts.remove(&due.by)),
            }
            // It may be of a time when this node took part as another.
            if let Err(error) = self.foca.handle_timer(due.timer, &mut self.runtime) {
                tracing::debug!(%error, "what was due is not");
            }
        }
        if now_ms >= self.announce_ms {
            self.announce_ms = now_ms + ANNOUNCE_MS;
            let part: BTreeSet<[u8; 32]> =
                self.foca.iter_membership_state().map(|member| member.id().node).collect();
            for node in nodes.iter().filter(|node| !part.contains(&node.0)) {
                // Whoever it is now, it answers to its number.
                let whom = Who { node: node.0, since: 0 };
                let _ = self.foca.announce(whom, &mut self.runtime);
            }
        }
        self.take(self.own, now_ms)
    }

    /// When there is something to be done next.
    pub(crate) fn next_ms(&self) -> u64 {
        let due = self.due.peek().map(|Reverse(due)| due.at_ms);
        due.map_or(self.announce_ms, |due_ms| due_ms.min(self.announce_ms))
    }

    /// Takes what `from` says, which the connection has authenticated.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if it is no message, or said in another's name; [`Fault::Unavailable`] if too much was said.
    pub(crate) fn hear(
        &mut self,
        from: NodeId,
        message: &[u8],
        now_ms: u64,
    ) -> Result<Messages, Fault> {
        let broken = || Fault::malformed("no message of those who ask who is there");
        if message.len() > MAX_BYTES {
            return Err(broken());
        }
        let header: Header<Who> = PostcardCodec.decode_header(message).map_err(|_| broken())?;
        if header.src.node != from.0 || !self.known.borrow().nodes.contains(&from) {
            return Err(Fault::malformed("it is said in another's name"));
        }
        if self.counts.get(&from).is_some_and(|count| *count >= MAX_DUE) {
            return Err(Fault::unavailable(10_000, "by its word too much comes and goes"));
        }
        {
            let mut known = self.known.borrow_mut();
            known.since.insert(from, header.src.since);
            known.now_ms = now_ms;
            if header.message == Message::TurnUndead && !known.may_renew() {
                return Ok(Vec::new());
            }
        }
        let heard = self.foca.handle_data(message, &mut self.runtime);
        let answers = self.take(from, now_ms);
        heard.map(|()| answers).map_err(|_| broken())
    }

    /// Of the nodes that were named last, those that somebody says are not reached.
    pub(crate) fn suspects(&self) -> BTreeSet<NodeId> {
        let mut states: BTreeMap<NodeId, bool> = BTreeMap::new();
        for member in self.foca.iter_membership_state() {
            // One that has come back is known by what it was before, too.
            let is_there = states.entry(NodeId(member.id().node)).or_default();
            *is_there |= member.state() == State::Alive;
        }
        let known = self.known.borrow();
        let gone = states.into_iter();
        let gone = gone.filter(|(node, is_there)| !is_there && known.nodes.contains(node));
        gone.map(|(node, _)| node).collect()
    }

    /// What is to be sent, and notes what is to be done later, to which somebody's message has led.
    fn take(&mut self, by: NodeId, now_ms: u64) -> Messages {
        {
            let (mut known, own) = (self.known.borrow_mut(), *self.foca.identity());
            if known.own != own {
                known.renewed_ms = Some(now_ms);
            }
            known.own = own;
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            self.number += 1;
            let at_ms = now_ms.saturating_add(after_ms);
            *self.counts.entry(by).or_default() += 1;
            self.due.push(Reverse(Due { at_ms, number: self.number, timer, by }));
        }
        while self.runtime.to_notify().is_some() {}
        let mut messages = Vec::new();
        while let Some((whom, message)) = self.runtime.to_send() {
            let node = NodeId(whom.node);
            // Whoever was put out is not spoken to any more.
            if node != self.own && self.known.borrow().nodes.contains(&node) {
                messages.push((node, message.to_vec()));
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    /// Nodes that hear one another after 10 ms, unless one of both is away.
    struct World {
        nodes: BTreeMap<NodeId, Swim>,
        away: BTreeSet<NodeId>,
        under_way: Vec<(u64, NodeId, NodeId, Vec<u8>)>,
        now_ms: u64,
    }

    impl World {
        fn new(count: u8) -> World {
            let nodes = (1..=count).map(|n| (node(n), Swim::new(node(n), 1, n.into()))).collect();
            World { nodes, away: BTreeSet::new(), under_way: Vec::new(), now_ms: 0 }
        }

        fn run(&mut self, ms: u64) {
            let all: Vec<NodeId> = self.nodes.keys().copied().collect();
            let end_ms = self.now_ms + ms;
            while self.now_ms < end_ms {
                self.now_ms += 10;
                let mut said = Vec::new();
                for (_, from, to, message) in
                    self.under_way.extract_if(.., |(at_ms, ..)| *at_ms <= self.now_ms)
                {
                    if !self.away.contains(&from) && !self.away.contains(&to) {
                        let swim = self.nodes.get_mut(&to).unwrap();
                        let answers = match swim.hear(from, &message, self.now_ms) {
                            // It has said too much.
                            Err(_) if from == node(2) => Vec::new(),
                            answers => answers.unwrap(),
                        };
                        said.extend(answers.into_iter().map(|(whom, bytes)| (to, whom, bytes)));
                    }
                }
                for (own, swim) in &mut self.nodes {
                    let others: Vec<NodeId> =
                        all.iter().filter(|node| *node != own).copied().collect();
                    if !self.away.contains(own) && self.now_ms >= swim.next_ms() {
                        let more = swim.look(&others, self.now_ms);
                        said.extend(more.into_iter().map(|(whom, bytes)| (*own, whom, bytes)));
                    }
                }
                let at_ms = self.now_ms + 10;
                let said = said.into_iter().map(|(from, to, bytes)| (at_ms, from, to, bytes));
                self.under_way.extend(said);
            }
        }

        fn suspects(&self, at: u8) -> Vec<NodeId> {
            self.nodes[&node(at)].suspects().into_iter().collect()
        }
    }

    #[test]
    fn all_notice_soon_that_a_node_is_gone_and_that_it_is_back() {
        let mut world = World::new(5);
        world.run(10_000);
        assert!((1..=5).all(|at| world.suspects(at).is_empty()));
        world.away.insert(node(3));
        world.run(9_000);
        for at in [1, 2, 4, 5] {
            assert_eq!(world.suspects(at), [node(3)], "{at}");
        }
        world.away.clear();
        world.run(20_000);
        assert!((1..=5).all(|at| world.suspects(at).is_empty()));
        // One that begins anew knows nobody, and is not who it was.
        world.nodes.insert(node(3), Swim::new(node(3), 2, 77));
        world.run(20_000);
        assert!((1..=5).all(|at| world.suspects(at).is_empty()));
    }

    #[test]
    fn nobody_is_spoken_for_by_another_and_whoever_is_not_known_is_not_remembered() {
        let mut world = World::new(3);
        world.run(5_000);
        let mut foreign = Swim::new(node(9), 1, 9);
        let hello = foreign.look(&[node(1)], 0);
        let one = world.nodes.get_mut(&node(1)).unwrap();
        assert!(one.hear(node(9), &hello[0].1, 5_000).is_err(), "it is not let in");
        assert!(one.hear(node(2), &hello[0].1, 5_000).is_err(), "another's name");
        // The second speaks of hundreds of nodes.
        let two = world.nodes.get_mut(&node(2)).unwrap();
        let more: Vec<NodeId> = (100..200).map(node).chain([node(1), node(3)]).collect();
        two.look(&more, 5_010);
        let invented = (100..200).map(|n| Member::alive(Who { node: [n; 32], since: 1 }));
        two.foca.apply_many(invented, true, &mut two.runtime).unwrap();
        world.run(5_000);
        for at in [1, 3] {
            let swim = &world.nodes[&node(at)];
            assert!(swim.foca.iter_membership_state().len() <= 3, "{at}");
            assert!(swim.due.len() < 100 && world.suspects(at).is_empty());
        }
        // And of one that there is, which goes and comes without end.
        for since in (1..100_000).step_by(40) {
            let two = world.nodes.get_mut(&node(2)).unwrap();
            let gone = (since..since + 40).flat_map(|since| {
                let who = Who { node: [3; 32], since };
                [Member::alive(who), Member::down(who)]
            });
            two.foca.apply_many(gone, true, &mut two.runtime).unwrap();
            two.foca.gossip(&mut two.runtime).unwrap();
            let said = two.take(node(2), world.now_ms);
            let one = world.nodes.get_mut(&node(1)).unwrap();
            for (_, bytes) in said.iter().filter(|(whom, _)| *whom == node(1)) {
                let _ = one.hear(node(2), bytes, world.now_ms);
            }
            assert!(one.foca.iter_membership_state().len() <= 3);
            assert!(one.due.len() <= MAX_DUE + 1000, "{}", one.due.len());
        }
        // The others are heard all the same, and nobody is thought to be gone.
        world.nodes.insert(node(2), Swim::new(node(2), 200_000, 2));
        world.run(20_000);
        assert_eq!(world.suspects(1), []);
    }

    /// Or its death could be hidden, and whoever is there be kept out.
    #[test]
    fn nobody_can_say_that_another_is_somebody_else_now() {
        let mut world = World::new(4);
        world.run(5_000);
        let invent = |world: &mut World, member: fn(Who) -> Member<Who>| {
            let two = world.nodes.get_mut(&node(2)).unwrap();
            let invented = member(Who { node: [3; 32], since: u64::MAX });
            two.foca.apply_many([invented].into_iter(), true, &mut two.runtime).unwrap();
        };
        invent(&mut world, Member::alive);
        world.run(5_000);
        for at in [1, 4] {
            let members = world.nodes[&node(at)].foca.iter_membership_state();
            let third = members.filter(|member| member.id().node == [3; 32]);
            assert!(third.into_iter().all(|member| member.id().since < u64::MAX), "{at}");
            assert_eq!(world.suspects(at), [], "{at}");
        }
        world.away.insert(node(3));
        for _ in 0..9 {
            invent(&mut world, Member::alive);
            world.run(1_000);
        }
        assert_eq!([1, 4].map(|at| world.suspects(at)), [[node(3)], [node(3)]]);
    }

    /// It would put itself out by what it says of its earlier self.
    #[test]
    fn whoever_has_come_back_is_not_its_earlier_self_when_others_speak_of_whom_it_does_not_know() {
        let mut swim = Swim::new(node(1), 1, 1);
        swim.look(&[node(2)], 0);
        let renewed = Who { node: [1; 32], since: 2 };
        swim.foca.change_identity(renewed, &mut swim.runtime).unwrap();
        swim.take(node(1), 0);
        let mut other = Swim::new(node(2), 1, 2);
        other.look(&[node(1)], 0);
        let strange = [Member::alive(Who { node: [9; 32], since: 1 }), Member::alive(renewed)];
        other.foca.apply_many(strange.into_iter(), true, &mut other.runtime).unwrap();
        other.foca.gossip(&mut other.runtime).unwrap();
        for (_, bytes) in other.take(node(2), 0) {
            swim.hear(node(2), &bytes, 10).unwrap();
        }
        assert!(swim.foca.iter_membership_state().all(|member| member.id().node != [1; 32]));
    }

    #[test]
    fn whoever_was_put_out_is_neither_told_anything_nor_suspected() {
        let mut world = World::new(3);
        world.run(5_000);
        world.away.insert(node(3));
        world.run(9_000);
        let one = world.nodes.get_mut(&node(1)).unwrap();
        assert_eq!(one.suspects(), BTreeSet::from([node(3)]));
        for at_ms in (14_000..100_000).step_by(100) {
            assert!(one.look(&[node(2)], at_ms).iter().all(|(whom, _)| *whom == node(2)));
            assert!(one.suspects().is_subset(&BTreeSet::from([node(2)])));
        }
    }

    proptest! {
        #[test]
        fn whatever_a_peer_says_is_heard_or_refused(
            said in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20),
            kind in 0u8..12, rest in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut one = Swim::new(node(1), 1, 1);
            one.look(&[node(2), node(3)], 0);
            for message in said {
                let _ = one.hear(node(2), &message, 10);
            }
            // In its own name, and then anything.
            let mut message = [node(2).0.as_slice(), &[1, 0], &node(1).0, &[1, kind]].concat();
            message.extend(rest);
            let _ = one.hear(node(2), &message, 20);
            for at_ms in (100..10_000).step_by(100) {
                one.look(&[node(2), node(3)], at_ms);
            }
        }
    }
}
