//! The trace of leases and revocations between nodes, as `specs/revocation/Trace.tla` reads it.
//!
//! Whoever drives a home and its holders by one hand writes it in the model's terms ([`trace`]). Processes write what
//! they know ([`events`]): times of the clock that all of a machine have, connections by a hash, capabilities by the
//! numbers that they have on a connection. [`Names`] puts that into the model's terms: capabilities are slots of the
//! home's table, a connection is a node, and each question has its number by its capability.
//!
//! What does not show at one moment is put where it must have been:
//! - A revocation takes effect between when the kernel was asked for it and its answer: as late as its own last grant.
//!   One that nobody asked this vat for is put before the home's first word of it.
//! - `revoke` that returns with time left returns in the model when that is over.
//! - A lease that is given back has been revoked by its holder, who has heard of that itself; the home hears it when it
//!   takes it back.
//!
//! What it does not do: a capability that expires, and one that is held twice over one connection, are no trace. A
//! renewal that a newer one has overtaken is not in it: the model's lease is the shorter one then.

pub mod forged;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Kind, Trace, recorded};
use crate::value::Value;

/// The folder in `specs/` of the model.
pub const SPEC: &str = "revocation";
/// The bounds of what processes do.
pub const NODES: &str = "Nodes.cfg";

/// The vat that is the home, in the log of its node.
const HOME: &str = "memory";
/// As [`NODES`] has it.
const TERM_MS: i64 = 5000;
const NS: i64 = 1_000_000;

const KINDS: &[Kind] = &[
    // The home.
    ("started", &["at", "vat"]),
    ("grant", &["at", "vat", "link", "line", "slots"]),
    ("renewal", &["at", "vat", "link", "ended"]),
    ("renewal_refused", &["at", "vat", "link"]),
    ("given_back", &["at", "vat", "link", "released"]),
    ("tell", &["at", "vat", "link", "ended"]),
    ("hear_ack", &["at", "vat", "link", "ended"]),
    ("revoke", &["at", "vat", "began", "slots"]),
    ("return", &["at", "vat", "began", "left"]),
    // A holder.
    ("ask", &["at", "link", "ask"]),
    ("take", &["at", "link", "ask", "key"]),
    ("miss", &["at", "link", "ask", "key"]),
    ("ask_again", &["at", "link", "ask"]),
    ("renewed", &["at", "link", "ask", "ended"]),
    ("hear", &["at", "link", "ended"]),
    ("use", &["at", "link", "key"]),
    ("idle", &["at", "link", "key"]),
    ("expired", &["at", "link", "key"]),
    ("release", &["at", "link", "key"]),
];

/// One event: its kind, with the names of capabilities or nodes.
pub fn event(kind: &str, names: &[(&str, &str)]) -> Value {
    let named = names.iter().map(|(field, name)| ((*field).to_owned(), Value::text(name)));
    Value::Record([("event".to_owned(), Value::text(kind))].into_iter().chain(named).collect())
}

/// One of the steps of the `s`-th question for a capability.
pub fn question(kind: &str, c: &str, s: i64) -> Value {
    with(event(kind, &[("c", c)]), "s", s)
}

/// So many rounds of ticks of all clocks.
pub fn elapse(k: i64) -> Value {
    with(event("elapse", &[]), "k", k)
}

fn with(event: Value, field: &str, value: impl Into<Value>) -> Value {
    let Value::Record(mut fields) = event else { return event };
    fields.insert(field.to_owned(), value.into());
    Value::Record(fields)
}

/// They are what the model reads.
pub fn trace(events: &[Value]) -> Trace {
    Trace::of(events.to_vec())
}

/// What the memory service of one node has lent, as it wrote it into that node's log, and what those did with it to
/// whom it was lent, as they wrote it into that log and those of other nodes; in the order of their times. What others
/// have lent is not in it, nor what was lent to somebody who wrote nothing.
///
/// # Errors
/// An event is of no known kind, lacks a field or tells no time.
pub fn events(home: &str, holders: &[&str]) -> Result<Vec<Value>, String> {
    let mut lent = recorded(home, SPEC, KINDS)?;
    let mut all = lent.clone();
    for log in holders {
        all.extend(recorded(log, SPEC, KINDS)?);
    }
    if let Some(odd) = all.iter().find(|event| !matches!(event.at("at"), Value::Int(_))) {
        return Err(format!("this tells no time: {odd}"));
    }
    lent.retain(|event| field(event, "vat") == Some(&Value::text(HOME)));
    let links = links_of(lent.iter().filter(|event| kind(event) == "grant"));
    all.retain(|event| {
        let is_holder = field(event, "vat").is_none();
        is_holder && field(event, "link").is_some_and(|link| links.contains(link))
    });
    let links = links_of(all.iter());
    lent.retain(|event| field(event, "link").is_none_or(|link| links.contains(link)));
    lent.extend(all);
    // Of one process they stand in their order already.
    lent.sort_by_key(at);
    Ok(lent)
}

