//! How nodes come to belong to a cluster, and to it no more: [`distos_membership`] at every node, the messages by
//! which they come to have heard the same as services/network sends them, operators who vote, a root who changes
//! its mind about who may, and whoever leaves revocations with nodes of what lives at others.
//!
//! **What is checked**, whenever a node takes something from another: as many voters as the cluster asked for have at
//! some time been for that one, and nobody goes by a vote that is older than one it has gone by before (N2, N3). And at the end,
//! when nothing has gone wrong for a while: all who belong to the cluster have heard the same; and all that was said,
//! where nothing went wrong at all. What was revoked at any member for another has come to that one (C2).
//!
//! **What is not here:** SVIDs and handshakes (who speaks is known), evidence at joining (A1), disks that forget.

mod node;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::fmt;

use distos_abi::NodeId;
use distos_identity::{Bundle, ClusterName, KeyExchange, Root, Serial, Validity};
use distos_membership::{Cast, Configuration, Members, Signed, Stance, Voter, Voting};
use distos_types::{HolderSecret, Revocation};

use self::node::{Message, Node, secret};
use super::network::Network;
use super::truth::Violation;
use crate::random::Random;

/// When the runs begin, in microseconds since the Unix epoch.
const BEGIN_US: u64 = 1_800_000_000_000_000;
/// How often a node says that it is there.
const BEAT_US: u64 = 5_000_000;
/// How long nothing goes wrong at the end of a run, so that everybody hears everything: until those are asked again
/// who did not answer before, and a heartbeat for each step from one who knows to one who does not.
const QUIET_US: u64 = 60_000_000;

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many nodes.
    pub nodes: usize,
    /// Chooses everything else.
    pub seed: u64,
    /// Whether operators and the root change their minds, and things go wrong; if not, all nodes join, and one is
    /// put out.
    pub troubles: bool,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Messages that were sent.
    pub messages: u64,
    /// Votes that were cast, and those that were taken somewhere.
    pub cast: u64,
    /// See there.
    pub taken: u64,
    /// Votes that were refused: changed on their way, or of one who has none.
    pub refused: u64,
    /// Configurations that the root has signed.
    pub configurations: u64,
    /// Times when a node took something from another, and was asked whether it should.
    pub let_in: u64,
    /// Crashes of nodes.
    pub crashes: u64,
    /// Revocations that were left with nodes, and those that had come home in the end.
    pub revoked: u64,
    /// See there.
    pub came_home: u64,
    /// How long all took to join.
    pub joined: Option<Step>,
    /// How long it took to put one out.
    pub removed: Option<Step>,
}

/// What something took that the whole cluster did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// From the first vote until all have heard the last, in simulated microseconds.
    pub us: u64,
    /// The same from the last vote.
    pub after_last_us: u64,
    /// Messages meanwhile, and those of them that were not heartbeats and their answers.
    pub messages: u64,
    /// See there.
    pub news: u64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, after_ms) = (self.us as f64 / 1e6, self.after_last_us as f64 / 1e3);
        let Step { messages, news, .. } = self;
        write!(f, "{s:.2} s from the first vote and {after_ms:.1} ms from the last, ")?;
        write!(f, "{messages} messages, {news} of them no heartbeats")
    }
}

enum Event {
    Beat(usize, u32),
    Arrival(usize, usize, Message),
    /// An operator votes.
    Vote,
    /// Somebody leaves a revocation with a node, of what lives at another.
    Revoke,
    /// Somebody brings up what was said at any time before.
    BringUp,
    /// The root signs another configuration.
    Configure,
    Trouble,
    Cut,
    Wake(usize),
    /// From here on nothing goes wrong.
    Quiet,
    /// Whoever joins next is voted for; and then one is put out.
    Join(usize),
    Remove(usize),
}

