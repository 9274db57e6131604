//! Evidence in a fleet: every node's TPM, and the verifiers of all of them, each with the state machine that production
//! runs ([`distos_attestation::state`]), in time that does not pass by itself. One seed makes one run, everywhere.
//!
//! A TPM does one thing at a time, and as slowly as real ones. A verifier asks as services/attestation does: when it knows nothing yet and before
//! half of the bound is over, one question at a time of each node; a question that has no answer after 30 s is given up.
//!
//! **What is checked**, whenever a verifier has taken an answer, and every second of all of them: nothing is fresh for longer
//! than the bound after its challenge was opened, whatever the wall clock says, and after evidence that was bad nothing is fresh until good evidence
//! (A2); the epoch is as often as evidence was bad, and survives crashes (A3); no node fails that was not tampered with;
//! each that was fails at every living verifier before the next renewal, the TPM's queue and what was lost are over; and
//! what a verifier has told of a node counts nowhere for longer than it said, also when that verifier is no more.
//!
//! **What is not here:** quotes and policies (services/attestation runs a hundred software TPMs), the connections
//! over which verifiers ask, what a verdict ends.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::str::FromStr;

use distos_abi::NodeId;
use distos_attestation::state::{Bounds, CHALLENGE_MS, Judged, Now, Standing, State, Unasked};

use super::truth::Violation;
use crate::random::Random;

/// How many verify each node.
pub const VERIFIERS: usize = 3;
/// How long evidence counts.
pub const BOUNDS: Bounds = Bounds { fresh_ms: 60_000, grace_ms: 60_000 };
/// How long whoever was switched on has until everybody finds it fresh: what was asked of it before is given up by then.
pub const WARM_UP_S: u64 = 40;

/// When the runs begin, in milliseconds since the Unix epoch.
const BEGIN_MS: u64 = 1_800_000_000_000;
/// How far a wall clock is put back at most, in milliseconds.
const BACK_MS: u64 = 400_000;
/// A verifier looks so soon again whether evidence is due, and at least so often, in microseconds.
const SOON_US: u64 = 200_000;
/// See there.
const POLL_US: u64 = 1_000_000;
/// How long a question may take.
const ASK_US: u64 = CHALLENGE_MS * 1_000;
/// How long a TPM takes for one thing, in microseconds, at these of a thousand: half a hardware TPM's quotes with a P-256 key take
/// less than 0.2 s, and hardly any 2 s.
const TPM_US: [(u64, u64); 6] = [
    (0, 120_000),
    (500, 200_000),
    (900, 480_000),
    (990, 1_000_000),
    (999, 1_700_000),
    (1_000, 2_000_000),
];
/// How long tampering may go unseen by a verifier that is up and loses nothing: until evidence is due, and looked for; the
/// TPM's queue, in which each verifier waits once and a crashed one has left something; two messages.
const SEEN_US: u64 = BOUNDS.fresh_ms / 2 * 1_000 + SOON_US + POLL_US + 8_000_000 + 200_000;
/// And for how much longer with each question that was lost.
const LOST_US: u64 = ASK_US + SOON_US;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Troubles {
    /// Nothing.
    None,
    /// Messages are lost, verifiers crash, their wall clocks are set, machines are tampered with and rebooted.
    Several,
    /// Messages are lost, machines are tampered with and rebooted, and halfway one verifier dies for good.
    Death,
}

impl Troubles {
    /// All of them.
    pub const ALL: [Troubles; 3] = [Troubles::None, Troubles::Several, Troubles::Death];
}

impl fmt::Display for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Troubles::None => "none",
            Troubles::Several => "several",
            Troubles::Death => "death",
        })
    }
}

impl FromStr for Troubles {
    type Err = String;

    fn from_str(word: &str) -> Result<Troubles, String> {
        let found = Troubles::ALL.into_iter().find(|troubles| troubles.to_string() == word);
        found.ok_or_else(|| "there are none, several and death".to_owned())
    }
}

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many nodes.
    pub nodes: usize,
    /// Chooses everything else.
    pub seed: u64,
    /// How long it lasts, in simulated seconds.
    pub seconds: u64,
    /// What goes wrong.
    pub troubles: Troubles,
}

