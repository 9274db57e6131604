//! The trace of one node's verifier and scheduler, as `specs/attestation/Trace.tla` reads it.
//!
//! What processes write is in terms of what they know: times since the Unix epoch, nonces as
//! they are drawn, a boot without the number that only a quote tells, epochs since the node was first watched. The model's
//! terms are times and epochs since the run began, nonces numbered in the order of their challenges, and boots by number.

use std::collections::BTreeMap;

use super::{Kind, Trace, number_of, recorded};
use crate::value::Value;

/// The folder in `specs/` of the model.
pub const SPEC: &str = "attestation";

const KINDS: &[Kind] = &[
    ("start", &["at", "bound"]),
    ("boot", &["at"]),
    ("challenge", &["at", "nonce"]),
    ("verdict", &["at", "nonce", "good", "epoch"]),
    ("too_old", &["at", "nonce"]),
    ("no_answer", &["at"]),
    ("place", &["at", "fresh_until"]),
];

/// What the attestation service and the scheduler of one node wrote into its log, in the order of
/// their times. Two processes write: of what has the same time, a placement comes last.
///
/// # Errors
/// An event is of no known kind, lacks a field or tells no time.
pub fn events(log: &str) -> Result<Vec<Value>, String> {
    let mut events = recorded(log, SPEC, KINDS)?;
    if let Some(odd) = events.iter().find(|event| !matches!(event.at("at"), Value::Int(_))) {
        return Err(format!("this tells no time: {odd}"));
    }
    in_order(&mut events);
    Ok(events)
}

/// Software is tampered with by whoever runs a test: an event that no process writes. `at` is in
/// milliseconds since the Unix epoch.
pub fn tamper(events: &mut Vec<Value>, at: u64) {
    let at = Value::from(i64::try_from(at).unwrap_or(i64::MAX));
    events.push(Value::record([("event", Value::text("tamper")), ("at", at)]));
    in_order(events);
}

fn in_order(events: &mut [Value]) {
    events.sort_by_key(|event| (event.at("at").int(), kind(event) == "place"));
}

fn kind(event: &Value) -> &str {
    event.at("event").str()
}

/// The same in the model's terms.
pub fn trace(events: &[Value]) -> Trace {
    let begin = events.first().map_or(0, |event| event.at("at").int());
    let (boots, before) = (resets(events), epoch(events));
    let mut nonces = BTreeMap::new();
    let one = |(event, boot): (&Value, &i64)| {
        let Value::Record(fields) = event else { return event.clone() };
        let mut fields = fields.clone();
        fields.insert("node".to_owned(), Value::text("node"));
        for time in ["at", "fresh_until"] {
            fields.entry(time.to_owned()).and_modify(|at| *at = Value::from(at.int() - begin));
        }
        if let Some(nonce) = fields.get_mut("nonce") {
            *nonce = Value::from(number_of(&mut nonces, nonce.clone()));
        }
        if let Some(epoch) = fields.get_mut("epoch") {
            *epoch = Value::from(epoch.int() - before);
        }
        if kind(event) == "boot" {
            fields.entry("good".to_owned()).or_insert(Value::Bool(true));
            fields.insert("resets".to_owned(), Value::from(*boot));
        }
        Value::Record(fields)
    };
    Trace::of(events.iter().zip(&boots).map(one).collect())
}

/// How often evidence had turned bad before the run.
fn epoch(events: &[Value]) -> i64 {
    let first = events.iter().find(|event| kind(event) == "verdict");
    first.map_or(0, |verdict| {
        verdict.at("epoch").int() - i64::from(*verdict.at("good") == Value::Bool(false))
    })
}

/// The reset count that the TPM has at each event: that of the next good verdict in this boot, or,
/// where none follows, one more than before.
fn resets(events: &[Value]) -> Vec<i64> {
    let mut counts = Vec::new();
    let mut last = 0;
    for (at, event) in events.iter().enumerate() {
        if kind(event) == "boot" {
            let rest = events[at + 1..].iter().take_while(|event| kind(event) != "boot");
            let told = rest.filter(|event| kind(event) == "verdict").find_map(|verdict| {
                let Value::Record(fields) = verdict else { return None };
                fields.get("resets").map(Value::int)
            });
            last = told.unwrap_or(last + 1);
        }
        counts.push(last);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
x DEBUG distos::trace::attestation: start at=1700000000000 bound=60000
x DEBUG distos::trace::attestation: challenge at=1700000000005 nonce=00aa
x DEBUG distos::trace::attestation: boot at=1700000000005
x DEBUG distos::trace::attestation: place at=1700000000009 fresh_until=1700000060005
x DEBUG distos::trace::attestation: verdict at=1700000000009 nonce=00aa good=true epoch=3 resets=17
x DEBUG distos::trace::attestation: start at=1700000000020 bound=60000
x DEBUG distos::trace::attestation: challenge at=1700000000021 nonce=bb00
x DEBUG distos::trace::attestation: boot at=1700000000021
x DEBUG distos::trace::attestation: verdict at=1700000000030 nonce=bb00 good=false epoch=4
";

    #[test]
    fn a_run_is_told_in_the_models_terms_and_in_the_order_of_its_times() {
        let mut events = events(LOG).unwrap();
        tamper(&mut events, 1_700_000_000_025);
        let shown: Vec<String> = trace(&events).events().iter().map(Value::to_string).collect();
        let boot = |at, resets| {
            format!(
                "[at |-> {at}, event |-> \"boot\", good |-> TRUE, node |-> \"node\", resets |-> {resets}]"
            )
        };
        assert_eq!(shown[2], boot(5, 17));
        let place = "[at |-> 9, event |-> \"place\", fresh_until |-> 60005, node |-> \"node\"]";
        assert_eq!(shown[4], place, "a placement comes behind the verdict of the same time");
        assert_eq!(shown[7], boot(21, 18), "no verdict tells the number of this boot");
        assert!(shown[8].contains("tamper"), "{}", shown[8]);
        assert!(shown[9].contains("nonce |-> 2"), "{}", shown[9]);
        assert!(shown[3].contains("epoch |-> 0") && shown[9].contains("epoch |-> 1"), "{shown:?}");
    }
}