/// Everything but the nodes.
struct World {
    plan: Plan,
    random: Random,
    now_us: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    scheduled: u64,
    network: Network,
    bundle: Bundle,
    root: HolderSecret,
    /// All that was ever said.
    truth: Members,
    /// Every vote that was ever cast.
    said: Vec<Vec<u8>>,
    /// Who has ever been for whom.
    ever: HashSet<(NodeId, NodeId)>,
    /// The number of the latest vote that each node has gone by: of whom, about whom.
    gone_by: HashMap<(usize, NodeId, NodeId), u64>,
    /// Who each node is as a home.
    homes: Vec<NodeId>,
    /// What was left, with which node, and whose it is.
    left: Vec<(usize, usize, Revocation)>,
    /// The configurations, by number.
    voting: BTreeMap<u64, Voting>,
    is_quiet: bool,
    news: u64,
    report: Report,
}

impl World {
    fn at(&mut self, when_us: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse((when_us, self.scheduled)));
        self.events.insert(self.scheduled, event);
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.report.messages += 1;
        self.news += u64::from(message.is_news());
        let arrivals = self.network.arrivals(&mut self.random, (from, to), &message, self.now_us);
        for (when_us, message) in arrivals {
            self.at(when_us, Event::Arrival(from, to, message));
        }
    }

    /// A node lets another in, by these (N2).
    fn lets_in(&mut self, by: &Members, own: usize, other: NodeId) -> Result<(), Violation> {
        self.report.let_in += 1;
        let Some(voting) = self.voting.get(&by.number()) else { return Ok(()) };
        let (mut were_for, mut against) = (0, 0);
        for voter in voting.voters.keys() {
            were_for += u32::from(self.ever.contains(&(*voter, other)));
            let Some(vote) = by.said(*voter, other).map(Cast::vote) else { continue };
            against += u32::from(vote.stance == Stance::Remove);
            if !self.plan.troubles {
                continue;
            }
            let gone_by = self.gone_by.entry((own, *voter, other)).or_default();
            if *gone_by > vote.number {
                let what = format!("N3: {own} goes by an older vote of {voter} about {other}");
                return Err(Violation { at_us: self.now_us, what });
            }
            *gone_by = vote.number;
        }
        if against >= voting.remove {
            let what = format!("N2: {own} lets {other} in, and {against} are against it");
            return Err(Violation { at_us: self.now_us, what });
        }
        if !voting.voters.contains_key(&other) && were_for < voting.admit {
            let what = format!(
                "N2: {own} lets {other} in, for which {were_for} of {} have ever been",
                voting.admit
            );
            return Err(Violation { at_us: self.now_us, what });
        }
        Ok(())
    }

    fn has_cast(&mut self, cast: &Cast) -> Result<(), Violation> {
        self.report.cast += 1;
        self.said.push(cast.bytes().to_vec());
        let vote = cast.vote();
        if let Stance::Admit(_) | Stance::Invite { .. } = vote.stance {
            self.ever.insert((vote.voter, vote.node));
        }
        // One whom the root leaves out, and that has not heard it, votes in vain.
        let _ = self.truth.take(cast.clone());
        Ok(())
    }

    fn sign(&mut self, voters: &[usize], admit: u32, remove: u32) -> Signed {
        let before = self.truth.voting().map(|voting| voting.voters.clone()).unwrap_or_default();
        let voter = |index: &usize| {
            let new = Voter { key: secret(*index).key(), since: self.truth.number() + 1 };
            (node::id(*index), before.get(&node::id(*index)).copied().unwrap_or(new))
        };
        let voters = voters.iter().map(voter).collect();
        let voting = Voting { voters, admit, remove };
        let number = self.truth.number() + 1;
        self.voting.insert(number, voting.clone());
        self.report.configurations += 1;
        let configuration = Configuration {
            cluster: self.bundle.cluster().clone(),
            number,
            key_exchange: KeyExchange::default(),
            voting: Some(voting),
        };
        let signed = configuration.sign(&self.root).expect("it makes sense");
        self.truth.configure(signed.clone(), &self.bundle, BEGIN_US / 1_000_000).expect("newer");
        signed
    }
}