/// What happened in a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Questions that were asked.
    pub asked: u64,
    /// Answers that were good, and that were bad.
    pub good: u64,
    /// See there.
    pub bad: u64,
    /// Questions that had no answer in time.
    pub unanswered: u64,
    /// Answers that came when nobody waited for them.
    pub late: u64,
    /// Answers that were refused for the clock's sake.
    pub too_old: u64,
    /// Crashes of verifiers.
    pub crashes: u64,
    /// How often a wall clock was set.
    pub set: u64,
    /// Reboots of machines.
    pub reboots: u64,
    /// Machines that were tampered with, and how long each verifier took to see it that had lost nothing meanwhile, in microseconds, in order.
    pub tampered: u64,
    /// See there.
    pub seen_us: Vec<u64>,
    /// How many verifiers saw it later than that, as messages were lost or they were down.
    pub seen_late: u64,
    /// The least share of pairs of a node and a verifier that were fresh at a moment, of those where neither was down or tampered with, in
    /// millionths; and the sum over all moments.
    pub least_fresh: u64,
    fresh: (u64, u64),
    /// The most renewals by one verifier in one second, and in the mean.
    pub busiest: u64,
    /// See there.
    pub mean: f64,
    /// The most that waited for one TPM.
    pub queue: usize,
    /// Of the verifier that died: until when after its death anybody held something for fresh by its word, and for stale,
    /// in microseconds.
    pub dead: Option<(u64, u64)>,
}

impl Report {
    /// The share of pairs that were fresh, over all moments.
    pub fn fresh_share(&self) -> f64 {
        self.fresh.0 as f64 / self.fresh.1.max(1) as f64
    }

    /// How long so many of a thousand took at most to see tampering, in seconds.
    pub fn seen_s(&self, permille: usize) -> f64 {
        let last = self.seen_us.len().saturating_sub(1);
        self.seen_us.get(last * permille / 1_000).map_or(0.0, |us| *us as f64 / 1e6)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} questions, {} answers good, {} bad, {} lost, {} late, {} refused; {} crashes of verifiers, {} clocks set, {} reboots; \
             {:.4} % fresh, never less than {:.2} %; at most {} renewals a second, {:.1} in the mean; \
             at most {} at a TPM; {} tampered with, seen by each verifier after {:.1} s (p50), {:.1} s (p99), {:.1} s (all), {} later",
            self.asked,
            self.good,
            self.bad,
            self.unanswered,
            self.late,
            self.too_old,
            self.crashes,
            self.set,
            self.reboots,
            self.fresh_share() * 100.0,
            self.least_fresh as f64 / 1e4,
            self.busiest,
            self.mean,
            self.queue,
            self.tampered,
            self.seen_s(500),
            self.seen_s(990),
            self.seen_s(1_000),
            self.seen_late,
        )?;
        let Some((fresh_us, stale_us)) = self.dead else { return Ok(()) };
        let (fresh_s, stale_s) = (fresh_us as f64 / 1e6, stale_us as f64 / 1e6);
        write!(
            f,
            "; what the dead verifier said was fresh for {fresh_s:.1} s more, stale for {stale_s:.1} s"
        )
    }
}

/// What a node is asked: at first which TPM it has, and whether both keys are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leg {
    Identity,
    Activate,
    Evidence([u8; 32]),
}

/// What a verifier asks of a node, by a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    by: usize,
    of: usize,
    number: u64,
    leg: Leg,
}

/// What is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A verifier looks whether evidence of a node is due.
    Due {
        by: usize,
        of: usize,
        timer: u64,
    },
    Asked(Question),
    /// A TPM has done what it was asked first, in this boot.
    Done {
        of: usize,
        boot: u32,
    },
    Answered {
        question: Question,
        is_good: bool,
    },
    GivenUp(Question),
    /// What a verifier says of a node has come to whoever goes by it.
    Told {
        by: usize,
        of: usize,
        word: Word,
    },
    Look,
    Trouble,
    Death,
    Restart(usize),
    Boot(usize),
}

/// What a verifier has said of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Word {
    failed: bool,
    /// When it was said.
    at_us: u64,
    fresh_until_us: u64,
    expires_us: u64,
}

/// What one verifier knows of one node.
struct Pair {
    state: State<()>,
    /// What is durable: the epoch, and whether it is enrolled.
    epoch: u64,
    is_enrolled: bool,
    asking: Option<u64>,
    challenge: [u8; 32],
    opened_us: u64,
    timer: u64,
    /// What is true of it, whatever the state says: when the challenge of the last answer was opened, and whether it was good; since this verifier runs.
    taken: Option<(u64, bool)>,
    /// And how often it was bad, ever.
    bad: u64,
    word: Word,
}

