//! The trace of a handoff between nodes, as `specs/handoff/Trace.tla` reads it.
//!
//! Whoever runs a giver, a receiver and a home on one thread writes it in the model's terms ([`trace`]). Processes write
//! what they know ([`events`]): times of the clock that all of a machine have, sessions by the numbers that the home
//! gives them, tickets by a hash. A home does not know who is a giver and who a receiver: over the giver's session came
//! the deposit, and over the receiver's the withdrawal.
//!
//! What does not show at one moment is put where it must have been:
//! - A call has arrived before it takes effect or is refused. In the model that is one step, which stands where it
//!   arrived; but where it took effect, if another one that arrived later did so before.
//! - A deposit stands where it came, though it is told when it is done.
//!
//! What it does not do: a call that arrives while somebody revokes may be told as one that came before, and is no trace
//! if it was refused. The end of the receiver's session is not in it, nor is a withdrawal that finds nothing.

pub mod forged;

use std::collections::{BTreeMap, BTreeSet};

use super::{Kind, Trace, number_of, recorded};
use crate::value::Value;

/// The folder in `specs/` of the model.
pub const SPEC: &str = "handoff";

const HOME: &[Kind] = &[
    ("arrived", &["at", "session", "n"]),
    ("effect", &["at", "session", "n"]),
    ("flushed", &["at", "session"]),
    ("deposited", &["at", "came", "session", "ticket"]),
    ("granted", &["at", "session", "ticket"]),
    ("session_ends", &["at", "session"]),
];

/// Those of everybody else: a giver, a receiver, who kills and who revokes.
const OTHERS: &[Kind] = &[
    ("settle", &["at"]),
    ("forward", &["at", "n"]),
    ("forward_flush", &["at"]),
    ("deposit", &["at"]),
    ("offer", &["at", "ticket"]),
    ("release", &["at"]),
    ("call", &["at", "n"]),
    ("withdraw", &["at", "ticket"]),
    ("withdrawn", &["at", "ticket"]),
    ("go_direct", &["at"]),
    ("stranger", &["at", "ticket"]),
    ("giver_dies", &["at"]),
    ("revoke", &["at"]),
];

/// One event: its kind, with the number of a call or ticket.
pub fn event(kind: &str, numbers: &[(&str, i64)]) -> Value {
    let named = numbers.iter().map(|(name, n)| ((*name).to_owned(), Value::from(*n)));
    Value::Record([("event".to_owned(), Value::text(kind))].into_iter().chain(named).collect())
}

/// What a call came to at the home: by which way it came, and whether it took effect.
pub fn effect(way: &str, n: i64, took: bool) -> Value {
    let Value::Record(mut fields) = event(way, &[("n", n)]) else { return Value::Bool(took) };
    fields.insert("took".to_owned(), Value::Bool(took));
    Value::Record(fields)
}

/// They are what the model reads.
pub fn trace(events: &[Value]) -> Trace {
    Trace::of(events.to_vec())
}

/// What one giver, its receiver, and whoever had to do with them did, as they wrote it, and what their home wrote of
/// them into the log of its node; in the order of their times and in the model's terms. No other vat of that node may
/// tell its steps, and the home must not have been started again: sessions have their numbers from it.
///
/// # Errors
/// An event is of no known kind, lacks a field or tells no time; the home says nothing of what was offered; or something
/// took effect that never arrived.
pub fn events(home: &str, parties: &[&str]) -> Result<Vec<Value>, String> {
    let home = timed(home, HOME)?;
    let mut all = Vec::new();
    for log in parties {
        all.extend(timed(log, OTHERS)?);
    }
    let sides = Sides::of(&home, &all)?;
    all.extend(sides.at_home(&home)?);
    // Of one process they stand in their order already.
    all.sort_by_key(at);
    let mut terms = Terms { tickets: sides.tickets, deposits: 0, withdrawn: 0 };
    all.iter().map(|event| terms.of(event)).collect()
}

/// Whether the home has seen that whoever left the gift is gone that traces know by this name.
pub fn giver_has_left(home: &str, ticket: &str) -> bool {
    // Of a line that is being written nothing is known yet.
    let home = timed(home, HOME).unwrap_or_default();
    let session = home
        .iter()
        .find(|event| kind(event) == "deposited" && event.at("ticket") == &Value::text(ticket))
        .map(|event| event.at("session"));
    home.iter().any(|event| kind(event) == "session_ends" && Some(event.at("session")) == session)
}

fn timed(log: &str, kinds: &[Kind]) -> Result<Vec<Value>, String> {
    let events = recorded(log, SPEC, kinds)?;
    match events.iter().find(|event| !matches!(event.at("at"), Value::Int(_))) {
        Some(odd) => Err(format!("this tells no time: {odd}")),
        None => Ok(events),
    }
}

fn kind(event: &Value) -> &str {
    event.at("event").str()
}

fn at(event: &Value) -> i64 {
    event.at("at").int()
}

fn with(event: Value, field: &str, value: impl Into<Value>) -> Value {
    let Value::Record(mut fields) = event else { return event };
    fields.insert(field.to_owned(), value.into());
    Value::Record(fields)
}

