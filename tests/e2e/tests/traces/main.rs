//! What a node's processes recorded, through the deaths of some of them, is a behaviour of their
//! model, and no step of it could be another: the models of `specs/` are what the code does.
#![allow(clippy::unwrap_used)]

mod attestation;
mod audit;
mod handoffs;
mod kernel;
mod leases;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use distos_e2e::Node;
use distos_specs::root;
use distos_specs::tlc::Tlc;
use distos_specs::trace::{Checked, Finding, Trace, check_with};

const LONG: Duration = Duration::from_secs(20);
/// Who works while processes are killed.
const WORKERS: usize = 3;

/// Red makes, lends, takes back and drops until the node is gone or nobody wants more.
fn work(node: &Node, worker: usize, is_over: &AtomicBool) {
    for round in 0.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let (name, lent) = (format!("w{worker}-{round}"), format!("w{worker}-{round}-lent.cap"));
        let own = format!("{name}.cap");
        let create = ["region", "create", &name, "--bytes", "1", "--as", "red.cap", "--out", &own];
        let lend = ["cap", "delegate", &own, "--as", "red.cap", "--to", "blue.pub", "-o", &lent];
        let read = ["region", "get", "--cap", &lent, "--as", "blue.cap"];
        let revoke = ["cap", "revoke", &lent, "--as", "red.cap"];
        let drop = ["region", "drop", &name, "--as", "red.cap"];
        let all: [&[&str]; 5] = [&create, &lend, &read, &revoke, &drop];
        // Some leave what they made.
        for command in &all[..3 + round % 3] {
            let output = node.cli(command);
            if output.code == 17 {
                return;
            }
            assert_eq!(output.code, 0, "{command:?}: {}", output.stderr);
        }
    }
}

/// Does `meanwhile` while three of red's programs work as fast as they can, and then `end`, by
/// which they may lose their node.
fn at_work<T>(node: &Node, meanwhile: impl FnOnce(), end: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let is_over = &is_over;
        let workers: Vec<_> =
            (0..WORKERS).map(|n| scope.spawn(move || work(node, n, is_over))).collect();
        meanwhile();
        assert!(!workers.iter().any(|worker| worker.is_finished()), "the node is gone too early");
        let ended = end();
        is_over.store(true, Ordering::Relaxed);
        ended
    })
}

/// A folder of `specs/`, and the bounds in it.
type Bounds<'a> = (&'a str, &'a str);

fn checked((spec, config): Bounds<'_>, traces: &[Trace]) -> Checked {
    let (tlc, spec) = (Tlc::find(&root()).unwrap(), root().join("specs").join(spec));
    check_with(&tlc, &spec, config, traces).unwrap_or_else(|why| panic!("{why}"))
}

/// The trace is a behaviour of this model, and has at least so many events of each of these kinds:
/// one in which nothing happened says nothing.
fn accepted(spec: &str, trace: &Trace, least: &[(&str, usize)]) {
    accepted_within((spec, "Trace.cfg"), trace, least);
}

fn accepted_within(bounds: Bounds<'_>, trace: &Trace, least: &[(&str, usize)]) {
    let Checked { findings, outcome } = checked(bounds, std::slice::from_ref(trace));
    let counts = trace.counts();
    eprintln!("{} events {counts:?}: {:?}", trace.len(), outcome.took);
    assert_eq!(findings, [Finding::Accepted], "a node did what its model does not");
    for (kind, least) in least {
        let count = counts.get(kind).copied().unwrap_or(0);
        assert!(
            count >= *least,
            "{count} of {kind} say little, {least} were asked for: {counts:?}"
        );
    }
}

/// Of each forged trace the last event is one that no node may have done, and is refused. The
/// controls, which are forged as well, are fine.
fn refused(spec: &str, forged: &[(&str, Trace)], controls: &[(&str, Trace)]) {
    refused_within((spec, "Trace.cfg"), forged, controls);
}

fn refused_within(bounds: Bounds<'_>, forged: &[(&str, Trace)], controls: &[(&str, Trace)]) {
    let traces: Vec<Trace> =
        forged.iter().chain(controls).map(|(_, trace)| trace.clone()).collect();
    let Checked { mut findings, outcome } = checked(bounds, &traces);
    eprintln!("{} forged traces: {:?}", forged.len(), outcome.took);
    let fine = findings.split_off(forged.len());
    for ((what, _), finding) in controls.iter().zip(fine) {
        assert_eq!(finding, Finding::Accepted, "{what}: nothing is wrong with it");
    }
    for ((what, trace), finding) in forged.iter().zip(findings) {
        match finding {
            Finding::Refused { event, text } if event == trace.len() => {
                eprintln!("{what}: refused at event {event}: {text}");
            }
            other => panic!("{what}: the last of {} events is wrong, but: {other:?}", trace.len()),
        }
    }
}