struct Verifier {
    is_up: bool,
    is_dead: bool,
    /// By how much its wall clock is ahead.
    off_ms: i64,
    /// When it started, which is its monotonic clock's zero.
    zero_us: u64,
    renewals: Vec<u32>,
    down_us: u64,
}

struct Machine {
    is_up: bool,
    boot: u32,
    up_us: u64,
    queue: VecDeque<Question>,
    tampered: Option<Tampered>,
    /// Whether it ever was.
    was_tampered: bool,
}

struct Tampered {
    at_us: u64,
    /// Of each verifier: whether it has seen it, how long it may take, and whether more than if nothing had gone wrong.
    seen: [bool; VERIFIERS],
    may_take_us: [u64; VERIFIERS],
    is_late: [bool; VERIFIERS],
}

struct World {
    plan: Plan,
    random: Random,
    now_us: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    numbers: u64,
    verifiers: Vec<Verifier>,
    machines: Vec<Machine>,
    /// Of all verifiers, node by node.
    pairs: Vec<Pair>,
    report: Report,
    died_us: Option<u64>,
}

/// Runs one seed.
///
/// # Errors
/// Which promise was broken, and when.
pub fn run(plan: Plan) -> Result<Report, Violation> {
    let mut world = World::new(plan);
    let end_us = plan.seconds * 1_000_000;
    while let Some(Reverse((when_us, _, event))) = world.queue.pop() {
        if when_us >= end_us {
            break;
        }
        world.now_us = when_us;
        world.step(event).map_err(|what| Violation { at_us: when_us, what })?;
    }
    Ok(world.end())
}

impl World {
    fn new(plan: Plan) -> World {
        let seconds = plan.seconds as usize + 1;
        let verifier = |_| Verifier {
            is_up: true,
            is_dead: false,
            off_ms: 0,
            zero_us: 0,
            renewals: vec![0; seconds],
            down_us: 0,
        };
        let machine = |_| Machine {
            is_up: true,
            boot: 0,
            up_us: 0,
            queue: VecDeque::new(),
            tampered: None,
            was_tampered: false,
        };
        let pair = |number| Pair {
            state: state(number / VERIFIERS, 0),
            epoch: 0,
            is_enrolled: false,
            asking: None,
            challenge: [0; 32],
            opened_us: 0,
            timer: 0,
            taken: None,
            bad: 0,
            word: Word::default(),
        };
        let mut world = World {
            plan,
            random: Random::new(plan.seed),
            now_us: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            numbers: 0,
            verifiers: (0..VERIFIERS).map(verifier).collect(),
            machines: (0..plan.nodes).map(machine).collect(),
            pairs: (0..plan.nodes * VERIFIERS).map(pair).collect(),
            report: Report { least_fresh: 1_000_000, ..Report::default() },
            died_us: None,
        };
        // All are switched on in the same moment, which is the worst.
        for by in 0..VERIFIERS {
            world.look_at_all(by);
        }
        world.after(POLL_US, Event::Look);
        if plan.troubles != Troubles::None {
            world.after(WARM_UP_S * 1_000_000, Event::Trouble);
        }
        if plan.troubles == Troubles::Death {
            world.after(plan.seconds * 500_000, Event::Death);
        }
        world
    }

