//! Runs that somebody wrote by hand, and TLC's word on them.

use distos_specs::root;
use distos_specs::tlc::Tlc;
use distos_specs::trace::{Finding, Forged, Trace, check_with};

/// What is found in traces of the model in this folder of `specs/`, within these bounds.
pub(crate) fn findings((spec, config): (&str, &str), traces: &[Trace]) -> Vec<Finding> {
    let (tlc, spec) = (Tlc::find(&root()).unwrap(), root().join("specs").join(spec));
    let checked = check_with(&tlc, &spec, config, traces);
    checked.unwrap_or_else(|why| panic!("{why}")).findings
}

/// Of each wrong trace the last event is refused, and nothing is in the fine ones.
pub(crate) fn are_judged(bounds: (&str, &str), wrong: &Forged, fine: &Forged) {
    let all: Vec<Trace> = wrong.iter().chain(fine).map(|(_, trace)| trace.clone()).collect();
    let mut found = findings(bounds, &all);
    for ((what, trace), finding) in fine.iter().zip(found.split_off(wrong.len())) {
        assert_eq!(finding, Finding::Accepted, "{what}: {:?}", trace.events());
    }
    for ((what, trace), finding) in wrong.iter().zip(found) {
        let last = trace.len();
        let is_last = matches!(&finding, Finding::Refused { event, .. } if *event == last);
        assert!(is_last, "{what}: the last of {last} events is wrong, but: {finding:?}");
        eprintln!("{what}: {finding:?}");
    }
}

/// Lines of milliseconds since the machine was booted and of what is said then, as processes write them.
#[allow(dead_code, reason = "runs of machines that tell the time of day are written otherwise")]
pub(crate) fn log(machine: &str, said: &str) -> String {
    let line = |line: &str| {
        let (ms, said) = line.split_once(' ').unwrap();
        let (kind, fields) = said.split_once(' ').unwrap_or((said, ""));
        let (whole, part) = ms.split_once('.').unwrap_or((ms, "0"));
        let at = format!("{whole}{part:0<6}");
        format!("2026-11-22T00:00:00Z DEBUG distos::trace::{machine}: {kind} at={at} {fields}\n")
    };
    said.lines().map(line).collect()
}