fn links_of<'e>(events: impl Iterator<Item = &'e Value>) -> BTreeSet<Value> {
    events.filter_map(|event| field(event, "link").cloned()).collect()
}

fn field<'e>(event: &'e Value, name: &str) -> Option<&'e Value> {
    let Value::Record(fields) = event else { return None };
    fields.get(name)
}

fn kind(event: &Value) -> &str {
    event.at("event").str()
}

fn at(event: &Value) -> i64 {
    event.at("at").int()
}

/// A list, or one element of it: a number alone is one.
fn listed(event: &Value, name: &str) -> Vec<String> {
    let text = match event.at(name) {
        Value::Int(number) => number.to_string(),
        other => other.str().to_owned(),
    };
    text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect()
}

fn link(event: &Value) -> String {
    event.at("link").str().to_owned()
}

/// What a run's capabilities are called. Traces of one run, and of what was made of it, have the same.
#[derive(Clone, Debug)]
pub struct Names {
    /// By the numbers that they have on each connection.
    caps: BTreeMap<(String, String), String>,
    /// What each is derived from, itself included.
    lineage: BTreeMap<String, BTreeSet<String>>,
    /// Over which connection each is lent.
    lent: BTreeMap<String, String>,
}

impl Names {
    /// Those of a run.
    ///
    /// # Errors
    /// Nothing is lent; or a slot is said to be what it was not before.
    pub fn of(events: &[Value]) -> Result<Names, String> {
        let (caps, lineage, lent) = Default::default();
        let mut names = Names { caps, lineage, lent };
        for grant in events.iter().filter(|event| kind(event) == "grant") {
            let (line, slots) = (listed(grant, "line"), listed(grant, "slots"));
            let Some(leaf) = slots.last().filter(|_| line.len() == slots.len()) else {
                return Err(format!("this line is of other slots: {grant}"));
            };
            let mut above = BTreeSet::new();
            for (key, slot) in line.into_iter().zip(&slots) {
                above.insert(slot.clone());
                let known = names.caps.entry((link(grant), key)).or_insert_with(|| slot.clone());
                let lineage = names.lineage.entry(slot.clone()).or_insert_with(|| above.clone());
                if (&*known, &*lineage) != (slot, &above) {
                    return Err(format!("it was said otherwise before: {grant}"));
                }
            }
            let at = names.lent.entry(leaf.clone()).or_insert_with(|| link(grant));
            if *at != link(grant) {
                return Err(format!("it is lent over two connections: {grant}"));
            }
        }
        if names.lent.is_empty() {
            return Err("nothing is lent".to_owned());
        }
        Ok(names)
    }

    fn cap(&self, link: &str, key: &str) -> Result<&str, String> {
        let found = self.caps.get(&(link.to_owned(), key.to_owned()));
        found.map(String::as_str).ok_or_else(|| format!("{key} was never lent over {link}"))
    }

    /// What an event's `key` is.
    fn cap_of(&self, event: &Value) -> Result<String, String> {
        let key = listed(event, "key").pop().unwrap_or_default();
        self.cap(&link(event), &key).map(str::to_owned)
    }

    /// What the numbers are that an event lists.
    fn caps_of(&self, event: &Value, list: &str) -> Result<Vec<String>, String> {
        let link = link(event);
        listed(event, list).iter().map(|key| self.cap(&link, key).map(str::to_owned)).collect()
    }

    fn is_below(&self, cap: &str, above: &str) -> bool {
        self.lineage.get(cap).is_some_and(|lineage| lineage.contains(above))
    }

