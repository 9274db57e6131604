//! Leases over a network that loses, delays, repeats and reorders everything, with restarts on both sides and
//! clocks that differ: the two state machines of production are driven by one hand, and what they do is a behaviour
//! of their model (`specs/revocation`). One millisecond of theirs is one tick of the model.

use std::collections::{BTreeMap, BTreeSet};

use distos_abi::{Generation, SlotRef, TenantId};
use distos_lease::{Ask, Cursor, Holder, Home, Leaf, Lessee, Loan, News, Terms, Unheard};
use distos_sim::random::Random;
use distos_specs::root;
use distos_specs::tlc::Tlc;
use distos_specs::trace::revocation::{SPEC, event, question, trace};
use distos_specs::trace::{Finding, Trace, check};
use distos_specs::value::Value;

/// As `Trace.cfg` has them.
const TERMS: Terms = Terms { term_ms: 3, skew_ms: 1 };
/// Runs that are held to the promises, and those of them that TLC looks at.
const RUNS: u64 = 8000;
const CHECKED: u64 = 40;
const STEPS: usize = 160;

/// A capability: what it is derived from, root first and itself last, and which node uses it.
struct Cap {
    name: &'static str,
    line: &'static [&'static str],
    at: Option<usize>,
}

/// As `MC.tla` has them: `WideCaps`.
const CAPS: [Cap; 4] = [
    Cap { name: "a", line: &["a"], at: None },
    Cap { name: "b", line: &["a", "b"], at: Some(0) },
    Cap { name: "c", line: &["a", "b", "c"], at: Some(1) },
    Cap { name: "d", line: &["a", "d"], at: Some(1) },
];
const NODES: [&str; 2] = ["n1", "n2"];

fn cap(name: &str) -> &'static Cap {
    CAPS.iter().find(|cap| cap.name == name).expect("a capability")
}

fn slot(name: &str) -> SlotRef {
    let index = u32::from(name.as_bytes()[0]);
    SlotRef { index, generation: Generation(1) }
}

