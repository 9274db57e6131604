//! A fleet: many nodes as the state machines that production runs, in time that does not pass by itself, over a
//! network that loses, delays, repeats, changes and cuts. One seed makes one run, everywhere.
//!
//! Every node is a home with the kernel's forest ([`distos_core`]) and what it has lent ([`distos_lease::Home`]),
//! and a holder of what others have lent to it ([`distos_lease::Holder`]). Nodes delegate, redeem, lend, hand over,
//! revoke, crash and come back, and say that they are there ([`distos_identity::Statement`]).
//!
//! **What is checked**, at every step: nobody has more than what it was derived from (C1); nothing is used after its
//! revocation has returned, or beyond the published bound, within which each revocation returns (C2); a ticket works once, and a statement has its effect
//! once, unchanged, and within five minutes (N3).
//!
//! **What is not here:** connections, facets, guards and disks, which the rest of this crate runs; who waits how long
//! for whom, and what `revoke` answers. Who belongs to the cluster is in [`joining`], what verifiers know of nodes in
//! [`evidence`].

mod clock;
pub mod evidence;
pub mod joining;
mod kernel;
mod network;
mod node;
mod truth;
mod wire;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fmt;

pub use self::truth::Violation;

use distos_abi::CapId;

use self::clock::Clock;
use self::network::Network;
use self::node::{Node, Timer};
use self::truth::Truth;
use self::wire::Message;
use crate::random::Random;

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many nodes.
    pub nodes: usize,
    /// Chooses everything else.
    pub seed: u64,
    /// How long it lasts, in simulated seconds.
    pub seconds: u64,
    /// Whether anything goes wrong.
    pub troubles: bool,
    /// Every node holds one and the same capability of the first, which is revoked halfway.
    pub shared: bool,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Messages that were sent.
    pub messages: u64,
    /// Uses by a lease that took effect.
    pub uses: u64,
    /// Leases that were given.
    pub loans: u64,
    /// Revocations that began, and that returned.
    pub revoked: u64,
    /// See there.
    pub returned: u64,
    /// Gifts that were withdrawn.
    pub gifts: u64,
    /// Statements that had their effect, and that were refused.
    pub heard: u64,
    /// See there.
    pub refused: u64,
    /// Crashes of nodes.
    pub crashes: u64,
    /// Messages that said that something has ended, and those that said that it is known.
    pub told: u64,
    /// The revocation of what every node holds.
    pub shared: Option<Shared>,
}

/// The revocation of what every node holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared {
    /// How many held it then; how many of those have come to use it no more; and how many crashed before.
    pub holders: usize,
    /// See there.
    pub ended: usize,
    /// See there.
    pub crashed: usize,
    /// Until the last of them did, in simulated microseconds.
    pub last_us: u64,
    /// Until it returned.
    pub returned_us: u64,
    /// Messages about it: one to each holder, and its answer, if none is lost.
    pub messages: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} messages, {} leases, {} uses, {} of {} revocations returned, {} gifts, \
             {} statements heard and {} refused, {} crashes",
            self.messages,
            self.loans,
            self.uses,
            self.returned,
            self.revoked,
            self.gifts,
            self.heard,
            self.refused,
            self.crashes,
        )?;
        let Some(shared) = self.shared else { return Ok(()) };
        let (held, ended, crashed) = (shared.holders, shared.ended, shared.crashed);
        let last_ms = shared.last_us as f64 / 1e3;
        write!(f, "; of {held} who held the same, {crashed} crashed and {ended} stopped, ")?;
        write!(f, "the last after {last_ms:.1} ms")?;
        match shared.returned_us {
            0 => write!(f, "; the revocation had not returned"),
            us => {
                let (returned_ms, messages) = (us as f64 / 1e3, shared.messages);
                write!(f, "; it returned after {returned_ms:.1} ms, by {messages} messages")
            }
        }
    }
}

/// What is to happen.
enum Event {
    Timer(usize, u32, Timer),
    Arrival(usize, usize, Message),
    /// Something goes wrong at a node.
    Trouble,
    /// The network is cut, or mended.
    Cut,
    Wake(usize),
    /// What everybody holds is revoked.
    RevokeShared,
}

