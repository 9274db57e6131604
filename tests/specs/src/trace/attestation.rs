//! The traces of nodes' verifiers, schedulers and issuers, as `specs/attestation/Trace.tla` reads them.
//!
//! What processes write is in terms of what they know: times since the Unix epoch, nonces as
//! they are drawn, a boot without the number that only a quote tells, epochs since the node was first watched. The model's
//! terms are times and epochs since the run began, nonces numbered in the order of their challenges, and boots by number.
//!
//! A verifier judges several nodes, and a node is judged by several verifiers. What one says of one node is a trace of its own: they
//! touch one another in nothing but the machine that is judged.

use std::collections::{BTreeMap, BTreeSet};

use super::{Kind, Trace, number_of, recorded};
use crate::value::Value;

/// The folder in `specs/` of the model.
pub const SPEC: &str = "attestation";

const KINDS: &[Kind] = &[
    ("start", &["at", "verifier", "bound", "grace"]),
    ("boot", &["at"]),
    ("challenge", &["at", "node", "nonce"]),
    ("verdict", &["at", "node", "nonce", "good", "epoch"]),
    ("too_old", &["at", "node", "nonce"]),
    ("no_answer", &["at", "node"]),
    ("begin", &["at", "node", "drain"]),
    ("place", &["at", "node", "job", "task", "fresh_until"]),
    ("end", &["at", "node", "job", "task", "done"]),
    ("fence", &["at", "node", "epoch"]),
    ("join", &["at", "node", "until"]),
    ("raise", &["at", "node", "epoch"]),
];
/// Those that others write than the verifier, by whose word they go.
const FOLLOWING: [&str; 6] = ["begin", "place", "end", "fence", "join", "raise"];

/// What one verifier and one node did that have to do with one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which verifier: the name of its node.
    pub verifier: String,
    /// The name of the node that it judges.
    pub node: String,
    /// In the order of their times.
    pub events: Vec<Value>,
}

impl Run {
    /// Whether it is a node's own verdict of itself, by which its scheduler goes.
    pub fn is_own(&self) -> bool {
        self.verifier == self.node
    }

    /// Somebody who runs a test has tampered with the node's software: an event that no process writes. `at` is in
    /// milliseconds since the Unix epoch.
    pub fn tamper(&mut self, at: u64) {
        let at = Value::from(i64::try_from(at).unwrap_or(i64::MAX));
        self.events.push(Value::record([("event", Value::text("tamper")), ("at", at)]));
        in_order(&mut self.events);
    }

    /// The same in the model's terms.
    pub fn trace(&self) -> Trace {
        trace(&self.events)
    }
}

/// All runs in these logs, each of which one node wrote: one for each verifier and each node that it judges. When a node booted,
/// its own log tells; where that is none of these it is taken to have booted whenever its TPM's number has changed.
///
/// # Errors
/// An event is of no known kind, lacks a field or tells no time; or a log does not tell whose it is.
pub fn runs(logs: &[&str]) -> Result<Vec<Run>, String> {
    let logs: Vec<(String, Vec<Value>)> =
        logs.iter().map(|log| owned(log)).collect::<Result<_, String>>()?;
    let mut boots: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (owner, events) in &logs {
        let booted = events.iter().filter(|event| kind(event) == "boot").cloned();
        boots.entry(owner).or_default().extend(booted);
    }
    let mut runs = Vec::new();
    for (verifier, events) in &logs {
        let judged: BTreeSet<&str> =
            events.iter().filter_map(about).chain([&verifier[..]]).collect();
        for node in judged {
            let of_it = |event: &&Value| match about(event) {
                Some(about) => about == node,
                None => kind(event) == "start" || node == verifier,
            };
            let told: Vec<Value> = events.iter().filter(of_it).cloned().collect();
            let mut events = match boots.get(node) {
                _ if node == verifier => told,
                Some(boots) => [&boots[..], &told].concat(),
                None => supposed(told),
            };
            in_order(&mut events);
            runs.push(Run { verifier: verifier.clone(), node: node.to_owned(), events });
        }
    }
    Ok(runs)
}

/// What a log has to say, and the name of the node that wrote it.
fn owned(log: &str) -> Result<(String, Vec<Value>), String> {
    let events = recorded(log, SPEC, KINDS)?;
    if let Some(odd) = events.iter().find(|event| !matches!(event.at("at"), Value::Int(_))) {
        return Err(format!("this tells no time: {odd}"));
    }
    let starts = events.iter().filter(|event| kind(event) == "start");
    let owners: BTreeSet<&str> = starts.map(|event| event.at("verifier").str()).collect();
    match owners.iter().copied().collect::<Vec<_>>()[..] {
        [owner] => Ok((owner.to_owned(), events)),
        ref owners => Err(format!("this is the log of one verifier, and not of {owners:?}")),
    }
}

/// Which node an event is about, if it says so.
fn about(event: &Value) -> Option<&str> {
    let Value::Record(fields) = event else { return None };
    fields.get("node").map(Value::str)
}

/// With a boot before each challenge that is answered with another number of the TPM's than the one before.
fn supposed(told: Vec<Value>) -> Vec<Value> {
    let resets: BTreeMap<Value, Value> = told.iter().filter_map(answered).collect();
    let mut last = None;
    let mut events = Vec::new();
    for event in told {
        let number = match kind(&event) {
            "challenge" => resets.get(event.at("nonce")),
            _ => None,
        };
        if number.is_some() && number != last {
            let boot = [("event", Value::text("boot")), ("at", event.at("at").clone())];
            events.push(Value::record(boot));
            last = number;
        }
        events.push(event);
    }
    events
}