/// What is on its way, over one connection.
#[derive(Clone)]
enum Message {
    Lend { ask: Ask, cap: &'static str },
    Lent { ask: Ask, cap: &'static str, loan: Loan },
    Renew { ask: Ask, caps: Vec<&'static str>, released: Vec<u64> },
    Renewed { ask: Ask, caps: Vec<&'static str>, news: News },
    Ended { news: News },
    Heard { numbers: Vec<u64> },
}

/// A node that holds leases.
#[derive(Default)]
struct Node {
    clock_ms: u64,
    /// The number of its connection to the home; 0 if it has none.
    lessee: u64,
    holder: Holder,
    leases: BTreeMap<&'static str, Leaf>,
    loan: Option<Ask>,
    renewal: Option<(Ask, u64)>,
}

impl Node {
    fn uses(&self, cap: &str) -> bool {
        self.leases.get(cap).is_some_and(|leaf| self.holder.lasts(*leaf, self.clock_ms).is_ok())
    }
}

struct World {
    random: Random,
    /// Nodes renew seldom, and hear little: leases run out.
    is_quiet: bool,
    /// It does what the model has no word for, too: leases are given back, asked for while others are renewed, and
    /// revocations are found by looking at the table.
    is_free: bool,
    log: Vec<Value>,
    home: Home,
    clock_ms: u64,
    alive: BTreeSet<SlotRef>,
    /// When each revocation began, and who may not have heard of it.
    revoked: BTreeMap<&'static str, (u64, Vec<Unheard>)>,
    returned: BTreeSet<&'static str>,
    nodes: [Node; 2],
    wire: Vec<(usize, u64, Message)>,
    connections: u64,
    /// What each connection calls each capability.
    names: BTreeMap<(u64, u64), &'static str>,
    asked: BTreeMap<&'static str, i64>,
    /// Which of the model's questions one of ours stands for.
    questions: BTreeMap<(u64, Ask, &'static str), i64>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Random::new(seed),
            is_quiet: seed % 2 == 1,
            is_free: seed >= CHECKED,
            log: Vec::new(),
            home: Home::started(TERMS, 0),
            clock_ms: 0,
            alive: CAPS.iter().map(|cap| slot(cap.name)).collect(),
            revoked: BTreeMap::new(),
            returned: BTreeSet::new(),
            nodes: Default::default(),
            wire: Vec::new(),
            connections: 0,
            names: BTreeMap::new(),
            asked: BTreeMap::new(),
            questions: BTreeMap::new(),
        }
    }

    fn note(&mut self, kind: &str, names: &[(&str, &str)]) {
        self.log.push(event(kind, names));
    }

    fn send(&mut self, node: usize, message: Message) {
        let lessee = self.nodes[node].lessee;
        self.wire.push((node, lessee, message));
    }

    /// A question for each of these is asked: the model numbers them by capability.
    fn ask(&mut self, node: usize, ask: Ask, caps: &[&'static str]) {
        for cap in caps {
            let asked = self.asked.entry(cap).or_default();
            *asked += 1;
            let s = *asked;
            self.questions.insert((self.nodes[node].lessee, ask, cap), s);
            self.log.push(question("ask", cap, s));
        }
    }

    fn answered(&mut self, kind: &str, lessee: u64, ask: Ask, cap: &'static str) {
        let s = self.questions[&(lessee, ask, cap)];
        self.log.push(question(kind, cap, s));
    }

    /// What a node does by itself.
    fn act(&mut self, node: usize) {
        let unused = CAPS.iter().filter(|cap| cap.at == Some(node));
        let all: Vec<&'static str> = unused.map(|cap| cap.name).collect();
        if self.nodes[node].lessee == 0 {
            // A connection breaks with what was lent over it, once that is over.
            if all.iter().any(|cap| self.nodes[node].uses(cap)) {
                return;
            }
            self.connections += 1;
            let clock_ms = self.nodes[node].clock_ms;
            self.nodes[node] = Node { clock_ms, lessee: self.connections, ..Node::default() };
            self.home.arrive(Lessee(self.connections));
        }
        let wanted = self.random.pick(&all);
        let one = &mut self.nodes[node];
        let is_free = self.is_free;
        if is_free && self.random.below(8) == 0 {
            // It lets one go; the home hears of it with a renewal, if that arrives.
            if let Some(leaf) = one.leases.remove(wanted) {
                one.holder.release(leaf);
            }
            return;
        }
        let is_idle = one.loan.is_none() && (is_free || one.renewal.is_none());
        if is_idle && !one.leases.contains_key(wanted) {
            let ask = one.holder.ask(one.clock_ms).expect("few questions");
            one.loan = Some(ask);
            self.ask(node, ask, &[wanted]);
            self.send(node, Message::Lend { ask, cap: wanted });
        } else if (is_free || one.loan.is_none()) && !one.leases.is_empty() {
            if self.is_quiet && self.random.below(8) > 0 {
                return;
            }
            if let Some((open, _)) = one.renewal.take() {
                one.holder.give_up(open);
            }
            let ask = one.holder.ask_again(one.clock_ms).expect("few questions");
            one.renewal = Some((ask, one.clock_ms));
            let caps: Vec<&'static str> = one.leases.keys().copied().collect();
            self.ask(node, ask, &caps);
            let released = self.nodes[node].holder.take_released(9);
            self.send(node, Message::Renew { ask, caps, released });
        } else if self.random.below(4) == 0 {
            // Nobody answers: it is not waited for any more.
            if let Some(open) = one.loan.take() {
                one.holder.give_up(open);
            }
        }
    }

    fn deliver(&mut self) {
        if self.wire.is_empty() {
            return;
        }
        let index = self.random.below(self.wire.len() as u64) as usize;
        // What is delivered may be delivered again, and what is lost is never delivered. Nothing is given back twice:
        // the connection sees to that.
        let may_come_again = match &self.wire[index].2 {
            Message::Renew { released, .. } => released.is_empty(),
            _ => true,
        };
        let (node, lessee, message) = match self.random.below(3) {
            0 if may_come_again => self.wire[index].clone(),
            _ => self.wire.swap_remove(index),
        };
        if self.random.below(6) == 0 || self.nodes[node].lessee != lessee {
            return;
        }
        match message {
            Message::Lend { ask, cap: name } => {
                let line: Vec<SlotRef> = cap(name).line.iter().map(|above| slot(above)).collect();
                if !line.iter().all(|slot| self.alive.contains(slot)) {
                    return;
                }
                let tenant = TenantId(7);
                let lent = self.home.lend(Lessee(lessee), tenant, &line, self.clock_ms);
                let Ok(loan) = lent else { return };
                for (number, above) in loan.line.iter().zip(cap(name).line) {
                    self.names.insert((lessee, *number), above);
                }
                self.answered("grant", lessee, ask, name);
                self.send(node, Message::Lent { ask, cap: name, loan });
            }
            Message::Lent { ask, cap, loan } => {
                let one = &mut self.nodes[node];
                if let Ok(leaf) = one.holder.lent(ask, &loan, TERMS.term_ms, u64::MAX) {
                    one.leases.insert(cap, leaf);
                    one.loan = None;
                    // An answer to what was asked a whole term ago gives nothing.
                    if one.uses(cap) {
                        self.answered("take", lessee, ask, cap);
                    }
                }
            }
            Message::Renew { ask, caps, released } => {
                self.home.give_back(Lessee(lessee), &released);
                let alive = |slot| self.alive.contains(&slot);
                let renewed = self.home.renew(Lessee(lessee), alive, self.clock_ms);
                let Ok(news) = renewed else { return };
                let live = |name: &&'static str| {
                    cap(name).line.iter().all(|above| self.alive.contains(&slot(above)))
                };
                let caps: Vec<&'static str> = caps.into_iter().filter(live).collect();
                for cap in &caps {
                    self.answered("grant", lessee, ask, cap);
                }
                self.send(node, Message::Renewed { ask, caps, news });
            }
            Message::Renewed { ask, caps, news } => {
                for number in &news.ended {
                    let x = self.names[&(lessee, *number)];
                    self.note("hear", &[("n", NODES[node]), ("x", x)]);
                }
                let one = &mut self.nodes[node];
                one.holder.renewed(ask, &news, TERMS.term_ms);
                if let Some((_, asked_ms)) = one.renewal.take_if(|(open, _)| *open == ask) {
                    if one.clock_ms >= asked_ms + TERMS.term_ms {
                        return;
                    }
                    // What has ended is not taken, whatever else is said.
                    for cap in caps {
                        if self.nodes[node].uses(cap) {
                            self.answered("take", lessee, ask, cap);
                        }
                    }
                }
            }
            Message::Ended { news } => {
                self.nodes[node].holder.hear(&news);
                for number in &news.ended {
                    let x = self.names[&(lessee, *number)];
                    self.note("hear", &[("n", NODES[node]), ("x", x)]);
                }
                self.send(node, Message::Heard { numbers: news.ended });
            }
            Message::Heard { numbers } => {
                self.home.heard(Lessee(lessee), &numbers);
                for number in &numbers {
                    let x = self.names[&(lessee, *number)];
                    self.note("hear_ack", &[("n", NODES[node]), ("x", x)]);
                }
            }
        }
    }

    /// What the home does by itself.
    fn rule(&mut self) {
        match self.random.below(4) {
            0 if self.random.below(6) == 0 => {
                let x = self.random.pick(&["a", "b", "c", "d", "c", "d"]);
                if self.revoked.contains_key(x) {
                    return;
                }
                self.alive.remove(&slot(x));
                // Below what has ended the kernel clears nothing, and so nothing is found.
                let is_below = cap(x).line.iter().any(|above| self.revoked.contains_key(above));
                let unheard = match self.is_free && !is_below && self.random.below(2) == 0 {
                    true => self.looked(),
                    false => self.home.ended(slot(x)),
                };
                self.revoked.insert(x, (self.clock_ms, unheard));
                self.note("revoke", &[("x", x)]);
            }
            1 => {
                let node = self.random.below(2) as usize;
                let news = self.home.news(Lessee(self.nodes[node].lessee), 8);
                let is_lost = self.is_quiet && self.random.below(4) > 0;
                if !news.ended.is_empty() && !is_lost {
                    self.send(node, Message::Ended { news });
                }
            }
            _ => {
                let waiting = self.revoked.iter().filter(|(x, _)| !self.returned.contains(*x));
                let waiting: Vec<&'static str> = waiting.map(|(x, _)| *x).collect();
                for x in waiting {
                    if self.home.over_ms(&self.revoked[x].1, self.clock_ms).is_none() {
                        self.returned.insert(x);
                        self.note("return", &[("x", x)]);
                    }
                }
            }
        }
    }

    /// What has to be heard of what is found by looking.
    fn looked(&mut self) -> Vec<Unheard> {
        let (marks, alive) = (self.home.marks(), |slot| self.alive.contains(&slot));
        let mut cursor = Cursor::default();
        if self.random.below(2) == 0 {
            self.home.look(alive);
        }
        while self.home.look_on(&mut cursor, 2, alive) {}
        self.home.since(marks)
    }

    fn restart(&mut self) {
        match self.random.below(3) {
            2 => {
                self.home = Home::started(TERMS, self.clock_ms);
                self.note("restart_home", &[]);
                for node in &mut self.nodes {
                    node.lessee = 0;
                }
                // Whoever an earlier run lent to is counted by time.
                for (_, lessees) in self.revoked.values_mut() {
                    lessees.clear();
                }
            }
            node => {
                let node = node as usize;
                let lost = std::mem::take(&mut self.nodes[node]);
                self.nodes[node].clock_ms = lost.clock_ms;
                self.home.leave(Lessee(lost.lessee), self.clock_ms);
                self.note("restart_remote", &[("n", NODES[node])]);
            }
        }
    }

    /// The home's clock is never more than the skew ahead of a node's, and none is ahead of the home's.
    fn tick(&mut self) {
        match self.random.below(3) {
            2 => {
                let slowest = self.nodes.iter().map(|node| node.clock_ms).min();
                if slowest.is_some_and(|slowest| self.clock_ms < slowest + TERMS.skew_ms) {
                    self.clock_ms += 1;
                    self.home.forget(self.clock_ms);
                    self.note("home_tick", &[]);
                }
            }
            node => {
                let node = node as usize;
                if self.nodes[node].clock_ms < self.clock_ms {
                    self.nodes[node].clock_ms += 1;
                    self.note("remote_tick", &[("n", NODES[node])]);
                }
            }
        }
    }

    /// C2, as the model has it, whatever TLC says of the trace.
    fn check(&mut self, seed: u64) {
        for cap in CAPS.iter() {
            let Some(node) = cap.at else { continue };
            let uses = self.nodes[node].uses(cap.name);
            self.note(if uses { "use" } else { "idle" }, &[("c", cap.name)]);
            for above in cap.line.iter().filter(|_| uses) {
                let returned = self.returned.contains(above);
                assert!(!returned, "seed {seed}: {} is used after revoke({above})", cap.name);
                let began = self.revoked.get(above).map(|(began, _)| *began);
                let late = began.is_some_and(|began| self.clock_ms >= began + TERMS.bound_ms());
                assert!(!late, "seed {seed}: {} is used beyond the bound of {above}", cap.name);
            }
        }
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        match world.random.below(16) {
            0..4 => {
                let node = world.random.below(2) as usize;
                world.act(node);
            }
            4..9 => world.deliver(),
            9..12 => world.rule(),
            12..15 => world.tick(),
            _ if world.random.below(12) == 0 => world.restart(),
            _ => {}
        }
        if world.random.below(3) == 0 {
            world.check(seed);
        }
    }
    world
}

fn findings(traces: &[Trace]) -> Vec<Finding> {
    let tlc = Tlc::find(&root()).expect("TLC");
    let checked = check(&tlc, &root().join("specs").join(SPEC), traces);
    checked.unwrap_or_else(|why| panic!("{why}")).findings
}

/// Somebody who was revoked would go on at another node, or a revocation would say that it is over when it is not.
#[test]
fn nothing_that_was_lent_is_used_after_its_revocation_has_returned_or_beyond_the_bound() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..RUNS {
        for event in run(seed).log {
            *counts.entry(event.at("event").str().to_owned()).or_default() += 1;
        }
    }
    let often = ["use", "take", "grant", "hear", "hear_ack", "return", "restart_home", "revoke"];
    for kind in often {
        assert!(counts.get(kind).is_some_and(|count| *count > 500), "{kind} is rare: {counts:?}");
    }
}

#[test]
fn what_leases_did_is_a_behaviour_of_their_model_and_forged_traces_are_not() {
    let runs: Vec<Vec<Value>> = (0..CHECKED).map(|seed| run(seed).log).collect();
    let traces: Vec<Trace> = runs.iter().map(|events| trace(events)).collect();
    for (seed, finding) in findings(&traces).into_iter().enumerate() {
        let events = || runs[seed].iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        assert_eq!(finding, Finding::Accepted, "seed {seed}:\n{}", events());
    }
    let ask = |s| question("ask", "b", s);
    let begun = vec![ask(1), question("grant", "b", 1), question("take", "b", 1)];
    let revoked = [&begun[..], &[event("revoke", &[("x", "a")])]].concat();
    let told = [&revoked[..], &[event("hear", &[("n", "n1"), ("x", "a")])]].concat();
    let then = |events: &[Value], last: Value| [events, &[last]].concat();
    let forged = [
        ("it is over though nobody knows", then(&revoked, event("return", &[("x", "a")]))),
        ("nobody has heard it", then(&revoked, event("hear_ack", &[("n", "n1"), ("x", "a")]))),
        ("it is used by whoever was told", then(&told, event("use", &[("c", "b")]))),
        ("what was not asked for is lent", then(&begun, question("grant", "b", 2))),
        (
            "it is lent though it was revoked",
            then(&then(&revoked, ask(2)), question("grant", "b", 2)),
        ),
        ("an answer counts twice", then(&begun, question("take", "b", 1))),
        (
            "the home's clock runs away",
            then(&then(&begun, event("home_tick", &[])), event("home_tick", &[])),
        ),
    ];
    let control = then(&told, event("idle", &[("c", "b")]));
    let all: Vec<Trace> =
        forged.iter().map(|(_, events)| trace(events)).chain([trace(&control)]).collect();
    let mut found = findings(&all);
    assert_eq!(found.pop(), Some(Finding::Accepted), "nothing is wrong with it");
    for ((what, events), finding) in forged.iter().zip(found) {
        let last = events.len();
        let is_last = matches!(&finding, Finding::Refused { event, .. } if *event == last);
        assert!(is_last, "{what}: the last of {last} events is wrong, but: {finding:?}");
    }
}
