//! `distos-core` beside its model in every state of a bounded forest. [`explore`] finds all states
//! by itself; a [`Replayed`] takes each transition of the model's. [`levels`] does both with
//! transitions that were written to a file, so that it needs no model checker: what builds a
//! faulty `distos-core` runs it (see `faults.rs`).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::value::{Value, parse};
use crate::world::{Answer, Bounds, World};

/// How many differences are told; more say the same.
const MAX_TOLD: usize = 5;
/// What the two ways of comparing are called.
const EXPLORED: &str = "explored: ";
const REPLAYED: &str = "replayed: ";

/// What was gone through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Distinct states.
    pub states: u64,
    /// Distinct transitions: a state and a command, refused ones included.
    pub transitions: u64,
    /// How many of them the code refused, as the model says.
    pub refused: u64,
    /// Steps from the empty forest to the farthest state; not of a [`Replayed`].
    pub depth: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { states, transitions, refused, depth, .. } = self;
        write!(f, "{states} states, {transitions} transitions, {refused} refused in {depth} steps")
    }
}

/// The bounds that a configuration of the model states.
///
/// # Errors
/// The file cannot be read or does not state them.
pub fn bounds(config: &Path) -> Result<Bounds, String> {
    let text = fs::read_to_string(config).map_err(|e| format!("{}: {e}", config.display()))?;
    let number = |name: &str| {
        let found = text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().parse::<u32>().ok())?
        });
        found.ok_or_else(|| format!("{} does not say what {name} is", config.display()))
    };
    let (capacity, quota) = (number("Capacity")?, number("Quota")?);
    Ok(Bounds { capacity, quota, max_caps: number("MaxCaps")? as usize })
}

/// A difference between model and code.
fn differs(
    from: &Value,
    command: &Value,
    model: &dyn std::fmt::Debug,
    code: &dyn std::fmt::Debug,
) -> String {
    format!("in {from}\non {command}\nthe model says {model:?}\nthe code says  {code:?}")
}

/// The code in the states of the model, as transitions come in.
pub struct Replayed {
    worlds: HashMap<Value, Rc<World>>,
    report: Report,
    differences: Vec<String>,
}

impl Replayed {
    /// Knows the empty forest.
    pub fn new(bounds: Bounds) -> Replayed {
        let empty = World::new(bounds);
        let worlds = HashMap::from([(empty.state(), Rc::new(empty))]);
        Replayed { worlds, report: Report::default(), differences: Vec::new() }
    }

    /// Gives the code a command in the state where the model has it. Answer and next state must be
    /// the model's. States are reached before they are left.
    pub fn transition(&mut self, from: &Value, last: &Value, to: &Value) {
        self.report.transitions += 1;
        if self.differences.len() >= MAX_TOLD {
            return;
        }
        let Some(world) = self.worlds.get(from) else {
            self.differences.push(format!("the code never comes to {from}"));
            return;
        };
        let mut next = World::clone(world);
        let command = last.at("command");
        let answer = next.apply(command);
        self.report.refused += u64::from(answer.order == "none");
        let (state, expected) = (next.state(), Answer::of(last));
        if answer != expected {
            self.differences.push(differs(from, command, &expected, &answer));
        } else if state != *to {
            self.differences.push(differs(from, command, &to.to_string(), &state.to_string()));
        } else {
            self.worlds.entry(state).or_insert_with(|| Rc::new(next));
        }
    }

    /// What was gone through, without its depth and time.
    ///
    /// # Errors
    /// Answers or states differed; the first few.
    pub fn report(&self) -> Result<Report, String> {
        match self.differences.is_empty() {
            true => Ok(Report { states: self.worlds.len() as u64, ..self.report.clone() }),
            false => Err(self.differences.join("\n\n")),
        }
    }
}

/// Goes breadth first through every state that the code can come to within the bounds, and checks
/// in each what must hold. Needs no TLC.
///
/// # Panics
/// Something does not hold.
pub fn explore(bounds: Bounds) -> Report {
    let started = Instant::now();
    let mut explored = Explored::new(bounds, None);
    while !explored.frontier.is_empty() {
        explored.step();
    }
    Report { took: started.elapsed(), ..explored.report }
}