/// Everything at one moment.
struct World {
    plan: Plan,
    random: Random,
    now_us: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: std::collections::HashMap<u64, Event>,
    scheduled: u64,
    network: Network,
    truth: Truth,
    clocks: Vec<Clock>,
    /// When each connection was opened.
    opened_us: Vec<u64>,
    report: Report,
    shared: Watch,
    /// What has just returned.
    over: Vec<(usize, CapId)>,
}

/// The revocation of what everybody holds, as it goes on.
#[derive(Default)]
struct Watch {
    cap: Option<CapId>,
    began_us: u64,
    holders: HashSet<usize>,
}

/// Time, chance, the network, and what is true: what a node acts in.
impl World {
    fn at(&mut self, when_us: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse((when_us, self.scheduled)));
        self.events.insert(self.scheduled, event);
    }

    fn boot_ms(&self, of: usize) -> u64 {
        self.clocks[of].boot_ms(self.now_us)
    }

    fn wall_ms(&self, of: usize) -> u64 {
        self.clocks[of].wall_ms(self.now_us)
    }

    /// A new connection, by its number.
    fn open(&mut self) -> u64 {
        self.opened_us.push(self.now_us);
        self.opened_us.len() as u64
    }

    fn opened_us(&self, connection: u64) -> u64 {
        self.opened_us[connection as usize - 1]
    }

    /// A revocation has returned.
    fn returned(&mut self, home: usize, cap: CapId) {
        self.report.returned += 1;
        self.truth.returned(home, cap);
        self.over.push((home, cap));
        let told = self.report.told;
        if let Some(shared) = &mut self.report.shared
            && self.shared.cap == Some(cap)
            && home == 0
        {
            shared.returned_us = self.now_us - self.shared.began_us;
            shared.messages = told - shared.messages;
        }
    }

    /// Somebody uses what this home has lent.
    fn uses(&self, home: usize, lineage: &[CapId]) -> Result<(), Violation> {
        let used = self.truth.used(home, lineage, self.boot_ms(home));
        used.map_err(|what| Violation { at_us: self.now_us, what })
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.report.messages += 1;
        let tells = matches!(message, Message::Ended(..) | Message::Heard(..));
        self.report.told += u64::from(tells);
        let arrivals = self.network.arrivals(&mut self.random, (from, to), &message, self.now_us);
        for (when_us, message) in arrivals {
            self.at(when_us, Event::Arrival(from, to, message));
        }
    }
}

/// Runs one seed.
///
/// # Errors
/// Which promise was broken, and when.
pub fn run(plan: Plan) -> Result<Report, Violation> {
    let mut fleet = Fleet::new(plan);
    let end_us = plan.seconds * 1_000_000;
    while fleet.world.now_us < end_us && fleet.step()? {}
    Ok(fleet.world.report)
}

struct Fleet {
    world: World,
    nodes: Vec<Node>,
}

impl Fleet {
    fn new(plan: Plan) -> Fleet {
        let mut random = Random::new(plan.seed);
        let network = Network::new(plan.nodes, plan.troubles);
        let clocks: Vec<Clock> = (0..plan.nodes).map(|_| Clock::new(&mut random)).collect();
        let new = |(index, clock): (usize, &Clock)| Node::new(index, plan, *clock, &mut random);
        let nodes: Vec<Node> = clocks.iter().enumerate().map(new).collect();
        let mut nodes = nodes;
        if plan.shared {
            for (chain, node) in node::shared(&mut nodes[0], plan, &mut random).zip(&mut nodes) {
                node.hold_first(chain);
            }
        }
        let mut world = World {
            plan,
            random,
            now_us: 0,
            queue: BinaryHeap::new(),
            events: Default::default(),
            scheduled: 0,
            network,
            truth: Truth::default(),
            clocks,
            opened_us: Vec::new(),
            report: Report::default(),
            shared: Watch::default(),
            over: Vec::new(),
        };
        if plan.shared {
            world.at(plan.seconds * 500_000, Event::RevokeShared);
        }
        for index in 0..plan.nodes {
            start_timers(&mut world, index, 0);
        }
        if plan.troubles {
            world.at(1_000_000, Event::Trouble);
            world.at(2_000_000, Event::Cut);
        }
        Fleet { world, nodes }
    }