    fn definitions(&self) -> Vec<String> {
        let text = |name: &String| Value::text(name);
        let set = |names: &BTreeSet<String>| Value::Set(names.iter().map(text).collect());
        let caps = Value::Set(self.lineage.keys().map(text).collect());
        let lineage = self.lineage.iter();
        let lineage: Vec<String> =
            lineage.map(|(cap, all)| format!("x = {} -> {}", text(cap), set(all))).collect();
        let lent = self.lent.iter();
        let lent: Vec<String> =
            lent.map(|(cap, link)| format!("x = {} -> {}", text(cap), text(link))).collect();
        vec![
            format!("NodesCaps == {caps}"),
            format!("NodesLineage == [x \\in NodesCaps |-> CASE {}]", lineage.join(" [] ")),
            format!(
                "NodesNodeOf == [x \\in NodesCaps |-> CASE {} [] OTHER -> \"home\"]",
                lent.join(" [] ")
            ),
            // More than any run.
            "NodesAsks == [x \\in NodesCaps |-> 1000000]".to_owned(),
        ]
    }

    /// Events of this run, or what was made of them, in the model's terms.
    ///
    /// # Errors
    /// There is something that the model has no word for, or that nobody can have written.
    pub fn trace(&self, events: &[Value]) -> Result<Trace, String> {
        let revocations = Revocations::of(self, events)?;
        let mut run = Run {
            names: self,
            loans: Loans::of(self, events)?,
            revocations: &revocations,
            events: Vec::new(),
            skipped: BTreeMap::new(),
            asked: BTreeMap::new(),
            last: BTreeMap::new(),
            renewals: BTreeMap::new(),
            granted: BTreeMap::new(),
            held: BTreeSet::new(),
            released: BTreeSet::new(),
            said: BTreeSet::new(),
            revoked: BTreeSet::new(),
            has_started: false,
        };
        for (index, event) in events.iter().enumerate() {
            run.take(index, event)?;
        }
        run.revoke();
        run.return_all();
        let Run { events, skipped, .. } = run;
        let mut trace = Trace::of(timed(events));
        trace.skipped = skipped;
        trace.definitions = self.definitions();
        Ok(trace)
    }
}

/// The time between events, in milliseconds as the code counts them, in place of their times.
fn timed(events: Vec<(i64, Value)>) -> Vec<Value> {
    let mut timed = Vec::new();
    let mut now = events.first().map_or(0, |(at, _)| at / NS);
    for (at, event) in events {
        let passed = at / NS - now;
        if passed > 0 {
            timed.push(elapse(passed));
            now += passed;
        }
        timed.push(event);
    }
    timed
}

/// One question over one connection, as its holder numbers them.
type Ask = (String, i64);

fn ask(event: &Value) -> Ask {
    (link(event), event.at("ask").int())
}

/// Which loan answers which question: neither of the two says that of the other.
struct Loans {
    /// What each question was for.
    caps: BTreeMap<Ask, String>,
    /// By the place of the event.
    grants: BTreeMap<usize, Ask>,
}

impl Loans {
    /// Loans of one capability over one connection are answered in their order.
    fn of(names: &Names, events: &[Value]) -> Result<Loans, String> {
        let asked = events.iter().filter(|event| kind(event) == "ask");
        let asked: BTreeMap<Ask, i64> = asked.map(|event| (ask(event), at(event))).collect();
        let mut caps = BTreeMap::new();
        let mut waiting: BTreeMap<String, VecDeque<Ask>> = BTreeMap::new();
        for event in events.iter().filter(|event| matches!(kind(event), "take" | "miss")) {
            let (ask, cap) = (ask(event), names.cap_of(event)?);
            if !asked.contains_key(&ask) {
                return Err(format!("nobody has asked for it: {event}"));
            }
            if caps.insert(ask.clone(), cap.clone()).is_none() {
                waiting.entry(cap).or_default().push_back(ask);
            }
        }
        let mut grants = BTreeMap::new();
        for (index, event) in events.iter().enumerate().filter(|(_, e)| kind(e) == "grant") {
            let line = names.caps_of(event, "line")?;
            let cap = line.last().cloned().unwrap_or_default();
            let waiting = waiting.entry(cap.clone()).or_default();
            let is_before = |ask: &Ask| asked.get(ask).is_some_and(|asked| *asked <= at(event));
            let answered = waiting.pop_front_if(|ask| is_before(ask)).or_else(|| {
                // Its answer got lost, or came after the end.
                let mut open = asked.keys().filter(|ask| !caps.contains_key(*ask));
                open.find(|ask| ask.0 == link(event) && is_before(ask)).cloned()
            });
            if let Some(ask) = answered {
                caps.insert(ask.clone(), cap);
                grants.insert(index, ask);
            }
        }
        Ok(Loans { caps, grants })
    }
}