/// The states that the code has come to.
struct Explored {
    bounds: Bounds,
    /// The commands that are given; all if there is no list.
    ops: Option<HashSet<String>>,
    seen: HashSet<Value>,
    /// Those from which nothing was tried yet.
    frontier: Vec<World>,
    report: Report,
}

impl Explored {
    fn new(bounds: Bounds, ops: Option<HashSet<String>>) -> Explored {
        let empty = World::new(bounds);
        empty.check();
        let report = Report { states: 1, ..Report::default() };
        let seen = HashSet::from([empty.state()]);
        Explored { bounds, ops, seen, frontier: vec![empty], report }
    }

    fn commands(&self, world: &World) -> Vec<Value> {
        let given = |op: &str| self.ops.as_ref().is_none_or(|ops| ops.contains(op));
        commands(world).into_iter().filter(|command| given(command.at("op").str())).collect()
    }

    /// Tries everything from every state of the frontier.
    fn step(&mut self) {
        self.report.depth += 1;
        for world in std::mem::take(&mut self.frontier) {
            for command in self.commands(&world) {
                let mut next = world.clone();
                let answer = next.apply(&command);
                if next.made() > self.bounds.max_caps {
                    continue;
                }
                self.report.transitions += 1;
                self.report.refused += u64::from(answer.order == "none");
                // Two worlds may be one state of the model, and one of them wrong beside it.
                next.check();
                if self.seen.insert(next.state()) {
                    self.report.states += 1;
                    self.frontier.push(next);
                }
            }
        }
    }
}

/// Transitions on their way to a file: one line for each state, when it is first met, and one for
/// each transition, with the states' numbers.
pub struct Recorded<W> {
    file: W,
    numbers: HashMap<Value, usize>,
}

impl<W: Write> Recorded<W> {
    /// Begins with the bounds.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn new(mut file: W, bounds: Bounds) -> std::io::Result<Recorded<W>> {
        let Bounds { capacity, quota, max_caps } = bounds;
        writeln!(file, "{capacity} {quota} {max_caps}")?;
        Ok(Recorded { file, numbers: HashMap::new() })
    }

    /// Writes one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn transition(&mut self, from: &Value, last: &Value, to: &Value) -> std::io::Result<()> {
        let (from, to) = (self.number(from)?, self.number(to)?);
        writeln!(self.file, "{from} {to} {last}")
    }

    fn number(&mut self, state: &Value) -> std::io::Result<usize> {
        if let Some(number) = self.numbers.get(state) {
            return Ok(*number);
        }
        writeln!(self.file, "{state}")?;
        let number = self.numbers.len();
        self.numbers.insert(state.clone(), number);
        Ok(number)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The rest of it cannot be written.
    pub fn close(mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// What a file holds.
struct Recording {
    bounds: Bounds,
    states: Vec<Value>,
    /// From, to, and what the model says of it; by the steps from the empty forest.
    levels: Vec<Vec<(usize, usize, Value)>>,
}

impl Recording {
    fn read(path: &Path) -> Result<Recording, String> {
        let told = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
        let lines = BufReader::new(File::open(path).map_err(|e| told(&e))?).lines();
        let mut recording: Option<Recording> = None;
        let mut depths: Vec<usize> = Vec::new();
        for line in lines {
            let line = line.map_err(|e| told(&e))?;
            let wrong = || told(&format!("not a recording: {line}"));
            let Some(Recording { states, levels, .. }) = &mut recording else {
                recording = Some(Recording::begin(&line).ok_or_else(wrong)?);
                continue;
            };
            if line.starts_with('[') {
                states.push(parse(&line).ok_or_else(wrong)?.0);
                continue;
            }
            let (from, to, last) = parts(&line).ok_or_else(wrong)?;
            if from.max(to) >= states.len() || from > depths.len() {
                return Err(wrong());
            }
            if depths.is_empty() {
                depths.push(0);
            }
            let depth = depths[from];
            if to == depths.len() {
                depths.push(depth + 1);
            }
            levels.resize_with(levels.len().max(depth + 1), Vec::new);
            levels[depth].push((from, to, last));
        }
        recording.ok_or_else(|| told(&"is empty"))
    }

    fn begin(line: &str) -> Option<Recording> {
        let mut numbers = line.split(' ').map(|n| n.parse::<u32>().ok());
        let mut number = || numbers.next().flatten();
        let (capacity, quota, max_caps) = (number()?, number()?, number()? as usize);
        let bounds = Bounds { capacity, quota, max_caps };
        Some(Recording { bounds, states: Vec::new(), levels: Vec::new() })
    }
}

fn parts(line: &str) -> Option<(usize, usize, Value)> {
    let (from, rest) = line.split_once(' ')?;
    let (to, last) = rest.split_once(' ')?;
    Some((from.parse().ok()?, to.parse().ok()?, parse(last)?.0))
}

/// The first differences between code and model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What [`explore`] would have found: a promise that is broken, or other counts than TLC's.
    pub explored: Option<String>,
    /// What the replay of TLC's transitions found.
    pub replayed: Option<String>,
}

/// One line for each way of comparing.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = [(EXPLORED, &self.explored), (REPLAYED, &self.replayed)];
        let mut told = told.iter().filter_map(|(name, why)| Some((name, why.as_ref()?)));
        told.try_for_each(|(name, why)| writeln!(f, "{name}{}", why.replace('\n', "; ")))
    }
}