/// Runs one seed.
///
/// # Errors
/// Which promise was broken, and when.
pub fn run(plan: Plan) -> Result<Report, Violation> {
    let cluster = Cluster::new(plan);
    match plan.troubles {
        true => cluster.troubled(),
        false => cluster.calm(),
    }
}

struct Cluster {
    world: World,
    nodes: Vec<Node>,
    /// Everybody votes that node 0 does.
    voters: Vec<usize>,
}

impl Cluster {
    fn new(plan: Plan) -> Cluster {
        let mut random = Random::new(plan.seed);
        let root = HolderSecret::from_seed([200; 32]);
        let validity = Validity { from_s: 0, until_s: u64::from(u32::MAX) };
        let name = ClusterName::new("demo").expect("a name");
        let certificate = Root::new(name, &root).certificate(validity, Serial([1; 16]));
        let bundle = Bundle::new(vec![certificate.expect("it is signed")], 1).expect("a bundle");
        let voters: Vec<usize> = (0..plan.nodes.min(3)).collect();
        // Whoever is invited knows who has invited it, and nobody else: one that is never put out.
        let inviting = if plan.troubles { 1 } else { voters.len() };
        let invited = |index| Node::new(index, index % inviting);
        let mut world = World {
            plan,
            now_us: 0,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            scheduled: 0,
            network: Network::new(plan.nodes, plan.troubles),
            bundle,
            root,
            truth: Members::default(),
            said: Vec::new(),
            ever: HashSet::new(),
            gone_by: HashMap::new(),
            homes: (0..plan.nodes).map(|index| NodeId(node::kernel(index).key().0)).collect(),
            left: Vec::new(),
            voting: BTreeMap::new(),
            is_quiet: false,
            news: 0,
            report: Report::default(),
            random: Random::new(random.bits()),
        };
        let mut nodes: Vec<Node> = (0..plan.nodes).map(invited).collect();
        let signed = world.sign(&voters, 2, 1);
        for voter in &voters {
            nodes[*voter].configure(signed.clone(), &mut world);
        }
        for index in 0..plan.nodes {
            let first_us = random.below(BEAT_US);
            world.at(first_us, Event::Beat(index, 0));
        }
        Cluster { world, nodes, voters }
    }