/// One call of `revoke`.
struct Revocation {
    began: i64,
    answered: i64,
    caps: BTreeSet<String>,
    /// When nothing is used any more, as it has returned; `None` if it has not.
    over: Option<i64>,
}

struct Revocations(Vec<Revocation>);

impl Revocations {
    fn of(names: &Names, events: &[Value]) -> Result<Revocations, String> {
        let mut first_word: BTreeMap<String, i64> = BTreeMap::new();
        for event in events.iter().filter(|event| matches!(kind(event), "tell" | "renewal")) {
            for cap in names.caps_of(event, "ended")? {
                first_word.entry(cap).or_insert_with(|| at(event));
            }
        }
        let mut all: Vec<Revocation> = Vec::new();
        for event in events {
            match kind(event) {
                "revoke" => {
                    let (began, answered) = (event.at("began").int(), at(event));
                    let slots = listed(event, "slots").into_iter();
                    let mut caps: BTreeSet<String> =
                        slots.filter(|slot| names.lineage.contains_key(slot)).collect();
                    // What was found by looking before the kernel answered, told and heard already.
                    let meanwhile = began..=answered;
                    for ack in events.iter().filter(|event| kind(event) == "hear_ack") {
                        let heard = names.caps_of(ack, "ended")?;
                        caps.extend(heard.into_iter().filter(|cap| {
                            let word = first_word.get(cap);
                            meanwhile.contains(&at(ack))
                                && word.is_some_and(|word| meanwhile.contains(word))
                        }));
                    }
                    all.push(Revocation { began, answered, caps, over: None });
                }
                "return" => {
                    let began = event.at("began").int();
                    let revoke = all.iter_mut().find(|revoke| revoke.began == began);
                    let revoke = revoke.ok_or_else(|| format!("it has not begun: {event}"))?;
                    let left = event.at("left").int();
                    let over = if left == 0 { at(event) } else { (at(event) / NS + left) * NS };
                    // Its caller was told that time, also if the home does not live as long.
                    let restarts = events.iter().filter(|other| kind(other) == "started");
                    let is_cut = restarts.map(at).any(|start| start > at(event) && start < over);
                    revoke.over = Some(over).filter(|_| !is_cut);
                }
                _ => {}
            }
        }
        Ok(Revocations(all))
    }

    /// Whether somebody asked for the end of this before then.
    fn has_begun(&self, cap: &str, at: i64) -> bool {
        self.0.iter().any(|revoke| revoke.began <= at && revoke.caps.contains(cap))
    }
}

/// What a run has come to.
struct Run<'r> {
    names: &'r Names,
    loans: Loans,
    revocations: &'r Revocations,
    /// In the model's terms, with their times.
    events: Vec<(i64, Value)>,
    skipped: BTreeMap<&'static str, usize>,
    /// When each question was asked, and which of the model's it is.
    asked: BTreeMap<Ask, (i64, Vec<(String, i64)>)>,
    /// The last of the model's questions for each capability.
    last: BTreeMap<String, i64>,
    /// Renewals that the home has not answered, the oldest first.
    renewals: BTreeMap<String, VecDeque<Ask>>,
    /// Which of the model's questions a renewal was granted of.
    granted: BTreeMap<Ask, Vec<(String, i64)>>,
    held: BTreeSet<String>,
    released: BTreeSet<String>,
    /// What the home has said to have ended, to whom.
    said: BTreeSet<(String, String)>,
    /// What has ended though nobody asked for it.
    revoked: BTreeSet<String>,
    has_started: bool,
}

