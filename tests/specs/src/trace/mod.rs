//! Traces: what real processes recorded, as the `Trace.tla` of a folder of `specs/` reads it, and
//! what TLC says of it.
//!
//! The kernel's trace is its journal ([`kernel`]). Services write theirs into the node's log, if
//! the image has them do so ([`recorded`]); what a state machine's events are is in a module of its
//! own ([`audit`], [`attestation`], [`revocation`], [`handoff`]). Leases and handoffs are recorded by
//! whoever simulates them, too.

pub mod attestation;
pub mod audit;
pub mod handoff;
pub mod kernel;
pub mod revocation;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::sections;
use crate::tlc::{Folder, Outcome, Tlc, Verdict};
use crate::value::Value;

/// The events of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    events: Vec<Value>,
    skipped: BTreeMap<&'static str, usize>,
    /// What the configuration takes constants from, `NAME == VALUE` each: the same in all traces that
    /// are checked together.
    definitions: Vec<String>,
}

/// Traces that somebody made of one that was recorded, and what each is.
pub type Forged = Vec<(&'static str, Trace)>;

/// What was found in one of the traces that were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Every event is a step of the model.
    Accepted,
    /// The event of this number, from 1, is not, and all before it are.
    Refused {
        /// Its number.
        event: usize,
        /// What it says.
        text: String,
    },
}

/// What came of checking.
#[derive(Clone, Debug)]
pub struct Checked {
    /// For each trace.
    pub findings: Vec<Finding>,
    /// What TLC found in all of them together.
    pub outcome: Outcome,
}

impl Trace {
    fn of(events: Vec<Value>) -> Trace {
        Trace { events, skipped: BTreeMap::new(), definitions: Vec::new() }
    }

    /// Its first events, so many.
    pub fn first(mut self, len: usize) -> Trace {
        self.events.truncate(len);
        self
    }

    /// What was recorded and is not in it, as the model has no word for it, and how often.
    pub fn skipped(&self) -> &BTreeMap<&'static str, usize> {
        &self.skipped
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The events, each a record whose field `event` is its kind.
    pub fn events(&self) -> &[Value] {
        &self.events
    }

    /// How many events there are of each kind.
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for event in &self.events {
            *counts.entry(event.at("event").str()).or_default() += 1;
        }
        counts
    }
}

