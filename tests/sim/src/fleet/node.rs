//! A node: a home, a holder, and one who makes statements. It lives in the machine's memory but for its kernel's
//! journal, its chains and what it has reserved of statements.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use distos_abi::{
    Authority, CapId, Caveats, HolderKey, LinkHash, NodeId, Rights, SessionId, VatName,
};
use distos_core::{GrantView, LinkClaim};
use distos_identity::{Heard, Statement, Subject, Ticks};
use distos_lease::{Ask, Cursor, Holder, Home, Leaf, Lessee, Terms, Unheard};
use distos_types::HolderSecret;

use super::clock::Clock;
use super::kernel::Kernel;
use super::truth::{Truth, Violation};
use super::wire::{By, Chain, Granted, Message};
use super::{Plan, World};
use crate::random::Random;

/// How many others each node says to that it is there.
const PEERS: usize = 6;
/// The deepest delegation that is made.
const DEEPEST: usize = 5;
/// What a node has of others' at most.
const CHAINS: usize = 12;
const HELD: usize = 24;
/// How much later than it is over a home may see that a revocation has returned: it looks now and then.
const RULED_MS: u64 = 200;
/// A home takes a connection for broken when nothing came over it for so long.
const IDLE_US: u64 = 15_000_000;

/// What a node does again and again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timer {
    Use,
    Renew,
    Act,
    Rule,
    Beat,
}

impl Timer {
    pub(super) fn period_us(self) -> u64 {
        match self {
            Timer::Use => 250_000,
            Timer::Renew => Terms::USUAL.term_ms * 1000 / 3,
            Timer::Act => 400_000,
            Timer::Rule => 50_000,
            Timer::Beat => 5_000_000,
        }
    }
}

/// What was lent, to whoever uses it.
struct Held {
    leaf: Leaf,
    lineage: Vec<CapId>,
}

/// A connection to a home, and what was lent over it.
struct Link {
    connection: u64,
    home: usize,
    holder: Holder,
    held: Vec<Held>,
    /// The home does not know it any more: what was lent runs out.
    is_broken: bool,
}

/// A connection from a holder.
struct Served {
    session: SessionId,
    peer: usize,
    last_us: u64,
}

pub(super) struct Node {
    index: usize,
    pub(super) is_up: bool,
    /// Which of its lives it is: what an earlier one waits for does not come.
    pub(super) life: u32,
    since_us: u64,
    key: HolderKey,
    // As a home.
    kernel: Kernel,
    lending: Home,
    served: BTreeMap<u64, Served>,
    /// Connections that it took for broken: each begins once.
    closed: BTreeSet<u64>,
    cursor: Cursor,
    known: VecDeque<CapId>,
    shared: Option<CapId>,
    /// Revocations that have not returned: by when they have to, and what has to be heard.
    waiting: Vec<(CapId, u64, Vec<Unheard>)>,
    // As a holder.
    chains: Vec<Chain>,
    links: Vec<Link>,
    // As one who makes statements.
    secret: HolderSecret,
    ticks: Ticks,
    heard: Heard,
    /// What is on its disk of what it has heard.
    kept: (BTreeMap<Subject, u64>, u64),
    peers: Vec<usize>,
    made: u64,
    /// It does nothing but hold what it was given.
    is_set: bool,
    /// The latest time that its clock showed when it heard something.
    latest_us: u64,
}

fn secret(index: usize) -> HolderSecret {
    let mut seed = [3; 32];
    seed[..8].copy_from_slice(&index.to_le_bytes());
    HolderSecret::from_seed(seed)
}

fn subject(index: usize) -> Subject {
    let mut node = [5; 32];
    node[..8].copy_from_slice(&index.to_le_bytes());
    Subject::Node(NodeId(node))
}

fn name(index: usize) -> VatName {
    VatName::new(&format!("peer/n{index}")).expect("a name")
}