/// The nonce of a good verdict, and the TPM's number.
fn answered(event: &Value) -> Option<(Value, Value)> {
    let Value::Record(fields) = event else { return None };
    Some((fields.get("nonce")?.clone(), fields.get("resets")?.clone()))
}

/// Several processes write: of what has the same time, what follows from a verdict comes last.
fn in_order(events: &mut [Value]) {
    events.sort_by_key(|event| (event.at("at").int(), FOLLOWING.contains(&kind(event))));
}

fn kind(event: &Value) -> &str {
    event.at("event").str()
}

/// The events of a run in the model's terms.
pub fn trace(events: &[Value]) -> Trace {
    let begin = events.first().map_or(0, |event| event.at("at").int());
    let (boots, before) = (resets(events), epoch(events));
    let mut nonces = BTreeMap::new();
    let one = |(event, boot): (&Value, &i64)| {
        let Value::Record(fields) = event else { return event.clone() };
        let mut fields = fields.clone();
        fields.insert("node".to_owned(), Value::text("node"));
        fields.remove("verifier");
        for time in ["at", "fresh_until", "until"] {
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
x DEBUG distos::trace::attestation: start at=1700000000000 verifier=aa bound=60000 grace=9
x DEBUG distos::trace::attestation: challenge at=1700000000005 node=aa nonce=00aa
x DEBUG distos::trace::attestation: boot at=1700000000005
x DEBUG distos::trace::attestation: place at=1700000000009 node=aa job=1 task=0 fresh_until=1700000060005
x DEBUG distos::trace::attestation: verdict at=1700000000009 node=aa nonce=00aa good=true epoch=3 resets=17
x DEBUG distos::trace::attestation: start at=1700000000020 verifier=aa bound=60000 grace=9
x DEBUG distos::trace::attestation: challenge at=1700000000021 node=aa nonce=bb00
x DEBUG distos::trace::attestation: challenge at=1700000000021 node=bb nonce=cc00
x DEBUG distos::trace::attestation: verdict at=1700000000022 node=bb nonce=cc00 good=true epoch=0 resets=5
x DEBUG distos::trace::attestation: boot at=1700000000021
x DEBUG distos::trace::attestation: verdict at=1700000000030 node=aa nonce=bb00 good=false epoch=4
x DEBUG distos::trace::attestation: fence at=1700000000030 node=aa epoch=4
";

    fn shown(run: &Run) -> Vec<String> {
        run.trace().events().iter().map(Value::to_string).collect()
    }

    #[test]
    fn a_run_is_told_in_the_models_terms_and_in_the_order_of_its_times() {
        let mut runs = runs(&[LOG]).unwrap();
        runs[0].tamper(1_700_000_000_025);
        let shown = shown(&runs[0]);
        let boot = |at, resets| {
            format!(
                "[at |-> {at}, event |-> \"boot\", good |-> TRUE, node |-> \"node\", resets |-> {resets}]"
            )
        };
        assert_eq!(shown[2], boot(5, 17));
        let place = "[at |-> 9, event |-> \"place\", fresh_until |-> 60005, job |-> 1, node |-> \"node\", task |-> 0]";
        assert_eq!(shown[4], place, "a placement comes behind the verdict of the same time");
        assert_eq!(shown[7], boot(21, 18), "no verdict tells the number of this boot");
        assert!(shown[8].contains("tamper"), "{}", shown[8]);
        assert!(shown[9].contains("nonce |-> 2"), "{}", shown[9]);
        assert!(shown[3].contains("epoch |-> 0") && shown[9].contains("epoch |-> 1"), "{shown:?}");
        assert!(shown[10].contains("fence") && shown[10].contains("epoch |-> 1"), "{shown:?}");
        assert_eq!(shown.len(), 11, "nothing of it is about another node");
    }

    /// Or the verdicts of one node would be held against the machine of another.
    #[test]
    fn a_log_with_verdicts_of_several_nodes_is_as_many_runs_and_boots_are_of_the_node_whose_log_tells_them()
     {
        const OTHER: &str = "\
x DEBUG distos::trace::attestation: start at=1700000000001 verifier=bb bound=60000 grace=9
x DEBUG distos::trace::attestation: boot at=1700000000002
";
        let alone = runs(&[LOG]).unwrap();
        let pairs = |runs: &[Run]| -> Vec<(String, String)> {
            runs.iter().map(|run| (run.verifier.clone(), run.node.clone())).collect()
        };
        let pair = |verifier: &str, node: &str| (verifier.to_owned(), node.to_owned());
        assert_eq!(pairs(&alone), [pair("aa", "aa"), pair("aa", "bb")]);
        assert!(alone[0].is_own() && !alone[1].is_own());
        let kinds = |run: &Run| -> Vec<String> {
            run.events.iter().map(|event| kind(event).to_owned()).collect()
        };
        // Nobody tells when the other has booted.
        assert_eq!(kinds(&alone[1]), ["start", "start", "boot", "challenge", "verdict"]);
        assert!(shown(&alone[1])[2].contains("resets |-> 5"), "{:?}", shown(&alone[1]));
        let both = runs(&[LOG, OTHER]).unwrap();
        assert_eq!(pairs(&both), [pair("aa", "aa"), pair("aa", "bb"), pair("bb", "bb")]);
        assert_eq!(kinds(&both[1]), ["start", "boot", "start", "challenge", "verdict"]);
        assert_eq!(kinds(&both[2]), ["start", "boot"]);
        // A log that is nobody's or two nodes' together says nothing of whose boots are in it.
        assert!(runs(&[&format!("{LOG}{OTHER}")]).is_err());
        assert!(runs(&[LOG.lines().nth(1).unwrap()]).is_err());
    }
}