    fn at(&mut self, when_us: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse((when_us, self.scheduled, event)));
    }

    fn after(&mut self, us: u64, event: Event) {
        self.at(self.now_us + us, event);
    }

    /// By a message, which may be lost.
    fn send(&mut self, event: Event) {
        let mut delay_us = 100 + self.random.below(900);
        if self.random.below(20) == 0 {
            delay_us += self.random.below(100_000);
        }
        let is_troubled = self.plan.troubles != Troubles::None;
        if !is_troubled || self.random.below(100) != 0 {
            self.after(delay_us, event);
        }
        // An answer that comes once more, or when it was given up, is none.
        if is_troubled && matches!(event, Event::Answered { .. }) && self.random.below(100) == 0 {
            let late_us = self.random.below(2 * ASK_US);
            self.after(delay_us + late_us, event);
        }
    }

    fn pair(&mut self, by: usize, of: usize) -> &mut Pair {
        &mut self.pairs[of * VERIFIERS + by]
    }

    /// Now, by a verifier's clocks.
    fn now(&self, by: usize) -> Now {
        let verifier = &self.verifiers[by];
        Now {
            unix_ms: (BEGIN_MS + self.now_us / 1_000).saturating_add_signed(verifier.off_ms),
            mono_ms: (self.now_us - verifier.zero_us) / 1_000,
        }
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Due { by, of, timer } => {
                let now = self.now(by);
                let is_up = self.verifiers[by].is_up;
                let pair = self.pair(by, of);
                if !is_up || pair.timer != timer || pair.asking.is_some() {
                    return Ok(());
                }
                match pair.state.next_in_ms(now) {
                    0 => self.challenge(by, of),
                    _ => self.wait(by, of),
                }
            }
            Event::Asked(question) => self.asked(question),
            Event::Done { of, boot } => self.done(of, boot),
            Event::Answered { question, is_good } => self.answered(question, is_good)?,
            Event::GivenUp(question) => self.given_up(question)?,
            Event::Told { by, of, word } => {
                let pair = self.pair(by, of);
                if word.at_us > pair.word.at_us {
                    pair.word = word;
                }
            }
            Event::Look => {
                self.look()?;
                self.after(POLL_US, Event::Look);
            }
            Event::Trouble => {
                self.trouble();
                // As often at each node, however many there are.
                let next_us = 1_000_000 + self.random.below(2_000_000);
                self.after(next_us * 1_024 / self.plan.nodes as u64, Event::Trouble);
            }
            Event::Death => {
                self.died_us = Some(self.now_us);
                self.verifiers[0].is_dead = true;
                self.crash(0);
            }
            Event::Restart(by) => self.restart(by),
            Event::Boot(of) => {
                let now_us = self.now_us;
                let machine = &mut self.machines[of];
                (machine.is_up, machine.up_us) = (true, now_us);
            }
        }
        Ok(())
    }

    /// When a verifier looks next whether evidence of a node is due.
    fn wait(&mut self, by: usize, of: usize) {
        let now = self.now(by);
        let pair = self.pair(by, of);
        let wait_us = (pair.state.next_in_ms(now) * 1_000).max(SOON_US);
        self.look_in(by, of, wait_us);
    }

    fn look_in(&mut self, by: usize, of: usize, us: u64) {
        let pair = self.pair(by, of);
        pair.timer += 1;
        let timer = pair.timer;
        self.after(us, Event::Due { by, of, timer });
    }

    /// Each of its tasks looks within a second.
    fn look_at_all(&mut self, by: usize) {
        for of in 0..self.plan.nodes {
            let us = self.random.below(POLL_US);
            self.look_in(by, of, us);
        }
    }

    fn challenge(&mut self, by: usize, of: usize) {
        let (random, now, now_us) = (self.random.bytes(), self.now(by), self.now_us);
        let pair = self.pair(by, of);
        let nonce = pair.state.challenge(random, now);
        (pair.challenge, pair.opened_us) = (nonce, now_us);
        let (is_enrolled, is_renewal) = (pair.is_enrolled, pair.taken.is_some());
        if is_renewal {
            self.verifiers[by].renewals[(now_us / 1_000_000) as usize] += 1;
        }
        self.ask(by, of, if is_enrolled { Leg::Evidence(nonce) } else { Leg::Identity });
    }

    fn ask(&mut self, by: usize, of: usize, leg: Leg) {
        self.report.asked += 1;
        self.numbers += 1;
        let number = self.numbers;
        self.pair(by, of).asking = Some(number);
        let question = Question { by, of, number, leg };
        self.after(ASK_US, Event::GivenUp(question));
        self.send(Event::Asked(question));
    }

    fn asked(&mut self, question: Question) {
        let machine = &mut self.machines[question.of];
        if !machine.is_up {
            return;
        }
        machine.queue.push_back(question);
        let waiting = machine.queue.len();
        self.report.queue = self.report.queue.max(waiting);
        if waiting == 1 {
            self.begin(question.of);
        }
    }

    /// The TPM begins with what was asked first.
    fn begin(&mut self, of: usize) {
        let at = self.random.below(1_000);
        let part = TPM_US.windows(2).find(|part| at < part[1].0).unwrap_or(&TPM_US[..2]);
        let ((from, least_us), (to, most_us)) = (part[0], part[1]);
        let us = least_us + (most_us - least_us) * (at - from) / (to - from);
        let boot = self.machines[of].boot;
        self.after(us, Event::Done { of, boot });
    }

    fn done(&mut self, of: usize, boot: u32) {
        let machine = &mut self.machines[of];
        if machine.boot != boot {
            return;
        }
        let question = machine.queue.pop_front().expect("the TPM did something that was asked");
        let (is_good, is_idle) = (machine.tampered.is_none(), machine.queue.is_empty());
        self.send(Event::Answered { question, is_good });
        if !is_idle {
            self.begin(of);
        }
    }

    fn answered(&mut self, question: Question, is_good: bool) -> Result<(), String> {
        let Question { by, of, number, leg } = question;
        if !self.verifiers[by].is_up {
            return Ok(());
        }
        let now = self.now(by);
        let is_awaited = self.pair(by, of).asking == Some(number);
        if !is_awaited {
            self.report.late += 1;
        }
        let nonce = match leg {
            Leg::Identity | Leg::Activate if !is_awaited => return Ok(()),
            Leg::Identity => {
                self.ask(by, of, Leg::Activate);
                return Ok(());
            }
            Leg::Activate => {
                let pair = self.pair(by, of);
                pair.is_enrolled = true;
                let nonce = pair.challenge;
                self.ask(by, of, Leg::Evidence(nonce));
                return Ok(());
            }
            Leg::Evidence(nonce) => nonce,
        };
        let judged = match is_good {
            true => Judged::Good(()),
            false => Judged::Bad("PCR 4".to_owned()),
        };
        let pair = self.pair(by, of);
        let before = pair.state.verdict(now);
        match (pair.state.answer(&nonce, judged, now), is_awaited) {
            (Ok(()), true) => {
                pair.taken = Some((pair.opened_us, is_good));
                if !is_good {
                    pair.bad += 1;
                }
                // Durable before anybody is told.
                pair.epoch = pair.state.epoch();
                match is_good {
                    true => self.report.good += 1,
                    false => self.report.bad += 1,
                }
                self.seen(by, of)?;
            }
            (Err(Unasked::TooOld), true) => self.report.too_old += 1,
            (Err(Unasked::NotOpen), false) if pair.state.verdict(now) == before => return Ok(()),
            (taken, _) => {
                return Err(format!(
                    "A2: verifier {by} took an answer of node {of}: {taken:?}, awaited: {is_awaited}"
                ));
            }
        }
        self.settle(by, of)
    }

    fn given_up(&mut self, question: Question) -> Result<(), String> {
        let Question { by, of, number, .. } = question;
        let pair = self.pair(by, of);
        if pair.asking != Some(number) {
            return Ok(());
        }
        pair.state.no_answer("no answer within 30 s".to_owned());
        self.report.unanswered += 1;
        if let Some(tampered) = &mut self.machines[of].tampered {
            tampered.may_take_us[by] += LOST_US;
            tampered.is_late[by] = true;
        }
        self.settle(by, of)
    }

    /// A question is over.
    fn settle(&mut self, by: usize, of: usize) -> Result<(), String> {
        self.pair(by, of).asking = None;
        self.wait(by, of);
        self.check(by, of)?;
        let now = self.now(by);
        let verdict = self.pair(by, of).state.verdict(now);
        let until_us = |unix_ms: u64| match unix_ms {
            0 => 0,
            until_ms => self.now_us + until_ms.saturating_sub(now.unix_ms) * 1_000,
        };
        let word = Word {
            failed: verdict.standing == Standing::Failed,
            at_us: self.now_us,
            fresh_until_us: until_us(verdict.fresh_until_ms),
            expires_us: until_us(verdict.expires_ms),
        };
        self.send(Event::Told { by, of, word });
        Ok(())
    }

    /// A verifier has taken evidence of a node that may be tampered with.
    fn seen(&mut self, by: usize, of: usize) -> Result<(), String> {
        let now_us = self.now_us;
        let is_bad = matches!(self.pair(by, of).taken, Some((_, false)));
        let tampered = self.machines[of].tampered.as_mut().filter(|one| is_bad && !one.seen[by]);
        let Some(tampered) = tampered else { return Ok(()) };
        tampered.seen[by] = true;
        let took_us = now_us - tampered.at_us;
        if took_us > tampered.may_take_us[by] {
            return Err(unseen(by, of, took_us, tampered));
        }
        match tampered.is_late[by] {
            true => self.report.seen_late += 1,
            false => self.report.seen_us.push(took_us),
        }
        Ok(())
    }

    /// Holds what a verifier claims against what is true.
    fn check(&mut self, by: usize, of: usize) -> Result<Standing, String> {
        let (now, zero_us) = (self.now(by), self.verifiers[by].zero_us);
        let was_tampered = self.machines[of].was_tampered;
        let pair = self.pair(by, of);
        let verdict = pair.state.verdict(now);
        let broken =
            |what: &str| Err(format!("{what}: verifier {by} says of node {of}: {verdict:?}"));
        let age_ms = |opened_us: u64| now.mono_ms - (opened_us - zero_us) / 1_000;
        match (verdict.standing, pair.taken) {
            (Standing::Fresh, Some((opened_us, true))) => {
                let age_ms = age_ms(opened_us);
                let left_ms = verdict.fresh_until_ms.saturating_sub(now.unix_ms);
                if age_ms >= BOUNDS.fresh_ms || age_ms + left_ms > BOUNDS.fresh_ms {
                    return broken("A2: it is fresh for too long");
                }
            }
            (Standing::Stale, Some((opened_us, true))) => {
                if age_ms(opened_us) >= BOUNDS.fresh_ms + BOUNDS.grace_ms {
                    return broken("A2: it is stale for too long");
                }
            }
            (Standing::Expired, Some((_, true)) | None) => {}
            (Standing::Failed, Some((_, false))) if was_tampered => {}
            _ => return broken("A2: that is not what its last answer said"),
        }
        if (pair.state.epoch(), pair.epoch) != (pair.bad, pair.bad) {
            return broken("A3: the epoch is not how often its evidence was bad");
        }
        if pair.bad > 0 && !was_tampered {
            return broken("A3: it was never tampered with");
        }
        Ok(verdict.standing)
    }

    /// Every second, at everybody.
    fn look(&mut self) -> Result<(), String> {
        let now_us = self.now_us;
        let is_settled = |since_us: u64| now_us >= since_us + WARM_UP_S * 1_000_000;
        let (mut fresh, mut all) = (0, 0);
        for of in 0..self.plan.nodes {
            for by in 0..VERIFIERS {
                let (word, machine) = (self.pairs[of * VERIFIERS + by].word, &self.machines[of]);
                let (is_up, up_us) = (machine.is_up && machine.tampered.is_none(), machine.up_us);
                if word.failed && !machine.was_tampered {
                    return Err(format!("A3: verifier {by} has said of node {of} that it failed"));
                }
                let verifier = &self.verifiers[by];
                if !verifier.is_up {
                    self.heard(by, of)?;
                    continue;
                }
                if let Some(tampered) = &machine.tampered {
                    let took_us = now_us - tampered.at_us;
                    // Of a question that is under way it shows later whether it is lost.
                    let is_asked = self.pairs[of * VERIFIERS + by].asking.is_some();
                    let is_over = took_us > tampered.may_take_us[by] && !is_asked;
                    if is_over && !tampered.seen[by] {
                        return Err(unseen(by, of, took_us, tampered));
                    }
                }
                let is_settled = is_up && is_settled(up_us) && is_settled(verifier.zero_us);
                let standing = self.check(by, of)?;
                if is_settled {
                    all += 1;
                    fresh += u64::from(standing == Standing::Fresh);
                }
            }
        }
        if let Some(share) = (fresh * 1_000_000).checked_div(all) {
            self.report.least_fresh = self.report.least_fresh.min(share);
            self.report.fresh.0 += fresh;
            self.report.fresh.1 += all;
        }
        Ok(())
    }

    /// What a verifier that is down has said counts for no longer than if it were there.
    fn heard(&self, by: usize, of: usize) -> Result<(), String> {
        let word = self.pairs[of * VERIFIERS + by].word;
        let down_us = self.verifiers[by].down_us;
        let most_us = BOUNDS.fresh_ms * 1_000;
        let all_us = most_us + BOUNDS.grace_ms * 1_000;
        if word.fresh_until_us > down_us + most_us || word.expires_us > down_us + all_us {
            return Err(format!(
                "A2: what verifier {by} said of node {of} counts for too long: {word:?}"
            ));
        }
        Ok(())
    }

    fn trouble(&mut self) {
        let of = self.random.below(self.plan.nodes as u64) as usize;
        let by = self.random.below(VERIFIERS as u64) as usize;
        let is_several = self.plan.troubles == Troubles::Several;
        match self.random.below(20) {
            0..7 => self.tamper(of),
            7..10 => {
                // Of what was tampered with some are rebooted before anybody has seen it.
                let tampered = |of: &usize| self.machines[*of].tampered.is_some();
                let of = (0..self.plan.nodes).map(|n| (n + of) % self.plan.nodes).find(tampered);
                of.into_iter().for_each(|of| self.reboot(of));
            }
            10..16 => self.reboot(of),
            16..18 if is_several && self.verifiers[by].is_up => {
                self.report.crashes += 1;
                self.crash(by);
                let us = 1_000_000 + self.random.below(30_000_000);
                self.after(us, Event::Restart(by));
            }
            18..20 if is_several => {
                self.report.set += 1;
                self.verifiers[by].off_ms = match self.random.below(2) {
                    0 => self.random.below(2_000) as i64 - 1_000,
                    _ => -(self.random.below(BACK_MS) as i64),
                };
                if self.verifiers[by].is_up {
                    self.look_at_all(by);
                }
            }
            _ => {}
        }
    }

    fn tamper(&mut self, of: usize) {
        let now_us = self.now_us;
        let down: [bool; VERIFIERS] = std::array::from_fn(|by| !self.verifiers[by].is_up);
        let machine = &mut self.machines[of];
        if !machine.is_up || machine.tampered.is_some() {
            return;
        }
        machine.was_tampered = true;
        machine.tampered = Some(Tampered {
            at_us: now_us,
            seen: [false; VERIFIERS],
            may_take_us: [SEEN_US; VERIFIERS],
            is_late: down,
        });
        self.report.tampered += 1;
    }

    /// What the TPM was asked is lost, and what was done to the machine is over.
    fn reboot(&mut self, of: usize) {
        let machine = &mut self.machines[of];
        if !machine.is_up {
            return;
        }
        machine.is_up = false;
        machine.boot += 1;
        machine.queue.clear();
        machine.tampered = None;
        self.report.reboots += 1;
        let us = 5_000_000 + self.random.below(30_000_000);
        self.after(us, Event::Boot(of));
    }

    fn crash(&mut self, by: usize) {
        self.verifiers[by].is_up = false;
        self.verifiers[by].down_us = self.now_us;
        for of in 0..self.plan.nodes {
            // Questions, challenges and tasks end with it.
            let pair = self.pair(by, of);
            (pair.asking, pair.taken) = (None, None);
            pair.timer += 1;
        }
    }

    fn restart(&mut self, by: usize) {
        let now_us = self.now_us;
        let verifier = &mut self.verifiers[by];
        let down_us = now_us - verifier.down_us;
        (verifier.is_up, verifier.zero_us) = (true, now_us);
        for of in 0..self.plan.nodes {
            let pair = self.pair(by, of);
            pair.state = state(of, pair.epoch);
            if let Some(tampered) = &mut self.machines[of].tampered {
                tampered.may_take_us[by] += down_us + SEEN_US;
                tampered.is_late[by] = true;
            }
        }
        self.look_at_all(by);
    }

    fn end(mut self) -> Report {
        let seconds = self.plan.seconds as f64;
        let renewals = self.verifiers.iter().filter(|verifier| !verifier.is_dead);
        let renewals: Vec<u32> = renewals.flat_map(|verifier| verifier.renewals.clone()).collect();
        let living = renewals.len() as f64 / (seconds + 1.0);
        self.report.busiest = renewals.iter().copied().max().unwrap_or_default().into();
        self.report.mean = renewals.iter().map(|n| f64::from(*n)).sum::<f64>() / (living * seconds);
        self.report.seen_us.sort_unstable();
        self.report.dead = self.died_us.map(|died_us| {
            let words = self.pairs.iter().step_by(VERIFIERS).map(|pair| pair.word);
            let last = |until: fn(Word) -> u64| {
                words.clone().map(until).max().unwrap_or_default().saturating_sub(died_us)
            };
            (last(|word| word.fresh_until_us), last(|word| word.expires_us))
        });
        self.report
    }
}

fn unseen(by: usize, of: usize, took_us: u64, tampered: &Tampered) -> String {
    let may_us = tampered.may_take_us[by];
    format!(
        "A3: verifier {by} took {took_us} us to see that node {of} was tampered with, and had {may_us}"
    )
}

fn state(of: usize, epoch: u64) -> State<()> {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(of as u64).to_le_bytes());
    State::new(NodeId(id), BOUNDS, epoch).expect("bounds that make sense")
}