/// A capability of the first node's for every node, all below one link.
pub(super) fn shared(
    home: &mut Node,
    plan: Plan,
    random: &mut Random,
) -> impl Iterator<Item = Chain> + use<> {
    let own = home.chains[0].clone();
    let link = |issuer: usize, holder: usize, random: &mut Random| LinkClaim {
        hash: LinkHash(random.bytes()),
        holder: secret(holder).key(),
        issuer: secret(issuer).key(),
        authority: Authority::FULL,
    };
    let shared = link(0, 0, random);
    let leaves: Vec<LinkClaim> = (0..plan.nodes).map(|node| link(0, node, random)).collect();
    leaves.into_iter().map(move |leaf| {
        let links = own.links.iter().copied().chain([shared, leaf]).collect();
        Chain { links, ..own.clone() }
    })
}

impl Node {
    pub(super) fn new(index: usize, plan: Plan, clock: Clock, random: &mut Random) -> Node {
        let secret = secret(index);
        let key = secret.key();
        let (kernel, root) = Kernel::new(key, clock.wall_ms(0));
        let own = LinkClaim {
            hash: LinkHash(random.bytes()),
            holder: key,
            issuer: key,
            authority: Authority::FULL,
        };
        let peers = (1..=PEERS.min(plan.nodes - 1)).map(|step| (index + step * step) % plan.nodes);
        Node {
            index,
            is_up: true,
            life: 0,
            since_us: 0,
            key,
            kernel,
            lending: Home::started(Terms::USUAL, clock.boot_ms(0)),
            served: BTreeMap::new(),
            closed: BTreeSet::new(),
            cursor: Cursor::default(),
            known: VecDeque::new(),
            shared: None,
            waiting: Vec::new(),
            chains: vec![Chain { home: index, root, links: vec![own] }],
            links: Vec::new(),
            secret,
            ticks: Ticks::default(),
            heard: Heard::default(),
            kept: Default::default(),
            peers: peers.filter(|peer| *peer != index).collect(),
            made: 0,
            is_set: false,
            latest_us: 0,
        }
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// It has this chain from the beginning, and nothing else.
    pub(super) fn hold_first(&mut self, chain: Chain) {
        self.chains.truncate(1);
        self.chains.push(chain);
        self.is_set = true;
    }

    /// What is revoked when everybody holds the same: the link below which each has one of its own.
    pub(super) fn shared_cap(&self) -> Option<CapId> {
        self.shared
    }

    /// Whether it may use something below a capability of this home's.
    pub(super) fn uses_below(&self, home: usize, cap: CapId, world: &World) -> bool {
        let now_ms = world.boot_ms(self.index);
        self.links.iter().filter(|link| link.home == home).any(|link| {
            let below = link.held.iter().filter(|held| held.lineage.contains(&cap));
            below.map(|held| link.holder.lasts(held.leaf, now_ms)).any(|lasts| lasts.is_ok())
        })
    }

    /// It dies, and loses what it had in memory.
    pub(super) fn crash(&mut self) {
        self.is_up = false;
        self.life += 1;
        self.links.clear();
        self.served.clear();
        self.closed.clear();
    }

    /// It comes back. Revocations that had not returned go on: what an earlier run lent is counted by time.
    pub(super) fn restart(&mut self, world: &mut World) {
        self.is_up = true;
        self.kernel.restart(world.wall_ms(self.index));
        self.lending = Home::started(Terms::USUAL, world.boot_ms(self.index));
        self.cursor = Cursor::default();
        self.since_us = world.now_us;
        let by_ms = world.boot_ms(self.index) + Terms::USUAL.bound_ms() + RULED_MS;
        for (_, until_ms, unheard) in &mut self.waiting {
            *until_ms = by_ms;
            unheard.clear();
        }
        let (until_us, floor_us) = self.kept.clone();
        self.heard = Heard::restore(until_us, floor_us);
        self.ticks = Ticks::default();
    }

    /// What it does by itself; when it does so again.
    pub(super) fn tick(&mut self, timer: Timer, world: &mut World) -> Result<u64, Violation> {
        match timer {
            Timer::Use => self.use_all(world)?,
            Timer::Renew => self.renew(world),
            Timer::Act => self.act(world),
            Timer::Rule => self.rule(world)?,
            Timer::Beat => self.beat(world),
        }
        Ok(timer.period_us() / 2 + world.random.below(timer.period_us()))
    }

    // As a holder.

    fn use_all(&mut self, world: &mut World) -> Result<(), Violation> {
        let now_ms = world.boot_ms(self.index);
        for link in &mut self.links {
            let (holder, home) = (&link.holder, link.home);
            for held in link.held.iter().filter(|held| holder.lasts(held.leaf, now_ms).is_ok()) {
                world.report.uses += 1;
                world.uses(home, &held.lineage)?;
            }
            let (kept, lost): (Vec<Held>, Vec<Held>) = std::mem::take(&mut link.held)
                .into_iter()
                .partition(|held| link.holder.lasts(held.leaf, now_ms).is_ok());
            for held in lost {
                link.holder.release(held.leaf);
            }
            link.held = kept;
        }
        self.links.retain(|link| !link.is_broken || !link.held.is_empty());
        Ok(())
    }

    fn renew(&mut self, world: &mut World) {
        let now_ms = world.boot_ms(self.index);
        for link in self.links.iter_mut().filter(|link| !link.is_broken) {
            let released = link.holder.take_released(64);
            if let Some(ask) = link.holder.ask_again(now_ms) {
                world.send(self.index, link.home, Message::Renew(link.connection, ask, released));
            }
        }
    }

    /// The connection to a home: a new one if there is none.
    fn link(&mut self, home: usize, world: &mut World) -> &mut Link {
        let found = self.links.iter().position(|link| link.home == home && !link.is_broken);
        let place = found.unwrap_or_else(|| {
            let (connection, holder) = (world.open(), Holder::default());
            self.links.push(Link { connection, home, holder, held: Vec::new(), is_broken: false });
            self.links.len() - 1
        });
        &mut self.links[place]
    }

    fn ask(&mut self, home: usize, by: By, world: &mut World) {
        let (index, now_ms) = (self.index, world.boot_ms(self.index));
        let link = self.link(home, world);
        if let Some(ask) = link.holder.ask(now_ms) {
            let message = Message::Lend(link.connection, ask, by);
            world.send(index, home, message);
        }
    }

    fn act(&mut self, world: &mut World) {
        if self.is_set {
            let holds = self.links.iter().any(|link| !link.held.is_empty());
            let chain = self.chains[1].clone();
            if !holds && world.report.shared.is_none() {
                self.ask(chain.home, By::Chain(chain.root, chain.links), world);
            }
            return;
        }
        let nodes = world.plan.nodes as u64;
        let chain = self.chains[world.random.below(self.chains.len() as u64) as usize].clone();
        let other = world.random.below(nodes) as usize;
        let held: usize = self.links.iter().map(|link| link.held.len()).sum();
        match world.random.below(8) {
            0..=2 if held < HELD && chain.home != self.index => {
                self.ask(chain.home, By::Chain(chain.root, chain.links), world);
            }
            3..=5 if chain.links.len() < DEEPEST && other != self.index => {
                let last = chain.links.last().map_or(Authority::FULL, |link| link.authority);
                let rights = Rights(last.rights.0 & (world.random.bits() | Rights::READ.0));
                // Some ask for more than they have.
                let rights = if world.random.below(5) == 0 { Rights::ALL } else { rights };
                let now_ms = world.wall_ms(self.index);
                let expires_ms = match world.random.below(4) {
                    0 => last.caveats.expires_ms.min(now_ms + 2_000 + world.random.below(60_000)),
                    1 if world.random.below(4) == 0 => u64::MAX,
                    _ => last.caveats.expires_ms,
                };
                let authority =
                    Authority { rights, caveats: Caveats { expires_ms, ..last.caveats } };
                let (hash, holder) = (LinkHash(world.random.bytes()), secret(other).key());
                let mut links = chain.links;
                links.push(LinkClaim { hash, holder, issuer: self.key, authority });
                world.send(self.index, other, Message::Give(Chain { links, ..chain }));
            }
            // Hands over what it uses.
            6 => {
                let links = self.links.iter().filter(|link| !link.is_broken);
                let all = links.flat_map(|link| link.held.iter().map(move |held| (link, held)));
                let all: Vec<_> = all.collect();
                if let Some((link, held)) =
                    all.get(world.random.below(all.len().max(1) as u64) as usize)
                    && let Some(cap) = held.lineage.last()
                {
                    let message = Message::Deposit(link.connection, *cap, other);
                    world.send(self.index, link.home, message);
                }
            }
            // Lets one go.
            _ => {
                if let Some(link) = self.links.iter_mut().find(|link| link.held.len() > 3) {
                    let held = link.held.swap_remove(0);
                    link.holder.release(held.leaf);
                }
            }
        }
    }

    // As a home.

    fn rule(&mut self, world: &mut World) -> Result<(), Violation> {
        let (now_ms, wall_ms) = (world.boot_ms(self.index), world.wall_ms(self.index));
        self.kernel.tidy(wall_ms);
        if world.random.below(150) == 0 && !self.known.is_empty() && !world.plan.shared {
            let place = world.random.below(self.known.len() as u64) as usize;
            let cap = self.known[place];
            self.revoke(cap, world);
        }
        self.lending.look(|slot| self.kernel.table.contains(&slot));
        let alive = |slot| self.kernel.table.contains(&slot);
        self.lending.look_on(&mut self.cursor, 64, alive);
        self.lending.forget(now_ms);
        for lessee in self.lending.untold() {
            let news = self.lending.news(lessee, 16);
            if let Some(served) = self.served.get(&lessee.0) {
                world.send(self.index, served.peer, Message::Ended(lessee.0, news));
            }
        }
        let lending = &self.lending;
        let index = self.index;
        self.waiting.retain(|(cap, _, unheard)| {
            let is_over = lending.over_ms(unheard, now_ms).is_none();
            if is_over {
                world.returned(index, *cap);
            }
            !is_over
        });
        if let Some((cap, ..)) = self.waiting.iter().find(|(_, until_ms, _)| *until_ms < now_ms) {
            let what = format!("C2: the revocation of {cap} at {index} does not return");
            return Err(Violation { at_us: world.now_us, what });
        }
        let idle = |served: &Served| served.last_us + IDLE_US < world.now_us;
        let idle: Vec<u64> =
            self.served.iter().filter(|(_, served)| idle(served)).map(|(c, _)| *c).collect();
        for connection in idle {
            self.lose(connection, world);
        }
        Ok(())
    }

    /// Revokes one; half the time it is found by looking, as when its slot is not told.
    pub(super) fn revoke(&mut self, cap: CapId, world: &mut World) {
        let (now_ms, wall_ms) = (world.boot_ms(self.index), world.wall_ms(self.index));
        let marks = self.lending.marks();
        let Some(slot) = self.kernel.revoke(cap, wall_ms) else { return };
        world.truth.revoked(self.index, cap, now_ms);
        world.report.revoked += 1;
        let unheard = match world.random.below(2) {
            0 => self.lending.ended(slot),
            _ => {
                let alive = |slot| self.kernel.table.contains(&slot);
                let mut cursor = Cursor::default();
                self.lending.look(alive);
                while self.lending.look_on(&mut cursor, 64, alive) {}
                self.lending.since(marks)
            }
        };
        self.waiting.push((cap, now_ms + Terms::USUAL.bound_ms() + RULED_MS, unheard));
        for lessee in self.lending.untold() {
            let news = self.lending.news(lessee, 16);
            if let Some(served) = self.served.get(&lessee.0) {
                world.send(self.index, served.peer, Message::Ended(lessee.0, news));
            }
        }
    }

    /// A connection is over.
    fn lose(&mut self, connection: u64, world: &World) {
        if let Some(served) = self.served.remove(&connection) {
            self.kernel.end_session(served.session, world.wall_ms(self.index));
            self.lending.leave(Lessee(connection), world.boot_ms(self.index));
            self.closed.insert(connection);
        }
    }

    /// What came over a connection comes from whoever opened it, since this home began.
    fn served(&mut self, connection: u64, from: usize, opens: bool, now_us: u64) -> bool {
        let is_new = !self.served.contains_key(&connection) && !self.closed.contains(&connection);
        if is_new && opens {
            let session = self.kernel.session();
            self.served.insert(connection, Served { session, peer: from, last_us: now_us });
            self.lending.arrive(Lessee(connection));
        }
        match self.served.get_mut(&connection).filter(|served| served.peer == from) {
            Some(served) => {
                served.last_us = now_us;
                true
            }
            None => false,
        }
    }

    fn lend(
        &mut self,
        (connection, ask): (u64, Ask),
        grant: &GrantView,
        world: &mut World,
    ) -> Option<Message> {
        let (now_ms, wall_ms) = (world.boot_ms(self.index), world.wall_ms(self.index));
        let line = self.kernel.line(grant)?;
        let tenant = grant.facts.tenant;
        let loan = self.lending.lend(Lessee(connection), tenant, &line, now_ms).ok()?;
        let lineage: Vec<CapId> = grant.lineage.iter().map(|above| above.cap).collect();
        if world.plan.shared {
            self.shared = lineage.get(2).copied();
        }
        for cap in &lineage[1..] {
            if !self.known.contains(cap) {
                self.known.push_back(*cap);
            }
        }
        while self.known.len() > 64 {
            self.known.pop_front();
        }
        world.report.loans += 1;
        let lasts_ms = match grant.facts.authority.caveats.expires_ms {
            u64::MAX => u64::MAX,
            at_ms => at_ms.saturating_sub(wall_ms),
        };
        Some(Message::Lent(connection, ask, Granted { loan, lineage, lasts_ms }))
    }

    // Messages.

    pub(super) fn receive(
        &mut self,
        from: usize,
        message: Message,
        world: &mut World,
    ) -> Result<(), Violation> {
        let broken = |world: &World, what: String| Violation { at_us: world.now_us, what };
        match message {
            Message::Give(chain) => {
                if self.chains.len() < CHAINS {
                    self.chains.push(chain);
                } else {
                    // The first is its own root.
                    let place = 1 + world.random.below(CHAINS as u64 - 1) as usize;
                    self.chains[place] = chain;
                }
            }
            Message::Lend(connection, ask, by) => {
                // One from before this home began is not taken for a new one.
                let is_new = world.opened_us(connection) >= self.since_us;
                if !self.served(connection, from, is_new, world.now_us) {
                    world.send(self.index, from, Message::NotLent(connection, ask, true));
                    return Ok(());
                }
                let session = self.served[&connection].session;
                let wall_ms = world.wall_ms(self.index);
                let grant = match by {
                    By::Chain(root, links) => self.kernel.redeem(root, links, session, wall_ms),
                    By::Ticket(ticket) => {
                        let receiver = name(from);
                        let taken = self.kernel.withdraw(&receiver, ticket, session, wall_ms);
                        if taken.is_ok() {
                            world.report.gifts += 1;
                            let once = world.truth.withdrawn(ticket);
                            once.map_err(|what| broken(world, what))?;
                        }
                        taken
                    }
                };
                let lent = match grant {
                    Ok(grant) => {
                        let above = self.kernel.authorities(&grant);
                        let within = Truth::granted(grant.facts.authority, &above);
                        within.map_err(|what| broken(world, what))?;
                        self.lend((connection, ask), &grant, world)
                    }
                    Err(_) => None,
                };
                let answer = lent.unwrap_or(Message::NotLent(connection, ask, false));
                world.send(self.index, from, answer);
            }
            Message::Renew(connection, ask, released) => {
                if !self.served(connection, from, false, world.now_us) {
                    world.send(self.index, from, Message::NotLent(connection, ask, true));
                    return Ok(());
                }
                self.lending.give_back(Lessee(connection), &released);
                let alive = |slot| self.kernel.table.contains(&slot);
                let now_ms = world.boot_ms(self.index);
                if let Ok(news) = self.lending.renew(Lessee(connection), alive, now_ms) {
                    world.send(self.index, from, Message::Renewed(connection, ask, news));
                }
            }
            Message::Heard(connection, numbers) => {
                if self.served(connection, from, false, world.now_us) {
                    self.lending.heard(Lessee(connection), &numbers);
                }
            }
            Message::Deposit(connection, cap, receiver) => {
                let ticket = world.random.bytes();
                let wall_ms = world.wall_ms(self.index);
                if self.served(connection, from, false, world.now_us)
                    && self.kernel.deposit(cap, &name(receiver), ticket, wall_ms).is_ok()
                {
                    // The ticket goes on by way of the giver; here, at once.
                    world.send(from, receiver, Message::Offer(self.index, ticket));
                }
            }
            Message::Offer(home, ticket) if home != self.index => {
                self.ask(home, By::Ticket(ticket), world);
            }
            Message::Offer(..) => {}
            Message::Lent(connection, ask, granted) => {
                let link = self.links.iter_mut().find(|link| link.connection == connection);
                let Some(link) = link.filter(|link| !link.is_broken) else { return Ok(()) };
                let Granted { loan, lineage, lasts_ms } = granted;
                let term_ms = Terms::USUAL.term_ms;
                if let Ok(leaf) = link.holder.lent(ask, &loan, term_ms, lasts_ms) {
                    link.held.push(Held { leaf, lineage });
                }
            }
            Message::NotLent(connection, ask, is_broken) => {
                if let Some(link) = self.links.iter_mut().find(|l| l.connection == connection) {
                    link.holder.give_up(ask);
                    link.is_broken |= is_broken;
                }
            }
            Message::Renewed(connection, ask, news) => {
                if let Some(link) = self.links.iter_mut().find(|l| l.connection == connection) {
                    link.holder.renewed(ask, &news, Terms::USUAL.term_ms);
                }
            }
            Message::Ended(connection, news) => {
                // Whoever does not know the connection has nothing by it.
                if let Some(link) = self.links.iter_mut().find(|l| l.connection == connection) {
                    link.holder.hear(&news);
                }
                world.send(self.index, from, Message::Heard(connection, news.ended));
            }
            Message::Statement(bytes, signature) => self.hear(from, &bytes, &signature, world)?,
        }
        Ok(())
    }

    // Statements.

    fn beat(&mut self, world: &mut World) {
        let now_us = world.wall_ms(self.index) * 1000;
        for peer in self.peers.clone() {
            self.made += 1;
            let (from, to) = (subject(self.index), subject(peer));
            let at_us = self.ticks.next(now_us);
            let body = self.made.to_le_bytes().to_vec();
            world.truth.said((self.index, peer), at_us, &body);
            let (bytes, signature) = Statement { from, to, at_us, body }.sign(&self.secret);
            world.send(self.index, peer, Message::Statement(bytes, signature));
        }
    }

    fn hear(
        &mut self,
        from: usize,
        bytes: &[u8],
        signature: &[u8; 64],
        world: &mut World,
    ) -> Result<(), Violation> {
        let now_us = world.wall_ms(self.index) * 1000;
        self.latest_us = self.latest_us.max(now_us);
        let (sender, own) = (subject(from), subject(self.index));
        let said = Statement::verify(bytes, signature, (&sender, secret(from).key()), &own);
        let new = said.and_then(|said| {
            self.heard.check(&sender, said.at_us, now_us)?;
            Ok(said)
        });
        let Ok(said) = new else {
            world.report.refused += 1;
            return Ok(());
        };
        if self.heard.is_ahead(&sender, said.at_us) {
            self.heard.reserve(&sender, said.at_us, now_us);
            let (until_us, floor_us) = self.heard.kept();
            self.kept = (until_us.clone(), floor_us);
        }
        self.heard.note(&sender, said.at_us);
        world.report.heard += 1;
        let clock = (now_us, self.latest_us);
        let once = world.truth.heard((from, self.index), said.at_us, &said.body, clock);
        once.map_err(|what| Violation { at_us: world.now_us, what })
    }
}
