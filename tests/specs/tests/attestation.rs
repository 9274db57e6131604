//! What `specs/attestation` says of runs that somebody wrote by hand: which no process has to be there for.
#![allow(clippy::unwrap_used)]
#![forbid(unsafe_code)]

mod judge;

use distos_specs::trace::Trace;
use distos_specs::trace::attestation::{SPEC, events, trace};

use judge::are_judged;

/// A verifier that is killed and started anew while a node's evidence turns bad, and good again after a reboot. It was bad twice before.
const RUN: &str = "\
0 start bound=60000
2 boot
3 challenge nonce=a1
20 verdict nonce=a1 good=true epoch=2 resets=17
100 place fresh_until=1700000060003
26000 challenge nonce=a2
26300 verdict nonce=a2 good=false epoch=3
26400 start bound=60000
26401 challenge nonce=a3
26700 verdict nonce=a3 good=false epoch=4
50000 boot
50100 challenge nonce=a4
50400 verdict nonce=a4 good=true epoch=4 resets=18
";

/// Milliseconds since the Unix epoch.
const BEGIN: &str = "1700000";

fn told(run: &str) -> Trace {
    let line = |line: &str| {
        let (ms, said) = line.split_once(' ').unwrap();
        let (kind, fields) = said.split_once(' ').unwrap_or((said, ""));
        format!("x DEBUG distos::trace::attestation: {kind} at={BEGIN}{ms:0>6} {fields}\n")
    };
    trace(&events(&run.lines().map(line).collect::<String>()).unwrap())
}

/// Up to and with the line that has this, which is changed to that.
fn changed(this: &str, that: &str) -> Trace {
    let end = RUN.find(this).unwrap() + this.len();
    let end = end + RUN[end..].find('\n').unwrap() + 1;
    told(&RUN[..end].replace(this, that))
}

/// What was given under one epoch would go on under another: an epoch that does not rise, or goes back, ends nothing.
#[test]
fn an_epoch_rises_with_each_evidence_that_is_bad_and_with_nothing_else() {
    let fine = vec![("it is as it should be", told(RUN))];
    let wrong = vec![
        ("bad evidence begins no epoch", changed("good=false epoch=3", "good=false epoch=2")),
        ("two epochs begin at once", changed("good=false epoch=3", "good=false epoch=4")),
        ("a restart forgets an epoch", changed("good=false epoch=4", "good=false epoch=3")),
        ("good evidence ends an epoch", changed("good=true epoch=4", "good=true epoch=3")),
        ("good evidence begins one", changed("good=true epoch=4", "good=true epoch=5")),
    ];
    are_judged((SPEC, "Trace.cfg"), &wrong, &fine);
}