/// A kind of event: its name, and the fields that each has.
pub type Kind = (&'static str, &'static [&'static str]);

/// The events that a node's services wrote into its log under `distos::trace::MACHINE`, in the
/// order in which they were written. Numbers and `true` and `false` are that, and everything else
/// is a string. An event may have more fields than its kind.
///
/// # Errors
/// A line is of none of these kinds, lacks a field, or was not written as a whole.
pub fn recorded(log: &str, machine: &str, kinds: &[Kind]) -> Result<Vec<Value>, String> {
    let target = format!(" distos::trace::{machine}: ");
    let said = log.lines().filter_map(|line| Some((line, line.split_once(&target)?.1)));
    let read = |(line, said): (&str, &str)| {
        let mut words = said.split_whitespace();
        let name = words.next().unwrap_or_default();
        let mut fields = BTreeMap::from([("event".to_owned(), Value::text(name))]);
        for word in words {
            let (field, value) =
                word.split_once('=').ok_or_else(|| format!("'{word}' is no field: {line}"))?;
            fields.insert(field.to_owned(), typed(value));
        }
        let (_, needed) = kinds
            .iter()
            .find(|(kind, _)| *kind == name)
            .ok_or_else(|| format!("'{name}' is no event of {machine}: {line}"))?;
        match needed.iter().find(|field| !fields.contains_key(**field)) {
            None => Ok(Value::Record(fields)),
            Some(field) => Err(format!("{field} is missing: {line}")),
        }
    };
    said.map(read).collect()
}

fn typed(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => text.parse().map_or_else(|_| Value::text(text), Value::Int),
    }
}

/// The module `TraceData`.
pub fn data(traces: &[Trace]) -> String {
    let mut text = String::from("---- MODULE TraceData ----\nEXTENDS Naturals, Sequences\n");
    for (n, trace) in (1..).zip(traces) {
        let (events, skipped) = (trace.len(), &trace.skipped);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\\* trace {n}: {events} events; not in it: {skipped:?}");
    }
    for definition in traces.first().into_iter().flat_map(|trace| &trace.definitions) {
        let _ = writeln!(text, "{definition}");
    }
    let traces = traces.iter().map(|trace| {
        let events: Vec<String> = trace.events.iter().map(Value::to_string).collect();
        format!("<<\n{}\n>>", events.join(",\n"))
    });
    let _ = writeln!(text, "Traces == <<\n{}\n>>\n====", traces.collect::<Vec<_>>().join(",\n"));
    text
}

/// Has TLC check each of these traces of the specification in this folder.
///
/// # Errors
/// TLC comes to no verdict, or to one that contradicts how far it went.
pub fn check(tlc: &Tlc, spec: &Path, traces: &[Trace]) -> Result<Checked, String> {
    check_with(tlc, spec, "Trace.cfg", traces)
}

/// The same with other bounds than those in `Trace.cfg`.
///
/// # Errors
/// Those of [`check`]; or the traces do not have the same definitions.
pub fn check_with(
    tlc: &Tlc,
    spec: &Path,
    config: &str,
    traces: &[Trace],
) -> Result<Checked, String> {
    if traces.windows(2).any(|two| two[0].definitions != two[1].definitions) {
        return Err("traces of different runs are not checked together".to_owned());
    }
    let folder = Folder::of(spec)?;
    folder.write("TraceData.tla", &data(traces))?;
    // TLC stops at the first trace that is refused, whether it is through with the others or not.
    // Therefore only one that is alone is held to the property.
    let alone = traces.len() == 1;
    let text = fs::read_to_string(folder.path().join(config));
    let text = text.map_err(|e| format!("{config}: {e}"))?;
    folder.write("Traces.cfg", &sections::without_properties(&text))?;
    let config = if alone { config } else { "Traces.cfg" };
    let mut reached = vec![0; traces.len()];
    let outcome = tlc.run(&folder, "Trace", config, &mut |printed| {
        let [_, trace, event] = printed.items()[..] else { return };
        let trace = usize::try_from(trace.int() - 1).ok().and_then(|at| reached.get_mut(at));
        if let (Some(reached), Ok(event)) = (trace, usize::try_from(event.int())) {
            *reached = (*reached).max(event);
        }
    })?;
    if let Verdict::Invariant(_) | Verdict::Action(_) = outcome.verdict {
        return Err(format!("after {reached:?} events: {}", outcome.verdict));
    }
    let findings: Vec<Finding> = traces
        .iter()
        .zip(reached)
        .map(|(trace, reached)| match trace.events.get(reached) {
            None => Finding::Accepted,
            Some(event) => Finding::Refused { event: reached + 1, text: event.to_string() },
        })
        .collect();
    let all = findings.iter().all(|finding| *finding == Finding::Accepted);
    if alone && all != (outcome.verdict == Verdict::Holds) {
        return Err(format!("TLC says '{}', and took these steps: {findings:?}", outcome.verdict));
    }
    Ok(Checked { findings, outcome })
}

fn count(number: u64) -> Value {
    Value::from(i64::try_from(number).unwrap_or(i64::MAX))
}

/// From 1, in the order in which they are met.
fn number_of<T: Ord>(numbers: &mut BTreeMap<T, i64>, one: T) -> i64 {
    let next = numbers.len() as i64 + 1;
    *numbers.entry(one).or_insert(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
{\"event\":\"ready\"}
2026-11-22T00:40:58.000001Z DEBUG distos::trace::audit: append first=1 last=5 size=5
2026-11-22T00:40:58.000002Z  WARN distos_rpc::vat: a connection was lost
2026-11-22T00:40:58.000003Z DEBUG distos::trace::attestation: verdict at=7 nonce=0a1b good=true
2026-11-22T00:40:58.000004Z DEBUG distos::trace::audit: synced size=5
";

    #[test]
    fn a_machines_events_are_found_among_what_else_a_node_says() {
        let kinds: &[Kind] = &[("append", &["first", "last", "size"]), ("synced", &["size"])];
        let events = recorded(LOG, "audit", kinds).unwrap();
        let shown: Vec<String> = events.iter().map(Value::to_string).collect();
        let append = "[event |-> \"append\", first |-> 1, last |-> 5, size |-> 5]";
        assert_eq!(shown, [append, "[event |-> \"synced\", size |-> 5]"]);
        let verdict: &[Kind] = &[("verdict", &["at", "nonce", "good"])];
        let events = recorded(LOG, "attestation", verdict).unwrap();
        assert_eq!((events[0].at("nonce").str(), events[0].at("at").int()), ("0a1b", 7));
        assert_eq!(events[0].at("good"), &Value::Bool(true));
    }

    /// Otherwise a trace from which a process wrote something else would pass for the whole one.
    #[test]
    fn an_event_that_is_unknown_cut_off_or_short_of_a_field_is_told() {
        for (kinds, why) in [
            (&[("append", &["first"][..])][..], "'synced' is no event"),
            (&[("append", &["upto"][..]), ("synced", &[][..])][..], "upto is missing"),
        ] {
            let told = recorded(LOG, "audit", kinds).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
        let cut = format!("{LOG}2026 DEBUG distos::trace::audit: synced si");
        let told = recorded(&cut, "audit", &[("append", &[]), ("synced", &[])]).unwrap_err();
        assert!(told.contains("'si' is no field"), "{told}");
    }
}