impl Run<'_> {
    fn take(&mut self, index: usize, event: &Value) -> Result<(), String> {
        match kind(event) {
            "started" if !self.has_started => self.has_started = true,
            "started" => self.tell(event, self::event("restart_home", &[])),
            "ask" => match self.loans.caps.get(&ask(event)).cloned() {
                Some(cap) => self.ask(event, vec![cap]),
                None => self.skip("questions that nobody answered"),
            },
            "ask_again" => {
                let (names, link) = (self.names, link(event));
                let held = self.held.iter().filter(|cap| names.lent.get(*cap) == Some(&link));
                let held = held.cloned().collect();
                self.ask(event, held);
                self.renewals.entry(link).or_default().push_back(ask(event));
            }
            "grant" => self.grant(index, event)?,
            "renewal" => {
                self.end(event)?;
                let link = link(event);
                let ask = self.answered(event)?;
                let (_, questions) = self.asked.get(&ask).cloned().unwrap_or_default();
                let lives = |cap: &str| {
                    let mut said = self.said.iter();
                    !self.released.contains(cap)
                        && !said.any(|(to, end)| *to == link && self.names.is_below(cap, end))
                };
                let granted: Vec<(String, i64)> =
                    questions.into_iter().filter(|(cap, _)| lives(cap)).collect();
                for (cap, s) in &granted {
                    self.tell(event, question("grant", cap, *s));
                }
                self.granted.insert(ask, granted);
            }
            "renewal_refused" => drop(self.answered(event)?),
            "take" => self.taken(event)?,
            "miss" => self.skip("loans that were not taken"),
            "renewed" => {
                self.hear(event)?;
                for (cap, s) in self.granted.get(&ask(event)).cloned().unwrap_or_default() {
                    if self.held.contains(&cap) {
                        self.renewed(event, &cap, s);
                    }
                }
            }
            "tell" => self.end(event)?,
            "hear" => self.hear(event)?,
            "hear_ack" => {
                for x in self.names.caps_of(event, "ended")? {
                    self.tell(event, self::event("hear_ack", &[("n", &link(event)), ("x", &x)]));
                }
            }
            said @ ("use" | "idle") => {
                let cap = self.names.cap_of(event)?;
                self.tell(event, self::event(said, &[("c", &cap)]));
            }
            "expired" => return Err(format!("the model does not know of this: {event}")),
            "release" => {
                let cap = self.names.cap_of(event)?;
                self.revoke_unasked(event, &cap);
                self.tell(event, self::event("hear", &[("n", &link(event)), ("x", &cap)]));
                self.held.remove(&cap);
                self.released.insert(cap);
            }
            "given_back" => {
                for cap in self.names.caps_of(event, "released")? {
                    if self.released.contains(&cap) {
                        let ack = [("n", &*link(event)), ("x", &*cap)];
                        self.tell(event, self::event("hear_ack", &ack));
                    }
                }
            }
            // See `revoke` and `return_all`.
            _ => {}
        }
        Ok(())
    }

    fn tell(&mut self, source: &Value, event: Value) {
        self.events.push((at(source), event));
    }

    fn skip(&mut self, what: &'static str) {
        *self.skipped.entry(what).or_default() += 1;
    }

    fn ask(&mut self, event: &Value, caps: Vec<String>) {
        let mut questions = Vec::new();
        for cap in caps {
            let last = self.last.entry(cap.clone()).or_default();
            *last += 1;
            let s = *last;
            self.tell(event, question("ask", &cap, s));
            questions.push((cap, s));
        }
        self.asked.insert(ask(event), (at(event), questions));
    }

    /// Which renewal the home answers: connections keep the order, and so does the home.
    fn answered(&mut self, event: &Value) -> Result<Ask, String> {
        let renewals = self.renewals.entry(link(event)).or_default();
        renewals.pop_front().ok_or_else(|| format!("nobody has asked for it: {event}"))
    }

    fn grant(&mut self, index: usize, event: &Value) -> Result<(), String> {
        let line = self.names.caps_of(event, "line")?;
        let cap = line.last().cloned().unwrap_or_default();
        let asked = self.loans.grants.get(&index).and_then(|ask| self.asked.get(ask));
        let asked = asked.and_then(|(_, questions)| questions.first());
        // One that answers no question of its own can only repeat an answer.
        let s = asked.map_or_else(|| self.last.get(&cap).map_or(1, |s| *s), |(_, s)| *s);
        self.tell(event, question("grant", &cap, s));
        Ok(())
    }

    fn taken(&mut self, event: &Value) -> Result<(), String> {
        let cap = self.names.cap_of(event)?;
        let asked = self.asked.get(&ask(event)).cloned();
        let (asked_at, questions) =
            asked.ok_or_else(|| format!("it was not asked for: {event}"))?;
        let s = questions.first().map_or(1, |(_, s)| *s);
        if at(event) / NS >= asked_at / NS + TERM_MS {
            self.skip("answers that came a whole term late");
        } else {
            self.tell(event, question("take", &cap, s));
        }
        self.held.insert(cap);
        Ok(())
    }

    fn renewed(&mut self, event: &Value, cap: &str, s: i64) {
        let asked_at = self.asked.get(&ask(event)).map_or(0, |(at, _)| *at);
        if at(event) / NS >= asked_at / NS + TERM_MS {
            self.skip("answers that came a whole term late");
        } else if self.last.get(cap) != Some(&s) {
            self.skip("renewals that a newer one has overtaken");
        } else {
            self.tell(event, question("take", cap, s));
        }
    }

    /// The home says that these have ended.
    fn end(&mut self, event: &Value) -> Result<(), String> {
        for x in self.names.caps_of(event, "ended")? {
            self.revoke_unasked(event, &x);
            self.said.insert((link(event), x));
        }
        Ok(())
    }

    /// It has ended by now, and maybe nobody has asked for that.
    fn revoke_unasked(&mut self, event: &Value, x: &str) {
        if !self.revocations.has_begun(x, at(event)) && self.revoked.insert(x.to_owned()) {
            self.tell(event, self::event("revoke", &[("x", x)]));
        }
    }

    fn hear(&mut self, event: &Value) -> Result<(), String> {
        let link = link(event);
        for x in self.names.caps_of(event, "ended")? {
            self.tell(event, self::event("hear", &[("n", &link), ("x", &x)]));
            let names = self.names;
            self.held.retain(|cap| names.lent.get(cap) != Some(&link) || !names.is_below(cap, &x));
        }
        Ok(())
    }

    /// Puts each revocation that somebody asked for where it took effect.
    fn revoke(&mut self) {
        for Revocation { began, answered, caps, .. } in &self.revocations.0 {
            if caps.is_empty() {
                self.skip("revocations of what is not lent");
            }
            for x in caps {
                if !self.revoked.insert(x.clone()) {
                    continue;
                }
                let is_grant = |(at, event): &(i64, Value)| {
                    at <= answered
                        && kind(event) == "grant"
                        && self.names.is_below(event.at("c").str(), x)
                };
                let granted = self.events.iter().rposition(is_grant).map_or(0, |last| last + 1);
                let place = self.events.partition_point(|(at, _)| at < began).max(granted);
                let at = self.events[..place].last().map_or(*began, |(at, _)| *began.max(at));
                self.events.insert(place, (at, event("revoke", &[("x", x)])));
            }
        }
    }

    /// Adds what has returned, when it has.
    fn return_all(&mut self) {
        let mut returned = BTreeSet::new();
        for Revocation { caps, over, .. } in &self.revocations.0 {
            let Some(over) = over else { continue };
            for x in caps.iter().filter(|x| returned.insert((*x).clone())) {
                self.events.push((*over, event("return", &[("x", x)])));
            }
        }
        self.events.sort_by_key(|(at, _)| *at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: &str = "\
x DEBUG distos::trace::revocation: started at=1000000 vat=memory
x DEBUG distos::trace::revocation: started at=1500000 vat=executor
x DEBUG distos::trace::revocation: grant at=6000200000 vat=memory link=la line=1,2 slots=1@a,2@a
x DEBUG distos::trace::revocation: grant at=6000300000 vat=memory link=la line=1,3 slots=1@a,3@a
x DEBUG distos::trace::revocation: grant at=6000400000 vat=memory link=la line=1,3 slots=1@a,3@a
x DEBUG distos::trace::revocation: renewal at=7001000000 vat=memory link=la ended=
x DEBUG distos::trace::revocation: tell at=7002500000 vat=memory link=la ended=2
x DEBUG distos::trace::revocation: revoke at=7003000000 vat=memory began=7000000000 slots=2@a
x DEBUG distos::trace::revocation: return at=7253900000 vat=memory began=7000000000 left=2
x DEBUG distos::trace::revocation: given_back at=9000000000 vat=memory link=la released=3
";
    const HOLDER: &str = "\
x DEBUG distos::trace::revocation: ask at=6000000000 link=la ask=1
x DEBUG distos::trace::revocation: ask at=6000010000 link=la ask=2
x DEBUG distos::trace::revocation: take at=6000500000 link=la ask=1 key=2
x DEBUG distos::trace::revocation: miss at=6000600000 link=la ask=2 key=3
x DEBUG distos::trace::revocation: ask at=6000350000 link=la ask=3
x DEBUG distos::trace::revocation: take at=6000800000 link=la ask=3 key=3
x DEBUG distos::trace::revocation: ask at=6000900000 link=lown ask=1
x DEBUG distos::trace::revocation: ask at=6100000000 link=la ask=4
x DEBUG distos::trace::revocation: ask_again at=6999000000 link=la ask=5
x DEBUG distos::trace::revocation: renewed at=7003500000 link=la ask=5 ended=2
x DEBUG distos::trace::revocation: idle at=7003600000 link=la key=2
x DEBUG distos::trace::revocation: release at=8000000000 link=la key=3
";

    fn told(home: &str, holder: &str) -> Result<Trace, String> {
        let events = events(home, &[holder])?;
        Names::of(&events)?.trace(&events)
    }

    #[test]
    fn what_two_processes_wrote_is_told_in_the_models_terms_in_the_order_of_their_times() {
        let trace = told(HOME, HOLDER).unwrap();
        let about = |kind: &str, c: &str, s: i64| question(kind, c, s);
        let at_node = |kind: &str, x: &str| event(kind, &[("n", "la"), ("x", x)]);
        let expected = [
            about("ask", "2@a", 1),
            about("ask", "3@a", 1),
            about("grant", "2@a", 1),
            about("grant", "3@a", 1),
            // Asked before the loan that it did not take was heard of.
            about("ask", "3@a", 2),
            about("grant", "3@a", 2),
            about("take", "2@a", 1),
            about("take", "3@a", 2),
            elapse(999),
            about("ask", "2@a", 2),
            about("ask", "3@a", 3),
            elapse(2),
            about("grant", "2@a", 2),
            // The kernel was asked for it before, and the home lent until here.
            event("revoke", &[("x", "2@a")]),
            about("grant", "3@a", 3),
            elapse(2),
            at_node("hear", "2@a"),
            about("take", "3@a", 3),
            event("idle", &[("c", "2@a")]),
            elapse(252),
            event("return", &[("x", "2@a")]),
            elapse(745),
            event("revoke", &[("x", "3@a")]),
            at_node("hear", "3@a"),
            elapse(1000),
            at_node("hear_ack", "3@a"),
        ];
        assert_eq!(trace.events(), expected);
        let skipped = [("loans that were not taken", 1), ("questions that nobody answered", 1)];
        assert_eq!(*trace.skipped(), BTreeMap::from(skipped));
        let lineage = "NodesLineage == [x \\in NodesCaps |-> CASE x = \"1@a\" -> {\"1@a\"} \
                       [] x = \"2@a\" -> {\"1@a\", \"2@a\"} [] x = \"3@a\" -> {\"1@a\", \"3@a\"}]";
        assert_eq!(trace.definitions[1], lineage);
    }

    /// Otherwise a run would pass for one that the model has a word for.
    #[test]
    fn what_the_model_has_no_word_for_or_nobody_can_have_written_is_told() {
        let more =
            |log: &str, said: &str| format!("{log}x DEBUG distos::trace::revocation: {said}\n");
        for (said, why) in [
            ("expired at=8000000000 link=la key=2", "does not know of this"),
            ("use at=8000000000 link=la key=9", "9 was never lent over la"),
            ("take at=8000000000 link=la ask=77 key=2", "nobody has asked for it"),
            ("use at=soon link=la key=2", "tells no time"),
            ("sleep at=8000000000 link=la", "is no event"),
        ] {
            let refused = told(HOME, &more(HOLDER, said)).unwrap_err();
            assert!(refused.contains(why), "{said}: {refused}");
        }
        for (said, why) in [
            ("renewal at=8000000000 vat=memory link=la ended=", "nobody has asked for it"),
            ("return at=8000000000 vat=memory began=1 left=0", "has not begun"),
            (
                "grant at=8000000000 vat=memory link=la line=1,2 slots=1@a,9@a",
                "said otherwise before",
            ),
        ] {
            let refused = told(&more(HOME, said), HOLDER).unwrap_err();
            assert!(refused.contains(why), "{said}: {refused}");
        }
        assert_eq!(told(HOME, "").unwrap_err(), "nothing is lent", "nobody has written");
    }
}