    fn step(&mut self) -> Result<bool, Violation> {
        let Some(Reverse((when_us, number))) = self.world.queue.pop() else { return Ok(false) };
        let world = &mut self.world;
        world.now_us = when_us;
        match world.events.remove(&number) {
            Some(Event::Beat(index, life)) => {
                let node = &mut self.nodes[index];
                if node.is_up && node.life == life {
                    node.beat(world);
                    let next_us = when_us + BEAT_US * 9 / 10 + world.random.below(BEAT_US / 5);
                    world.at(next_us, Event::Beat(index, life));
                }
            }
            Some(Event::Arrival(from, to, message)) if self.nodes[to].is_up => {
                // Who connects looks whom it has found, too.
                self.nodes[to].receive(from, message, world)?;
            }
            Some(Event::Vote) => {
                self.vote()?;
                let next_us = when_us + 50_000 + self.world.random.below(600_000);
                self.world.at(next_us, Event::Vote);
            }
            Some(Event::Revoke) => {
                self.revoke();
                let next_us = when_us + 2_000_000 + self.world.random.below(8_000_000);
                self.world.at(next_us, Event::Revoke);
            }
            Some(Event::BringUp) => {
                let (random, nodes) = (&mut world.random, self.nodes.len() as u64);
                let (from, to) = (random.below(nodes) as usize, random.below(nodes) as usize);
                if from != to && !world.said.is_empty() {
                    let vote = random.below(world.said.len() as u64) as usize;
                    let vote = world.said[vote].clone();
                    let summary = self.nodes[from].members.summary();
                    world.send(from, to, Message::Beat(summary, Some(vote)));
                }
                let next_us = when_us + world.random.below(400_000);
                world.at(next_us, Event::BringUp);
            }
            Some(Event::Configure) => {
                self.configure();
                let next_us = when_us + 5_000_000 + self.world.random.below(20_000_000);
                self.world.at(next_us, Event::Configure);
            }
            Some(Event::Trouble) if !world.is_quiet => {
                let one = world.random.below(self.nodes.len() as u64) as usize;
                if self.nodes[one].is_up {
                    world.report.crashes += 1;
                    self.nodes[one].crash();
                    let back_us = when_us + world.random.below(8_000_000);
                    world.at(back_us, Event::Wake(one));
                }
                let next_us = when_us + world.random.below(8_000_000);
                world.at(next_us, Event::Trouble);
            }
            Some(Event::Cut) if !world.is_quiet => {
                match world.random.below(2) {
                    0 => world.network.cut(&mut world.random),
                    _ => world.network.mend(),
                }
                let next_us = when_us + 1_000_000 + world.random.below(7_000_000);
                world.at(next_us, Event::Cut);
            }
            Some(Event::Wake(index)) => {
                self.nodes[index].is_up = true;
                let first_us = when_us + world.random.below(BEAT_US);
                world.at(first_us, Event::Beat(index, self.nodes[index].life));
            }
            Some(Event::Quiet) => {
                world.is_quiet = true;
                world.network.calm();
                world.network.mend();
            }
            Some(Event::Join(index)) => {
                for voter in [0, 1] {
                    self.nodes[voter].vote(index, Stance::Admit(None), &mut self.world)?;
                }
            }
            Some(Event::Remove(index)) => {
                self.nodes[2].vote(index, Stance::Remove, &mut self.world)?;
            }
            _ => {}
        }
        Ok(true)
    }

    fn run_until(&mut self, end_us: u64) -> Result<(), Violation> {
        while self.world.queue.peek().is_some_and(|Reverse((at_us, _))| *at_us <= end_us) {
            self.step()?;
        }
        Ok(())
    }

    /// An operator says what it thinks of a node. Node 0 is nobody's to put out, so that nobody is left who knows
    /// nobody.
    fn vote(&mut self) -> Result<(), Violation> {
        let world = &mut self.world;
        if world.is_quiet {
            return Ok(());
        }
        let voter = world.random.pick(&self.voters);
        let about = world.random.below(self.nodes.len() as u64) as usize;
        if voter == about || about == 0 || !self.nodes[voter].is_up {
            return Ok(());
        }
        let stance = match world.random.below(20) {
            0..=11 => Stance::Admit(None),
            12..=16 => Stance::Remove,
            _ => Stance::None,
        };
        self.nodes[voter].vote(about, stance, world)
    }

    /// Somebody leaves a revocation with a node that lets its home in.
    fn revoke(&mut self) {
        let world = &mut self.world;
        if world.is_quiet {
            return;
        }
        let nodes = self.nodes.len() as u64;
        let (at, home) = (world.random.below(nodes) as usize, world.random.below(nodes) as usize);
        let one = node::revocation(home, world.left.len() as u64);
        let node = &mut self.nodes[at];
        if node.is_up && at != home {
            node.take_revocations(&[one.bytes().to_vec()], world);
            if node.members.revocations().contains(&one) {
                world.report.revoked += 1;
                world.left.push((at, home, one));
            }
        }
    }