/// Over which sessions of a home one handoff went.
struct Sides {
    giver: Value,
    /// There is none if nobody has taken anything.
    receiver: Option<Value>,
    /// By the numbers that they have in the model, in the order of their deposits.
    tickets: BTreeMap<Value, i64>,
}

impl Sides {
    fn of(home: &[Value], parties: &[Value]) -> Result<Sides, String> {
        let offers = parties.iter().filter(|event| kind(event) == "offer");
        let offered: BTreeSet<&Value> = offers.map(|event| event.at("ticket")).collect();
        let of = |wanted: &str| -> Vec<&Value> {
            let is = |event: &&Value| kind(event) == wanted && offered.contains(event.at("ticket"));
            home.iter().filter(is).collect()
        };
        let mut deposited = of("deposited");
        deposited.sort_by_key(|event| event.at("came").int());
        let mut tickets = BTreeMap::new();
        for event in &deposited {
            number_of(&mut tickets, event.at("ticket").clone());
        }
        if tickets.len() != offered.len() {
            return Err(format!("of {} gifts {} were left", offered.len(), tickets.len()));
        }
        let giver = one_session(&deposited)?.ok_or("nothing was offered")?;
        let receiver = one_session(&of("granted"))?;
        Ok(Sides { giver, receiver, tickets })
    }

    /// What the home did for these two.
    fn at_home(&self, home: &[Value]) -> Result<Vec<Value>, String> {
        let mut effects: BTreeMap<(&Value, &Value), i64> = BTreeMap::new();
        for event in home.iter().filter(|event| kind(event) == "effect" && self.has(event)) {
            let call = (event.at("session"), event.at("n"));
            if effects.insert(call, at(event)).is_some() {
                return Err(format!("it took effect before: {event}"));
            }
        }
        let arrived = home.iter().filter(|event| kind(event) == "arrived" && self.has(event));
        let calls: Vec<(&Value, Option<i64>)> = arrived
            .map(|event| (event, effects.remove(&(event.at("session"), event.at("n")))))
            .collect();
        if let Some((_, n)) = effects.keys().next() {
            return Err(format!("nobody has seen call {n} arrive, which took effect"));
        }
        let mut told: Vec<Value> = calls.iter().map(|call| self.call(call, &calls)).collect();
        for event in home.iter().filter(|event| self.has(event)) {
            let is_givers = event.at("session") == &self.giver;
            match kind(event) {
                "flushed" if is_givers => told.push(event.clone()),
                "deposited" => told.push(with(event.clone(), "at", event.at("came").clone())),
                "granted" => told.push(event.clone()),
                "session_ends" if is_givers => {
                    told.push(with(event.clone(), "event", Value::text("giver_session_ends")));
                }
                // Calls are there already, and of a receiver's end the model has no word.
                _ => {}
            }
        }
        Ok(told)
    }

    fn has(&self, event: &Value) -> bool {
        let session = event.at("session");
        *session == self.giver || self.receiver.as_ref() == Some(session)
    }

    /// One call of all of them, each with when it took effect.
    fn call(&self, call: &(&Value, Option<i64>), all: &[(&Value, Option<i64>)]) -> Value {
        let (event, took) = *call;
        let overtakes = |effect: i64| {
            let mut later = all.iter().filter(|(other, _)| at(other) > at(event));
            later.any(|(_, other)| other.is_some_and(|other| other < effect))
        };
        let at = took.filter(|effect| overtakes(*effect)).unwrap_or(at(event));
        let way = if event.at("session") == &self.giver { "proxied" } else { "direct" };
        let told = with(event.clone(), "event", Value::text(way));
        with(with(told, "at", at), "took", Value::Bool(took.is_some()))
    }
}

fn one_session(events: &[&Value]) -> Result<Option<Value>, String> {
    let mut sessions: BTreeSet<&Value> = events.iter().map(|event| event.at("session")).collect();
    let one = sessions.pop_first().cloned();
    match sessions.pop_first() {
        Some(other) => Err(format!("this went over two sessions, {other} is one of them")),
        None => Ok(one),
    }
}

/// Puts events into the model's terms, one after the other.
struct Terms {
    tickets: BTreeMap<Value, i64>,
    deposits: i64,
    /// The ticket that was withdrawn last: what is flushed is flushed for it.
    withdrawn: i64,
}

impl Terms {
    fn of(&mut self, told: &Value) -> Result<Value, String> {
        let ticket = || {
            let number = self.tickets.get(told.at("ticket")).copied();
            number.ok_or_else(|| format!("nobody has given this: {told}"))
        };
        let n = || told.at("n").int();
        let kind = kind(told);
        Ok(match kind {
            "deposit" => {
                self.deposits += 1;
                event(kind, &[("t", self.deposits)])
            }
            "offer" | "withdraw" | "deposited" | "granted" | "stranger" => {
                event(kind, &[("t", ticket()?)])
            }
            "withdrawn" => {
                self.withdrawn = ticket()?;
                event(kind, &[])
            }
            "forward_flush" | "flushed" => event(kind, &[("t", self.withdrawn)]),
            "call" | "forward" => event(kind, &[("n", n())]),
            "proxied" | "direct" => effect(kind, n(), told.at("took") == &Value::Bool(true)),
            _ => event(kind, &[]),
        })
    }
}