impl FromStr for Difference {
    type Err = String;

    fn from_str(text: &str) -> Result<Difference, String> {
        let of = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        match (of(EXPLORED), of(REPLAYED)) {
            (None, None) => Err(format!("no difference: {text}")),
            (explored, replayed) => Ok(Difference { explored, replayed }),
        }
    }
}

/// Compares the code with a recording, step by step from the empty forest, and stops at the first
/// step at which either way of comparing finds a difference.
///
/// # Errors
/// The file cannot be read.
pub fn levels(file: &Path) -> Result<Result<Report, Difference>, String> {
    let started = Instant::now();
    let Recording { bounds, states, levels } = Recording::read(file)?;
    // A recording is of those commands that occur in it.
    let op = |last: &Value| last.at("command").at("op").str().to_owned();
    let ops = levels.iter().flatten().map(|(_, _, last)| op(last)).collect();
    let mut explored = match survive(|| Explored::new(bounds, Some(ops))) {
        Ok(explored) => explored,
        Err(why) => return Ok(Err(Difference { explored: Some(why), replayed: None })),
    };
    let mut replayed = Replayed::new(bounds);
    let mut met: HashSet<usize> = HashSet::from([0]);
    let mut model = Report::default();
    for level in &levels {
        for (_, to, last) in level {
            met.insert(*to);
            model.transitions += 1;
            model.refused += u64::from(Answer::of(last).order == "none");
        }
        (model.depth, model.states) = (model.depth + 1, met.len() as u64);
        let found = survive(|| explored.step()).and_then(|()| match explored.report == model {
            true => Ok(()),
            false => Err(format!("the model has {model}, and the code has {}", explored.report)),
        });
        let played = survive(|| {
            for (from, to, last) in level {
                replayed.transition(&states[*from], last, &states[*to]);
                if !replayed.differences.is_empty() {
                    break;
                }
            }
        });
        let played = played.and_then(|()| replayed.report().map(drop));
        let difference = Difference { explored: found.err(), replayed: played.err() };
        if difference != Difference::default() {
            return Ok(Err(difference));
        }
    }
    Ok(Ok(Report { took: started.elapsed(), ..model }))
}

/// Says why `run` panicked, if it did. What it was working on is of no use then.
fn survive<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|why| {
        let told = why.downcast_ref::<String>().cloned();
        told.or_else(|| why.downcast_ref::<&str>().map(|why| (*why).to_owned()))
            .unwrap_or_else(|| "it panicked".to_owned())
    })
}