    /// The root names other voters: node 0, and some of those who belong to the cluster.
    fn configure(&mut self) {
        let world = &mut self.world;
        if world.is_quiet || !self.nodes[0].is_up {
            return;
        }
        let mut voters = vec![0];
        for index in 1..self.nodes.len() {
            let is_member = world.truth.standing(node::id(index)).is_member;
            if is_member && world.random.below(2) == 0 {
                voters.push(index);
            }
        }
        let count = voters.len() as u64;
        let (admit, remove) = (1 + world.random.below(count), 1 + world.random.below(count));
        let signed = world.sign(&voters, admit as u32, remove as u32);
        self.nodes[0].configure(signed, world);
        self.voters = voters;
    }

    fn troubled(mut self) -> Result<Report, Violation> {
        let trouble_us = 60_000_000;
        self.world.at(100_000, Event::Vote);
        self.world.at(10_000_000, Event::Configure);
        self.world.at(1_000_000, Event::BringUp);
        self.world.at(1_500_000, Event::Revoke);
        self.world.at(1_000_000, Event::Trouble);
        self.world.at(2_000_000, Event::Cut);
        self.world.at(trouble_us, Event::Quiet);
        self.run_until(trouble_us + QUIET_US)?;
        // What a voter has said before it heard that it was left out is lost with it, also if it is named again.
        let first = &self.nodes[0].members;
        for node in &self.nodes {
            let is_member = first.standing(node::id(node.index)).is_member;
            if is_member && node.members.summary() != first.summary() {
                let index = node.index;
                let what = format!("convergence: {index} and 0 have not heard the same");
                return Err(Violation { at_us: self.world.now_us, what });
            }
        }
        for (at, home, one) in &self.world.left {
            let is_member = |index: usize| first.standing(node::id(index)).is_member;
            if !is_member(*at) || !is_member(*home) {
                continue;
            }
            if !self.nodes[*home].members.revocations().contains(one) {
                let what = format!("C2: {home} has not heard what was revoked at {at}");
                return Err(Violation { at_us: self.world.now_us, what });
            }
            self.world.report.came_home += 1;
        }
        Ok(self.world.report)
    }

    /// All join, one every two milliseconds, and then one is put out.
    fn calm(mut self) -> Result<Report, Violation> {
        let nodes = self.nodes.len();
        let begun_us = BEAT_US;
        let last_us = begun_us + 2000 * (nodes as u64 - 4);
        for index in 3..nodes {
            self.world.at(begun_us + 2000 * (index as u64 - 3), Event::Join(index));
        }
        self.run_until(begun_us - 1)?;
        let joined = self.until_all(begun_us, last_us, nodes)?;
        self.world.report.joined = Some(joined);
        // In between two heartbeats of nobody in particular.
        let begun_us = self.world.now_us + 1_000_000;
        self.run_until(begun_us - 1)?;
        self.world.at(begun_us, Event::Remove(nodes - 1));
        let removed = self.until_all(begun_us, begun_us, nodes - 1)?;
        self.world.report.removed = Some(removed);
        Ok(self.world.report)
    }

    /// Runs until the first `count` nodes have heard all that was said.
    fn until_all(&mut self, begun_us: u64, last_us: u64, count: usize) -> Result<Step, Violation> {
        let (messages, news) = (self.world.report.messages, self.world.news);
        let mut behind = 0;
        loop {
            if !self.step()? {
                let what = "convergence: nothing happens any more".to_owned();
                return Err(Violation { at_us: self.world.now_us, what });
            }
            if self.world.now_us <= last_us {
                continue;
            }
            let truth = self.world.truth.summary();
            // Whoever has heard all does not forget it.
            while behind < count && self.nodes[behind].members.summary() == truth {
                behind += 1;
            }
            if behind == count {
                break;
            }
            if self.world.now_us > last_us + 10 * BEAT_US {
                let what = format!("convergence: {behind} of {count} have heard all that was said");
                return Err(Violation { at_us: self.world.now_us, what });
            }
        }
        Ok(Step {
            us: self.world.now_us - begun_us,
            after_last_us: self.world.now_us - last_us,
            messages: self.world.report.messages - messages,
            news: self.world.news - news,
        })
    }
}