    fn step(&mut self) -> Result<bool, Violation> {
        let Some(Reverse((when_us, number))) = self.world.queue.pop() else { return Ok(false) };
        self.world.now_us = when_us;
        match self.world.events.remove(&number) {
            Some(Event::Timer(index, life, timer)) => {
                let node = &mut self.nodes[index];
                if node.is_up && node.life == life {
                    let next_us = node.tick(timer, &mut self.world)?;
                    self.watch(index);
                    self.world.at(when_us + next_us, Event::Timer(index, life, timer));
                }
            }
            Some(Event::Arrival(from, to, message)) if self.nodes[to].is_up => {
                self.nodes[to].receive(from, message, &mut self.world)?;
                self.watch(to);
            }
            Some(Event::Trouble) => {
                self.trouble();
                // As often at each node, however many there are.
                let next_us = 8_000_000 + self.world.random.below(16_000_000);
                let next_us = when_us + next_us / self.nodes.len() as u64;
                self.world.at(next_us, Event::Trouble);
            }
            Some(Event::Cut) => {
                let world = &mut self.world;
                match world.random.below(2) {
                    0 => world.network.cut(&mut world.random),
                    _ => world.network.mend(),
                }
                let next_us = when_us + 1_000_000 + world.random.below(7_000_000);
                world.at(next_us, Event::Cut);
            }
            Some(Event::RevokeShared) => self.revoke_shared(),
            Some(Event::Wake(index)) => {
                self.nodes[index].restart(&mut self.world);
                start_timers(&mut self.world, index, self.nodes[index].life);
            }
            _ => {}
        }
        // Not only when somebody happens to use it.
        while let Some((home, cap)) = self.world.over.pop() {
            let uses = |node: &&Node| node.is_up && node.uses_below(home, cap, &self.world);
            if let Some(node) = self.nodes.iter().find(uses) {
                let who = node.index();
                let what =
                    format!("C2: {who} may use {cap} of {home} after its revocation returned");
                return Err(Violation { at_us: when_us, what });
            }
        }
        Ok(true)
    }

    fn revoke_shared(&mut self) {
        let world = &mut self.world;
        let Some(cap) = self.nodes[0].shared_cap().filter(|_| self.nodes[0].is_up) else { return };
        let holds = |node: &&Node| node.uses_below(0, cap, world);
        let holders: Vec<usize> = self.nodes.iter().filter(holds).map(Node::index).collect();
        world.report.shared = Some(Shared { holders: holders.len(), ..Shared::default() });
        let (began_us, holders) = (world.now_us, holders.into_iter().collect());
        world.shared = Watch { cap: Some(cap), began_us, holders };
        let told = world.report.told;
        self.nodes[0].revoke(cap, world);
        if let Some(shared) = &mut world.report.shared {
            // Until it is over, all that is told.
            shared.messages = told;
        }
    }

    /// Whether a node has come to use no more what was revoked, by a message or in time.
    fn watch(&mut self, index: usize) {
        let world = &mut self.world;
        let Some(cap) = world.shared.cap.filter(|_| world.shared.holders.contains(&index)) else {
            return;
        };
        if !self.nodes[index].uses_below(0, cap, world) {
            world.shared.holders.remove(&index);
            let since_us = world.now_us - world.shared.began_us;
            if let Some(shared) = &mut world.report.shared {
                shared.ended += 1;
                shared.last_us = since_us;
            }
        }
    }

    fn trouble(&mut self) {
        let (world, nodes) = (&mut self.world, self.nodes.len() as u64);
        let one = world.random.below(nodes) as usize;
        match world.random.below(3) {
            0 | 1 if self.nodes[one].is_up => {
                world.report.crashes += 1;
                self.nodes[one].crash();
                if world.shared.holders.remove(&one)
                    && let Some(shared) = &mut world.report.shared
                {
                    shared.crashed += 1;
                }
                let back_us = world.now_us + world.random.below(8_000_000);
                world.at(back_us, Event::Wake(one));
            }
            2 => world.clocks[one].jump(&mut world.random),
            _ => {}
        }
    }
}

fn start_timers(world: &mut World, index: usize, life: u32) {
    for timer in [Timer::Use, Timer::Renew, Timer::Act, Timer::Rule, Timer::Beat] {
        let first_us = world.now_us + world.random.below(timer.period_us());
        world.at(first_us, Event::Timer(index, life, timer));
    }
}