/// What the model may ask in a state: `Commands` of `Replay.tla`.
fn commands(world: &World) -> Vec<Value> {
    let memory = || Value::text("memory");
    let session = || Value::text("session1");
    let whole = || range(0, 2);
    let all = || authority(&["read", "write"], 2, whole());
    let read = || authority(&["read"], 2, whole());
    let page = || authority(&["read"], 2, range(0, 1));
    let brief = || authority(&["read"], 1, whole());
    let op = |name: &str| Value::record([("op", Value::text(name))]);
    let mut asked = vec![
        Value::record([("op", Value::text("mint-root")), ("authority", all())]),
        Value::record([("op", Value::text("edge")), ("authority", all())]),
        op("sweep"),
        op("reclaim"),
        op("release"),
        op("restart"),
    ];
    for vat in ["memory", "scheduler"] {
        asked.push(Value::record([
            ("op", Value::text("withdraw")),
            ("vat", memory()),
            ("ticket", Value::Int(1)),
            ("receiver", Value::text(vat)),
            ("session", session()),
        ]));
        asked.push(Value::record([
            ("op", Value::text("revoke-object")),
            ("vat", Value::text(vat)),
            ("object", Value::Int(1)),
        ]));
        let sessions = Value::Set([session()].into_iter().collect());
        asked.push(Value::record([
            ("op", Value::text("vat-died")),
            ("vat", Value::text(vat)),
            ("sessions", sessions),
        ]));
    }
    asked.push(Value::record([
        ("op", Value::text("end-session")),
        ("vat", memory()),
        ("session", session()),
    ]));
    if world.state().at("now").int() == 0 {
        asked.push(op("tick"));
    }
    for number in 1..=world.made() as i64 {
        let cap = || Value::Int(number);
        let link = |n: i64, holder: &str, authority: Value| {
            Value::record([
                ("link", Value::Seq(vec![cap(), Value::Int(n)])),
                ("holder", Value::text(holder)),
                ("authority", authority),
            ])
        };
        let own = || link(1, "key1", all());
        let chains =
            [vec![own()], vec![own(), link(2, "key2", page())], vec![link(3, "key1", brief())]];
        for kept in ["none", "session1"] {
            asked.push(Value::record([
                ("op", Value::text("mint")),
                ("vat", memory()),
                ("cap", cap()),
                ("object", Value::Int(1)),
                ("authority", all()),
                ("session", Value::text(kept)),
            ]));
        }
        let derive = |vat: &str, authority: Value| {
            Value::record([
                ("op", Value::text("derive")),
                ("vat", Value::text(vat)),
                ("cap", cap()),
                ("authority", authority),
                ("session", session()),
            ])
        };
        asked.extend([all(), page(), brief()].map(|authority| derive("memory", authority)));
        asked.push(derive("scheduler", read()));
        let redeem = |vat: &str, chain: Vec<Value>| {
            Value::record([
                ("op", Value::text("redeem")),
                ("vat", Value::text(vat)),
                ("cap", cap()),
                ("chain", Value::Seq(chain)),
                ("session", session()),
            ])
        };
        asked.extend(chains.map(|chain| redeem("memory", chain)));
        asked.push(redeem("scheduler", vec![own()]));
        for until in [1, 2] {
            asked.push(Value::record([
                ("op", Value::text("deposit")),
                ("vat", memory()),
                ("cap", cap()),
                ("ticket", Value::Int(1)),
                ("receiver", Value::text("scheduler")),
                ("authority", read()),
                ("until", Value::Int(until)),
            ]));
        }
        asked.push(Value::record([
            ("op", Value::text("persist-check")),
            ("vat", memory()),
            ("cap", cap()),
            ("authority", read()),
        ]));
        for vat in ["memory", "scheduler"] {
            asked.push(Value::record([
                ("op", Value::text("revoke")),
                ("vat", Value::text(vat)),
                ("cap", cap()),
            ]));
        }
        for n in 1..=2 {
            asked.push(Value::record([
                ("op", Value::text("revoke-link")),
                ("vat", memory()),
                ("cap", cap()),
                ("link", Value::Seq(vec![Value::Int(1), Value::Int(n)])),
                ("until", Value::Int(2)),
            ]));
        }
    }
    asked
}

fn range(from: i64, to: i64) -> Value {
    Value::record([("from", Value::Int(from)), ("to", Value::Int(to))])
}

fn authority(rights: &[&str], exp: i64, range: Value) -> Value {
    let rights = rights.iter().map(|right| Value::text(right)).collect();
    Value::record([("rights", Value::Set(rights)), ("exp", Value::Int(exp)), ("range", range)])
}
